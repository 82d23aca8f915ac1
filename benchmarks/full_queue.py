"""A model server that never waits for work, against its model alone: what queue, decoding and answers cost it.

    python benchmarks/full_queue.py [--model ResNet50] [--runtime keras] [--rounds 3] [--seconds 15]

In turns: the model alone in batches of 32, one process without any server; then a real model server beside a Redis in
which jobs always wait. Random weights: they change no time.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from scaling import feed, private_redis, some_image  # noqa: E402

import settings  # noqa: E402
from serving.job_queue import JobQueue  # noqa: E402

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
    predict(pixels)
began = time.perf_counter()
while time.perf_counter() - began < seconds:
    predict(pixels)
    images += len(pixels)
print("RATE", images / (time.perf_counter() - began))
"""


def alone(environment: dict[str, str], seconds: float) -> float:
    command = [sys.executable, "-c", ALONE, str(ROOT), str(seconds)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return float(said.rsplit("RATE", 1)[1])


def fed(environment: dict[str, str], queue: JobQueue, image: str, seconds: float) -> float:
    """Images a second that a model server answers while jobs always wait."""
    server = subprocess.Popen(
        [sys.executable, ROOT / "run_model_server.py"], env=environment, stderr=subprocess.DEVNULL
    )
    stop = threading.Event()
    feeder = threading.Thread(target=feed, args=(queue, image, stop))
    try:
        until = time.monotonic() + START_SECONDS
        while not queue.live_workers():
            if server.poll() is not None or time.monotonic() > until:
                raise SystemExit("the model server does not start")
            time.sleep(0.2)
        feeder.start()
        time.sleep(SETTLE_SECONDS)
        before, began = int(queue.redis.get(queue.served) or 0), time.monotonic()
        time.sleep(seconds)
        return (int(queue.redis.get(queue.served) or 0) - before) / (time.monotonic() - began)
    finally:
        stop.set()
        if feeder.ident:
            feeder.join()
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
        queue.redis.flushall()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ResNet50")
    parser.add_argument("--runtime", default="keras", choices=["keras", "openvino"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15)
    options = parser.parse_args()
    image, rounds = some_image(), []
    with tempfile.TemporaryDirectory() as folder, private_redis(folder) as (url, _):
        model = {"MODEL": options.model, "MODEL_WEIGHTS": "random", "MODEL_LABELS": "numbers"}
        rest = {"MODEL_RUNTIME": options.runtime, "KERAS_HOME": folder, "LEASE_SECONDS": "60", "METRICS_PORT": "0"}
        environment = os.environ | model | rest | {"REDIS_URL": url, "RESULT_TTL_SECONDS": "1"}
        queue = JobQueue(url, settings.Settings().image_queue)
        for number in range(options.rounds):
            rounds.append((alone(environment, options.seconds), fed(environment, queue, image, options.seconds)))
            print(f"round {number + 1}: alone {rounds[-1][0]:.1f}/s, fed {rounds[-1][1]:.1f}/s", flush=True)
    share = median(served / by_itself for by_itself, served in rounds)
    print(f"a full queue against the model alone: {share:.3f} (median of {options.rounds} rounds)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
