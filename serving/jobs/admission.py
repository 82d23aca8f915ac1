"""Decides whether one more job may wait: a job that no model server could answer by its deadline is refused at once.
While the queue drains, every job is.

The predicted wait is the number of jobs ahead divided by the rate at which all model servers together settle jobs. The
rate shows in the counter of settled jobs, which every reply to a submit brings, but only during a backlog, while some
job always waits: a model server that has nothing to do is not slow. Nor is one that an operator has paused: what was
known before the pause counts in it, and after it.

    time -------------------------------------------------------------->
    jobs that wait     0     3     5     6     7     7     5     2     0
    settled_total      8     8    16    16    24    24    32    32    40
                       |           |           |           |           |
          the backlog begins     move        move        move      it ends
                                   |<- rate: 16/seconds -->|
"""

import itertools
import math
import statistics
import threading
import time
from collections import deque
from dataclasses import dataclass

from serving.errors import Draining, QueueFull, Unavailable

RATE_WINDOW_SECONDS = 10.0
MOST_RETRY_AFTER_SECONDS = 60
# The longest predicted wait, as a share of the deadline. The rest is for what no rate foretells: the restart of a model
# server, and the jobs that the model servers hold already.
PROMISED_SHARE = 0.5
# Until the counter has moved so often, so many jobs may wait in any case.
SURE_MOVES, UNSURE_LENGTH = 4, 64
KNOWN_SECONDS = 60.0  # for so long the rate of an earlier backlog counts
MOST_MOVES = 64  # where batches are fast, so many moves are enough, in a shorter time
SET_BACK_SECONDS = 60.0  # no reply comes so late: Redis's clock was set back
LONG_GAP = 4.0  # times the usual gap
# For so long Admission refuses by what it last saw of the queue, without asking Redis again.
SEEN_GOOD_FOR_SECONDS = 0.05


@dataclass(frozen=True)
class Load:
    """What was last seen of a queue."""

    ahead: int  # jobs that waited
    rate: float | None  # jobs that are settled in a second; None: no backlog has shown it yet
    is_draining: bool  # no job is accepted
    is_paused: bool  # model servers take none


class Admission:
    """Says how many jobs may wait, and when a refused client should come back; safe to share between threads.

    Args:
        max_queue_length: jobs that may wait, however fast the model servers are.
        timeout_seconds: how long a request waits for its answer at most.
    """

    def __init__(self, max_queue_length: int, timeout_seconds: float) -> None:
        self._max_queue_length, self._timeout_seconds = max_queue_length, timeout_seconds
        self._rate = ServiceRate()
        self._lock = threading.Lock()
        self._ahead, self._seen_at = 0, -math.inf  # jobs that waited when last seen, and when, monotonic seconds
        self._is_draining = self._is_paused = False  # when last seen

    def note(
        self,
        clock: float,
        ahead: int,
        settled_total: int,
        last_empty_at: float = 0.0,
        *,
        is_draining: bool = False,
        is_paused: bool = False,
    ) -> None:
        """Note what a reply told of the queue.

        Args:
            clock: when it was so, by Redis's clock, unix seconds.
            ahead: jobs that waited.
            settled_total: jobs that were ever settled.
            last_empty_at: when a model server last left no job waiting, or a pause ended, unix seconds.
            is_draining: whether no job is accepted.
            is_paused: whether model servers take none.
        """
        with self._lock:
            self._rate.note(clock, ahead, settled_total, last_empty_at, is_paused=is_paused)
            self._ahead, self._seen_at, self._is_draining = ahead, time.monotonic(), is_draining
            self._is_paused = is_paused

    def load(self) -> Load:
        """What was last seen of the queue."""
        with self._lock:
            return Load(self._ahead, self._rate.per_second(), self._is_draining, self._is_paused)

    def most_waiting(self) -> int:
        """How many jobs may wait for one more to be let in; at least 1."""
        with self._lock:
            rate, is_sure = self._rate.per_second(), self._rate.is_sure()
        if rate is None:
            return self._max_queue_length
        answerable = int(rate * self._timeout_seconds * PROMISED_SHARE)
        return min(self._max_queue_length, max(1 if is_sure else UNSURE_LENGTH, answerable))

    def is_full(self) -> bool | None:
        """Whether one more job would be refused; None: perhaps, but what was last seen is too old to refuse by."""
        if not self._is_draining and self._ahead < self.most_waiting():
            return False
        return True if time.monotonic() - self._seen_at < SEEN_GOOD_FOR_SECONDS else None

    def retry_after_seconds(self) -> int:
        """Whole seconds until the jobs that wait now are settled; 1 to MOST_RETRY_AFTER_SECONDS."""
        with self._lock:
            rate, silent_seconds = self._rate.per_second(), self._rate.silent_seconds()
        if rate is None:  # nothing measured: the model servers are away, or have just begun
            return MOST_RETRY_AFTER_SECONDS if silent_seconds > RATE_WINDOW_SECONDS / 2 else 1
        return max(1, min(MOST_RETRY_AFTER_SECONDS, math.ceil(self._ahead / rate)))

    def refusal(self, says: str) -> Unavailable:
        """The error for a job that is refused: the queue drains, or the sentence `says`, and when to come back."""
        if self._is_draining:
            return Draining()
        seconds = self.retry_after_seconds()
        return QueueFull(f"{says} Try again in {seconds} s.", retry_after_seconds=seconds)


class ServiceRate:
    """Jobs a second that all model servers together settle during a backlog, while some job always waits.

    Model servers settle jobs by the batch. The rate is taken between two moves of the counter, so that it counts whole
    batches.
    """

    def __init__(self) -> None:
        self._clock = self._backlog_since = -math.inf
        self._settled_total = 0
        # (clock, settled_total) when the counter had moved
        self._moves: deque[tuple[float, int]] = deque(maxlen=MOST_MOVES)
        self._usual_gap = RATE_WINDOW_SECONDS / LONG_GAP  # between two moves
        self._measured: float | None = None  # rate in this backlog
        self._known: float | None = None  # from an earlier backlog, which ended at `_known_at`
        self._known_at = -math.inf

    def note(
        self, clock: float, ahead: int, settled_total: int, last_empty_at: float = 0.0, *, is_paused: bool = False
    ) -> None:
        """Note what a reply told of the queue; see Admission.note."""
        was_set_back = clock < self._clock - SET_BACK_SECONDS
        if clock <= self._clock and not was_set_back:  # the replies to two threads overtook each other
            return
        self._clock = clock
        is_another_redis = was_set_back or settled_total < self._settled_total
        if is_paused:
            self._known_at = clock  # what is known does not age while nobody works
            self._begin_anew()
        elif ahead == 0 or last_empty_at > self._backlog_since or is_another_redis:
            self._begin_anew()
        elif settled_total > self._settled_total:
            self._moves.append((clock, settled_total))
            # One move from before the window stays: batches slower than the window need it.
            while len(self._moves) > 2 and self._moves[1][0] < clock - RATE_WINDOW_SECONDS:
                self._moves.popleft()
            self._measure()
        self._settled_total = settled_total

    def per_second(self) -> float | None:
        """The rate; None when no backlog has shown it yet. The rate falls while the counter stands still."""
        rate = self._measured or self._known
        if rate is None:
            return None
        patience = max(LONG_GAP * self._usual_gap, RATE_WINDOW_SECONDS / 2)
        return rate * min(1.0, patience / max(self.silent_seconds(), patience))

    def is_sure(self) -> bool:
        """Whether the counter moved often enough in this backlog to tell a slow model from one that stood still."""
        return len(self._moves) >= SURE_MOVES

    def silent_seconds(self) -> float:
        """For how many seconds jobs have waited and none was settled."""
        if self._clock == -math.inf:
            return 0.0
        return self._clock - max(self._backlog_since, self._moves[-1][0] if self._moves else -math.inf)

    def _begin_anew(self) -> None:
        if self.is_sure():
            self._known, self._known_at = self._measured, self._clock
        elif self._clock - self._known_at > KNOWN_SECONDS:  # model servers may have come since
            self._known = None
        self._moves.clear()
        self._measured, self._usual_gap = None, RATE_WINDOW_SECONDS / LONG_GAP
        self._backlog_since = self._clock

    def _measure(self) -> None:
        gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(self._moves)]
        if gaps:
            self._usual_gap = statistics.median(gaps)
            # In a gap far above the usual one nobody worked: a model server died, say, and was started again.
            busy_seconds = sum(min(gap, LONG_GAP * self._usual_gap) for gap in gaps)
            self._measured = (self._moves[-1][1] - self._moves[0][1]) / busy_seconds
