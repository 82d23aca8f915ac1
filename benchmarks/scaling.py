"""How far one Redis goes: jobs a second against the number of model servers, and what Redis itself can do.

    python benchmarks/scaling.py [--sleep-ms 25] [--seconds 10]

Model servers are the real ones, with a model that sleeps instead of computing; the jobs are real ones of 224×224
pixels, kept coming by this program, which reads no answers. "Redis alone" runs the scripts of submit, take and answer
one after the other, in batches of 32, without a model server: one core of Redis at its limit.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from systems import shared_model  # noqa: E402

import helpers  # noqa: E402
from serving.jobs.job import Job, Outcome  # noqa: E402
from serving.jobs.job_queue import JobQueue  # noqa: E402
from serving.jobs.model_side import ModelSide  # noqa: E402
from serving.local import redis_server  # noqa: E402

BATCH_SIZE, WAITING, TICKS = 32, 400, os.sysconf("SC_CLK_TCK")


def job_text(image: str) -> str:
    return Job(str(uuid.uuid4()), image, "uint8", (224, 224, 3)).to_text()


def cpu_seconds(pid: int | str) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def feed(queue: JobQueue, image: str, stop: threading.Event) -> None:
    while not stop.is_set():
        missing = WAITING - queue.waiting()
        if missing > 0:
            queue.redis.rpush(queue.name, *[job_text(image) for _ in range(min(missing, 64))])
        else:
            time.sleep(0.01)  # each look costs cores that the model is to have


def served_when_a_batch_ends(queue: JobQueue) -> int:
    """How many jobs have been served, just after there were fewer."""
    before = int(queue.redis.get(queue.keys.people.settled_total) or 0)
    while (served := int(queue.redis.get(queue.keys.people.settled_total) or 0)) == before:
        time.sleep(0.005)
    return served


def rate_and_load(queue: JobQueue, redis_pid: int, seconds: float) -> tuple[float, float]:
    """Jobs a second from the end of one batch to that of another, so many seconds later, and the share of a core that
    Redis spends. By the clock alone, a model of which few batches fit in would seem slower or faster by one of them."""
    served, spent, began = served_when_a_batch_ends(queue), cpu_seconds(redis_pid), time.monotonic()
    time.sleep(seconds)
    served = served_when_a_batch_ends(queue) - served
    took = time.monotonic() - began
    return served / took, (cpu_seconds(redis_pid) - spent) / took


def end(servers: list[subprocess.Popen]) -> None:
    """Stop model servers, all at once."""
    for server in servers:
        server.send_signal(signal.SIGTERM)
    for server in servers:
        server.wait(timeout=30)


def with_servers(count: int, queue: JobQueue, url: str, image: str, redis_pid: int, options: argparse.Namespace) -> str:
    environment = os.environ | {"REDIS_URL": url, "METRICS_PORT": "0", "RESULT_TTL_SECONDS": "1"}
    environment |= shared_model() | {"BENCH_MODEL": f"sleep {options.sleep_ms}"}
    command = [sys.executable, ROOT / "run_model_server.py"]
    quiet = subprocess.DEVNULL
    servers = [subprocess.Popen(command, env=environment, stderr=quiet, stdout=quiet) for _ in range(count)]
    stop = threading.Event()
    feeder = threading.Thread(target=feed, args=(queue, image, stop))
    try:
        while len(queue.model_server_names(expired=False)) < count:
            time.sleep(0.1)
        feeder.start()
        time.sleep(2)
        rate, busy = rate_and_load(queue, redis_pid, options.seconds)
    finally:
        stop.set()
        feeder.join()
        end(servers)
        queue.redis.flushall()
    most = count * BATCH_SIZE / options.sleep_ms * 1000
    return f"| {count} | {most:.0f}/s | {rate:.0f}/s | {busy:.0%} |"


def cost_alone(queue: JobQueue, image: str, redis_pid: int, seconds: float) -> tuple[float, float]:
    """Submit, take and answer batches as fast as one client can: Redis's core-ms a job, and its main thread's."""
    member = ModelSide(queue, lease_seconds=10, max_attempts=3, result_ttl_seconds=1).join()
    texts = [job_text(image) for _ in range(BATCH_SIZE)]
    parts = (f"{redis_pid}", f"{redis_pid}/task/{redis_pid}")  # all its threads, its first
    jobs, spent, began = 0, [cpu_seconds(part) for part in parts], time.monotonic()
    while time.monotonic() - began < seconds:
        for text in texts:  # one by one, as requests that come singly are
            queue.submit([text], 10_000)
        taken = member.take(BATCH_SIZE).jobs
        member.answer([Outcome(text, Job.from_text(text).id, answer="[]") for text in taken])
        jobs += len(taken)
    whole, main = (1000 * (cpu_seconds(part) - before) / jobs for part, before in zip(parts, spent, strict=True))
    member.leave()
    return whole, main


def redis_alone(queue: JobQueue, image: str, redis_pid: int, seconds: float) -> str:
    """What one core of Redis could do at the price of a job."""
    core_ms, size = cost_alone(queue, image, redis_pid, seconds)[0], len(job_text(image))
    return (
        f"Redis spends {core_ms:.2f} core-ms a job of {size:,} bytes: one core is good for "
        f"{1000 / core_ms:,.0f} jobs, {2 * size / core_ms / 1e3:,.0f} MB, a second (in and out)."
    )


@contextlib.contextmanager
def private_redis(folder: str, *options: str) -> Iterator[tuple[str, int]]:
    """A Redis of its own, with such options on its command line: its address and its process id."""
    server, port = redis_server.find_server(), redis_server.free_port()
    if server is None:
        raise SystemExit("no Redis server is installed")
    process = subprocess.Popen([*redis_server.command(server, port, folder), *options], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield f"redis://127.0.0.1:{port}/0", process.pid
    finally:
        process.terminate()
        process.wait()


def some_image() -> str:
    """224×224 pixels of noise, as they travel."""
    return helpers.encode_image(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8), "uint8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sleep-ms", type=float, default=25, help="a batch (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    image = some_image()
    with tempfile.TemporaryDirectory() as folder, private_redis(folder) as (url, redis_pid):
        queue = JobQueue(url, "image_queue")
        print(redis_alone(queue, image, redis_pid, options.seconds), flush=True)
        print("\n| model servers | at most | measured | a core of Redis |\n|---|---|---|---|")
        for count in (1, 2, 4, 8):
            print(with_servers(count, queue, url, image, redis_pid, options), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
