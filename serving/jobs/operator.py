"""The operator's side of the queue: look at the dead letters, put their jobs back, drop them.

    {Q}:dead -- read_letters, find_letter --> letters -- requeue --> the end of their lane, as jobs that are new
                                                      -- drop -----> nowhere
             -- newest_letters --> what is told of them, without their images

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

from serving.errors import BadJob
from serving.jobs.job import Job, Lane
from serving.jobs.job_queue import JobQueue

SHORT_NAME_CHARACTERS = 8
DIGEST_CHARACTERS = 12

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
        return hashlib.sha256(self.text).hexdigest()[:DIGEST_CHARACTERS]

    @property
    def name(self) -> str:
        """What an operator calls the letter: its job's id if that can be typed, else the digest."""
        return self.id if self.id is not None and _TYPEABLE.fullmatch(self.id) else self.digest

    def is_called(self, name: str) -> bool:
        """Whether `name` is the letter's name or its digest."""
        return name == self.name or (len(name) == DIGEST_CHARACTERS and name == self.digest)

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


@dataclass(frozen=True)
class Listed:
    """What is told of a dead letter where several are listed."""

    name: str  # unlike that of any other in its list
    place: int  # in the list of dead letters, the oldest at 0; it may sink meanwhile, and does not rise
    at: float  # as in Letter, and so are these
    attempts: int
    reason: str
    lane: Lane
    size_bytes: int  # of the job


def newest_letters(queue: JobQueue, most: int) -> tuple[int, list[Listed]]:
    """How many dead letters there are, and the newest `most` of them, newest first. Raises QueueAway.

    They are read one by one, 200 kB each as a rule: nobody else waits long, and of garbage, up to 32 MiB each, one is
    in memory at a time.
    """
    (count,) = queue.exchange(("LLEN", queue.keys.dead))
    found: dict[str, Listed] = {}
    for place in range(count - 1, max(-1, count - 1 - most), -1):
        letter = _letter_at(queue, place)
        if letter is not None:
            name = letter.digest if letter.name in found else letter.name
            told = letter.at, letter.attempts, letter.reason, letter.lane, len(letter.job)
            found[name] = Listed(name, place, *told)
    return count, list(found.values())


def find_letter(queue: JobQueue, name: str, place: int | None = None) -> Letter | None:
    """The letter whose name or digest is `name`, the newest if there are several; None: there is none.

    `place` is where it stood when it was listed: it is looked for from there to older places, where it is now if older
    letters were dropped, then everywhere. Letters are read one by one, as in `newest_letters`. Raises QueueAway.
    """
    (count,) = queue.exchange(("LLEN", queue.keys.dead))
    start = count - 1 if place is None else min(place, count - 1)
    for at in (*range(start, -1, -1), *range(count - 1, start, -1)):
        letter = _letter_at(queue, at)
        if letter is not None and letter.is_called(name):
            return letter
    return None


def _letter_at(queue: JobQueue, place: int) -> Letter | None:
    (text,) = queue.exchange(("LINDEX", queue.keys.dead, place))
    return None if text is None else Letter.from_text(text)


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


def image_shape(job: Job, otherwise: tuple[int, int, int]) -> tuple[int, int, int]:
    """Height, width and channels of a job's image as it tells them; `otherwise` if it does not.

    Raises BadJob: it is no image's.
    """
    told = job.shape or otherwise
    height, width, channels = told[-3:] if len(told) in (3, 4) else (0, 0, 0)  # four, the first 1: the tutorial's
    if channels not in (1, 3) or min(height, width) < 1:
        raise BadJob(f"its shape is {told}")
    return height, width, channels


def requeue(queue: JobQueue, letter: Letter) -> bool:
    """Put a letter's job back at the end of its lane, however full that is; False if the letter has gone.

    Raises:
        BadJob: the letter holds no job.
        QueueAway: Redis does not answer; nobody knows whether the job was put back.
    """
    job = fresh_job(letter)
    if job.submitted_at is not None:  # else the lane would seem to have waited since then
        job = replace(job, submitted_at=round(queue.now(), 3))
    # Job.to_text expects an image in base64. This image may be anything else, so it is escaped for JSON.
    text = replace(job, image=json.dumps(job.image)[1:-1]).to_text()
    keys = queue.keys
    of_job = [keys.job(job.id), job.id, keys.about(job.id)]
    lists = [keys.dead, keys.lane(letter.lane).waiting, keys.attempts, keys.leases]
    return bool(queue.run("requeue_dead", [*lists, *of_job], [letter.text, text]))


def drop(queue: JobQueue, letter: Letter) -> bool:
    """Delete a letter and its job; False if the letter has gone already. Raises QueueAway."""
    return bool(queue.run("drop_dead", [queue.keys.dead], [letter.text]))
