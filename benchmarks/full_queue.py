"""A model server that never waits for work, against its model alone: what queue, decoding and answers cost it.

    python benchmarks/full_queue.py [--model ResNet50] [--runtime keras] [--servers 1 2] [--rounds 3] [--seconds 15]

In turns: the model alone in full batches, one process without any server; then so many real model servers, on the one
GPU or the same cores, beside a Redis in which jobs always wait. Random weights: they change no time.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from scaling import end, feed, private_redis, rate_and_load, some_image  # noqa: E402

import settings  # noqa: E402
from serving.jobs.job_queue import JobQueue  # noqa: E402

START_SECONDS, SETTLE_SECONDS = 180, 3
# As the model server loads it, so that both have the same precision, ways and threads.
ALONE = """
import sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np, settings, run_model_server
config = settings.load()
predict = run_model_server.load_classifier(config)
pixels = np.random.default_rng(0).integers(0, 256, (config.batch_size, 224, 224, 3), dtype=np.uint8)
seconds, images = float(sys.argv[2]), 0
for _ in range(3):
    predict(pixels)()
began = time.perf_counter()
while time.perf_counter() - began < seconds:
    predict(pixels)()
    images += len(pixels)
print("RATE", images / (time.perf_counter() - began))
"""


def alone(environment: dict[str, str], seconds: float) -> float:
    command = [sys.executable, "-c", ALONE, str(ROOT), str(seconds)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return float(said.rsplit("RATE", 1)[1])


def keep_full(url: str, image: str) -> None:
    """What a feeding process does until it is ended."""
    feed(JobQueue(url, settings.Settings().image_queue), image, threading.Event())


def fed(
    environment: dict[str, str], url: str, redis_pid: int, image: str, servers: int, options: argparse.Namespace
) -> tuple[float, float]:
    """Images a second that so many model servers answer while jobs always wait, and how busy they keep Redis's core."""
    queue = JobQueue(url, settings.Settings().image_queue)
    command = [sys.executable, ROOT / "run_model_server.py"]
    started = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(servers)]
    feeders = [
        multiprocessing.Process(target=keep_full, args=(url, image), daemon=True) for _ in range(options.feeders)
    ]
    try:
        until = time.monotonic() + START_SECONDS
        while queue.live_model_servers() < servers:
            if any(server.poll() is not None for server in started) or time.monotonic() > until:
                raise SystemExit("a model server does not start")
            time.sleep(0.2)
        for feeder in feeders:
            feeder.start()
        time.sleep(SETTLE_SECONDS)
        return rate_and_load(queue, redis_pid, options.seconds)
    finally:
        for feeder in feeders:
            if feeder.pid:
                feeder.terminate()
                feeder.join()
        end(started)
        queue.redis.flushall()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ResNet50")
    parser.add_argument("--runtime", default="keras", choices=["keras", "openvino"])
    parser.add_argument("--servers", type=int, nargs="+", default=[1], help="how many model servers, each in turn")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--feeders", type=int, default=1, help="processes that bring jobs; one makes some 2,000 a second"
    )
    parser.add_argument("--redis-io-threads", type=int, default=1, help="Redis's io-threads (default: its own, 1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15)
    options = parser.parse_args()
    image, shares = some_image(), {servers: [] for servers in options.servers}
    threads = ["--io-threads", str(options.redis_io_threads), "--io-threads-do-reads", "yes"]
    with tempfile.TemporaryDirectory() as folder, private_redis(folder, *threads) as (url, redis_pid):
        model = {"MODEL": options.model, "MODEL_WEIGHTS": "random", "MODEL_LABELS": "numbers"}
        rest = {"MODEL_RUNTIME": options.runtime, "KERAS_HOME": folder, "LEASE_SECONDS": "60", "METRICS_PORT": "0"}
        rest |= {"BATCH_SIZE": str(options.batch_size), "REDIS_URL": url, "RESULT_TTL_SECONDS": "1"}
        environment = os.environ | model | rest
        for number in range(options.rounds):
            by_itself = alone(environment, options.seconds)
            print(f"round {number + 1}: alone {by_itself:.1f}/s", flush=True)
            for servers, found in shares.items():
                served, busy = fed(environment, url, redis_pid, image, servers, options)
                found.append(served / by_itself)
                print(f"  model servers {servers}: {served:.1f}/s, {busy:.0%} of a core in Redis", flush=True)
    for servers, found in shares.items():
        print(f"model servers {servers}: a full queue against the model alone: {median(found):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
