"""Limits how long a connection waits for a head and then for a body, and drains a body that nobody reads. It knows
gevent, and of gunicorn only what it is handed.

    silence -- first byte --> head, 20 s --> body, 20 s and longer while it comes --> answer --> drain --> silence
"""

import contextlib
import io
import select
import socket
import time
from typing import Any

import gevent
import gevent.monkey

from serving.errors import Unavailable

# Longer than the 60 s after which the usual load balancers drop an idle connection: they must be first.
KEEP_ALIVE_SECONDS = 75.0
# A head, and then a body, have this long to arrive; a body longer as long as it comes at this rate.
ARRIVAL_SECONDS, SLOWEST_BYTES_A_SECOND = 20.0, 10_000
PIECE_BYTES = 64 * 1024
# What is left of a refused body is read and thrown away, so that the connection can go on; beyond it, it is closed.
DRAIN_BYTES = 64 * 1024 * 1024
LINGER_SECONDS = 2.0
READABLE = 1  # what a watcher of gevent's loop calls it


class ArrivingHead:
    """A connection that waits for the head of a request, for so long; then the wait ends as if the client had gone.

    A new connection has ARRIVAL_SECONDS for a head. A kept one may be silent for KEEP_ALIVE_SECONDS, and then has as
    long as a new one. In a process that stops, a silent connection is let go at once.
    """

    def __init__(self, greenlet: gevent.Greenlet, connection: socket.socket) -> None:
        self._greenlet, self.connection = greenlet, connection
        self.request: Any = None  # gunicorn's, once its head has come
        self._silence_seconds = ARRIVAL_SECONDS
        self._is_silent = False
        self._over = gevent.Timeout()  # never started: it is what is thrown, by whom it may concern
        self._loop = gevent.get_hub().loop
        self._timer, self._first_byte = self._loop.timer(0), self._loop.io(self.connection.fileno(), READABLE)

    def __enter__(self) -> None:
        self._is_silent = True
        self._wait(self._silence_seconds)
        self._first_byte.start(self._breaks_its_silence)

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        self._is_silent = False
        self._timer.stop()
        self._first_byte.stop()
        self._silence_seconds = KEEP_ALIVE_SECONDS
        return error is self._over

    def let_go_if_silent(self) -> None:
        """End the wait unless a request is coming, or is being answered."""
        self._loop.run_callback(self._let_go)  # what is thrown from a greenlet would never come back to it

    def _let_go(self) -> None:
        if self._is_silent and not is_readable(self.connection):
            self._is_silent = False
            self._greenlet.throw(self._over)

    def close(self) -> None:
        """The connection has ended."""
        self._timer.close()
        self._first_byte.close()

    def _breaks_its_silence(self) -> None:
        self._is_silent = False
        self._first_byte.stop()
        self._wait(ARRIVAL_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._timer.close()
        self._timer = self._loop.timer(seconds)
        self._timer.start(self._greenlet.throw, self._over)


class RequestBody(io.RawIOBase):
    """The body of one request, which must arrive in time; what the application leaves of it is drained.

    Args:
        body: gunicorn's, which has a `read`.
        length: bytes; None: not known, as it comes in chunks.
        request: gunicorn's, which has a `force_close`.
        connection: the client's, to linger on after a body that failed; None: not at all.
    """

    in_hand = 0  # bytes that the requests of this process have read
    most_in_hand = 2**62

    def __init__(self, body: Any, length: int | None, request: Any, connection: socket.socket | None = None) -> None:
        super().__init__()
        self._body, self._request, self._connection = body, request, connection
        self._left = length
        self._received = 0
        self._until = time.monotonic() + ARRIVAL_SECONDS
        self._is_at_end = self._has_failed = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """At most `size` bytes, all with -1; fewer only at the end.

        Raises:
            OSError: the body did not arrive in time, broke off, or has chunks that are none.
            Unavailable: the requests of this process hold too many bytes already.
        """
        pieces: list[bytes] = []
        wanted = float("inf") if size is None or size < 0 else size
        while wanted > 0 and (piece := self._read_piece(int(min(wanted, PIECE_BYTES)))):
            pieces.append(piece)
            wanted -= len(piece)
            self._received += len(piece)
            RequestBody.in_hand += len(piece)
            if RequestBody.in_hand > self.most_in_hand:
                raise Unavailable("Too many bytes of uploads are in hand already. Try again in a moment.")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def before_the_answer(self) -> None:
        """The answer is about to be sent: may the connection go on after it?"""
        if self._has_failed or (self._left or 0) > DRAIN_BYTES:
            self._request.force_close()

    def after_the_answer(self) -> None:
        """Drain what was not read: a connection closed on it would take the answer along, and its next request."""
        RequestBody.in_hand -= self._received
        if self._has_failed and self._connection is not None:
            linger(b"", self._connection)
        drained = 0
        with contextlib.suppress(OSError):
            while drained < DRAIN_BYTES and not self._has_failed and (piece := self._read_piece(PIECE_BYTES)):
                drained += len(piece)

    def _read_piece(self, size: int) -> bytes:
        if self._is_at_end or self._left == 0:
            return b""
        try:
            with gevent.Timeout(self._until - time.monotonic(), TimeoutError("it did not arrive in time")):
                piece: bytes = self._body.read(size)
        except Exception as error:  # of gunicorn's parser: it has no name for all of them that is documented
            self._has_failed = True
            raise OSError(str(error)) from error
        if not piece and self._left:  # gunicorn takes that for its end: half an image would go on its way
            self._has_failed = True
            raise OSError(f"it broke off, {self._left:,} bytes before its end")
        self._until += len(piece) / SLOWEST_BYTES_A_SECOND
        self._is_at_end = not piece
        if self._left is not None:
            self._left = max(0, self._left - len(piece))
        return piece


def linger(last_words: bytes, client: socket.socket) -> None:
    """Send the last words of a connection, and wait a little for the client to read them: closed on what it is
    sending yet, the connection would be reset, and they with it."""
    with contextlib.suppress(OSError), gevent.Timeout(LINGER_SECONDS, False):
        client.sendall(last_words)
        client.shutdown(socket.SHUT_WR)
        while client.recv(PIECE_BYTES):
            pass


def is_readable(connection: socket.socket) -> bool:
    """Whether there is something to read, or to accept, or the end has come; without waiting."""
    poll = gevent.monkey.get_original("select", "poll")()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
