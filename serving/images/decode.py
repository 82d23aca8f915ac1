"""Upload bytes -> RGB pixels.

bytes -- open: header only --> limits checked -- decode --> upright, RGB, 8 bits -- resize --> (height, width, 3)
"""

import contextlib
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from serving.errors import TooLarge, UndecodableImage, UnsupportedFormat
from serving.images import limits, resize

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# Pillow warns at half the size at which it refuses; only our limit matters.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# Pillow warns once for each broken TIFF tag, and a file may have 65,535.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# libtiff reads uncompressed TIFFs too: Pillow's own reader makes several objects for each strip.
TiffImagePlugin.READ_LIBTIFF = True


def decode_image(data: bytes, width: int, height: int, max_pixels: int) -> np.ndarray:
    """Decode an uploaded image to pixels (height, width, 3), uint8 0..255: `open_image`, then `to_pixels`."""
    return to_pixels(open_image(data, max_pixels), width, height)


def open_image(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Read the header of an uploaded image, which tells its width and height; nothing is decoded yet.

    Raises:
        UnsupportedFormat: the image has none of FORMATS, or a variant that is not read.
        TooLarge: the image has more than `max_pixels` (width × height), or takes more work than its pixels tell.
        UndecodableImage: the header makes no sense.
    """
    limits.check_profiles(data)
    upload = limits.Upload(data)
    image = _open(upload, max_pixels)
    limits.check_header(image, data, max_pixels)
    upload.end_of_header()
    return image


def pixels_of_work(image: ImageFile.ImageFile, data: bytes) -> float:
    """About how long an opened image takes to decode: as long as a JPEG of one scan with so many pixels.

    Each scan of a JPEG goes over all its pixels. Other formats take about eight times as long. A TIFF counts as
    infinite, because its time depends on its tiles. `data` is the bytes of the image.
    """
    if image.format == "JPEG":
        return image.width * image.height * max(1, data.count(limits.START_OF_SCAN))
    return float("inf") if image.format == "TIFF" else 8 * image.width * image.height


def to_pixels(image: ImageFile.ImageFile, width: int, height: int) -> np.ndarray:
    """Decode an opened image, once, to pixels (height, width, 3), uint8 0..255, RGB, turned upright as its EXIF says.

    The whole image is squeezed to width × height by Pillow's bicubic resize; transparency becomes white; of an
    animation the first frame counts.

    Raises:
        UndecodableImage: the image is truncated or corrupt.
    """
    try:
        # libjpeg decodes a JPEG straight to 1/2, 1/4 or 1/8 of its size, never below width × height.
        image.draft("RGB", (width, height))
        image.load()
        with contextlib.suppress(Exception):  # a picture may be fine although its EXIF is garbage
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


def _open(upload: limits.Upload, max_pixels: int) -> ImageFile.ImageFile:
    # Some formats fill a whole frame while Pillow opens them, before our own limit is checked. Pillow's limit holds for
    # the whole process, and Pillow raises its error at twice that limit.
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
    try:
        return Image.open(upload, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooLarge(
            f"The image has more than the {max_pixels:,} pixels that are accepted. Make it smaller."
        ) from error
    except UnidentifiedImageError as error:
        raise UnsupportedFormat(
            f"This is not an image that can be read here. Send one of {', '.join(FORMATS)}."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a header that makes no sense, of a known format
        raise UndecodableImage(
            f"The image's header cannot be read: {error}. It may be corrupt; send it again."
        ) from error


def _to_rgb(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize and convert, in the order that needs the least memory."""
    if image.mode.startswith("I") or image.mode == "F":
        return _to_8_bits(image, size).convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image.close()  # frees its pixels before the resize makes another copy
        small = clear.resize(size, Image.Resampling.BICUBIC)
        return Image.alpha_composite(Image.new("RGBA", size, "white"), small).convert("RGB")
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy an RGB image
    return _resize(rgb, size)


def _resize(rgb: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an RGB image as Pillow's bicubic resize does, with the fastest library there is."""
    if not resize.IS_FAST:
        return rgb.resize(size, Image.Resampling.BICUBIC)
    # Pillow 13 resizes one direction after the other and rounds in between. This is its order, found by trying: in the
    # other order some values differ by up to 20.
    columns_first = rgb.height - size[1] > max(0, 2 * (rgb.width - size[0]))
    halfway = (rgb.width, size[1]) if columns_first else (size[0], rgb.height)
    for step in (halfway, size):
        smaller = Image.new("RGB", step, None)
        resize.resize(rgb, smaller)
        rgb = smaller
    return rgb


def _to_8_bits(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Grey of more than 8 bits (modes I;16, I, F) -> 8 bits. Pillow's own conversion clips at 255: all is white."""
    values = np.nan_to_num(np.asarray(image.convert("F").resize(size, Image.Resampling.BICUBIC), dtype=np.float64))
    if image.mode != "F":
        low, high = 0.0, 65535.0
    elif values.min() >= 0 and values.max() <= 1:
        low, high = 0.0, 1.0
    else:  # floats have no fixed range, so take the range of these
        low, high = values.min(), max(values.max(), values.min() + 1e-12)
    return Image.fromarray((np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8))
