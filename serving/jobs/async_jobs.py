"""Asynchronous jobs as a web process meets them: submit, look, cancel. Each web process can tell of each job.

    submit --> {Q}:bulk and {Q}:job:<id> … model server --> the answer under the job's id, its end in {Q}:job:<id>
    look <---- both of them, until `expires_at`
    cancel --> {Q}:job:<id>, and out of {Q}:bulk

An Idempotency-Key makes a request that is sent again stand for the same job: {Q}:idem:<digest> names it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from serving.errors import Draining, KeyReused, QueueFull, Refused, Unavailable, UnknownJob
from serving.jobs.job import EXPIRED, Answer, Job, Status
from serving.jobs.job_queue import CLOCK_GOOD_FOR_SECONDS, JobQueue
from serving.jobs.redis_client import Command
from serving.jobs.served import ServedNow
from serving.jobs.tracing import Tracing

FULL_RETRY_AFTER_SECONDS = 10
# A model server that has a job at its deadline may still answer it. So much later it has died, and no other came.
LATEST_ANSWER_SECONDS = 60.0
FIELDS = 3  # of a job, in a reply of look_async.lua


class Submitted(IntEnum):
    """The states that submit_async.lua returns, which knows them by the same names."""

    ACCEPTED = 0
    FULL = -1
    KEY_REUSED = -2
    DRAINING = -3


@dataclass(frozen=True)
class Idempotency:
    """An Idempotency-Key, and the request that came with it. Both are digests."""

    digest: str  # of the Idempotency-Key and the API key
    fingerprint: str  # of what the request asks


@dataclass(frozen=True)
class JobState:
    """An asynchronous job, as it is at a moment."""

    id: str
    status: Status
    expires_at: float  # until when the job is known, unix seconds
    answer: Answer | None = None  # of one that succeeded, or failed in a model server
    error: str | None = None  # of one that failed

    @property
    def is_over(self) -> bool:
        """Whether the job will not change any more."""
        return self.status not in (Status.QUEUED, Status.PROCESSING)


class AsyncJobs:
    """Submits asynchronous jobs, and tells of them; safe to share between threads.

    Args:
        queue: the queue, with `resend`: a command that is sent twice does nothing twice.
        served: what is served.
        most_waiting: asynchronous jobs that may wait.
        timeout_seconds: from a job's submission to its deadline.
        result_ttl_seconds: from a job's deadline until it is forgotten.
    """

    def __init__(
        self, queue: JobQueue, served: ServedNow, *, most_waiting: int, timeout_seconds: float, result_ttl_seconds: int
    ) -> None:
        self._queue, self._served, self._most_waiting = queue, served, most_waiting
        self._timeout_seconds, self._result_ttl_seconds = timeout_seconds, result_ttl_seconds
        self.tracing: Tracing | None = None  # where somebody wants traces

    def find(self, idempotency: Idempotency | None) -> str | None:
        """The id of the job that an earlier request made with the same Idempotency-Key.

        None: there is none, and there is room for a job.

        Raises:
            KeyReused: that request asked something else.
            QueueFull: there is no such job, and no room for one.
            Draining: there is no such job, and an operator has told the service to accept none.
            Unavailable: another model than the wanted one would answer.
            QueueAway: Redis does not answer.
        """
        keys = self._queue.keys
        look: list[Command] = [("LLEN", keys.bulk.waiting), ("GET", keys.draining)]
        if idempotency is not None:
            look.append(("GET", keys.idempotency(idempotency.digest)))
        waiting, draining, *kept_text = self._queue.exchange(*look)
        kept = kept_text[0] if kept_text else None
        if kept is not None and idempotency is not None:
            job_id, _, fingerprint = str(kept, "utf-8").partition(" ")
            if fingerprint != idempotency.fingerprint:
                raise _reused()
            return job_id
        self._served.check_name()
        if draining is not None:
            raise Draining
        if waiting >= self._most_waiting:
            raise _full()
        return None

    def submit(self, job: Job, idempotency: Idempotency | None = None) -> JobState:
        """Put a job, whose deadline begins now, at the end of its lane.

        If another request with the same Idempotency-Key was sooner, this tells of that one's job.

        Raises what `find` raises. After QueueAway nobody knows whether the job was put there.
        """
        if self.tracing is None:
            return self._submit(job, idempotency)
        with self.tracing.sending(job.id) as traceparent:
            return self._submit(replace(job, traceparent=traceparent), idempotency)

    def _submit(self, job: Job, idempotency: Idempotency | None) -> JobState:
        keys, clock = self._queue.keys, self._queue.now(CLOCK_GOOD_FOR_SECONDS)
        deadline = round(clock + self._timeout_seconds, 3)
        expires_at = deadline + self._result_ttl_seconds
        job = replace(job, deadline=deadline, submitted_at=round(clock, 3), reply_to=None)
        key = [] if idempotency is None else [keys.idempotency(idempotency.digest)]
        state, winner = self._queue.submit_async(
            job.to_text(),
            [keys.job(job.id), *key],
            [job.id, self._most_waiting, deadline, expires_at, idempotency.fingerprint if idempotency else ""],
        )
        if state == Submitted.FULL:
            raise _full()
        if state == Submitted.DRAINING:
            raise Draining
        if state == Submitted.KEY_REUSED:
            raise _reused()
        job_id = str(winner, "utf-8")
        return JobState(job.id, Status.QUEUED, expires_at) if job_id == job.id else self.look(job_id)

    def look(self, job_id: str) -> JobState:
        """Tell of a job, in one round trip. `job_id` is a UUID. Raises UnknownJob, QueueAway."""
        look, about = self.look_commands(job_id)
        # In this order: a job whose status says that it succeeded has its answer.
        state = self.read(job_id, *self._queue.exchange(look, ("GET", job_id), about))
        if state is None:
            raise UnknownJob(f"There is no job {job_id}: it has expired, or its id is another one.")
        return state

    def look_commands(self, job_id: str) -> tuple[Command, Command]:
        """What asks for a job's fields, and what asks for that which travels beside its answer."""
        return self._look_command([job_id]), ("GET", self._queue.keys.about(job_id))

    def read(
        self, job_id: str, fields: Sequence[bytes | None], text: bytes | None, about: bytes | None
    ) -> JobState | None:
        """The job, of the replies to `look_commands` and the answer under its id; None: this queue has no such job."""
        answer = None if text is None else Answer(str(text, "utf-8"), json.loads(about) if about else {})
        status, expires_at, error = (None if field is None else str(field, "utf-8") for field in fields)
        if status is None or (status == Status.SUCCEEDED and answer is None):
            return None
        has_ended = status in (Status.SUCCEEDED, Status.FAILED)
        until = float(expires_at or "nan")
        return self._checked(JobState(job_id, Status(status), until, answer if has_ended else None, error))

    def over(self, job_ids: Sequence[str]) -> set[str]:
        """Those of the jobs that are over, or not known, in one round trip. Raises QueueAway."""
        (fields,) = self._queue.exchange(self._look_command(job_ids))
        statuses = dict(zip(job_ids, fields[::FIELDS], strict=True))
        return {job_id for job_id, status in statuses.items() if status not in (b"queued", b"processing")}

    def cancel(self, job_id: str) -> JobState:
        """Cancel a job unless it is over, and tell of it. `job_id` is a UUID. Raises UnknownJob, QueueAway."""
        self._queue.exchange(self.cancel_command(job_id))
        return self.look(job_id)

    def cancel_command(self, job_id: str) -> Command:
        """What cancels a job of this queue, and does nothing to one that the queue has not."""
        keys = self._queue.keys
        in_redis = [keys.bulk.waiting, keys.job(job_id), keys.attempts, keys.leases]
        return self._queue.script("cancel_async", in_redis, [job_id, keys.all_jobs])

    def exchange(self, *commands: Command) -> list[Any]:
        """Send commands to the queue's Redis in one round trip; return their replies. Raises QueueAway."""
        return self._queue.exchange(*commands)

    def _look_command(self, job_ids: Sequence[str]) -> Command:
        keys = self._queue.keys
        hashes = [keys.job(job_id) for job_id in job_ids]
        return self._queue.script("look_async", [keys.leases, *hashes], [EXPIRED, LATEST_ANSWER_SECONDS])

    def _checked(self, state: JobState) -> JobState:
        """The job as it is; failed, if another model than the wanted one has answered."""
        try:
            if state.answer is not None:
                self._served.check_answer(state.answer)
        except Unavailable as error:
            return JobState(state.id, Status.FAILED, state.expires_at, error=str(error))
        return state


def _full() -> QueueFull:
    says = f"Too many asynchronous jobs wait already. Try again in {FULL_RETRY_AFTER_SECONDS} s."
    return QueueFull(says, retry_after_seconds=FULL_RETRY_AFTER_SECONDS, reason=Refused.BULK_FULL)


def _reused() -> KeyReused:
    return KeyReused(
        "This Idempotency-Key came with another image, another `top` or for another model before. Send each request "
        "with a key of its own, and the same key only with the same request."
    )
