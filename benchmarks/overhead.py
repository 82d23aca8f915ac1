"""What serving costs over the model itself: one request alone, 64 connections, a web process's memory and start.

    python benchmarks/overhead.py [--model ResNet50] [--rounds 3] [--photo photo.jpg] [--json figures.json]

Measured side by side in one run: the floor (decode a photo, predict, again and again in one process without any
server) in turns with one request after the other to the service, which is idle meanwhile; the model alone in batches
of 32, then the service under 64 connections. The weights are random: they change no time. Every figure is the median
of the rounds.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from serving.jobs.job_queue import JobQueue  # noqa: E402
from serving.local import redis_server  # noqa: E402
from serving.local.load_images import made_photo  # noqa: E402

# The floor, in a process of its own and without any server: the model as the model server loads and calls it, in
# batches of `size`; with a size of 1 each call comes after decoding a photo, as it does in the service.
FLOOR = """
import json, sys, time
import numpy as np
from serving.model import keras_models, keras_runtime
from serving.model.classifier import Classifier
from serving.model.labels import load_labels
from serving.model.spec import ModelSpec
from serving.images.decode import decode_image
name, size, seconds, photo = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), open(sys.argv[4], "rb").read()
network = keras_models.load_model(ModelSpec(name, "random", "numbers", width=224, height=224))
runtime = keras_runtime.KerasRuntime(network)
classifier = Classifier(runtime, load_labels("numbers", 1000), top=5, batch_size=size)
classifier.warm_up()
pixels = np.random.default_rng(0).integers(0, 256, (size, 224, 224, 3), dtype=np.uint8)
for _ in range(3):
    classifier.predict(pixels)
decode, predict, began = [], [], time.perf_counter()
while time.perf_counter() - began < seconds or len(predict) < 5:
    start = time.perf_counter()
    if size == 1:
        pixels = decode_image(photo, 224, 224, 50_000_000)[np.newaxis]
    decoded = time.perf_counter()
    classifier.predict(pixels)
    decode.append(decoded - start)
    predict.append(time.perf_counter() - decoded)
print(json.dumps([float(np.median(decode)), float(np.median(predict))]))
"""


def floor(name: str, size: int, seconds: float, image: Path) -> tuple[float, float]:
    """Seconds to decode a photo (size 1), and to predict a batch of `size`; medians."""
    command = [sys.executable, "-c", FLOOR, name, str(size), str(seconds), str(image)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    decode, predict = json.loads(ended.stdout.splitlines()[-1])
    return decode, predict


@contextlib.contextmanager
def service(name: str) -> Iterator[tuple[str, str, int, float]]:
    """Redis, a model server and a web server; gives the URL, that of the model server's metrics, the web server's
    process id, its start in seconds."""
    server = redis_server.find_server()
    if server is None:
        sys.exit("There is no Redis server here: see docs/settings.md.")
    redis_port, web_port, metrics_port = (redis_server.free_port() for _ in range(3))
    settings = {
        "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        "MODEL": name,
        "MODEL_RUNTIME": "keras",
        "MODEL_WEIGHTS": "random",
        "MODEL_LABELS": "numbers",
        "WEB_PORT": str(web_port),
        "METRICS_PORT": str(metrics_port),
    }
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())

        def start(*command: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                command, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.send_signal, signal.SIGTERM)
            return process

        start(*redis_server.command(server, redis_port, folder))
        time.sleep(0.5)
        start(sys.executable, str(ROOT / "run_model_server.py"))
        url = f"http://127.0.0.1:{web_port}"
        # Ready before the web server starts, whose own start is timed.
        wait_until(lambda: JobQueue(settings["REDIS_URL"], "image_queue").model_server_names(expired=False))
        began = time.perf_counter()
        web = start(sys.executable, str(ROOT / "run_web_server.py"))
        wait_until(lambda: is_up(f"{url}/healthz"))
        started_s = time.perf_counter() - began
        yield url, f"http://127.0.0.1:{metrics_port}/metrics", web.pid, started_s


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(12_000):
        if condition():
            return
        time.sleep(0.01)
    sys.exit("The service did not come up within two minutes.")


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def load(url: str, image: Path, requests: int, concurrency: int) -> dict[str, object]:
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, str(ROOT / "stress_test.py"), "--url", url, "--image", str(image)]
        command += ["--requests", str(requests), "--concurrency", str(concurrency), "--json", report.name]
        subprocess.run(command, check=True, capture_output=True)
        figures: dict[str, object] = json.loads(Path(report.name).read_text())
    return figures


def model_ms(metrics_url: str) -> tuple[float, float]:
    """What the model server has counted so far: milliseconds in the model, and batches."""
    with urllib.request.urlopen(metrics_url, timeout=5) as page:
        lines = dict(line.rsplit(" ", 1) for line in page.read().decode().splitlines() if line[0] != "#")
    return 1000 * float(lines["model_batch_seconds_sum"]), float(lines["model_batch_seconds_count"])


def resident_mb(master: int) -> float:
    """The largest web process, MB."""
    listed = subprocess.run(["ps", "-o", "rss=", "--ppid", str(master)], capture_output=True, text=True, check=True)
    return max(int(line) for line in listed.stdout.split()) / 1024


def one_round(name: str, image: Path) -> dict[str, float]:
    figures = {"floor_model_batch_32_per_s": 32 / floor(name, 32, 20, image)[1]}
    with service(name) as (url, metrics_url, web, started_s):
        figures["web_start_s"] = started_s
        # In turns, since the machine's speed drifts; while the floor is measured the service is idle.
        load(url, image, 20, 1)
        decodes, predicts, p50s, p99s, inside = [], [], [], [], []
        for _ in range(3):
            before = model_ms(metrics_url)
            alone = load(url, image, 100, 1)["latency_ms"]
            p50s.append(alone["p50"])  # type: ignore[index]
            p99s.append(alone["p99"])  # type: ignore[index]
            after = model_ms(metrics_url)
            inside.append((after[0] - before[0]) / (after[1] - before[1]))
            decode_s, predict_s = floor(name, 1, 8, image)
            decodes.append(1000 * decode_s)
            predicts.append(1000 * predict_s)
        figures |= {"floor_decode_ms": median(decodes), "floor_model_batch_1_ms": median(predicts)}
        figures |= {"alone_p50_ms": median(p50s), "alone_p99_ms": median(p99s), "model_in_service_ms": median(inside)}
        load(url, image, 128, 64)
        saturated = load(url, image, max(640, round(20 * figures["floor_model_batch_32_per_s"])), 64)
        figures["saturated_per_s"] = float(saturated["answered_per_s"])  # type: ignore[arg-type]
        figures["web_resident_mb"] = resident_mb(web)
    floor_ms = figures["floor_decode_ms"] + figures["floor_model_batch_1_ms"]
    figures["alone_over_floor_ms"] = figures["alone_p50_ms"] - floor_ms
    spent_ms = figures["floor_decode_ms"] + figures["model_in_service_ms"]
    figures["alone_over_decode_and_model_in_service_ms"] = figures["alone_p50_ms"] - spent_ms
    figures["saturated_of_floor"] = figures["saturated_per_s"] / figures["floor_model_batch_32_per_s"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ResNet50", help="of keras.applications (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--photo", type=Path, help="the photo to send (default: a 500x375 JPEG made here)")
    parser.add_argument("--json", type=Path, help="write the figures of every round to this file")
    arguments = parser.parse_args()
    with tempfile.NamedTemporaryFile(suffix=".jpg") as made:
        made.write(arguments.photo.read_bytes() if arguments.photo else made_photo(0))
        made.flush()
        rounds = []
        for number in range(arguments.rounds):
            rounds.append(one_round(arguments.model, Path(made.name)))
            print(
                f"round {number + 1}: {json.dumps({key: round(value, 3) for key, value in rounds[-1].items()})}",
                flush=True,
            )
    for key in rounds[0]:
        values = sorted(figures[key] for figures in rounds)
        print(f"{key:42} {median(values):10.3f}   ({values[0]:.3f} to {values[-1]:.3f})")
    if arguments.json:
        arguments.json.write_text(json.dumps(rounds, indent=1))


if __name__ == "__main__":
    main()
