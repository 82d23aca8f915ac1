"""The model: every source of architecture, weights and labels, and what is said when one of them is wrong."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import DATA, REAL_MODEL, ROOT, tiny_spec

from serving.errors import ModelUnavailable
from serving.model.labels import load_labels


@pytest.fixture(scope="module")
def keras_runtime() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from serving.model import keras_runtime
    return keras_runtime


def test_each_kind_of_label_file_is_read(tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"1": ["n2", "cat"], "0": ["n1", "dog"]}))
    plain = tmp_path / "labels.txt"
    plain.write_text("dog\ncat\n")
    names = tmp_path / "names.json"
    names.write_text(json.dumps(["dog", "cat"]))
    for path in (index, plain, names):
        assert load_labels(str(path), 2) == ["dog", "cat"]
    assert load_labels("numbers", 2) == ["class 0", "class 1"]


@pytest.mark.parametrize("content", [None, "{", '{"7": ["n", "dog"]}', '{"0": []}', "7"])
def test_a_wrong_label_file_is_refused_with_what_it_should_be(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "labels.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ModelUnavailable, match="MODEL_LABELS"):
        load_labels(str(path), 1)


def load(_: ModuleType, name: str, weights: str = "random", **changes: object) -> object:
    from serving.model import keras_models

    return keras_models.load_model(tiny_spec(name, weights=weights, **changes))


def test_an_unknown_model_is_refused_with_those_there_are(keras_runtime: ModuleType) -> None:
    with pytest.raises(ModelUnavailable, match="MODEL=NoSuchNet.*MobileNetV2.*ResNet50"):
        load(keras_runtime, "NoSuchNet")
    with pytest.raises(ModelUnavailable, match="MODEL=/nowhere.keras"):
        load(keras_runtime, "/nowhere.keras")


def test_weights_that_are_missing_or_of_another_model_are_refused(keras_runtime: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="No such file"):
        load(keras_runtime, "MobileNetV2", "/nowhere.h5")
    wrong = tmp_path / "wrong.weights.h5"
    wrong.write_bytes(b"not weights")
    with pytest.raises(ModelUnavailable, match=r"wrong\.weights\.h5"):
        load(keras_runtime, "MobileNetV2", str(wrong))


def test_an_input_size_that_the_model_does_not_take_is_refused(
    keras_runtime: ModuleType, tiny_model: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ModelUnavailable, match="IMAGE_WIDTH and IMAGE_HEIGHT"):
        load(keras_runtime, tiny_model["MODEL"], width=224, height=224)
    if (weights := DATA / "mobilenet_v2_imagenet.weights.h5").is_file():
        assert load(keras_runtime, "MobileNetV2", str(weights), width=224, height=224)


def test_the_size_comes_from_the_model_where_nobody_sets_it(
    keras_runtime: ModuleType, tiny_model: dict[str, str], tmp_path: Path
) -> None:
    nothing_set = {"width": None, "height": None}
    assert load(keras_runtime, "InceptionV3", **nothing_set).input_shape == (None, 299, 299, 3)
    assert load(keras_runtime, "MobileNetV3Small", **nothing_set).input_shape == (None, 224, 224, 3)
    assert load(keras_runtime, tiny_model["MODEL"], **nothing_set).input_shape == (None, 32, 32, 3)
    script = (
        "import sys, keras\n"
        "pixels = keras.Input((None, None, 3))\n"
        "dense = keras.layers.Dense(4, activation='softmax')(keras.layers.GlobalAveragePooling2D()(pixels))\n"
        "keras.Model(pixels, dense).save(sys.argv[1])\n"
    )
    any_size = str(tmp_path / "any_size.keras")
    subprocess.run([sys.executable, "-c", script, any_size], check=True, capture_output=True)
    assert load(keras_runtime, any_size, **nothing_set).input_shape == (None, 224, 224, 3)
    assert load(keras_runtime, any_size, width=64, height=48).input_shape == (None, 48, 64, 3)


def test_the_version_is_a_digest_of_the_weights(keras_runtime: ModuleType) -> None:
    one, other = load(keras_runtime, "MobileNetV2"), load(keras_runtime, "MobileNetV2")
    assert re.fullmatch("[0-9a-f]{12}", keras_runtime.version_of(one))
    assert keras_runtime.version_of(one) == keras_runtime.version_of(other)  # random, but the same
    other.layers[-2].set_weights([weight + 1 for weight in other.layers[-2].get_weights()])
    assert keras_runtime.version_of(one) != keras_runtime.version_of(other)


def test_a_model_in_bfloat16_has_a_version_too(keras_runtime: ModuleType) -> None:
    import keras

    pixels = keras.Input((32, 32, 3), dtype="bfloat16")
    dense = keras.layers.Dense(4, dtype="bfloat16")(keras.layers.GlobalAveragePooling2D(dtype="bfloat16")(pixels))
    assert re.fullmatch("[0-9a-f]{12}", keras_runtime.version_of(keras.Model(pixels, dense)))


def test_random_weights_are_the_same_in_every_model_server(keras_runtime: ModuleType) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    first, second = (load(keras_runtime, "MobileNetV2").predict_on_batch(pixels) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_in_mixed_precision_the_softmax_is_still_float32(keras_runtime: ModuleType, precision: str) -> None:
    loaded = load(keras_runtime, "MobileNetV2", precision=precision)
    try:
        probabilities = loaded.predict_on_batch(np.zeros((2, 32, 32, 3), np.uint8))
        assert probabilities.dtype == np.float32
        assert probabilities.sum(axis=1) == pytest.approx(np.ones(2), abs=1e-5)
        assert "mixed" in loaded.layers[-2].dtype_policy.name or precision in loaded.layers[-2].compute_dtype
    finally:
        keras_runtime.keras.config.set_dtype_policy("float32")


SELDOM = [pytest.param(name, marks=pytest.mark.slow) for name in ("ResNet50", "DenseNet121", "EfficientNetB0")]


@pytest.mark.parametrize("name", ["MobileNetV2", *SELDOM])
def test_the_normalisation_in_the_graph_is_the_architectures_own(keras_runtime: ModuleType, name: str) -> None:
    """keras.applications has a preprocess_input per architecture: one of each kind: caffe, tf, torch, none."""
    loaded = load(keras_runtime, name)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    inner = next(layer for layer in loaded.layers if hasattr(layer, "layers"))
    module = {
        "ResNet50": "resnet50",
        "MobileNetV2": "mobilenet_v2",
        "DenseNet121": "densenet",
        "EfficientNetB0": "efficientnet",
    }[name]
    preprocess = getattr(keras_runtime.keras.applications, module).preprocess_input
    logits = inner.predict_on_batch(preprocess(pixels.astype(np.float32)))
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    assert loaded.predict_on_batch(pixels) == pytest.approx(expected, abs=1e-5)


def test_the_float_wires_normalisation_is_resnet50s(keras_runtime: ModuleType) -> None:
    import base64

    import helpers

    pixels = np.random.default_rng(2).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    sent = np.frombuffer(base64.b64decode(helpers.encode_image(pixels, "float32")), np.float32).reshape(8, 8, 3)
    expected = keras_runtime.keras.applications.resnet50.preprocess_input(pixels.astype(np.float32)[np.newaxis].copy())[
        0
    ]
    assert sent == pytest.approx(expected, abs=1e-4)


def test_the_real_weights_load(keras_runtime: ModuleType) -> None:
    if not Path(REAL_MODEL["MODEL_WEIGHTS"]).is_file():
        pytest.skip(f"{DATA} is missing")
    loaded = load(keras_runtime, "MobileNetV2", REAL_MODEL["MODEL_WEIGHTS"], width=224, height=224)
    assert loaded.output_shape == (None, 1000)
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"


ON_JAX = """
import sys
import numpy as np
from serving.model import keras_models, keras_runtime
from serving.model.spec import ModelSpec
name, path = sys.argv[1:]
assert keras_runtime.keras.backend.backend() == "jax"
spec, pixels = ModelSpec(name, "random", "numbers", width=32, height=32), np.load(path)
network = keras_models.load_model(spec)
for keras_runtime.MOST_CONSTANT_PARAMETERS in (0, 10**9):
    batches = {batch.shape.capacity: batch for batch in keras_runtime.KerasRuntime(network).compiled_batches(8)}
    assert sorted(batches) == [1, 2, 4, 8]
    whole = batches[8].run(pixels)
    assert np.array_equal(batches[8].run(pixels), whole)  # the variables are where they were
    assert np.allclose(np.concatenate([batches[4].run(pixels[:4]), batches[4].run(pixels[4:])]), whole, atol=1e-6)
    np.save(f"{path}-{keras_runtime.MOST_CONSTANT_PARAMETERS}.npy", whole)
# What is compiled takes the pixels and nothing else; JAX may one day make arguments of constants again.
assert "%arg0" in (text := keras_runtime.compiled(network).lower(pixels).as_text()) and "%arg1" not in text
"""


@pytest.mark.slow  # tests/model/test_backends.py does it by the whole way, from the settings on
def test_on_jax_the_answers_are_tensorflows(
    keras_runtime: ModuleType, tiny_model: dict[str, str], tmp_path: Path
) -> None:
    """Its variables passed in, as those of a large model, and compiled in."""
    pixels, path = np.random.default_rng(3).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), tmp_path / "batch.npy"
    np.save(path, pixels)
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ON_JAX, tiny_model["MODEL"], str(path)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    expected = load(keras_runtime, tiny_model["MODEL"]).predict_on_batch(pixels)
    for most_constants in (0, 10**9):
        assert np.load(f"{path}-{most_constants}.npy") == pytest.approx(expected, abs=1e-5)
