"""Counts what the two kinds of processes do, in Prometheus's format. The only module that knows its library."""

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
        # Kept by status: the library would look for the counter in every request.
        self._of_status: dict[int, Counter] = {}
        self._seconds = Histogram(
            "web_request_seconds", "duration of a request to /predict", buckets=_SECONDS, registry=self._registry
        )

    def answered(self, status: int, seconds: float) -> None:
        """Count a request to /predict that ended with this HTTP status after `seconds`."""
        counter = self._of_status.get(status)
        if counter is None:
            counter = self._of_status[status] = self._requests.labels(status=str(status))
        counter.inc()
        self._seconds.observe(seconds)

    def render(self, waiting: int | None, model_servers: int | None) -> tuple[bytes, str]:
        """The page for Prometheus, and its content type.

        Args:
            waiting: jobs that wait at this moment; None: nobody knows.
            model_servers: model servers with a live lease at this moment; None: nobody knows.
        """
        requests = self._registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):  # the library's own switch
            requests = CollectorRegistry()
            multiprocess.MultiProcessCollector(requests)
        page = generate_latest(requests)
        # Written by hand: the library would remember a gauge for each process, and add it to the page for ever.
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
    def answer(self) -> str | None:
        """The answer, JSON text."""

    @property
    def failure(self) -> str | None:
        """What was wrong."""


class ModelMetrics:
    """Counts and times batches, and counts how jobs ended; safe to share between threads."""

    def __init__(self) -> None:
        self._batch = Histogram("model_batch_images", "images in a batch", buckets=[2**n for n in range(11)])
        self._seconds = Histogram("model_batch_seconds", "time to predict a batch", buckets=_SECONDS)
        self._jobs = Counter("model_jobs", "jobs by how they ended: answered, failed, dropped", ["end"])

    def predicted(self, jobs: int, seconds: float) -> None:
        """Note a batch of so many jobs, which the model had for `seconds`."""
        self._batch.observe(jobs)
        self._seconds.observe(seconds)

    def ended(self, outcomes: Sequence[Ended]) -> None:
        """Count jobs by how they ended."""
        for outcome in outcomes:
            end = "failed" if outcome.failure else "answered" if outcome.answer else "dropped"
            self._jobs.labels(end=end).inc()

    def serve(self, host: str, port: int) -> None:
        """Serve /metrics from a thread. Raises OSError when the port is taken."""
        # Otherwise every answer names the versions of Python and of its server.
        simple_server.ServerHandler.server_software = ""
        simple_server.WSGIRequestHandler.server_version, simple_server.WSGIRequestHandler.sys_version = "metrics", ""
        start_http_server(port, addr=host, registry=REGISTRY)
