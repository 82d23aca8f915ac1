"""Counts what the two kinds of processes do, in Prometheus's format. The only module that knows its library."""

import bisect
import itertools
import math
import mmap
from collections.abc import Iterable, Sequence
from typing import Protocol
from wsgiref import simple_server

import numpy as np
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
    start_http_server,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BUCKETS = (*_SECONDS, math.inf)
_FIRST_STATUS, _STATUSES = 100, 500
MOST_ROWS = 1024
PREDICTING = ("predict", "infer")  # the routes on which clients ask for predictions


class AnsweredRequest(Protocol):
    """What the web server notes of a request: serving.web.request_notes.RequestNotes."""

    route: str  # the front door that it came to
    total_ms: float  # until its response was ready, milliseconds


class WebMetrics:
    """Requests for predictions by status and duration, summed over all web processes.

    Each process counts in a row of a table in memory that they share: there is no lock, and no file that others could
    remove. The table is made before the processes are forked; the rows of those that ended stay in the sum.

        row, float64 = [seconds in all | requests by duration, a cell a bucket | requests by status, a cell a status]
    """

    def __init__(self) -> None:
        cells = 1 + len(_BUCKETS) + _STATUSES
        table = np.frombuffer(mmap.mmap(-1, (1 + MOST_ROWS * cells) * 8), dtype=np.float64)
        self._forks, self._rows = table[:1], table[1:].reshape(MOST_ROWS, cells)
        self._row = self._rows[0]

    def next_process(self) -> None:
        """Give the next process that is forked a row of its own; MOST_ROWS forks later another one shares it."""
        self._forks[0] += 1
        self._row = self._rows[int(self._forks[0]) % MOST_ROWS]

    def answered(self, request: AnsweredRequest, status: int) -> None:
        """Count a request for predictions whose response has this HTTP status, 100 to 599."""
        if request.route not in PREDICTING:
            return
        row, seconds = self._row, request.total_ms / 1000
        row[0] += seconds
        row[1 + bisect.bisect_left(_SECONDS, seconds)] += 1
        row[1 + len(_BUCKETS) + status - _FIRST_STATUS] += 1

    def render(self, waiting: int | None, bulk_waiting: int | None, model_servers: int | None) -> tuple[bytes, str]:
        """The page for Prometheus, and its content type.

        Args:
            waiting: jobs that people wait for, and that wait in the queue at this moment; None: nobody knows.
            bulk_waiting: asynchronous jobs that wait; likewise.
            model_servers: model servers with a live lease at this moment; None: nobody knows.
        """
        gauges = (
            ("queue_waiting_jobs", waiting, "jobs that people wait for"),
            ("queue_bulk_waiting_jobs", bulk_waiting, "asynchronous jobs that wait"),
            ("queue_model_servers", model_servers, "model servers with a live lease"),
        )
        families = [GaugeMetricFamily(name, says, value) for name, value, says in gauges if value is not None]
        registry = CollectorRegistry()
        registry.register(_Page([*self._families(), *families]))
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def _families(self) -> list[Metric]:
        sums = self._rows[: int(self._forks[0]) + 1].sum(axis=0).tolist()
        seconds, durations, statuses = sums[0], sums[1 : 1 + len(_BUCKETS)], sums[1 + len(_BUCKETS) :]
        requests = CounterMetricFamily("web_requests", "requests for predictions", labels=["status"])
        for status, count in enumerate(statuses, _FIRST_STATUS):
            if count:
                requests.add_metric([str(status)], count)
        bounds = [*(str(float(bound)) for bound in _SECONDS), "+Inf"]
        buckets = list(zip(bounds, itertools.accumulate(durations), strict=True))
        return [
            requests,
            HistogramMetricFamily("web_request_seconds", "duration of a request for predictions", buckets, seconds),
        ]


class _Page(Collector):
    """Hands metrics that are there already to the library."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


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
