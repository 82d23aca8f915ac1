"""What runs a model: chosen by its spec, or a class of one's own; and where that keeps what it compiles."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, tiny_spec

from serving.errors import ModelFailed, ModelUnavailable, OutOfMemory
from serving.model import choose
from serving.model.runtime import BatchShape, CompiledBatch
from serving.model.spec import ModelSpec, name_of


class Loud:
    """A runtime of one's own that raises, as libraries do, what nobody has mapped."""

    classes = 2

    def __init__(self, spec: ModelSpec) -> None:
        self.input_shape = (spec.height, spec.width, 3)

    def compiled_batches(self, batch_size: int) -> list[CompiledBatch]:
        return [LoudBatch(BatchShape("loud", batch_size, piece_images=1))]


class LoudBatch:
    def __init__(self, shape: BatchShape) -> None:
        self.shape = shape

    def run(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.max() == 1:
            raise KeyError("an error of the library")
        if pixels.max() == 2:
            raise RuntimeError("std::bad_alloc")
        return np.full((len(pixels), 2), 0.5, np.float32)


def test_a_runtime_of_ones_own_may_raise_what_it_likes() -> None:
    classifier = choose.load_classifier(tiny_spec("mine", runtime=f"{__name__}:Loud", batch_size=4))
    pixels = np.zeros((3, 32, 32, 3), np.uint8)
    assert classifier.probabilities(pixels).tolist() == [[0.5, 0.5]] * 3
    with pytest.raises(ModelFailed, match="KeyError") as failed:
        classifier.probabilities(pixels + 1)
    assert not isinstance(failed.value, OutOfMemory)
    with pytest.raises(OutOfMemory, match="A batch of 3"):
        classifier.probabilities(pixels + 2)


@pytest.mark.parametrize("name", ["no_such_module:Class", f"{__name__}:NoSuchClass"])
def test_a_runtime_that_cannot_be_imported_says_what_to_set(name: str) -> None:
    with pytest.raises(ModelUnavailable, match=f"MODEL_RUNTIME={name} cannot be imported.*PYTHONPATH"):
        choose.load_classifier(tiny_spec("mine", runtime=name))


@pytest.mark.parametrize("content", ["class Class", "raise RuntimeError('mine')", "import no_such_library"])
def test_a_runtime_whose_module_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    name = f"mine_{abs(hash(content))}"
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelUnavailable, match=f"^MODEL_RUNTIME={name}:Class cannot be imported: .*PYTHONPATH"):
        choose.load_classifier(tiny_spec("mine", runtime=f"{name}:Class"))


@pytest.mark.parametrize("backend", ["torch", "no_such_framework"])
def test_a_framework_that_is_not_there_is_one_sentence(
    tiny_model: dict[str, str], backend: str, tmp_path: Path
) -> None:
    script = (
        "import sys\nfrom serving.model import choose\nfrom serving.model.spec import ModelSpec\n"
        "from serving.errors import ModelUnavailable\n"
        "try: choose.load_classifier(ModelSpec(sys.argv[1], 'imagenet', 'numbers', 32, 32, runtime='keras'))\n"
        "except ModelUnavailable as error: print(error)\n"
    )
    environment = os.environ | {"KERAS_BACKEND": backend, "KERAS_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, tiny_model["MODEL"]]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    (line,) = ran.stdout.splitlines()
    assert line.startswith("Keras cannot be imported: ")
    assert line.endswith("Install what KERAS_BACKEND names: tensorflow, jax or torch.")


class Numpys(Loud):
    """A runtime whose numbers are numpy's."""

    precision = np.float16

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.input_shape = list(np.array(self.input_shape))  # type: ignore[assignment]


def test_what_a_runtime_of_your_own_tells_in_types_of_its_own_can_be_published() -> None:
    spec = tiny_spec("mine", runtime=f"{__name__}:Numpys")
    classifier = choose.load_classifier(spec)
    assert classifier.input_shape == (32, 32, 3)
    json.dumps([classifier.input_shape, vars(choose.identity(spec, classifier.runtime))])


@pytest.mark.parametrize(
    ("architecture", "name"), [("ResNet50", "ResNet50"), ("/a/my flowers.keras", "my-flowers"), ("цветы.keras", None)]
)
def test_a_model_is_called_by_its_architecture_or_its_file(architecture: str, name: str | None) -> None:
    assert re.fullmatch(name or "model-[0-9a-f]{8}", name_of(architecture))
    assert tiny_spec(architecture, name="flowers").called == "flowers"


def no_such_gpu(spec: ModelSpec) -> Loud:
    raise OSError("no such GPU")


def test_a_runtime_that_does_not_start_says_why() -> None:
    with pytest.raises(ModelUnavailable, match="no_such_gpu does not start: no such GPU"):
        choose.load_classifier(tiny_spec("mine", runtime=f"{__name__}:no_such_gpu"))


def test_what_jax_compiles_is_kept_beside_the_weights(
    tiny_model: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set back when the test ends")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        choose._load_keras.cache_clear()
        choose.fetch(tiny_spec(tiny_model["MODEL"], store=tmp_path))
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "jax")
    assert "serving.model.keras_runtime" in sys.modules


@pytest.mark.parametrize(
    ("runtime", "precision", "gpu", "wanted"),
    [
        ("auto", "auto", False, True),
        ("auto", "auto", True, False),
        ("auto", "float16", False, False),
        ("keras", "auto", False, False),
        ("openvino", "auto", True, True),
    ],
)
def test_openvino_is_for_a_cpu(
    monkeypatch: pytest.MonkeyPatch, runtime: str, precision: str, gpu: bool, wanted: bool
) -> None:
    monkeypatch.setattr(choose.openvino_store, "is_installed", lambda: True)
    assert choose._wants_openvino(tiny_spec("ResNet50", runtime=runtime, precision=precision), gpu) is wanted
