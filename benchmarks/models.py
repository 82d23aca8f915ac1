"""The models that the benchmarks measure with: the mission's own, a light one, and none.

A model is converted for OpenVINO once, before any system starts, and its precision and its batch sizes are chosen while
nothing else runs. Every system then runs the same file in the same precision by the same compiled batches.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

from systems import RIVAL_PYTHON, RIVALS, ROOT

KEEP = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from serving.model import keras_models, openvino_store
from serving.model.spec import ModelSpec
spec = ModelSpec(sys.argv[2], sys.argv[3], "numbers", width=224, height=224, precision="float32")
network = keras_models.load_model(spec)
openvino_store.convert_and_store(network, [f"class {i}" for i in range(1000)], Path(sys.argv[4]))
"""


@dataclass(frozen=True)
class Model:
    """What a system under test is told of its model.

    Args:
        title: what tables call the model.
        name: of a classifier of keras.applications; none: a model that costs nothing.
        precision: float32, bfloat16, or auto, until `kept` finds out what that is.
        weights: random, imagenet, or a file.
        folder: where the model is kept for OpenVINO; none: Keras runs the model.
    """

    title: str
    name: str = ""
    precision: str = "auto"
    weights: str = "random"
    folder: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """The variables that rivals/shared.py and rivals/tutorial_model.py read."""
        named = {"BENCH_ARCHITECTURE": self.name, "BENCH_WEIGHTS": self.weights}
        return named | {"BENCH_MODEL": self.folder or self.name, "BENCH_PRECISION": self.precision}


NO_MODEL = Model("no model")
# MobileNetV2 is given its precision: with weights that mean something, bfloat16's answers are too far from Keras's.
KINDS = {
    "resnet50": Model("ResNet50", "ResNet50"),
    "mobilenetv2": Model("MobileNetV2", "MobileNetV2", "float32"),
    "none": NO_MODEL,
}


def kept(model: Model) -> Model:
    """The model, converted anew, with the precision that it runs in.

    Were this left to the systems, those that start together would measure beside each other, and would choose
    different batch sizes.
    """
    if not model.name:
        return model
    folder = RIVAL_PYTHON.parent.parent / "models" / model.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    said([sys.executable, "-c", KEEP, str(ROOT), model.name, model.weights, str(folder)])
    model = dataclasses.replace(model, folder=str(folder))
    precision = said([str(RIVAL_PYTHON), str(RIVALS / "shared.py")], **model.environment)
    return dataclasses.replace(model, precision=precision, title=f"{model.title}, {precision}")


def said(command: list[str], **environment: str) -> str:
    """The last line that a program printed. Raises SystemExit, with its errors, when it fails."""
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    return (ended.stdout.splitlines() or [""])[-1]
