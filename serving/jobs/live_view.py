"""How the service is doing, over all web processes and model servers, in one look at Redis.

{Q}:seconds, the lists, the leases, what is served -- look.lua --> LiveView
"""

import functools
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.jobs.job_queue import JobQueue
from serving.jobs.live_counts import SLOTS, middle_ms
from serving.jobs.served import Served

MINUTE = 60  # seconds of which a look tells
RATE_SECONDS = 10
MOST_COUNTED = 2**53  # a greater number is garbage
# A job's image, 200 kB as a rule, stands behind its other fields.
FIELDS_BYTES = 2000
LOOK_ARGS = (SLOTS, MINUTE, FIELDS_BYTES)  # of look.lua
_SUBMITTED_AT = re.compile(rb'"submitted_at": ?([0-9.]{1,20})[,}]')
_BUCKET = re.compile("d-?[0-9]{1,3}")


@dataclass(frozen=True)
class Seconds:
    """What was counted in one second, or in several."""

    answered: int
    failed: int
    p50_ms: float | None  # of the answered; None: there are none
    p99_ms: float | None
    batches: int
    batch_images_mean: float | None  # None: there was no batch


NOTHING = Seconds(answered=0, failed=0, p50_ms=None, p99_ms=None, batches=0, batch_images_mean=None)


@dataclass(frozen=True)
class Second:
    """One second of the last minute."""

    at: int  # unix seconds
    waiting: int | None  # jobs that waited at its end; None: nothing happened in it
    counts: Seconds


@dataclass(frozen=True)
class ModelServer:
    """A model server that lives."""

    name: str  # in this view alone: its name in the queue tells its host
    served: Served | None  # None: it does not say


@dataclass(frozen=True)
class LiveView:
    """How the service is doing."""

    waiting: int
    bulk_waiting: int
    oldest_waiting_seconds: float | None  # None: none waits, or the oldest job does not tell
    answered_total: int
    answered_lately: bool  # within a minute; a model server of another make has no lease
    answered_per_second: float
    last_minute: Seconds
    seconds: Sequence[Second]  # oldest first
    model_servers: Sequence[ModelServer]
    is_paused: bool = False  # an operator has told model servers to take nothing
    is_draining: bool = False  # an operator has told web servers to accept nothing

    @property
    def is_served(self) -> bool:
        """Whether a model server lives, as far as one can see."""
        return bool(self.model_servers) or self.answered_lately

    @property
    def warning(self) -> str | None:
        """What the answers have to say of the model, if anything."""
        return next((one.served.warning for one in self.model_servers if one.served and one.served.warning), None)


def look(queue: JobQueue) -> LiveView:
    """Ask Redis how the service is doing, in one round trip. Raises QueueAway."""
    return read(queue, queue.run("look", look_keys(queue), LOOK_ARGS))


def look_keys(queue: JobQueue) -> list[str]:
    """The keys that look.lua reads."""
    keys = queue.keys
    lanes = [keys.people.waiting, keys.bulk.waiting, keys.people.settled_total]
    return [*lanes, keys.leases, keys.serves, keys.answered_at, keys.seconds, keys.paused, keys.draining]


def read(queue: JobQueue, reply: Sequence[Any]) -> LiveView:
    """What look.lua has returned."""
    clock, waiting, bulk_waiting, settled_total, oldest, answered_lately, paused, draining, texts, servers = reply
    now = float(clock)
    queue.set_clock(now)
    told = {second.at: (counts, second) for counts, second in map(_read, texts)}
    last = int(now) - 1  # it may still be told of
    minute = [told.get(at) or ({}, Second(at, None, NOTHING)) for at in range(last - MINUTE, last)]
    return LiveView(
        waiting=waiting,
        bulk_waiting=bulk_waiting,
        oldest_waiting_seconds=age(oldest, now),
        answered_total=settled_total,
        answered_lately=bool(answered_lately),
        answered_per_second=sum(second.counts.answered for _, second in minute[-RATE_SECONDS:]) / RATE_SECONDS,
        last_minute=summary([counts for counts, _ in minute]),
        seconds=[second for _, second in minute],
        model_servers=[
            ModelServer(hashlib.sha256(name).hexdigest()[:8], Served.from_text(text))
            for name, text in zip(servers[::2], servers[1::2], strict=True)
        ],
        is_paused=bool(paused),
        is_draining=bool(draining),
    )


def summary(seconds: Sequence[Mapping[str, int]]) -> Seconds:
    """The counts of several seconds in one."""
    sums: defaultdict[str, int] = defaultdict(int)
    for counts in seconds:
        for name, count in counts.items():
            sums[name] += count
    durations = sorted((int(name[1:]), count) for name, count in sums.items() if _BUCKET.fullmatch(name))
    batches = sums["batches"]
    return Seconds(
        answered=sums["answered"],
        failed=sums["failed"],
        p50_ms=quantile(durations, 0.5),
        p99_ms=quantile(durations, 0.99),
        batches=batches,
        batch_images_mean=round(sums["images"] / batches, 2) if batches else None,
    )


def quantile(durations: Sequence[tuple[int, int]], share: float) -> float | None:
    """The duration, milliseconds, within which this share was answered; None: nothing was.

    `durations` are buckets, shortest first, and how many answers each has.
    """
    rank, seen = math.ceil(share * sum(count for _, count in durations)), 0
    for bucket, count in durations:
        seen += count
        if seen >= rank:
            return round(middle_ms(bucket), 2)
    return None


@functools.lru_cache(maxsize=2 * MINUTE)  # most seconds of a look were in the one before, and read as then
def _read(text: bytes) -> tuple[Mapping[str, int], Second]:
    """The counts of one second, without what is no number; as of the second 0 if the text is something else."""
    try:
        told = json.loads(text).items()
        counts = {name: int(n) for name, n in told if isinstance(n, int | float) and abs(n) < MOST_COUNTED}
    except (AttributeError, ValueError, RecursionError):
        counts = {}
    return counts, Second(counts.get("at", 0), counts.get("waiting"), summary([counts]))


def age(job: bytes, now: float) -> float | None:
    """For how long a job has waited, seconds, by the beginning of its text; None: it does not tell."""
    found = _SUBMITTED_AT.search(job.partition(b'"image"')[0])
    try:
        return round(max(0.0, now - float(found[1])), 3) if found else None
    except ValueError:
        return None
