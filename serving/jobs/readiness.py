"""Tells whether a queue is served: a model server holds a lease, or one answered a moment ago.

A model server of the tutorial, or of another make, holds no lease. What shows that it works is an answer: any web
process notes it in {Q}:answered_at, and all of them read it there.
"""

import time

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


def readiness(queue: JobQueue) -> tuple[int, bool]:
    """How many model servers hold a lease; whether one answered within ANSWERED_SECONDS. Raises QueueAway."""
    clock, keys = queue.now(CLOCK_GOOD_FOR_SECONDS), queue.keys
    alive, answered = queue.exchange(("ZRANGEBYSCORE", keys.leases, clock, "+inf"), ("GET", keys.answered_at))
    return len(alive), answered is not None
