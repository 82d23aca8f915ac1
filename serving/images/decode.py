"""Upload bytes -> RGB or grey pixels.

bytes -- open: header only --> limits checked -- decode --> upright, RGB, 8 bits -- resize --> (height, width, 3)
                                                              where the model wants grey -- luma --> (height, width, 1)
"""

import contextlib
import warnings
from pathlib import Path

import numpy as np
from PIL import AvifImagePlugin, Image, ImageFile, ImageOps

from serving.errors import TooLarge, UndecodableImage, UnsupportedFormat
from serving.images import grey, kinds, limits, metadata, resize, tiff

CLEAR_GREY_STEPS = {"L;2": 85, "L;4": 17}  # raw mode of a PNG -> what Pillow multiplies its grey with

# Pillow warns at half the size at which it refuses; only our limit matters.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# One picture, one thread: others are decoded beside it, and each thread takes memory.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# Pillow warns once for each broken TIFF tag, and a file may have 65,535.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode_image(data: bytes, width: int, height: int, max_pixels: int, channels: int = 3) -> np.ndarray:
    """Decode an uploaded image to pixels (height, width, channels), uint8 0..255: `open_image`, then `to_pixels`."""
    return to_pixels(open_image(data, max_pixels), width, height, channels)


def open_image(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Read the header of an uploaded image, which tells its width and height; nothing is decoded yet.

    Raises:
        UnsupportedFormat: the file has none of kinds.FORMATS, or is of a kind that is not read.
        TooLarge: the image has more than `max_pixels` (width × height), or takes more work than its pixels tell.
        UndecodableImage: the header makes no sense.
    """
    image = _open(data, max_pixels)
    limits.check_header(image, data, max_pixels)
    tiff.set_up(image)
    return image


def pixels_of_work(image: ImageFile.ImageFile, data: bytes) -> float:
    """About how long an opened image takes to decode: as long as a JPEG of one scan with so many pixels.

    Each scan of a JPEG goes over all its pixels. Other formats take about eight times as long. A TIFF counts as
    infinite, because its time depends on its tiles. `data` is the bytes of the image.
    """
    if image.format == "JPEG":
        return image.width * image.height * max(1, data.count(limits.START_OF_SCAN))
    return float("inf") if image.format == "TIFF" else 8 * image.width * image.height


def to_pixels(image: ImageFile.ImageFile, width: int, height: int, channels: int = 3) -> np.ndarray:
    """Decode an opened image, once, to pixels (height, width, channels), uint8 0..255: 3, RGB, or 1, grey.

    The image is turned upright as its EXIF or XMP says, and squeezed as a whole to width × height by a bicubic resize.
    Transparency becomes white; of an animation the first frame counts. Grey is the luma of ITU-R BT.601 of the RGB
    pixels, 0.299 red + 0.587 green + 0.114 blue, which leaves grey as it is.

    Raises:
        UndecodableImage: the image is truncated or corrupt.
        UnsupportedFormat: the image is of a kind that is not read.
    """
    file, samples, covered = image.fp, grey.samples_of(image), image.tile[0].extents if image.tile else None
    try:
        _scale_clear_colour(image)
        # libjpeg decodes a JPEG straight to 1/2, 1/4 or 1/8 of its size, never below width × height.
        image.draft("RGB", (width, height))
        image.load()
        _turn_upright(image)
        if image.format == "GIF" and covered and not image.has_transparency_data:
            rgb = _resize(_on_white(image, covered), (width, height))
        else:
            rgb = _to_rgb(image, samples, (width, height))
        return np.asarray(rgb) if channels == 3 else np.asarray(rgb.convert("L"))[..., np.newaxis]
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, …
        raise kinds.refusal(file.getvalue() if isinstance(file, limits.Upload) else b"") from error


def save_image(pixels: np.ndarray, path: Path) -> None:
    """Write pixels (height, width, 3 or 1), uint8 0..255, to a PNG file, exactly. Raises OSError."""
    as_picture(pixels).save(path, format="PNG")


def as_picture(pixels: np.ndarray) -> Image.Image:
    """Pixels (height, width, 3 or 1), uint8 0..255, as Pillow has them: RGB, or grey."""
    return Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    # Some formats fill a whole frame while Pillow opens them, before our own limit is checked. Pillow's limit holds for
    # the whole process, and Pillow raises its error at twice that limit.
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
    tiff.check_tags(data)
    try:
        return _read_header(metadata.without_png_metadata(data), max_pixels)
    except (TooLarge, UnsupportedFormat, UndecodableImage):
        less = metadata.without_metadata(data)
        if less != data:
            with contextlib.suppress(TooLarge, UnsupportedFormat, UndecodableImage):
                return _read_header(less, max_pixels)
        raise


def _read_header(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    upload = limits.Upload(data)
    try:
        image = Image.open(upload, formats=kinds.FORMATS)
    except Image.DecompressionBombError as error:
        raise TooLarge(
            f"The image has more than the {max_pixels:,} pixels that are accepted. Make it smaller."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # no image, or a header that makes no sense
        if upload.reads_left < 0:
            raise TooLarge("The image has too many parts before its pixels. Save it anew.") from error
        raise kinds.refusal(data) from error
    upload.end_of_header()
    return image


def _scale_clear_colour(image: ImageFile.ImageFile) -> None:
    """Pillow scales the samples of a PNG to 8 bits, but not the clear colour that it compares them with."""
    clear, raw_mode = image.info.get("transparency"), image.tile[0].args if image.tile else None
    if isinstance(raw_mode, str) and raw_mode in CLEAR_GREY_STEPS and isinstance(clear, int):
        image.info["transparency"] = clear * CLEAR_GREY_STEPS[raw_mode]
    if raw_mode == "RGB;16B" and clear:
        image.info["transparency"] = tuple(channel >> 8 for channel in clear)


def _turn_upright(image: ImageFile.ImageFile) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:
        return  # a picture may be fine although its EXIF is garbage


def _to_rgb(image: Image.Image, samples: grey.Samples | None, size: tuple[int, int]) -> Image.Image:
    """Resize and convert, in the order that needs the least memory."""
    if samples:
        eight_bits = grey.to_8_bits(image, samples)
        image.close()
        return eight_bits.resize(size, Image.Resampling.BICUBIC).convert("RGB")
    if image.has_transparency_data and not _is_clear_by_mistake(image):
        clear = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image.close()  # frees its pixels before the resize makes another copy
        small = clear.resize(size, Image.Resampling.BICUBIC)
        return Image.alpha_composite(Image.new("RGBA", size, "white"), small).convert("RGB")
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy an RGB image
    return _resize(rgb, size)


def _on_white(image: Image.Image, covered: tuple[int, int, int, int]) -> Image.Image:
    """A GIF -> RGB, white where its first frame does not cover it; Pillow leaves the palette's first colour there."""
    left, top, right, bottom = covered
    width, height = image.size
    rgb = image.convert("RGB")
    for rest in ((0, 0, width, top), (0, bottom, width, height), (0, 0, left, height), (right, 0, width, height)):
        rgb.paste("white", rest)
    return rgb


def _is_clear_by_mistake(image: Image.Image) -> bool:
    """Whether a BMP is clear all over: many programs leave its alpha at 0, and mean the picture."""
    return image.format == "BMP" and image.getchannel("A").getextrema() == (0, 0)


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
