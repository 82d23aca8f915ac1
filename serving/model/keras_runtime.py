"""Architecture + weights + labels -> a model that runs. The only module that knows Keras.

    pixels uint8 -- the model's own normalisation --> layers -- softmax in float32 --> probabilities
    `-------------------- one graph, on the GPU where there is one ------------------'

Written against Keras 3: KERAS_BACKEND=tensorflow (the default), jax or torch runs the same code, but for `compiled`.
"""

import contextlib
import functools
import http.client
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Read by the frameworks as they are imported, and theirs to be overruled. oneDNN: 107 against 63 images/s in
# batches of 32 (TensorFlow, MobileNetV2, two AMD cores), where TensorFlow leaves it off by default.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import keras
import numpy as np

from serving.errors import ModelUnavailable, WeightsDownloadFailed
from serving.model.classifier import Way, batch_sizes, translated

DOWNLOAD_TIMEOUT_SECONDS = 30.0
MOST_CONSTANT_PARAMETERS = 32_000_000  # that JAX compiles in, once for each batch size; of more it keeps one copy


class KerasRuntime:
    """Runs a Keras model (n, height, width, 3) uint8 0..255 -> (n, classes) float32 probabilities."""

    def __init__(self, model: keras.Model) -> None:
        self.input_shape = model.input_shape[1:]
        self.classes = model.output_shape[-1]
        self._forward = compiled(model)

    def ways(self, batch_size: int) -> list[Way]:
        # JAX compiles each for seconds, and on a GPU a few images take nearly as long as many.
        few = keras.backend.backend() == "jax" and has_gpu()
        sizes = batch_sizes(batch_size, factor=4 if few else 2)
        return [Way(f"batches of {size}", size, self._run) for size in sizes]

    def _run(self, batch: np.ndarray) -> np.ndarray:
        with translated(len(batch)):
            return np.asarray(self._forward(batch))


def compiled(model: keras.Model) -> Any:
    """The model as a function of its pixels, (n, height, width, 3) uint8 0..255, compiled for each n it first meets."""
    if keras.backend.backend() != "jax":
        return model.predict_on_batch
    # There predict_on_batch takes every variable out of the model, gives it away and puts it back, in Python: with
    # ResNet50's 320 of them a call takes four times as long on a fast GPU (decision 024).
    import jax

    def forward(trainable: list[Any], fixed: list[Any], pixels: Any) -> Any:
        return model.stateless_call(trainable, fixed, pixels, training=False)[0]

    # From now on they are held here as well, where the model's own predict_on_batch would give them away.
    trainable = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]
    if model.count_params() > MOST_CONSTANT_PARAMETERS:
        return functools.partial(jax.jit(forward), trainable, fixed)
    # As constants they are cast, and folded into each other, while it compiles, and not in every batch.
    return jax.jit(functools.partial(forward, trainable, fixed))


def load_model(name: str, weights: str, *, width: int, height: int, precision: str) -> keras.Model:
    """Build the model: (n, height, width, 3) uint8 0..255 -> (n, classes) float32 probabilities.

    Args:
        name: a classifier of keras.applications, or the path of a `.keras` file, which takes RGB values 0..255
            and normalises them itself.
        weights: `imagenet`, the path of a weights file, or `random`; a `.keras` file has its own.
        precision: `float32`, `bfloat16`, `float16`, or `auto`: float16 on a GPU, float32 elsewhere.

    Raises:
        ModelUnavailable: no such model, or weights that do not fit it; the message says what to set.
        WeightsDownloadFailed: the ImageNet weights cannot be fetched.
    """
    if name.endswith(".keras"):
        return _load_keras_file(Path(name), width=width, height=height, precision=precision)
    if weights not in ("imagenet", "random") and not Path(weights).is_file():
        raise ModelUnavailable(f"MODEL_WEIGHTS={weights}: no such file. Set it to imagenet, random, or a weights file.")
    build = _application(name)
    if precision == "auto":
        precision = "float16" if has_gpu() else "float32"
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    downloading: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if weights == "imagenet":
        set_instead = "MODEL_WEIGHTS to a weights file, or to random"
        downloading = _downloading("the ImageNet weights", set_instead, WeightsDownloadFailed)
    keras.utils.set_random_seed(0)  # so that several model servers with random weights agree
    try:
        with downloading:
            layers = build(
                weights=None if weights == "random" else weights,
                input_shape=(height, width, 3),
                classifier_activation=None,
            )
    except (ValueError, OSError, TypeError) as error:  # a file of another model, an input size it does not take, …
        raise ModelUnavailable(f"MODEL={name} with MODEL_WEIGHTS={weights} at {width}×{height}: {error}") from error
    normalise = sys.modules[build.__module__].preprocess_input
    pixels = keras.Input((height, width, 3), dtype="uint8")
    logits = layers(normalise(keras.ops.cast(pixels, "float32")))
    return keras.Model(pixels, keras.layers.Softmax(dtype="float32")(logits), name=layers.name)


def load_labels(source: str, classes: int) -> list[str]:
    """Read a label for each class: `imagenet`, `numbers`, a class-index JSON, or a text file with a label a line.

    Raises:
        ModelUnavailable: no such file, not what it should be, or ImageNet's class index cannot be fetched.
    """
    if source == "numbers":
        return [f"class {number}" for number in range(classes)]
    if source == "imagenet":
        if classes != 1000:
            raise ModelUnavailable(f"The model tells {classes} classes apart, ImageNet has 1000: set MODEL_LABELS.")
        with _downloading("ImageNet's class index", "MODEL_LABELS to a file, or to numbers", ModelUnavailable):
            # All classes, likeliest first, for probabilities that fall from the first class to the last.
            falling = np.arange(1000, 0, -1, dtype=np.float32)[np.newaxis]
            decoded = keras.applications.imagenet_utils.decode_predictions(falling, top=1000)[0]
        return [label for _, label, _ in decoded]
    try:
        text = Path(source).read_text(encoding="utf-8")
        return _read_class_index(text) if source.endswith(".json") else text.splitlines()
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelUnavailable(
            f"MODEL_LABELS={source} cannot be read: {error!r}. It is imagenet, numbers, a JSON object "
            '{"0": ["n01440764", "tench"], …}, or a text file with a label a line.'
        ) from error


def has_gpu() -> bool:
    """Whether Keras computes on a GPU: asked of a tensor of its own, alike in every framework."""
    device = str(getattr(keras.ops.convert_to_tensor(np.zeros(1, np.float32)), "device", "")).lower()
    return any(kind in device for kind in ("gpu", "cuda", "rocm"))


def _application(name: str):  # type: ignore[no-untyped-def]  # keras.applications' builders share no type
    known = sorted(key for key in dir(keras.applications) if key[0].isupper())
    if name not in known:
        raise ModelUnavailable(
            f"MODEL={name}: no such model. Set it to the path of a .keras file or to one of {', '.join(known)}."
        )
    return getattr(keras.applications, name)


def _load_keras_file(path: Path, *, width: int, height: int, precision: str) -> keras.Model:
    if precision != "auto":
        raise ModelUnavailable(
            "MODEL_PRECISION is for keras.applications; a .keras file has its own: leave it at auto."
        )
    try:
        layers = keras.models.load_model(path, compile=False)
    except (OSError, ValueError, TypeError) as error:
        raise ModelUnavailable(f"MODEL={path} cannot be loaded: {error}") from error
    shape = getattr(layers, "input_shape", None)
    if shape != (None, height, width, 3) or len(layers.output_shape) != 2:
        raise ModelUnavailable(
            f"MODEL={path} maps {shape} to {layers.output_shape}; it must map (None, IMAGE_HEIGHT, IMAGE_WIDTH, 3), "
            f"which is (None, {height}, {width}, 3), to (None, classes)."
        )
    pixels = keras.Input((height, width, 3), dtype="uint8")
    probabilities = layers(keras.ops.cast(pixels, "float32"))
    return keras.Model(pixels, keras.ops.cast(probabilities, "float32"), name=layers.name)


def _read_class_index(text: str) -> list[str]:
    index = json.loads(text)
    ordered = [index[str(number)] for number in range(len(index))] if isinstance(index, dict) else index
    return [entry if isinstance(entry, str) else str(entry[1]) for entry in ordered]


@contextlib.contextmanager
def _downloading(what: str, instead: str, failure: type[ModelUnavailable]) -> Iterator[None]:
    """Keras downloads without a time limit, and fails with a bare Exception."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    except Exception as error:
        # Refused, cut off midway, or not what it should be.
        cut_off = isinstance(error, OSError | http.client.HTTPException)
        if cut_off or "URL fetch failure" in str(error) or "ncomplete or corrupted" in str(error):
            raise failure(
                f"Cannot download {what}: {error}. Set {instead}, or put it into KERAS_HOME/models."
            ) from error
        raise
    finally:
        socket.setdefaulttimeout(before)
