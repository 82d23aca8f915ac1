"""TIFFs: which of their many kinds are read, and how libtiff hands over their samples.

libtiff reads uncompressed TIFFs too: Pillow's own reader makes several Python objects for each strip. libtiff hands the
samples over in the machine's byte order, whatever that of the file; Pillow knows so of unsigned 16 bits alone.
"""

import struct

from PIL import ImageFile, TiffImagePlugin

from serving.errors import TooLarge, UnsupportedFormat
from serving.images import limits

TiffImagePlugin.READ_LIBTIFF = True

# A raw mode of the file's byte order -> the same in the machine's.
NATIVE = {
    "I;16S": "I;16NS",
    "I;16BS": "I;16NS",
    "I;32S": "I;32NS",
    "I;32BS": "I;32NS",
    "F;32F": "F;32NF",
    "F;32BF": "F;32NF",
}
COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000)  # that Pillow's libtiff unpacks
# What a kind of TIFF that is not read is called.
COMPRESSION_NAMES = {
    1: "no",
    2: "CCITT",
    3: "fax",
    4: "fax",
    5: "LZW",
    6: "old JPEG",
    7: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
}
COLOUR_NAMES = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
SAMPLE_NAMES = {1: "unsigned", 2: "signed", 3: "floating-point"}
BIG = 43  # in the place of 42: a BigTIFF
TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # of a value; else 1
SEPARATE, MOST_SEPARATE = 2, 4  # a planar configuration; samples that Pillow unpacks in it
# What Pillow says to a layout that is not in its table.
UNKNOWN_KIND = ("unknown pixel mode", "unknown data organization", "Invalid value for samples per pixel")


def check_tags(data: bytes) -> None:
    """Raises TooLarge for the bytes of a TIFF whose first directory names more bytes of tags than the file has.

    Pillow and libtiff copy each tag, so that tags which share their bytes would take any amount of memory.
    """
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0"):
        return
    order, is_big = ("<" if data[:2] == b"II" else ">"), data[2] == BIG or data[3] == BIG
    offset, count, entry = ("Q", "Q", "HHQ8x") if is_big else ("I", "H", "HHI4x")
    try:
        (at,) = struct.unpack_from(order + offset, data, 8 if is_big else 4)
        (entries,) = struct.unpack_from(order + count, data, at)
        first, size = at + struct.calcsize(order + count), struct.calcsize(order + entry)
        directory = data[first : first + entries * size]
        tags = struct.iter_unpack(order + entry, directory[: len(directory) // size * size])
        total = sum(TYPE_BYTES.get(kind, 1) * values for _, kind, values in tags)
    except (struct.error, OverflowError):
        return  # the directory lies beyond the end: Pillow notices
    if total > len(data):
        raise TooLarge("The tags of the TIFF name more bytes than the file has. It may be corrupt; save it anew.")


def set_up(image: ImageFile.ImageFile) -> None:
    """Have an opened TIFF decoded right; any other image stays as it is.

    Raises:
        UnsupportedFormat: the TIFF is of a kind that would not be decoded, or wrongly.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    is_separate = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == SEPARATE
    extra = tags.get(TiffImagePlugin.EXTRASAMPLES, ())
    is_mixed_up = is_separate and (
        image.mode in ("LAB", "LA", "La", "PA")
        or (image.mode == "RGBA" and not extra)
        or (tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) > MOST_SEPARATE and max(extra, default=0) > 0)
    )
    if is_mixed_up or tags.get(TiffImagePlugin.COMPRESSION, 1) not in COMPRESSIONS:
        raise UnsupportedFormat(
            f"This is {_named(tags)}, which is not read here. Convert it to an ordinary JPEG or PNG."
        )
    if not isinstance(image.info.get("xmp"), bytes):  # Pillow looks into it for how the picture is turned
        image.info.pop("xmp", None)
    (tile,) = image.tile
    raw_mode, *others = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    image.tile = [tile._replace(args=(NATIVE.get(str(raw_mode), raw_mode), *others))]


def unread_kind(data: bytes) -> str | None:
    """Of which kind the bytes of a TIFF are, with its article, if Pillow does not know it; None if they are broken."""
    if data.startswith(b"MM\0+"):
        return "a BigTIFF of big-endian byte order"
    file = limits.Upload(data)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if data[2] == 43 else 8))
        file.seek(tags.next)
        tags.load(file)
        if tags.get(TiffImagePlugin.COMPRESSION, 1) not in COMPRESSIONS:
            return _named(tags)
        TiffImagePlugin.TiffImageFile(limits.Upload(data))
    except SyntaxError as error:
        return _named(tags) if str(error) in UNKNOWN_KIND else None
    except Exception:  # whatever else Pillow raises for a broken directory
        return None
    return None


def _named(tags: TiffImagePlugin.ImageFileDirectory_v2) -> str:
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    colour = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)
    sample_format = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]
    compression = tags.get(TiffImagePlugin.COMPRESSION, 1)
    parts = [
        f"{len(bits)} × {bits[0]} bits" if len(bits) > 1 else f"{bits[0]} bits",
        SAMPLE_NAMES.get(sample_format, f"of the sample format {sample_format}"),
        COLOUR_NAMES.get(colour, f"of the photometric interpretation {colour}"),
        f"{COMPRESSION_NAMES.get(compression, compression)} compression",
        "big-endian" if tags.prefix == b"MM" else "little-endian",
        *(["its colours apart"] if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == SEPARATE else []),
    ]
    return f"a TIFF of {', '.join(parts)}"
