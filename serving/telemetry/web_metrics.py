"""Counts what the web processes do, in memory that they share, and writes their page for Prometheus.

a request is answered --> a few cells of its process's row += … ---.
a scrape --> the sum of all rows, and what is known of the queues --> /metrics
"""

import bisect
import itertools
import mmap
import operator
from collections.abc import Iterator, Mapping, Sequence
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
CACHE_RESULTS = ("hit", "joined", "miss", "bypass")
_FIRST_STATUS, _STATUSES = 100, 500
# The statuses that each route has on the page from the start: an alert can see the first of a kind as an increase.
USUAL = {
    "predict": (200, 202, 400, 401, 404, 413, 415, 422, 499, 500, 503, 504),
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
    model: str | None  # that it was for, where the service names its models; None: it names none, or none was found
    cache: list[str] | None  # of each picture one of CACHE_RESULTS; None: answers are not shared


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


class Cells:
    """The cells of the requests for one model, or of those for none, which other `routes` have."""

    def __init__(self, layout: Layout, routes: Sequence[str]) -> None:
        self.requests = {route: layout.counters(_STATUSES) - _FIRST_STATUS for route in routes}  # + status
        self.durations = {route: layout.histogram() for route in routes}
        self.stages = [layout.histogram() for _ in STAGES]
        self.refusals = {str(reason): layout.counters(1) for reason in Refused}
        self.cache = {result: layout.counters(1) for result in CACHE_RESULTS}
        self.not_stored = layout.counters(1)

    def statuses(self, sums: Sequence[float], route: str) -> dict[int, float]:
        """How many requests of a route ended with each status, where any did."""
        first = self.requests[route] + _FIRST_STATUS
        return {status: count for status, count in enumerate(sums[first : first + _STATUSES], _FIRST_STATUS) if count}


class WebMetrics:
    """Requests by route and status, their durations and stages, and refusals, of all web processes together.

    Each process counts in a row of a table in memory that they share: there is no lock, and no file that others could
    remove. The table is made before the processes are forked; the rows of those that ended stay in the sum. `Layout`
    says which cell of a row, float64, has what. A model adds 9 kB to a row.

    Args:
        build: what runs here.
        models: the names of the models, which the label `model` tells; none: without this label.
    """

    def __init__(self, build: Build, models: Sequence[str] = ()) -> None:
        layout = Layout()
        self._of_none = Cells(layout, ROUTES)
        self._of_model = {name: Cells(layout, PREDICTING) for name in models}
        self._build, row_bytes = build, 8 * layout.cells
        memory = memoryview(mmap.mmap(-1, 8 + MOST_ROWS * row_bytes))
        self._forks = memory[:8].cast("d")
        # To add to a cell of a memoryview takes a fifth of the time that a cell of an array takes (33 against 158 ns).
        # The array is for the sums.
        self._rows = [
            memory[start : start + row_bytes].cast("d") for start in range(8, 8 + MOST_ROWS * row_bytes, row_bytes)
        ]
        self._table = np.frombuffer(memory, dtype=np.float64, offset=8).reshape(MOST_ROWS, layout.cells)
        self._row = self._rows[0]

    def next_process(self) -> None:
        """Give the next process that is forked a row of its own; MOST_ROWS forks later another one shares it."""
        self._forks[0] += 1
        self._row = self._rows[int(self._forks[0]) % MOST_ROWS]

    def answered(self, request: AnsweredRequest, status: int) -> None:
        """Count a request whose response has this HTTP status, 100 to 599."""
        row, route, total_ms = self._row, request.route, request.total_ms
        is_predicting = route in PREDICTING
        cells = self._of_model.get(request.model or "", self._of_none) if is_predicting else self._of_none
        row[cells.requests[route] + status] += 1
        duration = cells.durations[route]
        row[duration] += total_ms
        row[duration + 1 + bisect.bisect_left(_BOUNDS_MS, total_ms)] += 1
        if not is_predicting:
            return
        for stage, stage_ms in zip(cells.stages, _stages_of(request), strict=True):
            if stage_ms is not None:
                row[stage] += stage_ms
                row[stage + 1 + bisect.bisect_left(_BOUNDS_MS, stage_ms)] += 1
        for reason in request.refusals:
            row[cells.refusals[reason]] += 1
        if request.cache is not None:
            for result in request.cache:
                row[cells.cache[result]] += 1

    def not_stored(self, model: str) -> None:
        """Count an answer for whose copy Redis had no room."""
        self._row[self._of_model.get(model, self._of_none).not_stored] += 1

    def render(self, queues: Mapping[str, Queue] | None) -> tuple[bytes, str]:
        """The page for Prometheus, and its content type. `queues`: as `gauges_of` takes them; None: Redis is away."""
        registry = CollectorRegistry()
        registry.register(_Page([*self._families(), *gauges_of(queues)]))
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def _families(self) -> Iterator[Metric]:
        sums = self._table[: int(self._forks[0]) + 1].sum(axis=0).tolist()
        labels = ["model"] if self._of_model else []
        requests = CounterMetricFamily(
            "classify_requests", "requests by route and status", labels=["route", "status", *labels]
        )
        durations = HistogramMetricFamily(
            "classify_request_duration_seconds", "from the head of a request to its response", labels=["route", *labels]
        )
        stages = HistogramMetricFamily(
            "classify_request_stage_duration_seconds", "parts of a request for predictions", labels=["stage", *labels]
        )
        says = "requests and images that were not admitted, by reason"
        refused = CounterMetricFamily("classify_admission_refused", says, labels=["reason", *labels])
        says = "images by how their answer was found, where answers are shared"
        cache = CounterMetricFamily("classify_cache_requests", says, labels=["result", *labels])
        says = "answers for whose copy Redis had no room"
        not_stored = CounterMetricFamily("classify_cache_not_stored", says, labels=labels)
        for model, cells in {"": self._of_none, **self._of_model}.items():
            own = [model] if labels else []  # Prometheus takes a label that is empty for none
            for route in cells.requests:
                statuses = cells.statuses(sums, route)
                for status in sorted({*USUAL[route], *statuses}):
                    requests.add_metric([route, str(status), *own], statuses.get(status, 0.0))
                durations.add_metric([route, *own], *_histogram(sums, [cells.durations[route]]))
            for name, stage in zip(STAGES, cells.stages, strict=True):
                stages.add_metric([name, *own], *_histogram(sums, [stage]))
            for reason, cell in cells.refusals.items():
                refused.add_metric([reason, *own], sums[cell])
            for result, cell in cells.cache.items():
                cache.add_metric([result, *own], sums[cell])
            not_stored.add_metric(own, sums[cells.not_stored])
        build = GaugeMetricFamily("classify_build_info", "what runs here; always 1", labels=list(vars(self._build)))
        build.add_metric(list(vars(self._build).values()), 1)
        yield from (requests, durations, stages, refused, cache, not_stored, build)
        yield from _old_names(sums, [self._of_none, *self._of_model.values()])


def _histogram(sums: Sequence[float], cells: Sequence[int]) -> tuple[list[tuple[str, float]], float]:
    """The buckets, and the sum in seconds, of the histograms that begin in these cells together."""
    counts = [sum(sums[cell + 1 + bucket] for cell in cells) for bucket in range(len(_LE))]
    return list(zip(_LE, itertools.accumulate(counts), strict=True)), sum(sums[cell] for cell in cells) / 1000


def _old_names(sums: Sequence[float], all_cells: Sequence[Cells]) -> Iterator[Metric]:
    """The names of the release before this one, of requests for predictions; they go with the next."""
    requests = CounterMetricFamily("web_requests", "old name of classify_requests_total", labels=["status"])
    by_status: dict[int, float] = {}
    for cells in all_cells:
        for route in PREDICTING:
            for status, count in cells.statuses(sums, route).items():
                by_status[status] = by_status.get(status, 0.0) + count
    for status, count in sorted(by_status.items()):
        requests.add_metric([str(status)], count)
    yield requests
    buckets, seconds = _histogram(sums, [cells.durations[route] for cells in all_cells for route in PREDICTING])
    of_old = [(bound, count) for bound, count in buckets if bound in _OLD_LE]
    says = "old name of classify_request_duration_seconds"
    yield HistogramMetricFamily("web_request_seconds", says, of_old, seconds)


class _Page(Collector):
    """Hands metrics that are there already to the library."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families
