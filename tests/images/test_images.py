"""Upload bytes -> pixels: each kind of picture is either read rightly or refused clearly."""

import io
import struct
import zlib

import numpy as np
import pytest
from conftest import as_bytes, some_photo, turned
from PIL import Image

from serving.errors import TooLarge, UndecodableImage, UnsupportedFormat
from serving.images import resize
from serving.images.decode import decode_image


def decode(data: bytes, size: int = 64) -> np.ndarray:
    return decode_image(data, size, size, 50_000_000)


def close(pixels: np.ndarray, expected: np.ndarray, tolerance: float = 3.0) -> bool:
    return float(np.abs(pixels.astype(float) - expected).mean()) < tolerance


PHOTO = some_photo()
EXPECTED = np.asarray(PHOTO.resize((64, 64)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_each_format_is_read(kind: str) -> None:
    pixels = decode(as_bytes(PHOTO, kind))
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8
    assert close(pixels, EXPECTED, 12 if kind == "GIF" else 3)


def test_a_jpeg_decoded_at_a_fraction_of_its_size_looks_like_the_whole() -> None:
    photo = some_photo(1280, 720)
    assert close(decode(as_bytes(photo, "JPEG", quality=95)), np.asarray(photo.resize((64, 64))))


def test_without_reduction_the_pixels_are_those_of_pillows_own_resize(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize, "IS_FAST", False)
    data = as_bytes(PHOTO, "PNG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224)))
    assert np.array_equal(decode(data, 224), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_grey_is_the_luma_of_the_colours(kind: str) -> None:
    pixels = decode_image(as_bytes(PHOTO, kind), 64, 48, 50_000_000, channels=1)
    assert (pixels.shape, pixels.dtype) == ((48, 64, 1), np.uint8)
    colours = np.asarray(PHOTO.resize((64, 48)), np.float64)
    assert close(pixels[..., 0], colours @ [0.299, 0.587, 0.114], 1.5)


def test_what_is_grey_already_stays_as_it_is() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    sixteen_bits = Image.fromarray(levels.astype(np.uint16) * 257)
    clear = np.dstack([levels, np.where(levels < 128, 0, 255).astype(np.uint8)])
    for picture, expected in (
        (Image.fromarray(levels), levels),
        (sixteen_bits, levels),
        (Image.fromarray(clear, "LA"), np.where(levels < 128, 255, levels)),  # white where it is transparent
    ):
        pixels = decode_image(as_bytes(picture, "PNG"), 16, 16, 1000, channels=1)
        assert np.array_equal(pixels[..., 0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_grey_is_upright_as_colours_are(orientation: int) -> None:
    picture, exif = turned(PHOTO.convert("L"), orientation)
    pixels = decode_image(as_bytes(picture, "JPEG", exif=exif, quality=95), 64, 64, 50_000_000, channels=1)
    assert close(pixels[..., 0], np.asarray(PHOTO.convert("L").resize((64, 64))))


@pytest.mark.skipif(not resize.IS_FAST, reason="there is no wheel of the resizer for this machine")
@pytest.mark.parametrize(
    "size", [(500, 375), (100, 90), (1, 1), (224, 700), (300, 352), (300, 353), (3, 2000), (1999, 5), (1600, 1200)]
)
def test_the_fast_resize_is_at_most_two_off_pillows_on_the_worst_of_pictures(size: tuple[int, int]) -> None:
    width, height = size
    dots = np.random.default_rng(0).integers(0, 2, (height, width, 3)).astype(np.uint8) * 255
    expected = np.asarray(Image.fromarray(dots).resize((224, 200)))
    difference = np.abs(decode_image(as_bytes(Image.fromarray(dots), "PNG"), 224, 200, 10**9).astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.02


def test_width_and_height_are_not_mistaken_for_each_other() -> None:
    assert decode_image(as_bytes(PHOTO, "PNG"), 30, 20, 10**9).shape == (20, 30, 3)


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    assert close(decode(as_bytes(PHOTO.convert("CMYK"), "JPEG", quality=95)), EXPECTED, 6)


def test_a_16_bit_png_is_not_all_white() -> None:
    grey = np.linspace(0, 65535, 320 * 240).reshape(240, 320).astype(np.uint16)
    pixels = decode(as_bytes(Image.fromarray(grey), "PNG"))
    assert close(pixels[..., 0], np.asarray(Image.fromarray((grey >> 8).astype(np.uint8)).resize((64, 64))))


@pytest.mark.parametrize("scale", [1.0, 5000.0])
def test_a_float_tiff_uses_its_whole_range(scale: float) -> None:
    grey = (np.linspace(0, scale, 64 * 64).reshape(64, 64)).astype(np.float32)
    pixels = decode(as_bytes(Image.fromarray(grey), "TIFF"))
    assert pixels.min() <= 1
    assert pixels.max() >= 254


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "green")]
    data = as_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    assert close(decode(data), np.full((64, 64, 3), (255, 0, 0)))


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 32, 64))
    palette = clear.quantize(8)
    for data in (as_bytes(clear, "PNG"), as_bytes(clear, "WEBP", lossless=True), as_bytes(palette, "PNG")):
        pixels = decode(data)
        assert close(pixels[:, :30], np.full((64, 30, 3), (0, 0, 255)))
        assert close(pixels[:, 34:], np.full((64, 30, 3), 255))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright_as_its_exif_says(orientation: int) -> None:
    stored, exif = turned(PHOTO, orientation)
    assert close(decode(as_bytes(stored, "JPEG", exif=exif, quality=95)), EXPECTED)


def test_garbage_in_the_exif_does_not_spoil_the_photo() -> None:
    assert close(decode(as_bytes(PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", quality=95)), EXPECTED)


def test_garbage_in_the_exif_of_an_avif_does_not_spoil_it() -> None:
    assert close(decode(as_bytes(PHOTO, "AVIF", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", quality=95)), EXPECTED)
    good = Image.Exif()
    good[0x010F] = "a camera"
    data = as_bytes(PHOTO, "AVIF", exif=good, quality=95)
    assert b"MM\0*\0\0\0\x08" in data
    for garbage in (b"MM\0*\xff\xff\xff\xff", b"garbage!"):
        assert close(decode(data.replace(b"MM\0*\0\0\0\x08", garbage)), EXPECTED)


def test_an_avif_of_more_than_half_the_pixels_is_refused_from_its_header() -> None:
    data = as_bytes(PHOTO, "AVIF")
    assert decode_image(data, 8, 8, 2 * 320 * 240).shape == (8, 8, 3)
    with pytest.raises(TooLarge, match="320×240 pixels"):
        decode_image(data, 8, 8, 2 * 320 * 240 - 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_truncated_photo_is_undecodable(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8))
    data = as_bytes(noise, kind)
    with pytest.raises(UndecodableImage, match="truncated or corrupt|corrupt"):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"hello, I am a text file", b"\0" * 1000, b"%PDF-1.7", b"\xff\xd8", b"GIF"])
def test_what_is_no_image_is_an_unsupported_format(data: bytes) -> None:
    with pytest.raises((UnsupportedFormat, UndecodableImage), match="JPEG"):
        decode(data)


def test_a_format_that_pillow_reads_but_we_do_not_list_is_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="icon"):
        decode(as_bytes(PHOTO, "ICO"))
    with pytest.raises(UnsupportedFormat, match="WEBP"):
        decode(as_bytes(PHOTO, "TGA"))


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10**6)) + chunk(b"IEND", b"")
    with pytest.raises(TooLarge, match="50,000,000 pixels"):
        decode(bomb)


def test_the_limit_of_pixels_is_the_callers() -> None:
    data = as_bytes(PHOTO, "PNG")
    assert decode_image(data, 8, 8, 320 * 240).shape == (8, 8, 3)
    with pytest.raises(TooLarge):
        decode_image(data, 8, 8, 320 * 240 - 1)
