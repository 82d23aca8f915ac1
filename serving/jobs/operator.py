"""The operator's side of the queue: look at the dead letters, put their jobs back, drop them.

    {Q}:dead -- read_letters --> letters -- requeue --> the end of the queue, as jobs that are new
                                         -- drop -----> nowhere

A letter is named by its job's id, or, where that is missing or cannot be typed, by a digest of its text. Whoever acts
on one sends its whole text, by which Redis finds it: meanwhile model servers append letters and trim the list.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from serving.jobs.job import Job
from serving.jobs.job_queue import JobQueue

SHORT_NAME_CHARACTERS = 8

_TYPEABLE = re.compile(r"\w[\w.:-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Letter:
    """One dead letter. `job` is the job's text as it was taken; at worst no JSON at all, or cut off after 4 MiB."""

    text: bytes  # as it lies in the list
    id: str | None  # a UUID, or what else garbage called itself
    at: float  # unix seconds, by Redis's clock; NaN: unknown
    attempts: int
    reason: str
    job: bytes

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.text).hexdigest()[:12]

    @property
    def name(self) -> str:
        return self.id if self.id is not None and _TYPEABLE.fullmatch(self.id) else self.digest

    @classmethod
    def from_text(cls, text: bytes) -> "Letter":
        """Read a letter. None is refused: what somebody else put into the list must be seen, and dropped, as well."""
        try:
            # Python writes what is not UTF-8 as escapes of lone surrogates, Lua's cjson as it is: this reads both.
            fields = json.loads(text.decode("utf-8", "surrogateescape"))
            return cls(
                text=text,
                id=None if fields["id"] is None else str(fields["id"]),
                at=float(fields["at"]),
                attempts=int(fields["attempts"]),
                reason=str(fields["reason"]),
                job=fields["job"].encode("utf-8", "surrogateescape"),
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return cls(text, None, math.nan, 0, "This is no dead letter of this service.", text)


def read_letters(queue: JobQueue) -> list[Letter]:
    """All dead letters, oldest first, as they lie in one moment. Raises QueueAway."""
    return [Letter.from_text(text) for text in queue.dead_letters()]


def find(letters: Sequence[Letter], wanted: str) -> list[Letter]:
    """The letters with this name or digest, else those whose name or digest begins so: one, if `wanted` is unique."""
    if not wanted:
        return []
    exact = [letter for letter in letters if wanted in (letter.name, letter.digest)]
    begins = [letter for letter in letters if letter.name.startswith(wanted) or letter.digest.startswith(wanted)]
    # Of letters that are the same to the last byte any one will do.
    return list({letter.text: letter for letter in exact or begins}.values())


def short_name(letter: Letter, letters: Sequence[Letter]) -> str:
    """As much of a letter's name as tells it from the others; its digest if they share the whole name."""
    names = [letter.name[:length] for length in range(SHORT_NAME_CHARACTERS, len(letter.name))]
    unique = (name for name in [*names, letter.name] if [found.text for found in find(letters, name)] == [letter.text])
    return next(unique, letter.digest)


def fresh_job(letter: Letter) -> Job:
    """The letter's job as if it were new. Raises BadJob: it would be a dead letter at once again.

    Its client has had an error for an answer. So its deadline goes, or the job would be dropped when it is met; and
    so does its channel, or a web server would take the answer that an operator waits for, and delete it.
    """
    return replace(Job.from_text(letter.job), deadline=math.inf, reply_to=None)


def requeue(queue: JobQueue, letter: Letter) -> bool:
    """Put a letter's job back at the end of the queue, however full that is; False if the letter has gone.

    Raises:
        BadJob: it holds no job.
        QueueAway: Redis does not answer; whether it was done is unknown.
    """
    job = fresh_job(letter)
    # Job.to_text takes an image to be base64. This one may be a dead letter because it is not: escaped, it stays one.
    text = replace(job, image=json.dumps(job.image)[1:-1]).to_text()
    keys = [queue.dead, queue.name, queue.attempts, queue.leases]
    return bool(queue.run("requeue_dead", keys, [letter.text, text]))


def drop(queue: JobQueue, letter: Letter) -> bool:
    """Delete a letter, its job with it; False if it has gone already. Raises QueueAway."""
    return bool(queue.run("drop_dead", [queue.dead], [letter.text]))
