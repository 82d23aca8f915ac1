"""Puts a network of one's own between two ends of ours, in one graph:

pixels uint8 -- MODEL_PREPROCESSING --> the network -- MODEL_ACTIVATION, in float32 --> probabilities
                                                   `-- one sigmoid p: [1 - p, p]
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.errors import ModelUnavailable
from serving.model import golden
from serving.model.failures import model_unavailable
from serving.model.keras_files import OWN_CODE, Loaded
from serving.model.keras_setup import keras
from serving.model.spec import ModelSpec

DEFAULT_SIDE = 224  # pixels, of a model that takes any size
MODES = {"-1..1": "tf", "caffe": "caffe", "torch": "torch"}  # as keras.applications calls them
SIZES = "Set IMAGE_WIDTH and IMAGE_HEIGHT to a size that it takes."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class End:
    """What a network's outputs are made of.

    Args:
        added: `softmax` or `sigmoid`; None: they are probabilities already.
        independent: whether each class has a probability of its own, so that they need not sum to 1.
    """

    added: str | None
    independent: bool


def between_ends(spec: ModelSpec, loaded: Loaded) -> tuple[keras.Model, bool]:
    """Build (n, height, width, channels) uint8 0..255 -> (n, classes) float32; and whether classes are independent.

    Raises:
        ModelUnavailable: the network does not do, or not with these settings; the message says what to do.
    """
    name = f"MODEL={spec.architecture}"
    height, width, channels = _size(spec, loaded, name)
    _check_preprocessing(spec, loaded, name)
    pixels = keras.Input((height, width, channels), dtype="uint8")
    advice = SIZES if None in loaded.input_shape[1:] else OWN_CODE
    with model_unavailable(f"{name} cannot be run on {width}×{height} pixels", advice):
        given = keras.ops.cast(_preprocessed(pixels, spec.preprocessing), loaded.input_dtype)
        outputs = _one_of(loaded.layers(given), name)
    if len(outputs.shape) != 2 or not isinstance(outputs.shape[1], int):
        raise ModelUnavailable(
            f"{name} maps an image to {tuple(outputs.shape)}: it must give (None, classes). End it in a "
            "GlobalAveragePooling2D or a Flatten, and a Dense."
        )
    end = _end(spec.activation, loaded, outputs.shape[1], name)
    raw = keras.ops.cast(outputs, "float32")
    if end.added is not None and loaded.ends_in is None:
        _check_they_are_logits(keras.Model(pixels, raw), spec.activation, name)
    return keras.Model(pixels, _ended(raw, end.added), name=loaded.layers.name), end.independent


def _size(spec: ModelSpec, loaded: Loaded, name: str) -> tuple[int, int, int]:
    """Height, width and channels of the images. Raises ModelUnavailable: it takes none, or others than are wanted."""
    shape = loaded.input_shape
    if not isinstance(shape, tuple) or not all(side is None or isinstance(side, int) for side in shape):
        raise ModelUnavailable(f"{name} takes {len(shape)} inputs: it must take one, an image.")
    own = "(None, height, width, channels)"
    if len(shape) != 4:
        raise ModelUnavailable(f"{name} takes {shape}, which is no image: it must take {own}.")
    if shape[0] is not None:
        raise ModelUnavailable(
            f"{name} takes {shape}, always {shape[0]} images together. Save it with an open batch: "
            f"keras.Input({shape[1:]})."
        )
    if shape[3] not in (1, 3):
        if shape[1] in (1, 3):
            raise ModelUnavailable(f"{name} takes {shape}, the channels first. Save it with the channels last: {own}.")
        raise ModelUnavailable(f"{name} takes {shape}: the channels, which come last, must be 3 (RGB) or 1 (grey).")
    own_height, own_width = shape[1:3]
    height, width = spec.height or own_height or DEFAULT_SIDE, spec.width or own_width or DEFAULT_SIDE
    if own_height not in (None, height) or own_width not in (None, width):
        raise ModelUnavailable(
            f"{name} takes {own_width or 'any'}×{own_height or 'any'} pixels, but IMAGE_WIDTH and IMAGE_HEIGHT say "
            f"{width}×{height}. Leave both unset."
        )
    return height, width, shape[3]


def _check_preprocessing(spec: ModelSpec, loaded: Loaded, name: str) -> None:
    setting = f"MODEL_PREPROCESSING={spec.preprocessing}"
    if spec.preprocessing == "none":
        return
    if loaded.input_shape[3] == 1 and spec.preprocessing in ("caffe", "torch"):
        raise ModelUnavailable(
            f"{setting} is for three colours, and {name} takes one channel. Set MODEL_PREPROCESSING to none, 0..1 or "
            "-1..1."
        )
    if "float" not in loaded.input_dtype:
        raise ModelUnavailable(
            f"{setting} makes fractions, and {name} takes whole numbers ({loaded.input_dtype}). Leave "
            "MODEL_PREPROCESSING unset."
        )
    if loaded.normalises:
        log.warning("%s has a layer that scales its input, and %s comes before it: is that meant?", name, setting)


def _preprocessed(pixels: Any, preprocessing: str) -> Any:
    """Map pixels (n, height, width, channels) uint8 0..255 to float32, as the network was trained with them."""
    floats = keras.ops.cast(pixels, "float32")
    if preprocessing == "none":
        return floats
    if preprocessing == "0..1":
        return floats / 255.0
    mode = MODES[preprocessing]
    return keras.applications.imagenet_utils.preprocess_input(floats, data_format="channels_last", mode=mode)


def _one_of(outputs: Any, name: str) -> Any:
    """The only output of a network, which may stand in a dict or a list. Raises ModelUnavailable."""
    if isinstance(outputs, dict | list | tuple):
        if len(outputs) != 1:
            named = f" ({', '.join(sorted(outputs))})" if isinstance(outputs, dict) else ""
            raise ModelUnavailable(
                f"{name} has {len(outputs)} outputs{named}: it must have one, (None, classes). Save the part that "
                "classifies: keras.Model(model.inputs, model.outputs[0])."
            )
        return _one_of(next(iter(outputs.values() if isinstance(outputs, dict) else outputs)), name)
    return outputs


def _end(activation: str, loaded: Loaded, classes: int, name: str) -> End:
    """What the outputs of so many classes are. Raises ModelUnavailable: MODEL_ACTIVATION does not fit the network."""
    setting, last = f"MODEL_ACTIVATION={activation}", f"its last layer, {loaded.last_layer},"
    if classes == 1 and "softmax" in (activation, loaded.ends_in):
        raise ModelUnavailable(
            f"{name} has one output, and a softmax of one is always 1. Train it with a sigmoid, or with an output for "
            "each class; if its output is a logit, set MODEL_ACTIVATION=sigmoid."
        )
    if activation == "independent" and (classes == 1 or loaded.ends_in == "softmax"):
        why = "it has one output, for two labels" if classes == 1 else f"{last} is a softmax"
        raise ModelUnavailable(
            f"{setting} is for labels that do not exclude each other, and those of {name} do: {why}. Set "
            "MODEL_ACTIVATION to none."
        )
    if activation in ("softmax", "sigmoid"):
        if loaded.ends_in in ("softmax", "sigmoid"):
            raise ModelUnavailable(
                f"{setting} is for logits, and {name} has probabilities already: {last} is a {loaded.ends_in}. Leave "
                "MODEL_ACTIVATION unset."
            )
        return End(activation, independent=activation == "sigmoid" and classes > 1)
    if activation == "auto" and loaded.ends_in == "linear":
        raise ModelUnavailable(
            f"{name} has logits, no probabilities: {last} has no activation. Set MODEL_ACTIVATION to "
            + ("sigmoid." if classes == 1 else "softmax, or to sigmoid if the labels do not exclude each other.")
        )
    if activation == "auto" and classes == 1 and loaded.ends_in is None:
        raise ModelUnavailable(
            f"{name} has one output, and nothing tells whether that is a logit or a probability. Set MODEL_ACTIVATION "
            "to sigmoid for a logit, to none for a probability."
        )
    by_sigmoids = activation == "auto" and loaded.ends_in == "sigmoid" and classes > 1
    return End(None, independent=activation == "independent" or by_sigmoids)


def _ended(raw: Any, added: str | None) -> Any:
    """Map the network's outputs (n, outputs) float32 to probabilities (n, classes) float32."""
    probabilities = raw
    if added == "softmax":
        probabilities = keras.layers.Softmax(dtype="float32")(raw)
    elif added == "sigmoid":
        probabilities = keras.layers.Activation("sigmoid", dtype="float32")(raw)
    if raw.shape[1] == 1:  # the first label is the one that a network says 0 for
        probabilities = keras.ops.concatenate([1.0 - probabilities, probabilities], axis=-1)
    return probabilities


def _check_they_are_logits(raw: keras.Model, activation: str, name: str) -> None:
    """Refuse to put a softmax behind a softmax, and say that a sigmoid may stand behind a sigmoid.

    Raises ModelUnavailable.
    """
    with model_unavailable(f"{name} fails on golden pictures", OWN_CODE):
        outputs = np.asarray(raw.predict_on_batch(golden.pictures(raw.input_shape[1:])))
    in_range = bool(((outputs >= 0) & (outputs <= 1)).all())
    if in_range and activation == "softmax" and np.allclose(outputs.sum(axis=1), 1, atol=0.01):
        raise ModelUnavailable(
            f"MODEL_ACTIVATION=softmax is for logits, and {name} has probabilities already: its outputs sum to 1. Set "
            "MODEL_ACTIVATION to none."
        )
    if in_range and activation == "sigmoid":
        log.warning(
            "%s gives numbers from 0 to 1 for %d pictures: if they are probabilities, and no logits, set "
            "MODEL_ACTIVATION to %s instead of sigmoid",
            name,
            golden.PICTURES,
            "none" if outputs.shape[1] == 1 else "independent",
        )
