"""One name under which a model server takes jobs, with its lease.

    take --> the jobs move to the processing list of this name --> answer strikes them off
    leave --> what it still holds goes back to the head of the queue

Progress renews the lease: `take` with empty hands, and `answer`.
"""

import json
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from serving.errors import BadJob, LeaseLost, QueueAway, QueueOutOfMemory
from serving.jobs.job import MOST_DEAD_LETTER_BYTES, Job, Outcome
from serving.jobs.job_queue import MOST_DEAD_LETTERS, JobQueue
from serving.jobs.keys import ABOUT
from serving.jobs.leases import process_name
from serving.jobs.model_queue import Taken
from serving.jobs.redis_url import SOCKET_TIMEOUT_SECONDS
from serving.jobs.served import Served, publish

# How long others look after a dead model server's name: longer than TCP goes on sending a BLMOVE of its last moments.
FORGET_NAME_SECONDS = 1200
FORGET_ATTEMPTS_SECONDS = 24 * 3600
PUBLISH_EVERY_SECONDS = 10.0  # a Redis that is out of memory may have thrown away what was published
LONGEST_BLOCK_SECONDS = SOCKET_TIMEOUT_SECONDS / 2

FIRST_LOOK = 4  # jobs to ask for while the model server does not know how many wait


class Refusal(IntEnum):
    """The states with which take.lua and confirm.lua hand out no jobs; the scripts know them by the same names."""

    ALONE_LATER = -1  # the next job, or the one in hand, runs alone: ask again with empty hands
    LEASE_LOST = -2  # this name was taken for dead: join again
    ONE_BY_ONE = -3  # some job came back and has not ended: ask take.lua, which looks at each job


@dataclass(frozen=True)
class Terms:
    """The terms on which a model server joins; ModelSide says what each means."""

    lease_seconds: float
    max_attempts: int
    result_ttl_seconds: int
    served: Served | None
    labels: Sequence[str]

    def about(self) -> dict[str, Any]:
        """What travels beside each answer."""
        return self.served.about() if self.served is not None else {}


class Membership:
    """A name in the queue; `ModelSide.join` makes it (see jobs.model_queue.Member).

    One thread may call `take` and `return_expired` while another calls `answer`. Every method raises QueueAway when
    Redis does not answer.
    """

    def __init__(self, queue: JobQueue, terms: Terms) -> None:
        self.name = f"{process_name(os.getpid())}{uuid.uuid4().hex[:8]}"
        self.is_lost = False  # whether a command found that the lease is lost, and then for good
        self._queue, self._terms, self._about = queue, terms, terms.about()
        self._processing = self._queue.keys.people.processing(self.name)
        self._lease_seconds = terms.lease_seconds
        # Jobs, so far. The thread that takes is the only one to raise the first, the thread that answers the second.
        self._taken = self._settled = 0
        self._published_at = time.monotonic()
        self._waiting = 0  # jobs left in the queue when last seen
        self._some_came_back = False

    @property
    def in_hand(self) -> int:
        """How many jobs this name has taken and not yet struck off."""
        return self._taken - self._settled

    def take(self, most: int, wait_seconds: float = 0.0) -> Taken:
        """Take up to `most` jobs; with `wait_seconds`, wait for a first one, which is allowed only with no job in hand.

        Raises:
            LeaseLost: others took this name for dead, and get its jobs.
        """
        # The wait must end well before the lease, which nobody renews meanwhile.
        timeout_seconds = min(wait_seconds, self._lease_seconds / 3, LONGEST_BLOCK_SECONDS)
        if self._some_came_back:
            taken = self._take_one_by_one(most)
            return taken if taken.jobs or taken.runs_alone else self._move(most, timeout_seconds)
        try:
            return self._move(most, timeout_seconds)
        except QueueOutOfMemory:  # Redis refuses plain moves then, while a script may still take jobs
            taken = self._take_one_by_one(most)
            if not taken.jobs:
                time.sleep(max(0.0, timeout_seconds / 10))
            return taken

    def _move(self, most: int, wait_seconds: float) -> Taken:
        """Take jobs by plain commands, which cost Redis least, but cannot tell which jobs came back."""
        jobs: list[bytes] = []
        while not jobs or (self._waiting and len(jobs) < most):
            at_once = min(most - len(jobs), max(self._waiting, FIRST_LOOK))
            confirm, wait = [self.name, self._lease_seconds, self._taken], 0.0 if jobs else wait_seconds
            try:
                moved, (state, clock, self._waiting) = self._queue.move(self._processing, at_once, confirm, wait)
            except QueueOutOfMemory as error:
                self._check_that_nothing_moved(error)
                if jobs:
                    return Taken(jobs)
                raise
            self._queue.set_clock(float(clock))
            self._check(state)
            if state == Refusal.ONE_BY_ONE:
                return Taken(jobs) if jobs else self._take_one_by_one(most)
            self._taken += len(moved)
            jobs += moved
            if not moved:
                break
        return Taken(jobs, all_that_waited=not self._waiting)

    def _check_that_nothing_moved(self, error: QueueOutOfMemory) -> None:
        """Raise QueueAway if a command that failed has moved jobs all the same: nobody would answer them.

        A BLMOVE may get a job before Redis refuses the transaction behind it; confirm.lua may fail behind its LMOVEs.
        """
        length, settled = self._queue.held(self._processing, self.name)
        if length > (0 if settled is None else self._taken - settled):
            raise QueueAway("The queue ran out of memory while jobs were taken. Try again in a moment.") from error

    def _take_one_by_one(self, most: int) -> Taken:
        """Take jobs by a script that looks at each, and so finds those that came back."""
        queue, keys = self._queue, self._queue.keys
        state, clock, came_back, *jobs = queue.run(
            "take",
            [queue.name, self._processing, keys.leases, keys.attempts, keys.people.last_empty_at],
            [self.name, self._lease_seconds, most],
        )
        queue.set_clock(float(clock))
        self._check(state)
        self._some_came_back = came_back > 0
        self._taken += len(jobs)
        return Taken(jobs, attempts=max(0, state), runs_alone=state == Refusal.ALONE_LATER)

    def _check(self, state: int) -> None:
        if state == Refusal.LEASE_LOST:
            self.is_lost = True
            raise LeaseLost(f"the lease of {self.name} ran out; its jobs go to others")

    def answer(self, outcomes: Sequence[Outcome]) -> bool:
        """End the oldest jobs in hand, in their order, in one round trip; False if the lease was lost meanwhile.

        With a lost lease the answers count all the same, but the jobs were no longer this name's to strike off. The
        same outcomes may be sent again when the reply was lost: Redis strikes them off once.
        """
        dead_letters = [outcome.to_dead_letter(self._queue.now()) for outcome in outcomes if outcome.is_dead_letter]
        holds_lease = self._run_answer(outcomes, len(outcomes), dead_letters)
        self._settled += len(outcomes)
        return holds_lease

    def _run_answer(self, outcomes: Sequence[Outcome], struck_off: int, dead_letters: Sequence[str]) -> bool:
        """Set the answers, wake their web processes, strike off the `struck_off` oldest jobs in hand."""
        queue, keys = self._queue, self._queue.keys
        replies = {outcome.job_id: reply for outcome in outcomes if (reply := outcome.reply()) and outcome.job_id}
        if "warning" in self._about:  # whoever misses the message must read the warning all the same
            replies |= {keys.about(job_id): json.dumps(self._about) for job_id in replies}
        lane = [keys.people.settled_total, keys.people.settled_by_server]
        holds_lease = queue.run(
            "answer",
            [self._processing, keys.leases, keys.attempts, keys.dead, *lane, *replies],
            [
                self.name,
                self._lease_seconds,
                struck_off,
                self._settled,
                self._terms.result_ttl_seconds,
                MOST_DEAD_LETTERS,
                len(dead_letters),
                *dead_letters,
                *replies.values(),
                *self._messages(outcomes),
            ],
        )
        if not holds_lease:
            self.is_lost = True
        return bool(holds_lease)

    def return_expired(self) -> int:
        """Return the jobs of every model server whose lease ran out to the head of the queue; return how many.

        Every PUBLISH_EVERY_SECONDS it also publishes again what this model server serves.
        """
        queue, keys, returned = self._queue, self._queue.keys, 0
        if self._terms.served is not None and time.monotonic() - self._published_at > PUBLISH_EVERY_SECONDS:
            self._published_at = time.monotonic()
            publish(queue, self.name, self._terms.served, self._terms.labels)
        for name in queue.model_server_names(expired=True):
            count, *given_up = queue.run(
                "return_jobs",
                [
                    *(queue.name, keys.people.processing(name), keys.leases, keys.attempts, keys.dead),
                    *(keys.people.settled_by_server, keys.serves),
                ],
                [
                    *(name, self._terms.max_attempts, MOST_DEAD_LETTERS, MOST_DEAD_LETTER_BYTES),
                    *(FORGET_NAME_SECONDS, FORGET_ATTEMPTS_SECONDS),
                ],
            )
            returned += count
            if given_up:
                self._run_answer([self._given_up(text) for text in given_up], struck_off=0, dead_letters=[])
        return returned

    def leave(self, *, forget: bool = True) -> int:
        """Give back the jobs in hand, with no attempt counted, and end the lease; return how many jobs went back.

        With `forget` False others go on looking after this name, because one of its commands may still be under way.
        """
        queue, of = self._queue, self._queue.keys
        keys = [queue.name, self._processing, of.leases, of.people.settled_by_server, of.serves]
        return int(queue.run("leave", keys, [self.name, int(forget)]))

    def _given_up(self, text: bytes) -> Outcome:
        times = self._terms.max_attempts
        failure = f"The model server failed {times} times on this image. It is kept as a dead letter."
        try:
            job = Job.from_text(text)
        except BadJob:
            return Outcome(text, failure=failure)
        return Outcome(text, job.id, job.reply_to, failure=failure)

    def _messages(self, outcomes: Sequence[Outcome]) -> list[str]:
        """Channel, answers, channel, answers, …: one message per web process, with all its answers."""
        took = [outcome.model_ms for outcome in outcomes if outcome.model_ms is not None]  # of one batch: all the same
        of_batch = self._about | ({"model_ms": round(took[0], 3)} if took else {})
        about: dict[str, object] = {ABOUT: of_batch} if of_batch else {}
        answers: dict[str, dict[str, object]] = {}
        for outcome in outcomes:
            channel, reply = outcome.reply_to or "", outcome.reply()
            # A job must not make us publish on any channel but our own ones.
            if outcome.job_id and reply is not None and self._queue.keys.is_channel(channel):
                beside = about if channel.startswith(self._queue.keys.channel()) else {}
                answers.setdefault(channel, dict(beside))[outcome.job_id] = reply
        return [text for channel, replies in answers.items() for text in (channel, json.dumps(replies))]
