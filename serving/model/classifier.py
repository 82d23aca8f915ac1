"""Maps pixels to probabilities, and probabilities to an answer, by whatever runs the model.

n images --> the compiled batches that are soonest done with n --> probabilities --> the likeliest labels --> JSON
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from serving.errors import ModelFailed, ModelUnavailable, OutOfMemory
from serving.model import golden
from serving.model.compiled_batches import at_once, soonest_done, time_of
from serving.model.failures import why
from serving.model.runtime import BatchShape, CompiledBatch, Runtime

RANDOM_WARNING = "The model has random weights: its predictions mean nothing. Set MODEL_WEIGHTS."
# Each framework has an exception of its own for it, and wording in common.
OUT_OF_MEMORY = ("resourceexhausted", "resource_exhausted", "outofmemory", "out of memory", "bad_alloc")

MOST_PROBABLE = 1.01  # with what bfloat16 rounds
LOGITS = (
    "Of a network of your own, set MODEL_ACTIVATION to softmax if they are logits; if the labels do not exclude each "
    "other, to sigmoid for logits, or to independent for probabilities."
)

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
            there = "is 1 label" if len(labels) == 1 else f"are {len(labels)} labels"
            raise ModelUnavailable(
                f"There {there}, but the model tells {runtime.classes} classes apart. "
                "Set MODEL_LABELS to a file with a label for each class, or to numbers."
            )
        self.runtime, self.labels = runtime, labels
        height, width, channels = (int(length) for length in runtime.input_shape)  # of a runtime of your own, numpy's
        self.input_shape, self.batch_size = (height, width, channels), batch_size
        self.warning = RANDOM_WARNING if is_random else None  # what every answer has to say of the model
        self.independent = bool(getattr(runtime, "independent", False))  # each class has a probability of its own
        self.slowest_batch_seconds, self._classes = 0.0, runtime.classes  # the seconds are known once it is warm
        self._top = min(top, runtime.classes)
        self._compiled = {compiled.shape: compiled for compiled in runtime.compiled_batches(batch_size)}
        self._plan = soonest_done(dict.fromkeys(self._compiled, 1.0), batch_size)

    def warm_up(self) -> None:
        """Check and time every compiled batch, and plan by these times.

        The smallest one runs golden pictures alone; each, with any number of them, has to give the same answers.

        Raises:
            ModelUnavailable: a batch fails, does not fit, or answers otherwise, or the output is no probabilities.
        """
        smallest_first = sorted(self._compiled.values(), key=_smallest_first)
        right, seconds = None, {}
        if not getattr(self.runtime, "checks_itself", False):
            pictures = golden.pictures(self.input_shape)
            right = self._answers_alone(smallest_first[0], pictures)
        for compiled in smallest_first:
            log.info("warming up: %s", compiled.shape.name)
            with _refusing(compiled.shape, "on a blank image" if right is None else f"in {compiled.shape.name}"):
                if right is None:
                    blank = np.zeros((at_once(compiled.shape), *self.input_shape), np.uint8)
                    self._check_output(compiled.run(blank), len(blank), "on a blank image")
                else:
                    self._check_answers(compiled, pictures[: len(right)], right)
                seconds[compiled.shape] = time_of(compiled, self.input_shape)
        self._plan = soonest_done(seconds, self.batch_size)
        self.slowest_batch_seconds = max(sum(seconds[shape] for shape in plan) for plan in self._plan)

    def _answers_alone(self, compiled: CompiledBatch, pictures: np.ndarray) -> np.ndarray:
        """The answers to golden pictures, each run alone, (n, classes) 0..1."""
        answers: list[np.ndarray] = []
        for pixels in golden.alone(compiled.shape, pictures):
            where = "on a picture" if answers else "on a blank image"
            with _refusing(compiled.shape, where):
                output = compiled.run(pixels)
            self._check_output(output, len(pixels), where)
            answers.append(output[0].copy())
        return np.stack(answers[1:])

    def _check_answers(self, compiled: CompiledBatch, pictures: np.ndarray, right: np.ndarray) -> None:
        """Raise ModelUnavailable if a compiled batch answers golden pictures otherwise than the model does alone."""
        precision = str(getattr(self.runtime, "precision", ""))
        tolerance = getattr(self.runtime, "tolerance", golden.TOLERANCE.get(precision, golden.TOLERANCE_OF_ANY))
        for which, output in golden.runs(compiled, pictures):
            self._check_output(output, len(which) + -len(which) % compiled.shape.multiple, f"in {compiled.shape.name}")
            difference = golden.off_by(output[: len(which)], right[which])
            if difference > tolerance:
                says = (
                    f"The model answers otherwise in {compiled.shape.name} than for each picture alone: a probability "
                    f"is off by {difference:.3g}, more than {tolerance:g}."
                )
                if self.warning is not None:  # a deep network that nobody has trained blows up what rounding loses
                    log.warning("%s Its weights are random, and it serves all the same.", says)
                    return
                until_then = "; BATCH_SIZE=1 may do until then" if compiled.shape.capacity > 1 else ""
                advice = f"mend the model or its runtime{until_then}."
                raise ModelUnavailable(f"{says} An answer must depend on its picture and nothing else: {advice}")

    def _check_output(self, probabilities: np.ndarray, images: int, where: str) -> None:
        """Raise ModelUnavailable if what came out for so many images are no probabilities; `where` is for people."""
        if probabilities.shape != (images, self._classes):
            raise ModelUnavailable(
                f"The model's output for {images} images has the shape {probabilities.shape}: it must be "
                f"({images}, {self._classes})."
            )
        if not np.isfinite(probabilities).all():
            raise ModelUnavailable(f"The model's output {where} is not a number: its weights may be damaged.")
        if probabilities.min() < 0 or probabilities.max() > MOST_PROBABLE:
            raise ModelUnavailable(f"The model's outputs are no probabilities: they are not between 0 and 1. {LOGITS}")
        if not self.independent and not np.allclose(probabilities.sum(axis=-1), 1, atol=0.01):
            raise ModelUnavailable(f"The model's outputs are no probabilities: they do not sum to 1. {LOGITS}")

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Run the model on pixels (n, height, width, channels) uint8 0..255, n from 1 to `batch_size`.

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
        """Classify pixels (n, height, width, channels) uint8 0..255, n from 1 to `batch_size`: `likeliest` of each.

        Raises:
            ModelFailed, OutOfMemory: as `probabilities` does.
        """
        return [self.likeliest(row) for row in self.probabilities(pixels)]


def _smallest_first(compiled: CompiledBatch) -> tuple[int, int]:
    return compiled.shape.multiple, compiled.shape.capacity


@contextlib.contextmanager
def _refusing(shape: BatchShape, where: str) -> Iterator[None]:
    """Map the errors of a framework to ModelUnavailable, which says that the model cannot serve."""
    try:
        with framework_errors(shape.capacity):
            yield
    except OutOfMemory as error:
        says = f"A batch of {shape.capacity} does not fit into memory: set BATCH_SIZE lower."
        raise ModelUnavailable(says) from error
    except ModelFailed as error:
        raise ModelUnavailable(f"The model fails {where}: {why(error.__cause__ or error)}.") from error


@contextlib.contextmanager
def framework_errors(images: int) -> Iterator[None]:
    """Map the errors of a framework that runs so many images to ModelFailed and OutOfMemory."""
    try:
        yield
    except (ModelFailed, ModelUnavailable):
        raise
    except Exception as error:
        text = f"{type(error).__name__} {error}".lower()
        if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
            raise OutOfMemory(f"A batch of {images} does not fit into memory.") from error
        raise ModelFailed(
            f"The model failed on this image ({type(error).__name__}). It is kept as a dead letter."
        ) from error
