"""What all systems under test share: the very same function that decodes, the very same model, the same answer.

BENCH_MODEL says which model: a folder that holds one for OpenVINO, a name of keras.applications, `sleep 25` (a model
that sleeps 25 ms a batch), or nothing at all. BENCH_PRECISION says what OpenVINO computes in.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from serving.images.decode import decode_image
from serving.model.classifier import Classifier
from serving.model.openvino_runtime import OpenVinoRuntime
from serving.model.runtime import BatchShape, CompiledBatch, Runtime
from serving.model.spec import ModelSpec

SIDE, BATCH_SIZE = 224, 32
CPUS = len(os.sched_getaffinity(0))
PORT = int(os.environ.get("BENCH_PORT", "8000"))


class NoModel:
    """A runtime that computes nothing: five classes, equally likely. It may sleep so many seconds a batch."""

    input_shape = (SIDE, SIDE, 3)
    classes = 5

    def __init__(self, sleep_seconds: float = 0.0) -> None:
        self._sleep_seconds = sleep_seconds

    def compiled_batches(self, batch_size: int) -> list[CompiledBatch]:
        return [NoModelBatch(batch_size, self.classes, self._sleep_seconds)]


class NoModelBatch:
    """Sleeps, and answers any number of images alike."""

    def __init__(self, batch_size: int, classes: int, sleep_seconds: float) -> None:
        self.shape = BatchShape("no model", batch_size, piece_images=1)
        self._classes, self._sleep_seconds = classes, sleep_seconds

    def run(self, pixels: np.ndarray) -> np.ndarray:
        if self._sleep_seconds:
            time.sleep(self._sleep_seconds)
        return np.full((len(pixels), self._classes), 1 / self._classes, np.float32)


def runtime(threads: int = CPUS) -> Runtime:
    """What runs the model that BENCH_MODEL names, on so many CPUs."""
    wanted = os.environ.get("BENCH_MODEL", "")
    if not wanted:
        return NoModel()
    if wanted.startswith("sleep "):
        return NoModel(sleep_seconds=float(wanted.removeprefix("sleep ")) / 1000)
    if Path(wanted).is_dir():
        return OpenVinoRuntime(Path(wanted), precision=os.environ.get("BENCH_PRECISION", "auto"), threads=threads)
    from serving.model import keras_models, keras_runtime

    spec = ModelSpec(wanted, os.environ.get("BENCH_WEIGHTS", "random"), "numbers", width=SIDE, height=SIDE)
    return keras_runtime.KerasRuntime(keras_models.load_model(spec))


def for_model_server(_spec: ModelSpec) -> Runtime:
    """The same for this service's model server, which finds it by MODEL_RUNTIME=shared:for_model_server."""
    return runtime()


def classifier_of(chosen: Runtime) -> Classifier:
    """A runtime with labels, warmed up."""
    labels = [f"class {number}" for number in range(chosen.classes)]
    classifier = Classifier(chosen, labels, top=5, batch_size=BATCH_SIZE)
    classifier.warm_up()
    return classifier


def load(threads: int = CPUS) -> Classifier:
    """The model that BENCH_MODEL names, warmed up; `predict` maps (n, SIDE, SIDE, 3) uint8 to n lists of labels."""
    return classifier_of(runtime(threads))


def decode(upload: bytes) -> np.ndarray:
    """An image as it was uploaded -> (SIDE, SIDE, 3) uint8 0..255."""
    return decode_image(upload, SIDE, SIDE, 50_000_000)


def answer(predictions: list[dict[str, object]]) -> bytes:
    return json.dumps({"success": True, "predictions": predictions}).encode()


if __name__ == "__main__":
    # For models.kept: the compiled batches are measured and kept while nothing else runs, for those that have all CPUs
    # and for those that have one; the precision is printed.
    chosen = runtime()
    classifier_of(chosen)
    os.environ["BENCH_PRECISION"] = chosen.precision
    load(threads=1)
    print(chosen.precision)
