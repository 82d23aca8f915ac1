"""A small picture of an image, for people to look at."""

import io

import numpy as np
from PIL import Image

from serving.images.decode import as_picture

SIDE_PIXELS = 128


def to_png(pixels: np.ndarray) -> bytes:
    """A PNG file of pixels (height, width, 3 or 1), uint8 0..255, whose longer side has SIDE_PIXELS."""
    height, width = pixels.shape[:2]
    scale = SIDE_PIXELS / max(height, width)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    # Few pixels are drawn larger as they are, so that one sees what the model saw.
    way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BICUBIC
    file = io.BytesIO()
    as_picture(pixels).resize(size, way).save(file, "PNG", compress_level=1)
    return file.getvalue()
