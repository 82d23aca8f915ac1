"""Defines what travels: Job, what a model server took (Taken), how a job ended (Outcome, Answer), the states of a job;
and the queue as a model server meets it (ModelQueue, Member).

Job -- to_text --> JSON in the queue -- from_text --> Job … Outcome -- reply --> the answer under the job's id
                                                                    -- to_dead_letter --> a job that failed for good

An answer's text is one of

    [{"label": …, "probability": …}, …]      predictions, likeliest first
    {"error": "…"}                           a failure, told with the HTTP status 500
    {"error": "…", "status": 503}            … or with another one

and what travels beside it (Answer.about) is {"model": "…", "version": "…"}, with a "warning" if the model has random
weights. Earlier releases write such a warning into the text: {"predictions": […], "warning": "…"}.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import orjson

from serving.errors import BadJob

MOST_AXES, LONGEST_AXIS = 4, 65_535  # of an image's shape
MOST_REASON_CHARACTERS = 500
# Longer than a job of 2896×2896 pixels. In JSON a byte may become six, and Redis would refuse more than 85 MB of them.
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
    """One job as it travels. Only `id` and `image` are required; with just those it is the tutorial's own job."""

    id: str
    image: str  # base64 and nothing else, since `to_text` puts it into JSON as it is
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
        # Base64 has nothing to escape, so no code need look at each character of the image.
        return f'{json.dumps({"id": self.id, **given})[:-1]}, "image": "{self.image}"}}'

    @classmethod
    def from_text(cls, text: bytes) -> "Job":
        """Read a job.

        Raises:
            BadJob: the text is no JSON object with the strings `id` and `image`, or a field has the wrong type.
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
            # The id becomes the name of a Redis key that is overwritten: it must not name any other key.
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
        except KeyError as error:
            raise BadJob(f"the job lacks the field {error.args[0]}") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise BadJob(f"the job has a wrong field: {error}") from error


def _read_ours(text: bytes) -> Any:
    """The fields of a job as `to_text` writes it; None for any other text, whether it is a job or not.

    A JSON parser would look at each character of the image. This skips them, because `to_text` escapes nothing in the
    image, and writes nothing after it. (JSON forbids a line break in the image, and so does base64.)
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
    # `type`, because true is an int, too, and 4.0 means that the sender computes shapes differently.
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
    """What one `take` gave: jobs as they travel. With `attempts` above 0 it is one job, which came back so often."""

    jobs: list[bytes]
    attempts: int = 0
    all_that_waited: bool = False  # no other job waited, as far as the model server knows
    runs_alone: bool = False  # a job that came back is next, or in hand: answer what is in hand, then take again


@dataclass(frozen=True)
class Answer:
    """A model server's answer to one job: its text, JSON, and what travels beside it (see the head of this module)."""

    text: str
    about: Mapping[str, str] = field(default_factory=dict)  # empty: the model server tells nothing


@dataclass(frozen=True)
class Outcome:
    """How one taken job ends: with an `answer`; with a `failure`, which its client is told; or dropped.

    A failure becomes a dead letter, unless `status` tells its client that another try may succeed.
    """

    text: bytes
    job_id: str | None = None  # None: the text is garbage, and has no client
    reply_to: str | None = None
    answer: str | None = None  # JSON
    failure: str | None = None
    attempts: int = 0
    status: int | None = None  # the HTTP status that goes with the failure; None: 500

    @property
    def is_dead_letter(self) -> bool:
        """Whether the job is kept as a dead letter."""
        return self.failure is not None and self.status is None

    def reply(self) -> str | None:
        """What the client reads under the job's id, JSON; None for a job that is dropped."""
        if self.failure is None:
            return self.answer
        status = {} if self.status is None else {"status": self.status}
        return json.dumps({"error": self._reason(), **status})

    def to_dead_letter(self, clock: float) -> str:
        """The dead letter, JSON, of a job that failed at `clock`, unix seconds."""
        job = self.text[:MOST_DEAD_LETTER_BYTES].decode("utf-8", "surrogateescape")
        return json.dumps(
            {"id": self.job_id, "at": clock, "attempts": self.attempts, "reason": self._reason(), "job": job}
        )

    def _reason(self) -> str:
        return (self.failure or "")[:MOST_REASON_CHARACTERS]  # it may quote garbage of any length


class Member(Protocol):
    """One name under which a model server takes jobs, with its lease: jobs.membership.Membership is the one that runs.

    Every method raises QueueAway.

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
        """End the oldest jobs in hand, in their order; False if the lease was lost meanwhile.

        The same outcomes may be sent again when QueueAway left open whether they arrived.
        """

    def return_expired(self) -> int:
        """Return the jobs of every model server whose lease ran out to the head of the queue; return how many."""

    def leave(self, *, forget: bool = True) -> int:
        """Give back the jobs in hand, with no attempt counted, and end the lease; return how many jobs went back.

        With `forget` False others go on looking after this name, because one of its commands may still be under way.
        """


class ModelQueue(Protocol):
    """The queue as a model server meets it: jobs.model_side.ModelSide is the one that runs."""

    def join(self) -> Member:
        """Register under a fresh name, whose lease begins now. Raises QueueAway."""

    def now(self) -> float:
        """The time by the queue's own clock, unix seconds, by which deadlines count. Raises QueueAway."""
