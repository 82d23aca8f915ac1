"""Inputs that nobody should send: broken pictures, forms, requests and jobs, each the same for the same number.

    number --> Random(number) --> a good one, mutated --> bytes

Run as a program it decodes pictures, in a process that may crash, hang or run out of memory, and reports as JSON:
`python tests/fuzzing.py numbers FIRST COUNT NOW_AT`, `python tests/fuzzing.py file PATH CPU_SECONDS`.
"""

import base64
import contextlib
import io
import json
import mmap
import random
import re
import resource
import signal
import struct
import sys
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT, MOST_PIXELS, MOST_UPLOAD_BYTES = 224, 224, 50_000_000, 16 * 1024 * 1024  # the settings' defaults
MOST_SECONDS, MOST_MEGABYTES = 10.0, 512  # for one picture: seconds of CPU, all memory of the process
SIZES = (0, 1, 2, 3, 7, 8, 9, 255, 256, 4096, 7071, 16383, 16384, 32767, 50_000, 65535)
NUMBERS = (*SIZES, 1 << 24, 50_000_000, (1 << 31) - 1, 1 << 31, (1 << 32) - 9, (1 << 32) - 1)


def rng(number: object) -> random.Random:
    return random.Random(f"fuzz {number}")  # noqa: S311


# Pictures to start from.


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, kind, **options)  # a copy: saving leaves its options on the image
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: bytes, interlaced: bool = False
) -> bytes:
    """A PNG of raw rows, each led by its filter byte; Pillow writes neither interlaced ones nor every depth."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    body = b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


def _interlaced_png(size: int) -> bytes:
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    grey = np.arange(size * size, dtype=np.uint8).reshape(size, size)
    rows = [row.tobytes() for top, down, left, across in passes for row in grey[top::down, left::across]]
    return png(size, size, 8, 0, b"".join(b"\0" + row for row in rows if row), interlaced=True)


def bmp_rle(width: int, height: int, body: bytes) -> bytes:
    """A run-length encoded BMP of 8 bits, which Pillow reads but does not write."""
    head = struct.pack("<IIIHHIIIIII", 40, width, height, 1, 8, 1, len(body), 2835, 2835, 256, 0)
    palette = bytes(channel for grey in range(256) for channel in (grey, 255 - grey, 7, 0))
    return b"BM" + struct.pack("<IHHI", 14 + 40 + 1024 + len(body), 0, 0, 14 + 40 + 1024) + head + palette + body


@cache
def pictures() -> tuple[tuple[str, bytes], ...]:
    """Small pictures in each format, in as many of its modes as Pillow writes, and a few by hand."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    across, down = np.meshgrid(np.linspace(0, 255, 32), np.linspace(0, 255, 24))
    smooth = np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)
    photo = Image.fromarray(np.where(across[..., None] > 128, noise, smooth).astype(np.uint8))
    clear = photo.convert("RGBA")
    clear.putalpha(Image.fromarray(down.astype(np.uint8)))
    deep = Image.fromarray((down * 256).astype(np.uint16))
    other = photo.transpose(Image.Transpose.ROTATE_180)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "a camera", 72.0
    exif.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    palette = photo.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    grey, bits = photo.convert("L"), photo.convert("1")
    frames = {"save_all": True, "append_images": [other.copy(), photo.copy()], "duration": 50}

    made = {
        "JPEG": _saved(photo, "JPEG"),
        "JPEG grey": _saved(grey, "JPEG"),
        "JPEG CMYK": _saved(photo.convert("CMYK"), "JPEG"),
        "JPEG progressive": _saved(photo, "JPEG", progressive=True, exif=exif),
        "JPEG restarts": _saved(photo, "JPEG", restart_marker_rows=1, subsampling=0, comment=b"a comment"),
        "JPEG large": _saved(photo.resize((500, 375)), "JPEG", quality=30, exif=exif, icc_profile=bytes(300)),
        "JPEG of two": _saved(photo, "MPO", save_all=True, append_images=[other.copy()]),
        "PNG": _saved(photo, "PNG", exif=exif),
        "PNG clear": _saved(clear, "PNG"),
        "PNG grey, clear": _saved(clear.convert("LA"), "PNG"),
        "PNG palette": _saved(palette, "PNG", transparency=bytes(range(16))),
        "PNG 1 bit": _saved(bits, "PNG"),
        "PNG 16 bits": _saved(deep, "PNG"),
        "PNG 48 bits": png(4, 4, 16, 2, bytes(4 * (1 + 4 * 6))),
        "PNG interlaced": _interlaced_png(16),
        "PNG animated": _saved(photo, "PNG", **frames),
        "WEBP": _saved(photo, "WEBP"),
        "WEBP lossless": _saved(photo, "WEBP", lossless=True),
        "WEBP clear": _saved(clear, "WEBP", exif=exif, quality=50),
        "WEBP animated": _saved(photo, "WEBP", **frames),
        "AVIF": _saved(photo, "AVIF", exif=exif, speed=10),
        "AVIF clear": _saved(clear, "AVIF", speed=10),
        "AVIF animated": _saved(photo, "AVIF", speed=10, **frames),
        "GIF": _saved(palette, "GIF", interlace=1, comment=b"a comment"),
        "GIF grey": _saved(grey, "GIF", interlace=0),
        "GIF clear": _saved(palette, "GIF", transparency=3),
        "GIF animated": _saved(palette, "GIF", **frames | {"disposal": 2}),
        "BMP": _saved(photo, "BMP"),
        "BMP clear": _saved(clear, "BMP"),
        "BMP palette": _saved(palette, "BMP"),
        "BMP grey": _saved(grey, "BMP"),
        "BMP 1 bit": _saved(bits, "BMP"),
        "BMP run lengths": bmp_rle(16, 4, b"\x10\x07\0\0\0\x04abcd\0\x02\x03\x01\x05\x09\0\0\x10\x08\0\1"),
        "TIFF": _saved(photo, "TIFF"),
        "TIFF 1 bit": _saved(bits, "TIFF", compression="group4"),
        "TIFF 16 bits": _saved(deep, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF 32 bits": _saved(deep.convert("I"), "TIFF"),
        "TIFF floats": _saved(Image.fromarray(down.astype(np.float32)), "TIFF"),
        "TIFF floats, packed": _saved(Image.fromarray(down.astype(np.float32)), "TIFF", compression="tiff_lzw"),
        "TIFF palette": _saved(palette, "TIFF", compression="packbits"),
        "TIFF clear": _saved(clear, "TIFF", compression="tiff_lzw"),
        "TIFF CMYK": _saved(photo.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "TIFF LAB": _saved(Image.merge("LAB", photo.split()), "TIFF"),
        "TIFF of JPEG": _saved(photo, "TIFF", compression="jpeg"),
        "TIFF big": _saved(photo, "TIFF", big_tiff=True),
        "TIFF turned": _saved(photo, "TIFF", exif=exif, compression="tiff_adobe_deflate"),
        "TIFF of two": _saved(photo, "TIFF", save_all=True, append_images=[other.copy()]),
        "TIFF tiled": tiff(32, 32, tile=(16, 16), pieces=[zlib.compress(bytes(256))] * 4),
        "nothing": b"",
        "text": b"I am a text file, and no picture at all.",
    }
    return tuple(made.items())


def tiff(
    width: int,
    height: int,
    *,
    tile: tuple[int, int] | None = None,
    pieces: list[bytes],
    bits: int = 8,
    rows_per_strip: int | None = None,
    extra: tuple[tuple[int, int, int, bytes], ...] = (),
) -> bytes:
    """A grey TIFF, its pieces deflated: tiles, or strips."""
    offsets, lengths, body = [], [], b""
    for piece in pieces:
        offsets.append(8 + len(body))
        lengths.append(len(piece))
        body += piece
    short, long = 3, 4
    entries = [(256, long, [width]), (257, long, [height]), (258, short, [bits]), (259, short, [8]), (262, short, [1])]
    if tile:
        entries += [(322, long, [tile[0]]), (323, long, [tile[1]]), (324, long, offsets), (325, long, lengths)]
    else:
        entries += [(273, long, offsets), (278, long, [rows_per_strip or height]), (279, long, lengths)]
    fields: list[tuple[int, int, int, bytes]] = [*extra]
    for tag, kind, values in entries:
        value = struct.pack(f"<{len(values)}{'H' if kind == short else 'I'}", *values)
        if len(value) > 4:
            value, body = struct.pack("<I", 8 + len(body)), body + value
        fields.append((tag, kind, len(values), value.ljust(4, b"\0")))
    directory = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in sorted(fields))
    head = b"II*\0" + struct.pack("<I", 8 + len(body))
    return head + body + struct.pack("<H", len(fields)) + directory + bytes(4)


# What may happen to bytes on their way.


def flip(r: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 4, 16))):
        if changed:
            changed[r.randrange(len(changed))] ^= r.choice((1, 0x80, 0xFF, r.randrange(256)))
    return bytes(changed)


def flip_head(r: random.Random, data: bytes) -> bytes:
    """The headers are where it hurts: most of a small file's pixels may be anything."""
    return flip(r, data[:64]) + data[64:]


def delete(r: random.Random, data: bytes) -> bytes:
    start = r.randrange(len(data) + 1)
    return data[:start] + data[start + r.choice((1, 2, 4, 50)) :]


def insert(r: random.Random, data: bytes) -> bytes:
    start = r.randrange(len(data) + 1)
    return data[:start] + r.choice((b"\0", b"\xff", b"\xff\xd9", r.randbytes(4), bytes(100))) + data[start:]


def repeat(r: random.Random, data: bytes) -> bytes:
    start, length = r.randrange(len(data) + 1), r.randrange(1, 200)
    return data[: start + length] * r.choice((1, 2)) + data[start:]


def truncate(r: random.Random, data: bytes) -> bytes:
    return data[: r.randrange(len(data) + 1)]


def number_in(r: random.Random, data: bytes) -> bytes:
    """Some field that may be a size, an offset or a count becomes another number."""
    kind = r.choice((">H", "<H", ">I", "<I"))
    width = struct.calcsize(kind)
    if len(data) <= width:
        return data
    start = r.randrange(min(len(data), r.choice((32, 64, 512, len(data)))) - width + 1) if len(data) > 32 else 0
    value = r.choice(NUMBERS) & (256**width - 1)
    return data[:start] + struct.pack(kind, value) + data[start + width :]


def splice(r: random.Random, data: bytes) -> bytes:
    _, other = r.choice(pictures())
    return data[: r.randrange(len(data) + 1)] + other[r.randrange(len(other) + 1) :]


ANYWHERE = (flip, flip_head, delete, insert, repeat, truncate, number_in, splice)


def garbage_exif(r: random.Random) -> bytes:
    """An EXIF record whose one directory has random tags, types, counts and offsets."""
    order = r.choice("<>")
    tags = (0x0112, 0x8769, 0x8825, 0x927C, 0x011A, 0x0201, 0x02BC, r.randrange(65536))
    count = r.choice((0, 1, 5, 60, 65535))
    body = b"".join(
        struct.pack(f"{order}HHII", r.choice(tags), r.randrange(14), r.choice(NUMBERS), r.choice((*NUMBERS, *range(9))))
        for _ in range(min(count, 60))
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", r.choice((8, 8, 8, *NUMBERS)))
    return head + struct.pack(f"{order}H", count) + body + r.randbytes(r.choice((0, 4, 40)))


# What may happen within each format, its checksums and lengths put right again, lest nobody reads what is inside.


def mutate_png(r: random.Random, data: bytes) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return flip(r, data)
    index = r.randrange(len(chunks))
    kind, body = chunks[index]
    orientation = b'<x tiff:Orientation="%d"/>' % r.randrange(10)
    change = r.randrange(7)
    if change == 0 and chunks[0][0] == b"IHDR" and len(chunks[0][1]) == 13:
        depth, colour = r.choice((1, 2, 4, 8, 16, 3)), r.choice((0, 2, 3, 4, 6, 1))
        chunks[0] = (
            b"IHDR",
            struct.pack(
                ">IIBBBBB", r.choice((*SIZES, 32)), r.choice((*SIZES, 24)), depth, colour, 0, 0, r.choice((0, 1))
            ),
        )
    elif change == 1:
        chunks[index] = kind, r.choice(ANYWHERE)(r, body)
    elif change == 2 and kind in (b"IDAT", b"fdAT"):
        with contextlib.suppress(zlib.error):
            pixels = zlib.decompressobj().decompress(body, 10**6)
            chunks[index] = kind, zlib.compress(r.choice(ANYWHERE)(r, pixels))
    elif change == 3:
        chunks.insert(r.randrange(len(chunks) + 1), chunks.pop(index))
    elif change == 4:
        chunks.insert(index, (kind, body))
    else:
        news = (
            (b"eXIf", garbage_exif(r)),
            (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + orientation),
            (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  99\n" + garbage_exif(r).hex().encode())),
            (b"tRNS", r.randbytes(r.choice((0, 1, 2, 6, 256)))),
            (b"PLTE", r.randbytes(r.choice((0, 1, 3, 768)))),
            (b"iCCP", b"x\0\0" + zlib.compress(bytes(r.choice((1, 2_000_000))))),
            (b"acTL", struct.pack(">II", r.choice(NUMBERS), 0)),
            (b"fcTL", struct.pack(">IIIIIHHBB", 0, *(r.choice(NUMBERS) for _ in range(4)), 1, 0, 0, 0)),
            (b"gAMA", r.randbytes(r.choice((0, 4)))),
            (b"cHRM", r.randbytes(r.choice((0, 7, 32)))),
        )
        chunks.insert(r.randrange(len(chunks) + 1), r.choice(news))
    return data[:8] + b"".join(chunk(*one) for one in chunks)


def mutate_jpeg(r: random.Random, data: bytes) -> bytes:
    segments, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
        segments.append((marker, data[at + 4 : at + 2 + length]))
        at += 2 + length
        if marker == 0xDA:
            break
    if not segments:
        return flip(r, data)
    scan = data[at:]
    index = r.randrange(len(segments))
    marker, body = segments[index]
    change = r.randrange(7)
    frames = [number for number, (kind, _) in enumerate(segments) if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xCC)]
    if change == 0 and frames:
        kind, frame = segments[frames[0]]
        size = struct.pack(">HH", r.choice((*SIZES, 24)), r.choice((*SIZES, 32)))
        segments[frames[0]] = r.choice((kind, kind, 0xC0 + r.randrange(16))), frame[:1] + size + frame[5:]
    elif change == 1:
        segments[index] = marker, r.choice(ANYWHERE)(r, body)[:65533]
    elif change == 2:
        segments.insert(r.randrange(len(segments)), segments.pop(index))
    elif change == 3:
        segments.insert(index, (r.choice((marker, r.randrange(0xC0, 0x100))), body))
    elif change == 4:
        scan = r.choice(ANYWHERE)(r, scan)
    else:
        news = (
            (0xE1, b"Exif\0\0" + garbage_exif(r)),
            (0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="%d"/>' % r.randrange(10)),
            (0xE2, b"MPF\0" + garbage_exif(r)),
            (0xE2, b"ICC_PROFILE\0" + r.randbytes(r.choice((0, 1, 2, 20)))),
            (0xED, b"Photoshop 3.0\x008BIM" + r.randbytes(r.choice((0, 3, 30)))),
            (0xEE, b"Adobe" + r.randbytes(r.choice((0, 2, 7)))),
            (0xE0, b"JFIF\0" + r.randbytes(r.choice((0, 1, 9)))),
            (0xDD, struct.pack(">H", r.choice(SIZES))),
        )
        segments.insert(r.randrange(len(segments)), r.choice(news))
    return (
        data[:2]
        + b"".join(
            struct.pack(">BBH", 0xFF, kind, min(len(content) + 2, 65535)) + content for kind, content in segments
        )
        + scan
    )


def mutate_tiff(r: random.Random, data: bytes) -> bytes:
    """One field of the first directory gets another tag, type, count, value, or goes, or comes twice."""
    if data[:4] != b"II*\0" or len(data) < 10:
        return number_in(r, data)
    (at,) = struct.unpack_from("<I", data, 4)
    if at + 2 > len(data):
        return number_in(r, data)
    (count,) = struct.unpack_from("<H", data, at)
    fields = [data[at + 2 + 12 * n : at + 14 + 12 * n] for n in range(min(count, 100))]
    fields = [field for field in fields if len(field) == 12]
    if not fields:
        return number_in(r, data)
    index = r.randrange(len(fields))
    tag, kind, length, value = struct.unpack("<HHII", fields[index])
    known = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338)
    change = r.randrange(6)
    if change == 0:
        value = r.choice((*NUMBERS, *range(9), 32773, 34676, 34712, 50000, 50001))
    elif change == 1:
        length = r.choice((*NUMBERS, length + 1, 0))
    elif change == 2:
        kind = r.choice((*range(20), 65535))
    elif change == 3:
        tag = r.choice((*known, 339, 347, 529, 530, 532, 700, 34665, 34675, 34853, 37724, r.randrange(65536)))
    fields[index] = struct.pack("<HHII", tag, kind, length, value)
    if change == 4:
        del fields[index]
    elif change == 5:
        fields.insert(index, struct.pack("<HHII", r.choice(known), r.choice((1, 3, 4)), 1, r.choice(NUMBERS)))
    directory = struct.pack("<H", len(fields)) + b"".join(fields) + struct.pack("<I", r.choice((0, 0, at, 8)))
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


def mutate_webp(r: random.Random, data: bytes) -> bytes:
    chunks, at = [], 12
    while at + 8 <= len(data):
        kind, (length,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        chunks.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    if not chunks:
        return flip(r, data)
    index = r.randrange(len(chunks))
    kind, body = chunks[index]
    change = r.randrange(5)
    if change == 0:
        chunks[index] = kind, r.choice(ANYWHERE)(r, body)
    elif change == 1:
        canvas = b"".join(struct.pack("<I", r.choice(NUMBERS))[:3] for _ in range(2))
        head = b"VP8X", bytes([r.randrange(256), 0, 0, 0]) + canvas
        chunks = [head, *chunks[1:]] if kind == b"VP8X" else [head, *chunks]
    elif change == 2:
        chunks.insert(r.randrange(len(chunks)), chunks.pop(index))
    elif change == 3:
        chunks.insert(index, (kind, body))
    else:
        chunks.append(r.choice(((b"EXIF", garbage_exif(r)), (b"XMP ", b'tiff:Orientation="8"'), (b"ICCP", b"x"))))
    inside = b"".join(
        name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for name, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(inside) + 4) + b"WEBP" + inside


def mutate_sizes(r: random.Random, data: bytes) -> bytes:
    """GIF and BMP: width and height stand at known places."""
    width, height = r.choice((*SIZES, 32)), r.choice((*SIZES, 24))
    if data[:3] == b"GIF":
        frame = data.find(b",")
        changed = data[:6] + struct.pack("<HH", width, height) + data[10:]
        return r.choice((changed, data[: frame + 1] + struct.pack("<4H", 0, 0, width, height) + data[frame + 9 :]))
    height *= r.choice((1, 1, -1))
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


WITHIN: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "PNG": mutate_png,
    "JPEG": mutate_jpeg,
    "TIFF": mutate_tiff,
    "WEBP": mutate_webp,
    "GIF": mutate_sizes,
    "BMP": mutate_sizes,
}


def mutated_picture(number: int) -> tuple[str, bytes]:
    """What it was made of and how, and the bytes."""
    r = rng(number)
    name, data = r.choice(pictures())
    said = [name]
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        within = WITHIN.get(name.split()[0])
        change = within if within and r.random() < 0.5 else r.choice(ANYWHERE)
        data = change(r, data)
        said.append(change.__name__)
    return ", ".join(said), data


# Pictures that are small to send and large to read. Those that cost seconds are a tenth of the largest upload.


def _deflated(row: bytes, rows: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()


def _flat_png(bits: int, colour: int, *chunks: bytes) -> bytes:
    """7071×7071 pixels of nothing."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    head = struct.pack(">IIBBBBB", 7071, 7071, bits, colour, 0, 0, 0)
    row = bytes(1 + (7071 * bits * channels + 7) // 8)
    body = chunk(b"IDAT", _deflated(row, 7071)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + body


def _flat_webp() -> bytes:
    """A lossless WebP in which every code has one symbol, so that a pixel takes no bit at all."""
    head = 16382 | 3050 << 14  # 16383×3051
    codes = int("0001" * 5, 2) << 3  # after three bits that say: no transform, no cache, one set of codes
    body = b"\x2f" + struct.pack("<I", head) + codes.to_bytes(7, "little")
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def _gif_with_disposal(width: int, height: int) -> bytes:
    """Pillow fills a frame of this size as it opens the file, before anybody can look at its size."""
    head = b"GIF89a\1\0\1\0\0\0\0!\xf9\4\x08\0\0\0\0,"
    return head + struct.pack("<4H", 0, 0, width, height) + b"\0\2"


def _jpeg_of_scans(width: int, height: int, size: int) -> bytes:
    """A progressive JPEG; each of its scans is some 20 bytes that say for every block: nothing new."""
    blocks = ((width + 7) // 8) * ((height + 7) // 8)

    def codes(table: int, symbol: int) -> bytes:
        return b"\xff\xc4" + struct.pack(">H", 20) + bytes([table, 1]) + bytes(15) + bytes([symbol])

    runs = -(-blocks // 32767)
    bits = int(("0" + "1" * 14) * runs + "1" * (-15 * runs % 8), 2)
    nothing = bits.to_bytes((15 * runs + 7) // 8, "big").replace(b"\xff", b"\xff\0")
    first = b"\xff\xda\0\x08\1\1\0\0\0\0" + bytes((blocks + 7) // 8)
    scan = b"\xff\xda\0\x08\1\1\0\1\x3f\0" + nothing
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\1\x11\0"
    head = b"\xff\xd8\xff\xdb\0\x43\0" + b"\1" * 64 + frame + codes(0, 0) + codes(0x10, 0xE0) + first
    return head + scan * ((size - len(head)) // len(scan)) + b"\xff\xd9"


def _tiff_of_strips(count: int) -> bytes:
    """Uncompressed, one pixel wide, each row a strip, all at the same place."""
    rows = [(256, 4, 1, 1), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    rows += [(273, 3, count, 8), (278, 3, 1, 1), (279, 3, count, 8)]
    directory = struct.pack("<H", len(rows)) + b"".join(struct.pack("<HHII", *row) for row in rows) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + 2 * count) + bytes(2 * count) + directory


def _tiff_of_broken_tags(count: int) -> bytes:
    tags = b"".join(struct.pack("<HHII", 1000 + number, 1, 1 << 31, 16) for number in range(count))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + tags


def _with_header(part: bytes, size: int) -> bytes:
    """A good JPEG, GIF or PNG, with as many of `part` in its header as fit."""
    name, at = {b"\xff": ("JPEG", 2), b"!": ("GIF grey", 13 + 3 * 256)}.get(part[:1], ("PNG", 33))
    data = dict(pictures())[name]
    return data[:at] + part * ((size - len(data)) // len(part)) + data[at:]


TENTH = MOST_UPLOAD_BYTES // 10
ALL_COLOURS = {"quality": 100, "subsampling": "4:4:4"}
LARGE: dict[str, Callable[[], bytes]] = {
    "PNG, grey": lambda: _flat_png(8, 0),
    "PNG, 16 bits": lambda: _flat_png(16, 0),
    "PNG, clear": lambda: _flat_png(8, 6),
    "PNG, palette with a clear colour": lambda: _flat_png(8, 3, chunk(b"PLTE", bytes(768)), chunk(b"tRNS", b"\0")),
    "PNG, 16 bits with a clear grey": lambda: _flat_png(16, 0, chunk(b"tRNS", bytes(2))),
    "PNG, with a clear colour": lambda: _flat_png(8, 2, chunk(b"tRNS", bytes(6))),
    "PNG, a pixel wide": lambda: png(1, 12_000_000, 8, 0, bytes(24_000_000)),
    "WebP": _flat_webp,
    "AVIF, clear": lambda: _saved(Image.new("RGBA", (5000, 5000), (9, 99, 200, 99)), "AVIF", speed=10, **ALL_COLOURS),
    "GIF, its frame to be cleared": lambda: _gif_with_disposal(23_500, 23_500),
    "TIFF, floats": lambda: tiff(
        7071, 7071, pieces=[_deflated(bytes(4 * 7071), 7071)], bits=32, extra=((339, 3, 1, b"\3\0\0\0"),)
    ),
    "TIFF, its tile larger than itself": lambda: tiff(
        16, 16, tile=(23_500, 23_500), pieces=[_deflated(bytes(23_500), 23_500)]
    ),
}
LONG: dict[str, Callable[[], bytes]] = {
    "JPEG of scans": lambda: _jpeg_of_scans(2236, 2236, TENTH),
    "JPEG of EXIFs": lambda: _with_header(b"\xff\xe1\0\x12Exif\0\0" + bytes(10), TENTH),
    "JPEG of comments": lambda: _with_header(b"\xff\xfe\0\2", TENTH),
    "JPEG of padding": lambda: _with_header(b"\xff", TENTH),
    "PNG of colour profiles": lambda: _with_header(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**20), 9)), TENTH),
    "PNG of texts": lambda: _with_header(chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2**20), 9)), TENTH),
    "PNG of profiles of EXIF": lambda: _with_header(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2**21), 9)), TENTH
    ),
    "PNG of empty chunks": lambda: _with_header(chunk(b"IDAT", b""), TENTH),
    "GIF of comments": lambda: _with_header(b"!\xfe\1x\0", TENTH),
    "GIF of one comment": lambda: _with_header(b"!\xfe" + b"\1x" * (TENTH // 2 - 1000) + b"\0", TENTH),
    "BMP of short lines": lambda: bmp_rle(
        5000, 1000, b"\xff\0" * 20 + b"\1\0" * (TENTH // 2 - 5000) + b"\0\0" + b"\1\0\0\0" * 1000 + b"\0\1"
    ),
    "TIFF of strips": lambda: _tiff_of_strips(TENTH // 2 - 1000),
    "TIFF of broken tags": lambda: _tiff_of_broken_tags(20_000),
}


# Forms and whole requests.


def mutated_form(number: int) -> tuple[str, bytes]:
    """Content-Type and body of a form with a picture, its framing broken somewhere, or not."""
    r = rng(f"form {number}")
    image = mutated_picture(number)[1] if r.random() < 0.5 else r.choice(pictures())[1]
    boundary = r.choice(("x", "a-boundary", "a-boundary", "--", "-" * 70, "x y", "é", "a" * 300))
    good = 'name="image"; filename="a.jpg"'
    names = ('name="image"', "name=image", 'name="im\\"age"', "name*=UTF-8''image", 'name="other"', "name", "")
    lines = ("Content-Length: 3", "Content-Length: ", "X", ": x", "é: x", " folded", "", "X: " + "x" * 5000)
    parts = []
    for _ in range(r.choice((0, 1, 1, 1, 1, 1, 2, 2, 30, 200))):
        head = [f"Content-Disposition: form-data; {r.choice((good, good, *names))}", "Content-Type: image/jpeg"]
        head += [r.choice(lines)] if r.random() < 0.1 else []
        parts.append("\r\n".join(head).encode(r.choice(("utf-8", "latin-1"))) + b"\r\n\r\n" + image)
    delimiter = f"\r\n--{boundary}".encode()
    body = b"".join(delimiter + b"\r\n" + part for part in parts)[r.choice((0, 2)) :] + delimiter + b"--\r\n"
    framing = r.randrange(6)
    if framing == 0:
        body = r.choice(ANYWHERE)(r, body)
    elif framing == 1:
        body = flip(r, body[:100]) + body[100:]
    elif framing == 2:
        body = body[:-30] + r.choice(ANYWHERE)(r, body[-30:])
    wrong = (f'"{boundary}"', "", "y", f"{boundary}; charset=utf-16", f"{boundary};boundary=y", '"', "\u00ff\u00fe")
    kind = f"multipart/form-data; boundary={boundary if r.random() < 0.8 else r.choice(wrong)}"
    if r.random() < 0.1:
        kind = r.choice(
            ("multipart/form-data", f"multipart/form-data; boundary*=x''{boundary}", "image/*", "text/plain", "é", "")
        )
    return kind, body


def mutated_request(number: int, *, chunked: bool) -> bytes:
    """A whole HTTP request, broken somewhere in its head, its length or its chunks."""
    r = rng(f"request {number}")
    kind, body = mutated_form(number)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n".encode()
    if chunked:
        sizes = (f"{len(body):x}", f"{len(body):x};x=y", "0", "-1", "zz", "", "ffffffffffffffff", f"{len(body) + 9:x}")
        size = r.choice((sizes[0], *sizes)).encode()
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        body = size + b"\r\n" + body + r.choice((b"\r\n0\r\n\r\n", b"\r\n0\r\n\r\n", b"\r\n", b"0\r\n\r\n"))
    else:
        lengths = (len(body), len(body), len(body) + 5, max(len(body) - 5, 0), -1, 10**30, "x", "")
        head += f"Content-Length: {r.choice(lengths)}\r\n\r\n".encode()
    return (r.choice((flip, delete, insert))(r, head) if r.random() < 0.5 else head) + body


# Jobs.


def mutated_inference(number: int) -> tuple[bytes, str | None]:
    """The body of a request to …/infer, broken somewhere, or not, and its header Inference-Header-Content-Length."""
    r = rng(f"inference {number}")
    inputs, behind = [], []
    for _ in range(r.choice((1, 1, 1, 2, 9))):
        datatype, count = r.choice(("UINT8", "FP32", "BYTES", "BYTES")), r.choice((1, 2, 3))
        files = [r.randbytes(r.randrange(9)) for _ in range(count)]
        content = r.randbytes(count * 4 if datatype == "FP32" else count)
        if datatype == "BYTES":
            content = b"".join(struct.pack("<I", len(file)) + file for file in files)
        one: dict[str, Any] = {"name": "pixels", "datatype": datatype, "shape": [count]}
        if r.random() < 0.5:
            size = len(content) if r.random() < 0.8 else r.choice((*NUMBERS, -1))
            one["parameters"] = {"binary_data_size": size}
            behind.append(content if r.random() < 0.8 else r.choice(ANYWHERE)(r, content))
        else:
            texts = [base64.b64encode(file).decode() for file in files]
            one["data"] = texts if datatype == "BYTES" else list(content[:count])
        for name in one.keys() if r.random() < 0.2 else ():
            one[name] = r.choice((*NUMBERS, -1, 0.5, None, True, "", "FP32", [], {}, [[]], [[1], 2], {"a": 1}))
        inputs.append(one)
    head = json.dumps({"id": "1", "inputs": inputs, "outputs": [{"name": "a"}]}).encode()
    if r.random() < 0.2:
        head = r.choice(ANYWHERE)(r, head)
    length = str(len(head)) if r.random() < 0.9 else r.choice(("", "-1", "0", "1e3", "²", "9" * 30, str(len(head) + 1)))
    return head + b"".join(behind), length if behind or r.random() < 0.2 else None


JOB_SHAPE = (4, 4, 3)
UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
NAMES = ("precious", "image_queue", "{image_queue}:workers", "{image_queue}:dead", "__keyspace@0__:x", "")


def good_pixels(number: int) -> bytes:
    return rng(f"pixels {number}").randbytes(48)


def _image_text(r: random.Random) -> tuple[str, str | None]:
    """The image of a job, and its dtype: right, or wrong in one of many ways."""
    pixels = np.frombuffer(r.randbytes(48), np.uint8).reshape(JOB_SHAPE)
    floats = pixels[..., ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32)
    good = base64.b64encode(pixels).decode()
    spoilt = floats.copy()
    spoilt.view(np.uint32).flat[r.randrange(48)] = r.choice((0x7F800001, 0x7FC00000, 0xFF800000, 0x7F7FFFFF, 1))
    choices: tuple[tuple[str, str | None], ...] = (
        (good, "uint8"),
        (good, None),
        (base64.b64encode(floats).decode(), "float32"),
        (base64.b64encode(floats).decode(), None),
        (base64.b64encode(spoilt).decode(), r.choice(("float32", None))),
        (base64.b64encode(r.randbytes(192)).decode(), "float32"),
        (base64.b64encode(r.randbytes(r.randrange(200))).decode(), r.choice(("uint8", "float32", None))),
        (good[: r.randrange(len(good))], "uint8"),
        (good + r.choice(("=", "====", "\n", " ", "\0", "é", "AAAA")), "uint8"),
        (good.replace("A", "-").replace("/", "_"), "uint8"),
        ("", r.choice(("uint8", "object", "float64", "<u8", "\0", "uint8,uint8"))),
    )
    return r.choice((choices[0], choices[2], *choices))


def mutated_job(number: int) -> bytes:
    """A job as it would travel, wrong in some way, or now and then right."""
    r = rng(f"job {number}")
    image, dtype = _image_text(r)
    deep = "[" * r.choice((10, 500, 2000)) if r.random() < 0.2 else "[[]]"
    fields = {
        "id": json.dumps(str(uuid.UUID(int=r.getrandbits(128), version=4))),
        "dtype": json.dumps(dtype),
        "shape": json.dumps(list(JOB_SHAPE)),
        "deadline": r.choice(("9e9", "9e9", "null", "1")),
        "reply_to": json.dumps(f"{{image_queue}}:answered:{r.randrange(9)}"),
        "image": json.dumps(image),
    }
    values = (
        *("null", "true", "0", "-1", "1e308", "1e400", "-1e999", "NaN", "9223372036854775808", "1" * 5000, "-0.0"),
        *('""', '"nan"', '"-inf"', f'"{"9" * 5000}"', '"\\ud800"', '"\\u0000"', '"\u00e9"', '"4"', "'4'", '"443"'),
        *("[]", "{}", "[4]", "[4,4,3,1]", "[1,4,4,3]", "[4.0,4.9,3]", '["4","4","3"]', "[4,4,-3]", "[1e300]", "[null]"),
        *('{"4":1}', "[9223372036854775807,9223372036854775807,3]", deep, *map(json.dumps, NAMES)),
    )
    pairs = list(fields.items())
    for _ in range(r.choice((0, 1, 1, 1, 2))):
        change, index = r.randrange(5), r.randrange(len(pairs))
        if change <= 1:
            pairs[index] = pairs[index][0], r.choice(values)
        elif change == 2:
            pairs.insert(r.randrange(len(pairs) + 1), (pairs[index][0], r.choice(values)))  # the key twice
        elif change == 3 and len(pairs) > 1:
            del pairs[index]
        else:
            pairs.insert(index, (r.choice(("more", "ID", "é", "\0", "__class__")), r.choice(values)))
    text = "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in pairs) + "}"
    data = text.encode()
    around = r.randrange(12)
    if around < 2:
        data = r.choice(ANYWHERE)(r, data)
    elif around == 2:
        other = (
            b"",
            b"\xef\xbb\xbf" + data,
            data + data,
            b"[" + data + b"]",
            data[:-1],
            b"\xff\xfe" + text.encode("utf-16"),
        )
        data = r.choice((*other, b"[]", b"null", b"0", b'"x"', b" " * 1000 + data, data.replace(b" ", b"\n")))
    elif around == 3 and r.random() < 0.1:
        data = r.choice((data[:-1] + b', "more": "' + b"x" * 10**6 + b'"}', b"[" * 10**6, b"\0" * 10**6))
    return data


# The program.


def _limit_memory() -> None:
    """Far above what is accepted, far below what would take other processes down with this one."""
    if Path("/proc/self/statm").exists():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30, used + 2 * 2**30))


def _peak_megabytes() -> float:
    # What the system reports of a process may be the peak of the one that started it: with TensorFlow in it, say.
    if (status := Path("/proc/self/status")).exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def decode(data: bytes, cpu_seconds: float) -> str:
    """How it ended: `decoded`, or the refusal's name. Raises what must not be; ends the process after `cpu_seconds`."""
    from serving.errors import RequestError
    from serving.images.decode import decode_image

    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # its signal ends the process, wherever it is
    try:
        pixels = decode_image(data, WIDTH, HEIGHT, MOST_PIXELS)
    except RequestError as error:
        if not 400 <= error.status < 500:
            raise
        if isinstance(error.__cause__, MemoryError):
            raise error.__cause__ from error
        return type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if (pixels.shape, pixels.dtype) != ((HEIGHT, WIDTH, 3), np.uint8):
        raise TypeError(f"pixels {pixels.shape} {pixels.dtype}")
    return "decoded"


def decode_numbers(first: int, count: int, now_at: Path) -> dict[str, Any]:
    """Decode pictures by number; `now_at` is a file that holds the number in work, for who finds this process dead."""
    _limit_memory()
    now_at.write_bytes(bytes(8))
    ends: Counter[str] = Counter()
    bad: list[tuple[int, str, str]] = []
    slowest = (0.0, 0)
    with now_at.open("r+b") as file, mmap.mmap(file.fileno(), 8) as now:
        for number in range(first, first + count):
            now[:] = struct.pack("<Q", number)
            made, data = mutated_picture(number)
            began = time.process_time()
            try:
                ends[decode(data, MOST_SECONDS)] += 1
            except BaseException as error:
                bad.append((number, made, repr(error)))
            slowest = max(slowest, (time.process_time() - began, number))
            if _peak_megabytes() > MOST_MEGABYTES:  # a peak never falls: what comes later could not be judged
                bad.append((number, made, f"{_peak_megabytes():.0f} MB"))
                break
    return {"ends": ends, "bad": bad, "slowest": slowest, "megabytes": _peak_megabytes()}


def decode_file(path: Path, cpu_seconds: float) -> dict[str, Any]:
    """Decode one picture."""
    _limit_memory()
    data = path.read_bytes()
    began = time.process_time()
    end = decode(data, cpu_seconds)
    return {"end": end, "seconds": time.process_time() - began, "megabytes": _peak_megabytes()}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    what, *arguments = sys.argv[1:]
    if what == "numbers":
        report = decode_numbers(int(arguments[0]), int(arguments[1]), Path(arguments[2]))
    else:
        report = decode_file(Path(arguments[0]), float(arguments[1]))
    print(json.dumps(report))
