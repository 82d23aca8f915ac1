"""Requests as real clients and proxies send them, odd but harmless, as raw bytes to a real web server."""

import json
import socket
from collections.abc import Iterator

import pytest
from conftest import (
    PREDICTIONS,
    Answering,
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    is_up,
    output,
    some_photo,
    wait_for,
)

PHOTO = as_bytes(some_photo(), "JPEG")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a web server whose queue is answered; one for all tests here, as none leaves anything behind."""
    own = RedisServer()
    processes = Processes({"REDIS_URL": own.url, "API_KEY": "schlüssel", "FORWARDED_ALLOW_IPS": "*"})
    number = free_port()
    processes.start("run_web_server.py", WEB_PORT=str(number), WEB_WORKERS="1", REQUEST_TIMEOUT_SECONDS="10")
    wait_for(lambda: is_up(f"http://127.0.0.1:{number}/healthz"))
    stand_in = Answering(own.url)
    yield number
    stand_in.stop()
    processes.end()
    own.remove()


def ask(port: int, request: bytes) -> tuple[int, bytes]:
    """The status and the body of the answer to a request that closes its connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body


def get(*headers: bytes) -> bytes:
    lines = [b"GET /healthz HTTP/1.1", b"Host: x", b"Connection: close", *headers]
    return b"\r\n".join([*lines, b"", b""])


def post(body: bytes, *headers: bytes, key: bytes = b"schl\xc3\xbcssel") -> bytes:
    lines = [b"POST /predict HTTP/1.1", b"Host: x", b"Connection: close", *headers]
    if not any(line.lower().startswith(b"transfer-encoding") for line in headers):
        lines.append(b"Content-Length: %d" % len(body))
    if not any(line.startswith(b"Authorization") for line in headers):
        lines.append(b"Authorization: Bearer " + key)
    return b"\r\n".join([*lines, b"", body])


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


def error_of(body: bytes) -> str:
    """The sentence of a refusal; it holds no object of Python."""
    says: str = json.loads(body)["error"]
    assert not any(mark in says for mark in ("Error", "b'", 'b"', "('", "\\x", "\\r", "None")), says
    return says


JPEG = b"Content-Type: image/jpeg"
FORM = b"Content-Type: multipart/form-data; boundary=x"
CHUNKS = b"Transfer-Encoding: chunked"
URLENCODED = b"Content-Type: application/x-www-form-urlencoded"


def form(disposition: bytes, content: bytes) -> bytes:
    return b"--x\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + content + b"\r\n--x--\r\n"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (form(b'name="image"; filename="Gr\xf6\xdfe.jpg"', PHOTO), [FORM]),
        (form(b'name="image"', PHOTO), [FORM + b"; charset=klingon"]),
        (PHOTO, [JPEG + b"; charset=utf-16"]),
        (PHOTO, [b"Content-Type: image/jpeg, image/jpeg"]),
        (PHOTO, [JPEG, b"Content-Encoding: klingon"]),
        (PHOTO, [JPEG, b"Expect: 100-continue"]),
        (PHOTO, []),  # curl -H 'Content-Type:' --data-binary @dog.jpg
        (PHOTO, [b"Content-Type: "]),
        (PHOTO, [b"Content-Type: \xff\xfe"]),
        (PHOTO, [b"Content-Type: binary/octet-stream"]),
        (PHOTO, [URLENCODED]),  # curl --data-binary @dog.jpg
        (chunked(PHOTO), [CHUNKS]),
        (chunked(PHOTO), [CHUNKS, URLENCODED]),
        (chunked(PHOTO), [CHUNKS, JPEG]),
        (chunked(form(b'name="image"', PHOTO)), [CHUNKS, FORM]),
    ],
)
def test_an_image_is_read_whatever_else_its_request_says(port: int, body: bytes, headers: list[bytes]) -> None:
    status, answer = ask(port, post(body, *headers))
    assert (status, json.loads(answer)) == (200, {"success": True, "predictions": PREDICTIONS})


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_body_of_each_format_that_is_read_needs_no_type(port: int, kind: str) -> None:
    for headers in [URLENCODED], [CHUNKS]:
        body = as_bytes(some_photo(), kind)
        assert ask(port, post(chunked(body) if CHUNKS in headers else body, *headers))[0] == 200


@pytest.mark.parametrize(
    ("status", "says", "body", "headers"),
    [
        (400, "There is no image in the request.", b"", []),
        (400, "There is no image in the request.", chunked(b""), [CHUNKS]),
        (400, "The image is empty (0 bytes).", chunked(b""), [CHUNKS, JPEG]),
        (415, "A body without a Content-Type is read if it is an image file; this one is none.", b"hello", []),
        (415, "A body without a Content-Type is read if", chunked(b"hello"), [CHUNKS]),
        (400, "The body is the text `dog.jpg`. If that is the name of a file, put", b"dog.jpg", [URLENCODED]),
        (415, "A body of type application/x-www-form-urlencoded is read if", chunked(b"a=b"), [CHUNKS, URLENCODED]),
        (422, "Was it sent by curl -d, which leaves out line ends?", b"\xff\xd8\xff\xe0" + b"x" * 900, [URLENCODED]),
        (415, "A body of type a'c\"d�� is", b"hello", [b"Content-Type: a'c\"d\xff\xfe"]),
        (415, "curl -F image=@photo.jpg", b'{"image": "/9j/4AAQ"}', [b"Content-Type: application/json"]),
        (415, "This is a HEIC image, which is not read here.", b"\x00\x00\x00\x18ftypheic", []),
        (413, "at most 16,777,216 bytes", b"\xff\xd8\xff" + b"x" * 17_000_000, [URLENCODED]),
        (413, "at most 16,777,216 bytes", chunked(b"\xff\xd8\xff" + b"x" * 17_000_000), [CHUNKS]),
        (400, "The body cannot be read: its chunks are malformed.", b"zz\r\nabc\r\n0\r\n\r\n", [CHUNKS, JPEG]),
        (400, "The body cannot be read: its chunks are malformed.", b"3\r\nabcdef\r\n0\r\n\r\n", [CHUNKS, JPEG]),
        (400, "`image` holds the text `dog.jpg`, and no file", form(b'name="image"', b"dog.jpg"), [FORM]),
        (400, "The form has no file field `image`, but `file`.", form(b'name="file"', PHOTO), [FORM]),
        (400, "names no boundary", form(b'name="image"', PHOTO), [b"Content-Type: multipart/form-data"]),
        (400, "The form cannot be read", form(b'name="image"\r\n\xff', PHOTO), [FORM]),
    ],
)
def test_a_refusal_says_what_is_wrong_and_not_how_python_says_it(
    port: int, status: int, says: str, body: bytes, headers: list[bytes]
) -> None:
    answer = ask(port, post(body, *headers))
    assert says in error_of(answer[1])
    assert answer[0] == status


def test_a_chunked_body_that_breaks_off_is_told_so(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(post(b"ff\r\nabc", CHUNKS, JPEG))
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"HTTP/1.1 400" in answer
    assert "it broke off before its end" in error_of(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(
    "key", [b"wrong", b"\xff\xfe", b"schl\xfcssel", "schlüssel ".encode() * 2, b"\xf0\x9f\x94\x91"]
)
def test_a_key_of_any_bytes_is_compared_and_a_wrong_one_is_a_401(port: int, key: bytes) -> None:
    status, body = ask(port, post(PHOTO, JPEG, key=key))
    assert (status, "Authorization: Bearer" in error_of(body)) == (401, True)


# The headers that proxies and clients send, and what some servers read in them.
IGNORED = {
    "X-Forwarded-Proto": ["https", "http", "wss", "https, http", ""],
    "X-Forwarded-Protocol": ["ssl", "https"],
    "X-Forwarded-Ssl": ["on", "off"],
    "Front-End-Https": ["on"],
    "X-Forwarded-For": ["192.0.2.1", "nonsense"],
    "X-Forwarded-Host": ["other.example", "a b"],
    "X-Forwarded-Port": ["443", "x"],
    "X-Forwarded-Prefix": ["/x"],
    "Forwarded": ["for=192.0.2.1;proto=https", "\xff"],
    "Via": ["1.1 proxy"],
    "SCRIPT_NAME": ["/x", "/healthz", "/predict"],
    "Script-Name": ["/x"],
    "PATH_INFO": ["/nowhere"],
    "REQUEST_METHOD": ["DELETE"],
    "CONTENT_LENGTH": ["3"],
    "CONTENT_TYPE": ["text/plain"],
    "HTTP_HOST": ["other.example"],
    "REMOTE_USER": ["root"],
    "X-Original-URL": ["/nowhere"],
    "X-Rewrite-URL": ["/nowhere"],
    "X-HTTP-Method-Override": ["DELETE"],
    "X-Method-Override": ["PUT"],
    "Upgrade": ["websocket", "h2c", "TLS/1.0"],
    "Connection": ["upgrade", "keep-alive, Upgrade", "TE", "\xff"],
    "TE": ["trailers"],
    "Max-Forwards": ["0"],
    "Cookie": ["a=\xff; b", "=;;", "x" * 6000],
    "Accept": ["\xff", "text/html;q=x", ""],
    "Accept-Encoding": ["\xff;q=9"],
    "Accept-Language": ["*;q=\xb2"],
    "Range": ["bytes=0-0", "bytes=9-1"],
    "If-Match": ['"x"'],
    "If-None-Match": ["*"],
    "If-Modified-Since": ["nonsense", "Sun, 06 Nov 2094 08:49:37 GMT"],
    "If-Unmodified-Since": ["Sun, 06 Nov 1994 08:49:37 GMT"],
    "Content-Encoding": ["gzip"],
    "Expect": ["100-continue"],
    "Origin": ["null", "\xff"],
    "Referer": ["\xff"],
    "User-Agent": ["\xff\xfe", ""],
    "Date": ["nonsense"],
    "a!#$%&'*+.^`|~": ["x"],
}
TOGETHER = [
    ["X-Forwarded-Proto: https", "X-Forwarded-Protocol: https"],
    ["X-Forwarded-Proto: https", "X-Forwarded-Ssl: off"],
    ["X-Forwarded-Proto: http", "X-Forwarded-Ssl: on"],
    ["Upgrade: websocket", "Connection: upgrade"],
    ["Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__"],
    [f"X-{number}: y" for number in range(90)],
]


@pytest.mark.parametrize(
    "headers",
    [*([f"{name}: {value}"] for name, values in IGNORED.items() for value in values), *TOGETHER],
    ids=lambda headers: " ".join(headers).encode("latin-1").decode("ascii", "replace")[:60],
)
def test_a_header_that_is_not_ours_changes_nothing(port: int, headers: list[str]) -> None:
    """From 127.0.0.1, which gunicorn would trust as a proxy, and with FORWARDED_ALLOW_IPS=* in the environment."""
    lines = [header.encode("latin-1") for header in headers]
    assert ask(port, get(*lines)) == (200, b'{"alive":true}\n')
    status, body = ask(port, post(PHOTO, *lines, JPEG))
    assert (status, json.loads(body)["predictions"]) == (200, PREDICTIONS)
    assert ask(port, get(*lines).replace(b"/healthz", b"/nowhere", 1))[0] == 404


@pytest.mark.parametrize(
    "variable",
    [
        "FORWARDED_ALLOW_IPS=nonsense",
        "WEB_CONCURRENCY=auto",
        "SCRIPT_NAME=/x",
        "PORT=nonsense",
        "SENDFILE=x",
        "GUNICORN_CMD_ARGS=--workers=nonsense --bind=127.0.0.1:1",
    ],
)
def test_no_variable_that_gunicorn_reads_by_itself_changes_anything(processes: Processes, variable: str) -> None:
    number, (name, value) = free_port(), variable.split("=", 1)
    processes.start("run_web_server.py", WEB_PORT=str(number), WEB_WORKERS="1", **{name: value})
    wait_for(lambda: is_up(f"http://127.0.0.1:{number}/healthz"))
    assert ask(number, get(b"SCRIPT_NAME: /x", b"X-Forwarded-Proto: https", b"X-Forwarded-Ssl: off"))[0] == 200
    assert output(processes.running[-1]).count("Booting worker") == 1


@pytest.mark.parametrize(
    "request_line", [b"GARBAGE", b"GET /" + b"a" * 9000 + b" HTTP/1.1", b"GET / HTTP/1.1\r\nHost: y"]
)
def test_a_request_that_never_reaches_the_application_is_named_too(port: int, request_line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request_line + b"\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    told = json.loads(body)
    assert list(told) == ["success", "error", "request_id"]
    assert f"\r\nX-Request-ID: {told['request_id']}\r\n".encode() in head
