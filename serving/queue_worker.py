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
from dataclasses import dataclass

from serving.errors import BadJob, LeaseLost, QueueOutOfMemory
from serving.job_queue import MOST_DEAD_LETTERS, SOCKET_TIMEOUT_SECONDS, Job, JobQueue, translated

# How long a dead worker's name is looked after: longer than TCP goes on sending a BLMOVE of its last moments.
FORGET_WORKER_SECONDS = 1200
FORGET_ATTEMPTS_SECONDS = 24 * 3600
MOST_REASON_CHARACTERS = 500
# Longer than a job of 2896×2896 pixels. As JSON a byte may become six: more than 85 MB and Redis would refuse it.
MOST_DEAD_LETTER_BYTES = 32 * 1024 * 1024
LONGEST_BLOCK_SECONDS = SOCKET_TIMEOUT_SECONDS / 2

_LOST, _ALONE_LATER = -2, -1


@dataclass(frozen=True)
class Taken:
    """Jobs as they travel. `attempts`: how often the job came back; if it did, it is the only one here."""

    jobs: list[bytes]
    attempts: int = 0
    runs_alone: bool = False  # the next job, or the one in hand, came back once: ask again with empty hands


@dataclass(frozen=True)
class Outcome:
    """How one taken job ends: answered, failed (a dead letter, its client told), or, with neither, dropped."""

    text: bytes
    job_id: str | None = None  # None: garbage, nobody to tell
    reply_to: str | None = None
    answer: str | None = None  # JSON
    failure: str | None = None
    attempts: int = 0

    def reply(self) -> str | None:
        """What the client reads under the job's id, JSON; None: nothing."""
        return json.dumps({"error": self._reason()}) if self.failure is not None else self.answer

    def to_dead_letter(self, clock: float) -> str:
        job = self.text[:MOST_DEAD_LETTER_BYTES].decode("utf-8", "surrogateescape")
        return json.dumps(
            {"id": self.job_id, "at": clock, "attempts": self.attempts, "reason": self._reason(), "job": job}
        )

    def _reason(self) -> str:
        return (self.failure or "")[:MOST_REASON_CHARACTERS]  # garbage may be quoted in it, whole


class QueueWorker:
    """One name in the queue, with its lease. Raises QueueAway from every method when Redis does not answer."""

    def __init__(self, queue: JobQueue, *, lease_seconds: float, max_attempts: int, result_ttl_seconds: int) -> None:
        self.name = f"{_process_name(os.getpid())}{uuid.uuid4().hex[:8]}"
        self._queue = queue
        self._processing = queue.processing(self.name)
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._result_ttl_seconds = result_ttl_seconds

    def join(self) -> None:
        """Register: from now on the queue counts on this worker."""
        self._queue.set_clock(float(self._queue.run("join", [self._queue.workers], [self.name, self._lease_seconds])))

    def take(self, most: int, wait_seconds: float = 0.0) -> Taken:
        """Take up to `most` jobs; with `wait_seconds`, which only empty hands may, wait for a first one.

        Raises:
            LeaseLost: this worker was taken for dead.
        """
        taken = self._take(most)
        if taken.jobs or taken.runs_alone or wait_seconds <= 0:
            return taken
        # The wait must end well before the lease, which nobody renews meanwhile.
        timeout_seconds = min(wait_seconds, self._lease_seconds / 3, LONGEST_BLOCK_SECONDS)
        try:
            first = self._queue.move_first(self._processing, timeout_seconds)
        except QueueOutOfMemory:  # refused to block, while what waits can be taken all the same
            time.sleep(timeout_seconds / 10)
            return taken
        return taken if first is None else self._take(most, first)  # b"" is a job as well, a bad one

    def _take(self, most: int, *moved: bytes) -> Taken:
        """Run the script; `moved` is the job that a BLMOVE has just put into the processing list, if any."""
        queue = self._queue
        state, clock, *jobs = queue.run(
            "take",
            [queue.name, self._processing, queue.workers, queue.attempts, queue.emptied],
            [self.name, self._lease_seconds, most, len(moved)],
        )
        queue.set_clock(float(clock))
        if state == _LOST:
            raise LeaseLost(f"the lease of {self.name} ran out; its jobs go to others")
        if state == _ALONE_LATER:
            return Taken([], runs_alone=True)
        return Taken([*moved, *jobs], attempts=state)

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
            [self._processing, queue.workers, queue.attempts, queue.dead, queue.served, *replies],
            [
                self.name,
                self._lease_seconds,
                len(struck_off),
                *([_marks_of(struck_off[0].text), _marks_of(struck_off[-1].text)] if struck_off else ["", ""]),
                self._result_ttl_seconds,
                MOST_DEAD_LETTERS,
                len(dead_letters),
                *dead_letters,
                *replies.values(),
                *self._messages(outcomes),
            ],
        )
        return bool(settled)

    def return_expired(self) -> int:
        """Return the jobs of every worker whose lease ran out to the head of the queue; how many."""
        queue, returned = self._queue, 0
        for name in queue.worker_names(expired=True):
            count, *given_up = queue.run(
                "return_jobs",
                [queue.name, queue.processing(name), queue.workers, queue.attempts, queue.dead],
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
        return int(queue.run("leave", [queue.name, self._processing, queue.workers], [self.name, int(forget)]))

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
            with translated():
                queue.redis.zadd(queue.workers, {name: queue.now() - 1})


def _marks_of(text: bytes) -> bytes:
    """As marks_of in serving/lua/common.lua."""
    return str(len(text)).encode() + b":" + text[:100] + text[-100:]


def _process_name(process_id: int | None) -> str:
    """How the names of a process's leases begin; with None, those of all processes of this host."""
    return f"{socket.gethostname()}:" + ("" if process_id is None else f"{process_id}:")
