"""Pixels in, likeliest labels out, by whatever runs the model: Keras (model.py) or OpenVINO (openvino_runtime.py).

n images --> the ways to run n images that are soonest done --> probabilities --> top --> labels
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serving.errors import ModelFailed, ModelUnavailable, OutOfMemory

TIMED_IN_FLIGHT = 4  # times a way's capacity; more would tell the same, and take longer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Way:
    """One way to run a model: a compiled batch size, or several at once.

    `run` maps exactly `capacity` images, (capacity, height, width, 3) uint8 0..255, to (capacity, classes) float32
    probabilities, or up to `in_flight` times as many in one call, which then wait for nothing but a free processor; or
    fewer, in whole pieces. It raises ModelFailed and OutOfMemory.
    """

    name: str
    capacity: int
    run: Callable[[np.ndarray], np.ndarray]
    in_flight: int = 1
    piece: int | None = None  # images; None: its capacity
    once: bool = False  # for a batch that it takes at one go, and for no part of a larger one


class Runtime(Protocol):
    """What runs a model."""

    input_shape: tuple[int, int, int]  # (height, width, 3)
    classes: int

    def ways(self, batch_size: int) -> list[Way]: ...


class Classifier:
    """A model with its labels; one thread may run it, while any other looks for the likeliest.

    Args:
        runtime: runs the model.
        labels: one for each class.
        top: how many predictions an answer holds.
        batch_size: the most images that `predict` is given.
    """

    def __init__(self, runtime: Runtime, labels: Sequence[str], *, top: int, batch_size: int) -> None:
        if len(labels) != runtime.classes:
            raise ModelUnavailable(
                f"There are {len(labels)} labels, but the model tells {runtime.classes} classes apart. "
                "Set MODEL_LABELS to a file with a label for each class, or to numbers."
            )
        self._shape = runtime.input_shape
        self._labels = labels
        self._top = min(top, runtime.classes)
        self._ways = runtime.ways(batch_size)
        self._plan = soonest_done(dict.fromkeys(self._ways, 1.0), batch_size)

    def warm_up(self) -> float:
        """Run every way once, check the output, time each; how long the slowest batch takes, in seconds.

        Raises:
            ModelUnavailable: a batch fails or does not fit, or the output is no probabilities.
        """
        seconds = {}
        for way in self._ways:
            log.info("warming up: %s", way.name)
            blank = np.zeros((way.capacity, *self._shape), dtype=np.uint8)
            try:
                probabilities = way.run(blank)
                seconds[way] = time_of(way, self._shape)
            except OutOfMemory as error:
                raise ModelUnavailable(
                    f"A batch of {way.capacity} does not fit into memory: set BATCH_SIZE lower."
                ) from error
            except ModelFailed as error:
                raise ModelUnavailable(f"The model fails on a blank image: {error.__cause__ or error}") from error
            if not np.allclose(probabilities.sum(axis=-1), 1, atol=0.01) or probabilities.min() < 0:
                raise ModelUnavailable("The model's output is no probabilities: it must end in a softmax.")
        self._plan = soonest_done(seconds, len(self._plan) - 1)
        return max(sum(seconds[way] for way in ways) for ways in self._plan)

    def predict(self, pixels: np.ndarray) -> list[list[dict[str, object]]]:
        """Classify pixels (n, height, width, 3) uint8 0..255, n from 1 to `batch_size`: `likeliest` of each.

        Raises:
            ModelFailed, OutOfMemory: as `probabilities` does.
        """
        return [self.likeliest(row) for row in self.probabilities(pixels)]

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Run the model on pixels (n, height, width, 3) uint8 0..255, n from 1 to `batch_size`.

        Returns (n, classes) float32, probabilities 0..1.

        Raises:
            ModelFailed: the framework failed, or a probability is not a number.
            OutOfMemory: this many images do not fit.
        """
        done, rows, plan = 0, [], self._plan[len(pixels)]
        while plan:
            way = plan[0]
            times = min(plan.count(way), way.in_flight)  # equal ones stand together
            part, plan = pixels[done : done + times * way.capacity], plan[times:]
            missing = -len(part) % (way.piece or way.capacity)
            if missing:
                part = np.concatenate([part, np.zeros((missing, *pixels.shape[1:]), np.uint8)])
            rows.append(way.run(part)[: len(part) - missing])
            done += len(part)
        probabilities = np.concatenate(rows)  # of a single part as well: its memory may be the runtime's
        if not np.isfinite(probabilities).all():
            raise ModelFailed("The model's answer on this image is not a number. It is kept as a dead letter.")
        return probabilities

    def likeliest(self, probabilities: np.ndarray) -> list[dict[str, object]]:
        """The `top` labels by `probabilities` (classes,) float32: {"label": str, "probability": float 0..1} each,
        likeliest first."""
        top = np.argpartition(-probabilities, self._top - 1)[: self._top]
        top = top[np.argsort(-probabilities[top], kind="stable")]
        return [{"label": self._labels[i], "probability": round(float(probabilities[i]), 6)} for i in top]


def batch_sizes(most: int, factor: int = 2) -> list[int]:
    """1, `factor`, its square, … and `most`: few, since a framework compiles for each."""
    return [size for size in (factor**n for n in range(32)) if size < most] + [most]


def time_of(way: Way, shape: tuple[int, int, int], seconds: float = 0.0) -> float:
    """The seconds that a way takes for its capacity of images of `shape` once it is warm.

    The best of two calls, and of as many more as fit into `seconds`; of several times the capacity where they may be in
    flight together.
    """
    times_capacity = min(way.in_flight, TIMED_IN_FLIGHT)
    batch = np.zeros((times_capacity * way.capacity, *shape), np.uint8)
    way.run(batch)
    best, until, times = float("inf"), time.perf_counter() + seconds, 0
    while times < 2 or time.perf_counter() < until:
        started = time.perf_counter()
        way.run(batch)
        best, times = min(best, time.perf_counter() - started), times + 1
    return best / times_capacity


def soonest_done(seconds: Mapping[Way, float], most: int) -> list[list[Way]]:
    """For each count of images from 0 to `most`: the ways, largest first, that run it soonest.

    Where a call's time grows with its size, as on a CPU, 24 images go as 16 + 8; where it hardly does, as on a GPU,
    they are padded to 32.
    """
    parts = {way: time for way, time in seconds.items() if not way.once} or seconds
    plan: list[list[Way]] = [[]]
    total = [0.0]
    for count in range(1, most + 1):
        best = min(parts, key=lambda way: parts[way] + total[max(count - way.capacity, 0)])
        rest = max(count - best.capacity, 0)
        total.append(parts[best] + total[rest])
        plan.append(sorted([best, *plan[rest]], key=lambda way: (-way.capacity, way.name)))
    for way in sorted((way for way in seconds if way.once), key=lambda way: -seconds[way]):
        for count in range(1, min(way.capacity, most) + 1):
            if seconds[way] < total[count]:
                plan[count] = [way]
    return plan


@contextlib.contextmanager
def translated(count: int) -> Iterator[None]:
    """A framework's errors while it runs `count` images -> ModelFailed, OutOfMemory."""
    try:
        yield
    except Exception as error:
        # Each framework has an exception of its own for it, and wording in common.
        text = f"{type(error).__name__} {error}".lower()
        words = ("resourceexhausted", "resource_exhausted", "outofmemory", "out of memory", "bad_alloc")
        if isinstance(error, MemoryError) or any(word in text for word in words):
            raise OutOfMemory(f"A batch of {count} does not fit into memory.") from error
        raise ModelFailed(
            f"The model failed on this image ({type(error).__name__}). It is kept as a dead letter."
        ) from error
