"""Every classifier of keras.applications by name: its own size, its own normalisation, and Keras's answers.

    Keras: weights made for it, its preprocess_input, predict --.
    ours: MODEL=<name>, MODEL_WEIGHTS=<these weights> -----------'--> the same probabilities

`python tests/model/test_architectures.py` compares all of them, one after the other, and prints the table of
docs/architectures.md; with names, these alone.
"""

import gc
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script

from serving.model import choose, golden
from serving.model.spec import ModelSpec

ROOT = Path(__file__).parents[2]
# The module of keras.applications whose preprocess_input belongs to each, and the width and height of its input.
ARCHITECTURES = {
    "ConvNeXtBase": ("convnext", 224),
    "ConvNeXtLarge": ("convnext", 224),
    "ConvNeXtSmall": ("convnext", 224),
    "ConvNeXtTiny": ("convnext", 224),
    "ConvNeXtXLarge": ("convnext", 224),
    "DenseNet121": ("densenet", 224),
    "DenseNet169": ("densenet", 224),
    "DenseNet201": ("densenet", 224),
    "EfficientNetB0": ("efficientnet", 224),
    "EfficientNetB1": ("efficientnet", 240),
    "EfficientNetB2": ("efficientnet", 260),
    "EfficientNetB3": ("efficientnet", 300),
    "EfficientNetB4": ("efficientnet", 380),
    "EfficientNetB5": ("efficientnet", 456),
    "EfficientNetB6": ("efficientnet", 528),
    "EfficientNetB7": ("efficientnet", 600),
    "EfficientNetV2B0": ("efficientnet_v2", 224),
    "EfficientNetV2B1": ("efficientnet_v2", 240),
    "EfficientNetV2B2": ("efficientnet_v2", 260),
    "EfficientNetV2B3": ("efficientnet_v2", 300),
    "EfficientNetV2L": ("efficientnet_v2", 480),
    "EfficientNetV2M": ("efficientnet_v2", 480),
    "EfficientNetV2S": ("efficientnet_v2", 384),
    "InceptionResNetV2": ("inception_resnet_v2", 299),
    "InceptionV3": ("inception_v3", 299),
    "MobileNet": ("mobilenet", 224),
    "MobileNetV2": ("mobilenet_v2", 224),
    "MobileNetV3Large": ("mobilenet_v3", 224),
    "MobileNetV3Small": ("mobilenet_v3", 224),
    "NASNetLarge": ("nasnet", 331),
    "NASNetMobile": ("nasnet", 224),
    "ResNet101": ("resnet", 224),
    "ResNet101V2": ("resnet_v2", 224),
    "ResNet152": ("resnet", 224),
    "ResNet152V2": ("resnet_v2", 224),
    "ResNet50": ("resnet50", 224),
    "ResNet50V2": ("resnet_v2", 224),
    "VGG16": ("vgg16", 224),
    "VGG19": ("vgg19", 224),
    "Xception": ("xception", 299),
}
SMALL = ("MobileNet",)
# Hundreds of layers with weights that nobody trained grow a rounding error until batches of 1 and 2 answer differently,
# and the warm-up refuses them. So this one is not compared.
NOT_COMPARED = ("EfficientNetV2L",)
COMPARED = [name for name in ARCHITECTURES if name not in NOT_COMPARED]
CLOSE, FAR = 1e-4, 0.005  # a probability from Keras's; two pictures' answers from each other
HEADS = ("`MODEL`", "size", "parameters", "agrees within", "two pictures differ by", "seconds to start")


@dataclass(frozen=True)
class Compared:
    """What came of comparing one architecture with Keras."""

    name: str
    side: int
    parameters: int
    off_by: float  # the largest difference of a probability
    apart: float  # how far two pictures' answers are from each other: a wrong model would be off by as much
    seconds: float  # to load it, and to warm up batches of 1 and 2

    @property
    def row(self) -> str:
        cells = (
            self.name,
            f"{self.side}×{self.side}",
            f"{self.parameters / 1e6:.1f} million",
            f"{self.off_by:.0e}" if self.off_by else "0",
            f"{self.apart:.2f}",
            f"{self.seconds:.1f}",
        )
        return f"| {' | '.join(cells)} |"


def keras_alone(name: str, weights: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Two pictures, (2, height, width, 3) uint8, what Keras itself says of them, (2, 1000), and its parameters.

    The network gets weights with which it tells pictures apart, and saves them in `weights`.
    """
    import keras

    module, side = ARCHITECTURES[name]
    keras.utils.set_random_seed(1)
    network = getattr(keras.applications, name)(weights=None)
    pixels = golden.pictures((side, side, 3))[:4]
    pixels[2], pixels[3] = 0, 255  # a model server runs blank images too
    prepared = getattr(keras.applications, module).preprocess_input(pixels.astype(np.float32))
    make_telling(network, prepared)
    network.save_weights(weights)
    return pixels[:2], network.predict_on_batch(prepared)[:2], network.count_params()


def make_telling(network: Any, prepared: np.ndarray) -> None:
    """Give a network weights that answer pictures differently.

    With those that Keras begins a training with many a network answers 0.001 for each of 1,000 classes, whatever it is
    shown: its activations fade from layer to layer. So normalise them as training would, and spread the logits.
    """
    for layer in network.layers:
        if hasattr(layer, "momentum"):
            layer.momentum = 0.0  # what batch normalisation sees now is what it remembers
        if hasattr(layer, "rate"):
            layer.rate = 0.0  # no dropout: what it sees is what it will meet
    network(prepared, training=True)
    last = next(layer for layer in reversed(network.layers) if layer.weights)
    spread = np.log(network.predict_on_batch(prepared)).std()
    kernel, *rest = last.get_weights()
    last.set_weights([kernel * (2 / spread), *rest])


def compare(name: str) -> Compared:
    """Build an architecture by Keras and by our classifier, with the same weights, and run both."""
    import keras

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's own
        weights = Path(folder) / "own.weights.h5"
        pixels, expected, parameters = keras_alone(name, weights)
        keras.backend.clear_session()
        gc.collect()
        began = time.monotonic()
        spec = ModelSpec(name, str(weights), "numbers", runtime="keras", batch_size=2)
        classifier = choose.load_classifier(spec)
        seconds = time.monotonic() - began
        found = classifier.probabilities(pixels)
    side = ARCHITECTURES[name][1]
    assert classifier.input_shape == (side, side, 3)
    assert classifier.runtime.precision == "float32"  # type: ignore[attr-defined]
    off_by, apart = float(np.abs(found - expected).max()), float(np.abs(expected[0] - expected[1]).max())
    del classifier
    keras.backend.clear_session()
    gc.collect()
    return Compared(name, side, parameters, off_by, apart, seconds)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in COMPARED]
)
def test_an_architecture_answers_as_keras_itself(name: str) -> None:
    compared = compare(name)
    assert compared.off_by < CLOSE
    assert compared.apart > FAR
    (row,) = [row for row in table_of_the_docs() if row[0] == name]
    assert row[:3] == compared.row.strip("| ").split(" | ")[:3]


def table_of_the_docs() -> list[list[str]]:
    lines = (ROOT / "docs" / "architectures.md").read_text().splitlines()
    first = lines.index(f"| {' | '.join(HEADS)} |") + 2
    rows = [line.strip("| ").split(" | ") for line in lines[first:]]
    return [row for row in rows if len(row) == len(HEADS)]


def test_the_table_of_the_docs_has_every_classifier_of_keras_applications() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras
    assert sorted(name for name in dir(keras.applications) if name[0].isupper()) == sorted(ARCHITECTURES)
    assert {name: size for name, size, *_ in table_of_the_docs()} == {
        name: f"{ARCHITECTURES[name][1]}×{ARCHITECTURES[name][1]}" for name in COMPARED
    }
    for _, _, _, off_by, apart, _ in table_of_the_docs():
        assert (float(off_by) < CLOSE, float(apart) > FAR) == (True, True)


if __name__ == "__main__":
    print(f"| {' | '.join(HEADS)} |\n|{' --- |' * len(HEADS)}")
    for architecture in sys.argv[1:] or COMPARED:
        print(compare(architecture).row, flush=True)
