"""Upload bytes -> RGB pixels. The only module that knows Pillow.

bytes -- open: header only --> size checked -- decode --> upright, RGB, 8 bits -- resize --> (height, width, 3)
"""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from serving.errors import TooLarge, UndecodableImage, UnsupportedFormat

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# Half of what is refused, as Pillow sees it: there it would warn.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def decode_image(data: bytes, width: int, height: int, max_pixels: int) -> np.ndarray:
    """Decode an uploaded image to pixels (height, width, 3), uint8 0..255, RGB, turned as its EXIF says.

    The whole image is squeezed to width × height, by Pillow's bicubic resize; transparency is laid on white; of an
    animation the first frame counts.

    Raises:
        UnsupportedFormat: not one of FORMATS.
        TooLarge: more than `max_pixels` pixels, by its header.
        UndecodableImage: truncated or corrupt.
    """
    image = _open(data, max_pixels)
    if image.width * image.height > max_pixels:
        raise TooLarge(
            f"The image has {image.width}×{image.height} pixels; at most {max_pixels:,} are accepted. Make it smaller."
        )
    try:
        # A JPEG decodes straight to 1/2, 1/4 or 1/8 of its size, never below what is asked for.
        image.draft("RGB", (width, height))
        image.load()
        with contextlib.suppress(Exception):  # the picture may be fine where its EXIF is garbage
            ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(_to_rgb(image, (width, height)))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, …
        raise UndecodableImage(
            f"The {image.format} image cannot be decoded: {error}. It may be truncated or corrupt; send it again."
        ) from error


def save_image(pixels: np.ndarray, path: Path) -> None:
    """Write pixels (height, width, 3), uint8 0..255, RGB, to a PNG file, exactly. Raises OSError."""
    Image.fromarray(pixels).save(path, format="PNG")


def _open(data: bytes, max_pixels: int) -> Image.Image:
    # Pillow's own limit is for the whole process, and the error comes at twice its value. It is needed besides ours,
    # since some formats fill a frame while they are opened.
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooLarge(
            f"The image has more than the {max_pixels:,} pixels that are accepted. Make it smaller."
        ) from error
    except UnidentifiedImageError as error:
        raise UnsupportedFormat(
            f"This is not an image that can be read here. Send one of {', '.join(FORMATS)}."
        ) from error
    except Exception as error:  # a header of a known format that makes no sense
        raise UndecodableImage(
            f"The image's header cannot be read: {error}. It may be corrupt; send it again."
        ) from error


def _to_rgb(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize and convert; in the order that needs the least memory."""
    if image.mode.startswith("I") or image.mode == "F":
        return _to_8_bits(image, size).convert("RGB")
    if image.has_transparency_data:
        small = image.convert("RGBA").resize(size, Image.Resampling.BICUBIC)
        return Image.alpha_composite(Image.new("RGBA", size, "white"), small).convert("RGB")
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _to_8_bits(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Grey of more than 8 bits (modes I;16, I, F) -> 8 bits. Pillow's own conversion clips at 255: all white."""
    values = np.nan_to_num(np.asarray(image.convert("F").resize(size, Image.Resampling.BICUBIC), dtype=np.float64))
    if image.mode != "F":
        low, high = 0.0, 65535.0
    elif values.min() >= 0 and values.max() <= 1:
        low, high = 0.0, 1.0
    else:  # floats have no fixed range: what they span
        low, high = values.min(), max(values.max(), values.min() + 1e-12)
    return Image.fromarray((np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8))
