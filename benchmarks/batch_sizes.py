"""The model alone by batch size, one process without any server: what the model server would do if nothing else cost.

    KERAS_BACKEND=jax python benchmarks/batch_sizes.py [--model ResNet50] [--most 256] [--seconds 3]

On Keras, in the precision that MODEL_PRECISION says (auto: float16 on a GPU); random weights, which change no time.
"One at a time" is what the model server does: pixels to the device, the model, probabilities back. "Two in flight" has
two threads do so, so that one batch travels while another is computed. "Keras's own" is its predict_on_batch.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from serving import model

Run = Callable[[np.ndarray], np.ndarray]
SIDE = 224


def rate(run: Run, batches: list[np.ndarray], seconds: float, threads: int = 1) -> float:
    """Images a second."""
    for _ in range(3):
        run(batches[0])
    counts, until = [0] * threads, time.perf_counter() + seconds

    def work(place: int) -> None:
        while time.perf_counter() < until:
            run(batches[(counts[place] + place) % len(batches)])
            counts[place] += 1

    workers = [threading.Thread(target=work, args=(place,)) for place in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) * len(batches[0]) / (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ResNet50")
    parser.add_argument("--most", type=int, default=256, help="the largest batch (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    precision = os.environ.get("MODEL_PRECISION", "auto")
    network = model.load_model(options.model, "random", width=SIDE, height=SIDE, precision=precision)
    runtime, random = model.KerasRuntime(network), np.random.default_rng(0)
    where, backend = "a GPU" if model.has_gpu() else "the CPU", model.keras.backend.backend()
    print(f"{options.model} on {where} by Keras on {backend}, {model.keras.config.dtype_policy().name}\n")
    began = time.perf_counter()
    ways = runtime.ways(options.most)
    for way in ways:
        way.run(np.zeros((way.capacity, SIDE, SIDE, 3), np.uint8))
    print(f"All sizes compiled, or read from the cache, after {time.perf_counter() - began:.1f} s.\n")
    print("| batch | a batch | one at a time | two in flight |\n|---|---|---|---|")
    batches = {way: list(random.integers(0, 256, (3, way.capacity, SIDE, SIDE, 3), dtype=np.uint8)) for way in ways}
    for way, images in batches.items():
        one, two = (rate(way.run, images, options.seconds, threads) for threads in (1, 2))
        milliseconds = 1000 * way.capacity / one
        print(f"| {way.capacity} | {milliseconds:.2f} ms | {one:.0f}/s | {two:.0f}/s |", flush=True)
    print("\n| batch | Keras's own |\n|---|---|")
    for way in (ways[0], ways[-1]):  # last: on JAX it takes the variables away from the others
        own = rate(network.predict_on_batch, batches[way], options.seconds)
        print(f"| {way.capacity} | {own:.0f}/s |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
