"""One picture in every format and mode that is read comes back as it was; what is not read is called by its name."""

import base64
import gzip
import io
import itertools
import struct
from typing import Any

import numpy as np
import pytest
from conftest import as_bytes, turned
from fuzzing import bmp_rle, chunk, png
from PIL import Image

from serving.errors import UndecodableImage, UnsupportedFormat
from serving.images import kinds
from serving.images.decode import decode_image

WIDTH, HEIGHT = 61, 47
ACROSS, DOWN = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
COLOURS = np.stack([ACROSS, DOWN, 1 - ACROSS], axis=-1)  # 0 to 1, RGB
GREYS = np.stack([(ACROSS + DOWN) / 2.004] * 3, axis=-1)  # none is just half
ALPHA = np.linspace(1, 0.2, WIDTH)[np.newaxis, :, np.newaxis] * np.ones((HEIGHT, 1, 1))
ON_WHITE = COLOURS * ALPHA + 1 - ALPHA
GREY_ON_WHITE = GREYS * ALPHA + 1 - ALPHA
PHOTO = Image.fromarray((COLOURS * 255).round().astype(np.uint8))
CLEAR = PHOTO.copy()
CLEAR.putalpha(Image.fromarray((ALPHA[..., 0] * 255).round().astype(np.uint8)))
GREY_PHOTO = Image.fromarray((GREYS[..., 0] * 255).round().astype(np.uint8))
OTHER = Image.new("RGB", PHOTO.size, "black")
FRAMES = {"save_all": True, "append_images": [OTHER], "duration": 50}


def decode(data: bytes) -> np.ndarray:
    return decode_image(data, WIDTH, HEIGHT, 10**6)


def assert_shows(data: bytes, picture: np.ndarray, tolerance: float) -> None:
    difference = np.abs(decode(data) - picture * 255)
    assert difference.max() <= tolerance, difference.max()
    assert difference.mean() <= tolerance / 2


def _adobe_jpeg(transform: int, channels: np.ndarray) -> bytes:
    """A JPEG of four channels (height, width, 4), uint8, stored as they are, marked as Adobe does."""
    inverse = Image.frombytes("CMYK", (WIDTH, HEIGHT), (255 - channels).tobytes())  # Pillow inverts them as it saves
    data = as_bytes(inverse, "JPEG", quality=95, subsampling=0)
    at = data.index(b"\xff\xee\x00\x0eAdobe")
    return data[: at + 15] + bytes([transform]) + data[at + 16 :]


def _ycck_jpeg() -> bytes:
    ink = Image.fromarray(255 - np.asarray(PHOTO)).convert("YCbCr")  # the inverse of inverted ink
    return _adobe_jpeg(2, np.dstack([np.asarray(ink), np.full((HEIGHT, WIDTH), 255, np.uint8)]))


def _cmyk_jpeg() -> bytes:
    return _adobe_jpeg(0, np.dstack([np.asarray(PHOTO), np.full((HEIGHT, WIDTH), 255, np.uint8)]))


PILLOW_WRITES: dict[str, tuple[Image.Image, str, dict[str, Any], np.ndarray, float]] = {
    "JPEG": (PHOTO, "JPEG", {"quality": 95}, COLOURS, 12),
    "JPEG, all its colours": (PHOTO, "JPEG", {"quality": 95, "subsampling": 0}, COLOURS, 8),
    "JPEG, progressive": (PHOTO, "JPEG", {"quality": 95, "progressive": True}, COLOURS, 12),
    "JPEG, RGB": (PHOTO, "JPEG", {"quality": 95, "keep_rgb": True}, COLOURS, 8),
    "JPEG, grey": (GREY_PHOTO, "JPEG", {"quality": 95}, GREYS, 8),
    "JPEG, restarts": (PHOTO, "JPEG", {"quality": 95, "restart_marker_rows": 1}, COLOURS, 12),
    "JPEG, two pictures": (PHOTO, "MPO", {"quality": 95, "save_all": True, "append_images": [OTHER]}, COLOURS, 12),
    "PNG": (PHOTO, "PNG", {}, COLOURS, 1),
    "PNG, clear": (CLEAR, "PNG", {}, ON_WHITE, 2),
    "PNG, animated": (PHOTO, "PNG", FRAMES, COLOURS, 1),
    "PNG, animated, another default": (PHOTO, "PNG", FRAMES | {"default_image": True}, COLOURS, 1),
    "WebP": (PHOTO, "WEBP", {"quality": 95}, COLOURS, 25),
    "WebP, lossless": (PHOTO, "WEBP", {"lossless": True}, COLOURS, 1),
    "WebP, clear": (CLEAR, "WEBP", {"lossless": True, "exact": True}, ON_WHITE, 2),
    "WebP, clear and lossy": (CLEAR, "WEBP", {"quality": 95}, ON_WHITE, 25),
    "WebP, grey": (GREY_PHOTO, "WEBP", {"lossless": True}, GREYS, 1),
    "WebP, animated": (PHOTO, "WEBP", FRAMES | {"lossless": True}, COLOURS, 1),
    "AVIF": (PHOTO, "AVIF", {"quality": 95}, COLOURS, 25),
    "AVIF, all its colours": (PHOTO, "AVIF", {"quality": 100, "subsampling": "4:4:4"}, COLOURS, 8),
    "AVIF, clear": (CLEAR, "AVIF", {"quality": 100, "subsampling": "4:4:4"}, ON_WHITE, 12),
    "AVIF, grey": (GREY_PHOTO, "AVIF", {"quality": 100, "subsampling": "4:0:0"}, GREYS, 8),
    "AVIF, animated": (PHOTO, "AVIF", FRAMES | {"quality": 100, "subsampling": "4:4:4"}, COLOURS, 12),
    "GIF": (PHOTO.quantize(256, dither=Image.Dither.NONE), "GIF", {}, COLOURS, 50),
    "GIF, in lines": (GREY_PHOTO, "GIF", {"interlace": 1}, GREYS, 1),
    "GIF, grey": (GREY_PHOTO, "GIF", {"interlace": 0}, GREYS, 1),
    "GIF, animated": (GREY_PHOTO, "GIF", FRAMES, GREYS, 1),
    "BMP": (PHOTO, "BMP", {}, COLOURS, 1),
    "BMP, a fourth byte that means nothing": (CLEAR, "BMP", {}, COLOURS, 1),
    "BMP, grey": (GREY_PHOTO, "BMP", {}, GREYS, 1),
    "BMP, palette": (GREY_PHOTO.convert("P"), "BMP", {}, GREYS, 1),
    "BMP, 1 bit": (GREY_PHOTO.point([0] * 128 + [255] * 128, "1"), "BMP", {}, GREYS.round(), 1),
}


@pytest.mark.parametrize("name", PILLOW_WRITES)
def test_a_picture_of_each_format_and_mode_is_as_it_was_saved(name: str) -> None:
    image, kind, options, expected, tolerance = PILLOW_WRITES[name]
    assert_shows(as_bytes(image, kind, **options), expected, tolerance)


def test_the_inks_of_adobes_jpegs_are_inverted() -> None:
    assert_shows(_cmyk_jpeg(), COLOURS, 8)
    assert_shows(_ycck_jpeg(), COLOURS, 12)


@pytest.mark.parametrize("options", [{}, {"transparency": 255}, {"interlace": 1}])
def test_where_the_first_frame_of_a_gif_does_not_cover_it_it_is_white(options: dict[str, int]) -> None:
    data = as_bytes(Image.new("L", (20, 10), 77), "GIF", **options)
    frame = data.index(b"\x2c\0\0\0\0\x14\0\x0a\0")
    moved = data[: frame + 1] + struct.pack("<HH", 30, 5) + data[frame + 5 :]
    expected = np.ones((HEIGHT, WIDTH, 3))
    expected[5:15, 30:50] = 77 / 255
    assert_shows(moved[:6] + struct.pack("<HH", WIDTH, HEIGHT) + moved[10:], expected, 0.1)


# PNG: every depth and colour type, line by line and interlaced.

PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PASSES = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))


def png_of(samples: np.ndarray, bits: int, colour: int, *chunks: bytes, interlaced: bool = False) -> bytes:
    """A PNG of samples (height, width, channels)."""
    passes = PASSES if interlaced else ((0, 1, 0, 1),)
    lines = b""
    for top, down, left, across in passes:
        for row in samples[top::down, left::across]:
            if row.size:
                wide = (row.reshape(-1, 1).astype(np.uint32) >> np.arange(bits)[::-1]) & 1
                lines += b"\0" + np.packbits(wide.astype(np.uint8)).tobytes()
    return png(WIDTH, HEIGHT, bits, colour, lines, *chunks, interlaced=interlaced)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour", "bits"), [(colour, bits) for colour, depths in PNG_DEPTHS.items() for bits in depths]
)
def test_a_png_of_each_depth_and_colour_type_is_as_it_was_saved(colour: int, bits: int, interlaced: bool) -> None:
    top = 2**bits - 1
    shares, expected = {
        0: (GREYS[..., :1], GREYS),
        2: (COLOURS, COLOURS),
        3: (GREYS[..., :1], GREYS),
        4: (np.concatenate([GREYS[..., :1], ALPHA], axis=-1), GREY_ON_WHITE),
        6: (np.concatenate([COLOURS, ALPHA], axis=-1), ON_WHITE),
    }[colour]
    palette = np.repeat(np.linspace(0, 255, top + 1), 3).round().astype(np.uint8).tobytes() if colour == 3 else b""
    chunks = [chunk(b"PLTE", palette)] if palette else []
    samples = (shares * top).round()
    data = png_of(samples, bits, colour, *chunks, interlaced=interlaced)
    if bits < 8:
        expected = np.repeat(samples / top, 3, axis=-1)
    assert_shows(data, expected, 3)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_clear_colour_of_a_png_becomes_white(bits: int) -> None:
    samples = (COLOURS * (2**bits - 1)).round().astype(int)
    clear = samples[10, 20]
    data = png_of(samples, bits, 2, chunk(b"tRNS", struct.pack(">3H", *clear)))
    expected = np.where((samples == clear).all(axis=-1, keepdims=True), 1, COLOURS)
    assert (decode(data)[10, 20] == 255).all()
    assert_shows(data, expected, 3)


def test_each_colour_of_a_palette_may_be_clear_in_part() -> None:
    samples = np.tile(np.arange(WIDTH) % 4, (HEIGHT, 1))[..., np.newaxis]
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]])
    alpha = np.array([255, 128, 0])
    shares = np.append(alpha, 255)[:, np.newaxis] / 255
    expected = (colours / 255 * shares + 1 - shares)[samples[..., 0]]
    chunks = chunk(b"PLTE", bytes(colours.flatten().tolist())), chunk(b"tRNS", bytes(alpha.tolist()))
    assert_shows(png_of(samples, 2, 3, *chunks), expected, 1.5)


# BMP: every depth, header, direction and mask that is read.


def bmp(rows: list[bytes], bits: int, *, header: int = 40, masks: tuple[int, ...] = (), up: bool = True) -> bytes:
    """A BMP of rows from top to bottom."""
    compression = 3 if masks else 0
    palette = bytes(c for grey in range(2**bits) for c in (*[grey * 255 // (2**bits - 1)] * 3, 0)) if bits <= 8 else b""
    body = b"".join(row + bytes(-len(row) % 4) for row in (rows[::-1] if up else rows))
    if header == 12:
        palette = b"".join(palette[n : n + 3] for n in range(0, len(palette), 4))
        head = struct.pack("<IHHHH", 12, WIDTH, len(rows), 1, bits)
    else:
        height = len(rows) if up else -len(rows)
        head = struct.pack("<IiiHHIIIIII", header, WIDTH, height, 1, bits, compression, len(body), 2835, 2835, 0, 0)
        head += b"".join(struct.pack("<I", mask) for mask in masks)
        head = head.ljust(max(header, len(head)), b"\0")
    start = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + palette + body


def packed_colours(places: tuple[tuple[int, int], ...], width: int) -> list[bytes]:
    """The rows of COLOURS, each channel with so many bits from such a bit on, in `width` bytes a pixel."""
    pixels = sum(
        (COLOURS[..., n] * (2**bits - 1)).round().astype(np.uint64) << np.uint64(at)
        for n, (bits, at) in enumerate(places)
    )
    return [b"".join(int(pixel).to_bytes(width, "little") for pixel in row) for row in pixels]


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize(
    ("places", "bits", "masks"),
    [
        (((5, 10), (5, 5), (5, 0)), 16, ()),
        (((5, 10), (5, 5), (5, 0)), 16, (0x7C00, 0x3E0, 0x1F)),
        (((5, 11), (6, 5), (5, 0)), 16, (0xF800, 0x7E0, 0x1F)),
        (((8, 16), (8, 8), (8, 0)), 24, ()),
        (((8, 16), (8, 8), (8, 0)), 32, ()),
        (((8, 16), (8, 8), (8, 0)), 32, (0xFF0000, 0xFF00, 0xFF)),
    ],
)
def test_a_bmp_of_each_depth_and_mask_is_as_it_was_saved(
    places: tuple[tuple[int, int], ...], bits: int, masks: tuple[int, ...], header: int, up: bool
) -> None:
    data = bmp(packed_colours(places, bits // 8), bits, header=header, masks=masks, up=up)
    assert_shows(data, COLOURS, 9 if bits == 16 else 1)


@pytest.mark.parametrize(("alpha", "expected"), [(ALPHA, ON_WHITE), (ALPHA * 0, COLOURS)])
@pytest.mark.parametrize("header", [56, 108, 124])
def test_the_alpha_of_a_bmp_is_laid_on_white_unless_it_hides_all(
    header: int, alpha: np.ndarray, expected: np.ndarray
) -> None:
    pixels = (np.concatenate([COLOURS[..., ::-1], alpha], axis=-1) * 255).round().astype(np.uint8)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    assert_shows(bmp([row.tobytes() for row in pixels], 32, header=header, masks=masks), expected, 2)


@pytest.mark.parametrize("header", [12, 40, 124])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_bmp_with_a_palette_is_as_it_was_saved(bits: int, header: int) -> None:
    values = (GREYS[..., 0] * (2**bits - 1)).round().astype(np.uint8)
    wide = (values[..., np.newaxis] >> np.arange(bits)[::-1]) & 1
    rows = [row.tobytes() for row in np.packbits(wide.reshape(HEIGHT, -1), axis=1)]
    expected = np.repeat((values / (2**bits - 1))[..., np.newaxis], 3, axis=-1)
    assert_shows(bmp(rows, bits, header=header), expected, 1)


# What is not read is called by its name.


def _sof(data: bytes, marker: int = 0xC0, precision: int = 8, channels: int | None = None) -> bytes:
    at = data.index(b"\xff\xc0")
    frame = bytearray(data[at : at + 11])
    frame[1], frame[4] = marker, precision
    if channels is not None:
        frame[9] = channels
    return data[:at] + bytes(frame) + data[at + 11 :]


JPEG, PNG = as_bytes(PHOTO, "JPEG"), as_bytes(PHOTO, "PNG")
BMP, AVIF = as_bytes(PHOTO, "BMP"), as_bytes(PHOTO, "AVIF")
UNREAD = {
    "a lossless JPEG": [_sof(JPEG, 0xC3), _sof(JPEG, 0xC7), _sof(JPEG, 0xCB), _sof(JPEG, 0xCF)],
    "a hierarchical JPEG": [_sof(JPEG, 0xC5), _sof(JPEG, 0xC6), _sof(JPEG, 0xCD), _sof(JPEG, 0xCE)],
    "a JPEG with 12 bits a colour": [_sof(JPEG, 0xC1, 12)],
    "a JPEG with 2 colours": [_sof(JPEG, channels=2)],
    "a PNG for iOS alone": [PNG[:8] + chunk(b"CgBI", b"\x50\0\x20\x06") + PNG[8:].replace(b"IDAT", b"IDAX", 1)],
    "a BMP of 2 bits a pixel": [BMP[:28] + b"\2\0" + BMP[30:]],
    "a BMP of 64 bits a pixel": [BMP[:28] + b"\x40\0" + BMP[30:]],
    "a BMP with a JPEG inside": [BMP[:30] + b"\4\0\0\0" + BMP[34:]],
    "a BMP with a PNG inside": [BMP[:30] + b"\5\0\0\0" + BMP[34:]],
    "a BMP with a header of 16 bytes": [BMP[:14] + b"\x10\0\0\0" + BMP[18:]],
    "a BMP with unusual bit masks": [bmp([bytes(4 * WIDTH)] * HEIGHT, 32, masks=(0x3FF, 0xFFC00, 0x3FF00000))],
    "a HEIC image": [b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"],
    "a video": [b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", b"\x1a\x45\xdf\xa3\1", b"RIFF\0\0\0\0AVI LIST"],
    "a raw photo of a Canon": [b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", b"II*\0\x10\0\0\0CR\2\0" + bytes(100)],
    "a JPEG 2000 image": [as_bytes(PHOTO, "JPEG2000"), as_bytes(PHOTO, "JPEG2000", no_jp2=True)],
    "a JPEG XL image": [b"\xff\x0a\0\0", b"\0\0\0\x0cJXL \r\n\x87\n"],
    "a PDF document": [as_bytes(PHOTO, "PDF")],
    "an SVG drawing": [b'<svg xmlns="http://www.w3.org/2000/svg"/>', b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg/>'],
    "a web page": [b"<!DOCTYPE html><html>", b"\n<html>"],
    "an icon": [as_bytes(PHOTO, "ICO")],
    "a Netpbm image": [as_bytes(PHOTO, "PPM")],
    "a Photoshop file": [b"8BPS\0\1" + bytes(40)],
    "a DICOM file": [bytes(128) + b"DICM" + bytes(10)],
    "a ZIP archive": [b"PK\3\4" + bytes(30)],
}
ENCODED = [base64.b64encode(JPEG), base64.b64encode(PNG), b"data:image/webp;base64,UklGR", gzip.compress(JPEG)]


@pytest.mark.parametrize("data", ENCODED, ids=["JPEG in base64", "PNG in base64", "data URL", "gzip"])
def test_an_image_that_is_packed_is_to_be_sent_as_it_is(data: bytes) -> None:
    with pytest.raises(UnsupportedFormat, match=r"The file is (in base64|packed by gzip), .* Send its bytes as they "):
        decode_image(data, 32, 32, 10**6)


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_is_called_by_its_name(name: str) -> None:
    for data in UNREAD[name]:
        with pytest.raises(UnsupportedFormat) as caught:
            decode(data)
        said = str(caught.value)
        assert said.startswith(f"This is {name}"), data[:40]
        assert "which is not read here. Convert it to" in said
        assert "again" not in said
        assert "corrupt" not in said


def test_a_bmp_with_run_lengths_is_refused_as_such() -> None:
    with pytest.raises(UnsupportedFormat, match="A BMP with run lengths is not read here"):
        decode(bmp_rle(16, 4, b"\x10\x07\0\0\0\1"))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        *itertools.product(["JPEG"], [JPEG[:2] + b"\xff" + b"garbage" * 50, JPEG[:300], b"\xff\xd8\xff\xe0"]),
        *itertools.product(["PNG"], [PNG[:8] + bytes(300), PNG[:8] + b"\0\0\0\5ABCDEhello" + bytes(9), PNG[:20]]),
        *itertools.product(["PNG"], [PNG[:12] + b"IHDX" + PNG[16:], PNG[:27] + b"\1" + PNG[28:], PNG[:-60]]),
        *itertools.product(["GIF"], [as_bytes(GREY_PHOTO, "GIF")[:30], b"GIF89a" + bytes(20)]),
        *itertools.product(["WEBP"], [as_bytes(PHOTO, "WEBP")[:20], b"RIFF\x20\0\0\0WEBPVP9 " + bytes(30)]),
        *itertools.product(["AVIF"], [AVIF[:40], AVIF[:-60], b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif"]),
        *itertools.product(["BMP"], [BMP[:40], BMP[:200]]),
        *itertools.product(["TIFF"], [as_bytes(PHOTO, "TIFF")[:100], b"II*\0\x08\0\0\0\xff\xff", b"MM\0*" + bytes(50)]),
    ],
)
def test_a_broken_file_of_a_format_that_is_read_is_never_told_to_be_none(kind: str, data: bytes) -> None:
    with pytest.raises(UndecodableImage) as caught:
        decode(data)
    said = f"The {kind} file is truncated or corrupt. Send it again; if that fails too, save the image anew."
    assert str(caught.value) == said


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_with_exif_is_turned_upright(kind: str, orientation: int) -> None:
    stored, exif = turned(PHOTO, orientation)
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},  # Pillow writes irot and imir, as cameras do
    }
    file = io.BytesIO()
    stored.save(file, kind, exif=exif, **options.get(kind, {}))
    assert_shows(file.getvalue(), COLOURS, 12 if kind == "AVIF" else 8)


def test_a_pillow_without_avif_calls_it_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "FORMATS", kinds.FORMATS[:-1])
    with pytest.raises(UnsupportedFormat, match="This is an AVIF image, which is not read here. Convert it to JPEG"):
        decode(AVIF)
