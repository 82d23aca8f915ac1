"""AVIF: how large its AV1 frames are. libavif decodes a frame before it compares it with what the header says.

boxes: meta/iloc names the items, moov/…/stco the samples of tracks --> OBUs (AV1's units) --> sequence headers
"""

import struct
from collections.abc import Iterator

from serving.errors import TooLarge

MOST_PARTS = 10_000  # boxes, items and OBUs of a file; a photo takes dozens
DEEPEST = 8  # of boxes in boxes; stco is the sixth
INTO = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}  # boxes on the way to stco
SEQUENCE_HEADER = 1


class _Parts:
    """How many parts of a file may still be looked at."""

    left = MOST_PARTS

    def take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TooLarge("The AVIF has too many parts. Save it anew.")


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("the sequence header ends too early")
        return self._value >> self._left & (1 << count) - 1


def most_frame_pixels(data: bytes) -> int:
    """Width × height of the largest frame that an AVIF file may have. Raises TooLarge for one of too many parts."""
    most, parts = 0, _Parts()
    for start, end in _coded(data, 0, len(data), parts, DEEPEST):
        at = start
        while at < end:
            parts.take()
            kind, body, at = _obu(data, at, end)
            if kind == SEQUENCE_HEADER:
                most = max(most, _frame_pixels(data[body : min(at, body + 1000)]))
    return most


def _coded(data: bytes, start: int, end: int, parts: _Parts, deep: int) -> Iterator[tuple[int, int]]:
    """Where in a file coded pictures lie, and whatever else has an item of its own: start and end."""
    at = start
    while at + 8 <= end and deep:
        parts.take()
        size, kind = struct.unpack_from(">I4s", data, at)
        body = at + 8
        if size == 1 and at + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        box_end = end if size == 0 else min(end, at + size)
        if kind == b"meta":
            yield from _items(data, body + 4, box_end, parts)
        elif kind in INTO:
            yield from _coded(data, body, box_end, parts, deep - 1)
        elif kind in (b"stco", b"co64") and body + 8 < box_end:
            wide = 8 if kind == b"co64" else 4
            first = int.from_bytes(data[body + 8 : body + 8 + wide])
            yield first, len(data)
        if box_end < body:
            return
        at = box_end


def _items(data: bytes, start: int, end: int, parts: _Parts) -> Iterator[tuple[int, int]]:
    boxes, at = dict[bytes, tuple[int, int]](), start
    while at + 8 <= end:
        parts.take()
        size, kind = struct.unpack_from(">I4s", data, at)
        boxes.setdefault(kind, (at + 8, at + size))
        if size < 8:
            break
        at += size
    at = boxes.get(b"iloc", (len(data), 0))[0]
    if at + 10 > len(data):
        return
    version, sizes, base_sizes = data[at], data[at + 4], data[at + 5]
    wide = 4 if version == 2 else 2
    count, at = int.from_bytes(data[at + 6 : at + 6 + wide]), at + 6 + wide
    offset_wide, length_wide, base_wide = sizes >> 4, sizes & 15, base_sizes >> 4
    index_wide = base_sizes & 15 if version else 0
    for _ in range(count):
        parts.take()
        in_idat = bool(version) and data[at + wide + 1 : at + wide + 2] == b"\1"
        at += wide + (2 if version else 0) + 2
        base, at = int.from_bytes(data[at : at + base_wide]), at + base_wide
        extents, at = int.from_bytes(data[at : at + 2]), at + 2
        if extents > 1:  # an OBU may lie across two of them
            raise TooLarge("The AVIF has a picture in several pieces. Save it anew.")
        if extents:
            at += index_wide
            offset, at = int.from_bytes(data[at : at + offset_wide]), at + offset_wide
            length, at = int.from_bytes(data[at : at + length_wide]), at + length_wide
            first = base + offset + (boxes.get(b"idat", (0, 0))[0] if in_idat else 0)
            yield first, min(len(data), first + length) if length else len(data)


def _obu(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """The type of the OBU at `at`, where its body begins, and where it ends."""
    head = data[at]
    at += 2 if head & 4 else 1
    size = end - at
    if head & 2:
        size = 0
        for shift in range(0, 56, 7):
            byte = data[at] if at < end else 0
            at, size = at + 1, size | (byte & 127) << shift
            if byte < 128:
                break
    return head >> 3 & 15, at, min(end, at + size)


def _frame_pixels(header: bytes) -> int:
    """Width × height of the largest frame of a sequence header; 0 if it ends too early, so that no frame can follow."""
    bits = _Bits(header)
    try:
        bits.take(4)  # the profile, and whether it is a still picture
        if bits.take(1):
            bits.take(5)
        else:
            _operating_points(bits)
        wide, high = bits.take(4) + 1, bits.take(4) + 1
        return (bits.take(wide) + 1) * (bits.take(high) + 1)
    except ValueError:
        return 0


def _operating_points(bits: _Bits) -> None:
    """Pass over what a header of several pictures has before its size: AV1's specification, 5.5.1."""
    delay_bits = 0
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):
            zeros = 0
            while not bits.take(1):
                zeros += 1
            bits.take(zeros)
        if bits.take(1):
            delay_bits = bits.take(5) + 1
            bits.take(42)
    delays = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if delays and bits.take(1):
            bits.take(4)
