"""The warm-up checks what it serves: each compiled batch gives golden pictures the answers of each alone."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import redis
from conftest import Processes, output, tiny_spec
from runtimes import MeanColour, MeanColourBatch

from serving.errors import ModelUnavailable
from serving.model import choose, golden
from serving.model.classifier import Classifier
from serving.model.runtime import BatchShape, CompiledBatch
from serving.model.spec import ModelSpec

LABELS = ["red", "green", "blue", "grey"]


class Faulty(MeanColour):
    """MeanColour in batches of 1, 4 and 8, whose batches of 8 have the fault that MODEL names."""

    precision = "float32"

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.fault = spec.architecture

    def compiled_batches(self, batch_size: int) -> list[CompiledBatch]:  # noqa: ARG002
        fine = "none of them"
        return [FaultyBatch(BatchShape(f"batches of {n}", n), self.fault if n == 8 else fine) for n in (8, 1, 4)]


class FaultyBatch:
    def __init__(self, shape: BatchShape, fault: str) -> None:
        self.shape, self.fault = shape, fault
        self.right, self.kept = MeanColourBatch(shape.capacity), np.zeros((1, 32, 32, 3), np.uint8)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        assert len(pixels) % self.shape.multiple == 0
        late, self.kept = self.kept, pixels.copy()
        found = self.right.run(late if self.fault == "is a batch late" else pixels)
        return self.go_wrong(np.resize(found, (len(pixels), 4)))

    def go_wrong(self, found: np.ndarray) -> np.ndarray:
        if self.fault == "mixes up two rows":
            found[[2, 5]] = found[[5, 2]]
        elif self.fault == "turns the rows round":
            found = found[::-1]
        elif self.fault == "answers the second half as the first":
            found[4:] = found[:4]
        elif self.fault == "is off by a bit":
            found[3, :2] += (0.004, -0.004)
        elif self.fault == "is not a number in the last row":
            found[-1] = np.nan
        elif self.fault == "raises":
            raise ValueError("no kernel for 8")
        elif self.fault == "does not fit":
            raise MemoryError
        elif self.fault == "is not normalised":
            found *= 2
        return found


OTHERWISE = r"^The model answers otherwise in batches of 8 than for each picture alone: a probability is off by "
REFUSALS = {
    "mixes up two rows": OTHERWISE,
    "turns the rows round": OTHERWISE,
    "answers the second half as the first": OTHERWISE,
    "is off by a bit": OTHERWISE + r"0\.004, more than 0\.001\. An answer must depend on its picture and ",
    "is a batch late": OTHERWISE,
    "is not a number in the last row": r"^The model's output in batches of 8 is not a number: ",
    "raises": r"^The model fails in batches of 8: no kernel for 8\.$",
    "does not fit": r"^A batch of 8 does not fit into memory: set BATCH_SIZE lower\.$",
    "is not normalised": r"^The model's outputs are no probabilities: they are not between 0 and 1\. ",
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_batch_that_answers_otherwise_than_the_model_alone_is_refused(fault: str) -> None:
    spec = tiny_spec(fault, runtime=f"{__name__}:Faulty", batch_size=8)
    with pytest.raises(ModelUnavailable, match=REFUSALS[fault]):
        choose.load_classifier(spec)


def test_with_random_weights_a_difference_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    spec = tiny_spec("is off by a bit", weights="random", runtime=f"{__name__}:Faulty", batch_size=8)
    assert choose.load_classifier(spec).warning is not None
    assert "is off by 0.004, more than 0.001. Its weights are random, and it serves all the same." in caplog.text
    with pytest.raises(ModelUnavailable, match=REFUSALS["is not a number in the last row"]):
        choose.load_classifier(replace(spec, architecture="is not a number in the last row"))


def test_batches_that_agree_serve() -> None:
    classifier = choose.load_classifier(tiny_spec("none", runtime=f"{__name__}:Faulty", batch_size=8))
    assert {shape.capacity for shape in classifier._compiled} == {1, 4, 8}


@dataclass
class Pieces:
    """Pieces of one or more images, several in flight; `fault` says what is wrong with them."""

    shape: BatchShape
    fault: str = ""
    input_shape = (32, 32, 3)
    classes = 4
    random = np.random.default_rng(6)

    def compiled_batches(self, batch_size: int) -> list[CompiledBatch]:  # noqa: ARG002
        return [self]

    def run(self, pixels: np.ndarray) -> np.ndarray:
        found = MeanColourBatch(1).run(pixels)
        if self.fault == "in flight" and len(pixels) > self.shape.capacity:  # the second call overtakes the first
            found = np.roll(found, self.shape.capacity, axis=0)
        if self.fault == "by chance":
            found = self.random.dirichlet(np.ones(4), len(found)).astype(np.float32)
        if self.fault == "writes":
            pixels[:] = 0
        if self.fault == "fewer" and len(pixels) < self.shape.capacity * self.shape.in_flight:
            found[0] = found[-1]
        return found


SHAPES = {
    "any number": BatchShape("any number", 8, piece_images=1),
    "one piece": BatchShape("pieces of 2", 2, in_flight=4),
    "pieces": BatchShape("pieces", 4, in_flight=2, piece_images=2),
    "one shape": BatchShape("batches of 32", 32),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_in_flight_that_agree_serve(shape: str) -> None:
    Classifier(Pieces(SHAPES[shape]), LABELS, top=1, batch_size=32).warm_up()


@pytest.mark.parametrize(
    ("shape", "fault"),
    [("one piece", "in flight"), ("pieces", "in flight"), ("any number", "fewer"), ("pieces", "fewer")],
)
def test_pieces_in_flight_that_answer_for_each_other_are_refused(shape: str, fault: str) -> None:
    with pytest.raises(ModelUnavailable, match="answers otherwise in"):
        Classifier(Pieces(SHAPES[shape], fault), LABELS, top=1, batch_size=32).warm_up()


def test_a_runtime_that_answers_by_chance_is_refused() -> None:
    says = r"answers otherwise in one by one than for .* nothing else: mend the model or its runtime\.$"
    with pytest.raises(ModelUnavailable, match=says):
        Classifier(Pieces(BatchShape("one by one", 1), "by chance"), LABELS, top=1, batch_size=1).warm_up()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_runtime_that_writes_into_its_pixels_is_refused(shape: str) -> None:
    name = SHAPES[shape].name
    with pytest.raises(ModelUnavailable, match=f"^MODEL_RUNTIME: run of {name} writes into its pixels, and must not"):
        Classifier(Pieces(SHAPES[shape], "writes"), LABELS, top=1, batch_size=32).warm_up()


@pytest.mark.parametrize(("told", "refused"), [({}, False), ({"precision": "float32"}, True), ({"tolerance": 0}, True)])
def test_how_far_a_batch_may_be_off_is_told_by_its_runtime(told: dict[str, Any], refused: bool) -> None:
    runtime = Faulty(tiny_spec("is off by a bit"))
    vars(runtime).update({"precision": "of its own"} | told)
    classifier = Classifier(runtime, LABELS, top=1, batch_size=8)
    if refused:
        with pytest.raises(ModelUnavailable, match="off by 0.004"):
            classifier.warm_up()
    else:
        classifier.warm_up()


def test_the_golden_pictures_are_the_same_each_time_and_differ_from_each_other() -> None:
    pictures = golden.pictures((40, 30, 3))
    assert pictures.shape == (8, 40, 30, 3)
    assert np.array_equal(pictures, golden.pictures((40, 30, 3)))
    assert len({picture.tobytes() for picture in pictures}) == 8
    assert golden.pictures((28, 28, 1)).shape == (8, 28, 28, 1)


def test_the_process_says_so_and_ends_with_2(
    processes: Processes, raw: redis.Redis, light_model: dict[str, str]
) -> None:
    settings = light_model | {"MODEL": "turns the rows round", "MODEL_RUNTIME": "test_warm_up:Faulty"}
    settings["PYTHONPATH"] += f":{Path(__file__).parent}"
    process = processes.start("run_model_server.py", **settings)
    assert process.wait(timeout=60) == 2
    assert "The model answers otherwise in batches of 8 than for each picture alone" in output(process)
    assert "Traceback" not in output(process)


@pytest.fixture(scope="module")
def keras() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras
    return keras


def test_on_a_gpu_float32_may_be_as_far_off_as_float16(keras: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.model import keras_runtime

    pixels = keras.Input((32, 32, 3))
    network = keras.Model(pixels, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(pixels)))
    assert keras_runtime.KerasRuntime(network).tolerance == golden.TOLERANCE["float32"]
    monkeypatch.setattr(keras_runtime, "has_gpu", lambda: True)
    assert keras_runtime.KerasRuntime(network).tolerance == golden.TOLERANCE["float16"]


@pytest.mark.parametrize("runtime", ["keras", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_network_that_looks_at_the_whole_batch_is_refused(keras: ModuleType, runtime: str, tmp_path: Path) -> None:
    """As one does whose batch normalisation stayed in training, or that subtracts the mean of the batch."""
    pixels = keras.Input((32, 32, 3))
    mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(pixels))
    mean = keras.ops.add(mean, keras.ops.mean(mean, axis=0, keepdims=True))
    keras.Model(pixels, keras.layers.Dense(4, activation="softmax")(mean)).save(tmp_path / "model.keras")
    spec = tiny_spec(str(tmp_path / "model.keras"), runtime=runtime, batch_size=4, store=tmp_path)
    with pytest.raises(ModelUnavailable, match="answers otherwise in batches of [24] than for each picture alone"):
        choose.load_classifier(spec)
