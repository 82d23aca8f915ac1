"""A model server that never waits for work: against its model alone, or against that of another checkout.

    python benchmarks/full_queue.py [--model ResNet50] [--runtime openvino] [--servers 1 2] [--rounds 3] [--seconds 15]
    python benchmarks/full_queue.py --beside ../before [--sleep-ms 10]

In turns: the model alone in full batches, one process without any server, or the other checkout's model servers; then
so many real model servers, on the one GPU or the same cores, beside a Redis in which jobs always wait. With --sleep-ms
a model that sleeps so long a batch takes the model's place. Random weights: they change no time.
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
from systems import shared_model  # noqa: E402

import settings  # noqa: E402
from serving.jobs.job_queue import JobQueue  # noqa: E402

START_SECONDS, SETTLE_SECONDS = 180, 3
# As the model server loads the model, so that both have the same precision, batch sizes and threads.
ALONE = """
import sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np, settings
from model_parts import model_spec
from serving.model.choose import load_classifier
(model,) = settings.load().models()
classifier = load_classifier(model_spec(model))
pixels = np.random.default_rng(0).integers(0, 256, (model.batch_size, 224, 224, 3), dtype=np.uint8)
def predict():
    return [classifier.answer(row) for row in classifier.probabilities(pixels)]
seconds, images = float(sys.argv[2]), 0
for _ in range(3):
    predict()
began = time.perf_counter()
while time.perf_counter() - began < seconds:
    images += len(predict())
print("RATE", images / (time.perf_counter() - began))
"""


def alone(environment: dict[str, str], seconds: float) -> float:
    """Images a second that the model alone does in one process."""
    command = [sys.executable, "-c", ALONE, str(ROOT), str(seconds)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return float(said.rsplit("RATE", 1)[1])


def keep_full(url: str, image: str) -> None:
    """What a feeding process does until it is ended."""
    feed(JobQueue(url, settings.Settings().image_queue), image, threading.Event())


def fed(
    root: Path, environment: dict[str, str], redis: tuple[str, int], image: str, servers: int, seconds: float
) -> tuple[float, float]:
    """Images a second that so many model servers of the checkout at `root` answer while jobs always wait, and the share
    of a core that Redis is busy. `redis` is its URL and its process id."""
    url, redis_pid = redis
    queue = JobQueue(url, settings.Settings().image_queue)
    command = [sys.executable, root / "run_model_server.py"]
    started = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(servers)]
    feeders = [
        multiprocessing.Process(target=keep_full, args=(url, image), daemon=True)
        for _ in range(int(environment["BENCH_FEEDERS"]))
    ]
    try:
        until = time.monotonic() + START_SECONDS
        while len(queue.model_server_names(expired=False)) < servers:
            if any(server.poll() is not None for server in started) or time.monotonic() > until:
                raise SystemExit("a model server does not start")
            time.sleep(0.2)
        for feeder in feeders:
            feeder.start()
        time.sleep(SETTLE_SECONDS)
        return rate_and_load(queue, redis_pid, seconds)
    finally:
        for feeder in feeders:
            if feeder.pid:
                feeder.terminate()
                feeder.join()
        end(started)
        queue.redis.flushall()


def environment_of(root: Path, options: argparse.Namespace, folder: str, url: str) -> dict[str, str]:
    """The settings of the model servers of the checkout at `root`."""
    which = {"MODEL": options.model, "MODEL_WEIGHTS": "random", "MODEL_LABELS": "numbers"}
    which |= {"MODEL_RUNTIME": options.runtime, "KERAS_HOME": folder}
    if options.sleep_ms is not None:
        which = shared_model(root) | {"BENCH_MODEL": f"sleep {options.sleep_ms}"}
    rest = {"BATCH_SIZE": str(options.batch_size), "LEASE_SECONDS": "60", "BENCH_FEEDERS": str(options.feeders)}
    return os.environ | which | rest | {"REDIS_URL": url, "RESULT_TTL_SECONDS": "1", "METRICS_PORT": "0"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ResNet50")
    parser.add_argument("--runtime", default="keras", choices=["keras", "openvino"])
    parser.add_argument("--sleep-ms", type=float, help="a model that sleeps so long a batch")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="of this service, in the model's place")
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
    with tempfile.TemporaryDirectory() as folder, private_redis(folder, *threads) as redis:
        here = environment_of(ROOT, options, folder, redis[0])
        for number in range(options.rounds):
            for servers, found in shares.items():
                if options.beside:
                    root = options.beside.absolute()
                    there = environment_of(root, options, folder, redis[0])
                    other, _ = fed(root, there, redis, image, servers, options.seconds)
                else:
                    other = alone(here, options.seconds)
                served, busy = fed(ROOT, here, redis, image, servers, options.seconds)
                found.append(served / other)
                rates = f"{options.beside or 'the model alone'} {other:.1f}/s, model servers {servers}: {served:.1f}/s"
                print(f"round {number + 1}: {rates}, {busy:.0%} of a core in Redis", flush=True)
    for servers, found in shares.items():
        what = f"against {options.beside or 'the model alone'}"
        print(f"model servers {servers}: a full queue {what}: {median(found):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
