"""Starts and stops the web server's processes: gunicorn's gevent worker serves. Only this module imports gunicorn.

accept --> connection, a greenlet --> head, in time? --> body, in time? --> the application --> answer --> drain
               ^------------------------- the next request ------------------------------------------'

tests/web/test_what_we_need_of_gunicorn.py names each thing that we rely on and gunicorn does not document.
"""

import contextlib
import gc
import json
import logging
import os
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import gevent
import gevent.threadpool
from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.http import wsgi
from gunicorn.workers.ggevent import GeventWorker
from werkzeug.wsgi import ClosingIterator

from serving.errors import StartError
from serving.web.arrival import KEEP_ALIVE_SECONDS, ArrivingHead, RequestBody, linger

STUCK_WORKER_SECONDS = 60
# Each costs a greenlet and a file, no place.
MOST_CONNECTIONS, SPARE_FILES = 8192, 200
STOP_LOOK_SECONDS, STOP_ACCEPT_SECONDS = 0.02, 0.2
DECODERS = 2
MOST_ECHOED_CHARACTERS = 200
SERVER_FAILED = "The web server failed on this request; its log says why."
HEAP_SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(16 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TOP_PAD_": str(1024 * 1024),
}
SHARED_MEMORY = "/dev/shm"  # noqa: S108

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


def restart_with_heap_settings() -> None:
    """Start this very process again, once, with glibc's heap set up for a process that decodes images.

    A heap that keeps freed space, instead of giving it back to the system after every image (docs/decisions/007).
    glibc reads these as the process starts; what the environment says already stands.
    """
    missing = {name: value for name, value in HEAP_SETTINGS.items() if name not in os.environ}
    if missing:
        os.execve(sys.executable, sys.orig_argv, os.environ | missing)  # noqa: S606


def check_address(host: str, port: int) -> None:
    """Raises StartError when nothing can listen there; gunicorn by itself tries five times and ends with 1."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(
                f"WEB_HOST={host}, WEB_PORT={port}: {error.strerror}. Set WEB_PORT to a free port."
            ) from error


def decoding_pool() -> gevent.threadpool.ThreadPool:
    """Real threads for what would hold the event loop up too long; two, since each may take hundreds of megabytes."""
    return gevent.threadpool.ThreadPool(DECODERS)


def serve(
    create_app: Callable[[], Application],
    *,
    host: str,
    port: int,
    processes: int,
    drain_seconds: float,
    headers: Mapping[str, str],
    most_upload_bytes: int,
) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight then have `drain_seconds` to end.

    Each process creates an application of its own, after the fork: threads and connections do not survive one.
    Every answer carries `headers`, unless it brings its own; also where the request never reaches the application.
    The requests of one process may hold `most_upload_bytes` of uploads in all.
    """
    RequestBody.most_in_hand = most_upload_bytes
    refuse_with(headers)
    # The processes add up their metrics in files, which the library looks for as it is imported.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory = tempfile.mkdtemp(prefix="web-metrics-")
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS says that there is no limit, and then refuses that
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # 1,024 are fewer than its connections
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    options = {
        "bind": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "workers": processes,
        "worker_class": Worker,
        "worker_connections": max(1, min(MOST_CONNECTIONS, (soft if soft > 0 else 1024) - SPARE_FILES)),
        "keepalive": int(KEEP_ALIVE_SECONDS),
        # Heartbeats must not wait for a disk.
        "worker_tmp_dir": SHARED_MEMORY if Path(SHARED_MEMORY).is_dir() else None,
        "graceful_timeout": int(drain_seconds) + 5,
        "timeout": STUCK_WORKER_SECONDS,
        "control_socket_disable": True,  # nobody here speaks to it, and several services would share its path
        "logger_class": Log,
        "pre_request": _note_request,
        "post_worker_init": _stop_at_sigterm,
        "worker_exit": _note_exit,
    }
    parent = os.getpid()
    try:
        _Server(lambda: arriving_in_time(create_app(), headers), options).run()
    finally:
        if os.getpid() == parent:  # the web processes come by here as well, while others still count
            shutil.rmtree(directory, ignore_errors=True)


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, create_app: Callable[[], Application], options: dict[str, Any]) -> None:
        self._create_app, self._options = create_app, options
        super().__init__(prog=sys.argv[0])

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Application:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        application = self._create_app()
        # What is there now stays: no collection need look at it again (docs/decisions/023).
        gc.collect()
        gc.freeze()
        return application


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker, but for how long it waits for a head."""

    def handle(self, listener: socket.socket, client: socket.socket, addr: Any) -> None:
        """A connection, as long as it lasts."""
        head = _heads[gevent.getcurrent()] = ArrivingHead(gevent.getcurrent(), client)
        try:
            super().handle(listener, client, addr)
        finally:
            del _heads[gevent.getcurrent()]
            head.close()

    def timeout_ctx(self) -> ArrivingHead:
        """What gunicorn waits within for the next head of the connection that this greenlet serves."""
        return _heads[gevent.getcurrent()]


_heads: dict[gevent.Greenlet, ArrivingHead] = {}  # of every connection of this process
_current = threading.local()  # the request of each


def _note_request(_worker: Any, request: Any) -> None:
    _current.request = request


def arriving_in_time(application: Application, headers: Mapping[str, str]) -> Application:
    """`application`, whose requests' bodies arrive in time, and whose answers carry `headers` unless they bring them.

    `environ["service.connection"]` holds the client's socket.
    """
    always = [(name.lower(), (name, value)) for name, value in headers.items()]

    def serve_one(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, given: list[tuple[str, str]], *exc_info: Any) -> Any:
            names = {name.lower() for name, _ in given}
            return start_response(status, given + [pair for name, pair in always if name not in names], *exc_info)

        environ["service.connection"] = _heads[gevent.getcurrent()].connection
        length = environ.get("CONTENT_LENGTH")
        if not length and "HTTP_TRANSFER_ENCODING" not in environ:
            return application(environ, start)
        length_bytes = int(length) if length else None
        body = RequestBody(environ["wsgi.input"], length_bytes, _current.request, environ["service.connection"])
        environ["wsgi.input"] = body
        try:
            answer = application(environ, start)
        except BaseException:
            body.after_the_answer()
            raise
        body.before_the_answer()
        return ClosingIterator(answer, body.after_the_answer)

    return serve_one


class Log(Logger):  # type: ignore[misc]
    """gunicorn's log, without the words of a request that cannot be read: a forgotten colon would tell the key."""

    def warning(self, msg: str, *args: Any, **options: Any) -> None:
        if msg.startswith("Invalid request"):
            msg = _hide_what_is_quoted(msg)
        super().warning(msg, *args, **options)


def _hide_what_is_quoted(message: str) -> str:
    return re.sub(r"""['"].*""", "'(hidden)'", message, flags=re.DOTALL)


def refuse_with(headers: Mapping[str, str]) -> None:
    """Make gunicorn's own refusals JSON with `headers`, and have no answer name the server.

    gunicorn has no settings for either; these two names are where it looks.
    """

    def write_error(client: socket.socket, status: int, _reason: str, message: str) -> None:
        says = (
            f"This request cannot be read: {_hide_what_is_quoted(message)[:MOST_ECHOED_CHARACTERS]}."
            if message
            else SERVER_FAILED
        )
        body = json.dumps({"success": False, "error": says})
        head = {"Connection": "close", "Content-Type": "application/json", "Content-Length": len(body), **headers}
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            *(f"{name}: {value}" for name, value in head.items()),
        ]
        linger("\r\n".join([*lines, "", body]).encode(), client)

    stock = wsgi.Response.default_headers

    def default_headers(response: Any) -> list[str]:
        return [line for line in stock(response) if not line.startswith("Server:")]

    util.write_error = write_error
    wsgi.Response.default_headers = default_headers


def _stop_at_sigterm(worker: Any) -> None:
    """gunicorn alone would wait for each kept connection, and lose those that the system has accepted for it."""
    gevent.signal_handler(signal.SIGTERM, _stop, worker, gevent.getcurrent())


def _stop(worker: Any, main: gevent.greenlet) -> None:
    gevent.sleep(STOP_ACCEPT_SECONDS)  # for what the system has accepted for it
    worker.alive = False  # within a second gunicorn accepts no more; what it answers meanwhile says `Connection: close`
    gevent.sleep(STOP_LOOK_SECONDS)
    while _heads:
        for head in list(_heads.values()):
            head.let_go_if_silent()
        gevent.sleep(STOP_LOOK_SECONDS)
    if not _has_left:
        main.throw(SystemExit(0))


_has_left: list[Any] = []  # the worker of this process, once it has


def _note_exit(_arbiter: Any, worker: Any) -> None:
    _has_left.append(worker)
