"""The codec of the Open Inference Protocol: bodies -> tensors -> bodies, with bytes made by hand, and by hypothesis."""

import ast
import base64
import json
import math
import struct
from typing import Any

import hypothesis
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import strategies as some
from hypothesis.extra import numpy as some_numpy

from serving.errors import BadRequest, RequestError, TooLarge
from serving.web.infer_request import MOST_ELEMENTS, MOST_JSON_VALUES, Asked, InferRequest, read
from serving.web.tensors import NUMBERS, Tensor, write

QUICK = hypothesis.settings(max_examples=150, derandomize=True, database=None, deadline=None)
PIXELS = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)


def tensor(**changes: Any) -> dict[str, Any]:
    """An input in JSON: PIXELS, with `changes`; None leaves a member out."""
    fields = {"name": "pixels", "datatype": "FP32", "shape": [1, 2, 2, 3], "data": PIXELS.ravel().tolist()} | changes
    return {name: value for name, value in fields.items() if value is not None}


def request(*behind: bytes, inputs: Any = None, **members: Any) -> tuple[bytes, str | None]:
    """A body with these bytes behind the JSON, and the header of its length."""
    head = json.dumps({"inputs": [tensor()] if inputs is None else inputs, **members}).encode()
    return b"".join([head, *behind]), str(len(head)) if behind else None


def binary(content: bytes, **changes: Any) -> tuple[bytes, str | None]:
    """A body whose one input stands behind the JSON."""
    return request(content, inputs=[tensor(data=None, parameters={"binary_data_size": len(content)}, **changes)])


def prefixed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def numbers(infer: InferRequest) -> np.ndarray:
    (found,) = infer.inputs
    assert found.numbers is not None
    return found.numbers


# What is read.


@pytest.mark.parametrize(
    "data", [PIXELS.ravel().tolist(), PIXELS.tolist(), list(range(12))], ids=["flat", "nested", "int"]
)
def test_numbers_are_read_from_json_flat_or_nested(data: list[Any]) -> None:
    infer = read(*request(inputs=[tensor(data=data)]))
    assert (infer.inputs[0].name, infer.inputs[0].datatype) == ("pixels", "FP32")
    assert numbers(infer).dtype == np.float32
    np.testing.assert_array_equal(numbers(infer), PIXELS)


def test_a_number_beyond_fp32_is_infinite_without_a_warning() -> None:
    found = numbers(read(*request(inputs=[tensor(shape=[2], data=[1e300, -(2**63)])])))
    assert found.tolist() == [math.inf, -(2.0**63)]


@pytest.mark.parametrize("padding", range(5))
def test_numbers_behind_the_json_are_read_wherever_it_ends_and_not_copied(padding: int) -> None:
    head = json.dumps({"inputs": [tensor(data=None, parameters={"binary_data_size": 48})]}).encode() + b" " * padding
    body = head + PIXELS.tobytes()
    found = numbers(read(body, str(len(head))))
    np.testing.assert_array_equal(found, PIXELS)
    assert np.shares_memory(found, np.frombuffer(body, np.uint8))


def test_tensors_behind_the_json_stand_in_the_order_of_the_inputs_among_those_in_it() -> None:
    first = tensor(name="a", data=None, parameters={"binary_data_size": 48})
    last = tensor(name="c", datatype="UINT8", shape=[2], data=None, parameters={"binary_data_size": 2})
    infer = read(*request(PIXELS.tobytes(), b"\x07\xff", inputs=[first, tensor(name="b"), last]))
    assert [found.name for found in infer.inputs] == ["a", "b", "c"]
    assert infer.inputs[2].numbers is not None
    assert infer.inputs[2].numbers.tolist() == [7, 255]


def test_files_are_read_from_behind_the_json_as_they_are_and_from_json_as_base64() -> None:
    files = [b"\xff\xd8 a file", b"", b"\x00" * 5]
    for shape in ([3], [3, 1]):
        (behind,) = read(*binary(prefixed(*files), datatype="BYTES", shape=shape)).inputs
        texts = [base64.b64encode(file).decode() for file in files]
        data = texts if len(shape) == 1 else [[text] for text in texts]
        (inside,) = read(*request(inputs=[tensor(datatype="BYTES", shape=shape, data=data)])).inputs
        for found in (behind, inside):
            assert [found.element(number) for number in range(3)] == files
        assert [behind.size_of(number) for number in range(3)] == [len(file) for file in files]
        assert all(inside.size_of(number) >= len(file) for number, file in enumerate(files))


def test_one_element_that_is_no_base64_spoils_no_other() -> None:
    (found,) = read(*request(inputs=[tensor(datatype="BYTES", shape=[2], data=["no base64!", "AAAA"])])).inputs
    assert found.element(1) == b"\x00\x00\x00"
    with pytest.raises(BadRequest, match="not base64"):
        found.element(0)


def test_outputs_are_asked_for_one_by_one_or_all_together() -> None:
    assert read(*request()).outputs == ()
    outputs = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False, "classification": 3}}]
    infer = read(*request(outputs=outputs, parameters={"binary_data_output": True}, id="42"))
    assert infer.outputs == (Asked("a", is_binary=True, classification=None), Asked("b", False, 3))
    assert (infer.id, infer.is_binary) == ("42", True)


def test_what_nobody_knows_is_ignored_and_null_is_as_if_it_were_not_there() -> None:
    known = {
        "id": None,
        "parameters": {"priority": 1, "timeout": 5, "colour": "blue", "sequence_id": 0},
        "outputs": None,
    }
    infer = read(*request(inputs=[tensor(parameters=None, more=[1])], model_name="mine", **known))
    np.testing.assert_array_equal(numbers(infer), PIXELS)
    assert (infer.id, infer.outputs, infer.is_binary) == (None, (), False)


# What is refused, each with a sentence that says why.

SHARED = {"shared_memory_region": "a", "shared_memory_byte_size": 48}
REFUSED: dict[str, tuple[tuple[bytes, str | None], str]] = {
    "no JSON": ((b"hello", None), "cannot be read"),
    "an empty body": ((b"", None), "cannot be read"),
    "JSON of length 0": ((b"{}", "0"), "cannot be read"),
    "NaN in JSON": ((b'{"inputs": [NaN]}', None), "cannot be read"),
    "binary without its header": ((binary(PIXELS.tobytes())[0], None), SIZE := "Inference-Header-Content-Length"),
    "no length": ((b"{}", "two"), SIZE),
    "a negative length": ((b"{}", "-2"), SIZE),
    "a length beyond the body": ((b"{}", "3"), SIZE),
    "a list": ((b"[]", None), "The request is a JSON object"),
    "no inputs": ((b"{}", None), "`inputs`"),
    "empty inputs": (request(inputs=[]), "`inputs`"),
    "inputs that are no list": (request(inputs={"a": 1}), "`inputs`"),
    "too many inputs": (request(inputs=[tensor()] * 9), "`inputs`"),
    "an input that is a number": (request(inputs=[1]), "JSON object"),
    "an input without a name": (request(inputs=[tensor(name=None)]), "`name`"),
    "a name that is a number": (request(inputs=[tensor(name=5)]), "`name`"),
    "an endless name": (request(inputs=[tensor(name="a" * 101)]), "`name`"),
    "no shape": (request(inputs=[tensor(shape=None)]), "`shape`"),
    "a negative shape": (request(inputs=[tensor(shape=[-1, 2, 2, 3])]), "`shape`"),
    "an empty batch": (request(inputs=[tensor(shape=[0, 2, 2, 3], data=[])]), "`shape`"),
    "a shape of floats": (request(inputs=[tensor(shape=[1.0, 2, 2, 3])]), "`shape`"),
    "a shape of truths": (request(inputs=[tensor(shape=[True, 2, 2, 3])]), "`shape`"),
    "many axes": (request(inputs=[tensor(shape=[1] * 9)]), "`shape`"),
    "no datatype": (request(inputs=[tensor(datatype=None)]), "FP32"),
    "another datatype": (request(inputs=[tensor(datatype="FP64")]), "FP32"),
    "a datatype that is a list": (request(inputs=[tensor(datatype=["FP32"])]), "FP32"),
    "no data": (request(inputs=[tensor(data=None)]), "needs `data`"),
    "data that is a text": (request(inputs=[tensor(data="12")]), "needs `data`"),
    "too few values": (request(inputs=[tensor(data=[1.0] * 11)]), "11 values"),
    "too many values": (request(inputs=[tensor(data=[1.0] * 13)]), "13 values"),
    "ragged data": (request(inputs=[tensor(data=[[[[1, 2, 3], [1, 2]], [[1, 2, 3], [1, 2, 3]]]])]), "nested"),
    "data nested half": (request(inputs=[tensor(data=[PIXELS.ravel().tolist()])]), "nested"),
    "data nested but for its last axis": (request(inputs=[tensor(shape=[2, 2, 1], data=[[1, 2], [3, 4]])]), "shape"),
    "data nested too deep": (request(inputs=[tensor(shape=[1], data=[[1]])]), "nested"),
    "lists among numbers": (request(inputs=[tensor(data=[1.0] * 11 + [[1]])]), "numbers"),
    "a text among numbers": (request(inputs=[tensor(data=[1.0] * 11 + ["1"])]), "numbers"),
    "a truth among numbers": (request(inputs=[tensor(data=[1.0] * 11 + [True])]), "numbers"),
    "null among numbers": (request(inputs=[tensor(data=[1.0] * 11 + [None])]), "numbers"),
    "a float as UINT8": (request(inputs=[tensor(datatype="UINT8", data=[1.0] * 12)]), "whole numbers"),
    "256 as UINT8": (request(inputs=[tensor(datatype="UINT8", data=[256] * 12)]), "does not fit"),
    "-1 as UINT8": (request(inputs=[tensor(datatype="UINT8", data=[-1] * 12)]), "does not fit"),
    "numbers as BYTES": (request(inputs=[tensor(datatype="BYTES", shape=[1], data=[1])]), "base64"),
    "a size and data": (request(b"x" * 48, inputs=[tensor(parameters={"binary_data_size": 48})]), "no `data`"),
    "a size beyond the body": (
        request(b"x", inputs=[tensor(data=None, parameters={"binary_data_size": 48})]),
        "no number of bytes",
    ),
    "a size that is a text": (
        request(b"x", inputs=[tensor(data=None, parameters={"binary_data_size": "1"})]),
        "no number of bytes",
    ),
    "a negative size": (
        request(b"x", inputs=[tensor(data=None, parameters={"binary_data_size": -1})]),
        "no number of bytes",
    ),
    "bytes that nobody owns": (request(b"x"), "belong to no input"),
    "too few bytes": (binary(PIXELS.tobytes()[:-1]), "needs 48 bytes"),
    "too many bytes": (binary(PIXELS.tobytes() + b"x"), "needs 48 bytes"),
    "an element cut off": (binary(prefixed(b"abc")[:-1], datatype="BYTES", shape=[1]), "ends within its element 0"),
    "a length cut off": (binary(b"\x01\x00", datatype="BYTES", shape=[1]), "ends within its element 0"),
    "an element missing": (binary(prefixed(b"a"), datatype="BYTES", shape=[2]), "ends within its element 1"),
    "an element too many": (binary(prefixed(b"a", b"b"), datatype="BYTES", shape=[1]), "behind its last element"),
    "an endless length": (binary(b"\xff\xff\xff\xff", datatype="BYTES", shape=[1]), "ends within its element 0"),
    "an id that is a number": (request(id=42), "`id`"),
    "parameters that are a list": (request(parameters=[]), "`parameters`"),
    "binary_data_output as a text": (request(parameters={"binary_data_output": "true"}), "true or false"),
    "outputs that are a text": (request(outputs="probabilities"), "`outputs`"),
    "binary_data as a number": (request(outputs=[{"name": "a", "parameters": {"binary_data": 1}}]), "true or false"),
    "a classification of none": (
        request(outputs=[{"name": "a", "parameters": {"classification": 0}}]),
        "classification",
    ),
    "a classification of a text": (
        request(outputs=[{"name": "a", "parameters": {"classification": "3"}}]),
        "classification",
    ),
    "an input in shared memory": (request(inputs=[tensor(data=None, parameters=SHARED)]), "shared memory"),
    "an output in shared memory": (request(outputs=[{"name": "a", "parameters": SHARED}]), "shared memory"),
    "a sequence": (request(parameters={"sequence_id": 7, "sequence_start": True}), "sequences"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_as_the_protocol_says_is_a_bad_request_that_says_why(name: str) -> None:
    made, why = REFUSED[name]
    with pytest.raises(BadRequest) as caught:
        read(*made)
    assert why in str(caught.value)
    assert str(caught.value).endswith(".")


def test_what_would_take_long_to_read_is_too_large() -> None:
    values = [0] * (MOST_JSON_VALUES + 1)
    with pytest.raises(TooLarge, match="binary"):
        read(*request(inputs=[tensor(datatype="UINT8", shape=[len(values)], data=values)]))
    many = MOST_ELEMENTS + 1
    with pytest.raises(TooLarge, match="elements"):
        read(*binary(prefixed(*[b""] * many), datatype="BYTES", shape=[many]))


# Both ways, and whatever comes.


def back(body: bytes, json_bytes: int | None) -> dict[str, Any]:
    """The outputs of an answer, name -> array or list of bytes, read as the binary extension says."""
    head, behind = (body, b"") if json_bytes is None else (body[:json_bytes], body[json_bytes:])
    found: dict[str, Any] = {}
    for output in json.loads(head)["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        piece, behind = (b"", behind) if size is None else (behind[:size], behind[size:])
        if output["datatype"] != "BYTES":
            dtype = NUMBERS[output["datatype"]]
            values = np.array(output["data"], dtype) if size is None else np.frombuffer(piece, dtype)
            found[output["name"]] = values.reshape(output["shape"])
        else:
            elements = [text.encode() for text in output["data"]] if size is None else []
            while piece:
                (length,) = struct.unpack("<I", piece[:4])
                elements.append(piece[4 : 4 + length])
                piece = piece[4 + length :]
            assert len(elements) == math.prod(output["shape"])
            found[output["name"]] = elements
    assert behind == b""
    return found


@QUICK
@hypothesis.given(
    numbers=some.sampled_from(list(NUMBERS.values())).flatmap(
        lambda dtype: some_numpy.arrays(
            dtype,
            some_numpy.array_shapes(max_dims=4, max_side=5),
            elements={"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else None,
        )
    ),
    texts=some.lists(some.text(some.characters(codec="utf-8"), max_size=20), min_size=1, max_size=5),
    binary=some.tuples(some.booleans(), some.booleans()),
)
def test_what_is_written_is_read_back_and_its_tensors_are_as_good_as_inputs(
    numbers: np.ndarray, texts: list[str], binary: tuple[bool, bool]
) -> None:
    datatype = "FP32" if numbers.dtype.kind == "f" else "UINT8"
    words = Tensor("words", "BYTES", (len(texts),), elements=[text.encode() for text in texts])
    body, json_bytes = write(
        {"id": "1"}, zip([Tensor("n", datatype, numbers.shape, numbers), words], binary, strict=True)
    )
    found = back(body, json_bytes)
    assert (json_bytes is None) == (not any(binary))
    np.testing.assert_array_equal(found["n"], numbers)
    assert found["words"] == [text.encode() for text in texts]
    if all(binary):  # the words of an output are the words of an input
        head = json.loads(body[:json_bytes])
        sent = json.dumps({"inputs": head["outputs"]}).encode()
        infer = read(sent + body[json_bytes:], str(len(sent)))
        np.testing.assert_array_equal(infer.inputs[0].numbers, numbers)
        assert [infer.inputs[1].element(number).decode() for number in range(len(texts))] == texts


VALUES: Any = some.recursive(
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats(allow_nan=False, allow_infinity=False)
    | some.text(max_size=5),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@QUICK
@hypothesis.given(
    members=some.dictionaries(some.sampled_from(["id", "parameters", "outputs", "inputs", "x"]), VALUES, max_size=3),
    fields=some.dictionaries(
        some.sampled_from(["name", "datatype", "shape", "data", "parameters"]), VALUES, max_size=3
    ),
    parameters=some.dictionaries(some.sampled_from(["binary_data_size", "binary_data", "classification"]), VALUES),
    behind=some.none() | some.binary(max_size=60),
    cut=some.none() | some.integers(0, 400),
    length=some.none() | some.integers(-2, 400),
)
def test_any_body_is_read_or_refused(
    members: Any, fields: Any, parameters: Any, behind: bytes | None, cut: int | None, length: int | None
) -> None:
    one = {"parameters": parameters} | tensor() | fields
    head = json.dumps({"inputs": [one], "outputs": [{"name": "a", "parameters": parameters}]} | members).encode()
    body = (head + (behind or b""))[:cut]
    try:
        infer = read(body, str(len(head) if length is None else length) if behind is not None else None)
    except RequestError as error:
        status = error.status
    else:
        status = 200
        for found in infer.inputs:
            size = len(found.elements) if found.numbers is None else found.numbers.size
            assert size == math.prod(found.shape)
    assert status in (200, 400, 413)


@pytest.mark.parametrize("name", ["infer_request", "tensors"])
def test_the_codec_knows_no_http_framework(name: str) -> None:
    tree = ast.parse((ROOT / "serving" / "web" / f"{name}.py").read_text())
    froms = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    plain = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not any(module.split(".")[0] in ("flask", "werkzeug", "gevent") for module in froms + plain)
