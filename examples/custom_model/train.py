"""Trains a small network that tells circles, squares, stars and triangles apart, and saves it for the service.

    shapes.py: pictures with labels --> 64×64 --> a network of four convolutions --> shapes.keras, labels.txt

It takes seconds on a CPU. README.md says how to serve what it saves.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads it as it is imported

import keras
import numpy as np
import shapes

SIDE = 64  # pixels, of the network's input
EPOCHS = 5
HERE = Path(__file__).parent


def main() -> None:
    """Draw, train, save, and tell how many pictures that it has never seen it knows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=HERE / "model", help="where to save (default: model/, here)"
    )
    parser.add_argument(
        "--pictures", type=shapes.count, default=1500, help="how many to learn from (default: %(default)s)"
    )
    arguments = parser.parse_args()
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"nothing can be saved in {arguments.folder}: {error.strerror}")
    began = time.monotonic()
    keras.utils.set_random_seed(0)
    network = train(*drawn(arguments.pictures, seed=0))
    unseen, labels = drawn(400, seed=1)
    right = (network.predict(unseen, verbose=0).argmax(axis=1) == labels).mean()
    network.save(arguments.folder / "shapes.keras")
    (arguments.folder / "labels.txt").write_text("\n".join(shapes.LABELS) + "\n")
    print(f"{right:.1%} of 400 pictures that it has never seen are right; {time.monotonic() - began:.1f} s in all.")
    print(f"Saved {arguments.folder / 'shapes.keras'} and {arguments.folder / 'labels.txt'}.")


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw pictures: (count, SIDE, SIDE, 3) uint8 0..255, and the number of the label of each, (count,)."""
    pairs = list(shapes.pictures(count, seed))
    pixels = np.stack([np.asarray(picture.resize((SIDE, SIDE))) for picture, _ in pairs])
    return pixels, np.array([shapes.LABELS.index(label) for _, label in pairs])


def train(pixels: np.ndarray, labels: np.ndarray) -> keras.Model:
    """Train a network (n, SIDE, SIDE, 3) 0..255, RGB -> (n, 4) probabilities, and print a line for each epoch."""
    layers = [keras.Input((SIDE, SIDE, 3)), keras.layers.Rescaling(1 / 127.5, offset=-1)]
    for filters, size, stride in ((16, 5, 2), (32, 3, 2), (48, 3, 2), (64, 3, 1)):
        layers += [
            keras.layers.Conv2D(filters, size, strides=stride, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.8),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(len(shapes.LABELS), activation="softmax")]
    network = keras.Sequential(layers)
    optimizer = keras.optimizers.Adam(0.005)
    network.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    network.fit(pixels, labels, batch_size=32, epochs=EPOCHS, verbose=0, callbacks=[Lines()])
    return network


class Lines(keras.callbacks.Callback):  # type: ignore[misc]
    """Prints a line for each epoch."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Print what Keras says of the epoch that has ended."""
        print(f"epoch {epoch + 1} of {EPOCHS}: {logs['accuracy']:.1%} right, loss {logs['loss']:.3f}", flush=True)


if __name__ == "__main__":
    main()
