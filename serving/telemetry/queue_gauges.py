"""What is known of the queue at this moment, as gauges for Prometheus."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client.metrics_core import GaugeMetricFamily, Metric


class Queue(Protocol):
    """The queue at a moment: serving.jobs.overview.Overview."""

    @property
    def waiting(self) -> int:
        """Jobs of lane people that wait."""

    @property
    def bulk_waiting(self) -> int:
        """Asynchronous jobs that wait."""

    @property
    def oldest_waiting_seconds(self) -> float | None:
        """For how long the oldest job of lane people has waited; None: none waits, or it does not tell."""

    @property
    def oldest_bulk_waiting_seconds(self) -> float | None:
        """The same of lane bulk."""

    @property
    def in_flight(self) -> int:
        """Jobs of both lanes that model servers have taken and not yet settled."""

    @property
    def bulk_in_flight(self) -> int:
        """Those of lane bulk."""

    @property
    def dead_letters(self) -> int:
        """Dead letters that are kept."""

    @property
    def is_paused(self) -> bool:
        """Whether an operator has told model servers to take nothing."""

    @property
    def is_draining(self) -> bool:
        """Whether an operator has told web servers to accept nothing."""

    @property
    def servers(self) -> Sequence[object]:
        """The model servers that live."""


def gauges_of(queue: Queue | None) -> Iterator[Metric]:
    """The gauges; None: Redis is away, and only that is told."""
    yield GaugeMetricFamily("classify_redis_up", "1: Redis answers, 0: it does not", int(queue is not None))
    if queue is None:
        return
    people, bulk = queue.waiting, queue.bulk_waiting
    in_flight = {"people": queue.in_flight - queue.bulk_in_flight, "bulk": queue.bulk_in_flight}
    ages = {
        "people": queue.oldest_waiting_seconds if people else 0.0,
        "bulk": queue.oldest_bulk_waiting_seconds if bulk else 0.0,
    }
    yield from (
        _by_lane("classify_queue_jobs", "jobs that wait, by lane", {"people": people, "bulk": bulk}),
        _by_lane("classify_queue_oldest_job_age_seconds", "for how long the oldest job has waited, by lane", ages),
        _by_lane("classify_jobs_in_flight", "jobs that model servers have in hand, by lane", in_flight),
        GaugeMetricFamily("classify_dead_letters", "dead letters that are kept", queue.dead_letters),
        GaugeMetricFamily("classify_queue_paused", "1: model servers are told to take nothing", int(queue.is_paused)),
        GaugeMetricFamily(
            "classify_queue_draining", "1: web servers are told to let nothing in", int(queue.is_draining)
        ),
        GaugeMetricFamily("classify_model_servers", "model servers with a live lease", len(queue.servers)),
        # The names of the release before this one; they go with the next.
        GaugeMetricFamily("queue_waiting_jobs", "old name of classify_queue_jobs{lane=people}", people),
        GaugeMetricFamily("queue_bulk_waiting_jobs", "old name of classify_queue_jobs{lane=bulk}", bulk),
        GaugeMetricFamily("queue_model_servers", "old name of classify_model_servers", len(queue.servers)),
    )


def _by_lane(name: str, says: str, values: Mapping[str, float | None]) -> Metric:
    family = GaugeMetricFamily(name, says, labels=["lane"])
    for lane, value in values.items():
        if value is not None:  # a job of an older release, or of another make, does not tell since when it waits
            family.add_metric([lane], value)
    return family
