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
    """How many images a compiled batch takes at once; each compiled batch of a runtime has another shape.

    Args:
        name: for people.
        capacity: images that one call of `run` computes at the same time.
        in_flight: one call of `run` may get up to `in_flight × capacity` images. `run` starts all of them at once, and
            each part waits only for a free processor.
        piece_images: the number of images in a call is a multiple of this, and so is `capacity`. 0: a multiple of
            `capacity`.
        whole_batches_only: the plan uses the compiled batch only where it runs all images of a batch in one call.
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
        """Map pixels (n, height, width, channels) uint8 0..255, RGB or grey, to (n, classes) float32 0..1.

        One thread calls `run`, one call at a time; n is a multiple of `shape.multiple`, and at most `in_flight ×
        capacity`. The model's own normalisation is the runtime's business. The pixels may be a part of the memory that
        the next batch fills: `run` must not write to them, nor keep them. The next call may fill the returned array
        anew.

        Whatever is raised counts as a failure on these images: ModelFailed, or OutOfMemory where the error says so.
        """
        ...


class Runtime(Protocol):
    """Runs a model.

    It may have four more attributes, which its model server publishes: the texts `name` (its own), `precision`, and
    `version` (of the weights), and `independent`, true where each class has a probability of its own, so that they need
    not sum to 1. It may have two more for the warm-up: `tolerance`, a float, how far a probability of a batch may be
    from the one of the picture alone (without it golden.py says, by the precision), and `checks_itself`, True if
    `compiled_batches` itself compares each compiled batch with right answers.
    """

    input_shape: tuple[int, int, int]  # (height, width, 3 or 1); as the spec says, where it does
    classes: int

    def compiled_batches(self, batch_size: int) -> "list[CompiledBatch]":
        """Compile the model for the shapes worth having, so that any count of images up to `batch_size` can be run.

        One shape is enough: the caller runs several calls, and pads the last one.

        Raises:
            ModelUnavailable: the model cannot be compiled; the message says what to set.
        """
        ...


class Model(Protocol):
    """What the batching wing meets: see Classifier."""

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Map pixels (n, height, width, channels) uint8 0..255 to (n, classes) float32 0..1.

        Raises:
            ModelFailed: the framework failed on these images, or a probability is not a number.
            OutOfMemory: this many images do not fit into memory; half of them may.
        """
        ...

    def padding(self, images: int) -> int:
        """How many more images than these `probabilities` runs, since a compiled batch takes a fixed number of them."""
        ...

    def answer(self, probabilities: np.ndarray, *, top: int | None = None, index: bool = False) -> str:
        """Write the answer, JSON, from the probabilities (classes,) float32 of one image.

        It holds `top` predictions (None: as many as the settings say), with `index` each with the index of its class.
        """
        ...
