"""Defines what travels: Job, how a job ended (Outcome, Answer), the states of a job.

Job -- to_text --> JSON in the queue -- from_text --> Job … Outcome -- reply --> the answer under the job's id
                                                                    -- to_dead_letter --> a job that failed for good

An answer's text is one of

    [{"label": …, "probability": …}, …]      predictions, likeliest first
    {"error": "…"}                           a failure, told with the HTTP status 500
    {"error": "…", "status": 503}            … or with another one

A job with `index` gets {"index": …}, the class, in each prediction as well. What travels beside the text (Answer.about)
is what served.Served.about tells of the model server: {"model": "…", "version": "…", "precision": "…", …}, with a
"warning" if the model has random weights; and "model_ms", for how many milliseconds the model had the batch. Earlier
releases write the warning into the text: {"predictions": […], "warning": "…"}.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from serving.errors import BadJob

MOST_AXES, LONGEST_AXIS = 4, 65_535  # of an image's shape
MOST_REASON_CHARACTERS = 500
# Longer than a job of 2896×2896 pixels. In JSON a byte may become six, and Redis would refuse more than 85 MB of them.
MOST_DEAD_LETTER_BYTES = 32 * 1024 * 1024

EXPIRED = "The job expired: no model server came to it before its deadline. Send it again."

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # of W3C's Trace Context

_IMAGE = b', "image": "'


class Status(StrEnum):
    """The states of a job, as a client reads them."""

    QUEUED = "queued"  # it waits in the queue
    PROCESSING = "processing"  # a model server took it, and has not answered
    SUCCEEDED = "succeeded"  # its answer is there, or was read
    FAILED = "failed"  # the model failed on it, or nobody answered before its deadline
    CANCELED = "canceled"  # nobody waits for it any more


class Lane(StrEnum):
    """The two lists of a queue in which jobs wait, each with what belongs to it (see jobs.keys)."""

    PEOPLE = "people"  # jobs for which requests wait
    BULK = "bulk"  # asynchronous jobs

    @property
    def other(self) -> "Lane":
        """The other lane."""
        return Lane.BULK if self is Lane.PEOPLE else Lane.PEOPLE


@dataclass(frozen=True)
class Job:
    """One job as it travels. Only `id` and `image` are required; with just those it is the tutorial's own job."""

    id: str
    image: str  # base64 and nothing else, since `to_text` puts it into JSON as it is
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    deadline: float = math.inf  # unix seconds, by Redis's clock
    reply_to: str | None = None  # the channel that hears of the answer
    top: int | None = None  # how many predictions the answer holds, at least 1; None: as many as the model server says
    index: bool = False  # whether each prediction has the index of its class
    request_id: str | None = None  # of the HTTP request, for the log
    submitted_at: float | None = None  # unix seconds, by Redis's clock
    traceparent: str | None = None  # the span that submitted the job; None: nobody traces it

    def to_text(self) -> str:
        """Write the job as JSON, the id first, where the scripts look for it, and the long image last."""
        optional = {
            "dtype": self.dtype,
            "shape": self.shape,
            "deadline": None if self.deadline == math.inf else self.deadline,
            "reply_to": self.reply_to,
            "top": self.top,
            "index": self.index or None,
            "request_id": self.request_id,
            "submitted_at": self.submitted_at,
            "traceparent": self.traceparent,
        }
        given = {name: value for name, value in optional.items() if value is not None}
        # Base64 has nothing to escape, so no code need look at each character of the image.
        return f'{orjson.dumps({"id": self.id, **given}).decode()[:-1]}, "image": "{self.image}"}}'

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
            deadline = _read_seconds("deadline", fields)
            texts = {name: fields.get(name) for name in ("dtype", "reply_to", "request_id")}
            if not all(value is None or isinstance(value, str) for value in texts.values()):
                raise TypeError(f"{', '.join(texts)} are strings")
            if not isinstance(fields["image"], str):
                raise TypeError("image is a string")
            # The id becomes the name of a Redis key that is overwritten: it must not name any other key.
            if not _UUID.fullmatch(fields["id"]):
                raise ValueError("id is not a UUID")
            return cls(
                id=fields["id"],
                image=fields["image"],
                shape=None if fields.get("shape") is None else _read_shape(fields["shape"]),
                deadline=math.inf if deadline is None else deadline,
                top=_read_top(fields.get("top")),
                index=fields.get("index") is True,
                submitted_at=_read_seconds("submitted_at", fields),
                traceparent=_read_traceparent(fields.get("traceparent")),
                **texts,
            )
        except KeyError as error:
            raise BadJob(f"the job lacks the field {error.args[0]}") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise BadJob(f"the job has a wrong field: {error}") from error


def read_id(text: bytes) -> str | None:
    """The id of a job as it travels; None if the text is no job."""
    try:
        return Job.from_text(text).id
    except BadJob:
        return None


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


def _read_top(value: Any) -> int | None:
    if value is None or (type(value) is int and value >= 1):
        return value
    raise ValueError("top is a whole number, at least 1")


def _read_traceparent(value: Any) -> str | None:
    """The field if it is one; garbage in it costs a job its place in a trace, and no more."""
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else None


def _read_seconds(name: str, fields: Mapping[str, Any]) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) in (int, float) and math.isfinite(value):
        return float(value)
    raise ValueError(f"{name} is a finite number, in unix seconds")


@dataclass(frozen=True)
class Answer:
    """A model server's answer to one job: its text, JSON, and what travels beside it (see the head of this module)."""

    text: str
    about: Mapping[str, Any] = field(default_factory=dict)  # empty: the model server tells nothing


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
    model_ms: float | None = None  # how long the model had the batch; None: the model did not run the job
    lane: Lane = Lane.PEOPLE  # from which the job was taken
    is_canceled: bool = False  # dropped, because nobody wanted it any more

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

    def status_and_error(self) -> tuple[Status, str]:
        """The status with which an asynchronous job ends, and what is wrong with it, a sentence ("": nothing).

        A job that is dropped has expired. (One that was canceled ended with that; Redis leaves its status alone.)
        """
        if self.failure is None and self.answer is not None:
            return Status.SUCCEEDED, ""
        return Status.FAILED, EXPIRED if self.failure is None else self._reason()

    def to_dead_letter(self, clock: float) -> str:
        """The dead letter, JSON, of a job that failed at `clock`, unix seconds; without a lane it is people's."""
        job = self.text[:MOST_DEAD_LETTER_BYTES].decode("utf-8", "surrogateescape")
        lane = {"lane": self.lane} if self.lane is not Lane.PEOPLE else {}
        return json.dumps(
            {"id": self.job_id, "at": clock, "attempts": self.attempts, "reason": self._reason(), "job": job, **lane}
        )

    def _reason(self) -> str:
        return (self.failure or "")[:MOST_REASON_CHARACTERS]  # it may quote garbage of any length
