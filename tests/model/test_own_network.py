"""A network of one's own: its answers are its own, whatever the format, the ends and the runtime; what does not fit is
refused in one sentence. Every network is a real one, saved by Keras or TensorFlow."""

import json
import logging
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from conftest import ROOT, Processes, output, wait_for
from own_networks import CLASSES, MODULE, Networks

from serving.errors import ModelUnavailable
from serving.model import choose, openvino_runtime, openvino_store, own_network
from serving.model.classifier import Classifier
from serving.model.spec import ModelSpec, name_of

pytestmark = pytest.mark.filterwarnings("ignore")  # Keras's own, while the networks are made
RUNTIMES = ["keras", "openvino"]
PIXELS = np.random.default_rng(7).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Networks]:
    folder = tmp_path_factory.mktemp("networks")
    (folder / "my_layers.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras
        import my_layers  # type: ignore[import-not-found]
    yield Networks(keras, folder, my_layers)
    sys.path.remove(str(folder))


@pytest.fixture(autouse=True)
def measured_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runtime, "MEASURE_SECONDS", 0.0)
    choose._load_keras.cache_clear()


def spec_of(path: Path | str, **changes: object) -> ModelSpec:
    defaults = {"weights": "imagenet", "labels": "numbers", "batch_size": 2, "runtime": "keras"}
    return ModelSpec(str(path), **(defaults | {"store": Path(path).parent} | changes))  # type: ignore[arg-type]


def loaded(path: Path | str, **changes: object) -> Classifier:
    if changes.get("runtime") == "openvino":
        changes = {"precision": "float32"} | changes
    classifier = choose.load_classifier(spec_of(path, **changes))
    assert getattr(classifier.runtime, "name", "") == changes.get("runtime", "keras")
    return classifier


def answers(classifier: Classifier, pixels: np.ndarray) -> np.ndarray:
    """The probabilities of each image, some of them in one batch."""
    return np.concatenate([classifier.probabilities(pixels[:2]), classifier.probabilities(pixels[2:])])


def softmax(logits: np.ndarray) -> np.ndarray:
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return grown / grown.sum(axis=1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def two(p: np.ndarray) -> np.ndarray:
    return np.concatenate([1 - p, p], axis=1)


def same(outputs: np.ndarray) -> np.ndarray:
    return outputs


# kind, form, settings, what Keras's own outputs become, whether the labels are independent
TAKEN: dict[str, tuple[str, str, dict[str, Any], Any, bool]] = {
    "a .keras file": ("softmax", "keras", {}, same, False),
    "an .h5 file": ("softmax", "h5", {}, same, False),
    "a SavedModel": ("softmax", "folder", {"allow_code": "1", "activation": "none"}, same, False),
    "a SavedModel, auto": ("softmax", "folder", {"allow_code": "1"}, same, False),
    "logits": ("logits", "keras", {"activation": "softmax"}, softmax, False),
    "logits in an .h5 file": ("logits", "h5", {"activation": "softmax"}, softmax, False),
    "logits in a SavedModel": ("logits", "folder", {"activation": "softmax", "allow_code": "1"}, softmax, False),
    "independent logits": ("logits", "keras", {"activation": "sigmoid"}, sigmoid, True),
    "one sigmoid": ("one sigmoid", "keras", {}, two, False),
    "one sigmoid, told": ("one sigmoid", "folder", {"activation": "none", "allow_code": "1"}, two, False),
    "one logit": ("one logit", "keras", {"activation": "sigmoid"}, lambda one: two(sigmoid(one)), False),
    "several sigmoids": ("sigmoids", "keras", {}, same, True),
    "several sigmoids, told": ("sigmoids", "folder", {"activation": "independent", "allow_code": "1"}, same, True),
    "sigmoids behind a network": ("sequential", "keras", {}, same, True),
    "sigmoids within a network": ("nested", "keras", {}, same, True),
    "softmax by an operation": ("softmax by an operation", "keras", {}, same, False),
    "whole numbers": ("whole numbers", "keras", {}, same, False),
    "one output in a dict": ("in a dict", "keras", {}, same, False),
    "a lambda": ("lambda", "keras", {"allow_code": "1"}, same, False),
    "a lambda in an .h5 file": ("lambda", "h5", {"allow_code": "1"}, same, False),
    "a custom layer": ("custom layer", "keras", {"allow_code": "my_layers"}, same, False),
    "a custom class": ("custom class", "keras", {"allow_code": "my_layers"}, same, False),
}
BY_OPENVINO = ["a .keras file", "a SavedModel", "logits", "one logit", "several sigmoids", "a custom layer"]
CASES = [pytest.param(case, "keras", id=case) for case in TAKEN]
CASES += [pytest.param(case, "openvino", id=f"{case}, by OpenVINO") for case in BY_OPENVINO]


@pytest.mark.parametrize(("case", "runtime"), CASES)
def test_the_answers_are_the_networks_own(networks: Networks, case: str, runtime: str) -> None:
    kind, form, settings, become, independent = TAKEN[case]
    classifier = loaded(networks.saved(kind, form), runtime=runtime, **settings)
    given = PIXELS if kind == "whole numbers" else PIXELS.astype(np.float32)
    outputs = networks.model(kind).predict_on_batch(given)
    expected = become(outputs["p"] if isinstance(outputs, dict) else outputs)
    assert answers(classifier, PIXELS) == pytest.approx(expected, abs=1e-5 if runtime == "keras" else 1e-3)
    assert classifier.input_shape == (20, 24, 3)
    assert classifier.independent is independent
    assert len(classifier.labels) == expected.shape[1] == (2 if kind.startswith("one ") else CLASSES)
    assert expected.std() > 1e-3  # the network tells these images apart, or the labels


def by_hand(pixels: np.ndarray, preprocessing: str) -> np.ndarray:
    """What a network is given, as its papers say it."""
    floats = pixels.astype(np.float32)
    return {
        "none": lambda: floats,
        "0..1": lambda: floats / 255,
        "-1..1": lambda: floats / 127.5 - 1,
        "caffe": lambda: floats[..., ::-1] - np.array([103.939, 116.779, 123.68], np.float32),
        "torch": lambda: (floats / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225]),
    }[preprocessing]().astype(np.float32)


@pytest.mark.parametrize("preprocessing", ["none", "0..1", "-1..1", "caffe", "torch"])
def test_the_pixels_are_prepared_as_the_network_was_trained(networks: Networks, preprocessing: str) -> None:
    runtime = "openvino" if preprocessing == "caffe" else "keras"
    path, settings = networks.saved("softmax"), {"preprocessing": preprocessing, "runtime": runtime}
    expected = networks.model("softmax").predict_on_batch(by_hand(PIXELS, preprocessing))
    assert answers(loaded(path, **settings), PIXELS) == pytest.approx(expected, abs=1e-3)
    others = [one for one in ("none", "0..1", "-1..1", "caffe", "torch") if one != preprocessing]
    for other in others:  # the test can tell them apart
        found = networks.model("softmax").predict_on_batch(by_hand(PIXELS, other))
        assert np.abs(found - expected).max() > 2e-3, other


OF_APPLICATIONS = {
    "-1..1": ["mobilenet", "mobilenet_v2", "inception_v3", "xception", "nasnet", "resnet_v2", "inception_resnet_v2"],
    "caffe": ["resnet", "vgg16", "vgg19"],
    "torch": ["densenet"],
}


def test_the_documented_preprocessing_is_that_of_each_application(networks: Networks) -> None:
    page = (ROOT / "docs" / "own-model.md").read_text()
    for preprocessing, modules in OF_APPLICATIONS.items():
        assert f"| `{preprocessing}` |" in page
        for module in modules:
            prepare = getattr(networks.keras.applications, module).preprocess_input
            found = prepare(PIXELS.astype(np.float32).copy())
            assert found == pytest.approx(by_hand(PIXELS, preprocessing), abs=1e-4), module


@pytest.mark.slow  # it trains a network
def test_the_documented_example_is_trained_served_and_right(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "own-model.md").read_text()
    code = next(
        one for one in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL) if "colours.py" in one
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    classifier = choose.load_classifier(
        spec_of(tmp_path / "colours.keras", labels=str(tmp_path / "labels.txt"), runtime="auto")
    )
    for channel, label in enumerate(["red", "green", "blue"]):
        pixels = np.random.default_rng(channel).integers(0, 130, (1, 64, 64, 3), dtype=np.uint8)
        pixels[..., channel] += 120
        (likeliest, *_) = classifier.predict(pixels)[0]
        assert (likeliest["label"], likeliest["probability"]) == (label, pytest.approx(1, abs=0.05))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_network_may_take_one_channel(networks: Networks, runtime: str) -> None:
    grey = PIXELS[..., :1]
    classifier = loaded(networks.saved("grey"), runtime=runtime, preprocessing="-1..1")
    assert classifier.input_shape == (20, 24, 1)
    expected = networks.model("grey").predict_on_batch(by_hand(grey, "-1..1"))
    assert answers(classifier, grey) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("size", "shape"), [((None, None), (224, 224, 3)), ((24, 20), (20, 24, 3)), ((24, None), (224, 24, 3))]
)
def test_an_open_size_is_what_the_settings_say(
    networks: Networks, size: tuple[int, int], shape: tuple[int, ...]
) -> None:
    classifier = loaded(networks.saved("open"), width=size[0], height=size[1])
    assert classifier.input_shape == shape
    if shape == (20, 24, 3):
        expected = networks.model("open").predict_on_batch(PIXELS.astype(np.float32))
        assert answers(classifier, PIXELS) == pytest.approx(expected, abs=1e-5)


def test_a_saved_model_of_tensorflows_own_is_served(networks: Networks) -> None:
    """Its only signature has another name, takes whole numbers of any size, and gives a dict of one."""
    settings = {"activation": "independent", "allow_code": "1", "width": 24, "height": 20}
    classifier = loaded(networks.by_tensorflow("independent"), **settings)
    weights = np.random.default_rng(1).normal(0, 0.02, (3, CLASSES)).astype(np.float32)
    expected = sigmoid(PIXELS.astype(np.float32).mean(axis=(1, 2)) @ weights)
    assert answers(classifier, PIXELS) == pytest.approx(expected, abs=1e-5)
    assert classifier.independent


def test_a_network_in_half_precision_keeps_it_and_its_softmax_is_float32(networks: Networks) -> None:
    classifier = loaded(networks.saved("half precision"), activation="softmax")
    assert choose.identity(spec_of(networks.saved("half precision")), classifier.runtime).precision == "bfloat16"
    found = answers(classifier, PIXELS)
    assert found.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-6)  # bfloat16 has three digits
    outputs = networks.model("half precision").predict_on_batch(PIXELS.astype(np.float32)).astype(np.float32)
    assert found == pytest.approx(softmax(outputs), abs=1e-5)


def test_a_network_that_is_loaded_leaves_nothing_to_the_next_one(networks: Networks) -> None:
    networks.keras.config.set_dtype_policy("mixed_float16")  # as a model of keras.applications may leave it
    try:
        classifier = loaded(networks.saved("logits"), activation="softmax")
    finally:
        networks.keras.config.set_dtype_policy("float32")
    expected = softmax(networks.model("logits").predict_on_batch(PIXELS.astype(np.float32)))
    assert answers(classifier, PIXELS) == pytest.approx(expected, abs=1e-5)


def test_the_labels_of_one_output_are_in_the_order_of_the_file(networks: Networks, tmp_path: Path) -> None:
    (tmp_path / "class_indices.json").write_text('{"dogs": 1, "cats": 0}')
    classifier = loaded(networks.saved("one sigmoid"), labels=str(tmp_path / "class_indices.json"))
    dogs = float(networks.model("one sigmoid").predict_on_batch(PIXELS[:1].astype(np.float32))[0, 0])
    said = {one["label"]: one["probability"] for one in classifier.predict(PIXELS[:1])[0]}
    assert said == {"cats": pytest.approx(1 - dogs, abs=1e-5), "dogs": pytest.approx(dogs, abs=1e-5)}


def test_independent_labels_are_a_list_that_need_not_sum_to_1(networks: Networks) -> None:
    classifier = loaded(networks.saved("sigmoids"))
    (entries,) = classifier.predict(PIXELS[:1])
    assert [sorted(entry) for entry in entries] == [["label", "probability"]] * CLASSES
    sums = answers(classifier, PIXELS).sum(axis=1)
    assert (np.abs(sums - 1) > 0.05).any()


# --- what is kept for OpenVINO --------------------------------------------------------------------------------------


def key(path: Path, **changes: object) -> str:
    return openvino_store.folder_of(spec_of(path, **changes)).name


def test_whatever_changes_the_answers_changes_the_version_and_what_is_kept(networks: Networks, tmp_path: Path) -> None:
    one, other = tmp_path / "model.keras", networks.saved("logits")
    shutil.copy(networks.saved("softmax"), one)
    specs = [
        spec_of(one),
        spec_of(other),
        spec_of(one, activation="softmax"),
        spec_of(one, preprocessing="0..1"),
        spec_of(one, allow_code="my_layers"),
    ]
    assert len({own_network.version(spec) for spec in specs}) == len(specs)
    assert len({openvino_store.folder_of(spec) for spec in specs}) == len(specs)
    shutil.copy(networks.saved("softmax"), tmp_path / "elsewhere.keras")
    assert own_network.version(spec_of(tmp_path / "elsewhere.keras")) == own_network.version(specs[0])


def test_a_folder_is_told_by_all_its_files(networks: Networks, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    shutil.copytree(networks.saved("softmax", "folder"), folder)
    spec = spec_of(folder, allow_code="1")
    before = own_network.version(spec), key(folder)
    variables = next((folder / "variables").glob("variables.data*"))
    variables.write_bytes(variables.read_bytes()[::-1])
    after = own_network.version(spec), key(folder)
    variables.rename(variables.with_name("elsewhere"))
    moved = own_network.version(spec), key(folder)
    assert len({before, after, moved}) == 3


def test_a_module_of_ones_own_that_changes_is_never_answered_for_by_what_was_kept(
    networks: Networks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, settings = networks.saved("custom layer"), {"store": tmp_path, "allow_code": "my_layers"}
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            choose._load_keras.cache_clear()
            loaded(path, runtime="openvino", **settings)
    assert caplog.text.count("converted the model for OpenVINO") == 2


def test_what_is_kept_knows_that_its_labels_are_independent(
    networks: Networks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            choose._load_keras.cache_clear()
            assert loaded(networks.saved("sigmoids"), runtime="openvino", store=tmp_path).independent
    assert caplog.text.count("converted the model for OpenVINO") == 1
    assert choose._load_keras.cache_info().currsize == 0  # the second start needed no Keras


# --- what does not fit together -------------------------------------------------------------------------------------

ALLOWED = {"allow_code": "1"}
# what is served: a kind and a form, or a name; settings; what is said behind MODEL=<path>, or the whole sentence
REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "logits": (
        "logits",
        "keras",
        {},
        r" has logits, no probabilities: its last layer, dense\w*, has no activation\. Set MODEL_ACTIVATION "
        r"to softmax, or to sigmoid if the labels do not exclude each other\.$",
    ),
    "logits in an .h5 file": (
        "logits",
        "h5",
        {},
        " has logits, no probabilities: .* Set MODEL_ACTIVATION to softmax",
    ),
    "logits in a SavedModel": (
        "logits",
        "folder",
        ALLOWED,
        "^The model's outputs are no probabilities: .* set MODEL_ACTIVATION to softmax if they are logits",
    ),
    "one logit": (
        "one logit",
        "keras",
        {},
        r" has logits, .* Set MODEL_ACTIVATION to sigmoid\.$",
    ),
    "one output of a SavedModel": (
        "one sigmoid",
        "folder",
        ALLOWED,
        r" has one output, and nothing tells whether that is a logit or a probability\. Set MODEL_ACTIVATION "
        r"to sigmoid for a logit, to none for a probability\.$",
    ),
    "sigmoids in a SavedModel": (
        "sigmoids",
        "folder",
        ALLOWED,
        r"^The model's outputs are no probabilities: they do not sum to 1\. Of a network of your own, set .* "
        r"to independent for probabilities\.$",
    ),
    "softmax twice": (
        "softmax",
        "keras",
        {"activation": "softmax"},
        r"^MODEL_ACTIVATION=softmax is for logits, and MODEL=\S+ has probabilities already: its last layer, "
        r"dense\w*, is a softmax\. Leave MODEL_ACTIVATION unset\.$",
    ),
    "softmax twice in a SavedModel": (
        "softmax",
        "folder",
        {"allow_code": "1", "activation": "softmax"},
        r"^MODEL_ACTIVATION=softmax is for logits, and MODEL=\S+ has probabilities already: its outputs sum "
        r"to 1\. Set MODEL_ACTIVATION to none\.$",
    ),
    "sigmoid behind a softmax": (
        "softmax",
        "keras",
        {"activation": "sigmoid"},
        "^MODEL_ACTIVATION=sigmoid is for logits, ",
    ),
    "softmax of one": (
        "one logit",
        "keras",
        {"activation": "softmax"},
        " has one output, and a softmax of one is always 1",
    ),
    "independent softmax": (
        "softmax",
        "keras",
        {"activation": "independent"},
        r"^MODEL_ACTIVATION=independent is for labels that do not exclude each other, and those of MODEL=\S+ "
        r"do: its last layer, dense\w*, is a softmax\. Set MODEL_ACTIVATION to none\.$",
    ),
    "one independent": (
        "one sigmoid",
        "keras",
        {"activation": "independent"},
        r"^MODEL_ACTIVATION=independent .* do: it has one output, for two labels\. Set MODEL_ACTIVATION to "
        r"none\.$",
    ),
    "several sigmoids as one choice": (
        "sigmoids",
        "keras",
        {"activation": "none"},
        "^The model's outputs are no probabilities: they do not sum ",
    ),
    "caffe for one channel": (
        "grey",
        "keras",
        {"preprocessing": "caffe"},
        r"^MODEL_PREPROCESSING=caffe is for three colours, and MODEL=\S+ takes one channel\. Set "
        r"MODEL_PREPROCESSING to none, 0\.\.1 or -1\.\.1\.$",
    ),
    "fractions for whole numbers": (
        "whole numbers",
        "keras",
        {"preprocessing": "0..1"},
        r"^MODEL_PREPROCESSING=0\.\.1 makes fractions, and MODEL=\S+ takes whole numbers \(uint8\)\. Leave "
        r"MODEL_PREPROCESSING unset\.$",
    ),
    "another size": (
        "softmax",
        "keras",
        {"width": 64, "height": 64},
        r" takes 24×20 pixels, but IMAGE_WIDTH and IMAGE_HEIGHT say 64×64\. Leave both unset\.$",
    ),
    "a size that cannot be": (
        "open",
        "keras",
        {"width": 2, "height": 2},
        r" cannot be run on 2×2 pixels: Computed output size would be zero or negative\. [^<>{}]+\. Set IMAGE_WIDTH "
        r"and IMAGE_HEIGHT to a size that it takes\.$",
    ),
    "labels too few": (
        "softmax",
        "keras",
        {"labels": "a\nb\nc"},
        r"^There are 3 labels, but the model tells 4 classes apart\. Set MODEL_LABELS to a file with a label "
        r"for each class, or to numbers\.$",
    ),
    "labels too many": (
        "softmax",
        "keras",
        {"labels": "a\nb\nc\nd\ne"},
        "^There are 5 labels, but the model tells 4 ",
    ),
    "one label for two": (
        "one sigmoid",
        "keras",
        {"labels": "dogs"},
        "^There is 1 label, but the model tells 2 classes ",
    ),
    "no labels": (
        "softmax",
        "keras",
        {"labels": "imagenet"},
        r"^The model tells 4 classes apart, and MODEL_LABELS=imagenet, the default, names 1000\. Set "
        r"MODEL_LABELS to a file with 4 labels, or to numbers\.$",
    ),
    "weights": (
        "softmax",
        "keras",
        {"weights": "/other.weights.h5"},
        r"^MODEL_WEIGHTS=/other\.weights\.h5 is for classifiers of keras\.applications; MODEL=\S+ has weights "
        r"of its own\. Leave MODEL_WEIGHTS unset\.$",
    ),
    "random weights": (
        "softmax",
        "h5",
        {"weights": "random"},
        "^MODEL_WEIGHTS=random is for classifiers of keras",
    ),
    "precision": (
        "softmax",
        "keras",
        {"precision": "bfloat16"},
        "^MODEL_PRECISION=bfloat16: Keras runs a network of your own in the precision that was saved with "
        r"it, float32\. Leave MODEL_PRECISION unset\.$",
    ),
    "a lambda": (
        "lambda",
        "keras",
        {},
        " cannot be loaded: Requested the deserialization of a `Lambda` layer .* potential risk "
        r".*MODEL_ALLOW_CODE=1 lets it run, or the name of its module: docs/own-model\.md\.$",
    ),
    "a lambda in an .h5 file": (
        "lambda",
        "h5",
        {},
        " cannot be loaded: Requested the deserialization of a `Lambda` layer",
    ),
    "a lambda beside a module": (
        "lambda",
        "keras",
        {"allow_code": "my_layers"},
        " cannot be loaded: Requested the deserial",
    ),
    "no such module": (
        "softmax",
        "keras",
        {"allow_code": "no_such_module"},
        r"^MODEL_ALLOW_CODE=no_such_module cannot be imported: No module named 'no_such_module'\. Set "
        r"PYTHONPATH to its folder\.$",
    ),
    "a SavedModel without leave": (
        "softmax",
        "folder",
        {},
        r" is a SavedModel, which is a program of TensorFlow's that may read and write files\. If you trust "
        r"whoever made it, set MODEL_ALLOW_CODE=1; or save the network by model\.save as a \.keras file\.$",
    ),
    "a SavedModel beside a module": (
        "softmax",
        "folder",
        {"allow_code": "my_layers"},
        " is a SavedModel, which is a program",
    ),
    "weights alone": (
        "softmax",
        "weights",
        {},
        r" holds weights alone, and not the network\. Save the whole network by model\.save as a \.keras "
        r"file; if these are weights of a classifier of keras\.applications, set MODEL to its name, and "
        r"MODEL_WEIGHTS to this file\.$",
    ),
    "two outputs of a SavedModel": (
        "two",
        "tensorflow",
        ALLOWED,
        r" has 2 outputs \(boxes, scores\): it must have one, ",
    ),
    "a SavedModel of words": (
        "words",
        "tensorflow",
        ALLOWED,
        r" takes \(None,\), which is no image: it must take ",
    ),
    "a SavedModel with several signatures": (
        "several signatures",
        "tensorflow",
        ALLOWED,
        r" cannot be loaded: it must have a signature serving_default, or one alone; there is logits, two\. ",
    ),
    "an application, activation": (
        "MobileNetV2",
        "",
        {"activation": "softmax"},
        "^MODEL_ACTIVATION=softmax is for a network of your own, and MODEL=MobileNetV2 is no such file or folder\\. "
        r"A classifier of keras\.applications has all that it needs: leave MODEL_ACTIVATION unset\.$",
    ),
    "an application, preprocessing": (
        "MobileNetV2",
        "",
        {"preprocessing": "torch"},
        "^MODEL_PREPROCESSING=torch is for a ",
    ),
    "an application, code": (
        "MobileNetV2",
        "",
        ALLOWED,
        "^MODEL_ALLOW_CODE=1 is for a network of your own, and ",
    ),
}


def served(networks: Networks, kind: str, form: str) -> Path | str:
    if form == "tensorflow":
        return networks.by_tensorflow(kind)
    return networks.saved(kind, form) if form else kind


def refusal(path: Path | str, **changes: object) -> str:
    with pytest.raises(ModelUnavailable) as refused:
        choose.load_classifier(spec_of(path, **changes))
    says = str(refused.value)
    assert "\n" not in says
    assert "\x1b" not in says
    return says


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_combination_is_refused_with_the_sentence_that_mends_it(
    networks: Networks, case: str, tmp_path: Path
) -> None:
    kind, form, changes, expected = REFUSED[case]
    if (labels := changes.get("labels", "imagenet")) != "imagenet":
        (tmp_path / "labels.txt").write_text(labels)
        changes = changes | {"labels": str(tmp_path / "labels.txt")}
    says = refusal(served(networks, kind, form), store=tmp_path, **changes)
    assert re.search(expected if expected.startswith("^") else rf"^MODEL=\S+{expected}", says), says


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.keras", "No such file or directory"),
        ("missing/", "No such file or directory"),
        ("empty/", "it is a folder, and no SavedModel, as it holds no saved_model.pb"),
        ("versions/", r"it is a folder, and no SavedModel, .*; \S+/versions/2 has one, so set MODEL to that"),
        ("model.onnx", r"its name ends in \.onnx, and Keras tells files by \.keras, \.h5 and \.hdf5"),
        ("model.KERAS", r"its name ends in \.KERAS, and Keras"),
        ("model", "its name has no ending, and Keras"),
        ("zip.h5", r"it is no \.h5 file by its content, but a \.keras file, so rename it"),
        ("whole/saved_model.pb", r"it is a part of a SavedModel, so set MODEL to its folder, \S+/whole"),
        ("corrupt.h5", "."),
        ("corrupt/", "."),
    ],
)
def test_what_is_no_network_is_refused_with_what_is_read(
    networks: Networks, tmp_path: Path, name: str, reason: str
) -> None:
    for folder in ("empty", "versions/1", "versions/2", "whole", "corrupt"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("versions/1", "versions/2", "whole", "corrupt"):
        (tmp_path / folder / "saved_model.pb").write_bytes(b"no model")
    for file in ("model.onnx", "model.KERAS", "model", "corrupt.h5"):
        (tmp_path / file).write_bytes(b"no model")
    shutil.copy(networks.saved("softmax"), tmp_path / "zip.h5")
    says = refusal(f"{tmp_path}/{name}", store=tmp_path, allow_code="1")
    assert re.search(rf"^MODEL=\S+ cannot be loaded: {reason}.*\. (MODEL is|It must be) a ", says), says


def test_a_folder_that_is_called_like_no_model_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flowers").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "MODEL=flowers: no such model; the folder flowers is no SavedModel. Set it to" in refusal("flowers")


def test_two_ways_to_scale_are_asked_about(networks: Networks, caplog: pytest.LogCaptureFixture) -> None:
    loaded(networks.saved("scales itself"), preprocessing="0..1")
    assert (
        "has a layer that scales its input, and MODEL_PREPROCESSING=0..1 comes before it: is that meant?" in caplog.text
    )
    caplog.clear()
    loaded(networks.saved("scales itself"))
    assert "scales its input" not in caplog.text


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/flowers.keras", "flowers"),
        ("/a/flowers.h5", "flowers"),
        ("b/my flowers/", "my-flowers"),
        ("ResNet50", "ResNet50"),
    ],
)
def test_a_network_is_called_by_its_file_or_its_folder(path: str, name: str) -> None:
    assert name_of(path) == name


def test_a_folder_of_versions_gives_its_name(
    networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(networks.saved("softmax", "folder"), tmp_path / "flowers.v2" / "1")
    assert name_of(str(tmp_path / "flowers.v2" / "1")) == "flowers.v2"
    monkeypatch.chdir(tmp_path / "flowers.v2")
    assert name_of("1") == name_of(str(Path("1") / ".")) == "flowers.v2"


def test_a_process_says_it_in_one_line_and_exits_with_2(
    processes: Processes, raw: redis.Redis, networks: Networks
) -> None:
    """And at once, without Keras."""
    folder = networks.saved("softmax", "folder")
    process = processes.start("run_model_server.py", "--redis-is-known", MODEL=str(folder), MODEL_LABELS="numbers")
    assert process.wait(timeout=30) == 2
    (line,) = output(process).splitlines()
    assert "is a SavedModel, which is a program of TensorFlow's" in line


@pytest.mark.slow  # Keras in a process of its own; the parts are tested above
def test_a_model_server_publishes_what_it_serves(processes: Processes, raw: redis.Redis, networks: Networks) -> None:
    sigmoids, labels = networks.saved("sigmoids"), networks.folder / "class_indices.json"
    labels.write_text(json.dumps({f"label {number}": number for number in range(CLASSES)}))
    process = processes.start(
        "run_model_server.py",
        MODEL=str(sigmoids),
        MODEL_LABELS=str(labels),
        MODEL_PREPROCESSING="0..1",
        BATCH_SIZE="2",
        KERAS_HOME=str(networks.folder),
    )
    wait_for(lambda: raw.exists("{image_queue}:serves"), seconds=60)
    (text,) = raw.hvals("{image_queue}:serves")
    told = json.loads(text)
    assert (told["width"], told["height"], told["channels"], told["independent"]) == (24, 20, 3, True)
    assert (told["name"], told["version"]) == (
        "sigmoids",
        own_network.version(spec_of(sigmoids, preprocessing="0..1")),
    )
    process.terminate()
    assert process.wait(timeout=30) == 0
