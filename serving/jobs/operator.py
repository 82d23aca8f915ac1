"""The operator's side of the queue: look at the dead letters, put their jobs back, drop them.

    {Q}:dead -- read_letters --> letters -- requeue --> the end of their lane, as jobs that are new
                                         -- drop -----> nowhere

A letter's name is its job's id, or, where that is missing or cannot be typed, a digest of its text. A command that acts
on a letter sends the whole text, by which Redis finds the letter, because model servers append letters and trim the
list meanwhile.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from serving.jobs.job import Job, Lane
from serving.jobs.job_queue import JobQueue

SHORT_NAME_CHARACTERS = 8

_TYPEABLE = re.compile(r"\w[\w.:-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Letter:
    """One dead letter. `job` is the job's text as it was taken: it may be no JSON, or cut off after 32 MiB."""

    text: bytes  # as it lies in the list
    id: str | None  # a UUID; or any text, when the job was garbage
    at: float  # unix seconds, by Redis's clock; NaN: unknown
    attempts: int
    reason: str
    job: bytes
    lane: Lane = Lane.PEOPLE  # from which it was taken, and to which it goes back

    @cached_property
    def digest(self) -> str:
        """Twelve characters that tell this letter from any with another text."""
        return hashlib.sha256(self.text).hexdigest()[:12]

    @property
    def name(self) -> str:
        """What an operator calls the letter: its job's id if that can be typed, else the digest."""
        return self.id if self.id is not None and _TYPEABLE.fullmatch(self.id) else self.digest

    @classmethod
    def from_text(cls, text: bytes) -> "Letter":
        """Read a letter. Any text gives one: an operator must see what somebody else put into the list, too."""
        try:
            # For bytes that are not UTF-8 Python writes escapes of lone surrogates, Lua's cjson the bytes themselves.
            fields = json.loads(text.decode("utf-8", "surrogateescape"))
            return cls(
                text=text,
                id=None if fields["id"] is None else str(fields["id"]),
                at=float(fields["at"]),
                attempts=int(fields["attempts"]),
                reason=str(fields["reason"]),
                job=fields["job"].encode("utf-8", "surrogateescape"),
                lane=Lane.BULK if fields.get("lane") == Lane.BULK else Lane.PEOPLE,
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return cls(text, None, math.nan, 0, "This is no dead letter of this service.", text)


def read_letters(queue: JobQueue) -> list[Letter]:
    """All dead letters, oldest first, as they lie in one moment. Raises QueueAway."""
    (texts,) = queue.exchange(("LRANGE", queue.keys.dead, 0, -1))
    return [Letter.from_text(text) for text in texts]


def find(letters: Sequence[Letter], wanted: str) -> list[Letter]:
    """The letters whose name or digest is `wanted`, else those whose name or digest begins so; ideally one."""
    if not wanted:
        return []
    exact = [letter for letter in letters if wanted in (letter.name, letter.digest)]
    begins = [letter for letter in letters if letter.name.startswith(wanted) or letter.digest.startswith(wanted)]
    # Of letters with the same text any one will do.
    return list({letter.text: letter for letter in exact or begins}.values())


def short_name(letter: Letter, letters: Sequence[Letter]) -> str:
    """The shortest beginning of a letter's name that no other letter has; its digest if another has the whole name."""
    names = [letter.name[:length] for length in range(SHORT_NAME_CHARACTERS, len(letter.name))]
    unique = (name for name in [*names, letter.name] if [found.text for found in find(letters, name)] == [letter.text])
    return next(unique, letter.digest)


def fresh_job(letter: Letter) -> Job:
    """The letter's job as if it were new. Raises BadJob when the job would be a dead letter again at once.

    The job loses its deadline, or a model server would drop it. It loses its channel, or a web server would take the
    answer for which an operator waits, and delete it: the client has long had an error for an answer.
    """
    return replace(Job.from_text(letter.job), deadline=math.inf, reply_to=None)


def requeue(queue: JobQueue, letter: Letter) -> bool:
    """Put a letter's job back at the end of its lane, however full that is; False if the letter has gone.

    Raises:
        BadJob: the letter holds no job.
        QueueAway: Redis does not answer; nobody knows whether the job was put back.
    """
    job = fresh_job(letter)
    # Job.to_text expects an image in base64. This image may be anything else, so it is escaped for JSON.
    text = replace(job, image=json.dumps(job.image)[1:-1]).to_text()
    keys = queue.keys
    of_job = [keys.job(job.id), job.id, keys.about(job.id)]
    lists = [keys.dead, keys.lane(letter.lane).waiting, keys.attempts, keys.leases]
    return bool(queue.run("requeue_dead", [*lists, *of_job], [letter.text, text]))


def drop(queue: JobQueue, letter: Letter) -> bool:
    """Delete a letter and its job; False if the letter has gone already. Raises QueueAway."""
    return bool(queue.run("drop_dead", [queue.keys.dead], [letter.text]))
