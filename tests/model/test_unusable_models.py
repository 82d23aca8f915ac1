"""A model that cannot be served ends in one sentence, whatever Keras raises: each made by Keras itself."""

import os
import re
import warnings
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import redis
from conftest import Processes, output, tiny_spec

from serving.errors import ModelUnavailable
from serving.model import choose, classifier
from serving.model.failures import LONGEST, model_unavailable, why

pytestmark = pytest.mark.filterwarnings("ignore")  # Keras's own, while these files are made
OWN_CODE = r"MODEL_ALLOW_CODE=1 lets it run, or the name of its module: docs/own-model\.md\.$"


@pytest.fixture(scope="module")
def keras() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras
    return keras


def softmax(keras: ModuleType, tensor: Any, classes: int = 4) -> Any:
    return keras.layers.Dense(classes, activation="softmax")(keras.layers.GlobalAveragePooling2D()(tensor))


def model_of(keras: ModuleType, kind: str) -> Any:
    """A model of a kind that Keras saves and loads gladly, and that no service can serve."""
    pixels = keras.Input((32, 32, 3))
    end = softmax(keras, pixels)
    other = keras.Input((4,))
    numbers = keras.Input((), dtype="int32")
    channels_first, ten = keras.Input((3, 32, 32)), keras.Input((32, 32, 3), batch_size=10)
    four, open_size = keras.Input((32, 32, 4)), keras.Input((None, None, 3))
    if kind == "unbuilt":
        return keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4, activation="softmax")])
    return {
        "two outputs": lambda: keras.Model(pixels, [end, end]),
        "nested outputs": lambda: keras.Model(pixels, {"a": end, "b": {"c": end}}),
        "two inputs": lambda: keras.Model([pixels, other], keras.layers.Add()([end, other])),
        "inputs in a dict": lambda: keras.Model({"pixels": pixels, "other": other}, keras.layers.Add()([end, other])),
        "three dimensions": lambda: keras.Model(pixels, keras.layers.Reshape((1, 4))(end)),
        "one dimension": lambda: keras.Model(pixels, keras.ops.argmax(end, axis=-1)),
        "four channels": lambda: keras.Model(four, softmax(keras, four)),
        "channels first": lambda: keras.Model(channels_first, softmax(keras, channels_first)),
        "always ten": lambda: keras.Model(ten, softmax(keras, ten)),
        "other size": lambda: keras.Model(big := keras.Input((64, 64, 3)), softmax(keras, big)),
        "too small": lambda: keras.Model(open_size, softmax(keras, keras.layers.Conv2D(2, 64)(open_size))),
        "embedding": lambda: keras.Model(numbers, keras.layers.Embedding(9, 4)(numbers)),
        "strings": lambda: keras.Model(
            words := keras.Input((1,), dtype="string"), keras.layers.TextVectorization(vocabulary=["a"])(words)
        ),
        "lambda": lambda: keras.Model(pixels, keras.layers.Lambda(lambda all: all * 2)(end)),
        "no softmax": lambda: keras.Model(pixels, keras.layers.Dense(4)(end)),
        "one logit": lambda: keras.Model(pixels, keras.layers.Dense(1)(end)),
        "one by softmax": lambda: keras.Model(pixels, softmax(keras, pixels, 1)),
        "one that says nothing": lambda: keras.Model(pixels, keras.ops.mean(end, axis=1, keepdims=True)),
        "last layer says nothing": lambda: keras.Model(pixels, keras.ops.clip(end, 0.0, 0.1)),
        "negative": lambda: keras.Model(pixels, end - 2.0),
        "not a number": lambda: keras.Model(pixels, keras.ops.log(end - 2.0)),
    }[kind]()


NO_ACTIVATION = (
    r"^MODEL=\S+ has logits, no probabilities: its last layer, dense_\d+, has no activation\. Set MODEL_ACTIVATION to "
)
KINDS = {
    "two outputs": r"^MODEL=\S+ has 2 outputs: it must have one, \(None, classes\)\. Save the part that classifies: ",
    "nested outputs": r"^MODEL=\S+ has 2 outputs \(a, b\): it must have one, ",
    "two inputs": r"^MODEL=\S+ takes 2 inputs: it must take one, an image\.$",
    "inputs in a dict": r"^MODEL=\S+ takes 2 inputs: it must take one, an image\.$",
    "three dimensions": r"^MODEL=\S+ maps an image to \(None, 1, 4\): it must give \(None, classes\)\. End it in a ",
    "one dimension": r"^MODEL=\S+ maps an image to \(None,\): it must give \(None, classes\)\. End it in a ",
    "four channels": r"^MODEL=\S+ takes \(None, 32, 32, 4\): the channels, which come last, must be 3 \(RGB\) ",
    "channels first": r"^MODEL=\S+ takes \(None, 3, 32, 32\), the channels first\. Save it with the channels last: ",
    "always ten": r"^MODEL=\S+ takes \(10, 32, 32, 3\), always 10 images together\. Save it with an open batch: ",
    "other size": r"^MODEL=\S+ takes 64×64 pixels, but IMAGE_WIDTH and IMAGE_HEIGHT say 32×32\. Leave both unset\.$",
    "too small": r"^MODEL=\S+ cannot be run on 32×32 pixels: .+\. ",
    "embedding": r"^MODEL=\S+ takes \(None,\), which is no image: it must take \(None, height, width, channels\)\.$",
    "strings": r"^MODEL=\S+ takes \(None, 1\), which is no image: it must take ",
    "lambda": r"^MODEL=\S+ cannot be loaded: .*Lambda.*" + OWN_CODE,
    "unbuilt": r"^MODEL=\S+ was saved before it was built: call it once before model\.save\.$",
    "no softmax": NO_ACTIVATION + r"softmax, or to sigmoid if the labels do not exclude each other\.$",
    "one logit": NO_ACTIVATION + r"sigmoid\.$",
    "one by softmax": r"^MODEL=\S+ has one output, and a softmax of one is always 1\. ",
    "one that says nothing": r"^MODEL=\S+ has one output, and nothing tells whether that is a logit or a prob",
    "not a number": r"^The model's output on a blank image is not a number: its weights may be damaged\.$",
    "last layer says nothing": r"^The model's outputs are no probabilities: they do not sum to 1\. Of a network "
    "of your own, set MODEL_ACTIVATION to softmax if they are logits; ",
    "negative": r"^The model's outputs are no probabilities: they are not between 0 and 1\. Of a network of your own, ",
}


BY_BOTH = ("two outputs", "negative", "not a number")  # these are met in places of their own


def refusal(path: Path | str, runtime: str = "keras", **changes: object) -> str:
    """The sentence with which the model server refuses a model."""
    changes = {"runtime": runtime, "batch_size": 2, "store": Path(path).parent} | changes
    choose._load_keras.cache_clear()
    with pytest.raises(ModelUnavailable) as refused:
        choose.load_classifier(tiny_spec(str(path), **changes))
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 3 * LONGEST  # the longest names all models there are
    return str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_does_not_do_is_refused_in_one_sentence(keras: ModuleType, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    model_of(keras, kind).save(path)
    for runtime in ("keras", "auto") if kind in BY_BOTH else ("keras",):
        says = refusal(path, runtime)
        assert re.search(KINDS[kind], says), says


def test_a_model_that_takes_images_of_any_size_takes_the_wanted_one(keras: ModuleType, tmp_path: Path) -> None:
    pixels = keras.Input((None, None, 3))
    keras.Model(pixels, softmax(keras, pixels)).save(tmp_path / "model.keras")
    choose._load_keras.cache_clear()
    loaded = choose.load_classifier(tiny_spec(str(tmp_path / "model.keras"), runtime="keras", batch_size=2))
    assert loaded.input_shape == (32, 32, 3)
    assert loaded.probabilities(np.zeros((2, 32, 32, 3), np.uint8)).sum() == pytest.approx(2)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float16"])
def test_a_model_whose_input_is_of_another_type_gets_it(keras: ModuleType, dtype: str, tmp_path: Path) -> None:
    pixels = keras.Input((32, 32, 3), dtype=dtype)
    keras.Model(pixels, softmax(keras, keras.ops.cast(pixels, "float32") / 255)).save(tmp_path / "model.keras")
    choose._load_keras.cache_clear()
    loaded = choose.load_classifier(tiny_spec(str(tmp_path / "model.keras"), runtime="keras", batch_size=2))
    assert loaded.probabilities(np.full((1, 32, 32, 3), 255, np.uint8)).sum() == pytest.approx(1)


def test_a_layer_that_this_service_does_not_know_is_named(keras: ModuleType, tmp_path: Path) -> None:
    class Mine(keras.layers.Layer):
        def call(self, tensor: Any) -> Any:
            return tensor

    pixels = keras.Input((32, 32, 3))
    keras.Model(pixels, softmax(keras, Mine()(pixels))).save(tmp_path / "model.keras")
    says = refusal(tmp_path / "model.keras")
    assert re.search(r"^MODEL=\S+ cannot be loaded: Could not locate class 'Mine'.*" + OWN_CODE, says), says
    assert "{" not in says  # of the layer's configuration, which Keras appends


def test_a_model_that_fails_when_it_runs_is_refused(keras: ModuleType, tmp_path: Path) -> None:
    """It is built without an error: only numbers that are looked up, and are not there, make it fail."""
    pixels = keras.Input((32, 32, 3))
    flat = keras.layers.Reshape((-1, 48))(pixels)
    # 64 rows of 48 numbers a picture; the batch's own count is only known when it runs.
    wrong = keras.ops.reshape(flat, (-1, 5, 7))
    keras.Model(pixels, softmax(keras, keras.ops.expand_dims(wrong, -1))).save(tmp_path / "model.keras")
    for runtime in ("keras", "auto"):
        says = refusal(tmp_path / "model.keras", runtime)
        assert re.search(r"^The model fails on a blank image: .*must be evenly divisible.*\.$", says), says


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "text", "truncated", "other zip", "h5", "folder", "pipe", "unreadable"]
)
def test_what_is_no_keras_file_is_refused(keras: ModuleType, kind: str, tmp_path: Path) -> None:
    path, whole = tmp_path / "model.keras", tmp_path / "whole.keras"
    pixels = keras.Input((32, 32, 3))
    model = keras.Model(pixels, softmax(keras, pixels))
    model.save(whole)
    content = whole.read_bytes()
    if kind in ("empty", "text", "truncated"):
        path.write_bytes({"empty": b"", "text": b"no model", "truncated": content[: len(content) // 2]}[kind])
    elif kind == "other zip":
        with zipfile.ZipFile(path, "w") as other:
            other.writestr("readme.txt", "no model")
    elif kind == "h5":
        model.save(tmp_path / "model.h5")
        (tmp_path / "model.h5").rename(path)
    elif kind == "folder":
        model.export(path, verbose=False)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "unreadable":
        path.symlink_to("/proc/1/mem")
    says = refusal(path)
    reasons = {
        "missing": r"No such file or directory\. MODEL is a \.keras file, ",
        "folder": r"it is a part of a SavedModel|^MODEL=\S+ is a SavedModel, which is a program of TensorFlow's",
        "pipe": r"it is no file\. MODEL is ",
        "h5": r"it is no \.keras file by its content, but a \.h5 file, so rename it\. MODEL is ",
        "unreadable": r"(Input|Permission)",
    }
    begins = r"" if kind == "folder" else r"^MODEL=\S+ cannot be loaded: "
    otherwise = r".+\. It must be a file that Keras 3's model\.save wrote\. If it has code of its own, "
    assert re.search(begins + reasons.get(kind, otherwise), says), says


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "text", "folder", "pipe", "unreadable", "other model", "other classes", "bad name"]
)
def test_weights_that_do_not_fit_are_refused(keras: ModuleType, kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("weights.bin" if kind == "bad name" else "own.weights.h5")
    if kind in ("empty", "text", "bad name"):
        path.write_bytes(b"" if kind == "empty" else b"no weights")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "unreadable":
        path.symlink_to("/proc/1/mem")
    elif kind == "other model":
        pixels = keras.Input((32, 32, 3))
        keras.Model(pixels, softmax(keras, pixels)).save_weights(path)
    elif kind == "other classes":
        keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), classes=7).save_weights(path)
    for runtime in ("keras", "auto") if kind == "other model" else ("keras",):
        says = refusal("MobileNetV2", runtime, weights=str(path), store=tmp_path)
        begins = (
            rf"^MODEL=MobileNetV2 with MODEL_WEIGHTS={path} at 32×32 cannot be built: .+\. MODEL_WEIGHTS is imagenet, "
        )
        is_no_file = kind in ("missing", "folder", "pipe", "unreadable")  # which is met before anything takes long
        assert re.search(rf"^MODEL_WEIGHTS={path} cannot be read: " if is_no_file else begins, says), says


def test_a_model_too_large_for_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.model import keras_setup

    def too_large(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(keras_setup.keras.applications, "MobileNetV2", too_large)
    says = refusal("MobileNetV2", weights="random", store=tmp_path)
    assert "cannot be built: there is not enough memory. " in says


class Strange:
    """A runtime whose output has another shape than it says."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.input_shape, self.classes, self._shape = (32, 32, 3), 2, shape
        self.shape = choose_shape()

    def compiled_batches(self, batch_size: int) -> list[Any]:  # noqa: ARG002
        return [self]

    def run(self, pixels: np.ndarray) -> np.ndarray:  # noqa: ARG002
        return np.full(self._shape, 1 / self._shape[-1], np.float32)


def choose_shape() -> Any:
    from serving.model.runtime import BatchShape

    return BatchShape("strange", 2)


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (2, 2, 2), (2,)])
def test_an_output_of_another_shape_than_the_runtime_says_is_refused(shape: tuple[int, ...]) -> None:
    strange = classifier.Classifier(Strange(shape), ["a", "b"], top=1, batch_size=2)
    with pytest.raises(ModelUnavailable, match=rf"has the shape {re.escape(str(shape))}: it must be \(2, 2\)\.$"):
        strange.warm_up()


def test_pages_become_a_sentence_and_signals_pass() -> None:
    assert why(ValueError("\x1b[1mfirst\x1b[0m\n\n  second.\n")) == "first second"
    assert why(KeyError("name")) == "name"
    assert why(ValueError()) == "ValueError"
    assert len(why(ValueError("word " * 1000))) <= LONGEST + 2
    assert why(ValueError("Exception encountered when calling A.call().\n\nThe reason.\nArguments received by A.")) == (
        "The reason"
    )
    with pytest.raises(KeyboardInterrupt), model_unavailable("what", "advice"):
        raise KeyboardInterrupt
    with pytest.raises(ModelUnavailable, match="^ours$"), model_unavailable("what", "advice"):
        raise ModelUnavailable("ours")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two outputs", "lambda"])
def test_the_process_ends_with_2_and_one_line(
    processes: Processes, raw: redis.Redis, keras: ModuleType, kind: str, tmp_path: Path
) -> None:
    model_of(keras, kind).save(tmp_path / "model.keras")
    settings = {"MODEL": str(tmp_path / "model.keras"), "MODEL_LABELS": "numbers", "IMAGE_WIDTH": "32"}
    settings |= {"IMAGE_HEIGHT": "32", "KERAS_HOME": str(tmp_path)}
    process = processes.start("run_model_server.py", "--redis-is-known", **settings)
    assert process.wait(timeout=100) == 2, output(process)
    (line,) = output(process).splitlines()
    assert re.search(KINDS[kind], line)
    debugging = processes.start("run_model_server.py", **settings, LOG_LEVEL="debug")
    assert debugging.wait(timeout=100) == 2
    assert output(debugging).splitlines()[-1] == line
    assert ("Traceback" in output(debugging)) == (kind == "lambda")  # of Keras's errors, not of our own sentences
