"""Maps pixels to probabilities, and probabilities to an answer, by whatever runs the model.

n images --> the compiled batches that are soonest done with n --> probabilities --> the likeliest labels --> JSON
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from serving.errors import ModelFailed, ModelUnavailable, OutOfMemory
from serving.model.compiled_batches import soonest_done, time_of
from serving.model.failures import why
from serving.model.runtime import BatchShape, CompiledBatch, Runtime

RANDOM_WARNING = "The model has random weights: its predictions mean nothing. Set MODEL_WEIGHTS."
# Each framework has an exception of its own for it, and wording in common.
OUT_OF_MEMORY = ("resourceexhausted", "resource_exhausted", "outofmemory", "out of memory", "bad_alloc")

log = logging.getLogger(__name__)


class Classifier:
    """A model with its labels; making one compiles the model. One thread may run it while another writes answers.

    Args:
        runtime: runs the model.
        labels: one for each class.
        top: how many predictions an answer holds.
        batch_size: the most images that `probabilities` is given.
        is_random: whether the weights are random; then `warning` says so.

    Raises:
        ModelUnavailable: the labels do not fit the model, or the model cannot be compiled.
        RuntimeUnsuitable: OpenVINO does not do for this model.
    """

    def __init__(
        self, runtime: Runtime, labels: Sequence[str], *, top: int, batch_size: int, is_random: bool = False
    ) -> None:
        if len(labels) != runtime.classes:
            raise ModelUnavailable(
                f"There are {len(labels)} labels, but the model tells {runtime.classes} classes apart. "
                "Set MODEL_LABELS to a file with a label for each class, or to numbers."
            )
        self.runtime, self.labels = runtime, labels
        height, width, channels = (int(length) for length in runtime.input_shape)  # of a runtime of your own, numpy's
        self.input_shape, self.batch_size = (height, width, channels), batch_size
        self.warning = RANDOM_WARNING if is_random else None  # what every answer has to say of the model
        self.slowest_batch_seconds, self._classes = 0.0, runtime.classes  # the seconds are known once it is warm
        self._top = min(top, runtime.classes)
        self._compiled = {compiled.shape: compiled for compiled in runtime.compiled_batches(batch_size)}
        self._plan = soonest_done(dict.fromkeys(self._compiled, 1.0), batch_size)

    def warm_up(self) -> None:
        """Run every compiled batch once, check its output, time it, and plan by these times.

        Raises:
            ModelUnavailable: a batch fails or does not fit, or the output is no probabilities.
        """
        seconds = {shape: self._warm_up(compiled) for shape, compiled in self._compiled.items()}
        self._plan = soonest_done(seconds, self.batch_size)
        self.slowest_batch_seconds = max(sum(seconds[shape] for shape in plan) for plan in self._plan)

    def _warm_up(self, compiled: CompiledBatch) -> float:
        capacity = compiled.shape.capacity
        log.info("warming up: %s", compiled.shape.name)
        try:
            with framework_errors(capacity):
                probabilities = compiled.run(np.zeros((capacity, *self.input_shape), dtype=np.uint8))
                seconds = time_of(compiled, self.input_shape)
        except OutOfMemory as error:
            raise ModelUnavailable(f"A batch of {capacity} does not fit into memory: set BATCH_SIZE lower.") from error
        except ModelFailed as error:
            raise ModelUnavailable(f"The model fails on a blank image: {why(error.__cause__ or error)}.") from error
        if probabilities.shape != (capacity, self._classes):
            raise ModelUnavailable(
                f"The model's output for {capacity} images has the shape {probabilities.shape}: it must be "
                f"({capacity}, {self._classes})."
            )
        if not np.isfinite(probabilities).all():
            raise ModelUnavailable("The model's output on a blank image is not a number: its weights may be damaged.")
        if not np.allclose(probabilities.sum(axis=-1), 1, atol=0.01) or probabilities.min() < 0:
            raise ModelUnavailable("The model's output is no probabilities: it must end in a softmax.")
        return seconds

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Run the model on pixels (n, height, width, 3) uint8 0..255, n from 1 to `batch_size`.

        Returns (n, classes) float32, probabilities 0..1, in memory of their own.

        Raises:
            ModelFailed: the framework failed, or a probability is not a number.
            OutOfMemory: this many images do not fit.
        """
        done, rows = 0, []
        for shape, images, missing in self._calls(len(pixels)):
            part = pixels[done : done + images]
            if missing:
                part = np.concatenate([part, np.zeros((missing, *pixels.shape[1:]), np.uint8)])
            with framework_errors(len(part)):
                rows.append(self._compiled[shape].run(part)[:images])
            done += images
        probabilities = np.concatenate(rows)  # of a single part as well: its memory may be the runtime's
        if not np.isfinite(probabilities).all():
            raise ModelFailed("The model's answer on this image is not a number. It is kept as a dead letter.")
        return probabilities

    def padding(self, images: int) -> int:
        """How many blank images `probabilities` runs beside so many, since a compiled batch takes a fixed number."""
        return sum(missing for _, _, missing in self._calls(images))

    def _calls(self, images: int) -> Iterator[tuple[BatchShape, int, int]]:
        """The calls of compiled batches that run so many images: which one, its images, and how many it lacks."""
        plan = self._plan[images]
        while plan:
            shape = plan[0]
            times = min(plan.count(shape), shape.in_flight)  # equal ones stand together
            part, plan = min(images, times * shape.capacity), plan[times:]
            yield shape, part, -part % shape.multiple
            images -= part

    def likeliest(
        self, probabilities: np.ndarray, *, top: int | None = None, index: bool = False
    ) -> list[dict[str, object]]:
        """Return the `top` labels by `probabilities` (classes,) float32 0..1, likeliest first.

        Each is {"label": str, "probability": float 0..1}, with `index` also {"index": int}, since labels may repeat.
        Without `top` it is the settings' TOP; more than there are classes means all of them.
        """
        count = min(top or self._top, self._classes)
        likeliest = np.argpartition(-probabilities, count - 1)[:count]
        likeliest = likeliest[np.argsort(-probabilities[likeliest], kind="stable")]
        found: list[dict[str, object]] = [
            {"label": self.labels[i], "probability": round(float(probabilities[i]), 6)} for i in likeliest
        ]
        if index:
            found = [entry | {"index": int(i)} for entry, i in zip(found, likeliest, strict=True)]
        return found

    def answer(self, probabilities: np.ndarray, *, top: int | None = None, index: bool = False) -> str:
        """Write a job's answer, `likeliest` as JSON, from the probabilities (classes,) float32 of one image."""
        likeliest = self.likeliest(probabilities, top=top, index=index)
        return json.dumps(likeliest, ensure_ascii=False, separators=(",", ":"))

    def predict(self, pixels: np.ndarray) -> list[list[dict[str, object]]]:
        """Classify pixels (n, height, width, 3) uint8 0..255, n from 1 to `batch_size`: `likeliest` of each.

        Raises:
            ModelFailed, OutOfMemory: as `probabilities` does.
        """
        return [self.likeliest(row) for row in self.probabilities(pixels)]


@contextlib.contextmanager
def framework_errors(images: int) -> Iterator[None]:
    """Map the errors of a framework that runs so many images to ModelFailed and OutOfMemory."""
    try:
        yield
    except ModelFailed:
        raise
    except Exception as error:
        text = f"{type(error).__name__} {error}".lower()
        if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
            raise OutOfMemory(f"A batch of {images} does not fit into memory.") from error
        raise ModelFailed(
            f"The model failed on this image ({type(error).__name__}). It is kept as a dead letter."
        ) from error
