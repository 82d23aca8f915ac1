"""Whether the packages are there that let Keras see an NVIDIA GPU; no framework is loaded, which would take seconds."""

import contextlib
import ctypes.util
import json
from importlib import metadata
from pathlib import Path


def backend(chosen: str | None, store: Path) -> str:
    """The framework below Keras: KERAS_BACKEND, `chosen`, else the one in Keras's folder `store`, else TensorFlow."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return chosen or str(json.loads((store / "keras.json").read_text())["backend"])
    return "tensorflow"


def are_there(framework: str) -> bool:
    """Whether the packages are there by which a framework below Keras sees an NVIDIA GPU.

    True as well for one of which this service does not know what it needs.
    """
    if framework == "jax":
        return any(_is_installed(name) for name in ("jax-cuda12-plugin", "jax-cuda13-plugin"))
    if framework == "tensorflow":
        # CUDA from PyPI, as `tensorflow[and-cuda]` brings it, or the system's.
        return _is_installed("nvidia-cudnn-cu12") or ctypes.util.find_library("cudnn") is not None
    return True


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
