"""What happens in each second, counted by all processes together, for whoever wants to see the service at work.

    web process:  each image answered or failed --> LiveCounts --\\  once a second
    model server: each batch                    --> LiveCounts --->  {Q}:seconds --> live_view

What {Q}:seconds has of a second is {"at": unix seconds, "waiting": jobs that waited when it was told of last, and sums
over all processes: "answered", "failed", "batches", "images" (of the batches), and "d17", … (the images whose answer
took a time of bucket 17)}. Another release may count what this one does not know: it is summed all the same.

A process keeps its counts in memory, and tells them once a second. If it did nothing in a second, it tells nothing.
"""

import json
import math
import threading
import time
from collections.abc import Mapping

from serving.errors import QueueAway
from serving.jobs.job_queue import JobQueue

SLOTS = 64
KEPT_SECONDS = 75
MOST_UNTOLD_SECONDS = 60  # while Redis is away
UNKNOWN = 0  # the second of what was counted before Redis was heard; it counts as of that moment
# A bucket ends a tenth above where it begins: its middle is at most 5 % from any time in it.
WIDTH = 1.1
LEAST_MS, MOST_MS = 0.1, 3_600_000.0


def bucket_of(milliseconds: float) -> int:
    """The bucket of a duration."""
    return math.floor(math.log(min(max(milliseconds, LEAST_MS), MOST_MS), WIDTH))


def middle_ms(bucket: int) -> float:
    """The middle of a bucket, milliseconds."""
    return math.pow(WIDTH, bucket + 0.5)


class LiveCounts:
    """The counts of one process that Redis has not been told yet; threads may share it."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._lock = threading.Lock()
        self._untold: dict[int, dict[str, int]] = {}  # unix second, by Redis's clock -> what was counted in it
        self._offset: float | None = None  # Redis's clock minus this machine's monotonic one; None: it was not heard
        self._told_at = -math.inf  # monotonic seconds

    def answered(self, milliseconds: float, at: float | None = None) -> None:
        """Count an image that was answered after so long; `at`, unix seconds by Redis's clock, or now."""
        self._add({"answered": 1, f"d{bucket_of(milliseconds)}": 1}, at)

    def failed(self, at: float | None = None) -> None:
        """Count an image that got no answer, through no fault of its client; `at` as above."""
        self._add({"failed": 1}, at)

    def batch(self, images: int, at: float | None = None) -> None:
        """Count a batch of which the model ran so many images; with 0 the model did not run. `at` as above."""
        if images:
            self._add({"batches": 1, "images": images}, at)

    def _add(self, counts: Mapping[str, int], at: float | None) -> None:
        if not counts:
            return
        if at is None:  # nobody waits here for Redis to say what time it is
            at = time.monotonic() + self._offset if self._offset is not None else UNKNOWN
        second = int(at)
        with self._lock:
            sums = self._untold.setdefault(second, {})
            for name, count in counts.items():
                sums[name] = sums.get(name, 0) + count
            if len(self._untold) > MOST_UNTOLD_SECONDS:
                del self._untold[min(self._untold)]

    def tell_if_due(self) -> None:
        """Tell Redis what was counted in the seconds that are over, at most once a second. Raises QueueAway."""
        if time.monotonic() - self._told_at >= 1.0:
            now = self._queue.now()
            self._offset, self._told_at = now - time.monotonic(), time.monotonic()
            with self._lock:
                early = self._untold.pop(UNKNOWN, {})
            self._add(early, now)
            self.tell(now)

    def tell(self, now: float) -> None:
        """Tell Redis what was counted in the seconds that are over at `now`, unix seconds. Raises QueueAway.

        The counts of a Redis that is out of memory are dropped: what they are for can wait, answers cannot.
        """
        with self._lock:
            over = sorted(second for second in self._untold if second < int(now))
            counts = {second: self._untold.pop(second) for second in over}
        if not counts:
            return
        told = [part for second, sums in counts.items() for part in (second, json.dumps(sums))]
        try:
            self._queue.run("count", [self._queue.name, self._queue.keys.seconds], [KEPT_SECONDS, SLOTS, *told])
        except QueueAway:
            for second in over:
                self._add(counts[second], second)
            raise
