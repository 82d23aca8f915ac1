"""The model server with faults on command: run_model_server.py, whose model does wrong what images and a file say.

    a batch of pixels -- marks, FAULTS --> sleep, die, hang, raise --> the real Keras model --> its answers

An image is marked by its pixel at the upper left. The file FAULTS is read anew for each batch; it is a JSON object with
`batch_seconds` (how much longer a batch takes), `image_seconds` (how much longer each image, when warming up as well)
and `most_images` (how many fit into memory). Errors are raised where the framework raises its own, so that
serving/model/keras_runtime.py has to understand them. What was computed is noted in a file beside FAULTS, named
computed.<process id>: three bytes an image, its colour beside the mark.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from chaos_load import MARKS

import run_model_server
from serving.batching.predictor import Write
from serving.model import keras_runtime

HANG_SECONDS = 3600


class Faults:
    """Stands around the classifier, to see whole batches, and inside it, to raise in the framework's place."""

    def __init__(self, orders: Path) -> None:
        self._orders = orders
        self._computed = orders.with_name(f"computed.{os.getpid()}")
        self._error: Exception | None = None

    def around(self, predict: Callable[[np.ndarray], Write]) -> Callable[[np.ndarray], Write]:
        def faulty(pixels: np.ndarray) -> Write:
            self._error = self._go_wrong(pixels)
            write = predict(pixels)
            with self._computed.open("ab") as file:
                file.write(pixels[:, 1, 1].tobytes())
            return write

        return faulty

    def inside(self, network: Any) -> Any:
        compute = network.predict_on_batch

        def predict_on_batch(batch: np.ndarray) -> np.ndarray:
            time.sleep(self._read_orders().get("image_seconds", 0) * len(batch))
            if self._error is not None:
                raise self._error
            return compute(batch)

        network.predict_on_batch = predict_on_batch
        return network

    def _read_orders(self) -> dict[str, float]:
        orders: dict[str, float] = json.loads(self._orders.read_text())
        return orders

    def _go_wrong(self, pixels: np.ndarray) -> Exception | None:
        """Do what is ordered; what is to be raised is returned. Pixels (n, height, width, 3) uint8 0..255."""
        orders = self._read_orders()
        marks = {tuple(pixel) for pixel in pixels[:, 0, 0].tolist()}
        time.sleep(orders.get("batch_seconds", 0))
        if MARKS["die"] in marks:
            os.kill(os.getpid(), signal.SIGKILL)
        if MARKS["hang"] in marks:
            time.sleep(HANG_SECONDS)
        if len(pixels) > orders.get("most_images", math.inf):
            from tensorflow.errors import ResourceExhaustedError

            return ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[...]")
        return RuntimeError("a marked image") if MARKS["raise"] in marks else None


def main() -> int:
    """As run_model_server.main, with the faults in place."""
    faults = Faults(Path(os.environ["FAULTS"]))
    load_model, load_classifier = keras_runtime.load_model, run_model_server.load_classifier
    keras_runtime.load_model = lambda *args, **options: faults.inside(load_model(*args, **options))
    run_model_server.load_classifier = lambda *args, **options: faults.around(load_classifier(*args, **options))
    return run_model_server.main()


if __name__ == "__main__":
    sys.exit(main())
