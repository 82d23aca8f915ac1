"""Defines what travels: Job, what a model server took (Taken), how each job ended (Outcome), and the states of a job.

Job -- to_text --> JSON in the queue -- from_text --> Job … Outcome -- reply --> the answer under the job's id
                                                                    -- to_dead_letter --> a job that was given up
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import orjson

from serving.errors import BadJob

MOST_AXES, LONGEST_AXIS = 4, 65_535  # of an image's shape
MOST_REASON_CHARACTERS = 500
# Longer than a job of 2896×2896 pixels. As JSON a byte may become six: more than 85 MB and Redis would refuse it.
MOST_DEAD_LETTER_BYTES = 32 * 1024 * 1024

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_IMAGE = b', "image": "'


class Status(StrEnum):
    """The states of a job, as a client reads them."""

    QUEUED = "queued"  # it waits in the queue
    PROCESSING = "processing"  # a model server took it, and has not answered
    SUCCEEDED = "succeeded"  # its answer is there, or was read
    FAILED = "failed"  # the model failed on it, or nobody answered before its deadline
    CANCELED = "canceled"  # nobody waits for it any more


@dataclass(frozen=True)
class Job:
    """One job as it travels. Only `id` and `image` are required: with just those it is the tutorial's own."""

    id: str
    image: str  # base64, and nothing else: `to_text` puts it into JSON as it is
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    deadline: float = math.inf  # unix seconds, by Redis's clock
    reply_to: str | None = None  # the channel that hears of the answer

    def to_text(self) -> str:
        """Write the job as JSON, the id first, where the scripts look for it, and the long image last."""
        optional = {
            "dtype": self.dtype,
            "shape": self.shape,
            "deadline": None if self.deadline == math.inf else self.deadline,
            "reply_to": self.reply_to,
        }
        given = {name: value for name, value in optional.items() if value is not None}
        # Base64 has nothing to escape: the image is put in as it is, which saves looking at each of its characters.
        return f'{json.dumps({"id": self.id, **given})[:-1]}, "image": "{self.image}"}}'

    @classmethod
    def from_text(cls, text: bytes) -> "Job":
        """Read a job.

        Raises:
            BadJob: not a JSON object with the strings `id` and `image`, or a field of the wrong type.
        """
        try:
            fields = _read_ours(text) or orjson.loads(text)
        except ValueError as error:
            raise BadJob(f"the job is not JSON: {error}") from error
        try:
            shape, deadline, dtype, reply_to = (fields.get(key) for key in ("shape", "deadline", "dtype", "reply_to"))
            if not all(value is None or isinstance(value, str) for value in (dtype, reply_to)):
                raise TypeError("dtype and reply_to are strings")
            if not isinstance(fields["image"], str):
                raise TypeError("image is a string")
            # The id becomes a Redis key and is overwritten: it must not be able to name any other key.
            if not _UUID.fullmatch(fields["id"]):
                raise ValueError("id is not a UUID")
            return cls(
                id=fields["id"],
                image=fields["image"],
                dtype=dtype,
                shape=None if shape is None else _read_shape(shape),
                deadline=math.inf if deadline is None else _read_deadline(deadline),
                reply_to=reply_to,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadJob(f"the job lacks a field or has a wrong one: {error!r}") from error


def _read_ours(text: bytes) -> Any:
    """The fields of a job as `to_text` writes it; None for any other text, be it a job or not.

    The image need not go through a JSON parser, which looks at each of its characters: between its quotes nothing is
    escaped, and nothing follows it. (A line break in it, which JSON forbids, base64 forbids as well.)
    """
    start = text.find(_IMAGE)
    image = memoryview(text)[start + len(_IMAGE) : -2]
    is_last = text.endswith(b'"}') and text.find(b'"', start + len(_IMAGE)) == len(text) - 2
    if start < 0 or not is_last or b"\\" in text or text[:start].rstrip() == b"{":
        return None
    try:
        fields = orjson.loads(text[:start] + b"}")
        return fields | {"image": str(image, "ascii")}
    except (ValueError, TypeError):
        return None


def _read_shape(value: Any) -> tuple[int, ...]:
    # `type`, since true is an int, too, and since 4.0 is a sign that its sender reckons otherwise than we do.
    lengths: list[Any] = value if type(value) is list and len(value) <= MOST_AXES else []
    if lengths and all(type(length) is int and 0 < length <= LONGEST_AXIS for length in lengths):
        return tuple(lengths)
    raise ValueError(f"shape is a list of at most {MOST_AXES} whole numbers, each from 1 to {LONGEST_AXIS}")


def _read_deadline(value: Any) -> float:
    if type(value) in (int, float) and math.isfinite(value):
        return float(value)
    raise ValueError("deadline is a finite number, in unix seconds")


@dataclass(frozen=True)
class Taken:
    """Jobs as they travel. `attempts`: how often the job came back; if it did, it is the only one here."""

    jobs: list[bytes]
    attempts: int = 0
    all_that_waited: bool = False  # as far as is known
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


class Member(Protocol):
    """One name under which a model server takes jobs, with its lease; every method raises QueueAway.

    One thread may call `take` and `return_expired` while another calls `answer`.
    """

    @property
    def name(self) -> str:
        """The name in the queue, made anew with each `join`."""

    @property
    def in_hand(self) -> int:
        """How many jobs this name has taken and not yet struck off."""

    @property
    def is_lost(self) -> bool:
        """Whether a command found that the lease is lost; then it is lost for good."""

    def take(self, most: int, wait_seconds: float = 0.0) -> Taken:
        """Take up to `most` jobs; with `wait_seconds`, which only empty hands may, wait for a first one.

        Raises:
            LeaseLost: others took this name for dead, and get its jobs.
        """

    def answer(self, outcomes: Sequence[Outcome]) -> bool:
        """End the oldest jobs in hand, in their order; False if the lease was lost meanwhile."""

    def return_expired(self) -> int:
        """Return the jobs of every model server whose lease ran out to the head of the queue; how many."""

    def leave(self, *, forget: bool = True) -> int:
        """Give back what is in hand, and end the lease; how many jobs went back.

        `forget` False: a command of this name may still be under way.
        """


class ModelQueue(Protocol):
    """The queue as a model server meets it."""

    def join(self) -> Member:
        """Register under a fresh name, whose lease begins now. Raises QueueAway."""

    def now(self) -> float:
        """The time by the queue's own clock, unix seconds, by which deadlines count. Raises QueueAway."""
