"""How large the frames of an AVIF are, whatever its header says; and what has parts without end."""

import struct
from typing import Any

import pytest
from conftest import as_bytes, some_photo
from PIL import Image

from serving.errors import TooLarge
from serving.images.avif import most_frame_pixels
from serving.images.decode import decode_image

PHOTO = some_photo()
CLEAR = PHOTO.copy()
CLEAR.putalpha(99)
KINDS: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "still": (PHOTO, {}),
    "grey": (PHOTO.convert("L"), {}),
    "clear": (CLEAR, {}),
    "animated": (PHOTO, {"save_all": True, "append_images": [PHOTO.rotate(180)], "duration": 50}),
    "animated and clear": (CLEAR, {"save_all": True, "append_images": [CLEAR.rotate(180)], "duration": 50}),
    "with XMP": (PHOTO, {"xmp": b"<x:xmpmeta/>"}),
}


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def lying(data: bytes) -> bytes:
    """The same AVIF, whose header says that it has 16×16 pixels."""
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", 16, 16) + data[at + 8 :]


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_frame_is_found_in_every_kind_of_avif(kind: str) -> None:
    image, options = KINDS[kind]
    assert most_frame_pixels(as_bytes(image, "AVIF", **options)) == 320 * 240


@pytest.mark.parametrize("kind", ["still", "grey", "with XMP"])
def test_a_frame_that_is_larger_than_its_header_says_is_refused(kind: str) -> None:
    image, options = KINDS[kind]
    data = lying(as_bytes(image, "AVIF", **options))
    assert decode_image(data, 8, 8, 2 * 320 * 240).shape == (8, 8, 3)
    with pytest.raises(TooLarge, match="frames that are larger than it says"):
        decode_image(data, 8, 8, 2 * 320 * 240 - 1)


def test_parts_without_end_are_refused() -> None:
    nested = b""
    for _ in range(5000):
        nested = box(b"moov", nested)
    assert most_frame_pixels(nested) == 0
    items = box(b"meta", bytes(4) + box(b"iloc", struct.pack(">BxxxBBH", 0, 0x44, 0, 20_000) + bytes(14 * 20_000)))
    for data in (box(b"free", b"") * 20_000, box(b"moov", box(b"trak", b"") * 20_000), items):
        with pytest.raises(TooLarge, match="too many parts"):
            most_frame_pixels(data)


def test_an_item_in_several_pieces_is_refused() -> None:
    head = struct.pack(">BxxxBBH", 0, 0x44, 0, 1) + struct.pack(">HHH", 1, 0, 2)
    with pytest.raises(TooLarge, match="several pieces"):
        most_frame_pixels(box(b"meta", bytes(4) + box(b"iloc", head + bytes(16))))


def test_a_file_that_ends_anywhere_has_no_frame_or_the_same() -> None:
    data = as_bytes(*KINDS["animated and clear"][:1], "AVIF", **KINDS["animated and clear"][1])
    assert {most_frame_pixels(data[:end]) for end in range(0, len(data), 7)} <= {0, 320 * 240}
