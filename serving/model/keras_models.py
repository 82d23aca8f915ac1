"""Builds the model from its spec by Keras: a classifier of keras.applications, or a network of one's own.

    pixels uint8 -- the model's own normalisation --> layers -- softmax in float32 --> probabilities
    `-------------------- one graph, on the GPU where there is one ------------------'

Of a network of one's own, keras_files loads the layers, and keras_ends puts the two ends to them.

Written against Keras 3: KERAS_BACKEND=tensorflow (the default), jax or torch runs the same code.
"""

import contextlib
import http.client
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.errors import ModelUnavailable, WeightsDownloadFailed
from serving.model import keras_ends, keras_files, own_network
from serving.model.failures import check_file, model_unavailable
from serving.model.keras_setup import has_gpu, keras
from serving.model.spec import ModelSpec

DOWNLOAD_TIMEOUT_SECONDS = 30.0
DEFAULT_SIDE = 224  # pixels, of a model that takes any size
FITTING = (
    "MODEL_WEIGHTS is imagenet, random, or a file of this very model's weights; IMAGE_WIDTH and IMAGE_HEIGHT are a "
    "size that the model takes."
)


@dataclass(frozen=True)
class Network:
    """A Keras model, and what it does not tell itself.

    Args:
        model: (n, height, width, channels) uint8 0..255 -> (n, classes) float32 probabilities.
        version: twelve characters that tell it from any other; None: its weights do.
        independent: whether each class has a probability of its own, so that they need not sum to 1.
    """

    model: keras.Model
    version: str | None = None
    independent: bool = False


def load_network(spec: ModelSpec) -> Network:
    """Build the model with its two ends.

    Raises:
        ModelUnavailable: no such model, or settings that do not fit it; the message says what to set.
        WeightsDownloadFailed: the ImageNet weights cannot be fetched.
    """
    if not spec.is_own_network:
        return Network(_load_application(spec))
    model, independent = keras_ends.between_ends(spec, keras_files.load(spec))
    return Network(model, own_network.version(spec), independent)


def load_model(spec: ModelSpec) -> keras.Model:
    """Build the model alone, as `load_network` does."""
    return load_network(spec).model


def _load_application(spec: ModelSpec) -> keras.Model:
    weights = spec.weights
    build = _application(spec.architecture)
    precision = spec.precision
    if precision == "auto":
        precision = "float16" if has_gpu() else "float32"
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    keras.utils.set_random_seed(0)  # so that several model servers with random weights agree
    downloading: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if weights == "imagenet":
        set_instead = "MODEL_WEIGHTS to a weights file, or to random"
        downloading = _downloading("the ImageNet weights", set_instead, WeightsDownloadFailed)
    size = "" if spec.width is None else f" at {spec.width}×{spec.height}"
    at = f"MODEL={spec.architecture} with MODEL_WEIGHTS={weights}{size} cannot be built"
    # A file of another model, an input size it does not take, …
    with model_unavailable(at, FITTING):
        if weights not in ("imagenet", "random"):
            check_file(Path(weights))
        with downloading:
            layers = build(
                weights=None if weights == "random" else weights,
                input_shape=None if spec.width is None else (spec.height, spec.width, 3),
                classifier_activation=None,
            )
    normalise = sys.modules[build.__module__].preprocess_input
    height, width = (side or DEFAULT_SIDE for side in layers.input_shape[1:3])  # MobileNetV3 leaves its size open
    pixels = keras.Input((height, width, 3), dtype="uint8")
    logits = layers(normalise(keras.ops.cast(pixels, "float32")))
    return keras.Model(pixels, keras.layers.Softmax(dtype="float32")(logits), name=layers.name)


def imagenet_labels() -> list[str]:
    """Fetch ImageNet's 1000 labels, in the order of its classes.

    Raises:
        ModelUnavailable: they cannot be fetched.
    """
    with _downloading("ImageNet's class index", "MODEL_LABELS to a file, or to numbers", ModelUnavailable):
        # All classes, likeliest first, for probabilities that fall from the first class to the last.
        falling = np.arange(1000, 0, -1, dtype=np.float32)[np.newaxis]
        decoded = keras.applications.imagenet_utils.decode_predictions(falling, top=1000)[0]
    return [label for _, label, _ in decoded]


def _application(name: str) -> Callable[..., keras.Model]:
    known = sorted(key for key in dir(keras.applications) if key[0].isupper())
    if name not in known:
        folder = f"; the folder {name} is no SavedModel" if Path(name).is_dir() else ""
        raise ModelUnavailable(
            f"MODEL={name}: no such model{folder}. Set it to the path of a network of your own ({own_network.FORMATS})"
            f", or to one of {', '.join(known)}."
        )
    build: Callable[..., keras.Model] = getattr(keras.applications, name)
    return build


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
