"""What an operator sees of the queue: both lanes, who holds what, and what the model servers differ in.

both lanes, the leases, the processing lists, {Q}:quiet, what look.lua reads -- overview.lua --> Overview
INFO --> RedisMemory
"""

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.jobs import live_view, redis_info
from serving.jobs.job_queue import JobQueue
from serving.jobs.live_view import LiveView
from serving.jobs.served import Served

MOST_DIGITS = 10  # of a process id
FIELDS = 6  # of a model server, in a reply of overview.lua
# What two model servers may differ in, and how an operator calls it.
DIFFERENCES = (
    *("name", "version", "precision", "runtime", "width", "height", "channels"),
    "labels_digest",
)


@dataclass(frozen=True)
class ServerView:
    """A model server that lives."""

    name: str  # as in the queue
    host: str
    process_id: int  # 0: the name does not tell
    served: Served | None  # None: it does not say
    in_hand: int  # jobs of people that it has taken and not yet settled
    bulk_in_hand: int
    lease_seconds_left: float
    is_quiet: bool
    differs: str  # what it serves otherwise than most model servers, in words; "": nothing


@dataclass(frozen=True)
class Overview:
    """The queue at a moment."""

    at: float  # unix seconds, by Redis's clock
    waiting: int
    bulk_waiting: int
    oldest_waiting_seconds: float | None  # None: none waits, or the oldest job does not tell
    oldest_bulk_waiting_seconds: float | None
    in_flight: int  # jobs of both lanes that are taken and not yet settled, those of dead model servers too
    bulk_in_flight: int
    dead_letters: int
    is_paused: bool
    is_draining: bool
    paused_at: float | None  # unix seconds, by Redis's clock
    draining_at: float | None
    settled_total: int  # people's jobs ever settled
    bulk_settled_total: int
    servers: Sequence[ServerView]
    view: LiveView  # what GET /state tells


@dataclass(frozen=True)
class RedisMemory:
    """What a Redis tells of itself; None where it does not tell, or the user may not ask."""

    version: str | None
    used_bytes: int | None
    limit_bytes: int | None  # None: there is no limit, too


def overview(queue: JobQueue) -> Overview:
    """Ask Redis for all of it, in one round trip. Raises QueueAway."""
    return overviews([queue])[0]


def overviews(queues: Sequence[JobQueue]) -> list[Overview]:
    """The same of several queues, of one Redis, in their order: all in one round trip. Raises QueueAway."""
    replies = queues[0].run_in_turn([_look(queue) for queue in queues])
    return [_read(queue, reply) for queue, reply in zip(queues, replies, strict=True)]


def _look(queue: JobQueue) -> tuple[str, Sequence[str], Sequence[Any]]:
    """The script, its keys and its arguments."""
    keys = queue.keys
    return (
        "overview",
        [*live_view.look_keys(queue), keys.bulk.settled_total, keys.dead, keys.quiet],
        [*live_view.LOOK_ARGS, keys.people.all_processing, keys.bulk.all_processing],
    )


def _read(queue: JobQueue, told: Sequence[Any]) -> Overview:
    """What overview.lua has returned."""
    reply, oldest_bulk, bulk_settled_total, dead_letters, of_servers = told
    view, now = live_view.read(queue, reply), float(reply[0])
    rows = [of_servers[start : start + FIELDS] for start in range(0, len(of_servers), FIELDS)]
    alive = [row for row in rows if float(row[1]) > 0]
    bulk_in_flight = sum(row[3] for row in rows)
    return Overview(
        at=now,
        waiting=view.waiting,
        bulk_waiting=view.bulk_waiting,
        oldest_waiting_seconds=view.oldest_waiting_seconds,
        oldest_bulk_waiting_seconds=live_view.age(oldest_bulk, now),
        in_flight=sum(row[2] for row in rows) + bulk_in_flight,
        bulk_in_flight=bulk_in_flight,
        dead_letters=dead_letters,
        is_paused=view.is_paused,
        is_draining=view.is_draining,
        paused_at=_moment(reply[6]),
        draining_at=_moment(reply[7]),
        settled_total=view.answered_total,
        bulk_settled_total=bulk_settled_total,
        servers=_servers(alive),
        view=view,
    )


def redis_memory(queue: JobQueue) -> RedisMemory:
    """Ask Redis for its version and its memory. Raises QueueAway."""
    info = queue.redis.told()
    limit = info.get("maxmemory")
    return RedisMemory(redis_info.told_version(info), info.get("used_memory"), limit or None)


def _servers(rows: Sequence[Sequence[Any]]) -> list[ServerView]:
    """Model servers of rows as overview.lua returns them."""
    serves = [Served.from_text(text) for *_, text in rows]
    usual = _usual([served for served in serves if served is not None])
    return [
        ServerView(
            *_name_and_process(name),
            served=served,
            in_hand=in_hand,
            bulk_in_hand=bulk_in_hand,
            lease_seconds_left=float(seconds),
            is_quiet=bool(is_quiet),
            differs=_difference(served, usual),
        )
        for (name, seconds, in_hand, bulk_in_hand, is_quiet, _), served in zip(rows, serves, strict=True)
    ]


def _name_and_process(name: bytes) -> tuple[str, str, int]:
    """The name of a model server, its host and its process id: see jobs.leases."""
    text = name.decode(errors="replace")
    host, _, rest = text.partition(":")
    process_id, _, _ = rest.partition(":")
    is_number = process_id.isdecimal() and len(process_id) <= MOST_DIGITS
    return text, host, int(process_id) if is_number else 0


def _usual(serves: Sequence[Served]) -> Served | None:
    """What most model servers serve; the first of those that are as many."""
    count = Counter(served.to_text() for served in serves)
    return max(serves, key=lambda served: count[served.to_text()], default=None)


def _difference(served: Served | None, usual: Served | None) -> str:
    """What a model server serves otherwise than usual, in words."""
    if served is None or usual is None:
        return "" if usual is None else "does not tell what it serves"
    found = [
        f"{field.replace('_digest', '')} {getattr(served, field)} instead of {getattr(usual, field)}"
        for field in DIFFERENCES
        if getattr(served, field) != getattr(usual, field)
    ]
    return ", ".join(found)


def _moment(stamp: bytes) -> float | None:
    """Unix seconds; None: there are none, or somebody else has written something else."""
    with contextlib.suppress(ValueError):
        return moment if math.isfinite(moment := float(stamp)) else None
    return None
