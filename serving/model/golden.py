"""Golden pictures: each compiled batch is checked with them before it serves.

pictures --> the model alone (classifier), or Keras (openvino_store) ------> right answers --.
pictures -- runs: full, in flight, padded --> a compiled batch --> its answers -- off_by --> close enough?
"""

from collections.abc import Iterator, Sequence

import numpy as np

from serving.errors import ModelUnavailable
from serving.model.runtime import BatchShape, CompiledBatch

PICTURES = 8
MOST_ALONE = 32  # images that go through the model while it runs pictures alone, each padded to what a batch takes
RUN_IN_FLIGHT = 2  # times a capacity; more would tell the same, and take longer
# How far a probability may be from the one of the picture alone. On a CPU Keras's batches are off by 0.000001 in
# float32 and 0.00001 in float16. Where a GPU has another way to compute each size, they are off by no more than the
# precision itself is.
TOLERANCE = {"float32": 0.001, "float16": 0.03, "bfloat16": 0.1}
TOLERANCE_OF_ANY = 0.1  # where a runtime tells no precision, or another one


def pictures(shape: Sequence[int]) -> np.ndarray:
    """(PICTURES, height, width, channels) uint8 0..255 with detail at every scale, the same ones each time."""
    height, width, channels = shape
    random = np.random.default_rng(0)
    rows, columns = np.arange(height), np.arange(width)
    scales = (2, 4, 8, 16, 32, 64)  # cells in a row, and in a column
    noise = [random.normal(0, 60 / np.sqrt(cells), (PICTURES, cells, cells, channels)) for cells in scales]
    golden = np.empty((PICTURES, height, width, channels), np.uint8)
    for number in range(PICTURES):  # one after the other: in float64 all of them would take a large part of the memory
        picture = np.full((height, width, channels), 128.0)
        for cells, of_all in zip(scales, noise, strict=True):
            picture += of_all[number][rows * cells // height][:, columns * cells // width]
        golden[number] = np.clip(picture, 0, 255)
    return golden


def alone(shape: BatchShape, golden: np.ndarray) -> Iterator[np.ndarray]:
    """Yield what the smallest compiled batch is to run: a blank image alone, then golden pictures, each alone.

    Alone is with nothing but blank images behind it, where the batch takes several: (shape.multiple, height, width,
    channels) uint8, in memory that the next one fills anew.
    """
    pixels = np.zeros((shape.multiple, *golden.shape[1:]), np.uint8)
    yield pixels
    for picture in golden[: max(2, MOST_ALONE // shape.multiple)]:
        pixels[0] = picture
        yield pixels


def runs(compiled: CompiledBatch, golden: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Run golden pictures as jobs come: as many as go in a call, then fewer in another order, padded if need be.

    Yields of each call which pictures it was, (n,) int, and what came out for them and for the padding behind them.

    Raises:
        ModelUnavailable: the compiled batch writes into its pixels.
        Whatever the compiled batch raises.
    """
    shape = compiled.shape
    most = shape.capacity * min(shape.in_flight, RUN_IN_FLIGHT)
    random = np.random.default_rng(most)
    order = np.concatenate([random.permutation(len(golden)) for _ in range(-(-most // len(golden)))])[:most]
    left_out = shape.multiple // 2 + (shape.multiple if most > shape.multiple else 0)
    fewer = order[::-1][: most - left_out] if left_out else order[:0]
    memory = np.empty((most, *golden.shape[1:]), np.uint8)  # one for all calls, as the inbox has it
    for which in (order, fewer) if len(fewer) else (order,):
        pixels = memory[: len(which) + -len(which) % shape.multiple]
        pixels[: len(which)], pixels[len(which) :] = golden[which], 0
        found = compiled.run(pixels)
        if not np.array_equal(pixels[: len(which)], golden[which]) or pixels[len(which) :].any():
            raise ModelUnavailable(f"MODEL_RUNTIME: run of {shape.name} writes into its pixels, and must not.")
        yield which, found


def off_by(found: np.ndarray, right: np.ndarray) -> float:
    """Return how far probabilities (n, classes) are from the right ones at most; NaN if one is not a number."""
    return float(np.abs(found - right).max())
