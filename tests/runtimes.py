"""Runtimes that the tests plug into the real model server by MODEL_RUNTIME=runtimes:….

    MeanColour    tells four classes by an image's mean colour, as conftest.py's tiny Keras model does, without Keras
    MeanGrey      tells four classes by a grey image's mean brightness
    Faulty        as MeanColour, but its batches go wrong as images and a file say
    Ending        as MeanColour, but its process ends as it is loaded: status ENDS_WITH, on the METRICS_PORT ENDS_ON
    FaultyKeras   a real Keras model, whose batches go wrong likewise

An image is marked by its pixel at the upper left (chaos_load.MARKS). The file FAULTS is read anew for each batch; it is
a JSON object with `batch_seconds` (how much longer a batch takes), `image_seconds` (how much longer each image takes,
when warming up as well) and `most_images` (how many fit into memory). What was computed is noted in a file beside
FAULTS, named computed.<process id>: three bytes an image, its colour beside the mark.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from chaos_load import MARKS

from serving.model import golden
from serving.model.runtime import BatchShape, CompiledBatch
from serving.model.spec import ModelSpec

HANG_SECONDS = 3600
WEIGHTS = np.array([[9, 0, 0, 1], [0, 9, 0, 1], [0, 0, 9, 1]], np.float32)


class MeanColour:
    """A runtime with a single compiled batch, which takes any number of images."""

    classes = 4

    def __init__(self, spec: ModelSpec) -> None:
        self.input_shape = (spec.height, spec.width, 3)

    def compiled_batches(self, batch_size: int) -> list[CompiledBatch]:
        return [MeanColourBatch(batch_size)]


class MeanColourBatch:
    """Maps (n, height, width, 3) uint8 to (n, 4) float32 probabilities."""

    def __init__(self, batch_size: int) -> None:
        self.shape = BatchShape("mean colours", batch_size, piece_images=1)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        odds = np.exp((pixels.mean(axis=(1, 2), dtype=np.float32) / 255) @ WEIGHTS)
        probabilities: np.ndarray = odds / odds.sum(axis=1, keepdims=True)
        return probabilities


class Independent(MeanColour):
    """MeanColour, which says that its labels do not exclude each other."""

    independent = True


class MeanGrey:
    """A runtime of one channel; its classes are black, dark, bright and white."""

    classes = 4

    def __init__(self, spec: ModelSpec) -> None:
        self.input_shape = (spec.height, spec.width, 1)

    def compiled_batches(self, batch_size: int) -> list[CompiledBatch]:
        return [MeanGreyBatch(batch_size)]


class MeanGreyBatch:
    """Maps (n, height, width, 1) uint8 to (n, 4) float32 probabilities."""

    def __init__(self, batch_size: int) -> None:
        self.shape = BatchShape("mean brightness", batch_size, piece_images=1)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        brightness = pixels[..., 0].mean(axis=(1, 2), dtype=np.float32)[:, np.newaxis]
        odds = np.exp(-(((brightness - np.array([0, 85, 170, 255], np.float32)) / 32) ** 2))
        probabilities: np.ndarray = odds / odds.sum(axis=1, keepdims=True)
        return probabilities


class Faulty(MeanColour):
    """MeanColour, whose batches go wrong."""

    def compiled_batches(self, batch_size: int) -> list[CompiledBatch]:
        return [FaultyBatch(MeanColourBatch(batch_size), self.input_shape)]


class Ending(MeanColour):
    """MeanColour, whose process may end before it is ready."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        if os.environ.get("ENDS_ON", os.environ["METRICS_PORT"]) == os.environ["METRICS_PORT"]:
            print("the model has caught fire", file=sys.stderr, flush=True)
            os._exit(int(os.environ["ENDS_WITH"]))


class FaultyKeras:
    """A real Keras model, whose batches go wrong."""

    def __init__(self, spec: ModelSpec) -> None:
        from serving.model.keras_models import load_model
        from serving.model.keras_runtime import KerasRuntime

        self._keras = KerasRuntime(load_model(spec))
        self.input_shape, self.classes = self._keras.input_shape, self._keras.classes

    def compiled_batches(self, batch_size: int) -> list[CompiledBatch]:
        return [FaultyBatch(compiled, self.input_shape) for compiled in self._keras.compiled_batches(batch_size)]


class ResourceExhaustedError(Exception):
    """As TensorFlow names it."""


class FaultyBatch:
    """Sleeps, dies, hangs or raises, as a framework would; else runs the batch."""

    def __init__(self, compiled: CompiledBatch, input_shape: tuple[int, int, int]) -> None:
        self.shape, self._compiled = compiled.shape, compiled
        self._golden = {picture.tobytes() for picture in golden.pictures(input_shape)}
        self._orders = Path(os.environ["FAULTS"])
        self._computed = self._orders.with_name(f"computed.{os.getpid()}")

    def run(self, pixels: np.ndarray) -> np.ndarray:
        orders: dict[str, float] = json.loads(self._orders.read_text())
        time.sleep(orders.get("image_seconds", 0) * len(pixels))
        real = pixels[[image[1, 1].any() and image.tobytes() not in self._golden for image in pixels]]  # no padding
        if len(real):  # else the model server warms up, or looks for whom to blame on a blank image
            time.sleep(orders.get("batch_seconds", 0))
            self._go_wrong(real, orders.get("most_images", math.inf))
        probabilities = self._compiled.run(pixels)
        with self._computed.open("ab") as file:
            file.write(real[:, 1, 1].tobytes())
        return probabilities

    def _go_wrong(self, pixels: np.ndarray, most_images: float) -> None:
        marks = {tuple(pixel) for pixel in pixels[:, 0, 0].tolist()}
        if MARKS["die"] in marks:
            os.kill(os.getpid(), signal.SIGKILL)
        if MARKS["hang"] in marks:
            time.sleep(HANG_SECONDS)
        if len(pixels) > most_images:
            raise ResourceExhaustedError("OOM when allocating tensor with shape[...]")
        if MARKS["raise"] in marks:
            raise RuntimeError("a marked image")
