"""Makes networks as people have them, tiny and real, each saved by Keras or TensorFlow itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = 4
MODULE = """
import keras


@keras.saving.register_keras_serializable("mine")
class Doubled(keras.layers.Layer):
    def call(self, tensor):
        return tensor * 2


@keras.saving.register_keras_serializable("mine")
class Whole(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.dense = keras.layers.Dense(4, activation="softmax")

    def call(self, tensor):
        return self.dense(self.pool(tensor))
"""


class Networks:
    """Each network by its name; all are random, the same ones each time."""

    def __init__(self, keras: Any, folder: Path, mine: Any) -> None:
        self.keras, self.folder, self.mine = keras, folder, mine
        self.models: dict[str, Any] = {}

    def ended(self, *shape: int | None, classes: int = CLASSES, activation: str | None = None, **options: Any) -> Any:
        """A network of images of a shape (height, width, channels) that ends in a Dense."""
        layers, keras = self.keras.layers, self.keras
        pixels = keras.Input(shape, dtype=options.get("dtype", "float32"))
        features = keras.ops.cast(pixels, "float32") if "dtype" in options else pixels
        if "scale" in options:
            features = layers.Rescaling(options["scale"])(features)
        kernel = "he_normal" if activation == "softmax" or "scale" in options else "random_normal"
        features = layers.Conv2D(6, 3, activation="relu", kernel_initializer=kernel)(features)
        pooled = layers.GlobalAveragePooling2D()(features)
        return keras.Model(
            pixels, layers.Dense(classes, activation=activation, kernel_initializer="random_normal")(pooled)
        )

    def model(self, kind: str) -> Any:
        """The network of a kind, made once."""
        if kind not in self.models:
            self.keras.utils.set_random_seed(len(kind))
            self.models[kind] = self.kinds()[kind]()
        return self.models[kind]

    def kinds(self) -> dict[str, Callable[[], Any]]:
        keras, small = self.keras, (20, 24, 3)
        return {
            "softmax": lambda: self.ended(*small, activation="softmax"),
            "logits": lambda: self.ended(*small),
            "sigmoids": lambda: self.ended(*small, activation="sigmoid"),
            "one sigmoid": lambda: self.ended(*small, classes=1, activation="sigmoid"),
            "one logit": lambda: self.ended(*small, classes=1),
            "grey": lambda: self.ended(20, 24, 1, activation="softmax"),
            "open": lambda: self.ended(None, None, 3, activation="softmax"),
            "whole numbers": lambda: self.ended(*small, activation="softmax", dtype="uint8", scale=1 / 255),
            "scales itself": lambda: self.ended(*small, activation="softmax", scale=1 / 127.5),
            "in a dict": lambda: keras.Model(
                (whole := self.ended(*small, activation="softmax")).inputs, {"p": whole.outputs[0]}
            ),
            "softmax by an operation": lambda: keras.Model(
                (whole := self.ended(*small)).inputs, keras.ops.softmax(whole.outputs[0])
            ),
            "sequential": lambda: keras.Sequential(
                [keras.Input(small), self.ended(*small), keras.layers.Activation("sigmoid")]
            ),
            "nested": lambda: keras.Sequential([keras.Input(small), self.ended(*small, activation="sigmoid")]),
            "lambda": lambda: keras.Model(
                pixels := keras.Input(small),
                self.ended(*small, activation="softmax")(keras.layers.Lambda(lambda all: all / 2)(pixels)),
            ),
            "custom layer": lambda: keras.Model(
                pixels := keras.Input(small), self.ended(*small, activation="softmax")(self.mine.Doubled()(pixels))
            ),
            "custom class": self.whole,
            "half precision": self.half,
        }

    def whole(self) -> Any:
        whole = self.mine.Whole()
        whole(np.zeros((2, 20, 24, 3), np.float32))  # which builds it
        return whole

    def half(self) -> Any:
        self.keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            return self.ended(20, 24, 3)
        finally:
            self.keras.config.set_dtype_policy("float32")

    def saved(self, kind: str, form: str = "keras") -> Path:
        """The path of a network that Keras has saved in a form: keras, h5, weights, or folder, a SavedModel."""
        path = self.folder / (f"{kind}.{'weights.h5' if form == 'weights' else form}".replace(" ", "-"))
        if not path.exists():
            if form == "folder":
                self.model(kind).export(path, verbose=False)
            elif form == "weights":
                self.model(kind).save_weights(path)
            else:
                self.model(kind).save(path)
        return path

    def by_tensorflow(self, kind: str) -> Path:
        """The folder of a SavedModel that TensorFlow has written without Keras."""
        import tensorflow as tf

        weights = tf.constant(np.random.default_rng(1).normal(0, 0.02, (3, CLASSES)), tf.float32)

        class Module(tf.Module):  # type: ignore[misc]
            @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, "image")])
            def independent(self, image: Any) -> Any:
                return {"scores": tf.sigmoid(tf.reduce_mean(tf.cast(image, tf.float32), [1, 2]) @ weights)}

            @tf.function(input_signature=[tf.TensorSpec((None, 20, 24, 3), tf.float32, "image")])
            def logits(self, image: Any) -> Any:
                return {"scores": tf.reduce_mean(image, [1, 2]) @ weights}

            @tf.function(input_signature=[tf.TensorSpec((None, 20, 24, 3), tf.float16, "image")])
            def two(self, image: Any) -> Any:
                return {"scores": tf.reduce_mean(image, [1, 2]), "boxes": tf.reduce_mean(image, [1])}

            @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "files")])
            def words(self, files: Any) -> Any:
                return {"scores": tf.strings.length(files)}

        path = self.folder / f"tensorflow-{kind}".replace(" ", "-")
        if not path.exists():
            module = Module()
            own = ["logits", "two"] if kind == "several signatures" else [kind]
            tf.saved_model.save(module, path, signatures={name: getattr(module, name) for name in own})
        return path
