"""The spans of requests, of an application in this process, on a real Redis."""

import io
import time
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import redis
from conftest import Answering, RedisServer, as_bytes, push, some_photo, wait_for
from flask.testing import FlaskClient
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from otlp_receiver import finished

import run_web_server
import settings
from serving.jobs.served import FRESH_SECONDS, Served, digest_of
from serving.telemetry.build import Build
from serving.telemetry.traces import WebTraces
from serving.telemetry.web_metrics import WebMetrics

PHOTO = as_bytes(some_photo(), "JPEG")


@pytest.fixture
def web(
    request: pytest.FixtureRequest, redis_server: RedisServer, raw: redis.Redis, exporter: InMemorySpanExporter
) -> Iterator[FlaskClient]:
    """A client of the application of a web process; a test's parameter: with these settings besides."""
    ours = {"image_width": 32, "image_height": 32, "max_queue_length": 1, "request_timeout_seconds": 2}
    config = settings.Settings(redis_url=redis_server.url, **ours, **getattr(request, "param", {}))
    traces = WebTraces("image_queue", exporter)
    with ThreadPool(2) as pool:
        app = run_web_server.create_app(config, pool, WebMetrics(Build()), traces)
        app.extensions["models"].start()
        yield app.test_client()
    traces.sender.close()


def test_each_of_several_images_has_a_span_of_its_own(
    web: FlaskClient, answering: Answering, exporter: InMemorySpanExporter
) -> None:
    form = {"image": [(io.BytesIO(PHOTO), "a.jpg") for _ in range(3)]}
    assert web.post("/predict", data=form).status_code == 200
    (request,) = finished(exporter, "POST /predict")
    for name in ("decode", "send image_queue"):
        spans = finished(exporter, name, 3)
        assert [span.parent and span.parent.span_id for span in spans] == [request.context.span_id] * 3  # type: ignore[union-attr]
    sent = {span.attributes["messaging.message.id"]: span.context for span in finished(exporter, "send image_queue")}  # type: ignore[index]
    for job in answering.jobs:
        context = sent[job.id]
        assert job.traceparent == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"  # type: ignore[union-attr]


def test_a_request_whose_trace_is_not_kept_leaves_no_span_and_its_job_no_traceparent(
    web: FlaskClient, answering: Answering, exporter: InMemorySpanExporter
) -> None:
    for flag in ("00", "01"):
        parent = {"traceparent": f"00-{1:032x}-{1:016x}-{flag}"}
        assert web.post("/predict", data=PHOTO, content_type="image/jpeg", headers=parent).status_code == 200
    (request,) = finished(exporter, "POST /predict")
    assert request.context.trace_flags.sampled  # type: ignore[union-attr]
    assert [job.traceparent is None for job in answering.jobs] == [True, False]


def test_a_job_that_the_queue_refuses_and_a_503_are_errors(
    web: FlaskClient, raw: redis.Redis, exporter: InMemorySpanExporter
) -> None:
    push(raw, 1)
    assert web.post("/predict", data=PHOTO, content_type="image/jpeg").status_code == 503
    (send,) = finished(exporter, "send image_queue")
    (request,) = finished(exporter, "POST /predict")
    assert (send.attributes["error.type"], request.attributes["error.type"]) == ("QueueFull", "503")  # type: ignore[index]
    assert [(span.status.status_code, span.events) for span in (send, request)] == [(StatusCode.ERROR, ())] * 2


@pytest.mark.parametrize(
    ("path", "status"), [("/healthz", 200), ("/readyz", 503), ("/state", 200), ("/nowhere", 404), ("/", 200)]
)
def test_pages_and_probes_are_not_traced(
    web: FlaskClient, exporter: InMemorySpanExporter, path: str, status: int
) -> None:
    assert web.get(path).status_code == status
    web.post("/predict", data=b"")
    finished(exporter, "POST /predict")
    assert {span.name for span in exporter.get_finished_spans()} <= {"POST /predict", "read"}


def test_what_a_client_sends_as_its_tracestate_does_not_get_into_the_log(
    web: FlaskClient, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    for number, tracestate in enumerate(("a=1,secret=é", "a=1,a=secret", ",".join(f"k{i}=v" for i in range(40))), 1):
        parent = {"traceparent": f"00-{number:032x}-{1:016x}-01", "tracestate": tracestate}
        web.post("/predict", data=b"", headers=parent)
    assert len(finished(exporter, "POST /predict", 3)) == 3
    assert not any(record.name.startswith("opentelemetry") for record in caplog.records)


def test_the_span_of_a_job_names_the_queue_of_its_model(
    redis_server: RedisServer, raw: redis.Redis, exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("models: {first: {model: any}, second: {model: any}}")
    config = settings.Settings(redis_url=redis_server.url, models_file=str(file), request_timeout_seconds=5)
    traces, stand_in = WebTraces("image_queue", exporter), Answering(redis_server.url, queue="image_queue:second")
    with ThreadPool(2) as pool:
        app = run_web_server.create_app(config, pool, WebMetrics(Build()), traces)
        app.extensions["models"].start()
        asked = app.test_client().post("/predict/second", data=PHOTO, content_type="image/jpeg")
    stand_in.stop()
    assert asked.status_code == 200
    (request,) = finished(exporter, "POST /predict/<name>")
    (sent,) = finished(exporter, "send image_queue:second")
    assert sent.parent
    assert sent.parent.span_id == request.context.span_id  # type: ignore[union-attr]
    traces.sender.close()


@pytest.mark.parametrize("web", [{"cache_ttl_seconds": 60}], ids=["with the cache"], indirect=True)
def test_a_request_that_needs_no_job_says_so_in_its_span(
    web: FlaskClient, redis_server: RedisServer, raw: redis.Redis, exporter: InMemorySpanExporter
) -> None:
    served = Served("ResNet50", "1a2b", "float32", "keras", 32, 32, 3, digest_of(["cat"]), top=5)
    model_server = Answering(redis_server.url, served, ["cat"])
    try:
        wait_for(lambda: raw.exists("{image_queue}:serves"))
        time.sleep(FRESH_SECONDS)  # a web process that has seen no model server looks again after that
        first = web.post("/predict", data=PHOTO, content_type="image/jpeg")
        assert first.headers["Cache-Status"] == "classify; fwd=miss"
        wait_for(lambda: raw.exists("{image_queue}:cache"))
        again = web.post("/predict", data=PHOTO, content_type="image/jpeg")
        saved_anew = web.post("/predict", data=PHOTO + b"behind its end", content_type="image/jpeg")
        assert [one.headers["Cache-Status"] for one in (again, saved_anew)] == ["classify; hit"] * 2
    finally:
        model_server.stop()
    spans = finished(exporter, "POST /predict", 3)
    told = [[(event.name, dict(event.attributes or {})) for event in span.events] for span in spans]
    assert told == [[], [("cache", {"result": "hit"})], [("cache", {"result": "hit"})]]
    decoded = [span.parent.span_id for span in finished(exporter, "decode", 2) if span.parent]
    # The second upload was the first one once more, byte for byte.
    assert decoded == [span.context.span_id for span in (spans[0], spans[2])]  # type: ignore[union-attr]
    assert len(finished(exporter, "send image_queue")) == 1
