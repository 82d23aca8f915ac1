"""One picture as a TIFF of every layout: it comes back as it was, or the refusal says of which kind it is."""

import dataclasses
import itertools
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageCms
from tiff_files import (
    BLACK_IS_ZERO,
    BYTE,
    CCITT,
    CMYK,
    DEFLATE,
    FLOAT,
    GROUP3,
    GROUP4,
    JPEG,
    LAB,
    LONG,
    LZMA,
    LZW,
    NONE,
    OLD_DEFLATE,
    OLD_JPEG,
    PACKBITS,
    PALETTE,
    RGB,
    SHORT,
    SIGNED,
    UNSIGNED,
    WEBP,
    WHITE_IS_ZERO,
    YCBCR,
    ZSTD,
    Layout,
    tiff_file,
)

from serving.errors import UnsupportedFormat
from serving.images.decode import decode_image

WIDTH, HEIGHT = 61, 47
ACROSS, DOWN = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
COLOURS = np.stack([ACROSS, DOWN, 1 - ACROSS], axis=-1)  # 0 to 1, RGB
GREYS = np.stack([(ACROSS + DOWN) / 2.004] * 3, axis=-1)  # none is just half
ALPHA = np.linspace(1, 0.2, WIDTH)[np.newaxis, :, np.newaxis] * np.ones((HEIGHT, 1, 1))
PLAIN = (NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD)
WITH_PREDICTOR = (LZW, DEFLATE, OLD_DEFLATE, ZSTD)

READ = [  # sample format, bits, photometric interpretations
    (UNSIGNED, 1, (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE)),
    (UNSIGNED, 2, (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE)),
    (UNSIGNED, 4, (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE)),
    (UNSIGNED, 8, (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB)),
    (UNSIGNED, 16, (BLACK_IS_ZERO, RGB, CMYK)),
    (SIGNED, 8, (BLACK_IS_ZERO,)),
    (SIGNED, 16, (BLACK_IS_ZERO,)),
    (SIGNED, 32, (BLACK_IS_ZERO,)),
    (FLOAT, 32, (WHITE_IS_ZERO, BLACK_IS_ZERO)),
]
READ_LITTLE_ENDIAN = [
    (UNSIGNED, 12, (BLACK_IS_ZERO,)),
    (UNSIGNED, 16, (WHITE_IS_ZERO,)),
    (UNSIGNED, 32, (BLACK_IS_ZERO,)),
]
NOT_READ = [
    (UNSIGNED, 12, BLACK_IS_ZERO, ">", "12 bits, unsigned, grey, no compression, big-endian"),
    (UNSIGNED, 32, BLACK_IS_ZERO, ">", "32 bits, unsigned, grey, no compression, big-endian"),
    (UNSIGNED, 64, BLACK_IS_ZERO, "<", "64 bits, unsigned, grey"),
    (UNSIGNED, 16, LAB, "<", "3 × 16 bits, unsigned, Lab"),
    (UNSIGNED, 32, RGB, "<", "3 × 32 bits, unsigned, RGB"),
    (SIGNED, 16, RGB, ">", "3 × 16 bits, signed, RGB, no compression, big-endian"),
    (FLOAT, 16, BLACK_IS_ZERO, "<", "16 bits, floating-point, grey"),
    (FLOAT, 64, BLACK_IS_ZERO, "<", "64 bits, floating-point, grey, no compression, little-endian"),
    (FLOAT, 64, BLACK_IS_ZERO, ">", "64 bits, floating-point, grey, no compression, big-endian"),
    (FLOAT, 32, RGB, "<", "3 × 32 bits, floating-point, RGB"),
]


def decode(data: bytes) -> np.ndarray:
    return decode_image(data, WIDTH, HEIGHT, 10**6)


def in_colour(photometric: int) -> bool:
    return photometric in (RGB, CMYK, YCBCR, LAB)


def converted(picture: np.ndarray, photometric: int) -> np.ndarray:
    """A picture (height, width, 3), RGB 0 to 1, in YCbCr or Lab, 0 to 1."""
    eight_bits = Image.fromarray((picture * 255).round().astype(np.uint8))
    if photometric == YCBCR:
        return np.asarray(eight_bits.convert("YCbCr")) / 255
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return np.asarray(ImageCms.profileToProfile(eight_bits, *profiles, outputMode="LAB")) / 255


def samples(layout: Layout, picture: np.ndarray) -> np.ndarray:
    """The samples of a picture (height, width, 3), 0 to 1, in the colours and in the type of a layout."""
    shares = {
        WHITE_IS_ZERO: 1 - picture[..., :1],
        BLACK_IS_ZERO: picture[..., :1],
        PALETTE: picture[..., :1],
        RGB: picture,
        CMYK: np.concatenate([1 - picture, np.zeros((HEIGHT, WIDTH, 1))], axis=-1),
        YCBCR: converted(picture, YCBCR) if layout.photometric == YCBCR else None,
        LAB: converted(picture, LAB) if layout.photometric == LAB else None,
    }[layout.photometric]
    if layout.sample_format == FLOAT:
        return shares
    return (shares * (2 ** (min(layout.bits, 53) - (layout.sample_format == SIGNED)) - 1)).round()


def layouts(sample_format: int, bits: int, photometric: int, orders: str) -> Iterator[Layout]:
    """Every layout of such samples that a TIFF may have."""
    compressions = [*PLAIN, *([JPEG] if bits == 8 else []), *([CCITT, GROUP3, GROUP4] if bits == 1 else [])]
    predictors = (1, 3) if sample_format == FLOAT else (1, 2)
    palette = tuple(np.tile(np.linspace(0, 65535, 2**bits), 3).astype(int).tolist()) if photometric == PALETTE else ()
    for order, compression, predictor, planar, tile in itertools.product(
        orders, compressions, predictors, (1, 2), (None, (16, 32))
    ):
        if predictor != 1 and (compression not in WITH_PREDICTOR or bits < 8 or bits == 12):
            continue
        if planar == 2 and (photometric in (YCBCR, LAB) or compression == JPEG):
            continue
        one = Layout(order, bits, sample_format, photometric, compression, predictor, planar, tile, colours=palette)
        yield one if tile else dataclasses.replace(one, rows_per_strip=20)
        if order == "<" and not tile:
            yield dataclasses.replace(one, big=True)
            has_turned_bits = sample_format == UNSIGNED and photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE)
            if has_turned_bits and bits <= 8 and compression in (NONE, LZW, GROUP4):
                yield dataclasses.replace(one, fill_order=2)


def assert_is_read(layout: Layout) -> None:
    picture = COLOURS if in_colour(layout.photometric) else GREYS
    expected = picture * 255
    tolerance = {1: 1.0, 2: 45.0, 4: 10.0}.get(layout.bits, 4.0)
    if layout.bits == 1:
        expected = picture.round() * 255
    if layout.compression == JPEG:
        tolerance = 16.0 if layout.sample_format == SIGNED else 8.0
    if layout.photometric == LAB:  # has no place for the brightest colours
        tolerance = 60.0
    difference = np.abs(decode(tiff_file(samples(layout, picture), layout)) - expected)
    assert difference.max() <= tolerance, (layout, difference.max())
    assert difference.mean() <= {2: 25, 4: 5}.get(layout.bits, 4), (layout, difference.mean())


@pytest.mark.parametrize(
    ("sample_format", "bits", "photometric", "orders"),
    [(*kind[:2], one, "<>") for kind in READ for one in kind[2]]
    + [(*kind[:2], one, "<") for kind in READ_LITTLE_ENDIAN for one in kind[2]],
)
def test_a_tiff_of_every_layout_is_the_picture_that_was_saved(
    sample_format: int, bits: int, photometric: int, orders: str
) -> None:
    made = list(layouts(sample_format, bits, photometric, orders))
    assert len(made) >= 20
    for layout in made:
        assert_is_read(layout)


@pytest.mark.parametrize("order", "<>")
def test_a_tiff_around_a_jpeg_of_the_old_way_is_read(order: str) -> None:
    layout = Layout(order, photometric=YCBCR, compression=OLD_JPEG)
    assert np.abs(decode(tiff_file(samples(layout, COLOURS), layout)) - COLOURS * 255).max() <= 8


@pytest.mark.parametrize("order", "<>")
def test_pixels_of_a_tiff_may_share_their_colour_two_by_two(order: str) -> None:
    picture = Image.fromarray((COLOURS * 255).round().astype(np.uint8)).crop((0, 0, 60, 46))
    stored = np.asarray(picture.convert("YCbCr"))
    light, colour = stored[..., :1], stored[::2, ::2, 1:]
    squares = light.reshape(23, 2, 30, 2).swapaxes(1, 2).reshape(23, 30, 4)
    units = np.concatenate([squares, colour], axis=-1).reshape(23, 60, 3)  # as many bytes as of a smaller picture
    data = tiff_file(units, Layout(order, photometric=YCBCR))
    for tag, (before, after) in {257: (23, 46), 278: (23, 46)}.items():
        entry = struct.pack(f"{order}HHI", tag, 4, 1)
        data = data.replace(entry + struct.pack(f"{order}I", before), entry + struct.pack(f"{order}I", after))
    entry = struct.pack(f"{order}HHI", 530, 3, 2)
    data = data.replace(entry + struct.pack(f"{order}HH", 1, 1), entry + struct.pack(f"{order}HH", 2, 2))
    assert np.abs(decode_image(data, 60, 46, 10**6) - np.asarray(picture).astype(int)).max() <= 12


@pytest.mark.parametrize(("sample_format", "bits", "photometric", "order", "said"), NOT_READ)
def test_a_tiff_of_another_kind_is_refused_by_name(
    sample_format: int, bits: int, photometric: int, order: str, said: str
) -> None:
    layout = Layout(order, bits, sample_format, photometric)
    picture = COLOURS if in_colour(photometric) else GREYS
    with pytest.raises(UnsupportedFormat, match=f"This is a TIFF of {said}.*not read here. Convert it"):
        decode(tiff_file(samples(layout, picture), layout))


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (Layout(compression=WEBP, photometric=RGB), "WebP compression"),
        (Layout(photometric=LAB, planar=2), "Lab, no compression, little-endian, its colours apart"),
        (Layout(order=">", big=True), "a BigTIFF of big-endian byte order"),
    ],
)
def test_a_tiff_that_would_be_decoded_wrongly_is_refused_by_name(layout: Layout, said: str) -> None:
    with pytest.raises(UnsupportedFormat, match=said):
        decode(tiff_file(samples(layout, COLOURS if in_colour(layout.photometric) else GREYS), layout))


@pytest.mark.parametrize("compression", [32771, 32809, 34676, 34712, 34887, 50002, 12345])
def test_a_tiff_of_a_compression_that_nobody_unpacks_is_refused_by_name(compression: int) -> None:
    data = bytearray(tiff_file(samples(Layout(), GREYS), Layout()))
    at = data.index(b"\x03\x01\x03\0\x01\0\0\0") + 8
    data[at : at + 2] = compression.to_bytes(2, "little")
    with pytest.raises(UnsupportedFormat, match="compression, little-endian, which is not read here"):
        decode(bytes(data))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("planar", "photometric"), [(1, RGB), (2, RGB), (1, BLACK_IS_ZERO)])
@pytest.mark.parametrize("extra", [(), (0,), (1,), (2,)], ids=["unsaid", "none", "multiplied", "alpha"])
def test_the_alpha_of_a_tiff_is_laid_on_white(
    bits: int, order: str, planar: int, photometric: int, extra: tuple[int, ...]
) -> None:
    picture = COLOURS if photometric == RGB else GREYS
    colours = picture if photometric == RGB else picture[..., :1]
    if extra == (1,):  # the colours are stored times alpha
        colours = colours * ALPHA
    layout = Layout(order, bits, photometric=photometric, planar=planar, extra_samples=extra, compression=LZW)
    data = tiff_file((np.concatenate([colours, ALPHA], axis=-1) * (2**bits - 1)).round(), layout)
    if (photometric == BLACK_IS_ZERO and (bits == 16 or not extra)) or (planar == 2 and not extra):
        with pytest.raises(UnsupportedFormat, match=f"[24] × {bits} bits, unsigned, (grey|RGB)"):
            decode(data)
        return
    expected = picture if extra == (0,) else picture * ALPHA + 1 - ALPHA
    assert np.abs(decode(data) - expected * 255).max() <= 5


def test_samples_beyond_the_colours_do_not_count() -> None:
    more = np.concatenate([COLOURS, ALPHA, ALPHA], axis=-1) * 255
    for order, planar in itertools.product("<>", (1, 2)):
        layout = Layout(order, photometric=RGB, extra_samples=(0, 0), planar=planar)
        assert np.abs(decode(tiff_file(more.round(), layout)) - COLOURS * 255).max() <= 2
    layout = Layout(photometric=RGB, extra_samples=(2, 0), planar=2)
    with pytest.raises(UnsupportedFormat, match="5 × 8 bits, unsigned, RGB.*its colours apart"):
        decode(tiff_file(more.round(), layout))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [8, 32])
def test_a_tiff_is_turned_upright(orientation: int, order: str, bits: int) -> None:
    mirrored = GREYS * 0 + ACROSS[..., np.newaxis] ** 2 * DOWN[..., np.newaxis]  # no two turns of it are alike
    stored = {
        1: mirrored,
        2: mirrored[:, ::-1],
        3: mirrored[::-1, ::-1],
        4: mirrored[::-1],
        5: mirrored.swapaxes(0, 1),
        6: mirrored.swapaxes(0, 1)[::-1],
        7: mirrored.swapaxes(0, 1)[::-1, ::-1],
        8: mirrored.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    layout = Layout(order, bits, FLOAT if bits == 32 else UNSIGNED, orientation=orientation)
    data = tiff_file(stored[..., :1] * (1 if bits == 32 else 255), layout)
    assert np.abs(decode(data) - mirrored * 255).max() <= 2


@pytest.mark.parametrize(
    "tag",
    [
        (270, SHORT, (1, 2, 3)),  # a description that is no text
        (282, SHORT, (0,)),  # a resolution of nothing
        (34665, LONG, (99_999_999,)),  # EXIF beyond the file
        (34665, LONG, (0,)),
        (330, LONG, (8, 8, 8)),
        (700, SHORT, (1, 2, 3)),
        (34675, BYTE, (1, 2, 3)),
        (296, SHORT, (77,)),
        (33723, LONG, (1, 2)),
    ],
)
def test_a_broken_tag_that_the_picture_does_not_need_does_not_spoil_it(tag: tuple[int, int, tuple[int, ...]]) -> None:
    layout = Layout(more=(tag,))
    assert np.abs(decode(tiff_file(samples(layout, GREYS), layout)) - GREYS * 255).max() <= 2


def test_of_pages_that_follow_each_other_in_a_circle_the_first_counts() -> None:
    data = tiff_file(samples(Layout(), GREYS), Layout())
    first = data[4:8]
    assert np.abs(decode(data[:-4] + first) - GREYS * 255).max() <= 2
