"""The model server's side of the queue: take jobs under a lease, answer them, return those of the dead.

A worker is one name with one lease. Progress renews it: taking with empty hands, and answering. Whoever lets it run
out, or does not know whether a command arrived, starts afresh under a new name; what the old name held is returned.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Sequence

from serving.errors import BadJob, LeaseLost, QueueOutOfMemory
from serving.jobs.job import MOST_DEAD_LETTER_BYTES, Job, Outcome, Taken
from serving.jobs.job_queue import MOST_DEAD_LETTERS, JobQueue
from serving.jobs.redis_url import SOCKET_TIMEOUT_SECONDS

# How long a dead worker's name is looked after: longer than TCP goes on sending a BLMOVE of its last moments.
FORGET_WORKER_SECONDS = 1200
FORGET_ATTEMPTS_SECONDS = 24 * 3600
LONGEST_BLOCK_SECONDS = SOCKET_TIMEOUT_SECONDS / 2

FIRST_LOOK = 4  # jobs that are asked for while it is not known how many wait

_ALONE_LATER, _LOST, _LOOK_AT_EACH = -1, -2, -3


class QueueWorker:
    """One name in the queue, with its lease. Raises QueueAway from every method when Redis does not answer."""

    def __init__(self, queue: JobQueue, *, lease_seconds: float, max_attempts: int, result_ttl_seconds: int) -> None:
        self.name = f"{_process_name(os.getpid())}{uuid.uuid4().hex[:8]}"
        self._queue = queue
        self._processing = queue.processing(self.name)
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._result_ttl_seconds = result_ttl_seconds
        self._taken = self._settled = 0  # jobs, so far
        self._waiting = 0  # jobs left in the queue when last seen
        self._some_came_back = False

    def join(self) -> None:
        """Register: from now on the queue counts on this worker."""
        queue = self._queue
        queue.set_clock(float(queue.run("join", [queue.workers, queue.settled], [self.name, self._lease_seconds])))

    def take(self, most: int, wait_seconds: float = 0.0) -> Taken:
        """Take up to `most` jobs; with `wait_seconds`, which only empty hands may, wait for a first one.

        Raises:
            LeaseLost: this worker was taken for dead.
        """
        # The wait must end well before the lease, which nobody renews meanwhile.
        timeout_seconds = min(wait_seconds, self._lease_seconds / 3, LONGEST_BLOCK_SECONDS)
        if self._some_came_back:
            taken = self._look_at_each(most)
            return taken if taken.jobs or taken.runs_alone else self._move(most, timeout_seconds)
        try:
            return self._move(most, timeout_seconds)
        except QueueOutOfMemory:  # it refuses to move and to block, while a script can take what waits all the same
            taken = self._look_at_each(most)
            if not taken.jobs:
                time.sleep(max(0.0, timeout_seconds / 10))
            return taken

    def _move(self, most: int, wait_seconds: float) -> Taken:
        """Take jobs by plain commands, unseen, which costs Redis least."""
        jobs: list[bytes] = []
        while not jobs or (self._waiting and len(jobs) < most):
            at_once = min(most - len(jobs), max(self._waiting, FIRST_LOOK))
            moved, (state, clock, self._waiting) = self._queue.move(
                self._processing, at_once, [self.name, self._lease_seconds, self._taken], 0.0 if jobs else wait_seconds
            )
            self._queue.set_clock(float(clock))
            self._check(state)
            if state == _LOOK_AT_EACH:
                return Taken(jobs) if jobs else self._look_at_each(most)
            self._taken += len(moved)
            jobs += moved
            if not moved:
                break
        return Taken(jobs, all_that_waited=not self._waiting)

    def _look_at_each(self, most: int) -> Taken:
        """Take jobs by a script that looks for those that came back."""
        queue = self._queue
        state, clock, came_back, *jobs = queue.run(
            "take",
            [queue.name, self._processing, queue.workers, queue.attempts, queue.emptied],
            [self.name, self._lease_seconds, most],
        )
        queue.set_clock(float(clock))
        self._check(state)
        self._some_came_back = came_back > 0
        self._taken += len(jobs)
        return Taken(jobs, attempts=max(0, state), runs_alone=state == _ALONE_LATER)

    def _check(self, state: int) -> None:
        if state == _LOST:
            raise LeaseLost(f"the lease of {self.name} ran out; its jobs go to others")

    def answer(self, outcomes: Sequence[Outcome], *, in_hand: bool = True) -> bool:
        """End the oldest jobs in hand, in their order, in one round trip; False if the lease was lost meanwhile.

        Then the answers count all the same, but the jobs were no longer this worker's to strike off. It may be sent
        again when its reply was lost. Without `in_hand` the jobs are only answered, not struck off.
        """
        queue = self._queue
        replies = {outcome.job_id: reply for outcome in outcomes if (reply := outcome.reply()) and outcome.job_id}
        struck_off = outcomes if in_hand else []
        dead_letters = [outcome.to_dead_letter(queue.now()) for outcome in struck_off if outcome.failure is not None]
        settled = queue.run(
            "answer",
            [self._processing, queue.workers, queue.attempts, queue.dead, queue.served, queue.settled, *replies],
            [
                self.name,
                self._lease_seconds,
                len(struck_off),
                self._settled,
                self._result_ttl_seconds,
                MOST_DEAD_LETTERS,
                len(dead_letters),
                *dead_letters,
                *replies.values(),
                *self._messages(outcomes),
            ],
        )
        self._settled += len(struck_off)
        return bool(settled)

    def return_expired(self) -> int:
        """Return the jobs of every worker whose lease ran out to the head of the queue; how many."""
        queue, returned = self._queue, 0
        for name in queue.worker_names(expired=True):
            count, *given_up = queue.run(
                "return_jobs",
                [queue.name, queue.processing(name), queue.workers, queue.attempts, queue.dead, queue.settled],
                [
                    *(name, self._max_attempts, MOST_DEAD_LETTERS, MOST_DEAD_LETTER_BYTES),
                    *(FORGET_WORKER_SECONDS, FORGET_ATTEMPTS_SECONDS),
                ],
            )
            returned += count
            if given_up:
                self.answer([self._given_up(text) for text in given_up], in_hand=False)
        return returned

    def leave(self, *, forget: bool = True) -> int:
        """Give back what is in hand, uncounted, and end the lease; how many jobs went back.

        `forget` False: a command of this name may still be under way, so that others go on looking after it.
        """
        queue = self._queue
        keys = [queue.name, self._processing, queue.workers, queue.settled]
        return int(queue.run("leave", keys, [self.name, int(forget)]))

    def _given_up(self, text: bytes) -> Outcome:
        failure = f"The model server failed {self._max_attempts} times on this image. It is kept as a dead letter."
        try:
            job = Job.from_text(text)
        except BadJob:
            return Outcome(text, failure=failure)
        return Outcome(text, job.id, job.reply_to, failure=failure)

    def _messages(self, outcomes: Sequence[Outcome]) -> list[str]:
        """Channel, answers, channel, answers, …: one message per web process, with all its answers."""
        answers: dict[str, dict[str, str]] = {}
        for outcome in outcomes:
            channel, reply = outcome.reply_to or "", outcome.reply()
            # Only to our own channels: a job must not make us publish anywhere else.
            if outcome.job_id and reply is not None and channel.startswith(self._queue.channel("")):
                answers.setdefault(channel, {})[outcome.job_id] = reply
        return [text for channel, replies in answers.items() for text in (channel, json.dumps(replies))]


def has_lease(queue: JobQueue, process_id: int | None = None) -> bool:
    """Whether a process of this host, or any with None, is registered in the queue and alive. Raises QueueAway."""
    return any(name.startswith(_process_name(process_id)) for name in queue.worker_names(expired=False))


def end_leases(queue: JobQueue, process_id: int) -> None:
    """End the leases of a process of this host that is known to be dead, so that its jobs return at once, counted.

    Raises QueueAway.
    """
    for name in queue.worker_names(expired=False):
        if name.startswith(_process_name(process_id)):
            queue.end_lease(name)


def _process_name(process_id: int | None) -> str:
    """How the names of a process's leases begin; with None, those of all processes of this host."""
    return f"{socket.gethostname()}:" + ("" if process_id is None else f"{process_id}:")
