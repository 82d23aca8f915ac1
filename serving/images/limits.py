"""Refuses images that would take far more memory or time than their size tells, before anything is decoded.

    attack                                        limit
    WebP of 16383×3051 in 32 bytes                half of `max_pixels`: its decoder takes 16 to 20 bytes a pixel, not 8
    AVIF of 7071×7071 in 14 kB                    half of `max_pixels`: its decoder takes up to 12 bytes a pixel
    AVIF of 16×16 with a frame of 14000×14000     its frames too: libavif decodes before it compares (avif.py)
    PNG of 1×50,000,000 pixels                    MOST_SIDE_PIXELS: resizing takes 32 bytes for each pixel of a side
    TIFF of 16×16 with a tile of 40000×40000      `max_pixels` for a tile too: libtiff decodes whole tiles
    TIFF of 300 tags over the same 16 MB          tiff.check_tags: Pillow and libtiff copy each
    JPEG of 200,000 empty scans                   MOST_SCANNED_PIXELS: each scan goes over all pixels
    header of many parts, of any format           MOST_HEADER_READS: each part costs Pillow a few reads, in Python
    JPEG of metadata segments, GIF of comments    metadata.MOST_SEGMENTS, MOST_BLOCKS: left out as far as these
    PNG of texts, or of colour profiles           left out by metadata.py: each unpacks to a megabyte
    PNG of small chunks                           metadata.MOST_CHUNKS: each costs Pillow a few reads, in Python
    BMP with run lengths                          not read: Pillow does so in Python, byte by byte

docs/decisions/010 and 030 have what each of them cost.
"""

import io

from PIL import ImageFile, TiffImagePlugin

from serving.errors import TooLarge, UnsupportedFormat
from serving.images import avif

MOST_HEADER_READS = 5_000  # a photo takes dozens
MOST_SIDE_PIXELS = 65_535  # as in JPEG
MOST_SCANNED_PIXELS = 5_000_000_000  # a progressive JPEG has about ten scans
LEAST_SCAN_BYTES = 10  # a scan's marker and header, for one component
START_OF_SCAN = b"\xff\xda"
RUN_LENGTHS = (1, 2)  # compressions of BMP


class Upload(io.BytesIO):
    """The bytes of an upload, of which a header may read MOST_HEADER_READS parts."""

    reads_left: float = MOST_HEADER_READS

    def read(self, size: int | None = -1) -> bytes:
        """At most `size` bytes, all with -1. Raises OSError when the header has too many parts."""
        self.reads_left -= 1
        if self.reads_left < 0:
            raise OSError("it has too many parts")
        return super().read(size)

    def end_of_header(self) -> None:
        """Allow any number of reads from here on."""
        self.reads_left = float("inf")


def check_header(image: ImageFile.ImageFile, data: bytes, max_pixels: int) -> None:
    """Check an opened image, whose bytes are `data`, against `max_pixels` (width × height) and the limits above.

    Raises:
        TooLarge: too many pixels, or too many scans.
        UnsupportedFormat: a BMP with run lengths.
    """
    if image.format in ("WEBP", "AVIF"):
        max_pixels //= 2
    pixels = max(image.width * image.height, _tile_pixels(image, otherwise=max_pixels + 1))
    if pixels > max_pixels or max(image.size) > MOST_SIDE_PIXELS:
        raise TooLarge(
            f"The image has {image.width}×{image.height} pixels; at most {max_pixels:,} are accepted, and "
            f"{MOST_SIDE_PIXELS:,} on a side. Make it smaller."
        )
    if image.format == "AVIF" and avif.most_frame_pixels(data) > max_pixels:
        raise TooLarge("The AVIF has frames that are larger than it says. Save it anew.")
    # Counting goes over the whole file and holds the interpreter, so it is done only where so many scans may fit.
    may_be_many = image.format in ("JPEG", "MPO") and len(data) // LEAST_SCAN_BYTES * pixels > MOST_SCANNED_PIXELS
    if may_be_many and data.count(START_OF_SCAN) * pixels > MOST_SCANNED_PIXELS:
        raise TooLarge("The JPEG has too many scans for its size. Save it as another one.")
    if image.format == "BMP" and image.info.get("compression") in RUN_LENGTHS:
        raise UnsupportedFormat("A BMP with run lengths is not read here. Save it without, or as PNG.")


def _tile_pixels(image: ImageFile.ImageFile, otherwise: int) -> int:
    """The pixels of one tile of a TIFF, or `otherwise` if its header does not tell; of any other image 0."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    tags = image.tag_v2  # a tile without a width or a height has the image's
    width = tags.get(TiffImagePlugin.TILEWIDTH, tags[TiffImagePlugin.IMAGEWIDTH])
    height = tags.get(TiffImagePlugin.TILELENGTH, tags[TiffImagePlugin.IMAGELENGTH])
    return width * height if isinstance(width, int) and isinstance(height, int) else otherwise
