"""Writes TIFF files of every layout, without Pillow's writer: Pillow compresses bytes, and knows nothing of samples.

samples --> tiles or strips --> rows of bits, differences --> compressed --> directory
"""

import io
import lzma
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

NONE, LZW, OLD_JPEG, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS = 1, 5, 6, 7, 8, 32946, 32773
CCITT, GROUP3, GROUP4, LZMA, ZSTD, WEBP = 2, 3, 4, 34925, 50000, 50001
PILLOW_NAMES = {
    LZW: "tiff_lzw",
    PACKBITS: "packbits",
    ZSTD: "zstd",
    CCITT: "tiff_ccitt",
    GROUP3: "group3",
    GROUP4: "group4",
}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
BYTE, SHORT, LONG, LONG8 = 1, 3, 4, 16
LETTERS = {BYTE: "B", SHORT: "H", LONG: "I", LONG8: "Q"}


@dataclass(frozen=True)
class Layout:
    """How a TIFF stores its samples. `order` is struct's: < or >. Of a tile the width comes first."""

    order: str = "<"
    bits: int = 8
    sample_format: int = UNSIGNED
    photometric: int = BLACK_IS_ZERO
    compression: int = NONE
    predictor: int = 1
    planar: int = 1
    tile: tuple[int, int] | None = None
    rows_per_strip: int | None = None
    fill_order: int = 1
    orientation: int | None = None
    extra_samples: tuple[int, ...] = ()
    big: bool = False
    colours: Sequence[int] = ()
    more: tuple[tuple[int, int, tuple[int, ...]], ...] = ()  # tags: number, type, values


def tiff_file(samples: np.ndarray, layout: Layout) -> bytes:
    """The TIFF file of samples (height, width, channels)."""
    height, width, channels = samples.shape
    planes = [samples[..., n : n + 1] for n in range(channels)] if layout.planar == 2 else [samples]
    pieces = [_packed(piece, layout) for plane in planes for piece in _pieces(plane, layout)]
    head = 16 if layout.big else 8
    offsets = [head + sum(map(len, pieces[:n])) for n in range(len(pieces))]
    wide = LONG8 if layout.big else LONG
    lengths = [len(piece) for piece in pieces]
    tags = [
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, [layout.bits] * channels),
        (259, SHORT, [layout.compression]),
        (262, SHORT, [layout.photometric]),
        (277, SHORT, [channels]),
        (284, SHORT, [layout.planar]),
        (339, SHORT, [layout.sample_format] * channels),
        *layout.more,
    ]
    if layout.tile:
        tags += [
            (322, LONG, [layout.tile[0]]),
            (323, LONG, [layout.tile[1]]),
            (324, wide, offsets),
            (325, LONG, lengths),
        ]
    else:
        tags += [(273, wide, offsets), (278, LONG, [layout.rows_per_strip or height]), (279, LONG, lengths)]
    optional = {266: layout.fill_order, 274: layout.orientation or 1, 317: layout.predictor}
    tags += [(tag, SHORT, [value]) for tag, value in optional.items() if value != 1]
    tags += [(338, SHORT, layout.extra_samples)] if layout.extra_samples else []
    tags += [(320, SHORT, layout.colours)] if layout.colours else []
    tags += [(512, SHORT, [1]), (513, LONG, offsets), (514, LONG, lengths)] if layout.compression == OLD_JPEG else []
    tags += [(530, SHORT, [1, 1])] if layout.photometric == YCBCR else []  # else two by two pixels share their colour
    return _file(b"".join(pieces), tags, layout)


def _file(body: bytes, tags: list[tuple[int, int, Sequence[int]]], layout: Layout) -> bytes:
    order, head, room = layout.order, 16 if layout.big else 8, 8 if layout.big else 4
    body += bytes(len(body) % 2)
    entries = b""
    for tag, kind, values in sorted((tag, kind, tuple(values)) for tag, kind, values in tags):
        value = struct.pack(f"{order}{len(values)}{LETTERS[kind]}", *values)
        if len(value) > room:
            at = struct.pack(f"{order}{'Q' if layout.big else 'I'}", head + len(body))
            value, body = at, body + value + bytes(len(value) % 2)
        entries += struct.pack(f"{order}HH{'Q' if layout.big else 'I'}", tag, kind, len(values)) + value.ljust(
            room, b"\0"
        )
    mark = b"II" if order == "<" else b"MM"
    if layout.big:
        start = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, head + len(body))
        return start + body + struct.pack(f"{order}Q", len(tags)) + entries + bytes(8)
    start = mark + struct.pack(f"{order}HI", 42, head + len(body))
    return start + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def _pieces(plane: np.ndarray, layout: Layout) -> list[np.ndarray]:
    height, width, _ = plane.shape
    across, down = layout.tile or (width, layout.rows_per_strip or height)
    pieces = []
    for top in range(0, height, down):
        for left in range(0, width, across):
            piece = plane[top : top + down, left : left + across]
            if layout.tile:
                missing = ((0, down - piece.shape[0]), (0, across - piece.shape[1]), (0, 0))
                piece = np.pad(piece, missing, mode="edge")
            pieces.append(piece)
    return pieces


def _packed(piece: np.ndarray, layout: Layout) -> bytes:
    if layout.compression in (OLD_JPEG, JPEG, WEBP):
        return _picture(piece, layout)
    rows = _rows(piece, layout)
    raw = rows.tobytes()
    if layout.compression in PILLOW_NAMES:
        raw = _by_libtiff(rows, layout, piece.shape[1])
    elif layout.compression in (DEFLATE, OLD_DEFLATE):
        raw = zlib.compress(raw)
    elif layout.compression == LZMA:
        raw = lzma.compress(raw)
    if layout.fill_order == 2:
        raw = np.packbits(np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")).tobytes()
    return raw


def _rows(piece: np.ndarray, layout: Layout) -> np.ndarray:
    """The bytes of each row, (rows, bytes), uint8."""
    rows = len(piece)
    if layout.bits % 8:
        bits = (piece.reshape(rows, -1, 1).astype(np.uint16) >> np.arange(layout.bits)[::-1]) & 1
        return np.packbits(bits.reshape(rows, -1).astype(np.uint8), axis=1)
    kind = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}[layout.sample_format]
    values = piece.astype(f"{layout.order}{kind}{layout.bits // 8}")
    if layout.predictor == 2:
        whole = values.view(f"{layout.order}u{layout.bits // 8}").copy()
        whole[:, 1:] -= values.view(whole.dtype)[:, :-1]
        values = whole
    if layout.predictor == 3:  # the values' first bytes, their second bytes, …, and then differences
        apart = (
            values.astype(f">f{layout.bits // 8}")
            .reshape(rows, -1, 1)
            .view(np.uint8)
            .transpose(0, 2, 1)
            .reshape(rows, -1)
        )
        step = piece.shape[2]
        data = apart.copy()
        data[:, step:] -= apart[:, :-step]
        return data
    return np.frombuffer(values.tobytes(), np.uint8).reshape(rows, -1)


def _by_libtiff(rows: np.ndarray, layout: Layout, pixels: int) -> bytes:
    """The rows compressed: Pillow saves them as a grey or a black and white picture, of one strip."""
    height, length = rows.shape
    bilevel = layout.compression in (CCITT, GROUP3, GROUP4)
    mode, width = ("1", pixels) if bilevel else ("L", length)
    file = io.BytesIO()
    picture = Image.frombytes(mode, (width, height), rows.tobytes())
    picture.save(file, "TIFF", compression=PILLOW_NAMES[layout.compression], tiffinfo={278: height})
    with Image.open(file) as saved:
        (at,), (count,) = saved.tag_v2[273], saved.tag_v2[279]  # type: ignore[attr-defined]
    return file.getvalue()[at : at + count]


def _picture(piece: np.ndarray, layout: Layout) -> bytes:
    file = io.BytesIO()
    channels = piece.shape[2]
    mode = {1: "L", 3: "YCbCr" if layout.photometric == YCBCR else "RGB", 4: "CMYK"}[channels]
    samples = piece.astype(np.uint8).squeeze(axis=2 if channels == 1 else ())
    image = Image.frombytes(
        mode, (piece.shape[1], piece.shape[0]), (255 - samples if mode == "CMYK" else samples).tobytes()
    )
    if layout.compression == WEBP:
        image.save(file, "WEBP", lossless=True)
    elif mode == "RGB":
        image.save(file, "JPEG", quality=95, keep_rgb=True)
    else:
        image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()
