"""An image as text that can travel, and back."""

import base64

import numpy as np
import pytest

import helpers

SHAPE = (224, 224, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.mark.parametrize(("dtype", "length"), [("uint8", 200_704), ("float32", 802_816)])
def test_what_travels_comes_back_the_same(dtype: str, length: int) -> None:
    before = PIXELS.copy()
    text = helpers.encode_image(PIXELS, dtype)
    assert len(text) == length
    for told in (dtype, None):
        back = helpers.decode_image(text, SHAPE, told)
        assert back.dtype == np.uint8
        assert np.array_equal(back, PIXELS)
    assert np.array_equal(PIXELS, before)


def test_one_channel_travels_as_uint8_alone() -> None:
    grey = PIXELS[..., :1]
    text = helpers.encode_image(grey, "uint8")
    for told in ("uint8", None):
        assert np.array_equal(helpers.decode_image(text, (224, 224, 1), told), grey)
    with pytest.raises(ValueError, match="three colours"):
        helpers.encode_image(grey, "float32")
    floats = base64.b64encode(np.zeros((224, 224, 1), np.float32)).decode()
    for told in ("float32", None):
        with pytest.raises(helpers.WrongSize, match="three colours"):
            helpers.decode_image(floats, (224, 224, 1), told)
    for other in (SHAPE, (224, 112, 1)):
        with pytest.raises(helpers.WrongSize):
            helpers.decode_image(text, other)


def test_the_extremes_survive_the_float_wire() -> None:
    for value in (0, 255):
        pixels = np.full(SHAPE, value, np.uint8)
        assert np.array_equal(helpers.decode_image(helpers.encode_image(pixels, "float32"), SHAPE), pixels)


@pytest.mark.parametrize(
    ("text", "dtype", "says"),
    [
        ("not base64!", None, "not base64"),
        ("äöü", None, "not base64"),
        ("", None, "0 bytes"),
        ("AAAA", "uint8", "3 bytes"),
        (helpers.encode_image(PIXELS, "uint8"), "float32", "needs 602112"),
        (helpers.encode_image(PIXELS, "uint8"), "float64", "uint8 and float32 are read"),
        (base64.b64encode(np.full(SHAPE, np.nan, np.float32)).decode(), None, "not pixels"),
        (base64.b64encode(b"\x01\0\xa0\x7f" * (224 * 224 * 3)).decode(), None, "not pixels"),  # a NaN that signals
        (base64.b64encode(np.full(SHAPE, 1e30, np.float32)).decode(), None, "not pixels"),
        (base64.b64encode(np.full(SHAPE, -np.inf, np.float32)).decode(), None, "not pixels"),
    ],
)
def test_what_is_no_image_is_told_so(text: str, dtype: str | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        helpers.decode_image(text, SHAPE, dtype)
