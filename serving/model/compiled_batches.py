"""Finds out which compiled batches run a count of images soonest.

batch_sizes --> a runtime compiles them -- time_of --> seconds of each -- soonest_done --> the plan for each count
"""

import time
from collections.abc import Mapping

import numpy as np

from serving.model.runtime import BatchShape, CompiledBatch

TIMED_IN_FLIGHT = 4  # times a capacity; more would tell the same, and take longer


def batch_sizes(most: int, factor: int = 2) -> list[int]:
    """Return 1, `factor`, its square, … and `most`: few sizes, since a framework compiles for each."""
    return [size for size in (factor**n for n in range(32)) if size < most] + [most]


def at_once(shape: BatchShape) -> int:
    """Return with how many images in one call a compiled batch is timed."""
    return shape.capacity * min(shape.in_flight, TIMED_IN_FLIGHT)


def time_of(compiled: CompiledBatch, input_shape: tuple[int, int, int], seconds: float = 0.0) -> float:
    """Return the seconds that a compiled batch takes for its capacity of images of `input_shape`.

    It has run before. The seconds are the best of two calls, and of as many more as fit into `seconds`, with several
    times the capacity where they may be in flight together.
    """
    images = at_once(compiled.shape)
    batch = np.zeros((images, *input_shape), np.uint8)
    best, until, times = float("inf"), time.perf_counter() + seconds, 0
    while times < 2 or time.perf_counter() < until:
        started = time.perf_counter()
        compiled.run(batch)
        best, times = min(best, time.perf_counter() - started), times + 1
    return best * compiled.shape.capacity / images


def soonest_done(seconds: Mapping[BatchShape, float], most: int) -> list[list[BatchShape]]:
    """For each count of images from 0 to `most`, return the shapes, largest first, that run it soonest.

    Where a call's time grows with its size, as on a CPU, 24 images go as 16 + 8; where a call's time hardly grows, as
    on a GPU, they are padded to 32.
    """
    parts = {shape: time for shape, time in seconds.items() if not shape.whole_batches_only} or dict(seconds)
    plan: list[list[BatchShape]] = [[]]
    total = [0.0]
    for count in range(1, most + 1):
        sums = {shape: time + total[max(count - shape.capacity, 0)] for shape, time in parts.items()}
        best = min(sums, key=sums.__getitem__)
        rest = plan[max(count - best.capacity, 0)]
        total.append(sums[best])
        plan.append(sorted([best, *rest], key=_largest_first))
    for shape in sorted(
        (shape for shape in seconds if shape.whole_batches_only), key=seconds.__getitem__, reverse=True
    ):
        for count in range(1, min(shape.capacity, most) + 1):
            if seconds[shape] < total[count]:
                plan[count] = [shape]
    return plan


def _largest_first(shape: BatchShape) -> tuple[int, str]:
    return -shape.capacity, shape.name
