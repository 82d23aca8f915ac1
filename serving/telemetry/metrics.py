"""What the two processes count, in Prometheus's format. The only module that knows its library."""

import functools
import os
from collections.abc import Sequence
from typing import Protocol
from wsgiref import simple_server

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
    multiprocess,
    start_http_server,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class WebMetrics:
    """Requests by status and duration, summed over all web processes where the server runs several."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("web_requests", "requests to /predict", ["status"], registry=self._registry)
        # The library looks for it in every request.
        self._of_status = functools.cache(lambda status: self._requests.labels(status=str(status)))
        self._seconds = Histogram(
            "web_request_seconds", "duration of a request to /predict", buckets=_SECONDS, registry=self._registry
        )

    def answered(self, status: int, seconds: float) -> None:
        self._of_status(status).inc()
        self._seconds.observe(seconds)

    def render(self, waiting: int | None, model_servers: int | None) -> tuple[bytes, str]:
        """The page for Prometheus, and its content type. The queue's figures are of this moment; None: not known."""
        requests = self._registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):  # the library's own switch
            requests = CollectorRegistry()
            multiprocess.MultiProcessCollector(requests)  # type: ignore[no-untyped-call]
        page = generate_latest(requests)
        # By hand: a gauge of the library's would be remembered for each process, and added to the page for ever.
        for name, value, says in (
            ("queue_waiting_jobs", waiting, "jobs that wait"),
            ("queue_model_servers", model_servers, "model servers with a live lease"),
        ):
            if value is not None:
                page += f"# HELP {name} {says}\n# TYPE {name} gauge\n{name} {value}\n".encode()
        return page, CONTENT_TYPE_LATEST


class Ended(Protocol):
    """A job that ended: with an answer, with a failure, or, with neither, dropped."""

    @property
    def answer(self) -> str | None: ...
    @property
    def failure(self) -> str | None: ...


class ModelMetrics:
    """Batches, and how jobs ended."""

    def __init__(self) -> None:
        self._batch = Histogram("model_batch_images", "images in a batch", buckets=[2**n for n in range(11)])
        self._seconds = Histogram("model_batch_seconds", "time to predict a batch", buckets=_SECONDS)
        self._jobs = Counter("model_jobs", "jobs by how they ended: answered, failed, dropped", ["end"])

    def predicted(self, jobs: int, seconds: float) -> None:
        self._batch.observe(jobs)
        self._seconds.observe(seconds)

    def ended(self, outcomes: Sequence[Ended]) -> None:
        for outcome in outcomes:
            end = "failed" if outcome.failure else "answered" if outcome.answer else "dropped"
            self._jobs.labels(end=end).inc()

    def serve(self, host: str, port: int) -> None:
        """Serve /metrics from a thread. Raises OSError when the port is taken."""
        # Else every answer names the versions of Python and of its server.
        simple_server.ServerHandler.server_software = ""
        simple_server.WSGIRequestHandler.server_version, simple_server.WSGIRequestHandler.sys_version = "metrics", ""
        start_http_server(port, addr=host, registry=REGISTRY)
