"""What asynchronous jobs cost Redis: to submit, to cancel and to look at them, and their memory.

    python benchmarks/asynchronous_jobs.py [--jobs 1000] [--redis redis://localhost:6379/0]

The jobs are of 224×224 random pixels, in a queue of their own, which is emptied at the end. Nothing else should use
this Redis meanwhile.
"""

import argparse
import base64
import os
import random
import statistics
import sys
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving.jobs.async_jobs import AsyncJobs, Idempotency
from serving.jobs.job import Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.served import ServedNow

QUEUE = "benchmark_of_asynchronous_jobs"
WAIT_TOGETHER, CANCELED = 500, 100


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--redis", default="redis://localhost:6379/0")
    arguments = parser.parse_args()
    queue = JobQueue(arguments.redis, QUEUE, resend=True)
    jobs = AsyncJobs(queue, ServedNow(queue), most_waiting=arguments.jobs, timeout_seconds=600, result_ttl_seconds=600)
    memory, submits, ids = queue.redis.info("memory")["used_memory"], [], []
    for _ in range(arguments.jobs):
        job = Job(str(uuid.uuid4()), base64.b64encode(os.urandom(224 * 224 * 3)).decode(), "uint8", (224, 224, 3))
        began = time.perf_counter()
        ids.append(jobs.submit(job, Idempotency(uuid.uuid4().hex * 2, uuid.uuid4().hex * 2)).id)
        submits.append(time.perf_counter() - began)
    waiting = (queue.redis.info("memory")["used_memory"] - memory) / arguments.jobs
    before = eval_seconds(queue)
    for job_id in random.sample(ids, CANCELED):
        jobs.cancel(job_id)
    canceled = (eval_seconds(queue) - before) / CANCELED
    before = eval_seconds(queue)
    for _ in range(100):
        jobs.over(ids[:WAIT_TOGETHER])
    looked = (eval_seconds(queue) - before) / 100
    known = queue.redis.memory_usage(queue.keys.job(ids[0]))
    print(f"submit: {1000 * statistics.median(submits):.2f} ms a round trip")
    print(f"cancel: {1000 * canceled:.2f} ms of Redis's time, with the looks at what became of the jobs")
    print(f"a look at {WAIT_TOGETHER} jobs: {1000 * looked:.2f} ms of Redis's time")
    print(f"memory: {waiting:,.0f} bytes a job that waits, {known} of them the hash")
    queue.redis.unlink(*queue.redis.keys(f"*{QUEUE}*"))


def eval_seconds(queue: JobQueue) -> float:
    """For how long Redis has run scripts."""
    return float(queue.redis.info("commandstats").get("cmdstat_eval", {}).get("usec", 0)) / 1e6


if __name__ == "__main__":
    main()
