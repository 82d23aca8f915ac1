"""Runs a model on a CPU by OpenVINO, and checks that its answers are Keras's.

    <folder>/<key> (openvino_store) --> compiled, compared with the golden answers --> runs

A kept model starts without Keras, in a second or two: a model server that died is soon back.
"""

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import RuntimeUnsuitable
from serving.model import golden, openvino_store
from serving.model.compiled_batches import at_once, batch_sizes, soonest_done, time_of
from serving.model.runtime import BatchShape, CompiledBatch

MEASURE_SECONDS = 0.25  # each shape, at the first start
# How far a probability may be from Keras's in float32.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.02}
LARGEST_PIECE = 8  # images that one thread runs at once; where it was measured, 1 was the fastest
SHAPES_FORMAT = 4  # of the shapes that are kept, and of how they are measured

log = logging.getLogger(__name__)


class OpenVinoBatch:
    """A model compiled for pieces of so many images, several in flight together (see CompiledBatch)."""

    def __init__(self, shape: BatchShape, requests: list[Any]) -> None:
        self.shape = shape
        self._requests = requests  # one for each piece

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Map pixels (n, height, width, 3) uint8 to (n, classes) float32; all pieces are in flight together.

        Raises RuntimeError, as OpenVINO does.
        """
        size = self.shape.multiple
        requests = self._requests[: len(pixels) // size]
        for index, request in enumerate(requests):
            # Handed over as an array, it held the interpreter for a third of this process's Python time.
            request.get_input_tensor(0).data[:] = pixels[index * size : (index + 1) * size]
            request.start_async()
        failures = []
        for request in requests:
            try:
                request.wait()
            except Exception as error:  # the others are in flight yet, and must end before they start again
                failures.append(error)
        if failures:
            raise failures[0]
        probabilities: np.ndarray = np.concatenate([request.get_output_tensor(0).data for request in requests])
        return probabilities


class OpenVinoRuntime:
    """Runs a kept model.

    Args:
        folder: what `convert_and_store` wrote.
        precision: float32, bfloat16 (where the CPU has it in hardware, else float32), or auto: bfloat16 where its
            answers are close enough to Keras's, which `compiled_batches` finds out.
        threads: how many CPUs to use.

    Raises:
        RuntimeUnsuitable: what is kept cannot be read, or its answers are not Keras's.
    """

    name = "openvino"
    checks_itself = True

    def __init__(self, folder: Path, *, precision: str, threads: int) -> None:
        try:
            self._core = openvino_store.openvino().Core()
            has_bfloat16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        except Exception as error:  # a library that it lacks, a processor that it does not know, …
            raise RuntimeUnsuitable(f"OpenVINO does not start: {type(error).__name__}: {error}") from error
        try:
            self._network = self._core.read_model(folder / "model.xml")
            kept = json.loads((folder / "kept.json").read_text())
            self._golden_probabilities = np.load(folder / "golden.npy")
            self.input_shape, self.classes = tuple(kept["input_shape"]), kept["classes"]
            self.labels, self.version = kept["labels"], kept["version"]
            self.independent = bool(kept.get("independent"))  # what an earlier release kept does not say
        except Exception as error:  # whatever half a file may do to its reader
            raise RuntimeUnsuitable(f"what is kept in {folder} cannot be read: {error}") from error
        self.precision = "bfloat16" if has_bfloat16 and precision in ("auto", "bfloat16") else "float32"
        self._chooses_precision = precision == "auto"
        self._folder, self._threads = folder, threads

    def compiled_batches(self, batch_size: int) -> list[CompiledBatch]:
        """Compile for the shapes worth having, which the first start measures and keeps; each agrees with Keras.

        Raises:
            RuntimeUnsuitable: one cannot be compiled, fails, or does not agree.
        """
        if self._chooses_precision and self.precision == "bfloat16":
            try:
                return self._compile_all(batch_size)
            except RuntimeUnsuitable as error:
                log.info("%s: float32 instead", error)
            self.precision = "float32"  # only here, where what was compiled in bfloat16 is gone
        return self._compile_all(batch_size)

    def _compile_all(self, batch_size: int) -> list[CompiledBatch]:
        compiled: list[CompiledBatch] = []
        try:
            for streams, size in self._kept_sizes(batch_size):
                compiled.append(self._compile(streams, size, batch_size))
                self._check(compiled[-1])  # before the next is compiled, which takes a while
        except RuntimeUnsuitable:
            raise
        except Exception as error:
            raise RuntimeUnsuitable(f"OpenVINO fails: {error}") from error
        return compiled

    def _kept_sizes(self, batch_size: int) -> list[tuple[int, int]]:
        cpu = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        measured_for = f"{SHAPES_FORMAT}: {cpu}, {self._threads} threads, up to {batch_size}, {self.precision}"
        path = self._folder / f"shapes-{hashlib.sha256(measured_for.encode()).hexdigest()[:16]}.json"
        try:
            return [(int(streams), int(size)) for streams, size in json.loads(path.read_text())]
        except (OSError, ValueError):
            found = self._measure(batch_size)
            _write(path, json.dumps(found).encode())
            return found

    def _measure(self, batch_size: int) -> list[tuple[int, int]]:
        """(streams, images for each) of the shapes that any count of images would go by."""
        few = [(streams, 1) for streams in sorted({1, max(1, self._threads // 4)}) if streams < self._threads]
        many = [(self._threads, size) for size in batch_sizes(min(batch_size, LARGEST_PIECE))]
        fitting = [(streams, size) for streams, size in many if size == 1 or streams * size <= batch_size]
        seconds, of = {}, {}
        for streams, size in few + fitting:
            log.info("measuring: %d × batches of %d", streams, size)
            compiled = self._compile(streams, size, batch_size)
            compiled.run(np.zeros((at_once(compiled.shape), *self.input_shape), np.uint8))
            seconds[compiled.shape] = time_of(compiled, self.input_shape, MEASURE_SECONDS)
            of[compiled.shape] = (streams, size)
        return sorted({of[shape] for shapes in soonest_done(seconds, batch_size) for shape in shapes})

    def _compile(self, streams: int, size: int, batch_size: int) -> OpenVinoBatch:
        """Compile for pieces of `size` images, of which each stream takes the next one as soon as it is free.

        With fewer streams than threads several threads share a piece. That is soonest done while nothing else runs, and
        is left to batches of few images: under load the web server's processes run on the same processors, and threads
        that share a piece wait for the one that lost its own to them.
        """
        network = self._network.clone()
        network.reshape([size, *self.input_shape])
        options = {
            "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[self.precision],
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": streams,
        }
        compiled = self._core.compile_model(network, "CPU", options)
        capacity = size * min(streams, max(1, batch_size // size))
        threads_share = streams < self._threads
        in_flight = 1 if threads_share else max(1, batch_size // capacity)
        shape = BatchShape(f"{streams} × batches of {size}", capacity, in_flight, size, threads_share)
        return OpenVinoBatch(shape, [compiled.create_infer_request() for _ in range(in_flight * capacity // size)])

    def _check(self, compiled: CompiledBatch) -> None:
        tolerance = TOLERANCE[self.precision]
        for which, found in golden.runs(compiled, golden.pictures(self.input_shape)):
            difference = golden.off_by(found[: len(which)], self._golden_probabilities[which])
            if not difference <= tolerance:
                raise RuntimeUnsuitable(
                    f"in {self.precision}, {compiled.shape.name}, a probability is {difference:.3g} from Keras's, "
                    f"more than {tolerance}"
                )


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing; where it cannot be written, measuring again is the price."""
    with contextlib.suppress(OSError):
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(content)
        unfinished.replace(path)
