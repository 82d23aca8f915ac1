"""Whether the queue is well, and what an operator should know besides.

Overview, RedisMemory -- judge --> problems (one is enough: not well), notes
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serving.jobs.overview import Overview, RedisMemory

NEARLY_FULL = 0.8  # of Redis's memory


@dataclass(frozen=True)
class Finding:
    """What an operator should know."""

    code: str  # for machines: no release renames one
    text: str  # a sentence


@dataclass(frozen=True)
class Verdict:
    """What was found, worst first."""

    problems: Sequence[Finding]  # jobs are not taken, are refused, or will not be answered in time
    notes: Sequence[Finding]

    @property
    def is_well(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def judge(now: Overview, memory: RedisMemory, request_timeout_seconds: float, job_timeout_seconds: float) -> Verdict:
    """Judge what an overview tells, by the time that people's jobs and asynchronous jobs have until their deadline."""
    waits = (
        *_long_wait("oldest_waiting", "request", now.oldest_waiting_seconds, request_timeout_seconds),
        *_long_wait("oldest_bulk_waiting", "asynchronous job", now.oldest_bulk_waiting_seconds, job_timeout_seconds),
    )
    return Verdict([*_stops(now), *waits, *_memory_problems(memory)], [*_notes(now), *_memory_notes(memory)])


def _stops(now: Overview) -> Iterator[Finding]:
    """Why no job is taken, or accepted."""
    if now.is_paused:
        yield Finding("paused", "An operator paused the queue: no model server takes. `resume` ends it.")
    if now.is_draining:
        yield Finding("draining", "The queue is draining: web servers refuse what is new with 503. `resume` ends it.")
    # Only a model server with a lease keeps jobs in hand: where some lie, it was one that answered lately.
    if not now.servers and (now.in_flight or not now.view.answered_lately):
        yield Finding("no_model_server", "No model server lives: start one, or read the log of the last.")
    if now.servers and all(server.is_quiet for server in now.servers):
        yield Finding("all_quiet", "All model servers are quiet: none takes. `wake --all` ends it.")


def _long_wait(code: str, what: str, seconds: float | None, timeout_seconds: float) -> Iterator[Finding]:
    if seconds is not None and seconds > timeout_seconds / 2:
        share = f"more than half of the {timeout_seconds:g} s after which nobody waits for its answer"
        yield Finding(code, f"The oldest {what} has waited for {seconds:.0f} s, {share}.")


def _memory_problems(memory: RedisMemory) -> Iterator[Finding]:
    if _fullness(memory) >= 1:
        yield Finding("redis_full", "Redis's memory is full: it refuses jobs. Raise its maxmemory, or drain the queue.")


def _notes(now: Overview) -> Iterator[Finding]:
    if not now.servers and now.view.answered_lately and not now.in_flight:
        yield Finding("no_lease", "No model server has a lease, but an answer came within the last minute.")
    if now.dead_letters:
        letters = "job was given up" if now.dead_letters == 1 else "jobs were given up"
        yield Finding("dead_letters", f"{now.dead_letters} {letters}: `dead list` shows what failed.")
    quiet = [server for server in now.servers if server.is_quiet]
    if quiet and len(quiet) < len(now.servers):
        yield Finding("quiet", f"{len(quiet)} of {len(now.servers)} model servers are quiet: they take nothing.")
    if any(server.differs for server in now.servers):
        yield Finding("differs", "The model servers do not all serve the same: `servers` shows the difference.")
    if now.view.warning:
        yield Finding("model_warning", f"The answers say: {now.view.warning}")


def _memory_notes(memory: RedisMemory) -> Iterator[Finding]:
    if NEARLY_FULL <= (full := _fullness(memory)) < 1:
        yield Finding("redis_nearly_full", f"{full:.0%} of Redis's memory is in use; a full one refuses jobs.")


def _fullness(memory: RedisMemory) -> float:
    """Which share of its memory Redis uses; 0 where it does not tell, or has no limit."""
    return (memory.used_bytes or 0) / memory.limit_bytes if memory.limit_bytes else 0.0
