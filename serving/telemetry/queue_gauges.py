"""What is known of each queue at this moment, as gauges for Prometheus."""

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


_BY_LANE = {
    "classify_queue_jobs": "jobs that wait, by lane",
    "classify_queue_oldest_job_age_seconds": "for how long the oldest job has waited, by lane",
    "classify_jobs_in_flight": "jobs that model servers have in hand, by lane",
}
_SINGLE = {
    "classify_dead_letters": "dead letters that are kept",
    "classify_queue_paused": "1: model servers are told to take nothing",
    "classify_queue_draining": "1: web servers are told to let nothing in",
    "classify_model_servers": "model servers with a live lease",
    # The names of the release before this one; they go with the next.
    "queue_waiting_jobs": "old name of classify_queue_jobs{lane=people}",
    "queue_bulk_waiting_jobs": "old name of classify_queue_jobs{lane=bulk}",
    "queue_model_servers": "old name of classify_model_servers",
}


def gauges_of(queues: Mapping[str, Queue] | None) -> Iterator[Metric]:
    """The gauges of each queue, by the name of its model, which the label `model` tells; "" alone: without this label.

    None: Redis is away, and only that is told.
    """
    yield GaugeMetricFamily("classify_redis_up", "1: Redis answers, 0: it does not", int(queues is not None))
    if queues is None:
        return
    labels = ["model"] if any(queues) else []
    by_lane = {name: GaugeMetricFamily(name, says, labels=[*labels, "lane"]) for name, says in _BY_LANE.items()}
    single = {name: GaugeMetricFamily(name, says, labels=labels) for name, says in _SINGLE.items()}
    for model, queue in queues.items():
        own = [model] if labels else []
        for name, lanes in _lanes_of(queue).items():
            for lane, value in lanes.items():
                if (
                    value is not None
                ):  # a job of an older release, or of another make, does not tell since when it waits
                    by_lane[name].add_metric([*own, lane], value)
        for name, value in _values_of(queue).items():
            single[name].add_metric(own, value)
    yield from (*by_lane.values(), *single.values())


def _lanes_of(queue: Queue) -> dict[str, dict[str, float | None]]:
    """The gauges of _BY_LANE."""
    people, bulk = queue.waiting, queue.bulk_waiting
    return {
        "classify_queue_jobs": {"people": people, "bulk": bulk},
        "classify_queue_oldest_job_age_seconds": {
            "people": queue.oldest_waiting_seconds if people else 0.0,
            "bulk": queue.oldest_bulk_waiting_seconds if bulk else 0.0,
        },
        "classify_jobs_in_flight": {"people": queue.in_flight - queue.bulk_in_flight, "bulk": queue.bulk_in_flight},
    }


def _values_of(queue: Queue) -> dict[str, int]:
    """The gauges of _SINGLE."""
    return {
        "classify_dead_letters": queue.dead_letters,
        "classify_queue_paused": int(queue.is_paused),
        "classify_queue_draining": int(queue.is_draining),
        "classify_model_servers": len(queue.servers),
        "queue_waiting_jobs": queue.waiting,
        "queue_bulk_waiting_jobs": queue.bulk_waiting,
        "queue_model_servers": len(queue.servers),
    }
