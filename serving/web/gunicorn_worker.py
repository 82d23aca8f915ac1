"""How a web process reads requests and writes answers: gunicorn's threads, with requests that must arrive in time.

accept --> connection -- a thread --> request, in time? --> the application --> answer --> the next request, or linger
"""

import contextlib
import errno
import functools
import json
import select
import socket
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.http.body import LengthReader
from gunicorn.http.errors import InvalidHeader, InvalidHeaderName, InvalidRequestLine, ParseException
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

# What reading a request's body raises when it breaks off, or has chunks that are none.
BROKEN_BODY = (ParseException, OSError)
# A request has this long to arrive, and longer as long as it comes at this rate: a client that dribbles must not hold
# a thread for ever.
ARRIVAL_SECONDS, SLOWEST_BYTES_A_SECOND = 20.0, 10_000
READ_BYTES = 64 * 1024  # at once: most photos in one or two calls, each of which lets go of the interpreter
FULL_PAUSE_SECONDS = 0.1
# A thread stays with its connection for so long, to take the next request as well.
NEXT_REQUEST_SECONDS = 0.05
LINGER_SECONDS, LINGER_BYTES = 2.0, 64 * 1024 * 1024
# Beyond the threads that requests may occupy: they refuse what is too much, and answer the health checks.
SPARE_THREADS = 16
MOST_ECHOED_CHARACTERS = 200
SERVER_FAILED = "The web server failed on this request; its log says why."


def has_hung_up(environ: Mapping[str, Any]) -> bool:
    """Whether the client of a request, by its WSGI environment, has closed its connection, or its half of it."""
    connection = environ.get("gunicorn.socket")
    if connection is None:
        return False
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"")
    except BlockingIOError:
        return False
    except OSError:
        return True


class _Unreader(SocketUnreader):  # type: ignore[misc]
    """Reads a request from its connection for as long as it may take to arrive."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, max_chunk=READ_BYTES)
        self.begin()

    def begin(self) -> None:
        self._until = time.monotonic() + ARRIVAL_SECONDS

    def chunk(self, size_hint: int | None = None) -> bytes:
        size = min(max(size_hint or 0, self.mxchunk), self.max_body_chunk)
        left = self._until - time.monotonic()
        if left > 0:
            with contextlib.suppress(BlockingIOError):  # most of the time it is there already
                return self._received(self.sock.recv(size, socket.MSG_DONTWAIT))
            if _is_readable(self.sock, left):
                return self._received(self.sock.recv(size))
        # As if the client had reset the connection: gunicorn makes no fuss about that.
        raise OSError(errno.ECONNRESET, "it did not arrive in time")

    def _received(self, data: bytes) -> bytes:
        self._until += len(data) / SLOWEST_BYTES_A_SECOND
        return data


class _Socket(socket.socket):
    """A client's, told how to block only where it does otherwise: gunicorn tells it several times a request."""

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def settimeout(self, value: float | None) -> None:
        if value != self.gettimeout():
            super().settimeout(value)


class _Connection(TConn):  # type: ignore[misc]
    def init(self) -> None:
        super().init()
        if isinstance(self.parser.unreader, _Unreader):  # kept alive: the next request
            self.parser.unreader.begin()
        else:
            self.parser.unreader = _Unreader(self.sock)

    def close(self, graceful: bool = False) -> None:
        if self.sock.fileno() >= 0:
            super().close(graceful)

    def linger(self) -> None:
        """Close so that the answer still reaches a client that is sending yet, which takes a while."""
        util.close_graceful(self.sock, timeout=LINGER_SECONDS, max_drain=LINGER_BYTES)


class Worker(ThreadWorker):  # type: ignore[misc]
    """gthread with requests that must arrive in time; and, once told to stop, it closes the door."""

    def init_process(self) -> None:
        # It reads its settings two dozen times a request, each through a method that looks it up by name.
        self.cfg.__dict__.update({name: setting.get() for name, setting in self.cfg.settings.items()})
        super().init_process()

    def accept(self, listener: socket.socket) -> None:
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another process was faster; the client has gone
            return
        except OSError as error:  # out of files: those who are in hand must not suffer
            self.log.error("no connection can be accepted: %s", error)
            time.sleep(FULL_PAUSE_SECONDS)
            return
        self.nr_conns += 1
        client = _Socket(client.family, client.type, client.proto, fileno=client.detach())
        self.enqueue_req(_Connection(self.cfg, client, address, listener.getsockname()))

    def handle(self, conn: _Connection) -> Any:
        goes_on = super().handle(conn)
        while goes_on is True and self._next_request_comes(conn):
            goes_on = super().handle(conn)
        if not goes_on:
            conn.linger()  # here; gunicorn itself would do it where all other connections wait for it
        return goes_on

    def _keepalive_after(self, conn: _Connection, keepalive: bool) -> bool:
        # A body that was read to its end leaves nothing to wait for.
        is_read = isinstance(conn.parser.mesg.body.reader, LengthReader) and conn.parser.mesg.body.reader.length == 0
        return keepalive and (is_read or super()._keepalive_after(conn, keepalive))

    def _next_request_comes(self, conn: _Connection) -> bool:
        """Whether the connection brings another request at once, which this thread then takes, as long as others are
        free: gunicorn's way leads through the selector to another thread."""
        few_connections = self.nr_conns <= self.cfg.threads - SPARE_THREADS
        buffered = conn.parser.unreader.buf.getvalue()
        return self.alive and few_connections and not buffered and _is_readable(conn.sock, NEXT_REQUEST_SECONDS)

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive:
            for listener in self.sockets:
                # Who is through the door already is served; who comes later is refused by the system, and at once.
                while self.nr_conns < self.worker_connections and _is_readable(listener, 0):
                    self.accept(listener)
                listener.close()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        # Logged as it came, a line with a forgotten colon would tell the key: `Authorization Bearer …`.
        if isinstance(exc, InvalidHeader | InvalidHeaderName):
            exc.hdr = "(hidden)"
        if isinstance(exc, InvalidRequestLine):
            exc.req = "(hidden)"
        super().handle_error(req, client, addr, exc)


class _Response(wsgi.Response):  # type: ignore[misc]
    """An answer that does not name its server, carries what every answer does, and is sent at once.

    gunicorn sends head and body apart: another system call, and another time that the client wakes.
    """

    always: Sequence[tuple[str, str]] = ()  # name in lower case, line
    headers_sent: bool
    _unsent = b""

    def default_headers(self) -> list[str]:
        lines = [line for line in super().default_headers() if not line.startswith("Server:")]
        given = {name.lower() for name, _ in self.headers}
        return lines + [line for name, line in self.always if name not in given]

    def send_headers(self) -> None:
        if not self.headers_sent:
            lines = self.default_headers() + [f"{name}: {value}\r\n" for name, value in self.headers]
            self._unsent = ("".join(lines) + "\r\n").encode("latin-1")
            self.headers_sent = True

    def _emit_body(self, data: bytes) -> None:
        if self.chunked:
            self._send_the_rest()
            super()._emit_body(data)
        elif data:
            self._unsent += data
            self._send_the_rest()

    def close(self) -> None:
        self.send_headers()
        self._send_the_rest()
        super().close()

    def can_sendfile(self) -> bool:
        return False

    def _send_the_rest(self) -> None:
        if self._unsent:
            self.sock.sendall(self._unsent)
            self._unsent = b""


def answer_with(headers: Mapping[str, str]) -> None:
    """Put `headers` on every answer that does not bring them itself, and make gunicorn's own refusals JSON.

    It has no settings for either; these two names are where it looks.
    """
    util.write_error = functools.partial(_write_error, headers)
    wsgi.Response = _Response
    _Response.always = [(name.lower(), f"{name}: {value}\r\n") for name, value in headers.items()]


def _write_error(headers: Mapping[str, str], client: socket.socket, status: int, _reason: str, message: str) -> None:
    says = f"This request cannot be read: {message[:MOST_ECHOED_CHARACTERS]}." if message else SERVER_FAILED
    body = json.dumps({"success": False, "error": says})
    head = {"Connection": "close", "Content-Type": "application/json", "Content-Length": len(body), **headers}
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in head.items())]
    util.write_nonblock(client, "\r\n".join([*lines, "", body]).encode())  # a client that reads nothing holds no thread


def _is_readable(connection: socket.socket, timeout_seconds: float) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(timeout_seconds * 1000))
