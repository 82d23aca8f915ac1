"""Grey samples that are not the usual 8 bits -> 8 bits, 0 (black) to 255 (white).

    samples                             black    white
    16 bits of a PNG                    0        65,535, as the PNG specification says
    integers, none below 0              0        the first of 255, 4095 and the type's largest that none exceeds; of 32
                                                 bits 65535, and above it the brightest sample
    integers, some below 0              darkest  brightest sample
    floats, all between 0 and 1         0        1
    floats between 0 and 255, of which
    some are above 127                  0        255
    other floats                        darkest  brightest sample

Not a number, infinity and whatever is beyond ±MISSING_FROM stand for missing samples, and become black. Where a TIFF
says that white is zero, black and white change places. The clear colour of a PNG becomes white. A TIFF does not say
what white is: cameras and scanners write 12 bits, and programs 8, into samples of 16.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

MISSING_FROM = 1e30  # the programs that make maps write -3.4e38 where they know nothing
STRIP_PIXELS = 1 << 20  # what is converted at a time, so that the copies stay small
USUAL_WHITES = (255, 4095)  # of 8 and 12 bits
WHITES = {"int8": 127, "int16": 32767, "uint16": 65535, "int32": 65535, "uint32": 65535}
DTYPES = {"I;16NS": "int16", "I;32N": "uint32", "I;32NS": "int32"}  # by Pillow's raw mode


@dataclass(frozen=True)
class Samples:
    """What the samples of a grey image are: numpy's name of their type, whether 0 is white, the clear value.

    `white` is the value of white, where the format says it.
    """

    dtype: str
    white_is_zero: bool = False
    clear: int | None = None
    white: float | None = None


def samples_of(image: ImageFile.ImageFile) -> Samples | None:
    """What the samples of an image are that is opened, and not decoded yet; None if they are the usual 8 bits."""
    raw_mode = image.tile[0].args if image.tile else ""
    raw_mode = raw_mode[0] if isinstance(raw_mode, tuple) and raw_mode else raw_mode
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        is_signed = image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 2
        if image.mode == "L" and is_signed:
            return Samples("int8")
        white_is_zero = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        if image.mode == "F":
            return Samples("float32", white_is_zero)
        return Samples(DTYPES.get(str(raw_mode), "uint16"), white_is_zero) if image.mode.startswith("I") else None
    if image.mode.startswith("I"):  # a PNG
        clear = image.info.get("transparency")
        return Samples("uint16", clear=clear if isinstance(clear, int) else None, white=65535.0)
    return None


def to_8_bits(image: Image.Image, samples: Samples) -> Image.Image:
    """A decoded image with such samples -> mode L. It takes a byte for each pixel, and a few MB."""
    black, white = _range(image, samples)
    result = Image.new("L", image.size)
    for box in _strips(image):
        values, missing = _values(image, box, samples)
        shares = (np.clip(values, black, white) - black) / (white - black)
        shares = 1 - shares if samples.white_is_zero else shares
        pixels = np.where(missing, 0, shares * 255 + 0.5).astype(np.uint8)
        if samples.clear is not None:
            pixels[values == samples.clear] = 255
        result.paste(Image.fromarray(pixels), box)
    return result


def _strips(image: Image.Image) -> list[tuple[int, int, int, int]]:
    rows = max(1, STRIP_PIXELS // image.width)
    tops = range(0, image.height, rows)
    return [(0, top, image.width, min(top + rows, image.height)) for top in tops]


def _values(image: Image.Image, box: tuple[int, int, int, int], samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """The samples of a box (rows, columns), float64, and which of them are missing (rows, columns), bool."""
    stored = np.asarray(image.crop(box))
    if samples.dtype in ("int8", "uint32"):  # Pillow keeps them as uint8 and int32
        stored = stored.view(samples.dtype)
    values = stored.astype(np.float64)
    missing = ~(np.abs(values) < MISSING_FROM)
    return np.where(missing, 0, values), missing


def _range(image: Image.Image, samples: Samples) -> tuple[float, float]:
    """The samples that become black and white."""
    if samples.white is not None:
        return 0.0, samples.white
    lows, highs = [], []
    for box in _strips(image):
        values, missing = _values(image, box, samples)
        if not missing.all():
            lows.append(float(values.min(where=~missing, initial=np.inf)))
            highs.append(float(values.max(where=~missing, initial=-np.inf)))
    low, high = min(lows, default=0.0), max(highs, default=0.0)
    if low >= 0:
        if samples.dtype == "float32":
            usual = [1.0] * (high <= 1) + [255.0] * (127 < high <= 255)
        else:
            largest = WHITES[samples.dtype]
            usual = [float(white) for white in (*USUAL_WHITES, largest) if high <= white <= largest]
            low = 0.0
        if usual:
            return 0.0, usual[0]
    return low, high if high > low else low + 1
