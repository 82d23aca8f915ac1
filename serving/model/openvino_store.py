"""Keeps models converted for OpenVINO, each with Keras's answers to golden pictures, under a name made of what it is.

Keras model --> converted, beside its answers to golden pictures --> <folder>/<key>      once, at the first start
<folder>/<key> --> openvino_runtime --> compiled, compared with those answers           at every start
"""

import contextlib
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
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import RuntimeUnsuitable
from serving.model import golden, own_network
from serving.model.content import digest
from serving.model.spec import ModelSpec

FORMAT = 2  # of what is kept; part of its key. 2: labels without marks and empty lines, a version

log = logging.getLogger(__name__)


def is_installed() -> bool:
    """Whether OpenVINO can be imported."""
    return importlib.util.find_spec("openvino") is not None


def folder_of(spec: ModelSpec) -> Path:
    """Return where the model is kept: a digest of all that makes it what it is, files by their content.

    Raises:
        ModelUnavailable: a file of the model cannot be read.
    """
    parts = {
        "model": spec.architecture,
        "weights": spec.weights,
        "labels": spec.labels,
        "width": str(spec.width),
        "height": str(spec.height),
    }
    said = {name: digest(Path(part)) if Path(part).is_file() else part for name, part in parts.items()}
    if spec.is_own_network:
        said |= {"model": own_network.version(spec), "code": spec.allow_code}
    versions = {name: importlib.metadata.version(name) for name in ("keras", "openvino")}
    text = json.dumps([FORMAT, said, versions], sort_keys=True)
    return spec.store / "openvino" / hashlib.sha256(text.encode()).hexdigest()[:32]


def convert_and_store(
    network: Any, version: str, labels: Sequence[str], folder: Path, *, independent: bool = False
) -> None:
    """Convert a Keras model (n, height, width, channels) uint8 -> (n, classes) float32 and keep it in `folder`.

    `version` tells it from any other; `independent`: each class has a probability of its own. What is there already is
    replaced.

    Raises:
        RuntimeUnsuitable: OpenVINO cannot convert it.
    """
    framework = openvino()
    pictures = golden.pictures(network.input_shape[1:])
    began = time.monotonic()
    try:
        unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.unfinished-", dir=folder.parent))
    except OSError as error:
        raise RuntimeUnsuitable(f"the converted model cannot be kept in {folder.parent}: {error}") from error
    try:
        with warnings.catch_warnings(), _logging_kept():
            warnings.simplefilter("ignore")  # Keras's, about how OpenVINO calls it
            converted = framework.convert_model(network)
        framework.save_model(converted, unfinished / "model.xml", compress_to_fp16=False)
        np.save(unfinished / "golden.npy", np.asarray(network.predict_on_batch(pictures), np.float32))
        kept = {"input_shape": network.input_shape[1:], "classes": network.output_shape[-1], "labels": list(labels)}
        kept |= {"version": version, "independent": independent}
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
def _logging_kept() -> Iterator[None]:
    """Put the log's level and filters back: a conversion that fails leaves OpenVINO's, which hide our lines."""
    root = logging.getLogger()
    level, filters = root.level, list(root.filters)
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:] = filters


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let one model server after the other convert and measure a model.

    The second one finds what the first one kept, and measures undisturbed.

    Raises:
        RuntimeUnsuitable: nothing can be kept there.
    """
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


def openvino() -> Any:
    """Import OpenVINO, without the package by which it reports each conversion to its makers."""
    blocked: dict[str, Any] = {"openvino_telemetry": None}
    for name, module in blocked.items():
        sys.modules.setdefault(name, module)
    import openvino as framework

    return framework
