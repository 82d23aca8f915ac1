"""Images in, labels out: each its own, whatever the compiled batches that run them."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import tiny_spec

from serving.errors import ModelFailed, ModelUnavailable, OutOfMemory
from serving.model.classifier import Classifier
from serving.model.compiled_batches import soonest_done
from serving.model.runtime import BatchShape, CompiledBatch

if TYPE_CHECKING:
    from serving.model.keras_runtime import KerasRuntime


@pytest.fixture(scope="module")
def keras_runtime() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from serving.model import keras_runtime
    return keras_runtime


def runtime_of(keras_runtime: ModuleType, architecture: str, **changes: object) -> "KerasRuntime":
    from serving.model import keras_models

    return keras_runtime.KerasRuntime(keras_models.load_model(tiny_spec(architecture, **changes)))


@pytest.fixture
def tiny(keras_runtime: ModuleType, tiny_model: dict[str, str]) -> "KerasRuntime":
    return runtime_of(keras_runtime, tiny_model["MODEL"])


RED_GREEN_BLUE = np.stack(
    [np.full((32, 32, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
)
LABELS = ["red", "green", "blue", "grey"]


@dataclass
class OneHot:
    """Answers with the class that an image's first value names, modulo 4, and notes the sizes of its calls."""

    shape: BatchShape
    calls: list[int]
    output: np.ndarray | None = None  # memory that each call fills anew

    def run(self, pixels: np.ndarray) -> np.ndarray:
        self.calls.append(len(pixels))
        rows = np.eye(4, dtype=np.float32)[pixels[:, 0, 0, 0] % 4]
        if self.output is None:
            return rows
        self.output[:] = rows
        return self.output


class Prepared:
    """A runtime with one compiled batch."""

    input_shape, classes = (32, 32, 3), 4

    def __init__(self, compiled: CompiledBatch) -> None:
        self.compiled = compiled

    def compiled_batches(self, batch_size: int) -> list[CompiledBatch]:  # noqa: ARG002
        return [self.compiled]


def images(kinds: list[int]) -> np.ndarray:
    return np.stack([np.full((32, 32, 3), kind, np.uint8) for kind in kinds])


def test_each_image_of_a_batch_gets_its_own_labels_likeliest_first(tiny: "KerasRuntime") -> None:
    classifier = Classifier(tiny, LABELS, top=4, batch_size=8)
    classifier.warm_up()
    answers = classifier.predict(RED_GREEN_BLUE)
    assert [answer[0]["label"] for answer in answers] == ["red", "green", "blue"]
    for answer in answers:
        probabilities = [prediction["probability"] for prediction in answer]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("count", range(1, 9))
def test_padding_changes_no_answer_and_is_never_returned(tiny: "KerasRuntime", count: int) -> None:
    classifier = Classifier(tiny, LABELS, top=1, batch_size=8)
    pixels = np.stack([RED_GREEN_BLUE[i % 3] for i in range(count)])
    before = pixels.copy()
    labels = [answer[0]["label"] for answer in classifier.predict(pixels)]
    assert labels == [("red", "green", "blue")[i % 3] for i in range(count)]
    assert np.array_equal(pixels, before)


def sizes_soonest_done(seconds: dict[int, float]) -> list[list[int]]:
    shapes = {BatchShape(str(size), size): time for size, time in seconds.items()}
    return [[shape.capacity for shape in plan] for plan in soonest_done(shapes, max(seconds))]


def test_images_go_in_the_batch_sizes_that_run_them_soonest() -> None:
    on_a_cpu = sizes_soonest_done({size: size + 0.1 for size in (1, 2, 4, 8, 16, 32)})
    assert (on_a_cpu[24], on_a_cpu[32], on_a_cpu[3]) == ([16, 8], [32], [2, 1])
    on_a_gpu = sizes_soonest_done({size: 5 + size / 100 for size in (1, 2, 4, 8, 16, 32)})
    assert (on_a_gpu[24], on_a_gpu[17], on_a_gpu[3], on_a_gpu[1]) == ([32], [32], [4], [1])
    for count, sizes in enumerate(on_a_cpu):
        assert sum(sizes) >= count


@pytest.mark.parametrize("count", range(1, 9))
def test_a_batch_in_several_parts_is_put_together_in_order(tiny: "KerasRuntime", count: int) -> None:
    classifier = Classifier(tiny, LABELS, top=1, batch_size=8)
    classifier._plan = soonest_done({shape: shape.capacity + 0.1 for shape in classifier._compiled}, 8)
    pixels = np.stack([RED_GREEN_BLUE[i % 3] for i in range(count)])
    labels = [answer[0]["label"] for answer in classifier.predict(pixels)]
    assert labels == [("red", "green", "blue")[i % 3] for i in range(count)]


def test_a_shape_for_whole_batches_only_is_no_part_of_a_larger_one() -> None:
    few, many = BatchShape("few", 1, whole_batches_only=True), BatchShape("many", 2)
    assert soonest_done({few: 1.0, many: 1.5}, 3) == [[], [few], [many], [many, many]]
    assert soonest_done({few: 1.5, many: 1.0}, 3) == [[], [many], [many], [many, many]]
    assert soonest_done({few: 1.0}, 1) == [[], [few]]  # BATCH_SIZE=1


@pytest.mark.parametrize(("piece_images", "last"), [(0, 2), (1, 1)])
@pytest.mark.parametrize("count", range(1, 9))
def test_equal_parts_go_in_one_call_where_several_may_be_in_flight(count: int, piece_images: int, last: int) -> None:
    pairs = OneHot(BatchShape("pairs", 2, in_flight=3, piece_images=piece_images), [])
    classifier = Classifier(Prepared(pairs), LABELS, top=1, batch_size=8)
    classifier.warm_up()
    pairs.calls.clear()
    kinds = [i % 4 for i in range(count)]
    assert [answer[0]["label"] for answer in classifier.predict(images(kinds))] == [LABELS[kind] for kind in kinds]
    assert classifier.padding(count) == sum(pairs.calls) - count
    padded = {1: [2], 2: [2], 3: [4], 4: [4], 5: [6], 6: [6], 7: [6, 2], 8: [6, 2]}[count]
    *full, rest = padded
    assert pairs.calls == [*full, rest if count % 2 == 0 else rest - 2 + last]


def test_top_is_limited_by_the_classes_there_are(tiny: "KerasRuntime") -> None:
    assert len(Classifier(tiny, LABELS, top=100, batch_size=1).predict(RED_GREEN_BLUE[:1])[0]) == 4


def test_labels_that_do_not_fit_the_model_are_refused(tiny: "KerasRuntime") -> None:
    with pytest.raises(ModelUnavailable, match="3 labels, but the model tells 4 classes"):
        Classifier(tiny, LABELS[:3], top=1, batch_size=1)


def test_an_output_that_is_no_probability_is_refused_at_warm_up(keras_runtime: ModuleType, tmp_path: Path) -> None:
    keras = keras_runtime.keras
    path = tmp_path / "logits.keras"
    pixels = keras.Input((32, 32, 3))
    dense = keras.layers.Dense(4, bias_initializer="ones")(keras.layers.GlobalAveragePooling2D()(pixels))
    keras.Model(pixels, dense).save(path)
    classifier = Classifier(
        runtime_of(keras_runtime, str(path), activation="none"),
        LABELS,
        top=1,
        batch_size=1,
    )
    with pytest.raises(ModelUnavailable, match="softmax"):
        classifier.warm_up()


def test_what_the_framework_raises_is_told_apart(tiny: "KerasRuntime", monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier(tiny, LABELS, top=1, batch_size=1)

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

        monkeypatch.setattr(tiny, "_forward", fail)
        with pytest.raises(ModelFailed) as caught:
            classifier.predict(RED_GREEN_BLUE[:1])
        assert type(caught.value) is expected


def test_a_probability_that_is_not_a_number_is_a_failure(tiny: "KerasRuntime", monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier(tiny, LABELS, top=1, batch_size=1)
    monkeypatch.setattr(tiny, "_forward", lambda batch: np.full((1, 4), np.nan, np.float32))
    with pytest.raises(ModelFailed, match="not a number"):
        classifier.predict(RED_GREEN_BLUE[:1])


def test_probabilities_outlive_the_next_batch() -> None:
    """Another thread reads them while the model goes on, and a runtime may write each batch's into the same memory."""
    two = OneHot(BatchShape("two", 2), [], output=np.zeros((2, 4), np.float32))
    classifier = Classifier(Prepared(two), LABELS, top=1, batch_size=2)
    probabilities = classifier.probabilities(images([0, 1]))
    classifier.probabilities(images([2, 3]))
    assert [classifier.likeliest(row)[0]["label"] for row in probabilities] == ["red", "green"]


@pytest.mark.parametrize(("asked", "count"), [({}, 2), ({"top": 1}, 1), ({"top": 4}, 4), ({"top": 9}, 4)])
def test_an_answer_has_as_many_predictions_as_are_asked_for(asked: dict[str, int], count: int) -> None:
    classifier = Classifier(Prepared(OneHot(BatchShape("one", 1), [])), LABELS, top=2, batch_size=1)
    (probabilities,) = classifier.probabilities(images([1]))
    assert len(json.loads(classifier.answer(probabilities, **asked))) == count


def test_the_index_tells_classes_apart_that_have_one_label() -> None:
    labels = ["crane", "crane", "dog", "cat"]
    classifier = Classifier(Prepared(OneHot(BatchShape("one", 1), [])), labels, top=2, batch_size=1)
    (probabilities,) = classifier.probabilities(images([1]))
    first, second = json.loads(classifier.answer(probabilities, index=True))
    assert first == {"label": "crane", "probability": 1.0, "index": 1}
    assert (second["label"], second["index"]) == ("crane", 0)


@pytest.mark.parametrize("is_random", [False, True])
def test_an_answer_is_the_tutorials_list_and_a_warning_stands_beside_it(is_random: bool) -> None:
    one = OneHot(BatchShape("one", 1), [])
    classifier = Classifier(Prepared(one), LABELS, top=2, batch_size=1, is_random=is_random)
    answer = json.loads(classifier.answer(classifier.probabilities(images([1]))[0]))
    assert answer == [{"label": "green", "probability": 1.0}, {"label": "red", "probability": 0.0}]
    assert ("random weights" in (classifier.warning or "")) is is_random
