"""Says what one model is, in one value: the settings that the model wing takes."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".keras", ".h5", ".hdf5")  # by which Keras tells the files of whole networks


@dataclass(frozen=True)
class ModelSpec:
    """One model's settings. docs/settings.md says more of each: MODEL_WEIGHTS, and so on."""

    architecture: str  # a classifier of keras.applications by name, or the path of a network of one's own
    weights: str  # `imagenet`, the path of a weights file, or `random`; of a network of one's own: `imagenet`
    labels: str  # `imagenet`, `numbers`, or the path of a file
    width: int | None = None  # of the input, pixels; None: the model's own
    height: int | None = None
    precision: str = "auto"  # or `float32`, `bfloat16`, `float16`
    activation: str = "auto"  # of a network of one's own; or `none`, `softmax`, `sigmoid`, `independent`
    preprocessing: str = "none"  # … or `0..1`, `-1..1`, `caffe`, `torch`
    allow_code: str = "0"  # … `1`: it may run what its file holds; or a module that is imported first
    runtime: str = "auto"  # or `keras`, `openvino`, or `package.module:Class`
    batch_size: int = 32  # most images in one batch
    top: int = 5  # predictions in an answer
    threads: int = 1  # CPUs that a runtime may use
    name: str | None = None  # what the model is called; None: as its architecture or file
    store: Path = Path("~/.keras")  # the folder in which each runtime keeps what it converted or compiled

    @property
    def is_own_network(self) -> bool:
        """Tell whether the model is a network of one's own, which brings its weights and its precision."""
        return is_path(self.architecture)

    @property
    def code_module(self) -> str | None:
        """The module that is imported before a network of one's own is loaded."""
        return self.allow_code if self.allow_code not in ("0", "1") else None

    @property
    def called(self) -> str:
        """Tell what the model is called: at most 64 letters, digits, dots, dashes and underscores."""
        return self.name or name_of(self.architecture)

    @property
    def has_random_weights(self) -> bool:
        """Tell whether the predictions mean nothing."""
        return self.weights == "random" and not self.is_own_network


def is_saved_model(path: Path) -> bool:
    """Tell whether a path is the folder of a TensorFlow SavedModel."""
    return (path / "saved_model.pb").is_file()


def is_path(architecture: str) -> bool:
    """Tell a network of one's own, a file or a folder, from the name of a classifier of keras.applications."""
    looks_so = "/" in architecture or architecture.lower().endswith((*SUFFIXES, ".pb"))
    return looks_so or is_saved_model(Path(architecture))


def name_of(architecture: str) -> str:
    """Return what a model is called for which no name is set: its architecture, or the name of its file or folder."""
    own = architecture
    if is_path(architecture):
        path = Path(architecture).absolute()
        own = path.stem if path.suffix.lower() in SUFFIXES else path.name
        if own.isdigit() and is_saved_model(path):  # TensorFlow Serving's folders: flowers/1
            own = path.parent.name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", own)[:64]
    # A name without any such letter: its digest tells it from others.
    return name if re.search("[A-Za-z0-9]", name) else f"model-{hashlib.sha256(own.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Identity:
    """Who answers: published by the model server, in words."""

    name: str
    version: str  # a digest of the weights
    precision: str  # what the layers compute in
    runtime: str  # what runs the model
