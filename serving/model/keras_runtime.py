"""Runs a Keras model.

    pixels uint8 --> keras_models' one graph, compiled for each size of batch --> probabilities

Written against Keras 3: KERAS_BACKEND=tensorflow (the default), jax or torch runs the same code, but for `compiled`.
"""

import functools
import hashlib
from typing import Any

import numpy as np

from serving.model import golden
from serving.model.compiled_batches import batch_sizes
from serving.model.keras_setup import has_gpu, keras
from serving.model.runtime import BatchShape, CompiledBatch

MOST_CONSTANT_PARAMETERS = 32_000_000  # that JAX compiles in, once for each batch size; of more it keeps one copy


class KerasRuntime:
    """Runs a Keras model (n, height, width, channels) uint8 0..255 -> (n, classes) float32 probabilities.

    Args:
        model: as keras_models builds it.
        version: tells it from any other; None: its weights do.
        independent: whether each class has a probability of its own, so that they need not sum to 1.
    """

    name = "keras"

    def __init__(self, model: keras.Model, version: str | None = None, *, independent: bool = False) -> None:
        self.input_shape = model.input_shape[1:]
        self.classes = model.output_shape[-1]
        self.precision = _precision(model) or "float32"
        self.version, self.independent = version or version_of(model), independent
        # A GPU may round float32 to TF32, whose mantissa is as short as float16's.
        exact_to = "float16" if self.precision == "float32" and has_gpu() else self.precision
        self.tolerance = golden.TOLERANCE.get(exact_to, golden.TOLERANCE_OF_ANY)
        self._forward = compiled(model)

    def compiled_batches(self, batch_size: int) -> list[CompiledBatch]:
        """Return the batches worth having up to `batch_size`; the first call of each compiles it."""
        # JAX compiles each for seconds, and on a GPU a few images take nearly as long as many.
        few = keras.backend.backend() == "jax" and has_gpu()
        return [KerasBatch(self, size) for size in batch_sizes(batch_size, factor=4 if few else 2)]

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Map pixels (n, height, width, channels) uint8 to (n, classes) float32. Raises what the framework raises."""
        return np.asarray(self._forward(pixels))


class KerasBatch:
    """A Keras model, compiled for one size of batch (see CompiledBatch)."""

    def __init__(self, runtime: KerasRuntime, size: int) -> None:
        self.shape = BatchShape(f"batches of {size}", size)
        self._runtime = runtime

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Map pixels (size, height, width, channels) uint8 to (size, classes) float32.

        Raises what the framework raises.
        """
        return self._runtime.run(pixels)


def _precision(model: keras.Model) -> str | None:
    """What its first layer with weights computes in, also in a network within; None: no layer has any."""
    for layer in model.layers:
        if layer.weights:
            return (_precision(layer) if isinstance(layer, keras.Model) else None) or str(layer.compute_dtype)
    return None


def compiled(model: keras.Model) -> Any:
    """The model as a function of its pixels, (n, height, width, channels) uint8, compiled for each n it first meets."""
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


def version_of(model: keras.Model) -> str:
    """Twelve characters that tell the weights of this model from any others, whatever runs them."""
    digest = hashlib.sha256()
    for weight in model.weights:
        values = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
        digest.update(values.view(np.uint8).data)  # as bytes: numpy has no buffer of bfloat16
    return digest.hexdigest()[:12]
