"""Multipart forms as clients send them, and as they should not."""

import threading
import time

import pytest

from serving.errors import NoImage, TooLarge
from serving.web.uploads import pop_only, read_form_files


def form(*parts: tuple[str, bytes], end: bytes = b"--x--\r\n") -> bytes:
    body = b"".join(b"--x\r\n" + head.encode("latin-1") + b"\r\n\r\n" + content + b"\r\n" for head, content in parts)
    return body + end


def read(body: bytes, boundary: str = "x") -> bytes:
    return pop_only(read_form_files(body, boundary, "image", most=16))


IMAGE = 'Content-Disposition: form-data; name="image"; filename="photo.jpg"'
OTHER = 'Content-Disposition: form-data; name="other"'


def test_each_field_of_that_name_is_an_image_and_one_with_text_spoils_no_other() -> None:
    text = 'Content-Disposition: form-data; name="image"'
    body = form((IMAGE, b"one"), (OTHER, b"1"), (text, b"dog.jpg"), (IMAGE, b""), (IMAGE, b"two"))
    first, second, third, fourth = read_form_files(body, "x", "image", most=4)
    assert (first, third, fourth) == (b"one", b"", b"two")
    assert isinstance(second, NoImage)


def test_too_many_images_are_refused_however_many_they_are() -> None:
    assert len(read_form_files(form(*[(IMAGE, b"one")] * 16), "x", "image", most=16)) == 16
    for count in (17, 127, 1000):
        with pytest.raises(TooLarge, match="more than 16 images"):
            read_form_files(form(*[(IMAGE, b"one")] * count), "x", "image", most=16)


def test_the_named_field_is_found_among_others() -> None:
    assert read(form((OTHER, b"1"), (IMAGE, b"\xff\xd8 photo"), (OTHER, b"2"))) == b"\xff\xd8 photo"


@pytest.mark.parametrize(
    "head",
    [
        'filename="Gr\xf6\xdfe.jpg"',  # Latin-1
        'filename="\x83\x5c\x83\x5c.jpg"',  # Shift-JIS, with backslashes as second bytes
        'filename="größe.jpg"'.encode().decode("latin-1"),
        'filename="a\x00b.jpg"',
        'filename="a\nb.jpg"',
        "filename*=UTF-8''Gr%C3%B6%C3%9Fe.jpg",
        'filename="a\\"b\\\\.jpg"',
        'filename="a"b"c.jpg"',
        'filename="a\\"',
        'filename="; name=other;"',
        f'filename="{"x" * 20_000}.jpg"',
        'filename=""',
        "filename=my dog.jpg",
        'filename="a"\r\nContent-Type: image/jpeg; charset=klingon',
        'filename="a"\r\nContent-Type: \xff\xfe',
        'filename="a"\r\nContent-Transfer-Encoding: binary',
        'filename="a"\r\nContent-Transfer-Encoding: base64',  # although it is not
        'filename="a"' + "\r\nX-More: headers" * 20,
        '\r\n filename="\xf6"',
    ],
)
def test_no_file_name_and_no_header_that_nobody_reads_refuses_an_image(head: str) -> None:
    photo = b"\xff\xd8\xff photo"
    assert read(form((f'Content-Disposition: form-data; name="image"; {head}', photo))) == photo
    other = head.replace("\r\n filename", "filename")
    assert read(form((f'Content-Disposition: form-data; name="\xf6"; {other}', b"1"), (IMAGE, photo))) == photo


@pytest.mark.parametrize("head", ["name=image", 'filename="x"; name="image"', 'name = "image" ; x=y', 'name="image"'])
def test_the_fields_name_may_be_written_in_each_way_that_is_one(head: str) -> None:
    assert read(form((f"content-disposition:form-data; {head}", b"\xff\xd8\xff photo"))) == b"\xff\xd8\xff photo"


def refusal(body: bytes, boundary: str = "x") -> str:
    with pytest.raises(NoImage) as refused:
        read(body, boundary)
    return str(refused.value)


def test_a_form_without_the_field_is_told_which_fields_came() -> None:
    other = 'Content-Disposition: form-data; name="{}"; filename="dog.jpg"'
    assert "no file field `image`, but `file`, `größe`. Send" in refusal(
        form(*((other.format(name.encode().decode("latin-1")), b"photo") for name in ("file", "größe")))
    )
    odd = refusal(form((other.format("\x1b[31m\xf6"), b""), (other.format("x" * 100), b"")))
    assert "but `�[31m�`, `" + "x" * 40 + "…`. Send" in odd
    many = refusal(form(*[(other.format(number), b"") for number in range(20)]))
    assert "but `0`, `1`, `2`, `3`, `4`, `5`, `6`, `7`, …. Send" in many
    assert "no file field `image`. Send" in refusal(b"--x--\r\n")


def test_text_in_the_place_of_the_image_is_told_what_is_missing() -> None:
    text = 'Content-Disposition: form-data; name="image"'
    assert "`image` holds the text `dog.jpg`, and no file" in refusal(form((text, b"dog.jpg")))
    assert "curl -F image=@photo.jpg" in refusal(form((text, b"dog.jpg")))
    assert "holds the text `" + "/9j/" * 10 + "…`" in refusal(form((text, b"/9j/" * 10_000)))
    assert read(form((text, b"\xff\xd8\xff photo"))) == b"\xff\xd8\xff photo"  # curl -F 'image=<dog.jpg'
    assert read(form((text, b"\x00\x01"))) == b"\x00\x01"  # it is for the decoder to say what it is not
    assert read(form((text, b""))) == b""


def test_an_image_in_base64_is_told_that_it_is() -> None:
    head = f"{IMAGE}\r\ncontent-transfer-encoding: BASE64"
    assert "is encoded as base64, which is not read" in refusal(form((head, b"/9j/4AAQ")))


def test_a_form_without_a_boundary_is_told_whose_it_is_to_set_it() -> None:
    assert "names no boundary" in refusal(form((IMAGE, b"photo")), "")


@pytest.mark.parametrize("line", ["nonsense", "X\xf6: y", "Content-Length: \xb2", "Content-Length: 3", "\xff"])
def test_no_refusal_holds_an_object_of_python(line: str) -> None:
    says = refusal(form((f"{IMAGE}\r\n{line}", b"photo")))
    assert says.startswith("The form cannot be read: ")
    assert not any(mark in says for mark in ("Error", "b'", "('", "\\x")), says


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


def test_other_requests_go_on_while_a_large_form_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep, reader = time.sleep, threading.current_thread()

    def note(seconds: float) -> None:
        pauses.append(seconds) if threading.current_thread() is reader else sleep(seconds)

    monkeypatch.setattr("time.sleep", note)
    image = b"\r\n--y-" * (7 * 2**19)  # 21 MiB: its beginnings of a boundary fall between the pieces
    assert read_form_files(form((IMAGE, image), (IMAGE, b"small")), "x", "image", most=2) == [image, b"small"]
    assert pauses == [0] * 5
    pauses.clear()
    assert read_form_files(form((IMAGE, b"small")), "x", "image", most=2) == [b"small"]
    assert not pauses
