"""client.py against the real service, and against peers on real sockets that do what services and proxies do on bad
days. Each verb is tested in both clients."""

import asyncio
import contextlib
import io
import json
import logging
import os
import pickle
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import (
    ROOT,
    Processes,
    RedisServer,
    as_bytes,
    clean_environment,
    free_port,
    is_up,
    some_photo,
    turned,
    wait_for,
)
from conftest import http as plain_http
from PIL import Image

import client as module
from client import (
    Answer,
    AsyncClient,
    Canceled,
    CannotReach,
    CannotSend,
    Client,
    Failed,
    NoAnswer,
    NotDone,
    NotThisService,
    Refused,
    Unauthorized,
    Unavailable,
    WrongUrl,
)

RED = as_bytes(Image.new("RGB", (40, 30), (255, 0, 0)), "PNG")
KEY = "5e2a-of-clients"


class Verbs:
    """The verbs of Client or of AsyncClient, called in the same way."""

    def __init__(self, is_async: bool, url: str, key: str | None = None, **options: Any) -> None:
        self.is_async, self.given, self.options = is_async, (url, key), options

    def __call__(self, *calls: tuple[Any, ...], **options: Any) -> list[Any]:
        """What each call gives, one after the other in one client: `("predict", image)`."""
        if self.is_async:
            return asyncio.run(self.in_loop(calls, options))
        with Client(*self.given, **self.options) as client:
            given = [getattr(client, verb)(*arguments, **options) for verb, *arguments in calls]
            return [list(one) if isinstance(one, Iterator) else one for one in given]

    async def in_loop(self, calls: tuple[tuple[Any, ...], ...], options: dict[str, Any]) -> list[Any]:
        async with AsyncClient(*self.given, **self.options) as client:
            given = []
            for verb, *arguments in calls:
                one = getattr(client, verb)(*arguments, **options)
                given.append([result async for result in one] if verb == "predict_many" else await one)
            return given

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        return lambda *arguments, **options: self((verb, *arguments), **options)[0]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def verbs(request: pytest.FixtureRequest) -> Callable[..., Verbs]:
    """Makes a client of either kind."""
    return lambda *given, **options: Verbs(request.param, *given, **options)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own pauses; those that a service asks for stay."""
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)


# ---- the real service ----


@pytest.fixture(scope="module")
def service(redis_server: RedisServer, light_model: dict[str, str]) -> Iterator[str]:
    """The address of the service, which tells red from green and blue."""
    redis_server.client.flushall()
    processes, port = Processes({"REDIS_URL": redis_server.url, "METRICS_PORT": "0"} | light_model), str(free_port())
    processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1")
    processes.start("run_model_server.py")
    wait_for(lambda: is_up(f"http://127.0.0.1:{port}/readyz"))
    yield f"http://127.0.0.1:{port}"
    processes.end()


@pytest.mark.parametrize("kind", ["path", "name", "bytes", "bytearray", "memoryview", "Pillow"])
def test_a_picture_is_predicted_whatever_it_comes_as(verbs, service, tmp_path, kind):
    (path := tmp_path / "red.png").write_bytes(RED)
    picture = {
        "path": path,
        "name": str(path),
        "bytes": RED,
        "bytearray": bytearray(RED),
        "memoryview": memoryview(RED),
        "Pillow": Image.open(io.BytesIO(RED)),
    }[kind]
    answer = verbs(service).predict(picture)
    assert (answer.label, len(answer.predictions)) == ("red", 4)
    assert answer.probability == answer.predictions[0].probability > 0.9
    assert answer.warning is None


def test_the_service_tells_its_model_its_times_and_the_request(verbs, service):
    answer = verbs(service).predict(RED)
    assert answer.model_version
    assert answer.request_id
    assert 0 < answer.times.decode_ms < answer.times.total_ms
    with pytest.raises(Refused) as refused:
        verbs(service).predict(RED, top=999)
    assert (refused.value.status, bool(refused.value.request_id)) == (400, True)


@pytest.mark.parametrize("end", ["", "/", "/predict", "/predict/"])
def test_the_url_may_end_as_people_write_it(verbs, service, end):
    assert verbs(service + end).predict(RED).label == "red"


def test_top_says_how_many_labels_come(verbs, service):
    assert [one.label for one in verbs(service).predict(RED, 1).predictions] == ["red"]
    assert len(verbs(service).predict(RED, top=3).predictions) == 3


def test_a_picture_that_is_refused_tells_the_status_and_the_sentence_of_the_service(verbs, service):
    with pytest.raises(Refused, match="convert|Convert|read") as refused:
        verbs(service).predict(b"%PDF-1.7 is no picture")
    assert refused.value.status == 415
    assert refused.value.sentence == str(refused.value)


def test_many_come_in_order_and_an_error_sinks_no_other(verbs, service, tmp_path):
    pictures = []
    for number, colour in enumerate(["red", "lime", "blue"] * 7):
        Image.new("RGB", (40, 30), colour).save(path := tmp_path / f"{number}.png")
        pictures.append(path)
    pictures[4:4] = [tmp_path / "missing.png", b"%PDF-1.7", tmp_path]
    results = verbs(service).predict_many(iter(pictures), top=1, concurrency=3)
    assert [result.image for result in results] == pictures
    errors = {position: type(result.error) for position, result in enumerate(results) if result.error}
    assert errors == {4: CannotSend, 5: Refused, 6: CannotSend}
    assert [result.answer.label for result in results if result.answer] == ["red", "green", "blue"] * 7


# ---- peers on bad days ----


class Request(NamedTuple):
    """What a peer was sent."""

    connection: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


CLOSE = b""


class Peer:
    """Answers request after request with the script's bytes, the last one for ever; hangs up where they are CLOSE."""

    def __init__(self, *script: bytes | Callable[[socket.socket], None]) -> None:
        self.script, self.requests, self.lock = list(script), [], threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.connections: list[socket.socket] = []
        self.busy = self.most_busy = 0
        self.pause_seconds = 0.0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self.serve, args=(connection, len(self.connections)), daemon=True).start()

    def serve(self, connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as file:
            while line := file.readline().decode():
                headers = {}
                while (header := file.readline().decode().strip()) != "":
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                body = file.read(int(headers.get("content-length", 0)))
                with self.lock:
                    self.requests.append(Request(number, line.split()[0], line.split()[1], headers, body))
                    act = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                    self.busy += 1
                    self.most_busy = max(self.most_busy, self.busy)
                time.sleep(self.pause_seconds)
                with self.lock:
                    self.busy -= 1
                if act == CLOSE:
                    return connection.shutdown(socket.SHUT_RDWR)
                if callable(act):
                    return act(connection)
                connection.sendall(act)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        for one in (self.listener, *self.connections):
            with contextlib.suppress(OSError):
                one.close()


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def start(*script: Any) -> Peer:
        peers.append(Peer(*script))
        return peers[-1]

    yield start
    for one in peers:
        one.end()


def reply(status: int, body: object = b"", **headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "text/html" if content.startswith(b"<") else "application/json"
    told = {"Content-Type": kind, "Content-Length": str(len(content)), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in told.items())
    return f"HTTP/1.1 {status} So\r\n{lines}\r\n".encode() + content


CAT = {"success": True, "predictions": [{"label": "tabby", "probability": 0.75}, {"label": "lynx", "probability": 0.1}]}
OK = reply(200, CAT)
HTML = b"<html><h1>nginx</h1></html>"
BUSY = {"success": False, "error": "More requests wait than can be answered in time."}


def test_an_answer_tells_its_model_its_times_and_its_request(verbs, peer):
    times = 'decode;dur=1.2, queue;desc="waiting";dur=3.4, model;dur=22, total;dur=27.05, proxy;dur=9'
    told = {"Server_Timing": times, "X_Model_Version": "3f2b", "X_Request_ID": "r-17"}
    answer = verbs(peer(reply(200, CAT | {"warning": "The model has random weights."}, **told)).url).predict(RED)
    assert (answer.model_version, answer.request_id) == ("3f2b", "r-17")
    assert answer.warning == "The model has random weights."
    assert (answer.times.decode_ms, answer.times.model_ms, answer.times.total_ms) == (1.2, 22, 27.05)
    assert answer.times.queue_ms == 3.4
    with pytest.raises(AttributeError):
        answer.warning = None


def test_one_of_several_models_is_asked_by_its_name_with_each_verb(verbs, peer):
    job = reply(202, {"id": "j-1", "status": "queued"})
    server = peer(OK, OK, job, OK)
    client = verbs(server.url)
    assert client.predict(RED, top=1, model="my flowers/2").label == "tabby"
    assert [result.answer.label for result in client.predict_many([RED], model="flowers")] == ["tabby"]
    assert client.submit(RED, model="flowers").id == "j-1"
    assert client.predict(RED).label == "tabby"
    paths = ["/predict/my%20flowers%2F2?top=1", "/predict/flowers", "/predict/flowers", "/predict"]
    assert [request.path for request in server.requests] == paths


def test_a_connection_that_the_server_closed_is_no_error(verbs, peer):
    server = peer(OK, CLOSE, OK)
    answers = verbs(server.url, tries=1)(("predict", RED), ("predict", RED))
    assert [answer.label for answer in answers] == ["tabby", "tabby"]
    assert [request.connection for request in server.requests] == [1, 1, 2]
    assert {request.body for request in server.requests} == {RED}


def test_connections_that_always_break_end_with_an_error(verbs, peer):
    server = peer(CLOSE)
    with pytest.raises(NoAnswer, match="broke"):
        verbs(server.url, tries=2).predict(RED)
    assert len(server.requests) == 3  # the one that is sent again at once is no try


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_passes_is_tried_again_whoever_says_it(verbs, peer, status):
    server = peer(reply(status, HTML), reply(status, BUSY), OK)
    assert verbs(server.url).predict(RED).label == "tabby"
    assert len(server.requests) == 3


def test_tries_are_counted(verbs, peer):
    server = peer(reply(503, BUSY, X_Request_ID="r-9"))
    with pytest.raises(Unavailable, match="More requests wait") as busy:
        verbs(server.url, tries=3).predict(RED)
    assert (busy.value.status, busy.value.request_id, busy.value.retry_after) == (503, "r-9", None)
    assert len(server.requests) == 3


def test_the_service_is_left_alone_as_long_as_it_asks(verbs, peer):
    times = []
    server = peer(
        lambda connection: (times.append(time.monotonic()), connection.sendall(reply(503, BUSY, Retry_After="1"))),
        lambda connection: (times.append(time.monotonic()), connection.sendall(OK)),
    )
    assert verbs(server.url).predict(RED).label == "tabby"
    assert times[1] - times[0] >= 0.99


DATES = {"Date": "Mon, 30 Nov 2026 08:00:00 GMT", "Retry_After": "Mon, 30 Nov 2026 08:05:00 GMT"}


@pytest.mark.parametrize("headers", [{"Retry_After": "300"}, DATES], ids=["seconds", "date"])
def test_a_longer_wait_than_the_clients_patience_is_told_at_once(verbs, peer, headers):
    server = peer(reply(503, BUSY, **headers))
    with pytest.raises(Unavailable) as busy:
        verbs(server.url, patience=120).predict(RED)
    assert busy.value.retry_after == 300
    assert len(server.requests) == 1


@pytest.mark.parametrize("told", ["soon", "-5", "9" * 400, "1e9", "Mon, 99 Nov 2026 08:05:00 GMT"])
def test_an_odd_retry_after_counts_as_none(verbs, peer, told):
    with pytest.raises(Unavailable) as busy:
        verbs(peer(reply(503, BUSY, Retry_After=told)).url, tries=1).predict(RED)
    assert busy.value.retry_after is None


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (reply(404, HTML), NotThisService, "is not the service .status 404, text/html"),
        (reply(404, {"success": False, "error": "There is no page here."}), Refused, "There is no page here"),
        (reply(200, HTML), NotThisService, "is the URL right"),
        (reply(200, {"success": True, "predictions": []}), NotThisService, "is the URL right"),
        (reply(200, {"predictions": [{"label": "cat"}]}), NotThisService, "is the URL right"),
        (reply(200, b"[" * 100_000), NotThisService, "is the URL right"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", NotThisService, "does not speak HTTP"),
        (reply(401, {"success": False, "error": "Send an API key."}), Unauthorized, "Send an API key"),
        (reply(403, HTML), Unauthorized, "in front of the service answered 403"),
        (reply(413, HTML), Refused, "in front of the service answered 413"),
        (
            reply(500, {"error": "The model failed.\x1b[31m\r\nSet-Cookie", "request_id": "r-1"}),
            Failed,
            "failed. .31m Set",
        ),
        (reply(200, b"not gzip", Content_Encoding="gzip"), NotThisService, "unpacked"),
    ],
)
def test_what_cannot_pass_is_told_at_once(verbs, peer, answer, kind, says):
    server = peer(answer)
    with pytest.raises(kind, match=says) as told:
        verbs(server.url).predict(RED)
    assert type(told.value) is kind
    assert str(told.value).isprintable()
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_told_and_neither_key_nor_picture_follow_it(verbs, peer, status):
    other = peer(OK)
    server = peer(reply(status, Location=f"{other.url}/predict"))
    with pytest.raises(NotThisService, match=f"leads on to {other.url}/predict"):
        verbs(server.url, KEY).predict(RED)
    assert other.requests == []
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def dribble(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(200):
        connection.sendall(b" ")
        time.sleep(0.02)


def flood(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(64):
        connection.sendall(bytes(2**20))


@pytest.mark.parametrize("act", [dribble, lambda connection: time.sleep(2)], ids=["dribbles", "says nothing"])
def test_a_try_ends_in_time_even_if_bytes_trickle_in(verbs, peer, act):
    with pytest.raises(NoAnswer):
        verbs(peer(act).url, timeout=0.3, tries=1).predict(RED)


def test_an_answer_without_end_is_not_kept(verbs, peer):
    with pytest.raises(NotThisService, match="no end"):
        verbs(peer(flood).url).predict(RED)


def test_a_body_that_breaks_off_is_asked_for_again(verbs, peer):
    server = peer(lambda connection: connection.sendall(OK[:-5]), OK)
    assert verbs(server.url, tries=1).predict(RED).label == "tabby"


def test_nothing_there_is_told_with_the_address(verbs):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(CannotReach, match=url):
        verbs(url, tries=2).predict(RED)


@pytest.mark.parametrize(
    "url", ["", "http://", "ftp://127.0.0.1", "http://u:s3cret@127.0.0.1", "http://a b", "http://x/?a=1", "http://[::1"]
)
def test_a_wrong_url_is_told_before_anything_is_sent(verbs, url):
    with pytest.raises(WrongUrl, match="give one like http") as wrong:
        verbs(url).state()
    assert "s3cret" not in str(wrong.value)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("", "/predict"),
        ("/", "/predict"),
        ("/a/b", "/a/b/predict"),
        ("/a/b/", "/a/b/predict"),
        ("/a/predict", "/a/predict"),
    ],
)
def test_a_path_before_predict_stays(verbs, peer, given, asked):
    server = peer(OK)
    verbs(server.url.removeprefix("http://") + given).predict(RED, 2)
    assert server.requests[0].path == f"{asked}?top=2"


def test_what_is_no_picture_is_told_and_not_sent(verbs, peer, tmp_path):
    server = peer(OK)
    (tmp_path / "empty.jpg").touch()
    for picture, says in (
        (tmp_path / "no.jpg", "There is no file .*no.jpg"),
        (tmp_path, "is a folder: name the pictures in it"),
        (tmp_path / "empty.jpg", "empty.jpg is empty"),
        (b"", "is empty"),
        ("a\0b", "cannot be read"),
        (17, "A int is neither a path"),
    ):
        with pytest.raises(CannotSend, match=says):
            verbs(server.url).predict(picture)
    assert server.requests == []


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"])
def test_an_image_of_pillow_is_sent_in_whatever_mode(verbs, peer, mode):
    server, image = peer(OK), Image.new(mode, (7, 5))
    verbs(server.url).predict(image)
    with Image.open(io.BytesIO(server.requests[0].body)) as sent:
        assert (sent.format, sent.size) == ("TIFF" if mode in "IF" else "PNG", (7, 5))


def test_an_image_of_pillow_is_sent_upright(verbs, peer):
    server, photo = peer(OK), some_photo(40, 30)
    stored, exif = turned(photo, 6)
    with Image.open(io.BytesIO(as_bytes(stored, "PNG", exif=exif))) as opened:
        verbs(server.url).predict(opened)
        assert opened.getexif()[0x0112] == 6  # the caller's stays as it is
    with Image.open(io.BytesIO(server.requests[0].body)) as sent:
        assert sent.getexif().get(0x0112, 1) == 1
        assert sent.tobytes() == photo.tobytes()


def test_a_large_image_of_pillow_is_sent_as_jpeg(verbs, peer):
    server = peer(OK)
    verbs(server.url).predict(Image.new("RGB", (1200, 1000), "red"))
    assert server.requests[0].body.startswith(b"\xff\xd8")


def test_an_image_of_pillow_that_breaks_off_is_told(verbs, peer):
    with (
        Image.open(io.BytesIO(as_bytes(some_photo(), "JPEG")[:900])) as broken,
        pytest.raises(CannotSend, match="Pillow"),
    ):
        verbs(peer(OK).url).predict(broken)


def test_the_key_is_in_the_request_and_nowhere_else(verbs, peer, caplog):
    server = peer(reply(500, {"error": "The model failed on this image."}))
    with caplog.at_level(logging.DEBUG), pytest.raises(Failed) as failed:
        verbs(server.url, f" {KEY}\n").predict(RED)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert caplog.records  # of httpx2 and httpcore2
    assert KEY not in caplog.text + repr(failed.value) + repr(failed.value.__dict__)
    assert KEY not in repr(Client(server.url, KEY)) + repr(AsyncClient(server.url, KEY))


@pytest.mark.parametrize("key", [f"{KEY}\r\nX: y", f"{KEY} b", f"{KEY}é"])
def test_a_key_that_no_header_can_carry_is_told_without_it(verbs, key):
    with pytest.raises(WrongUrl, match="characters") as wrong:
        verbs("http://127.0.0.1:1", key).state()
    assert KEY not in str(wrong.value)


def test_an_error_may_go_to_another_process():
    error = Unavailable("Come back.", status=503, request_id="r", retry_after=2.0)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), vars(again)) == (Unavailable, "Come back.", vars(error))


def test_so_many_are_under_way_at_once_and_no_more(verbs, peer):
    server = peer(OK)
    server.pause_seconds = 0.02
    assert len(verbs(server.url).predict_many([RED] * 30, concurrency=3)) == 30
    assert server.most_busy == 3


def test_none_at_once_is_an_error_and_no_endless_wait(verbs):
    with pytest.raises(ValueError, match="greater than 0|at least 1"):
        verbs("http://127.0.0.1:1").predict_many([RED], concurrency=0)


def threads_of_predict_many() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("predict_many")]


def test_pictures_are_looked_up_as_their_turn_comes_and_leaving_early_ends_it(peer):
    server, taken = peer(OK), []

    def endless() -> Iterator[bytes]:
        while True:
            taken.append(1)
            yield RED

    async def some() -> None:
        async with AsyncClient(server.url) as client:
            results = client.predict_many(endless(), concurrency=2)
            async with contextlib.aclosing(results):
                assert (await anext(results)).answer.label == "tabby"
            assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    with Client(server.url) as client:
        results = client.predict_many(endless(), concurrency=2)
        assert next(results).answer.label == "tabby"
        results.close()
        assert not threads_of_predict_many()
    assert 0 < len(taken) <= 8
    asyncio.run(some())
    assert len(taken) <= 16


def test_who_leaves_waits_for_no_pause(peer):
    server = peer(reply(503, BUSY, Retry_After="3600"))

    class Late(os.PathLike):
        def __fspath__(self) -> str:
            wait_for(lambda: len(server.requests) == 3)
            return "no-such.jpg"

    with Client(server.url, patience=1e6) as client:
        results = client.predict_many([Late(), *[RED] * 20], concurrency=4)
        assert isinstance(next(results).error, CannotSend)
        results.close()
        assert not threads_of_predict_many()


def test_threads_may_share_a_client(service):
    with Client(service) as client:
        answers: list[Answer] = []
        threads = [threading.Thread(target=lambda: answers.append(client.predict(RED))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [answer.label for answer in answers] == ["red"] * 8


def test_the_state_is_told(verbs, peer):
    told = {
        "status": "ready",
        "warning": None,
        "asks_for_key": True,
        "waiting": 3,
        "answered_per_second": 12.5,
        "new": 1,
    }
    state = verbs(peer(reply(200, told)).url).state()
    assert (state.status, state.asks_for_key, state.waiting, state.answered_per_second) == ("ready", True, 3, 12.5)
    assert state.told == told
    with pytest.raises(NotThisService):
        verbs(peer(reply(200, {"ok": 1})).url).state()


# ---- asynchronous jobs ----


class Jobs(ThreadingHTTPServer):
    """Speaks the contract of asynchronous jobs; when `is_quick`, a job is done as soon as somebody waits for it."""

    daemon_threads = False

    def __init__(self, is_quick: bool) -> None:
        super().__init__(("127.0.0.1", 0), JobsHandler)
        self.url, self.is_quick = f"http://127.0.0.1:{self.server_port}", is_quick
        self.jobs: dict[str, dict[str, Any]] = {}
        self.by_key: dict[str, tuple[str, bytes]] = {}
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class JobsHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Jobs

    def do_POST(self) -> None:
        image = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Prefer"] == "respond-async"
        id, first = self.server.by_key.setdefault(self.headers["Idempotency-Key"], (os.urandom(8).hex(), image))
        if first != image:
            return self.tell(422, {"success": False, "error": "This Idempotency-Key came with another picture."})
        job = self.server.jobs.setdefault(id, {"id": id, "status": "queued", "expires_at": 1_796_029_200, "new": 1})
        self.tell(202, job, Location=f"/jobs/{id}", Preference_Applied="respond-async")

    def do_GET(self) -> None:
        self.server.asked.append(self.headers.get("Prefer", ""))
        job = self.server.jobs.get(self.path.removeprefix("/jobs/"))
        if job is None:
            return self.tell(404, {"success": False, "error": "No such job: unknown, or expired."})
        if job["status"] == "queued" and self.headers.get("Prefer", "").startswith("wait=") and self.server.is_quick:
            job |= {"status": "succeeded", "predictions": CAT["predictions"]}
        self.tell(200, job)

    def do_DELETE(self) -> None:
        job = self.server.jobs[self.path.removeprefix("/jobs/")]
        job["status"] = "canceled"
        self.tell(200, job)

    def tell(self, status: int, body: dict[str, Any], **headers: str) -> None:
        self.wfile.write(reply(status, body, **headers))

    def log_message(self, *_: object) -> None:
        pass


class Places(NamedTuple):
    """Addresses of a service that does its jobs, and of one that leaves them in the queue."""

    quick: str
    idle: str


@pytest.fixture(scope="module")
def contract() -> Iterator[tuple[Jobs, Jobs]]:
    servers = Jobs(True), Jobs(False)
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def idle_service(redis_server: RedisServer, light_model: dict[str, str]) -> Iterator[str]:
    """A web server on a queue of its own, which no model server reads."""
    processes, port = Processes({"REDIS_URL": redis_server.url} | light_model), str(free_port())
    processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1", IMAGE_QUEUE="idle")
    wait_for(lambda: is_up(f"http://127.0.0.1:{port}/healthz"))
    yield f"http://127.0.0.1:{port}"
    processes.end()


def has_jobs(url: str) -> bool:
    return plain_http("POST", f"{url}/predict", RED, Content_Type="image/png", Prefer="respond-async").status == 202


@pytest.fixture(params=["contract", "service"])
def places(request: pytest.FixtureRequest) -> Places:
    """The contract's peer, and the service itself as soon as it has asynchronous jobs."""
    if request.param == "contract":
        quick, idle = request.getfixturevalue("contract")
        return Places(quick.url, idle.url)
    quick_url = request.getfixturevalue("service")
    if not has_jobs(quick_url):
        pytest.skip("this service has no asynchronous jobs")
    return Places(quick_url, request.getfixturevalue("idle_service"))


def test_a_job_is_submitted_and_its_answer_waited_for(verbs, places):
    client = verbs(places.quick)
    job = client.submit(RED)
    assert job.id
    assert job.status in ("queued", "processing", "succeeded")
    answer = client.wait(job, 30)
    assert answer.label in ("tabby", "red")
    assert client.wait(job.id, 30).predictions == answer.predictions
    done = client.status(job.id)
    assert (done.status, done.is_done, done.answer.predictions) == ("succeeded", True, answer.predictions)
    assert done.expires_at is not None
    assert done.expires_at.year >= 2026


def test_the_same_idempotency_key_is_the_same_job(verbs, places):
    client, key = verbs(places.idle), os.urandom(8).hex()
    first, second = client.submit(RED, idempotency_key=key), client.submit(RED, idempotency_key=key)
    assert first.id == second.id
    assert client.submit(RED).id != client.submit(RED).id
    with pytest.raises(Refused) as other:
        client.submit(as_bytes(Image.new("RGB", (9, 9)), "PNG"), idempotency_key=key)
    assert other.value.status == 422


def test_a_job_that_takes_longer_goes_on(verbs, places):
    client = verbs(places.idle)
    job = client.submit(RED)
    with pytest.raises(NotDone, match=f"{job.id} is queued after 0.3 s; it goes on") as not_done:
        client.wait(job, 0.3)
    assert isinstance(not_done.value, TimeoutError)
    assert client.status(job).status == "queued"


def test_a_cancelled_job_is_told(verbs, places):
    client = verbs(places.idle)
    job = client.submit(RED)
    assert client.cancel(job).status == "canceled"
    assert client.status(job.id).status == "canceled"
    with pytest.raises(Canceled):
        client.wait(job.id, 30)


def test_a_wait_ends_in_time_though_the_service_is_away(verbs, peer):
    server = peer(reply(503, BUSY, Retry_After="30"))
    with pytest.raises(Unavailable):
        verbs(server.url).wait("j1", 1)
    assert len(server.requests) == 1


def test_an_unknown_job_is_told(verbs, places):
    with pytest.raises(Refused) as unknown:
        verbs(places.quick).wait("3f2b9c04-0000-4000-8000-000000000000", 30)
    assert unknown.value.status == 404


def test_many_may_go_as_jobs(verbs, places):
    results = verbs(places.quick).predict_many([RED, b"", RED], by_jobs=True)
    assert [bool(result.answer) for result in results] == [True, False, True]


def test_a_retry_of_submit_is_the_same_job(verbs, peer):
    accepted = reply(202, {"id": "j/1", "status": "queued", "expires_at": "2026-11-30T10:00:00Z"})
    server = peer(CLOSE, reply(503, BUSY), accepted)
    job = verbs(server.url).submit(RED)
    assert (job.id, job.expires_at.hour) == ("j/1", 10)
    assert len(server.requests) == 3
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1


def test_a_failed_job_says_why(verbs, peer):
    server = peer(reply(200, {"id": "j/1", "status": "failed", "error": "The model failed on this image."}))
    with pytest.raises(Failed, match="The model failed on this image"):
        verbs(server.url).wait("j/1")
    assert [(request.method, request.path) for request in server.requests] == [("GET", "/jobs/j%2F1")]


def test_a_wait_asks_for_a_long_poll_and_is_no_busy_loop_where_there_is_none(verbs, contract):
    _, idle = contract
    client = verbs(idle.url)
    job = client.submit(RED)
    idle.asked.clear()
    with pytest.raises(NotDone):
        client.wait(job, 1.2)
    assert idle.asked[0] == "wait=1"
    assert 2 <= len(idle.asked) <= 4


def test_a_service_without_jobs_answers_a_submit_at_once(verbs, peer):
    server = peer(OK)
    client = verbs(server.url)
    job = client.submit(RED)
    assert job.is_done
    assert client.wait(job, 30).label == "tabby"
    assert client.cancel(job) == job
    assert len(server.requests) == 1


def test_a_cancel_without_a_body_is_understood(verbs, peer):
    assert verbs(peer(b"HTTP/1.1 204 So\r\n\r\n").url).cancel("j1").status == "canceled"


# ---- the command ----


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that lies alone, as people copy it, with two pictures and a file that is none beside it."""
    folder = tmp_path_factory.mktemp("copied")
    (folder / "red.png").write_bytes(RED)
    Image.new("RGB", (40, 30), "blue").save(folder / "blue.png")
    (folder / "notes.txt").write_text("no picture")
    return Path(shutil.copy(ROOT / "client.py", folder))


def command(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", script, *arguments],
        cwd=script.parent,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def test_in_a_pipe_the_command_prints_a_line_a_label(service, script):
    done = command(script, "red.png", "--url", service, "--top", "2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert lines[0][:2] == ["red.png", "red"]
    assert len(lines) == 2
    assert 0.9 < float(lines[0][2]) <= 1


def test_of_several_pictures_each_has_its_first_label_and_a_failure_exits_1(service, script):
    done = command(script, "red.png", "notes.txt", "missing.png", "blue.png", "--url", service)
    assert done.returncode == 1
    assert [line.split("\t")[:2] for line in done.stdout.splitlines()] == [["red.png", "red"], ["blue.png", "blue"]]
    complaints = done.stderr.splitlines()
    assert [line.split(":")[0] for line in complaints] == ["notes.txt", "missing.png"]
    assert "There is no file missing.png." in complaints[1]


def test_json_is_an_object_a_picture(service, script):
    done = command(script, "red.png", "missing.png", "--url", service, "--json", "--async")
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["image"], first["predictions"][0]["label"], len(first["predictions"])) == ("red.png", "red", 4)
    assert (second["image"], second["status"], done.returncode) == ("missing.png", None, 1)
    assert "no file" in second["error"]


def test_on_a_terminal_the_command_prints_a_table(service, script):
    ours, its = pty.openpty()
    arguments = [sys.executable, script, "red.png", "blue.png", "--url", service]
    process = subprocess.Popen(arguments, cwd=script.parent, stdin=its, stdout=its, stderr=its)
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # with which a terminal ends
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert process.wait(timeout=30) == 0
    assert b"2/2" in shown  # the bar
    table = shown.decode()[shown.decode().rindex("picture") :]
    assert "red.png" in table
    assert "%" in table


def test_no_key_is_told_and_the_environments_is_used(peer, script):
    server = peer(reply(401, {"success": False, "error": "Send an API key."}))
    done = command(script, "red.png", "notes.txt", "--url", server.url, API_KEY=f" {KEY} ,another")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Send an API key.\n"
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    told = command(script, "--help", API_KEY=KEY).stdout
    assert "API_KEY" in told
    assert KEY not in told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["red.png", "--url", "http://127.0.0.1:1"], "Nothing answers at http://127.0.0.1:1"),
        (["red.png", "--url", "ftp://127.0.0.1"], "is no URL of a service"),
        (["red.png", "--top", "0"], "--top must be above 0"),
    ],
)
def test_what_cannot_work_exits_2_with_a_sentence(script, arguments, says):
    done = command(script, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_the_command_cleanly(peer, script):
    server = peer(reply(200, {"status": "ready"}), OK, lambda connection: time.sleep(20))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    with subprocess.Popen(
        [sys.executable, "-W", "error", script, *["red.png"] * 20, "--url", server.url, "--concurrency", "2"],
        cwd=script.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        signal.signal(signal.SIGINT, before)
        wait_for(lambda: len(server.requests) >= 4)
        process.send_signal(signal.SIGINT)
        out, complaints = process.communicate(timeout=20)
    assert (process.returncode, complaints) == (130, "Interrupted.\n")
    assert set(out.splitlines()) <= {"red.png\ttabby\t0.750000"}


def test_ctrl_c_ends_the_command_while_a_pipe_has_no_end(peer, script):
    server, pipe = peer(reply(200, {"status": "ready"})), script.parent / "pipe"
    os.mkfifo(pipe)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, script, pipe, "--url", server.url], stderr=subprocess.PIPE, text=True
    ) as process:
        signal.signal(signal.SIGINT, before)
        try:
            with pipe.open("wb"):  # opens once the command reads
                process.send_signal(signal.SIGINT)
                _, complaints = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, complaints) == (130, "Interrupted.\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_answers_that_cannot_be_written_end_in_a_sentence(service, script):
    arguments = [sys.executable, script, "red.png", "--url", service]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(arguments, cwd=script.parent, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "The answers cannot be written (No space left on device).\n")


@pytest.mark.parametrize("package", ["httpx2", "rich"])
def test_without_its_packages_the_command_says_what_to_install(script, package):
    code = f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv = ['client.py', 'red.png']; "
    code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install httpx2 rich" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(service, script):
    pipe = subprocess.Popen(
        [sys.executable, script, *["red.png"] * 50, "--url", service],
        cwd=script.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert pipe.stdout.readline().startswith("red.png\tred")
    pipe.stdout.close()
    assert "Traceback" not in pipe.stderr.read()
    pipe.stderr.close()
    pipe.wait(timeout=30)


# ---- the page ----

PAGE = (ROOT / "docs" / "client.md").read_text()


@pytest.fixture
def beside_the_pictures(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page's examples find around them."""
    (script.parent / "photos").mkdir(exist_ok=True)
    for name in ("dog.jpg", "photos/a.jpg", "photos/b.jpg"):
        (script.parent / name).write_bytes(RED)
    monkeypatch.chdir(script.parent)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", blocks("python"), ids=range(len(blocks("python"))))
def test_the_examples_of_the_page_run(service, beside_the_pictures, capsys, example):
    exec(example.replace("http://127.0.0.1:5000", service), {})  # noqa: S102
    said = capsys.readouterr().out
    assert said.count("red") >= 1 or "There is no file no-such.jpg. None None" in said


def test_the_commands_of_the_page_run(service, script, beside_the_pictures):
    commands = [line for line in "".join(blocks("sh")).splitlines() if line.startswith("python client.py")]
    assert len(commands) == 2
    for line in commands:
        ours = line.replace("python client.py", f"'{sys.executable}' client.py --url {service}")
        done = subprocess.run(ours, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
        assert (done.returncode, done.stderr) == (0, "")
    assert len((script.parent / "answers.jsonl").read_text().splitlines()) == 2


def test_the_page_tells_of_each_error_whether_it_is_sent_again():
    table = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|.*\| (yes|no) \|$", PAGE, flags=re.MULTILINE)
    told = {name.strip("`"): again == "yes" for names, again in table for name in names.split(", ")}
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, module.ClientError)]
    there = {kind.__name__: issubclass(kind, module.SEND_AGAIN) for kind in kinds if kind.__name__[0] != "_"}
    assert told == {name: again for name, again in there.items() if name != "ClientError"}
    assert all(name in module.ClientError.__doc__ for name in told)
