"""Tells whether a queue is served: a model server holds a lease, or one answered a moment ago; and whether an operator
has paused it, or lets it drain.

A model server of the tutorial, or of another make, holds no lease. What shows that it works is an answer: any web
process notes it in {Q}:answered_at, and all of them read it there.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from serving.jobs.job_queue import CLOCK_GOOD_FOR_SECONDS, JobQueue
from serving.jobs.redis_client import Command

ANSWERED_SECONDS = 60  # for so long an answer shows that the queue is served
NOTE_EVERY_SECONDS = 1.0


class AnswerNote:
    """Notes for all web processes that model servers answer; at most once in NOTE_EVERY_SECONDS, to spare Redis."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._noted_at = float("-inf")  # monotonic seconds

    def answered(self) -> None:
        """Note that an answer came. Raises QueueAway."""
        if time.monotonic() - self._noted_at >= NOTE_EVERY_SECONDS:
            self._noted_at = time.monotonic()
            now = f"{self._queue.now():.6f}"
            self._queue.exchange(("SET", self._queue.keys.answered_at, now, "EX", ANSWERED_SECONDS))


@dataclass(frozen=True)
class Readiness:
    """Whether a queue is served."""

    model_servers: int  # that hold a lease
    answered_lately: bool  # within ANSWERED_SECONDS
    is_paused: bool  # model servers take nothing
    is_draining: bool  # web servers accept nothing


def readiness(queue: JobQueue) -> Readiness:
    """Ask Redis whether the queue is served. Raises QueueAway."""
    return readiness_of([queue])[0]


def readiness_of(queues: Sequence[JobQueue]) -> list[Readiness]:
    """Ask Redis whether each of the queues is served, at least one, in one round trip. Raises QueueAway."""
    clock = queues[0].now(CLOCK_GOOD_FOR_SECONDS)
    asked: list[Command] = []
    for keys in (queue.keys for queue in queues):
        asked += [("ZRANGEBYSCORE", keys.leases, clock, "+inf")]
        asked += [("GET", key) for key in (keys.answered_at, keys.paused, keys.draining)]
    told = iter(queues[0].exchange(*asked))
    return [
        Readiness(len(alive), *(text is not None for text in found))
        for alive, *found in zip(told, told, told, told, strict=True)
    ]
