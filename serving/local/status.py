"""How the service is doing, as the operator's command tells it.

overview, redis_memory, judge --> Status -- as_view --> a screen; of several models one below the other
                                         -- as_line --> one line
                                         -- as_json --> JSON
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.text import Text

from serving.jobs.job import Lane
from serving.jobs.job_queue import JobQueue
from serving.jobs.overview import Overview, RedisMemory, ServerView, overview, redis_memory
from serving.jobs.verdict import Verdict, judge
from serving.local.models import joined, of_model
from serving.local.printing import add_row, duration, moment, new_table, printable
from serving.local.servers import members


@dataclass(frozen=True)
class Timeouts:
    """The settings by which a wait is too long, seconds."""

    request_seconds: float  # REQUEST_TIMEOUT_SECONDS
    job_seconds: float  # JOB_TIMEOUT_SECONDS


@dataclass(frozen=True)
class LaneNow:
    """A lane at a moment."""

    waiting: int
    oldest_seconds: float | None  # how long the oldest job has waited; None: none waits, or it does not tell
    in_hand: int
    settled_total: int  # jobs ever settled


@dataclass(frozen=True)
class Status:
    """The queue at a moment, and the verdict on it."""

    queue_name: str
    overview: Overview
    memory: RedisMemory
    verdict: Verdict


def read_status(queue: JobQueue, timeouts: Timeouts) -> Status:
    """Ask Redis, in two round trips. Raises QueueAway."""
    seen, memory = overview(queue), redis_memory(queue)
    return Status(queue.name, seen, memory, judge(seen, memory, timeouts.request_seconds, timeouts.job_seconds))


def read_statuses(queues: Mapping[str, JobQueue], timeouts: Timeouts) -> dict[str, Status]:
    """The status of each model by its name. Raises QueueAway."""
    return {name: read_status(queue, timeouts) for name, queue in queues.items()}


def are_well(statuses: Mapping[str, Status]) -> bool:
    """Whether nothing keeps jobs of any model from their answers."""
    return all(status.verdict.is_well for status in statuses.values())


def as_views(statuses: Mapping[str, Status]) -> RenderableType:
    """All of it for a screen, one model below the other."""
    first, *others = map(as_view, statuses.values())
    return Group(first, *(part for other in others for part in (Text(), other)))


def as_lines(statuses: Mapping[str, Status]) -> str:
    """The most of each on a line."""
    return "\n".join(of_model(name, statuses) + as_line(status) for name, status in statuses.items())


def all_as_json(statuses: Mapping[str, Status], indent: int | None = 1) -> str:
    """All of it as JSON; of several models an object that tells whether all are well, and then of each."""
    texts = {name: as_json(status, indent) for name, status in statuses.items()}
    return joined(texts, indent, well=are_well(statuses))


def as_view(status: Status) -> RenderableType:
    """All of it, for a screen."""
    verdict = status.verdict
    head = Text(f"{printable(status.queue_name)}  {moment(status.overview.at)}  ")
    head.append("well", "bold green") if verdict.is_well else head.append("not well", "bold red")
    findings = [
        Text(f"  {printable(one.text)}", style)
        for style, found in (("red", verdict.problems), ("yellow", verdict.notes))
        for one in found
    ]
    lanes = new_table("lane", *(right := ("waiting", "oldest", "in hand", "settled")), right=right)
    for name, lane in _lanes(status.overview).items():
        oldest = None if lane.oldest_seconds is None else duration(lane.oldest_seconds)
        add_row(lanes, name, f"{lane.waiting:,}", oldest, f"{lane.in_hand:,}", f"{lane.settled_total:,}")
    facts = new_table("", "", cut=("",))
    facts.show_header = False
    for fact in _facts(status):
        add_row(facts, *fact)
    return Group(head, *findings, Text(), lanes, Text(), facts)


def as_line(status: Status) -> str:
    """The most of it on one line."""
    now, lanes = status.overview, []
    for name, lane in _lanes(now).items():
        oldest = "" if lane.oldest_seconds is None else f" ({duration(lane.oldest_seconds)})"
        lanes.append(f"{name.value} {lane.waiting} waiting{oldest}, {lane.in_hand} in hand")
    counts = f"{now.view.answered_per_second:.1f}/s, model servers {len(now.servers)}, dead letters {now.dead_letters}"
    problems = ", ".join(problem.code for problem in status.verdict.problems)
    verdict = "well" if status.verdict.is_well else f"not well: {problems}"
    return f"{moment(now.at)}  {'; '.join([*lanes, counts])}; {verdict}"


def as_json(status: Status, indent: int | None = 1) -> str:
    """All of it as JSON; docs/operations.md tells the members. With `indent` None on one line."""
    now = status.overview
    told = {
        **{"queue": status.queue_name, "at": now.at, "well": status.verdict.is_well},
        **{"problems": [asdict(one) for one in status.verdict.problems]},
        **{"notes": [asdict(one) for one in status.verdict.notes]},
        **{"paused": now.is_paused, "paused_at": now.paused_at},
        **{"draining": now.is_draining, "draining_at": now.draining_at},
        "lanes": {name: asdict(lane) for name, lane in _lanes(now).items()},
        "dead_letters": now.dead_letters,
        "answered_per_second": now.view.answered_per_second,
        "last_minute": asdict(now.view.last_minute),
        "model_servers": members(now.servers),
        "redis": asdict(status.memory),
    }
    return json.dumps(told, indent=indent)


def _lanes(now: Overview) -> dict[Lane, LaneNow]:
    people_in_hand, bulk_oldest_seconds = now.in_flight - now.bulk_in_flight, now.oldest_bulk_waiting_seconds
    return {
        Lane.PEOPLE: LaneNow(now.waiting, now.oldest_waiting_seconds, people_in_hand, now.settled_total),
        Lane.BULK: LaneNow(now.bulk_waiting, bulk_oldest_seconds, now.bulk_in_flight, now.bulk_settled_total),
    }


def _facts(status: Status) -> list[tuple[str, str]]:
    now, minute, memory = status.overview, status.overview.view.last_minute, status.memory
    answers = f"{now.view.answered_per_second:.1f} a second; in the last minute {minute.answered:,}"
    answers += f", failed {minute.failed:,}"
    if minute.p50_ms is not None and minute.p99_ms is not None:
        answers += f", p50 {minute.p50_ms:.0f} ms, p99 {minute.p99_ms:.0f} ms"
    batches = "none in the last minute"
    if minute.batch_images_mean is not None:
        batches = f"{minute.batches:,} in the last minute, of {minute.batch_images_mean:.1f} images on average"
    used = "memory unknown" if memory.used_bytes is None else f"{decimal(memory.used_bytes)} in use"
    of = f" of {decimal(memory.limit_bytes)}" if memory.limit_bytes else ""
    stopped = (("paused", now.paused_at), ("draining", now.draining_at))
    return [
        *[(name, f"since {moment(at)}") for name, at in stopped if at is not None],
        ("answers", answers),
        ("batches", batches),
        ("model servers", _servers_in_words(now.servers)),
        ("dead letters", f"{now.dead_letters:,}"),
        ("Redis", f"{memory.version or 'of an unknown version'}, {used}{of}"),
    ]


def _servers_in_words(servers: Sequence[ServerView]) -> str:
    """How many there are of each model and version."""
    kinds = Counter(
        f"{server.served.name} {server.served.version}" if server.served else "one that does not tell"
        for server in servers
    )
    return ", ".join(f"{count} × {kind}" for kind, count in kinds.items()) or "none"
