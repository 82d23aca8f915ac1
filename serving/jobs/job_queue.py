"""The queue that web servers and model servers share: its keys, its jobs, its verbs. `queue_client` (the web server's
side) and `queue_worker` (the model server's) speak through `JobQueue`; the connection is `redis_connection`'s.

Every key (Q is the queue's name; the braces put all but the answers into one slot of a Redis cluster):

    Q                       LIST    waiting jobs, JSON, oldest at the left         until taken
    {Q}:processing:<worker> LIST    jobs this model server took and has not settled until settled or returned
    {Q}:workers             ZSET    model server -> when its lease runs out        renewed by progress
    {Q}:attempts            HASH    job id -> how often it came back               until settled
    {Q}:dead                LIST    dead letters, JSON, newest at the right        capped at MOST_DEAD_LETTERS
    {Q}:settled             HASH    model server -> how many jobs it has settled   until it leaves or is given up
    {Q}:served              STRING  how many jobs were ever settled                for ever
    {Q}:emptied             STRING  when a model server last left no job waiting   for ever
    <job id>                STRING  the answer, JSON                               read once, or its time to live
    {Q}:answered:<web>      pub/sub answers just set, JSON: job id -> answer       -

Life of a job: submit -> waiting -- take --> processing -- settle --> answered, dead letter, or dropped.
If its worker's lease runs out it goes from processing back to the head of the queue. Each verb is atomic: one script
of serving/jobs/lua, or one transaction of a script and plain commands, which move the jobs themselves: a text of 200 kB
costs Redis a third of a millisecond whenever it enters Lua. Scripts travel whole (EVAL), so that a Redis that
restarted knows them as well.
"""

import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from serving.errors import BadJob
from serving.jobs.redis_url import SOCKET_TIMEOUT_SECONDS as SOCKET_TIMEOUT_SECONDS
from serving.jobs.redis_url import Command, check, open_redis
from serving.jobs.redis_url import translated as translated

MOST_DEAD_LETTERS = 200
CLOCK_GOOD_FOR_SECONDS = 60.0
MOST_AXES, LONGEST_AXIS = 4, 65_535  # of an image's shape

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_IMAGE = b', "image": "'

_LUA = Path(__file__).with_name("lua")
_COMMON = (_LUA / "common.lua").read_text()
# Without comments: Redis reads all of it each time.
_SCRIPTS = {
    path.stem: re.sub(r"^ *--.*\n|^\n", "", _COMMON + path.read_text(), flags=re.MULTILINE)
    for path in _LUA.glob("*.lua")
    if path.stem != "common"
}


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


class JobQueue:
    """A connection to the queue `name` in the Redis at `url`; safe to share between threads.

    With `resend` a command whose connection broke is sent once more: for the web server, where a job pushed twice
    is answered once. A worker must not: what a lost *take* moved, it would never hear of.

    Raises:
        QueueAway: `url` cannot be understood.
    """

    def __init__(
        self, url: str, name: str, *, resend: bool = False, timeout_seconds: float = SOCKET_TIMEOUT_SECONDS
    ) -> None:
        self.name = name
        self.workers, self.attempts, self.dead, self.settled, self.served, self.emptied = (
            f"{{{name}}}:{key}" for key in ("workers", "attempts", "dead", "settled", "served", "emptied")
        )
        self.redis = open_redis(url, resend=resend, timeout_seconds=timeout_seconds)
        # Redis's clock less this machine's monotonic one, and when that was found, by the latter; seconds.
        self._clock_offset, self._clock_heard = 0.0, -math.inf

    def processing(self, worker: str) -> str:
        return f"{{{self.name}}}:processing:{worker}"

    def channel(self, web: str) -> str:
        return f"{{{self.name}}}:answered:{web}"

    def connect(self) -> None:
        """Reach Redis, at start-up. Raises QueueAway, whose message says why, and what to set."""
        check(self.redis)

    def now(self, good_for_seconds: float = math.inf) -> float:
        """The time by Redis's clock, unix seconds: hosts whose own clocks differ agree on deadlines.

        Redis is asked only when what it last told is older than `good_for_seconds`, or if it was never heard.

        Raises:
            QueueAway: it had to be asked, and does not answer.
        """
        if time.monotonic() - self._clock_heard > good_for_seconds or self._clock_heard == -math.inf:
            with translated():
                seconds, microseconds = self.redis.time()
            self.set_clock(seconds + microseconds / 1e6)
        return time.monotonic() + self._clock_offset

    def set_clock(self, redis_seconds: float) -> None:
        """What a script told of Redis's clock, unix seconds."""
        self._clock_heard = time.monotonic()
        self._clock_offset = redis_seconds - self._clock_heard

    def run(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script of serving/jobs/lua in one round trip. Raises QueueAway."""
        with translated():
            return self.redis.exchange(_command(script, keys, args))[0]

    def submit(self, jobs: Sequence[str], most_waiting: int) -> Any:
        """Put jobs, as they travel, at the end of the queue, all in one round trip; what submit.lua returns.

        Where there is no room for all of them, the first ones are accepted. Raises QueueAway.
        """
        script = _command("submit", [self.name, self.served, self.emptied], [len(jobs), most_waiting])
        with translated():
            _, (_, reply) = self.redis.transact([("RPUSH", self.name, *jobs), script])
        return reply

    def move(
        self, processing: str, most: int, keep: Sequence[Any], wait_seconds: float = 0.0
    ) -> tuple[list[bytes], list[Any]]:
        """Move up to `most` jobs to the end of a processing list, in one transaction with keep.lua, which may put them
        back; with `wait_seconds`, wait for a first one.

        Returns the jobs that were moved, and what keep.lua, run with the arguments `keep`, returns. Raises QueueAway.
        """
        ahead = ("BLMOVE", self.name, processing, "LEFT", "RIGHT", wait_seconds) if wait_seconds > 0 else None
        moves = [("LMOVE", self.name, processing, "LEFT", "RIGHT")] * (most - (ahead is not None))
        keys = [self.name, processing, self.workers, self.attempts, self.emptied, self.settled]
        with translated():
            first, (*moved, reply) = self.redis.transact([*moves, _command("keep", keys, keep)], ahead)
        return [job for job in (first, *moved) if job is not None], reply  # b"" is a job as well, a bad one

    def waiting(self) -> int:
        """How many jobs wait. Raises QueueAway."""
        with translated():
            return int(self.redis.llen(self.name))

    def live_workers(self) -> int:
        """How many model servers hold a lease. Raises QueueAway."""
        return len(self.worker_names(expired=False))

    def worker_names(self, *, expired: bool) -> list[str]:
        """The model servers whose lease ran out, or those whose lease lives. Raises QueueAway."""
        clock = self.now(CLOCK_GOOD_FOR_SECONDS)
        low, high = ("-inf", f"({clock}") if expired else (f"{clock}", "+inf")
        with translated():
            names: Any = self.redis.zrangebyscore(self.workers, low, high)
        return [name.decode(errors="replace") for name in names]

    def close(self) -> None:
        self.redis.close()


def _command(script: str, keys: Sequence[str], args: Sequence[Any]) -> Command:
    return ("EVAL", _SCRIPTS[script], len(keys), *keys, *args)
