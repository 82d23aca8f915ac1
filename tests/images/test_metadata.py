"""What a picture does not need never refuses it: texts, profiles, comments, further pictures; many, large or broken."""

import io
import struct
import zlib

import numpy as np
import pytest
from conftest import as_bytes, some_photo
from fuzzing import chunk, pictures
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from tiff_files import Layout, tiff_file

from serving.errors import TooLarge, UndecodableImage
from serving.images import metadata
from serving.images.decode import decode_image

PHOTO = some_photo()
EXPECTED = np.asarray(PHOTO.resize((64, 64))).astype(int)
PNG, JPEG = as_bytes(PHOTO, "PNG"), as_bytes(PHOTO, "JPEG", quality=95)
GREY = PHOTO.convert("L")
GIF = as_bytes(GREY, "GIF")
ZEROS = zlib.compress(bytes(2**21), 9)


def assert_shows_the_photo(data: bytes) -> None:
    pixels = decode_image(data, 64, 64, 10**6).astype(int)
    assert np.abs(pixels - EXPECTED).mean() < 3


def in_png(*chunks: bytes) -> list[bytes]:
    """The photo with chunks before its pixels, and with them behind."""
    added = b"".join(chunks)
    return [PNG[:33] + added + PNG[33:], PNG[:-12] + added + PNG[-12:]]


def in_jpeg(*segments: tuple[int, bytes]) -> bytes:
    """The photo with segments at its start."""
    return (
        JPEG[:2] + b"".join(struct.pack(">BBH", 255, kind, len(body) + 2) + body for kind, body in segments) + JPEG[2:]
    )


def in_gif(*extensions: tuple[int, bytes]) -> bytes:
    """The photo in grey with extensions before its pixels, in blocks of 255 bytes."""
    start = 13 + (3 << (GIF[10] & 7) + 1 if GIF[10] & 128 else 0)
    added = b""
    for kind, body in extensions:
        blocks = [body[at : at + 255] for at in range(0, len(body), 255)]
        added += bytes([0x21, kind]) + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    return GIF[:start] + added + GIF[start:]


def tags_that_share_their_bytes(count: int) -> bytes:
    """A TIFF whose tags of a megabyte all lie in the same place."""
    head = tiff_file(np.zeros((8, 8, 1)), Layout())
    (at,) = struct.unpack_from("<I", head, 4)
    (own,) = struct.unpack_from("<H", head, at)
    entries = head[at + 2 : at + 2 + own * 12]
    shared = b"".join(struct.pack("<HHII", 60_000 + n, 1, 1_000_000, len(head) + 8) for n in range(count))
    new_at = len(head) + 1_000_100
    directory = struct.pack("<H", own + count) + entries + shared + bytes(4)
    return head[:4] + struct.pack("<I", new_at) + head[8:] + bytes(1_000_100) + directory


def test_a_png_with_a_megabyte_of_compressed_text_is_read() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", "{}" * 10**6, zip=True)
    texts.add_itxt("workflow", "{}" * 10**6, zip=True)
    assert_shows_the_photo(as_bytes(PHOTO, "PNG", pnginfo=texts))


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"zTXt", b"a\0\0" + ZEROS)],
        [chunk(b"zTXt", b"a\0\1" + ZEROS)],  # packed in a way that does not exist
        [chunk(b"zTXt", b"")],
        [chunk(b"iTXt", b"a\0\1\0\0\0" + ZEROS)],
        [chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + ZEROS)],
        [chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 2**21)],
        [chunk(b"zTXt", b"Raw profile type exif\0\0" + ZEROS)],
        [chunk(b"zTXt", b"Raw profile type exif\0\0garbage")],
        [chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 9\nno hexadecimals"))],
        [chunk(b"tEXt", b"a\0" + b"x" * 2**21)] * 3,
        [chunk(b"iCCP", b"x\0\0" + ZEROS)] * 30,
        [chunk(b"iCCP", b"x\0\7")],
        [chunk(b"iCCP", b"")],
        [chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")] * 3,
        [chunk(b"eXIf", b"garbage")],
        [chunk(b"eXIf", bytes(2**21))],
        [chunk(b"gAMA", b"\0")],
        [chunk(b"cHRM", b"\0")],
        [chunk(b"sRGB", b"")],
        [chunk(b"pHYs", b"\0")],
        [chunk(b"tIME", b"")],
        [chunk(b"prIv", bytes(100))] * 3000,
        [chunk(b"IDAT", b"")] * 3,
        [chunk(b"acTL", b"")],
        [chunk(b"fcTL", bytes(26))] * 2,
        [chunk(b"tEXt", b"a\0b")[:-4] + b"sum?"],
        [chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0")[:-4] + b"sum?"],
    ],
)
def test_a_png_is_read_whatever_its_texts_and_profiles(chunks: list[bytes]) -> None:
    for data in in_png(*chunks):
        assert_shows_the_photo(data)


def test_bytes_behind_the_end_of_a_png_do_not_count() -> None:
    assert_shows_the_photo(PNG + bytes(100))
    assert_shows_the_photo(PNG + PNG)
    assert_shows_the_photo(PNG[:-12])  # its end is missing, and nothing of the picture


@pytest.mark.parametrize(
    "segments",
    [
        [(0xFE, b"x" * 65000)] * 50,
        [(0xFE, b"")] * 3000,
        [(0xE1, b"Exif\0\0" + b"x" * 60000)] * 50,
        [(0xE1, b"Exif\0\0")] * 3000,
        [(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"x" * 65000)] * 100,
        [(0xE2, b"ICC_PROFILE\0")],
        [(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65000))] * 100,
        [(0xE2, b"MPF\0")],
        [(0xE2, b"MPF\0garbage")],
        [(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0\1\xb0\4\0\1\0\0\0\2\0\0\0" + bytes(4))],
        [(0xE0, b"JFIF\0")],
        [(0xEE, b"Adobe")],
        [(0xED, b"Photoshop 3.0\x008BIM")],
        [(0xED, b"Photoshop 3.0\x008BIM\4\4")],
        [(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\2ab")],
        [(0xEB, b"x" * 65000)] * 200,
    ],
)
def test_a_jpeg_is_read_whatever_its_segments(segments: list[tuple[int, bytes]]) -> None:
    assert_shows_the_photo(in_jpeg(*segments))


def test_padding_and_junk_between_the_segments_of_a_jpeg_are_passed_over() -> None:
    assert_shows_the_photo(JPEG[:2] + b"\xff" * 10**6 + JPEG[2:])
    assert_shows_the_photo(JPEG[:2] + b"\xff\0" * 10_000 + JPEG[2:])


def test_what_tells_the_colours_and_the_turn_of_a_jpeg_stays() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = as_bytes(PHOTO.rotate(180), "JPEG", quality=95, exif=exif, keep_rgb=True)
    broken = turned[:2] + b"\xff\xe2\0\x0eICC_PROFILE\0" + turned[2:]
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(broken))  # so the segments of this one are looked at
    assert_shows_the_photo(broken)


def test_a_gif_is_read_whatever_its_comments() -> None:
    for extensions in (
        [(0xFE, b"x" * 10**7)],
        [(0xFE, b"x")] * 10_000,
        [(0xFF, b"XMP DataXMP" + b"x" * 10**6)],
        [(1, b"")],
    ):
        pixels = decode_image(in_gif(*extensions), 64, 64, 10**6)
        assert np.array_equal(pixels, decode_image(GIF, 64, 64, 10**6))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (in_png(chunk(b"prIv", b"") * 30_000)[0], "PNG has more than 20,000 chunks"),
        (in_png(chunk(b"IDAT", b"") * 30_000)[1], "PNG has more than 20,000 chunks"),
        (in_jpeg(*[(0xFE, b"")] * 20_000), "JPEG has more than 10,000 segments"),
        (in_gif((0xFE, b"x" * 26_000_000)), "GIF has more than 100,000 blocks"),
        (in_gif(*[(0xF9, b"")] * 200_000)[:-20], "GIF has more than 100,000 blocks"),
        (tags_that_share_their_bytes(300), "tags of the TIFF name more bytes than the file has"),
    ],
)
def test_metadata_without_end_is_refused_as_too_much_work(data: bytes, said: str) -> None:
    with pytest.raises(TooLarge, match=said) as caught:
        decode_image(data, 64, 64, 10**6)
    assert "ave it anew" in str(caught.value)
    assert "again" not in str(caught.value)


def test_a_long_run_of_ff_costs_no_more_than_its_length() -> None:
    """A search that began anew at each of them would take days."""
    for data in (b"\xff\xd8" + b"\xff" * 5_000_000 + bytes(10), JPEG[:2] + b"\xff\xdb\0\3x" + b"\xff" * 5_000_000):
        with pytest.raises((TooLarge, UndecodableImage)):
            decode_image(data, 64, 64, 10**6)


def test_a_chunk_with_a_digit_in_its_name_hides_none_behind_it() -> None:
    assert b"iCCP" not in metadata.without_png_metadata(in_png(chunk(b"ab1d", b""), chunk(b"iCCP", ZEROS))[0])


@pytest.mark.parametrize("kind", ["EXIF", "XMP ", "ICCP", "ABCD"])
def test_a_webp_is_read_whatever_its_metadata(kind: str) -> None:
    webp = as_bytes(PHOTO, "WEBP", lossless=True)
    flags = {"EXIF": 8, "XMP ": 4, "ICCP": 32}.get(kind, 0)
    head = b"VP8X" + struct.pack("<IIHBHB", 10, flags, 319, 0, 239, 0)
    for body in (b"", b"garbage!", bytes(10**6)):
        more = kind.encode() + struct.pack("<I", len(body)) + body
        inside = b"WEBP" + head + (more if kind == "ICCP" else b"") + webp[12:] + (b"" if kind == "ICCP" else more)
        assert_shows_the_photo(b"RIFF" + struct.pack("<I", len(inside)) + inside)


def test_a_file_without_its_metadata_is_the_same_picture() -> None:
    for name, data in pictures():
        less = metadata.without_metadata(metadata.without_png_metadata(data))
        if name.startswith(("PNG", "JPEG", "GIF", "AVIF")):
            assert len(less) <= len(data)
            assert np.array_equal(decode_image(less, 64, 64, 10**6), decode_image(data, 64, 64, 10**6)), name
        else:
            assert less == data, name
