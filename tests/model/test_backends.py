"""JAX and PyTorch below Keras: KERAS_BACKEND changes what computes, and no answer.

PyTorch takes gigabytes, so it has an environment of its own: `make test-backends` makes it, and runs all of this.
"""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import redis
from conftest import ROOT, Processes, new_job, output, tiny_spec, wait_for

import helpers
from serving.model import golden

PICTURES = golden.pictures((32, 32, 3))
ON_PYTORCH = ROOT / ".venv-torch" / "bin" / "python"
CLASSIFY = """
import logging, sys
from pathlib import Path
import numpy as np
from serving.model import choose
from serving.model.spec import ModelSpec
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
model, weights, folder = sys.argv[1:]
spec = ModelSpec(model, weights, "numbers", batch_size=8, store=Path(folder))
classifier = choose.load_classifier(spec)
np.save(Path(folder) / "answers.npy", classifier.probabilities(np.load(Path(folder) / "pixels.npy")))
print("by", classifier.runtime.name, classifier.runtime.version)
print("loaded", *sorted({"tensorflow", "jax", "torch"} & set(sys.modules)))
"""


@dataclass(frozen=True)
class Classified:
    """What a process made of n pictures: its probabilities (n, classes), and the lines of its log."""

    probabilities: np.ndarray
    lines: list[str]


def python_with(backend: str) -> str:
    if backend == "torch" and not ON_PYTORCH.exists():
        pytest.skip("PyTorch takes gigabytes: `make test-backends` installs it into .venv-torch, and tests it")
    return str(ON_PYTORCH) if backend == "torch" else sys.executable


def classify(backend: str, pixels: np.ndarray, folder: Path, model: str, weights: str) -> Classified:
    """Run pictures through a model with MODEL_RUNTIME=auto, in a process of its own with its files in `folder`."""
    np.save(folder / "pixels.npy", pixels)
    environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    command = [python_with(backend), "-c", CLASSIFY, model, weights, str(folder)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return Classified(np.load(folder / "answers.npy"), ran.stdout.splitlines())


def save_network(folder: Path) -> tuple[Path, np.ndarray, str]:
    """A small network with convolutions, as a file; TensorFlow's answers to the golden pictures, and its version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from serving.model import keras_models
        from serving.model.keras_setup import keras
    keras.utils.set_random_seed(2)
    pixels = keras.Input((32, 32, 3))
    tensor = keras.layers.Rescaling(1 / 127.5, offset=-1)(pixels)
    for filters in (8, 16):
        tensor = keras.layers.SeparableConv2D(filters, 3, strides=2, padding="same", activation="relu")(tensor)
        tensor = keras.layers.BatchNormalization()(tensor)
    tensor = keras.layers.GlobalAveragePooling2D()(keras.layers.Dropout(0.5)(tensor))
    tensor = keras.layers.Dense(5, kernel_initializer="random_normal")(tensor * 50)
    keras.Model(pixels, keras.layers.Softmax()(tensor)).save(folder / "network.keras")
    network = keras_models.load_network(tiny_spec(str(folder / "network.keras")))
    answers = network.model.predict_on_batch(PICTURES)
    assert np.abs(answers[:1] - answers[1:]).max(axis=1).min() > 0.01  # else any answer would do
    return folder / "network.keras", answers, str(network.version)


@pytest.mark.parametrize("backend", ["jax", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_backend_gives_tensorflows_answers_and_runs_the_model_itself(backend: str, tmp_path: Path) -> None:
    path, expected, version = save_network(tmp_path)
    found = classify(backend, PICTURES, tmp_path, str(path), "imagenet")
    assert found.probabilities == pytest.approx(expected, abs=1e-5)
    says = (
        f"not on OpenVINO: OpenVINO converts what Keras runs on TensorFlow, and KERAS_BACKEND is {backend}. Keras runs"
    )
    assert any(line.startswith(says) for line in found.lines)
    assert found.lines[-2:] == [f"by keras {version}", f"loaded {backend}"]
    assert [line for line in found.lines if line.startswith("warming up")] == [
        f"warming up: batches of {size}" for size in (1, 2, 4, 8)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_what_tensorflow_converted_is_run_by_openvino_whatever_the_backend(backend: str, tmp_path: Path) -> None:
    path, expected, version = save_network(tmp_path)
    assert classify("tensorflow", PICTURES, tmp_path, str(path), "imagenet").lines[-2].startswith("by openvino")
    found = classify(backend, PICTURES, tmp_path, str(path), "imagenet")
    assert found.probabilities == pytest.approx(expected, abs=0.02)
    assert found.lines[-2:] == [f"by openvino {version}", "loaded"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_an_architecture_with_its_weights_gives_tensorflows_answers(backend: str, tmp_path: Path) -> None:
    from test_architectures import keras_alone

    weights = tmp_path / "own.weights.h5"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels, expected, _ = keras_alone("MobileNetV2", weights)
    found = classify(backend, pixels, tmp_path, "MobileNetV2", str(weights))
    assert found.probabilities == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_model_server_on_another_backend_answers(
    processes: Processes,
    raw: redis.Redis,
    tiny_model: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
) -> None:
    monkeypatch.setattr(sys, "executable", python_with(backend))
    options = {"KERAS_BACKEND": backend, "KERAS_HOME": str(tmp_path)}
    process = processes.start("run_model_server.py", **tiny_model, **options)
    job = new_job(image=helpers.encode_image(np.full((32, 32, 3), (0, 255, 0), np.uint8), "uint8"))
    raw.rpush("image_queue", job.to_text())
    assert json.loads(wait_for(lambda: raw.get(job.id)))[0]["label"] == "green"
    assert "on the CPU by Keras" in output(process)
    process.terminate()
    assert process.wait(timeout=30) == 0
