"""A request -> the bytes of its images.

Flask's own parser of forms would take five times as long for a 42 kB photo (0.43 against 0.09 ms).
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import multipart
from flask import Request

from serving.errors import NoImage, RequestError, TooLarge, UndecodableImage, UnsupportedFormat
from serving.web.request_notes import notes_in

HOW_TO_SEND = (
    "Send one as multipart field `image` (curl -F image=@photo.jpg), or as the body with Content-Type: image/…."
)
# A body may have this much besides its images: boundaries and headers of a form, members of JSON.
OVERHEAD_BYTES = 64 * 1024
URL_ENCODED = "application/x-www-form-urlencoded"
PIECE_BYTES = (
    4 * 1024 * 1024
)  # 64 MiB at once hold up the event loop for 0.3 s, and for 1 s if they are made to be slow
MOST_PARTS, MOST_HEADERS_OF_A_PART = 128, 64
# How image files begin: JPEG, PNG, GIF, WebP, BMP, TIFF. A body that begins so is an image, whatever its type says.
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II", b"MM")
BEGINNING_BYTES = 160  # as many as are quoted of a text
MOST_QUOTED_CHARACTERS, MOST_QUOTED_NAMES = 40, 8
MOST_TEXT_BYTES = 4 * MOST_QUOTED_CHARACTERS
NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Limits:
    """What one request may bring."""

    image_bytes: int  # of one image
    images: int
    request_bytes: int  # of all images together


def read_images(request: Request, limits: Limits) -> list[bytes | RequestError]:
    """The bytes of a request's images, at least one; in the place of an image that is empty or too large, the error.

    Their content is not checked.

    Raises:
        NoImage: the request brings no image, or its body is broken.
        TooLarge: the request has too many images, or too many bytes.
        UnsupportedFormat: the body is neither a form nor an image.
        Unavailable: the process holds too many bytes of uploads already.
    """
    try:
        images = _read_body(request, limits)
    except OSError as error:
        raise NoImage(f"The body cannot be read: {error}. Send it again.") from error
    return [image if isinstance(image, RequestError) else _checked(image, limits.image_bytes) for image in images]


def pop_each(images: list[bytes | RequestError]) -> Iterator[bytes | RequestError]:
    """Hand the images of a list out, in their order, and forget them: each is free as soon as it is decoded."""
    while images:
        yield images.pop(0)


def pop_only(images: list[bytes | RequestError]) -> bytes:
    """Hand out the one image of a list, and forget it. Raises the error that stands in its place."""
    (image,) = pop_each(images)
    if isinstance(image, RequestError):
        raise image
    return image


def read_all(request: Request, most_bytes: int) -> bytes:
    """The body, `most_bytes` of images and OVERHEAD_BYTES at most. Raises TooLarge, Unavailable, OSError.

    It is read from the server itself: Flask's stream would read it in pieces and copy them twice.
    """
    body: bytes = b""
    most_read = most_bytes + OVERHEAD_BYTES
    if (request.content_length or 0) <= most_read:
        body = request.environ["wsgi.input"].read(most_read + 1)
    notes_in(request.environ).body_bytes += len(body)
    if (request.content_length or len(body)) > most_read:
        raise TooLarge(f"The upload is too large: at most {most_bytes:,} bytes are accepted.")
    return body


@contextlib.contextmanager
def hint_of_curl(request: Request) -> Iterator[None]:
    """Tell a client whose image cannot be decoded that `curl -d` may have spoilt it. Raises what the block raises."""
    try:
        yield
    except UndecodableImage as error:
        if request.mimetype != URL_ENCODED:  # the type that curl names for -d and --data-binary
            raise
        raise UndecodableImage(
            f"{error} Was it sent by curl -d, which leaves out line ends? Use curl -F image=@photo.jpg."
        ) from error


def _checked(image: bytes, most_bytes: int) -> bytes | RequestError:
    if not image:
        return NoImage(f"The image is empty (0 bytes). {HOW_TO_SEND}")
    if len(image) > most_bytes:
        return TooLarge(f"The image has {len(image):,} bytes; at most {most_bytes:,} are accepted. Make it smaller.")
    return image


def _read_body(request: Request, limits: Limits) -> list[bytes | RequestError]:
    """The multipart fields `image`, or the raw body. Raises NoImage, TooLarge, UnsupportedFormat, OSError."""
    if request.mimetype == "multipart/form-data":
        boundary = request.mimetype_params.get("boundary", "")
        form = read_all(request, limits.request_bytes)
        return read_form_files(form, boundary, "image", most=limits.images)
    beginning = b""
    if not request.mimetype.startswith("image/") and request.mimetype != "application/octet-stream":
        beginning = request.environ["wsgi.input"].read(BEGINNING_BYTES)
        notes_in(request.environ).body_bytes = len(beginning)
        _check_beginning(beginning, request.mimetype)
    return [beginning + read_all(request, limits.image_bytes)]


def _check_beginning(beginning: bytes, mimetype: str) -> None:
    """Raises NoImage, UnsupportedFormat unless a body begins as an image file does."""
    if not beginning:
        raise NoImage(f"There is no image in the request. {HOW_TO_SEND}")
    if not _begins_as_image(beginning):
        text = quotable(beginning.decode("latin-1"))
        is_text = len(beginning) < BEGINNING_BYTES and NO_CHARACTER not in text
        if mimetype == URL_ENCODED and is_text and "=" not in text:  # else fields of a form
            says = f"The body is the text `{text}`. If that is the name of a file, put an @ before it."
            raise NoImage(f"{says} {HOW_TO_SEND}")
        of_type = f"of type {quotable(mimetype)}" if mimetype else "without a Content-Type"
        raise UnsupportedFormat(f"A body {of_type} is read if it is an image file; this one is none. {HOW_TO_SEND}")


def _begins_as_image(data: bytes) -> bool:
    # AVIF and HEIC begin with a box `ftyp`: the decoder tells them apart, and refuses HEIC.
    return data.startswith(BEGINNINGS) or data[4:8] == b"ftyp"


def read_form_files(form: bytes, boundary: str, field: str, *, most: int) -> list[bytes | RequestError]:
    """The bytes of the fields of that name in a form; NoImage in the place of one that has text instead of a file.

    Args:
        form: a multipart body.
        boundary: what separates its parts, as the request's Content-Type tells.
        field: the fields' name.
        most: fields of that name.

    Raises:
        NoImage: the form is not multipart, is cut off, has more than MOST_PARTS parts, or lacks the field.
        TooLarge: the form has more than `most` of these fields.
    """
    if not boundary:
        raise NoImage(
            "The form's Content-Type names no boundary. Leave this header to the program that makes the form: with "
            "curl -F, requests or fetch do not set it yourself."
        )
    parts: list[multipart.MultipartSegment] = []
    found: list[bytes | RequestError] = []
    pieces: list[bytes] = []
    try:
        with _parser(boundary) as parser:
            for event in _events(parser, form):
                if isinstance(event, multipart.MultipartSegment):
                    parts.append(event)
                    pieces = []
                elif event is not None:
                    pieces.append(event)
                elif parts[-1].name == field:  # the end of a part
                    found.append(_file_of(parts[-1], b"".join(pieces)))
                    if len(found) > most:
                        raise TooLarge(f"The request has more than {most} images. Send them in several requests.")
    except multipart.MultipartError as error:
        raise NoImage(f"The form cannot be read: {error}. Was it cut off, or its Content-Type changed?") from error
    if not found:
        raise NoImage(f"The form has no file field `{field}`{_instead(parts)}. {HOW_TO_SEND}")
    return found


def _events(parser: multipart.PushMultipartParser, form: bytes) -> Iterator[multipart.MultipartSegment | bytes | None]:
    """The parts of a form as the parser finds them. After each piece of a large form other requests go on."""
    for start in range(0, len(form), PIECE_BYTES):
        if start:
            time.sleep(0)
        yield from parser.parse(form[start : start + PIECE_BYTES])


def _parser(boundary: str) -> multipart.PushMultipartParser:
    return multipart.PushMultipartParser(
        boundary.encode("latin-1", "replace"),
        max_segment_count=MOST_PARTS,
        # Nobody here reads a file's name: it may be in any encoding (Latin-1 has a character for each byte), and long.
        header_charset="latin-1",
        max_header_size=OVERHEAD_BYTES,
        max_header_count=MOST_HEADERS_OF_A_PART,
    )


def _instead(parts: Sequence[multipart.MultipartSegment]) -> str:
    """Which fields a form has, as the end of a sentence."""
    names = [f"`{quotable(part.name)}`" for part in parts[:MOST_QUOTED_NAMES]]
    return f", but {', '.join(names)}{', …' if len(parts) > len(names) else ''}" if names else ""


def _file_of(part: multipart.MultipartSegment, content: bytes) -> bytes | NoImage:
    """The content of a part of a form; NoImage if it is text in the place of an image."""
    if not content or _begins_as_image(content):
        return content
    encoding = part.header("Content-Transfer-Encoding", "").strip().lower()
    if encoding in ("base64", "quoted-printable"):
        return NoImage(
            f"The image is encoded as {encoding}, which is not read. Send the bytes of the file as they are."
        )
    beginning = quotable(content[:MOST_TEXT_BYTES].decode("latin-1"))
    if part.filename is None and NO_CHARACTER not in beginning:
        return NoImage(
            f"The field `{part.name}` holds the text `{beginning}`, and no file. With curl, put an @ before the file's "
            f"name: curl -F {part.name}=@photo.jpg"
        )
    return content


def quotable(text: str) -> str:
    """What a client sent, read as Latin-1, as a sentence may quote it: printable, and short."""
    text = text.encode("latin-1", "replace").decode("utf-8", "replace")
    shown = "".join(
        character if character.isprintable() else NO_CHARACTER for character in text[:MOST_QUOTED_CHARACTERS]
    )
    return shown + ("…" if len(text) > MOST_QUOTED_CHARACTERS else "")
