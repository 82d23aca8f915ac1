"""The named tensors of the Open Inference Protocol v2, and how an answer brings them. Knows neither HTTP nor the model.

    JSON, bytes of tensors -- infer_request.read --> Tensor, …
    JSON, bytes of tensors <-- write -- Tensor, …

A tensor stands in the JSON, as `data`; or, by Triton's binary extension, behind it, where `binary_data_size` tells how
many bytes are its own. Then the header SIZE_HEADER tells how long the JSON is.
"""

import binascii
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from serving.errors import BadRequest

BYTES = "BYTES"
NUMBERS: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype(np.uint8)}
SIZE_HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Tensor:
    """A named tensor: numbers of `shape`, or elements of BYTES in the order of the rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    numbers: np.ndarray | None = None
    elements: Sequence[bytes | memoryview | str] = ()  # of BYTES; str: base64, as they stand in JSON

    def size_of(self, number: int) -> int:
        """How many bytes one element of BYTES has, at most; nothing is decoded for that."""
        element = self.elements[number]
        return len(element) * 3 // 4 if isinstance(element, str) else len(element)

    def element(self, number: int) -> bytes:
        """One element of BYTES. Raises BadRequest: it is not base64."""
        element = self.elements[number]
        if not isinstance(element, str):
            return bytes(element)
        try:
            return binascii.a2b_base64(element, strict_mode=True)
        except ValueError as error:
            raise BadRequest(
                f"The text is not base64 ({error}). In JSON an image file stands as base64; in binary as it is."
            ) from error


def write(head: Mapping[str, Any], outputs: Iterable[tuple[Tensor, bool]]) -> tuple[bytes, int | None]:
    """Write the body of an answer, and the length of its JSON in bytes; None: all of it is JSON.

    Args:
        head: the answer's other members.
        outputs: each tensor, and whether it stands behind the JSON. BYTES that stand in the JSON are UTF-8.
    """
    told: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for tensor, is_binary in outputs:
        fields: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if is_binary:
            behind.append(_to_bytes(tensor))
            fields["parameters"] = {"binary_data_size": len(behind[-1])}
        elif tensor.numbers is not None:
            fields["data"] = tensor.numbers.ravel()
        else:
            fields["data"] = [tensor.element(number).decode() for number in range(len(tensor.elements))]
        told.append(fields)
    json = orjson.dumps({**head, "outputs": told}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([json, *behind]), len(json) if behind else None


def _to_bytes(tensor: Tensor) -> bytes:
    if tensor.numbers is not None:
        return tensor.numbers.astype(NUMBERS[tensor.datatype], copy=False).tobytes()
    elements = [tensor.element(number) for number in range(len(tensor.elements))]
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)
