"""The model: every source of architecture, weights and labels, and what is said when one of them is wrong."""

import json
import os
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import DATA, REAL_MODEL

from serving.errors import ModelFailed, ModelUnavailable, OutOfMemory


@pytest.fixture(scope="module")
def model() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from serving import model
    return model


@pytest.fixture(scope="module")
def tiny(model: ModuleType, tiny_model: dict[str, str]):
    return model.load_model(tiny_model["MODEL"], "imagenet", width=32, height=32, precision="auto")


RED_GREEN_BLUE = np.stack(
    [np.full((32, 32, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
)
LABELS = ["red", "green", "blue", "grey"]


def test_each_image_of_a_batch_gets_its_own_labels_likeliest_first(model: ModuleType, tiny: object) -> None:
    classifier = model.Classifier(tiny, LABELS, top=4, batch_size=8)
    classifier.warm_up()
    answers = classifier.predict(RED_GREEN_BLUE)
    assert [answer[0]["label"] for answer in answers] == ["red", "green", "blue"]
    for answer in answers:
        probabilities = [prediction["probability"] for prediction in answer]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("count", range(1, 9))
def test_padding_changes_no_answer_and_is_never_returned(model: ModuleType, tiny: object, count: int) -> None:
    classifier = model.Classifier(tiny, LABELS, top=1, batch_size=8)
    pixels = np.stack([RED_GREEN_BLUE[i % 3] for i in range(count)])
    before = pixels.copy()
    labels = [answer[0]["label"] for answer in classifier.predict(pixels)]
    assert labels == [("red", "green", "blue")[i % 3] for i in range(count)]
    assert np.array_equal(pixels, before)


def test_images_go_in_the_batch_sizes_that_run_them_soonest(model: ModuleType) -> None:
    on_a_cpu = model._cheapest_sizes({size: size + 0.1 for size in (1, 2, 4, 8, 16, 32)})
    assert (on_a_cpu[24], on_a_cpu[32], on_a_cpu[3]) == ([16, 8], [32], [2, 1])
    on_a_gpu = model._cheapest_sizes({size: 5 + size / 100 for size in (1, 2, 4, 8, 16, 32)})
    assert (on_a_gpu[24], on_a_gpu[17], on_a_gpu[3], on_a_gpu[1]) == ([32], [32], [4], [1])
    for count, sizes in enumerate(on_a_cpu):
        assert sum(sizes) >= count


@pytest.mark.parametrize("count", range(1, 9))
def test_a_batch_in_several_parts_is_put_together_in_order(model: ModuleType, tiny: object, count: int) -> None:
    classifier = model.Classifier(tiny, LABELS, top=1, batch_size=8)
    classifier._plan = model._cheapest_sizes({1: 1.1, 2: 2.1, 4: 4.1, 8: 8.1})
    pixels = np.stack([RED_GREEN_BLUE[i % 3] for i in range(count)])
    labels = [answer[0]["label"] for answer in classifier.predict(pixels)]
    assert labels == [("red", "green", "blue")[i % 3] for i in range(count)]


def test_top_is_limited_by_the_classes_there_are(model: ModuleType, tiny: object) -> None:
    assert len(model.Classifier(tiny, LABELS, top=100, batch_size=1).predict(RED_GREEN_BLUE[:1])[0]) == 4


def test_labels_that_do_not_fit_the_model_are_refused(model: ModuleType, tiny: object) -> None:
    with pytest.raises(ModelUnavailable, match="3 labels, but the model tells 4 classes"):
        model.Classifier(tiny, LABELS[:3], top=1, batch_size=1)


def test_each_kind_of_label_file_is_read(model: ModuleType, tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"1": ["n2", "cat"], "0": ["n1", "dog"]}))
    plain = tmp_path / "labels.txt"
    plain.write_text("dog\ncat\n")
    names = tmp_path / "names.json"
    names.write_text(json.dumps(["dog", "cat"]))
    for path in (index, plain, names):
        assert model.load_labels(str(path), 2) == ["dog", "cat"]
    assert model.load_labels("numbers", 2) == ["class 0", "class 1"]


@pytest.mark.parametrize("content", [None, "{", '{"7": ["n", "dog"]}', '{"0": []}', "7"])
def test_a_wrong_label_file_is_refused_with_what_it_should_be(
    model: ModuleType, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "labels.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ModelUnavailable, match="MODEL_LABELS"):
        model.load_labels(str(path), 1)


def load(model: ModuleType, name: str, weights: str = "random", **changes: object) -> object:
    return model.load_model(name, weights, **({"width": 32, "height": 32, "precision": "auto"} | changes))


def test_an_unknown_model_is_refused_with_those_there_are(model: ModuleType) -> None:
    with pytest.raises(ModelUnavailable, match="MODEL=NoSuchNet.*MobileNetV2.*ResNet50"):
        load(model, "NoSuchNet")
    with pytest.raises(ModelUnavailable, match="MODEL=/nowhere.keras"):
        load(model, "/nowhere.keras")


def test_weights_that_are_missing_or_of_another_model_are_refused(model: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no such file"):
        load(model, "MobileNetV2", "/nowhere.h5")
    wrong = tmp_path / "wrong.weights.h5"
    wrong.write_bytes(b"not weights")
    with pytest.raises(ModelUnavailable, match=r"wrong\.weights\.h5"):
        load(model, "MobileNetV2", str(wrong))


def test_an_input_size_that_the_model_does_not_take_is_refused(
    model: ModuleType, tiny_model: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ModelUnavailable, match="IMAGE_HEIGHT, IMAGE_WIDTH"):
        load(model, tiny_model["MODEL"], width=224)
    if (weights := DATA / "mobilenet_v2_imagenet.weights.h5").is_file():
        assert load(model, "MobileNetV2", str(weights), width=224, height=224)


def test_random_weights_are_the_same_in_every_model_server(model: ModuleType) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    first, second = (load(model, "MobileNetV2").predict_on_batch(pixels) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_in_mixed_precision_the_softmax_is_still_float32(model: ModuleType, precision: str) -> None:
    loaded = load(model, "MobileNetV2", precision=precision)
    try:
        probabilities = loaded.predict_on_batch(np.zeros((2, 32, 32, 3), np.uint8))
        assert probabilities.dtype == np.float32
        assert probabilities.sum(axis=1) == pytest.approx(np.ones(2), abs=1e-5)
        assert "mixed" in loaded.layers[-2].dtype_policy.name or precision in loaded.layers[-2].compute_dtype
    finally:
        model.keras.config.set_dtype_policy("float32")


def test_an_output_that_is_no_probability_is_refused_at_warm_up(model: ModuleType, tmp_path: Path) -> None:
    keras = model.keras
    path = tmp_path / "logits.keras"
    pixels = keras.Input((32, 32, 3))
    dense = keras.layers.Dense(4, bias_initializer="ones")(keras.layers.GlobalAveragePooling2D()(pixels))
    keras.Model(pixels, dense).save(path)
    classifier = model.Classifier(load(model, str(path)), LABELS, top=1, batch_size=1)
    with pytest.raises(ModelUnavailable, match="softmax"):
        classifier.warm_up()


def test_what_the_framework_raises_is_told_apart(
    model: ModuleType, tiny: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = model.Classifier(tiny, LABELS, top=1, batch_size=1)

    class ResourceExhaustedError(Exception):
        pass

    cases = [
        (ResourceExhaustedError("OOM when allocating tensor"), OutOfMemory),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), OutOfMemory),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (ValueError("bad input"), ModelFailed),
    ]
    for raised, expected in cases:

        def fail(_: np.ndarray, raised: Exception = raised) -> None:
            raise raised

        monkeypatch.setattr(tiny, "predict_on_batch", fail)
        with pytest.raises(ModelFailed) as caught:
            classifier.predict(RED_GREEN_BLUE[:1])
        assert type(caught.value) is expected


def test_a_probability_that_is_not_a_number_is_a_failure(
    model: ModuleType, tiny: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = model.Classifier(tiny, LABELS, top=1, batch_size=1)
    monkeypatch.setattr(tiny, "predict_on_batch", lambda batch: np.full((1, 4), np.nan, np.float32))
    with pytest.raises(ModelFailed, match="not a number"):
        classifier.predict(RED_GREEN_BLUE[:1])


@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2", "DenseNet121", "EfficientNetB0"])
def test_the_normalisation_in_the_graph_is_the_architectures_own(model: ModuleType, name: str) -> None:
    """keras.applications has a preprocess_input per architecture: one of each kind: caffe, tf, torch, none."""
    loaded = load(model, name)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    inner = next(layer for layer in loaded.layers if hasattr(layer, "layers"))
    module = {
        "ResNet50": "resnet50",
        "MobileNetV2": "mobilenet_v2",
        "DenseNet121": "densenet",
        "EfficientNetB0": "efficientnet",
    }[name]
    preprocess = getattr(model.keras.applications, module).preprocess_input
    logits = inner.predict_on_batch(preprocess(pixels.astype(np.float32)))
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    assert loaded.predict_on_batch(pixels) == pytest.approx(expected, abs=1e-5)


def test_the_float_wires_normalisation_is_resnet50s(model: ModuleType) -> None:
    import base64

    import helpers

    pixels = np.random.default_rng(2).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    sent = np.frombuffer(base64.b64decode(helpers.encode_image(pixels, "float32")), np.float32).reshape(8, 8, 3)
    expected = model.keras.applications.resnet50.preprocess_input(pixels.astype(np.float32)[np.newaxis].copy())[0]
    assert sent == pytest.approx(expected, abs=1e-4)


def test_the_real_weights_load(model: ModuleType) -> None:
    if not Path(REAL_MODEL["MODEL_WEIGHTS"]).is_file():
        pytest.skip(f"{DATA} is missing")
    loaded = load(model, "MobileNetV2", REAL_MODEL["MODEL_WEIGHTS"], width=224, height=224)
    assert loaded.output_shape == (None, 1000)
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
