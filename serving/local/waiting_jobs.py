"""What the operator's command says of the jobs that wait longest.

WaitingJob, … -- print_jobs --> a table
              -- as_json --> JSON
"""

import json
import math
from collections.abc import Sequence

from rich.filesize import decimal

from serving.jobs.job import Lane
from serving.jobs.peek import WaitingJob
from serving.local.printing import add_row, duration, new_table, show


def print_jobs(lane: Lane, count: int, jobs: Sequence[WaitingJob]) -> None:
    """Print a line for each job, and how many wait behind them."""
    if not jobs:
        print(f"No job waits in lane {lane}.")
        return
    names = ["id", "waits", "left", "size", "shape", "attempts", "request id"]
    problems = any(one.problem for one in jobs)  # of nearly no queue
    table = new_table(*names, *["problem"] * problems, right=names[1:4] + names[5:6], cut=("request id", "problem"))
    for one in jobs:
        job = one.job
        shape = None if job is None or job.shape is None else "×".join(map(str, job.shape))
        ages = [None if one.age_seconds is None else duration(one.age_seconds)]
        ages += [None if one.seconds_left == math.inf else duration(one.seconds_left)]
        row = [job and job.id, *ages, decimal(one.size_bytes), shape, one.attempts, job and job.request_id]
        add_row(table, *row, *[one.problem or None] * problems)
    show(table)
    if count > len(jobs):
        print(f"… and {count - len(jobs):,} more")


def as_json(lane: Lane, count: int, jobs: Sequence[WaitingJob]) -> str:
    """JSON: the lane, how many jobs wait in it, and its first ones; docs/operations.md tells the members."""
    told = [
        {
            **{"id": one.job and one.job.id, "request_id": one.job and one.job.request_id},
            **{"age_seconds": None if one.age_seconds is None else round(one.age_seconds, 3)},
            **{"seconds_left": None if one.seconds_left == math.inf else round(one.seconds_left, 3)},
            **{"size_bytes": one.size_bytes, "attempts": one.attempts},
            **{"shape": one.job and one.job.shape, "dtype": one.job and one.job.dtype},
            **{"problem": one.problem or None},
        }
        for one in jobs
    ]
    return json.dumps({"lane": lane, "waiting": count, "jobs": told}, indent=1)
