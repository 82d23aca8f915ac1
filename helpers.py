"""An image -> text that travels in a job, and back.

    pixels (height, width, channels) uint8 0..255  -- encode_image -->  base64  -- decode_image -->  the same pixels

Channels are 3, red-green-blue, or 1, grey. There are two encodings. `uint8` is the pixels themselves, 200,704
characters for colours at 224×224. `float32`, for colours alone, is that of the tutorial from which this service
descends, 802,816 characters, in ResNet50's normalisation: channels in the order blue, green, red, less ImageNet's mean
of each (the `caffe` mode of keras.applications.imagenet_utils).
"""

import binascii

import numpy as np
import pybase64

# Mean of ImageNet's training images for blue, green and red (keras.applications.imagenet_utils).
IMAGENET_MEAN_BGR = np.array([103.939, 116.779, 123.68], dtype=np.float32)


class WrongSize(ValueError):
    """The text holds an image, but of another size, or of other channels."""


def encode_image(pixels: np.ndarray, dtype: str) -> str:
    """Encode pixels (height, width, channels), uint8 0..255, as base64 text. `dtype` is `uint8` or `float32`.

    Raises ValueError: `float32`, whose normalisation has three colours, and the pixels have other channels.
    """
    if dtype == "float32":
        if pixels.shape[-1] != 3:
            raise ValueError(f"float32 has three colours, and the pixels have {pixels.shape[-1]} channels")
        pixels = pixels[..., ::-1].astype(np.float32) - IMAGENET_MEAN_BGR
    return pybase64.b64encode_as_string(np.ascontiguousarray(pixels).data)


def decode_image(text: str, shape: tuple[int, int, int], dtype: str | None = None) -> np.ndarray:
    """Decode text that `encode_image` made, to pixels of `shape` (height, width, channels), uint8 0..255, read-only.

    Without a dtype, as in a job of the tutorial, the length tells whether the text holds uint8 or float32.

    Raises:
        WrongSize: the length does not fit, or float32 is to have other channels than three.
        ValueError: the text is not base64, or its floats are no normalised pixels.
    """
    try:
        raw = pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError(f"the image is not base64: {error}") from error
    count, in_colours = shape[0] * shape[1] * shape[2], shape[2] == 3
    dtype = dtype or {count: "uint8", 4 * count: "float32"}.get(len(raw), "uint8")
    if dtype not in ("uint8", "float32"):
        raise ValueError(f"the image's dtype is {dtype!r}; uint8 and float32 are read")
    if len(raw) != count * np.dtype(dtype).itemsize:
        raise WrongSize(f"the image has {len(raw)} bytes; {shape} in {dtype} needs {count * np.dtype(dtype).itemsize}")
    if dtype == "float32" and not in_colours:
        raise WrongSize(f"the image is in float32, which has three colours; {shape} has {shape[2]} channels")
    pixels = np.frombuffer(raw, dtype=dtype).reshape(shape)
    return pixels if dtype == "uint8" else _denormalise(pixels)


def _denormalise(floats: np.ndarray) -> np.ndarray:
    """Undo ResNet50's normalisation: (…, 3) float32, blue-green-red -> the uint8 pixels, red-green-blue.

    The result is exact, because the pixels were whole numbers. So one graph, which takes uint8, serves both encodings.
    """
    with np.errstate(invalid="ignore"):  # numpy would warn of a signalling NaN, which is refused below
        pixels = np.rint((floats + IMAGENET_MEAN_BGR)[..., ::-1])
    if not (pixels.min() >= 0 and pixels.max() <= 255):  # `not`: true for NaN as well
        raise ValueError("the image's float32 values are not pixels in ResNet50's normalisation")
    return pixels.astype(np.uint8)
