"""Loads a network of one's own by Keras: a .keras file, a whole model in an .h5 file, or a SavedModel's folder.

MODEL --> Loaded: the network, what it takes, and what its last layer is --> keras_ends
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import ModelUnavailable
from serving.model.failures import model_unavailable
from serving.model.keras_setup import keras
from serving.model.spec import ModelSpec

OWN_CODE = (
    "It must be a file that Keras 3's model.save wrote. If it has code of its own, as a Lambda or a layer of yours, "
    "and you trust whoever made it, MODEL_ALLOW_CODE=1 lets it run, or the name of its module: docs/own-model.md."
)
IS_WEIGHTS = (
    "holds weights alone, and not the network. Save the whole network by model.save as a .keras file; if these are "
    "weights of a classifier of keras.applications, set MODEL to its name, and MODEL_WEIGHTS to this file"
)
INSTEAD = "set KERAS_BACKEND=tensorflow, or save the network by model.save as a .keras file"
LOOKED_AT = 8  # operations, of which one may scale what the network is given
ACTIVATIONS = ("softmax", "sigmoid", "linear")  # of a last layer, that are told apart


@dataclass(frozen=True)
class Loaded:
    """A network of one's own as it was saved.

    Args:
        layers: the network, which is called with a batch of images.
        input_shape: (batch, height, width, channels), each None where it is open, as far as it is an image; several
            inputs have their shapes in a list or in a dict.
        input_dtype: of the images, as `float32`.
        ends_in: the activation of its last layer: `softmax`, `sigmoid`, `linear`; None: its last layer does not tell.
        last_layer: the name of that layer.
        normalises: whether it has a layer of Keras's that scales what it is given.
    """

    layers: Any
    input_shape: Any
    input_dtype: str = "float32"
    ends_in: str | None = None
    last_layer: str = ""
    normalises: bool = False


def load(spec: ModelSpec) -> Loaded:
    """Load the network of `spec`.

    Raises:
        ModelUnavailable: it cannot be loaded, or runs code that is not allowed; the message says what to do.
    """
    path = Path(spec.architecture)
    keras.config.set_dtype_policy("float32")  # whatever a model that was loaded before has left
    if spec.code_module is not None:
        with model_unavailable(
            f"MODEL_ALLOW_CODE={spec.code_module} cannot be imported", "Set PYTHONPATH to its folder."
        ):
            importlib.import_module(spec.code_module)
    if path.is_dir():
        return _saved_model(path)
    with model_unavailable(f"MODEL={path} cannot be loaded", OWN_CODE):
        try:
            layers = keras.models.load_model(path, compile=False, safe_mode=spec.allow_code != "1")
        except ValueError as error:
            if "No model config" in str(error):
                raise ModelUnavailable(f"MODEL={path} {IS_WEIGHTS}.") from error
            raise
    return _of_layers(layers, _input_shape(layers, path))


def _input_shape(layers: Any, path: Path) -> Any:
    shape = getattr(layers, "input_shape", None)
    if shape is not None:
        return shape
    # A class of one's own tells it in this way, with the batch of its first call.
    built = (layers.get_build_config() or {}).get("input_shape") if hasattr(layers, "get_build_config") else None
    if not isinstance(built, list | tuple):
        raise ModelUnavailable(f"MODEL={path} was saved before it was built: call it once before model.save.")
    return (None, *built[1:])


def _of_layers(layers: Any, shape: Any) -> Loaded:
    operations = _operations(layers)
    last = operations[-1] if operations else None
    inputs = getattr(layers, "inputs", None)
    return Loaded(
        layers,
        shape,
        input_dtype=str(inputs[0].dtype) if inputs else "float32",
        ends_in=_activation(last),
        last_layer=str(getattr(last, "name", "")),
        normalises=any(
            isinstance(one, keras.layers.Rescaling | keras.layers.Normalization) for one in operations[:LOOKED_AT]
        ),
    )


def _operations(layers: Any) -> Sequence[Any]:
    """The layers of a network, and what it does between them, in their order; those of networks in it, too.

    Empty for a class of one's own, of which nothing is known.
    """
    own = getattr(layers, "operations", None) or (layers.layers if type(layers) is keras.Sequential else None)
    if own is None:
        return []
    parts = [(_operations(one) or [one]) if isinstance(one, keras.Model) else [one] for one in own]
    return [one for part in parts for one in part]


def _activation(last: Any) -> str | None:
    """What a network's last operation does to its outputs; None: that is not known."""
    kind = type(last)
    if not kind.__module__.startswith("keras."):
        return None
    if kind.__name__ in ("Softmax", "Sigmoid"):  # layers.Softmax, ops.softmax, ops.sigmoid
        return kind.__name__.lower()
    own = getattr(last, "activation", None)
    found = next((name for name in ACTIVATIONS if own is not None and own is keras.activations.get(name)), None)
    # A linear Activation often stands behind a softmax, to make float32 of it.
    return None if found == "linear" and isinstance(last, keras.layers.Activation) else found


def _saved_model(path: Path) -> Loaded:
    if keras.backend.backend() != "tensorflow":
        raise ModelUnavailable(
            f"MODEL={path} is a SavedModel, which TensorFlow alone runs, and KERAS_BACKEND is "
            f"{keras.backend.backend()}: {INSTEAD}."
        )
    with model_unavailable(
        f"MODEL={path} cannot be loaded", "It must be a SavedModel, as Keras's model.export writes it."
    ):
        name, shape, dtype = _signature(path)
        # Keras would cast what is given to a layer to the layer's own type.
        layer_dtype = dtype if dtype.startswith(("float", "bfloat")) else None
        layers = keras.layers.TFSMLayer(str(path), call_endpoint=name, trainable=False, dtype=layer_dtype)
    return Loaded(layers, shape, dtype)


def _signature(path: Path) -> tuple[str, Any, str]:
    """The name of a SavedModel's function, the shape of the images that it takes, and their type.

    Raises ValueError: there is none that takes one tensor.
    """
    import tensorflow
    from tensorflow.core.protobuf import saved_model_pb2

    told = saved_model_pb2.SavedModel()
    told.ParseFromString((path / "saved_model.pb").read_bytes())
    found = {
        name: signature
        for graph in told.meta_graphs[:1]
        for name, signature in graph.signature_def.items()
        if not name.startswith("__")
    }
    name = next((name for name in ("serving_default", "serve") if name in found), "")
    if not name and len(found) == 1:
        (name,) = found
    if not name:
        names = ", ".join(sorted(found)) or "none"
        raise ValueError(f"it must have a signature serving_default, or one alone; there is {names}")
    if len(found[name].inputs) != 1:
        names = ", ".join(sorted(found[name].inputs)) or "none"
        raise ValueError(f"its signature {name} must take one tensor, the images; it takes {names}")
    (info,) = found[name].inputs.values()
    sides = [side.size if side.size >= 0 else None for side in info.tensor_shape.dim]
    return name, tuple(sides), str(tensorflow.as_dtype(info.dtype).name)
