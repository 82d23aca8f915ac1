"""Counts what a model server does, and serves its page for Prometheus."""

from collections import Counter as Counts
from collections.abc import Mapping, Sequence
from typing import Protocol
from wsgiref import simple_server

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)

from serving.telemetry.buckets import IMAGES, OLD_SECONDS, SECONDS
from serving.telemetry.build import Build

# How a job ends -> what the release before this one called it, in `model_jobs_total`.
OUTCOMES = {
    "answered": "answered",
    "failed": "failed",  # its client is told that another try may succeed
    "expired": "dropped",  # its deadline was over
    "canceled": "dropped",  # it was over when a model server came to it: canceled, as a rule
    "dead": "failed",  # it is kept as a dead letter
}

WHO = ["model", "version", "precision", "runtime"]
RUNS_HERE = "what runs here; always 1"


class Ended(Protocol):
    """A job that ended: serving.jobs.job.Outcome."""

    @property
    def answer(self) -> str | None:
        """The answer, JSON text."""

    @property
    def failure(self) -> str | None:
        """What was wrong; without an answer and a failure the job was dropped."""

    @property
    def is_dead_letter(self) -> bool:
        """Whether it is kept as a dead letter."""

    @property
    def is_canceled(self) -> bool:
        """Whether it was dropped because nobody wanted it any more."""


def end_of(outcome: Ended) -> str:
    """How a job ended, one of OUTCOMES."""
    if outcome.failure is not None:
        return "dead" if outcome.is_dead_letter else "failed"
    if outcome.answer is not None:
        return "answered"
    return "canceled" if outcome.is_canceled else "expired"


class ModelMetrics:
    """Counts and times batches of one model, and counts how its jobs ended; safe to share between threads.

    Args:
        page: where Prometheus finds these metrics.
        model: the value of their label `model`; None: they have no such label.
    """

    def __init__(self, page: "MetricsPage", model: str | None) -> None:
        own = () if model is None else (model,)
        self._images, self._padding, self._seconds = (
            metric.labels(*own) if own else metric for metric in (page.images, page.padding, page.seconds)
        )
        self._redelivered, self._leases_lost = (
            metric.labels(*own) if own else metric for metric in (page.redelivered, page.leases_lost)
        )
        self._jobs = {outcome: page.jobs.labels(*own, outcome) for outcome in OUTCOMES}
        self._old_images, self._old_seconds = page.old_images, page.old_seconds
        self._old_jobs = {outcome: page.old_jobs.labels(end) for outcome, end in OUTCOMES.items()}

    def predicted(self, images: int, padding: int, seconds: float) -> None:
        """Note a batch of so many images, which the model had for `seconds`, and ran with `padding` more."""
        self._images.observe(images)
        self._padding.observe(padding)
        self._seconds.observe(seconds)
        self._old_images.observe(images)
        self._old_seconds.observe(seconds)

    def ended(self, outcomes: Sequence[Ended]) -> None:
        """Count jobs by how they ended."""
        for end, count in Counts(map(end_of, outcomes)).items():
            self._jobs[end].inc(count)
            self._old_jobs[end].inc(count)

    def returned(self, jobs: int, dead_letters: int) -> None:
        """Count jobs of dead model servers that went back to the queue, and those that were given up instead."""
        self._redelivered.inc(jobs)
        self._jobs["dead"].inc(dead_letters)

    def lost_lease(self) -> None:
        """Count a lease that this model server has lost, or given up because its model was late."""
        self._leases_lost.inc()


class MetricsPage:
    """The page for Prometheus of a process that serves one model or several.

    Args:
        build: what runs here.
        by_model: whether each series says by a label `model` of which model it is.
        registry: where the page finds the metrics.
    """

    def __init__(self, build: Build, *, by_model: bool = False, registry: CollectorRegistry = REGISTRY) -> None:
        disable_created_metrics()  # when each series began, a line for each
        self._registry, self._by_model = registry, by_model
        of = ["model"] if by_model else []
        images, padding, seconds = "images in a batch", "images that a batch was filled up with", "time of a batch"
        self.images = Histogram("classify_batch_images", images, of, buckets=IMAGES, registry=registry)
        self.padding = Histogram("classify_batch_padding_images", padding, of, buckets=[0, *IMAGES], registry=registry)
        self.seconds = Histogram("classify_batch_duration_seconds", seconds, of, buckets=SECONDS, registry=registry)
        self.jobs = Counter("classify_jobs", "jobs by how they ended", [*of, "outcome"], registry=registry)
        redelivered, lost = "jobs of dead model servers that went back to the queue", "leases that this one lost"
        self.redelivered = Counter("classify_jobs_redelivered", redelivered, of, registry=registry)
        self.leases_lost = Counter("classify_leases_lost", lost, of, registry=registry)
        self._info = Gauge("classify_model_info", RUNS_HERE, WHO, registry=registry)
        Gauge("classify_build_info", RUNS_HERE, list(vars(build)), registry=registry).labels(**vars(build)).set(1)
        # The names of the release before this one, of all models together; they go with the next.
        says = "old name of classify_batch_images"
        self.old_images = Histogram("model_batch_images", says, buckets=IMAGES, registry=registry)
        says = "old name of classify_batch_duration_seconds"
        self.old_seconds = Histogram("model_batch_seconds", says, buckets=OLD_SECONDS, registry=registry)
        self.old_jobs = Counter("model_jobs", "old name of classify_jobs_total", ["end"], registry=registry)

    def of(self, model: Mapping[str, str]) -> ModelMetrics:
        """Return what counts for a model; `model` is what is served, the labels WHO of `classify_model_info`."""
        self._info.labels(**model).set(1)
        return ModelMetrics(self, model["model"] if self._by_model else None)

    def serve(self, host: str, port: int) -> None:
        """Serve /metrics from a thread. Raises OSError when the port is taken."""
        # Otherwise every answer names the versions of Python and of its server.
        simple_server.ServerHandler.server_software = ""
        simple_server.WSGIRequestHandler.server_version, simple_server.WSGIRequestHandler.sys_version = "metrics", ""
        start_http_server(port, addr=host, registry=self._registry)
