"""Multipart forms as clients send them, and as they should not."""

import pytest

from serving.errors import NoImage
from serving.web.uploads import read_form_file


def form(*parts: tuple[str, bytes], end: bytes = b"--x--\r\n") -> bytes:
    body = b"".join(b"--x\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts)
    return body + end


def read(body: bytes, boundary: str = "x") -> bytes | None:
    return read_form_file(body, boundary, "image")


IMAGE = 'Content-Disposition: form-data; name="image"; filename="photo.jpg"'
OTHER = 'Content-Disposition: form-data; name="other"'


def test_the_named_field_is_found_among_others() -> None:
    assert read(form((OTHER, b"1"), (IMAGE, b"\xff\xd8 photo"), (OTHER, b"2"))) == b"\xff\xd8 photo"
    assert read(form((OTHER, b"1"))) is None


def test_bytes_that_look_like_a_boundary_stay_in_the_image() -> None:
    for content in (b"--x", b"\r\n--y\r\n", b"\r\n--", b"\r\n\r\n", b"\x00" * 1000):
        assert read(form((IMAGE, content))) == content


def test_a_large_image_comes_whole() -> None:
    content = bytes(range(256)) * 380
    assert read(form((IMAGE, content))) == content


@pytest.mark.parametrize(
    ("body", "boundary"),
    [
        (form((IMAGE, b"photo"), end=b""), "x"),  # cut off
        (form((IMAGE, b"photo")), "other"),
        (form((IMAGE, b"photo")), ""),
        (form(("Content-Disposition: nonsense", b"photo")), "x"),
        (form((IMAGE + "\r\n" + "X: y\r\n" * 100, b"photo")), "x"),
        (form(*[(OTHER, b"")] * 1000), "x"),
        (b"\x00" * 1000, "x"),
        (b"", "x"),
    ],
)
def test_what_is_no_form_is_told_so(body: bytes, boundary: str) -> None:
    with pytest.raises(NoImage, match="form"):
        read(body, boundary)
