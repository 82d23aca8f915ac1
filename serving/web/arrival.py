"""Limits how long a connection waits for a head and then for a body, and drains a body that nobody reads.

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

from serving.errors import Refused, Unavailable

# The usual load balancers drop an idle connection after 60 s, and must do so before we do.
KEEP_ALIVE_SECONDS = 75.0
# A head, and then a body, may take this long to arrive; a body may take longer while it comes at this rate.
ARRIVAL_SECONDS, SLOWEST_BYTES_A_SECOND = 20.0, 10_000
PIECE_BYTES = 64 * 1024
# So much of a refused body is read and thrown away, so that the connection can go on; with more left it is closed.
DRAIN_BYTES = 64 * 1024 * 1024
LINGER_SECONDS = 2.0
READABLE = 1  # the event of gevent's loop


class ArrivingHead:
    """A connection that waits for the head of a request; `with` it the wait ends in time, as if the client had gone.

    A head has ARRIVAL_SECONDS to arrive. Before each head but the first, the connection may be silent for
    KEEP_ALIVE_SECONDS. In a process that stops, a silent connection is let go at once.

    Args:
        greenlet: serves the connection, and waits in the `with` block.
        connection: the client's socket.
    """

    def __init__(self, greenlet: gevent.Greenlet, connection: socket.socket) -> None:
        self._greenlet, self.connection = greenlet, connection
        self.request: Any = None  # gunicorn's, once its head has come
        self.port = 0  # on which the connection came in
        self._silence_seconds = ARRIVAL_SECONDS
        self._is_silent = False
        self._over = gevent.Timeout()  # never started: the timer, or `_let_go`, throws it into the greenlet
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
        """End the wait, unless a request is coming or being answered."""
        self._loop.run_callback(self._let_go)  # a greenlet that throws into another would not run on by itself

    def _let_go(self) -> None:
        if self._is_silent and not is_readable(self.connection):
            self._is_silent = False
            self._greenlet.throw(self._over)

    def close(self) -> None:
        """Free the timer and the watcher of a connection that has ended."""
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
    """The body of one request, which must arrive in time; the part that the application does not read is drained.

    Args:
        body: gunicorn's body, which has a `read`.
        length: bytes; None if the body comes in chunks, so that its length is not known.
        request: gunicorn's request, which has a `force_close`.
        connection: the client's socket, on which to linger after a body that failed; None: do not linger.
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
        """True: part of Python's protocol of a file."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer of bytes; returns how many were read, fewer only at the end. Raises as `read` does."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, or all with -1; fewer only at the end.

        Raises:
            OSError: the body did not arrive in time, broke off, or has chunks that are malformed.
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
                says = "Too many bytes of uploads are in hand already. Try again in a moment."
                raise Unavailable(says, reason=Refused.UPLOAD_BYTES)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def before_the_answer(self) -> None:
        """Have the answer close the connection if it cannot go on: the body failed, or too much of it is left."""
        if self._has_failed or (self._left or 0) > DRAIN_BYTES:
            self._request.force_close()

    def after_the_answer(self) -> None:
        """Drain what the application did not read.

        A connection that is closed while the client sends is reset: the answer, and the next request, would be lost.
        """
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
        except TimeoutError:
            self._has_failed = True
            raise
        except OSError as error:
            self._has_failed = True
            raise OSError("it broke off before its end") from error
        except Exception as error:  # gunicorn documents no name for the errors of its parser, whose texts quote bytes
            self._has_failed = True
            raise OSError("its chunks are malformed") from error
        if not piece and self._left:  # gunicorn calls this the end, so that half an image would be read as a whole
            self._has_failed = True
            raise OSError(f"it broke off, {self._left:,} bytes before its end")
        self._until += len(piece) / SLOWEST_BYTES_A_SECOND
        self._is_at_end = not piece
        if self._left is not None:
            self._left = max(0, self._left - len(piece))
        return piece


def linger(last_words: bytes, client: socket.socket) -> None:
    """Send the last bytes of a connection, and wait up to LINGER_SECONDS for the client to close its end.

    A connection that is closed while the client sends is reset, and the client would never read the last bytes.
    """
    with contextlib.suppress(OSError), gevent.Timeout(LINGER_SECONDS, False):
        client.sendall(last_words)
        client.shutdown(socket.SHUT_WR)
        while client.recv(PIECE_BYTES):
            pass


def is_readable(connection: socket.socket) -> bool:
    """Whether a connection has bytes to read or has ended, or a listener has a connection to accept; does not wait."""
    poll = gevent.monkey.get_original("select", "poll")()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
