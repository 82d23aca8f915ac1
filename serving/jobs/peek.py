"""A look at the jobs that wait longest, without their images.

a lane -- peek.lua: of each job its size, and what stands before its image --> WaitingJob
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serving.errors import BadJob
from serving.jobs.job import Job, Lane
from serving.jobs.job_queue import JobQueue
from serving.jobs.live_view import FIELDS_BYTES

# Each job of 200 kB costs Redis 0.05 ms, in which nobody else is served.
MOST_PEEKED = 100


@dataclass(frozen=True)
class WaitingJob:
    """One job that waits."""

    job: Job | None  # its image is left out: ""; None: this is no job
    size_bytes: int  # of the whole text, its image with it
    attempts: int  # how often it came back
    age_seconds: float | None  # None: it does not tell
    seconds_left: float  # until its deadline; infinite: it has none
    problem: str  # why this is no job; "": nothing


def peek(queue: JobQueue, lane: Lane, most: int) -> tuple[int, Sequence[WaitingJob]]:
    """How many jobs wait in a lane, and the first `most` of them, at most MOST_PEEKED. Raises QueueAway."""
    keys = queue.keys
    waiting = keys.lane(lane).waiting
    clock, count, told = queue.run("peek", [waiting, keys.attempts], [min(most, MOST_PEEKED), FIELDS_BYTES])
    jobs = zip(told[::3], told[1::3], told[2::3], strict=True)
    return count, [_waiting_job(float(clock), size, fields, attempts) for size, fields, attempts in jobs]


def _waiting_job(clock: float, size_bytes: int, fields: bytes, attempts: int) -> WaitingJob:
    try:
        if not fields:
            raise BadJob(f"no image begins within its first {FIELDS_BYTES:,} bytes")
        job = Job.from_text(fields + b'"image": ""}')
    except BadJob as error:
        return WaitingJob(None, size_bytes, attempts, None, math.inf, str(error))
    age = None if job.submitted_at is None else max(0.0, clock - job.submitted_at)
    return WaitingJob(job, size_bytes, attempts, age, job.deadline - clock, "")
