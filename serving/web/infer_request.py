"""Reads requests for inference, of the Open Inference Protocol v2. Knows neither HTTP nor the model.

    JSON, bytes of tensors -- read --> InferRequest: Tensor, …; what is asked of each output

Each body that is not as the protocol says ends in a BadRequest that says why. Parameters that nobody knows are ignored.
Nothing is copied that stands behind the JSON.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import orjson

from serving.errors import BadRequest, TooLarge
from serving.web.tensors import BYTES, NUMBERS, SIZE_HEADER, Tensor

MOST_TENSORS, MOST_AXES, MOST_ELEMENTS = 8, 8, 1000  # elements: of BYTES
# The event loop stands still while JSON is read, for up to 18 ms with the 150,528 numbers of a picture of 224×224.
MOST_JSON_VALUES = 500_000
NOT_OFFERED = {"shared_memory_region": "shared memory", "sequence_id": "sequences"}


@dataclass(frozen=True)
class Asked:
    """What a request asks of one output."""

    name: str
    is_binary: bool
    classification: int | None  # how many of the likeliest classes, as text, instead of numbers


@dataclass(frozen=True)
class InferRequest:
    """A request for inference."""

    id: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Asked, ...]  # empty: all of them
    is_binary: bool  # how to answer where `outputs` is empty


def read(body: bytes, json_bytes: str | None) -> InferRequest:
    """Read the body of a request for inference.

    Args:
        body: JSON, and the bytes of tensors behind it.
        json_bytes: the header SIZE_HEADER; None: all of the body is JSON.

    Raises:
        BadRequest: the body is not as the protocol says, or asks for an extension that is not offered.
        TooLarge: it has more values than are read.
    """
    length = len(body) if json_bytes is None else _read_length(json_bytes, len(body))
    if body.count(b",", 0, length) >= MOST_JSON_VALUES:
        raise TooLarge(f"More than {MOST_JSON_VALUES:,} values are not read as JSON. Send the tensor as binary data.")
    view = memoryview(body)
    try:
        parsed = orjson.loads(view[:length])
    except orjson.JSONDecodeError as error:
        raise BadRequest(
            f"The JSON of the request cannot be read: {error}. If bytes of tensors follow it, the header {SIZE_HEADER} "
            "must tell how long it is."
        ) from error
    fields = _object(parsed, "The request")
    parameters = _parameters(fields, "The request")
    request_id = fields.get("id")
    if request_id is not None and not isinstance(request_id, str):
        _refuse("`id` is a text")
    is_binary = _flag(parameters, "binary_data_output", False)
    outputs = [_read_asked(one, is_binary) for one in _list(fields, "outputs", required=False)]
    return InferRequest(
        id=request_id or None,
        inputs=tuple(_read_inputs(_list(fields, "inputs"), view[length:], has_binary=json_bytes is not None)),
        outputs=tuple(outputs),
        is_binary=is_binary,
    )


def _read_length(text: str, most: int) -> int:
    length = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else most + 1
    if length > most:
        _refuse(f"{SIZE_HEADER} is the length of the JSON in bytes, at most that of the body, {most}")
    return length


def _read_inputs(inputs: Sequence[Any], behind: memoryview, *, has_binary: bool) -> Iterator[Tensor]:
    for one in inputs:
        fields = _object(one, "Each of `inputs`")
        name, datatype, shape = _name(fields, "input"), fields.get("datatype"), _read_shape(fields)
        where = f"The input `{name}`"
        if datatype not in [BYTES, *NUMBERS]:
            _refuse(f"{where} has no datatype that is read here; these are: {', '.join([BYTES, *NUMBERS])}")
        size = _parameters(fields, where).get("binary_data_size")
        if size is None:
            yield _from_json(fields.get("data"), Tensor(name, datatype, shape), where)
            continue
        if not has_binary or "data" in fields:
            _refuse(f"{where} has `binary_data_size`, so it needs the header {SIZE_HEADER}, and no `data`")
        if type(size) is not int or not 0 <= size <= len(behind):
            _refuse(f"{where} has a `binary_data_size` that is no number of bytes behind the JSON, {len(behind)}")
        yield _from_bytes(behind[:size], Tensor(name, datatype, shape), where)
        behind = behind[size:]
    if len(behind):
        _refuse(f"{len(behind)} bytes behind the JSON belong to no input: each needs its `binary_data_size`")


def _from_bytes(behind: memoryview, tensor: Tensor, where: str) -> Tensor:
    count = math.prod(tensor.shape)
    if tensor.datatype == BYTES:
        return replace(tensor, elements=list(_split(behind, count, where)))
    dtype = NUMBERS[tensor.datatype]
    if len(behind) != count * dtype.itemsize:
        _refuse(f"{where} needs {count * dtype.itemsize} bytes for its shape and datatype, and has {len(behind)}")
    return replace(tensor, numbers=np.frombuffer(behind, dtype).reshape(tensor.shape))


def _split(behind: memoryview, count: int, where: str) -> Iterator[memoryview]:
    """The elements of BYTES, each of which stands behind its length, 4 bytes."""
    if count > MOST_ELEMENTS:
        raise TooLarge(f"{where} has {count} elements; at most {MOST_ELEMENTS} are read.")
    for number in range(count):
        (length,) = struct.unpack_from("<I", behind) if len(behind) >= 4 else (len(behind),)
        if len(behind) < 4 + length:
            _refuse(f"{where} ends within its element {number}: each has its length before it, 4 bytes, little-endian")
        yield behind[4 : 4 + length]
        behind = behind[4 + length :]
    if len(behind):
        _refuse(f"{where} has {len(behind)} bytes behind its last element, of {count}")


def _from_json(data: Any, tensor: Tensor, where: str) -> Tensor:
    values = _flat(data, tensor.shape, where)
    if tensor.datatype == BYTES:
        if not all(type(value) is str for value in values):
            _refuse(f"{where} needs texts as its `data`, each a file as base64")
        return replace(tensor, elements=values)
    is_whole = tensor.datatype == "UINT8"
    if not set(map(type, values)) <= ({int} if is_whole else {int, float}):
        _refuse(f"{where} needs {'whole numbers' if is_whole else 'numbers'} as its `data`")
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite
            numbers = np.array(values, NUMBERS[tensor.datatype]).reshape(tensor.shape)
        return replace(tensor, numbers=numbers)
    except OverflowError as error:
        raise BadRequest(f"{where} has a number in its `data` that does not fit into {tensor.datatype}.") from error


def _flat(data: Any, shape: tuple[int, ...], where: str) -> list[Any]:
    """The values of a tensor in JSON, in one list; they come as one, or as lists in lists as `shape` says."""
    if type(data) is not list:
        _refuse(f"{where} needs `data`, a list, or `binary_data_size`")
    values, axis = data, 0
    while values and type(values[0]) is list:
        axis += 1
        length = shape[axis] if axis < len(shape) else -1
        if not all(type(part) is list and len(part) == length for part in values):
            _refuse(f"{where} has `data` that is not nested as its shape says")
        values = list(chain.from_iterable(values))
    if axis not in (0, len(shape) - 1) or len(values) != math.prod(shape):
        _refuse(f"{where} has {len(values)} values in its `data`, which is not as its shape says")
    return values


def _read_asked(one: Any, is_binary: bool) -> Asked:
    fields = _object(one, "Each of `outputs`")
    name = _name(fields, "output")
    where = f"The output `{name}`"
    parameters = _parameters(fields, where)
    count = parameters.get("classification")
    if count is not None and (type(count) is not int or count < 1):
        _refuse(f"{where} has a `classification` that is no count of classes")
    return Asked(name, _flag(parameters, "binary_data", is_binary), count)


def _read_shape(fields: Mapping[str, Any]) -> tuple[int, ...]:
    shape = fields.get("shape")
    if type(shape) is not list or len(shape) > MOST_AXES or not all(type(n) is int and n >= 1 for n in shape):
        _refuse(f"`shape` is a list of at most {MOST_AXES} whole numbers, each at least 1")
    return tuple(shape)


def _parameters(fields: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    given = fields.get("parameters")
    parameters = _object({} if given is None else given, f"{where}: `parameters`")
    for name, extension in NOT_OFFERED.items():
        if parameters.get(name):
            _refuse(f"{where} has the parameter `{name}`, but this service does not offer {extension}")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        _refuse(f"`{name}` is true or false")
    return bool(value)


def _name(fields: Mapping[str, Any], kind: str) -> str:
    name = fields.get("name")
    if type(name) is not str or not name or len(name) > 100:
        _refuse(f"Each {kind} has a `name`, a text of at most 100 characters")
    return str(name)


def _list(fields: Mapping[str, Any], name: str, *, required: bool = True) -> list[Any]:
    found = fields.get(name)
    found = [] if found is None else found
    if type(found) is not list or len(found) > MOST_TENSORS or (required and not found):
        _refuse(f"`{name}` is a list of tensors, {'1' if required else '0'} to {MOST_TENSORS}")
    return list(found)


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if type(value) is not dict:
        _refuse(f"{where} is a JSON object")
    return dict(value)


def _refuse(says: str) -> NoReturn:
    raise BadRequest(f"{says}.")
