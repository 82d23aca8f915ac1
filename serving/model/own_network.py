"""What the settings say of a network of one's own, and whether they fit together; no framework is loaded, which takes
seconds.

    MODEL=flowers.keras | flowers.h5 | flowers/ (a SavedModel) --> check --> keras_files
"""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from serving.errors import ModelUnavailable
from serving.model.content import digest
from serving.model.failures import check_file, model_unavailable
from serving.model.spec import SUFFIXES, ModelSpec, is_saved_model

FORMATS = "a .keras file, a whole model in an .h5 file, or the folder of a SavedModel"
HEADS = {".keras": b"PK", ".h5": b"\x89HDF", ".hdf5": b"\x89HDF"}  # the first bytes of such files
IS_CODE = (
    "is a SavedModel, which is a program of TensorFlow's that may read and write files. If you trust whoever made it, "
    "set MODEL_ALLOW_CODE=1; or save the network by model.save as a .keras file"
)


def check(spec: ModelSpec) -> None:
    """Refuse settings that do not fit together, and a file that is not there, before anything takes long.

    Raises:
        ModelUnavailable: says what to set.
    """
    if not spec.is_own_network:
        _check_application(spec)
        return
    path = Path(spec.architecture)
    if spec.weights != "imagenet":
        raise ModelUnavailable(
            f"MODEL_WEIGHTS={spec.weights} is for classifiers of keras.applications; MODEL={path} has weights of its "
            "own. Leave MODEL_WEIGHTS unset."
        )
    with model_unavailable(f"MODEL={path} cannot be loaded", f"MODEL is {FORMATS}."):
        _check_path(path)
    if path.is_dir() and spec.allow_code != "1":
        raise ModelUnavailable(f"MODEL={path} {IS_CODE}.")


def _check_application(spec: ModelSpec) -> None:
    for setting, value, default in (
        ("MODEL_ACTIVATION", spec.activation, "auto"),
        ("MODEL_PREPROCESSING", spec.preprocessing, "none"),
        ("MODEL_ALLOW_CODE", spec.allow_code, "0"),
    ):
        if value != default:
            raise ModelUnavailable(
                f"{setting}={value} is for a network of your own, and MODEL={spec.architecture} is no such file or "
                f"folder. A classifier of keras.applications has all that it needs: leave {setting} unset."
            )
    if spec.weights not in ("imagenet", "random"):
        advice = "Set it to imagenet, random, or a file of this very model's weights."
        with model_unavailable(f"MODEL_WEIGHTS={spec.weights} cannot be read", advice):
            check_file(Path(spec.weights))


def _check_path(path: Path) -> None:
    """Raise OSError or ValueError, which say why, if there is no network in a format that is read."""
    if path.is_dir():
        if not is_saved_model(path):
            inside = sorted(file.parent for file in path.glob("*/saved_model.pb"))
            hint = f"; {inside[-1]} has one, so set MODEL to that" if inside else ""
            raise ValueError(f"it is a folder, and no SavedModel, as it holds no saved_model.pb{hint}")
        return
    if path.name == "saved_model.pb":
        raise ValueError(f"it is a part of a SavedModel, so set MODEL to its folder, {path.parent}")
    check_file(path)
    if path.suffix not in SUFFIXES:
        ends = f"its name ends in {path.suffix}" if path.suffix else "its name has no ending"
        raise ValueError(f"{ends}, and Keras tells files by .keras, .h5 and .hdf5")
    with path.open("rb") as file:
        head = file.read(4)
    for suffix, begins in HEADS.items():
        if head.startswith(begins) and begins != HEADS[path.suffix]:
            raise ValueError(f"it is no {path.suffix} file by its content, but a {suffix} file, so rename it")


def version(spec: ModelSpec) -> str:
    """Twelve characters that tell this network, with what is put before and behind it, from any other.

    Raises ModelUnavailable: a file cannot be read.
    """
    parts = [digest(Path(spec.architecture)), spec.activation, spec.preprocessing, *_sources(spec)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _sources(spec: ModelSpec) -> Sequence[str]:
    """Digests of the module whose layers the network has; what that imports is not looked at."""
    with model_unavailable(f"MODEL_ALLOW_CODE={spec.allow_code} cannot be found", "Set PYTHONPATH to its folder."):
        if spec.code_module is None:
            return []
        found = importlib.util.find_spec(spec.code_module)
        if found is None:
            raise ModuleNotFoundError(f"No module named '{spec.code_module}'")
        folders = [Path(folder) for folder in found.submodule_search_locations or []]
        files = [Path(found.origin)] if found.origin and not folders else []
        return [digest(file) for file in sorted([*files, *(file for one in folders for file in one.rglob("*.py"))])]
