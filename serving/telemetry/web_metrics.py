"""Counts what the web processes do, in memory that they share, and writes their page for Prometheus.

a request is answered --> a few cells of its process's row += … ---.
a scrape --> the sum of all rows, and what is known of the queue --> /metrics
"""

import bisect
import itertools
import mmap
import operator
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.errors import Refused
from serving.telemetry.buckets import OLD_SECONDS, SECONDS
from serving.telemetry.build import Build
from serving.telemetry.queue_gauges import Queue, gauges_of

_BOUNDS_MS = tuple(1000 * bound for bound in SECONDS)
_LE, _OLD_LE = ([*(str(float(bound)) for bound in bounds), "+Inf"] for bounds in (SECONDS, OLD_SECONDS))
ROUTES = ("predict", "jobs", "infer", "other")
PREDICTING = ("predict", "infer")  # the routes on which clients ask for predictions
STAGES = ("read", "decode", "submit", "queue", "predict", "answer")
_FIRST_STATUS, _STATUSES = 100, 500
# The statuses that each route has on the page from the start: an alert can see the first of a kind as an increase.
USUAL = {
    "predict": (200, 202, 400, 401, 413, 415, 422, 499, 500, 503, 504),
    "infer": (200, 400, 401, 404, 413, 415, 422, 499, 500, 503, 504),
    "jobs": (200, 401, 404, 503),
    "other": (200, 404, 503),
}
MOST_ROWS = 1024


class AnsweredRequest(Protocol):
    """What the web server notes of a request: serving.web.request_notes.RequestNotes. Times are milliseconds."""

    route: str  # one of ROUTES
    total_ms: float
    read_ms: float | None  # None here and below: the stage did not take place, or nobody tells
    decode_ms: float | None
    submit_ms: float | None
    queue_ms: float | None
    predict_ms: float | None
    answer_ms: float | None
    refusals: list[str]  # errors.Refused


_stages_of = operator.attrgetter(*(f"{stage}_ms" for stage in STAGES))


class Layout:
    """Gives each series its cells in a row, one after the other: a counter one, a histogram its sum and its buckets."""

    def __init__(self) -> None:
        self.cells = 0  # that are given out, so far

    def counters(self, count: int) -> int:
        """The first of `count` cells, one a counter."""
        first, self.cells = self.cells, self.cells + count
        return first

    def histogram(self) -> int:
        """The cell of the sum, milliseconds; the cells of the buckets follow, each with its own count."""
        return self.counters(1 + len(_LE))


_layout = Layout()
_REQUESTS = {route: _layout.counters(_STATUSES) - _FIRST_STATUS for route in ROUTES}  # + status
_DURATIONS = {route: _layout.histogram() for route in ROUTES}
_STAGE_DURATIONS = [_layout.histogram() for _ in STAGES]
_REFUSALS = {str(reason): _layout.counters(1) for reason in Refused}


class WebMetrics:
    """Requests by route and status, their durations and stages, and refusals, summed over all web processes.

    Each process counts in a row of a table in memory that they share: there is no lock, and no file that others could
    remove. The table is made before the processes are forked; the rows of those that ended stay in the sum. `Layout`
    says which cell of a row, float64, has what.

    Args:
        build: what runs here.
    """

    def __init__(self, build: Build) -> None:
        self._build, row_bytes = build, 8 * _layout.cells
        memory = memoryview(mmap.mmap(-1, 8 + MOST_ROWS * row_bytes))
        self._forks = memory[:8].cast("d")
        # To add to a cell of a memoryview takes a fifth of the time that a cell of an array takes (33 against 158 ns).
        # The array is for the sums.
        self._rows = [
            memory[start : start + row_bytes].cast("d") for start in range(8, 8 + MOST_ROWS * row_bytes, row_bytes)
        ]
        self._table = np.frombuffer(memory, dtype=np.float64, offset=8).reshape(MOST_ROWS, _layout.cells)
        self._row = self._rows[0]

    def next_process(self) -> None:
        """Give the next process that is forked a row of its own; MOST_ROWS forks later another one shares it."""
        self._forks[0] += 1
        self._row = self._rows[int(self._forks[0]) % MOST_ROWS]

    def answered(self, request: AnsweredRequest, status: int) -> None:
        """Count a request whose response has this HTTP status, 100 to 599."""
        row, route, total_ms = self._row, request.route, request.total_ms
        row[_REQUESTS[route] + status] += 1
        duration = _DURATIONS[route]
        row[duration] += total_ms
        row[duration + 1 + bisect.bisect_left(_BOUNDS_MS, total_ms)] += 1
        if route not in PREDICTING:
            return
        for stage, stage_ms in zip(_STAGE_DURATIONS, _stages_of(request), strict=True):
            if stage_ms is not None:
                row[stage] += stage_ms
                row[stage + 1 + bisect.bisect_left(_BOUNDS_MS, stage_ms)] += 1
        for reason in request.refusals:
            row[_REFUSALS[reason]] += 1

    def render(self, queue: Queue | None) -> tuple[bytes, str]:
        """The page for Prometheus, and its content type. `queue` None: Redis is away."""
        registry = CollectorRegistry()
        registry.register(_Page([*self._families(), *gauges_of(queue)]))
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def _families(self) -> Iterator[Metric]:
        sums = self._table[: int(self._forks[0]) + 1].sum(axis=0).tolist()
        requests = CounterMetricFamily("classify_requests", "requests by route and status", labels=["route", "status"])
        durations = HistogramMetricFamily(
            "classify_request_duration_seconds", "from the head of a request to its response", labels=["route"]
        )
        for route in ROUTES:
            statuses = _statuses(sums, route)
            for status in sorted({*USUAL[route], *statuses}):
                requests.add_metric([route, str(status)], statuses.get(status, 0.0))
            durations.add_metric([route], *_histogram(sums, [_DURATIONS[route]]))
        stages = HistogramMetricFamily(
            "classify_request_stage_duration_seconds", "parts of a request for predictions", labels=["stage"]
        )
        for name, stage in zip(STAGES, _STAGE_DURATIONS, strict=True):
            stages.add_metric([name], *_histogram(sums, [stage]))
        refused = CounterMetricFamily(
            "classify_admission_refused", "requests and images that were not admitted, by reason", labels=["reason"]
        )
        for reason, cell in _REFUSALS.items():
            refused.add_metric([reason], sums[cell])
        build = GaugeMetricFamily("classify_build_info", "what runs here; always 1", labels=list(vars(self._build)))
        build.add_metric(list(vars(self._build).values()), 1)
        yield from (requests, durations, stages, refused, build, *_old_names(sums))


def _statuses(sums: Sequence[float], route: str) -> dict[int, float]:
    """How many requests of a route ended with each status, where any did."""
    first = _REQUESTS[route] + _FIRST_STATUS
    return {status: count for status, count in enumerate(sums[first : first + _STATUSES], _FIRST_STATUS) if count}


def _histogram(sums: Sequence[float], cells: Sequence[int]) -> tuple[list[tuple[str, float]], float]:
    """The buckets, and the sum in seconds, of the histograms that begin in these cells together."""
    counts = [sum(sums[cell + 1 + bucket] for cell in cells) for bucket in range(len(_LE))]
    return list(zip(_LE, itertools.accumulate(counts), strict=True)), sum(sums[cell] for cell in cells) / 1000


def _old_names(sums: Sequence[float]) -> Iterator[Metric]:
    """The names of the release before this one, of requests for predictions; they go with the next."""
    requests = CounterMetricFamily("web_requests", "old name of classify_requests_total", labels=["status"])
    by_status: dict[int, float] = {}
    for route in PREDICTING:
        for status, count in _statuses(sums, route).items():
            by_status[status] = by_status.get(status, 0.0) + count
    for status, count in sorted(by_status.items()):
        requests.add_metric([str(status)], count)
    yield requests
    buckets, seconds = _histogram(sums, [_DURATIONS[route] for route in PREDICTING])
    of_old = [(bound, count) for bound, count in buckets if bound in _OLD_LE]
    says = "old name of classify_request_duration_seconds"
    yield HistogramMetricFamily("web_request_seconds", says, of_old, seconds)


class _Page(Collector):
    """Hands metrics that are there already to the library."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families
