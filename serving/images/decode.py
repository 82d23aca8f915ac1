"""Upload bytes -> RGB pixels. The only module that knows Pillow.

bytes -- open: header only --> size checked -- decode --> upright, RGB, 8 bits -- resize --> (height, width, 3)
"""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from serving.errors import TooLarge, UndecodableImage, UnsupportedFormat
from serving.images import resize

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# Half of what is refused, as Pillow sees it: there it would warn.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


# Of each broken tag of up to 65,535 in a file. Uncompressed TIFFs, too, are for libtiff to read: Pillow's own way makes
# some objects for each strip.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
TiffImagePlugin.READ_LIBTIFF = True

MOST_HEADER_READS = 5_000  # each marker, chunk, tag or block costs Pillow a few, in Python; a photo takes dozens
MOST_SIDE_PIXELS = 65_535  # as JPEG has it: resizing takes 32 bytes for each pixel of length
MOST_SCANNED_PIXELS = 5_000_000_000  # a progressive JPEG has about ten scans, each of which goes over all pixels
LEAST_SCAN_BYTES = 10  # its marker and header, for one component
MOST_PROFILES = 10  # of a PNG, which may have one; each unpacks to a megabyte
RUN_LENGTHS = (1, 2)  # compressions of BMP, which Pillow reads in Python, byte by byte


class _Upload(io.BytesIO):
    """The bytes of an upload, whose header may not be read without end."""

    reads_left: float = MOST_HEADER_READS

    def read(self, size: int | None = -1) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise OSError("it has too many parts")
        return super().read(size)


def decode_image(data: bytes, width: int, height: int, max_pixels: int) -> np.ndarray:
    """Decode an uploaded image to pixels (height, width, 3), uint8 0..255: `open_image`, then `to_pixels`."""
    return to_pixels(open_image(data, max_pixels), width, height)


def open_image(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Read the header of an uploaded image, which tells its width and height; nothing is decoded yet.

    Raises:
        UnsupportedFormat: not one of FORMATS, or a kind of one that is not read.
        TooLarge: more than `max_pixels` pixels, or more work than they tell of.
        UndecodableImage: a header that makes no sense.
    """
    image = _open(data, max_pixels)
    _refuse_costly(image, data, max_pixels)
    return image


def pixels_of_work(image: ImageFile.ImageFile, data: bytes) -> float:
    """About how long an opened image takes to decode, as the pixels of a JPEG that takes as long.

    Each scan of a JPEG goes over all its pixels; other formats take some eight times as long; what a TIFF takes hangs
    on its tiles, so that it counts as without end.
    """
    if image.format == "JPEG":
        return image.width * image.height * max(1, data.count(b"\xff\xda"))
    return float("inf") if image.format == "TIFF" else 8 * image.width * image.height


def to_pixels(image: ImageFile.ImageFile, width: int, height: int) -> np.ndarray:
    """Decode an opened image, once, to pixels (height, width, 3), uint8 0..255, RGB, turned as its EXIF says.

    The whole image is squeezed to width × height, by Pillow's bicubic resize; transparency is laid on white; of an
    animation the first frame counts.

    Raises:
        UndecodableImage: truncated or corrupt.
    """
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


def _refuse_costly(image: ImageFile.ImageFile, data: bytes, max_pixels: int) -> None:
    """What the header says would take more memory or time than its size tells."""
    pixels = image.width * image.height
    if image.format == "WEBP":  # its decoder takes 16 to 20 bytes a pixel, others 8
        max_pixels //= 2
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # libtiff decodes a whole tile, however small the image is
        tags = image.tag_v2  # a length that is missing is the image's
        tile = [
            tags.get(TiffImagePlugin.TILEWIDTH, tags[TiffImagePlugin.IMAGEWIDTH]),
            tags.get(TiffImagePlugin.TILELENGTH, tags[TiffImagePlugin.IMAGELENGTH]),
        ]
        pixels = max(pixels, tile[0] * tile[1]) if all(isinstance(length, int) for length in tile) else max_pixels + 1
    if pixels > max_pixels or max(image.size) > MOST_SIDE_PIXELS:
        raise TooLarge(
            f"The image has {image.width}×{image.height} pixels; at most {max_pixels:,} are accepted, and "
            f"{MOST_SIDE_PIXELS:,} on a side. Make it smaller."
        )
    # Counting goes over the whole file, and holds the interpreter: only where there is room for so many scans.
    may_be_many = image.format in ("JPEG", "MPO") and len(data) // LEAST_SCAN_BYTES * pixels > MOST_SCANNED_PIXELS
    if may_be_many and data.count(b"\xff\xda") * pixels > MOST_SCANNED_PIXELS:
        raise TooLarge("The JPEG has too many scans for its size. Save it as another one.")
    if image.format == "BMP" and image.info.get("compression") in RUN_LENGTHS:
        raise UnsupportedFormat("A BMP with run lengths is not read here. Save it without, or as PNG.")
    if isinstance(image.fp, _Upload):
        image.fp.reads_left = float("inf")


def save_image(pixels: np.ndarray, path: Path) -> None:
    """Write pixels (height, width, 3), uint8 0..255, RGB, to a PNG file, exactly. Raises OSError."""
    Image.fromarray(pixels).save(path, format="PNG")


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    if data.startswith(b"\x89PNG") and data.count(b"iCCP") > MOST_PROFILES:
        raise UndecodableImage("The PNG has too many colour profiles. It may be corrupt; send it again.")
    # Pillow's own limit is for the whole process, and the error comes at twice its value. It is needed besides ours,
    # since some formats fill a frame while they are opened.
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
    try:
        return Image.open(_Upload(data), formats=FORMATS)
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
    except Exception as error:  # a header of a known format that makes no sense
        raise UndecodableImage(
            f"The image's header cannot be read: {error}. It may be corrupt; send it again."
        ) from error


def _to_rgb(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize and convert; in the order that needs the least memory."""
    if image.mode.startswith("I") or image.mode == "F":
        return _to_8_bits(image, size).convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image.close()  # frees its pixels before the resize makes another copy
        small = clear.resize(size, Image.Resampling.BICUBIC)
        return Image.alpha_composite(Image.new("RGBA", size, "white"), small).convert("RGB")
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # which would make a copy
    return _resize(rgb, size)


def _resize(rgb: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Pillow's bicubic resize, by whatever does it fastest."""
    if not resize.IS_FAST:
        return rgb.resize(size, Image.Resampling.BICUBIC)
    # One direction after the other, in the order in which Pillow 13 takes them (found by trying): values are rounded in
    # between, and in the other order some differ by up to 20.
    columns_first = rgb.height - size[1] > max(0, 2 * (rgb.width - size[0]))
    halfway = (rgb.width, size[1]) if columns_first else (size[0], rgb.height)
    for step in (halfway, size):
        smaller = Image.new("RGB", step, None)
        resize.resize(rgb, smaller)
        rgb = smaller
    return rgb


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
