# Two images: `web` (without TensorFlow) and `model`. docker-compose.yml builds both for a GPU host,
# docker-compose.cpu.yml for a host without one.

FROM python:3.11-slim-bookworm AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/venv/bin:$PATH
WORKDIR /build
RUN python -m venv /venv
COPY requirements.txt requirements-otel.txt constraints.txt ./


FROM builder AS web-packages
RUN sed -E '/^(tensorflow|keras|openvino)/d' requirements.txt > web.txt \
  && pip install -r requirements-otel.txt -r web.txt


FROM builder AS model-packages
# `tensorflow[and-cuda]` brings CUDA from PyPI, gigabytes of it: a GPU host then needs only the driver
# and the NVIDIA container toolkit.
ARG TENSORFLOW=tensorflow
RUN sed "s/^tensorflow==/$TENSORFLOW==/" requirements.txt > model.txt \
  && pip install -r requirements-otel.txt -r model.txt


FROM python:3.11-slim-bookworm AS runtime
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Home is /tmp, where libraries may keep a cache also if the rest of the container is read-only.
RUN groupadd --gid 10001 service && useradd --uid 10001 --gid service --home-dir /tmp service
WORKDIR /app
COPY settings.py models_file.py helpers.py pyproject.toml ./
COPY serving serving
STOPSIGNAL SIGTERM


FROM runtime AS web
COPY --from=web-packages /venv /venv
COPY run_web_server.py web_parts.py queue_admin.py ./
USER 10001:10001
ENV WEB_HOST=0.0.0.0
# 9100 is for Prometheus, where WEB_METRICS_PORT says so.
EXPOSE 5000 9100
ARG GIT_COMMIT=unknown
ENV GIT_COMMIT=$GIT_COMMIT
CMD ["python", "run_web_server.py"]


FROM runtime AS model
ENV KERAS_HOME=/models
RUN install --directory --owner=service --group=service /models
COPY --from=model-packages /venv /venv
COPY run_model_server.py model_parts.py queue_admin.py dead_letters.py ./
USER 10001:10001

# With its weights in the image a model server starts without a network. They do not decide what runs:
# the MODEL of run time does, and if its weights are not here they are fetched then.
ARG FETCH_WEIGHTS=true
ARG MODEL=ResNet50
RUN if [ "$FETCH_WEIGHTS" = true ]; then python run_model_server.py --fetch-only; fi
VOLUME /models
EXPOSE 9100
ARG GIT_COMMIT=unknown
ENV GIT_COMMIT=$GIT_COMMIT
CMD ["python", "run_model_server.py"]
