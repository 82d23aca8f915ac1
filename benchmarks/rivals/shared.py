"""What all systems under test share: the very same function that decodes, the very same model, the same answer."""

import json
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from serving.images.decode import decode_image
from serving.model.classifier import Classifier
from serving.model.openvino_runtime import OpenVinoRuntime

SIDE, BATCH_SIZE = 224, 32
CPUS = len(os.sched_getaffinity(0))
PORT = int(os.environ.get("BENCH_PORT", "8000"))


class NoModel:
    """Costs nothing: what is left is serving."""

    def predict(self, pixels: np.ndarray) -> list[list[dict[str, object]]]:
        return [self.likeliest(row) for row in self.probabilities(pixels)]

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        return np.empty((len(pixels), 0), np.float32)

    def likeliest(self, _row: np.ndarray) -> list[dict[str, object]]:
        return [{"label": f"class {place}", "probability": 0.2} for place in range(5)]


def load(threads: int = CPUS) -> Classifier | NoModel:
    """The model in the folder BENCH_MODEL, as the service runs it, or by name; or, without, one that costs nothing."""
    wanted = os.environ.get("BENCH_MODEL")
    if not wanted:
        return NoModel()
    if not Path(wanted).is_dir():
        return by_keras(wanted)
    # As it is with weights that mean something: in bfloat16 MobileNetV2's answers are too far from Keras's.
    runtime = OpenVinoRuntime(Path(wanted), precision="float32", threads=threads)
    classifier = Classifier(runtime, runtime.labels, top=5, batch_size=BATCH_SIZE)
    classifier.warm_up()
    return classifier


def by_keras(name: str) -> Classifier:
    """A model of keras.applications with random weights on KERAS_BACKEND, in the service's precision."""
    from serving.model import keras_runtime

    runtime = keras_runtime.KerasRuntime(
        keras_runtime.load_model(name, "random", width=SIDE, height=SIDE, precision="auto")
    )
    classifier = Classifier(
        runtime, keras_runtime.load_labels("numbers", runtime.classes), top=5, batch_size=BATCH_SIZE
    )
    classifier.warm_up()
    return classifier


def decode(upload: bytes) -> np.ndarray:
    return decode_image(upload, SIDE, SIDE, 50_000_000)


def answer(predictions: list[dict[str, object]]) -> bytes:
    return json.dumps({"success": True, "predictions": predictions}).encode()
