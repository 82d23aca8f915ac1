"""Tells from a file's bytes what it is, once it could not be read, and says so.

of FORMATS, of a kind that is not read   UnsupportedFormat  This is a lossless JPEG, …
of FORMATS                               UndecodableImage   The JPEG file is truncated or corrupt. …
known otherwise                          UnsupportedFormat  This is a HEIC image, …
anything else                            UnsupportedFormat  This is not an image that can be read here. …
"""

import struct

from PIL import features

from serving.errors import RequestError, UndecodableImage, UnsupportedFormat
from serving.images import metadata, tiff

# Pillow's wheels read AVIF; a Pillow that was built without libavif does not, and then neither does the service.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
HEAD_BYTES = 4096  # in which a file says what it is

SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    *((signature, "TIFF") for signature in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")),
)
BMP_HEADERS, BMP_BITS, BMP_COMPRESSIONS = (12, 40, 52, 56, 64, 108, 124), (1, 4, 8, 16, 24, 32), (0, 1, 2)
BRANDS = (
    (b"avif", "an AVIF image"),
    (b"avis", "an AVIF image"),
    (b"crx ", "a raw photo of a Canon"),
    *((brand, "a HEIC image") for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")),
)
OTHERS = (
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (4, b"JXL ", "a JPEG XL image"),
    (4, b"jP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\xff\xd8\xff\xf7", "a JPEG-LS image"),
    (8, b"CR\2\0", "a raw photo of a Canon"),
    (0, b"FUJIFILMCCD-RAW", "a raw photo of a Fujifilm"),
    (0, b"IIRO", "a raw photo of an Olympus"),
    (0, b"IIU\0", "a raw photo of a Panasonic"),
    (0, b"v/1\1", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance image"),
    (128, b"DICM", "a DICOM file"),
    (0, b"SIMPLE  =", "a FITS file"),
    (0, b"qoif", "a QOI image"),
    *((0, b"P%d\n" % number, "a Netpbm image") for number in range(1, 8)),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"\x1a\x45\xdf\xa3", "a video"),
    (8, b"AVI ", "a video"),
)
ENCODED = (
    (b"/9j/", "in base64"),
    (b"iVBORw0KGgo", "in base64"),
    (b"data:image/", "in base64"),
    (b"\x1f\x8b", "packed by gzip"),
    (b"\x28\xb5\x2f\xfd", "packed by Zstandard"),
)
TEXTS = ((b"<svg", "an SVG drawing"), (b"<!doctype html", "a web page"), (b"<html", "a web page"))
LOSSLESS, HIERARCHICAL = (0xC3, 0xC7, 0xCB, 0xCF), (0xC5, 0xC6, 0xCD, 0xCE)


def refusal(data: bytes) -> RequestError:
    """The error for a file that could not be read, whose bytes are `data`."""
    for start, how in ENCODED:
        if data.startswith(start):
            return UnsupportedFormat(
                f"The file is {how}, which is not undone here. Send its bytes as they were before."
            )
    if other := _other(data[:HEAD_BYTES]):
        return UnsupportedFormat(f"This is {other}, which is not read here. Convert it to JPEG or PNG.")
    name = _format(data)
    if name is None:
        return UnsupportedFormat(f"This is not an image that can be read here. Send one of {', '.join(FORMATS)}.")
    if kind := _kind(name, data):
        return UnsupportedFormat(f"This is {kind}, which is not read here. Convert it to an ordinary JPEG or PNG.")
    return UndecodableImage(
        f"The {name} file is truncated or corrupt. Send it again; if that fails too, save the image anew."
    )


def _format(data: bytes) -> str | None:
    """Which of FORMATS a file is, by its first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and _is_avif(_brands(data)):
        return "AVIF"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") < HEAD_BYTES:  # two letters alone may be a text's
        return "BMP"
    return next((name for signature, name in SIGNATURES if data.startswith(signature)), None)


def _brands(data: bytes) -> bytes:
    """What a file says of its kind that begins with `ftyp`: HEIC, AVIF, videos."""
    return data[8 : max(12, min(64, int.from_bytes(data[:4])))]


def _is_avif(brands: bytes) -> bool:
    return b"avif" in brands or b"avis" in brands


def _other(head: bytes) -> str | None:
    """What a file is that has none of FORMATS, with its article; None if that is not known."""
    if head[4:8] == b"ftyp":
        brands = _brands(head)
        if "AVIF" in FORMATS and _is_avif(brands):
            return None
        return next((name for brand, name in BRANDS if brand in brands), "a video")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<?xml") and b"<svg" in text:
        return "an SVG drawing"
    for start, name in TEXTS:
        if text.startswith(start):
            return name
    return next((name for at, signature, name in OTHERS if head[at : at + len(signature)] == signature), None)


def _kind(name: str, data: bytes) -> str | None:
    """Of which kind a file of FORMATS is, with its article, if this kind is not read; None if it ought to be."""
    if name == "JPEG":
        return _jpeg_kind(data)
    if name == "PNG" and data[12:16] == b"CgBI":
        return "a PNG for iOS alone (CgBI)"
    if name == "BMP":
        return _bmp_kind(data)
    return tiff.unread_kind(data) if name == "TIFF" else None


def _jpeg_kind(data: bytes) -> str | None:
    at = 2
    for _ in range(metadata.MOST_SEGMENTS):
        found = metadata.MARKER.search(data, at)
        if found is None or found[1][0] == metadata.START_OF_SCAN:
            return None
        marker, start = found[1][0], found.end()
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
            body = data[start + 2 : start + 8]
            if len(body) < 6:
                return None
            if marker in LOSSLESS:
                return "a lossless JPEG"
            if marker in HIERARCHICAL:
                return "a hierarchical JPEG"
            if body[0] != 8:
                return f"a JPEG with {body[0]} bits a colour"
            return None if body[5] in (1, 3, 4) else f"a JPEG with {body[5]} colours"
        at = start + max(2, int.from_bytes(data[start : start + 2]))
    return None


def _bmp_kind(data: bytes) -> str | None:
    header = data[14:54]
    if len(header) < 12:
        return None
    (size,) = struct.unpack_from("<I", header)
    if size not in BMP_HEADERS:
        return f"a BMP with a header of {size} bytes"
    if len(header) < 40 and size > 12:
        return None
    bits, compression = (
        struct.unpack_from("<HI", header, 14) if size > 12 else (*struct.unpack_from("<H", header, 10), 0)
    )
    if bits not in BMP_BITS:
        return f"a BMP of {bits} bits a pixel"
    names = {1: "run lengths", 2: "run lengths", 3: "unusual bit masks", 4: "a JPEG inside", 5: "a PNG inside"}
    return f"a BMP with {names.get(compression, f'the compression {compression}')}" if compression else None
