"""The model on a CPU by OpenVINO: converted once, kept on disk, checked against Keras. Only here is OpenVINO known.

    Keras model --> converted, together with its answers to golden images --> <folder>/<key>   at the first start
    <folder>/<key> --> compiled, compared with the golden answers --> runs                     at every start

A kept model starts without Keras, in a second or two: a model server that died is soon back.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import ModelFailed, ModelUnavailable, RuntimeUnsuitable
from serving.model.classifier import Way, batch_sizes, soonest_done, time_of, translated

FORMAT = 1  # of what is kept; part of its key
GOLDEN_IMAGES = 8
MEASURE_SECONDS = 0.25  # each way, at the first start
# How far a probability may be from Keras's in float32.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.02}
LARGEST_PIECE = 8  # images that one thread runs at once; where it was measured, 1 was the fastest
CHECKED_IN_FLIGHT = 2  # times a way's capacity
WAYS_FORMAT = 3  # of the ways that are kept, and of how they are measured

log = logging.getLogger(__name__)


def is_installed() -> bool:
    """Whether OpenVINO can be imported."""
    return importlib.util.find_spec("openvino") is not None


def key_of(**parts: object) -> str:
    """The name under which a model is kept: a digest of all that makes it what it is, files by their content.

    Raises:
        ModelUnavailable: a file among them cannot be read.
    """
    said = {name: _digest(Path(str(part))) if Path(str(part)).is_file() else str(part) for name, part in parts.items()}
    versions = {name: importlib.metadata.version(name) for name in ("keras", "openvino")}
    return hashlib.sha256(json.dumps([FORMAT, said, versions], sort_keys=True).encode()).hexdigest()[:32]


class OpenVinoRuntime:
    """Runs a kept model.

    Args:
        folder: what `keep` wrote.
        precision: float32, bfloat16 (where the CPU has it in hardware, else float32), or auto: bfloat16 where its
            answers are close enough to Keras's, which `ways` finds out.
        threads: how many CPUs to use.

    Raises:
        RuntimeUnsuitable: what is kept cannot be read, or its answers are not Keras's.
    """

    def __init__(self, folder: Path, *, precision: str, threads: int) -> None:
        try:
            self._core = _openvino().Core()
            has_bfloat16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        except Exception as error:  # a library that it lacks, a processor that it does not know, …
            raise RuntimeUnsuitable(f"OpenVINO does not start: {type(error).__name__}: {error}") from error
        try:
            self._network = self._core.read_model(folder / "model.xml")
            kept = json.loads((folder / "kept.json").read_text())
            self._golden_answers = np.load(folder / "golden.npy")
            self.input_shape, self.classes = tuple(kept["input_shape"]), kept["classes"]
            self.labels = kept["labels"]
        except Exception as error:  # whatever half a file may do to its reader
            raise RuntimeUnsuitable(f"what is kept in {folder} cannot be read: {error}") from error
        self.precision = "bfloat16" if has_bfloat16 and precision in ("auto", "bfloat16") else "float32"
        self._chooses_precision = precision == "auto"
        self._folder, self._threads = folder, threads

    def ways(self, batch_size: int) -> list[Way]:
        """The ways worth having, found by measurement at the first start and kept; each agrees with Keras.

        Raises:
            RuntimeUnsuitable: one cannot be compiled, fails, or does not agree.
        """
        if self._chooses_precision and self.precision == "bfloat16":
            try:
                return self._translated_ways(batch_size)
            except RuntimeUnsuitable as error:
                log.info("%s: float32 instead", error)
            self.precision = "float32"  # only here, where what was compiled in bfloat16 is gone
        return self._translated_ways(batch_size)

    def _translated_ways(self, batch_size: int) -> list[Way]:
        try:
            return self._ways(batch_size)
        except (RuntimeError, ModelFailed) as error:
            raise RuntimeUnsuitable(f"OpenVINO fails: {error.__cause__ or error}") from error

    def _ways(self, batch_size: int) -> list[Way]:
        cpu = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        measured_for = f"{WAYS_FORMAT}: {cpu}, {self._threads} threads, up to {batch_size}, {self.precision}"
        path = self._folder / f"ways-{hashlib.sha256(measured_for.encode()).hexdigest()[:16]}.json"
        try:
            found = [(int(streams), int(size)) for streams, size in json.loads(path.read_text())]
        except (OSError, ValueError):
            found = self._measure(batch_size)
            _write(path, json.dumps(found).encode())
        ways = []
        for streams, size in found:
            ways.append(self._way(streams, size, batch_size))
            self._check(ways[-1])  # before the next is compiled, which takes a while
        return ways

    def _measure(self, batch_size: int) -> list[tuple[int, int]]:
        """(streams, images for each) of the ways that any count of images would go by."""
        few = [(streams, 1) for streams in sorted({1, max(1, self._threads // 4)}) if streams < self._threads]
        many = [(self._threads, size) for size in batch_sizes(min(batch_size, LARGEST_PIECE))]
        seconds, of = {}, {}
        for streams, size in few + [
            (streams, size) for streams, size in many if size == 1 or streams * size <= batch_size
        ]:
            log.info("measuring: %d × batches of %d", streams, size)
            way = self._way(streams, size, batch_size)
            bare = dataclasses.replace(way, run=len)  # type: ignore[arg-type]  # lets go of what was compiled
            seconds[bare], of[bare] = time_of(way, self.input_shape, MEASURE_SECONDS), (streams, size)
        return sorted({of[way] for ways in soonest_done(seconds, batch_size) for way in ways})

    def _way(self, streams: int, size: int, batch_size: int) -> Way:
        """Pieces of `size` images, of which each stream takes the next one as soon as it is free.

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
        once = streams < self._threads
        in_flight = 1 if once else max(1, batch_size // capacity)
        requests = [compiled.create_infer_request() for _ in range(in_flight * capacity // size)]
        name = f"{streams} × batches of {size}"
        return Way(name, capacity, partial(_run, requests, size), in_flight, piece=size, once=once)

    def _check(self, way: Way) -> None:
        golden = golden_images(self.input_shape)
        which = np.arange(way.capacity * min(way.in_flight, CHECKED_IN_FLIGHT)) % len(golden)
        answers, expected = way.run(golden[which]), self._golden_answers[which]
        tolerance = TOLERANCE[self.precision]
        difference = float(np.abs(answers - expected).max())
        # Where Keras itself is undecided, by less than both may be off, either is right.
        best = answers.argmax(axis=1)
        loss = float((expected.max(axis=1) - expected[np.arange(len(best)), best]).max())
        if not difference <= tolerance or loss > 2 * tolerance:
            raise RuntimeUnsuitable(
                f"in {self.precision}, {way.name}, a probability is {difference:.3g} from Keras's (at most {tolerance})"
            )


def keep(network: Any, labels: Sequence[str], folder: Path) -> None:
    """Convert a Keras model (n, height, width, 3) uint8 -> (n, classes) float32 and keep it in `folder`.

    What is there already is replaced.

    Raises:
        RuntimeUnsuitable: OpenVINO cannot convert it.
    """
    openvino = _openvino()
    golden = golden_images(network.input_shape[1:])
    began = time.monotonic()
    try:
        unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.unfinished-", dir=folder.parent))
    except OSError as error:
        raise RuntimeUnsuitable(f"the converted model cannot be kept in {folder.parent}: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras's, about how OpenVINO calls it
            converted = openvino.convert_model(network)
        openvino.save_model(converted, unfinished / "model.xml", compress_to_fp16=False)
        np.save(unfinished / "golden.npy", np.asarray(network.predict_on_batch(golden), np.float32))
        kept = {"input_shape": network.input_shape[1:], "classes": network.output_shape[-1], "labels": list(labels)}
        (unfinished / "kept.json").write_text(json.dumps(kept))
        for file in unfinished.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    except Exception as error:  # whatever its front end meets
        raise RuntimeUnsuitable(f"OpenVINO cannot convert the model: {type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    log.info("converted the model for OpenVINO in %.1f s; it is kept in %s", time.monotonic() - began, folder)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One model server after the other: who comes second finds what the first one kept, and measures undisturbed."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / f"{folder.name}.lock").open("w")
    except OSError as error:
        raise RuntimeUnsuitable(f"the converted model cannot be kept in {folder.parent}: {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for unfinished in folder.parent.glob(f"{folder.name}.unfinished-*"):  # its maker died
            shutil.rmtree(unfinished, ignore_errors=True)
        yield


def golden_images(shape: tuple[int, ...]) -> np.ndarray:
    """(GOLDEN_IMAGES, height, width, 3) uint8 0..255 with detail at every scale, the same ones each time."""
    height, width, channels = shape
    random = np.random.default_rng(0)
    images = np.full((GOLDEN_IMAGES, height, width, channels), 128.0)
    rows, columns = np.arange(height), np.arange(width)
    for cells in (2, 4, 8, 16, 32, 64):
        noise = random.normal(0, 60 / np.sqrt(cells), (GOLDEN_IMAGES, cells, cells, channels))
        images += noise[:, rows * cells // height][:, :, columns * cells // width]
    golden: np.ndarray = np.clip(images, 0, 255).astype(np.uint8)
    return golden


def _openvino() -> Any:
    # It tells its makers of each conversion, unless the package that does so is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _run(requests: list[Any], size: int, batch: np.ndarray) -> np.ndarray:
    """All pieces of the batch are in flight together."""
    with translated(len(batch)):
        requests = requests[: len(batch) // size]
        for place, request in enumerate(requests):
            # Handed over as an array, it held the interpreter for a third of this process's Python time.
            request.get_input_tensor(0).data[:] = batch[place * size : (place + 1) * size]
            request.start_async()
        failures = []
        for request in requests:
            try:
                request.wait()
            except Exception as error:  # the others are in flight yet, and could not be started again before they end
                failures.append(error)
        if failures:
            raise failures[0]
        answers: np.ndarray = np.concatenate([request.get_output_tensor(0).data for request in requests])
    return answers


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return str(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise ModelUnavailable(f"{path} cannot be read: {error.strerror}.") from error


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing; where it cannot be written, measuring again is the price."""
    with contextlib.suppress(OSError):
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(content)
        unfinished.replace(path)
