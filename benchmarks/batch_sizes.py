"""The model alone by batch size, one process without any server: what the model server would do if nothing else cost.

    KERAS_BACKEND=jax python benchmarks/batch_sizes.py [--model ResNet50] [--sizes 1 32 128 256] [--seconds 3]

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

from serving.model import keras_models, keras_runtime
from serving.model.spec import ModelSpec

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
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 32, 128, 256])
    parser.add_argument("--variables", action="store_true", help="on JAX: passed in, as those of a large model")
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    if options.variables:
        keras_runtime.MOST_CONSTANT_PARAMETERS = 0
    precision = os.environ.get("MODEL_PRECISION", "auto")
    spec = ModelSpec(options.model, "random", "numbers", width=SIDE, height=SIDE, precision=precision)
    network = keras_models.load_model(spec)
    runtime, random = keras_runtime.KerasRuntime(network), np.random.default_rng(0)
    where, backend = "a GPU" if keras_runtime.has_gpu() else "the CPU", keras_runtime.keras.backend.backend()
    print(f"{options.model} on {where} by Keras on {backend}, {keras_runtime.keras.config.dtype_policy().name}\n")
    print("| batch | first call | a batch | one at a time | two in flight |\n|---|---|---|---|---|")
    batches = {size: list(random.integers(0, 256, (3, size, SIDE, SIDE, 3), dtype=np.uint8)) for size in options.sizes}
    for size, images in batches.items():
        run, began = runtime.compiled_batches(size)[-1].run, time.perf_counter()
        run(images[0])
        first = time.perf_counter() - began
        one, two = (rate(run, images, options.seconds, threads) for threads in (1, 2))
        print(f"| {size} | {first:.1f} s | {1000 * size / one:.2f} ms | {one:.0f}/s | {two:.0f}/s |", flush=True)
    print("\n| batch | Keras's own |\n|---|---|")
    for size, images in batches.items():  # last: on JAX it takes the variables away from the others
        print(f"| {size} | {rate(network.predict_on_batch, images, options.seconds):.0f}/s |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
