"""Leaves out of a file what its picture does not need: texts, colour profiles, comments, the index of further pictures.

    PNG        always: Pillow unpacks each text and profile, and refuses the picture for one that is long or broken
    JPEG, GIF  only once Pillow could not read the header: in an ordinary photo nothing is looked for
    AVIF       as JPEG; its EXIF alone, which says nothing of the picture: irot and imir turn it

What may say how the picture is turned stays: the first EXIF and the first XMP.
"""

import re
import zlib

from serving.errors import TooLarge

PNG, JPEG, GIF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"GIF8"
MOST_CHUNKS = 20_000  # of a PNG; with the usual 8 kB in each it has 160 MB
MOST_SEGMENTS = 10_000  # of a JPEG's header; 64 kB fit into each
MOST_BLOCKS = 100_000  # of a GIF's texts; 255 bytes fit into each
MOST_TEXT_BYTES = 1 << 20  # packed and unpacked; Pillow refuses a PNG for a longer one

KIND = re.compile(rb"\w{4}")  # of a chunk, as Pillow accepts it
PNG_NEEDS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"CgBI"))  # CgBI says that it is no ordinary PNG
PNG_TURNS = {b"eXIf": b"", b"iTXt": b"XML:com.adobe.xmp\0\0", b"zTXt": b"Raw profile type exif\0\0"}
JPEG_COLOURS = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}  # how a segment begins, its least bytes
JPEG_TURNS = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")
MARKER = re.compile(rb"\xff([\x01-\xfe])")  # of a run of FF the last one
START_OF_SCAN, COMMENT, APPLICATION = 0xDA, 0xFE, range(0xE0, 0xF0)
AVIF_EXIF = re.compile(rb"(infe[\2\3].{7,9})Exif", re.DOTALL)  # an item, by its id and its type
GIF_EXTENSION, GIF_CONTROL = b"!", b"\xf9"


def without_png_metadata(data: bytes) -> bytes:
    """The bytes of a PNG without what its picture does not need; of any other file all.

    Raises:
        TooLarge: the PNG has more than MOST_CHUNKS chunks.
    """
    if not data.startswith(PNG):
        return data
    kept: list[bytes] = []
    start, at, turns = 0, len(PNG), dict(PNG_TURNS)
    for _ in range(MOST_CHUNKS):
        kind = data[at + 4 : at + 8]
        if not KIND.fullmatch(kind):  # the file ends here, or is none any more: Pillow notices
            return b"".join([*kept, data[start:]])
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if kind == b"IEND":
            return b"".join([*kept, data[start:end]])
        is_empty = kind == b"IDAT" and end == at + 12  # Pillow takes it for the end of the pixels
        if is_empty or (kind not in PNG_NEEDS and not _is_sound_turn(data[at + 4 : end], turns)):
            kept.append(data[start:at])
            start = end
        at = end
    raise TooLarge(f"The PNG has more than {MOST_CHUNKS:,} chunks. Save it anew.")


def without_metadata(data: bytes) -> bytes:
    """The bytes of a JPEG, a GIF or an AVIF without what its picture does not need; of any other file all.

    Raises:
        TooLarge: the file has more than MOST_SEGMENTS segments or MOST_BLOCKS blocks before its picture.
    """
    if data.startswith(JPEG):
        return _jpeg(data)
    if data[4:8] == b"ftyp":
        return AVIF_EXIF.sub(rb"\1free", data)  # an item of a type that nobody reads
    return _gif(data) if data.startswith(GIF) else data


def _is_sound_turn(chunk: bytes, turns: dict[bytes, bytes]) -> bool:
    """Whether Pillow can read in a chunk (its kind, body and sum) how the picture is turned. Takes it off `turns`."""
    kind, body = chunk[:4], chunk[4:-4]
    start = turns.get(kind)
    if start is None or not body.startswith(start):
        return False
    del turns[kind]
    if len(body) > MOST_TEXT_BYTES or zlib.crc32(chunk[:-4]) != int.from_bytes(chunk[-4:]):
        return False
    return kind != b"zTXt" or _unpacks(body[len(start) :])


def _unpacks(text: bytes) -> bool:
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(text, MOST_TEXT_BYTES)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail


def _jpeg(data: bytes) -> bytes:
    kept, at, turns = [JPEG], len(JPEG), list(JPEG_TURNS)
    for _ in range(MOST_SEGMENTS):
        found = MARKER.search(data, at)
        if found is None:
            return b"".join(kept)
        marker, start = found[1][0], found.end()
        if marker == START_OF_SCAN:
            return b"".join([*kept, data[start - 2 :]])
        at = start + max(2, int.from_bytes(data[start : start + 2]))
        body = data[start + 2 : at]
        if marker in APPLICATION or marker == COMMENT:
            begins, least = JPEG_COLOURS.get(marker, (b"", 0))
            is_needed = bool(begins) and body.startswith(begins) and len(body) >= least
            for turn in [turn for turn in turns if marker == 0xE1 and body.startswith(turn)]:
                turns.remove(turn)
                is_needed = True
            if not is_needed:
                continue
        kept.append(b"\xff" + data[start - 1 : at])
    raise TooLarge(f"The JPEG has more than {MOST_SEGMENTS:,} segments before its picture. Save it anew.")


def _gif(data: bytes) -> bytes:
    colours = data[10] if len(data) > 10 else 0
    at = 13 + (3 << (colours & 7) + 1 if colours & 0x80 else 0)
    kept, blocks = [data[:at]], 0
    while data[at : at + 1] == GIF_EXTENSION:
        start, at, length = at, at + 2, 1
        while length and at < len(data):  # the last block has the length 0
            length = data[at]
            at += 1 + length
            blocks += 1
            if blocks > MOST_BLOCKS:
                raise TooLarge(f"The GIF has more than {MOST_BLOCKS:,} blocks before its picture. Save it anew.")
        if data[start + 1 : start + 2] == GIF_CONTROL:
            kept.append(data[start:at])
    return b"".join([*kept, data[at:]])
