"""Run a WSGI application in several processes with threads each. The only module that knows gunicorn."""

import contextlib
import errno
import functools
import json
import logging
import os
import resource
import select
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.http import wsgi
from gunicorn.http.errors import InvalidHeader, InvalidHeaderName, InvalidRequestLine, ParseException
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from serving.errors import CannotStart

# What reading a request's body raises when it breaks off, or has chunks that are none.
BROKEN_BODY = (ParseException, OSError)
STUCK_WORKER_SECONDS = 60
# Longer than the 60 s after which the usual load balancers drop an idle connection: they must be first.
KEEP_ALIVE_SECONDS = 75
# A request has this long to arrive, and longer as long as it comes at this rate: a client that dribbles must not hold
# a thread for ever.
ARRIVAL_SECONDS, SLOWEST_BYTES_A_SECOND = 20.0, 10_000
FULL_PAUSE_SECONDS = 0.1
# A thread stays with its connection for so long, to take the next request as well.
NEXT_REQUEST_SECONDS = 0.05
LINGER_SECONDS, LINGER_BYTES = 2.0, 64 * 1024 * 1024
# Beyond the threads that requests may occupy: they refuse what is too much, and answer the health checks.
SPARE_THREADS = 16
HEAP_SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(16 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TOP_PAD_": str(1024 * 1024),
}
MOST_ECHOED_CHARACTERS = 200
SERVER_FAILED = "The web server failed on this request; its log says why."
SHARED_MEMORY = "/dev/shm"  # noqa: S108


def restart_with_heap_settings() -> None:
    """Start this very process again, once, with glibc's heap set up for many threads that decode images.

    One heap for all threads that keeps freed space, instead of one each that gives it back to the system after every
    image: 0.9 ms less a request, and 107 instead of 135 MB a process (docs/decisions/007). glibc reads these as the
    process starts; what the environment says already stands.
    """
    missing = {name: value for name, value in HEAP_SETTINGS.items() if name not in os.environ}
    if missing:
        os.execve(sys.executable, sys.orig_argv, os.environ | missing)  # noqa: S606


def check_address(host: str, port: int) -> None:
    """Raises CannotStart when nothing can listen there; gunicorn by itself tries five times and ends with 1."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotStart(
                f"WEB_HOST={host}, WEB_PORT={port}: {error.strerror}. Set WEB_PORT to a free port."
            ) from error


def serve(
    create_app: Callable[[], Any],
    *,
    host: str,
    port: int,
    processes: int,
    threads: int,
    drain_seconds: float,
    error_headers: Mapping[str, str],
) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight then have `drain_seconds` to end.

    `threads` requests may be in hand in each process; a few more threads are there to refuse others.
    Each process creates an application of its own, after the fork: threads and connections do not survive one.
    What never reaches it, as a request line that is none does, is refused with `error_headers`.
    """
    _answer_as_the_application_does(error_headers)
    # The processes add up their metrics in files, which the library looks for as it is imported.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory = tempfile.mkdtemp(prefix="web-metrics-")
    options = {
        "bind": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "workers": processes,
        "worker_class": _Worker,
        "threads": threads + SPARE_THREADS,
        "worker_connections": max(1000, 4 * threads),  # most of them kept alive, and idle
        "keepalive": KEEP_ALIVE_SECONDS,
        "worker_tmp_dir": SHARED_MEMORY
        if Path(SHARED_MEMORY).is_dir()
        else None,  # heartbeats must not wait for a disk
        "graceful_timeout": int(drain_seconds) + 5,
        "timeout": STUCK_WORKER_SECONDS,
        "control_socket_disable": True,  # nobody here speaks to it, and several services would share its path
    }
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS says that there is no limit, and then refuses that
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # 1,024 are fewer than its connections
    parent = os.getpid()
    try:
        _Server(create_app, options).run()
    finally:
        if os.getpid() == parent:  # the web processes come by here as well, while others still count
            shutil.rmtree(directory, ignore_errors=True)


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
        super().__init__(sock)
        self.begin()

    def begin(self) -> None:
        self._until = time.monotonic() + ARRIVAL_SECONDS

    def chunk(self, size_hint: int | None = None) -> bytes:
        left = self._until - time.monotonic()
        if left <= 0 or not _is_readable(self.sock, left):
            # As if the client had reset the connection: gunicorn makes no fuss about that.
            raise OSError(errno.ECONNRESET, "it did not arrive in time")
        data: bytes = super().chunk(size_hint)
        self._until += len(data) / SLOWEST_BYTES_A_SECOND
        return data


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


class _Worker(ThreadWorker):  # type: ignore[misc]
    """gthread with requests that must arrive in time; and, once told to stop, it closes the door."""

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
        self.enqueue_req(_Connection(self.cfg, client, address, listener.getsockname()))

    def handle(self, conn: _Connection) -> Any:
        goes_on = super().handle(conn)
        while goes_on is True and self._next_request_comes(conn):
            goes_on = super().handle(conn)
        if not goes_on:
            conn.linger()  # here; gunicorn itself would do it where all other connections wait for it
        return goes_on

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


def _answer_as_the_application_does(error_headers: Mapping[str, str]) -> None:
    """Make gunicorn's own refusals JSON with `error_headers`, and let no answer name it.

    It has no settings for either; these two functions are where it writes.
    """
    util.write_error = functools.partial(_write_error, error_headers)
    default_headers = wsgi.Response.default_headers
    wsgi.Response.default_headers = lambda response: [
        line for line in default_headers(response) if not line.startswith("Server:")
    ]


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


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, create_app: Callable[[], Any], options: dict[str, Any]) -> None:
        self._create_app, self._options = create_app, options
        super().__init__(prog=sys.argv[0])

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        return self._create_app()
