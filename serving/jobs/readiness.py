"""Tells whether a queue is served: a model server holds a lease, or one answered a moment ago; and whether an operator
has paused it, or lets it drain.

A model server of the tutorial, or of another make, holds no lease. What shows that it works is an answer: any web
process notes it in {Q}:answered_at, and all of them read it there.
"""

import time
from dataclasses import dataclass

from serving.jobs.job_queue import CLOCK_GOOD_FOR_SECONDS, JobQueue

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
    clock, keys = queue.now(CLOCK_GOOD_FOR_SECONDS), queue.keys
    told = ("GET", keys.answered_at), ("GET", keys.paused), ("GET", keys.draining)
    alive, *found = queue.exchange(("ZRANGEBYSCORE", keys.leases, clock, "+inf"), *told)
    return Readiness(len(alive), *(text is not None for text in found))
