"""Heads and bodies that come late, in pieces, broken, or not at all; in greenlets, as they come in a web process."""

import io
import time

import gevent
import gevent.socket
import pytest
from gunicorn.http.errors import ChunkMissingTerminator, InvalidChunkSize, NoMoreData

from serving.errors import Unavailable
from serving.web import arrival
from serving.web.arrival import ArrivingHead, RequestBody


class Request:
    closes = False

    def force_close(self) -> None:
        self.closes = True


class Dribbling:
    """A body that comes in pieces, each after a while; None: it never comes."""

    def __init__(self, *pieces: bytes | None, seconds: float = 0.0) -> None:
        self.pieces, self.seconds = list(pieces), seconds

    def read(self, size: int) -> bytes:
        gevent.sleep(self.seconds)
        piece = self.pieces.pop(0) if self.pieces else b""
        if piece is None:
            gevent.sleep(60)
        assert piece is not None
        assert len(piece) <= size
        return piece


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "ARRIVAL_SECONDS", 0.2)
    monkeypatch.setattr(arrival, "KEEP_ALIVE_SECONDS", 0.6)
    monkeypatch.setattr(arrival, "SLOWEST_BYTES_A_SECOND", 10)
    monkeypatch.setattr(RequestBody, "in_hand", 0)


def test_a_body_that_comes_steadily_may_take_longer_than_one_that_does_not() -> None:
    steady = RequestBody(Dribbling(*[b"0123456789"] * 10, seconds=0.1), 100, Request())
    assert steady.read() == b"0123456789" * 10  # a second in all
    late = RequestBody(Dribbling(b"0", None), 100, Request())
    began = time.monotonic()
    with pytest.raises(OSError, match="did not arrive in time"):
        late.read()
    assert time.monotonic() - began < 2


def test_a_body_is_read_as_far_as_asked_and_what_is_left_is_drained() -> None:
    request, source = Request(), Dribbling(b"01234", b"56789", b"abcde")
    body = RequestBody(source, 15, request)
    assert body.read(5) == b"01234"
    assert RequestBody.in_hand == 5
    body.before_the_answer()
    body.after_the_answer()
    assert not request.closes
    assert source.pieces == []
    assert RequestBody.in_hand == 0
    assert body.read() == b""


def test_what_is_beyond_the_bound_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "DRAIN_BYTES", 8)
    request, source = Request(), Dribbling(b"01234", b"56789", b"abcde")
    body = RequestBody(source, 15, request)
    body.before_the_answer()
    assert request.closes
    body.after_the_answer()
    assert source.pieces == [b"abcde"]


class Broken:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def read(self, _size: int) -> bytes:
        raise self.error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (InvalidChunkSize(b"zz"), "its chunks are malformed"),
        (ChunkMissingTerminator(b"de"), "its chunks are malformed"),
        (NoMoreData(b"pixels"), "it broke off before its end"),
        (ConnectionResetError(104, "Connection reset by peer"), "it broke off before its end"),
    ],
)
def test_a_broken_body_closes_the_connection_and_is_not_drained(error: Exception, says: str) -> None:
    request = Request()
    body = RequestBody(Broken(error), None, request)
    with pytest.raises(
        OSError, match=f"^{says}$"
    ):  # and not what gunicorn's parser says: it quotes bytes as Python does
        body.read()
    body.before_the_answer()
    body.after_the_answer()
    assert request.closes


def test_a_body_that_ends_too_early_is_broken() -> None:
    request = Request()
    body = RequestBody(Dribbling(b"01234"), 15, request)
    with pytest.raises(OSError, match="it broke off, 10 bytes before its end"):
        body.read()
    body.before_the_answer()
    assert request.closes


def test_uploads_beyond_what_a_process_may_hold_are_refused_and_room_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RequestBody, "most_in_hand", 25)
    first = RequestBody(io.BytesIO(b"x" * 20), 20, Request())
    assert len(first.read()) == 20
    second = RequestBody(io.BytesIO(b"x" * 20), 20, Request())
    with pytest.raises(Unavailable, match="Too many bytes of uploads"):
        second.read()
    for body in (first, second):
        body.after_the_answer()
    assert RequestBody.in_hand == 0


def test_it_reads_like_any_file() -> None:
    body = RequestBody(io.BytesIO(b"one\ntwo"), 7, Request())
    assert body.readable()
    assert body.readline() == b"one\n"
    assert io.BufferedReader(body).read() == b"two"


class Connection:
    """A connection whose greenlet waits for heads, as gunicorn does; `ends` has how each wait ended, and when."""

    def __init__(self) -> None:
        self.client, self.server = gevent.socket.socketpair()
        self.ends: list[str] = []
        self.began = time.monotonic()
        self.greenlet = gevent.spawn(self.run)
        gevent.sleep(0)

    def run(self) -> None:
        self.head = ArrivingHead(gevent.getcurrent(), self.server)
        while True:
            request = None
            with self.head:
                request = b""
                while not request.endswith(b"!"):
                    piece = self.server.recv(100)
                    if not piece:
                        return
                    request += piece
                self.ends.append(request.decode())
                continue
            self.ends.append("over")
            break

    def seconds(self) -> float:
        """How long it lasted; it is closed."""
        self.greenlet.join(timeout=5)
        self.head.close()
        self.client.close()
        self.server.close()
        assert self.greenlet.dead
        return time.monotonic() - self.began


def test_a_new_connection_that_says_nothing_or_dribbles_is_closed() -> None:
    silent, dribbling = Connection(), Connection()
    dribbling.client.sendall(b"G")
    assert 0.15 < silent.seconds() < 0.5
    assert 0.15 < dribbling.seconds() < 0.6
    assert silent.ends == dribbling.ends == ["over"]


def test_a_kept_connection_may_be_silent_for_longer_but_not_dribble() -> None:
    silent, dribbling = Connection(), Connection()
    for connection in (silent, dribbling):
        connection.client.sendall(b"one!")
    gevent.sleep(0.3)
    dribbling.client.sendall(b"tw")
    assert 0.4 < dribbling.seconds() < 0.59
    assert 0.5 < silent.seconds() < 1.2
    assert silent.ends == dribbling.ends == ["one!", "over"]


def test_a_process_that_stops_lets_the_silent_go_and_nobody_else() -> None:
    silent, dribbling, ready = Connection(), Connection(), Connection()
    dribbling.client.sendall(b"G")
    gevent.sleep(0.01)
    ready.client.sendall(b"one!")  # it lies there, unread yet
    for connection in (silent, dribbling, ready):
        connection.head.let_go_if_silent()
    gevent.sleep(0.05)
    assert silent.greenlet.dead
    assert not dribbling.greenlet.dead
    assert ready.ends == ["one!"]
    for connection in (silent, dribbling, ready):
        connection.client.close()
        connection.seconds()
