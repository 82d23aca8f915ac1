"""What a membership holds of one lane: how it takes more, and how many it has taken and settled.

take -- plain moves, confirmed by confirm.lua ----------------> jobs
     `-- some job came back, or Redis is out of memory: take.lua --> jobs, one by one
     `-- an operator has paused the queue, or made this model server quiet: nothing, until take.lua gives jobs again
"""

import logging
import time
from enum import IntEnum

from serving.errors import LeaseLost, QueueAway, QueueOutOfMemory
from serving.jobs.job import Lane
from serving.jobs.job_queue import JobQueue
from serving.jobs.model_queue import Taken

SLEEP_WHEN_FULL_SECONDS = 0.1  # Redis, out of memory, does not block a model server then
SLEEP_WHEN_PAUSED_SECONDS = 0.1  # after so long a model server sees that it may take again
FIRST_LOOK = 4  # jobs to ask for while the model server does not know how many wait
TAKES_NOTHING = "takes nothing: an operator has paused the queue, or told this model server to be quiet"

log = logging.getLogger(__name__)


class Refusal(IntEnum):
    """The states with which take.lua and confirm.lua hand out no jobs; the scripts know them by the same names."""

    ALONE_LATER = -1  # the next job, or the one in hand, runs alone: ask again with empty hands
    LEASE_LOST = -2  # this name was taken for dead: join again
    ONE_BY_ONE = -3  # some job came back and has not ended: ask take.lua, which looks at each job
    PAUSED = -4  # an operator has told this model server to take nothing


class Hand:
    """The jobs of one lane that the model server `server` has taken and not yet settled.

    One thread may call `take` while another reads `in_hand` and raises `settled`.
    """

    def __init__(self, queue: JobQueue, lane: Lane, server: str, lease_seconds: float) -> None:
        self.lane, self.keys = lane, queue.keys.lane(lane)
        self.processing = self.keys.processing(server)
        self.other = queue.keys.lane(lane.other)
        self._queue, self._server, self._lease_seconds = queue, server, lease_seconds
        # Jobs, so far. The thread that takes is the only one to raise the first, the thread that answers the second.
        self.taken = self.settled = 0
        self._waiting = self._of_other_lane = 0  # jobs that waited when last seen
        self._some_came_back = self._is_paused = False

    @property
    def processing_of_other(self) -> str:
        """The key of the model server's processing list in the other lane."""
        return self.other.processing(self._server)

    @property
    def in_hand(self) -> int:
        """How many jobs these are."""
        return self.taken - self.settled

    def take(self, most: int, wait_seconds: float = 0.0) -> Taken:
        """Take up to `most` jobs; with `wait_seconds`, wait for a first one. Raises LeaseLost, QueueAway."""
        if self._is_paused:
            taken = self._take_one_by_one(most)
            if self._is_paused and wait_seconds > 0:  # a BLMOVE would move each job that comes, which must then go back
                time.sleep(SLEEP_WHEN_PAUSED_SECONDS)
            return taken
        if self._some_came_back:
            taken = self._take_one_by_one(most)
            done = taken.jobs or taken.runs_alone or self._is_paused
            return taken if done else self._move(most, wait_seconds)
        try:
            return self._move(most, wait_seconds)
        except QueueOutOfMemory:  # Redis refuses plain moves then, while a script may still take jobs
            taken = self._take_one_by_one(most)
            if not taken.jobs:
                time.sleep(min(wait_seconds, SLEEP_WHEN_FULL_SECONDS))
            return taken

    def _move(self, most: int, wait_seconds: float) -> Taken:
        """Take jobs by plain commands, which cost Redis least, but cannot tell which jobs came back."""
        jobs: list[bytes] = []
        while not jobs or (self._waiting and len(jobs) < most):
            at_once = min(most - len(jobs), max(self._waiting, FIRST_LOOK))
            confirm, wait = [self._server, self._lease_seconds, self.taken], 0.0 if jobs else wait_seconds
            try:
                moved, reply = self._queue.move(self.lane, self._server, at_once, confirm, wait)
            except QueueOutOfMemory as error:
                self._check_that_nothing_moved(error)
                if jobs:
                    return self._told(jobs)
                raise
            state, clock, self._waiting, self._of_other_lane = reply
            self._queue.set_clock(float(clock))
            self._check(state)
            if state == Refusal.PAUSED:
                return self._told(jobs)
            if state == Refusal.ONE_BY_ONE:
                return self._told(jobs) if jobs else self._take_one_by_one(most)
            self.taken += len(moved)
            jobs += moved
            if not moved:
                break
        return self._told(jobs, all_that_waited=not self._waiting)

    def _told(
        self, jobs: list[bytes], *, attempts: int = 0, all_that_waited: bool = False, runs_alone: bool = False
    ) -> Taken:
        return Taken(jobs, attempts, all_that_waited, runs_alone, self.lane, other_waits=self._of_other_lane > 0)

    def _check_that_nothing_moved(self, error: QueueOutOfMemory) -> None:
        """Raise QueueAway if a command that failed has moved jobs all the same: nobody would answer them.

        A BLMOVE may get a job before Redis refuses the transaction behind it; confirm.lua may fail behind its LMOVEs.
        """
        length, settled = self._queue.held(self.lane, self._server)
        if length > (0 if settled is None else self.taken - settled):
            raise QueueAway("The queue ran out of memory while jobs were taken. Try again in a moment.") from error

    def _take_one_by_one(self, most: int) -> Taken:
        """Take jobs by a script that looks at each, and so finds those that came back."""
        queue, keys = self._queue, self._queue.keys
        state, clock, came_back, self._of_other_lane, *jobs = queue.run(
            "take",
            [
                *(self.keys.waiting, self.processing, keys.leases, keys.attempts, self.keys.last_empty_at),
                *(self.other.waiting, self.processing_of_other, keys.paused, keys.quiet),
            ],
            [self._server, self._lease_seconds, most],
        )
        queue.set_clock(float(clock))
        self._check(state)
        self._some_came_back = came_back > 0
        self.taken += len(jobs)
        return self._told(jobs, attempts=max(0, state), runs_alone=state == Refusal.ALONE_LATER)

    def _check(self, state: int) -> None:
        if state == Refusal.LEASE_LOST:
            raise LeaseLost(f"the lease of {self._server} ran out; its jobs go to others")
        was_paused, self._is_paused = self._is_paused, state == Refusal.PAUSED
        if was_paused != self._is_paused and self.lane is Lane.PEOPLE:
            log.warning(TAKES_NOTHING if self._is_paused else "takes jobs again")
