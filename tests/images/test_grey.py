"""Grey of more than 8 bits: the range of its samples becomes black to white, as serving/images/grey.py draws it."""

import numpy as np
import pytest
from conftest import as_bytes
from fuzzing import chunk
from fuzzing import png as raw_png
from PIL import Image
from tiff_files import FLOAT, SIGNED, UNSIGNED, WHITE_IS_ZERO, Layout, tiff_file

from serving.images.decode import decode_image

SIZE = 40
SHARES = np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE)  # from black to white


def tiff(values: np.ndarray, sample_format: int, bits: int, **more: object) -> bytes:
    return tiff_file(values[..., np.newaxis], Layout("<", bits, sample_format, **more))  # type: ignore[arg-type]


def png(values: np.ndarray) -> bytes:
    return as_bytes(Image.fromarray(values.astype(np.uint16)), "PNG")


def decode(data: bytes) -> np.ndarray:
    """One channel of grey; all three are the same."""
    pixels = decode_image(data, SIZE, SIZE, 10**7)
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 0], pixels[..., 2])
    return pixels[..., 0].astype(int)


@pytest.mark.parametrize("sample_format", [UNSIGNED, SIGNED])
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize(
    ("brightest", "white"), [(255, 255), (200, 255), (4095, 4095), (1000, 4095), (32767, 0), (30000, 0)]
)
def test_integers_are_of_8_or_12_or_all_their_bits(sample_format: int, bits: int, brightest: int, white: int) -> None:
    most = 32767 if (sample_format, bits) == (SIGNED, 16) else 65535
    expected = SHARES * brightest / (white or most) * 255
    pixels = decode(tiff((SHARES * brightest).round(), sample_format, bits))
    assert np.abs(pixels - expected).max() <= 1.1


@pytest.mark.parametrize("brightest", [255, 4095, 20000, 65535])
def test_a_dark_16_bit_png_stays_dark(brightest: int) -> None:
    """Its specification says what white is; a TIFF's does not."""
    values = (SHARES * brightest).round()
    assert np.abs(decode(png(values)) - values / 65535 * 255).max() <= 1


@pytest.mark.parametrize(
    ("sample_format", "brightest"), [(UNSIGNED, 2**32 - 1), (UNSIGNED, 10**6), (SIGNED, 2**31 - 1)]
)
def test_of_large_32_bit_integers_the_brightest_is_white(sample_format: int, brightest: int) -> None:
    assert np.abs(decode(tiff((SHARES * brightest).round(), sample_format, 32)) - SHARES * 255).max() <= 1


@pytest.mark.parametrize(("bits", "low", "high"), [(8, -128, 127), (16, -1024, 3071), (32, -(2**31), 2**31 - 1)])
def test_of_integers_below_zero_the_darkest_is_black(bits: int, low: int, high: int) -> None:
    values = (low + SHARES * (high - low)).round()
    assert np.abs(decode(tiff(values, SIGNED, bits)) - SHARES * 255).max() <= 1.1


@pytest.mark.parametrize(
    ("low", "high", "black", "white"),
    [
        (0, 1, 0, 1),
        (0.25, 0.5, 0, 1),
        (0, 255, 0, 255),
        (10, 200, 0, 255),
        (0, 100, 0, 100),
        (3, 5000, 3, 5000),
        (-1, 1, -1, 1),
        (-20, -10, -20, -10),
        (0, 1e-5, 0, 1),
    ],
)
def test_floats_are_shares_or_bytes_or_use_their_own_range(low: float, high: float, black: float, white: float) -> None:
    values = low + SHARES * (high - low)
    expected = (values - black) / (white - black) * 255
    assert np.abs(decode(tiff(values, FLOAT, 32)) - expected).max() <= 1
    assert np.abs(decode(tiff(values, FLOAT, 32, photometric=WHITE_IS_ZERO)) - (255 - expected)).max() <= 1


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf, -3.4e38, 1e38])
def test_missing_samples_are_black_and_harm_no_others(missing: float) -> None:
    values = 10 + SHARES * 5000
    values[0, 0] = values[20:30, 20:30] = missing
    expected = SHARES * 255
    expected[0, 0] = expected[20:30, 20:30] = 0
    assert np.abs(decode(tiff(values, FLOAT, 32)) - expected).max() <= 2


@pytest.mark.parametrize("value", [0.0, 0.5, 77.0, -3.0, np.nan])
def test_a_picture_of_one_value_is_one_grey(value: float) -> None:
    assert np.ptp(decode(tiff(np.full((SIZE, SIZE), value), FLOAT, 32))) == 0


def test_the_range_is_that_of_the_whole_picture_however_large() -> None:
    shares = np.linspace(0, 1, 1500 * 1500).reshape(1500, 1500)  # more than is converted at a time
    expected = np.asarray(Image.fromarray((shares * 255).round().astype(np.uint8)).resize((SIZE, SIZE)))
    assert np.abs(decode(tiff(shares * 5000 - 100, FLOAT, 32)) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_clear_grey_of_a_png_becomes_white(bits: int) -> None:
    values = (SHARES * (2**bits - 1)).round().astype(int)
    clear = (2**bits - 1) // 2
    rows = (values[..., np.newaxis] >> np.arange(bits)[::-1]) & 1
    packed = np.packbits(rows.reshape(SIZE, -1).astype(np.uint8), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in packed)
    expected = np.where(values == clear, 255, values / (2**bits - 1) * 255)
    pixels = decode(raw_png(SIZE, SIZE, bits, 0, lines, chunk(b"tRNS", clear.to_bytes(2))))
    assert np.abs(pixels - expected).max() <= 1
