"""Images in, labels out: each its own, whatever the ways in which a batch is run."""

import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest

from serving.errors import ModelFailed, ModelUnavailable, OutOfMemory
from serving.model.classifier import Classifier, Way, soonest_done

if TYPE_CHECKING:
    from serving.model.keras_runtime import KerasRuntime


@pytest.fixture(scope="module")
def keras_runtime() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from serving.model import keras_runtime
    return keras_runtime


@pytest.fixture
def tiny(keras_runtime: ModuleType, tiny_model: dict[str, str]) -> "KerasRuntime":
    return keras_runtime.KerasRuntime(
        keras_runtime.load_model(tiny_model["MODEL"], "imagenet", width=32, height=32, precision="auto")
    )


RED_GREEN_BLUE = np.stack(
    [np.full((32, 32, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
)
LABELS = ["red", "green", "blue", "grey"]


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
    ways = {Way(str(size), size, np.asarray): time for size, time in seconds.items()}
    return [[way.capacity for way in plan] for plan in soonest_done(ways, max(seconds))]


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
    classifier._plan = soonest_done({way: way.capacity + 0.1 for way in classifier._ways}, 8)
    pixels = np.stack([RED_GREEN_BLUE[i % 3] for i in range(count)])
    labels = [answer[0]["label"] for answer in classifier.predict(pixels)]
    assert labels == [("red", "green", "blue")[i % 3] for i in range(count)]


def test_a_way_for_a_batch_at_one_go_is_no_part_of_a_larger_one() -> None:
    few, many = Way("few", 1, np.asarray, once=True), Way("many", 2, np.asarray)
    assert soonest_done({few: 1.0, many: 1.5}, 3) == [[], [few], [many], [many, many]]
    assert soonest_done({few: 1.5, many: 1.0}, 3) == [[], [many], [many], [many, many]]
    assert soonest_done({few: 1.0}, 1) == [[], [few]]  # BATCH_SIZE=1


@pytest.mark.parametrize(("piece", "last"), [(None, 2), (1, 1)])
@pytest.mark.parametrize("count", range(1, 9))
def test_equal_parts_go_in_one_call_where_several_may_be_in_flight(count: int, piece: int | None, last: int) -> None:
    calls = []

    def run(batch: np.ndarray) -> np.ndarray:
        calls.append(len(batch))
        return np.eye(4, dtype=np.float32)[batch[:, 0, 0, 0]]

    class Runtime:
        input_shape, classes = (32, 32, 3), 4

        def ways(self, batch_size: int) -> list[Way]:  # noqa: ARG002
            return [Way("pairs", 2, run, in_flight=3, piece=piece)]

    classifier = Classifier(Runtime(), LABELS, top=1, batch_size=8)
    classifier.warm_up()
    calls.clear()
    kinds = [i % 4 for i in range(count)]
    pixels = np.stack([np.full((32, 32, 3), kind, np.uint8) for kind in kinds])
    assert [answer[0]["label"] for answer in classifier.predict(pixels)] == [LABELS[kind] for kind in kinds]
    padded = {1: [2], 2: [2], 3: [4], 4: [4], 5: [6], 6: [6], 7: [6, 2], 8: [6, 2]}[count]
    *full, rest = padded
    assert calls == [*full, rest if count % 2 == 0 else rest - 2 + last]


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
        keras_runtime.KerasRuntime(
            keras_runtime.load_model(str(path), "imagenet", width=32, height=32, precision="auto")
        ),
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
    output = np.zeros((2, 4), np.float32)

    def run(batch: np.ndarray) -> np.ndarray:
        output[:] = np.eye(4)[batch[:, 0, 0, 0]]
        return output

    class Runtime:
        input_shape = (32, 32, 3)
        classes = 4

        def ways(self, batch_size: int) -> list[Way]:  # noqa: ARG002
            return [Way("two", 2, run)]

    classifier = Classifier(Runtime(), LABELS, top=1, batch_size=2)
    red_green, blue_grey = (
        np.stack([np.full((32, 32, 3), kind, np.uint8) for kind in kinds]) for kinds in ((0, 1), (2, 3))
    )
    probabilities = classifier.probabilities(red_green)
    classifier.probabilities(blue_grey)
    assert [classifier.likeliest(row)[0]["label"] for row in probabilities] == ["red", "green"]
