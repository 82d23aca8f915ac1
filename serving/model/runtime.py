"""Defines what a model server asks of whatever runs a model: Runtime, CompiledBatch, and Model for the batching wing.

    ModelSpec --> Runtime -- compiled_batches --> CompiledBatch, … -- run --> probabilities
                  `--------------- Classifier, which is a Model ----------------> answers

A runtime of your own is a class that is called with a ModelSpec, MODEL_RUNTIME=package.module:Class (docs/settings.md).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class BatchShape:
    """How many images a compiled batch takes at once.

    Args:
        name: for people.
        capacity: images that one call of `run` computes at the same time.
        in_flight: `run` takes up to so many times its capacity in one call; each part waits for nothing but a free
            processor then.
        piece_images: `run` takes any multiple of it; 0: of its capacity.
        whole_batches_only: whether it may only run a whole batch, never a part of a larger one.
    """

    name: str
    capacity: int
    in_flight: int = 1
    piece_images: int = 0
    whole_batches_only: bool = False

    @property
    def multiple(self) -> int:
        """The number of images in a call is a multiple of this."""
        return self.piece_images or self.capacity


class CompiledBatch(Protocol):
    """A model that is compiled for one shape of batch."""

    @property
    def shape(self) -> BatchShape:
        """How many images `run` takes."""
        ...

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Map pixels (n, height, width, 3) uint8 0..255 to probabilities (n, classes) float32 0..1.

        The caller pads n to a multiple. The array that is returned may be filled anew by the next call.

        Raises:
            ModelFailed: the framework failed on these images.
            OutOfMemory: this many images do not fit into memory; half of them may.
        """
        ...


class Runtime(Protocol):
    """Runs a model."""

    input_shape: tuple[int, int, int]  # (height, width, 3)
    classes: int

    def compiled_batches(self, batch_size: int) -> "list[CompiledBatch]":
        """Compile the model for the shapes worth having, so that any count of images up to `batch_size` can be run.

        Raises:
            ModelUnavailable, RuntimeUnsuitable: the model cannot be compiled.
        """
        ...


class Model(Protocol):
    """What the batching wing meets: see Classifier."""

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Map pixels (n, height, width, 3) uint8 0..255 to (n, classes) float32 0..1.

        Raises:
            ModelFailed, OutOfMemory: as `run` of a compiled batch does.
        """
        ...

    def answer(self, probabilities: np.ndarray) -> str:
        """Write the answer, JSON, from the probabilities (classes,) float32 of one image."""
        ...
