"""What gunicorn's gevent worker does otherwise here. Only this module uses what gunicorn does not document.

    connection, a greenlet --> head, in time? --> body, in time? --> the application --> answer --> drain the body
                                 ^----------------------- the next request --------------------------'
    SIGTERM --> /readyz is 503, answers say `Connection: close` -- the delay --> the door closes --> the last answer

tests/web/test_what_we_need_of_gunicorn.py names each undocumented thing that this module needs.
"""

import json
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import gevent
from gevent.pool import Pool
from gunicorn import util
from gunicorn.glogging import Logger
from gunicorn.http import wsgi
from gunicorn.workers import base
from gunicorn.workers.ggevent import GeventWorker
from werkzeug.wsgi import ClosingIterator

from serving.web import request_ids, request_log
from serving.web.arrival import ArrivingHead, RequestBody, linger
from serving.web.door import Door
from serving.web.problems import SERVER_FAILED

BEAT_SECONDS, STOP_LOOK_SECONDS = 1.0, 0.02
STOP_ARRIVE_SECONDS = 0.2  # for requests that were on their way when the door closed
MOST_ECHOED_CHARACTERS = 200

_heads: dict[gevent.Greenlet, ArrivingHead] = {}  # of each connection of this process; a greenlet serves it
_is_stopping = threading.Event()  # this process was told to stop
_is_closing = threading.Event()  # … and closes the door
_stock_headers = wsgi.Response.default_headers


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's gevent worker, with a limit on how long it waits for a head, and another way to stop.

    gunicorn's own waits for each kept connection, and resets those that come while it ends.
    """

    delay_seconds = 0.0  # for which the door stays open after SIGTERM, so that a balancer notices and sends no more

    def run(self) -> None:
        """Accept and serve until SIGTERM, and on for `delay_seconds`; close the door; end with the last answer."""
        gevent.signal_handler(signal.SIGTERM, _is_stopping.set)  # a second one changes nothing: systemd sends two
        # One pool a door: a Prometheus comes in at its own, however full the clients' is.
        pools, is_shared = [Pool(self.worker_connections) for _ in self.sockets], self.cfg.workers > 1
        doors = [
            Door(listener, self, pool, is_shared=is_shared) for listener, pool in zip(self.sockets, pools, strict=True)
        ]
        while self.alive and not _is_stopping.wait(BEAT_SECONDS):  # not alive: the signal came while it started
            self.notify()
        _is_stopping.set()
        self._go_on_for(self.delay_seconds)
        _is_closing.set()
        for door in doors:
            door.close_when_nobody_waits()
        self._go_on_for(STOP_ARRIVE_SECONDS)
        until = time.monotonic() + self.cfg.graceful_timeout
        while any(pools) and time.monotonic() < until:
            for head in list(_heads.values()):
                head.let_go_if_silent()
            self._go_on_for(STOP_LOOK_SECONDS)

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Serve a connection as long as it lasts."""
        head = _heads[gevent.getcurrent()] = ArrivingHead(gevent.getcurrent(), client)
        head.port = listener.getsockname()[1]
        try:
            super().handle(listener, client, addr)
        finally:
            del _heads[gevent.getcurrent()]
            head.close()

    def timeout_ctx(self) -> ArrivingHead:
        """The context in which gunicorn waits for the next head of the connection that this greenlet serves."""
        return _heads[gevent.getcurrent()]

    def _go_on_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.notify()
            gevent.sleep(min(left, BEAT_SECONDS))


def hear_sigterm(_arbiter: Any, worker: Any) -> None:
    """gunicorn's hook `post_fork`: hear of a SIGTERM that comes while the process starts; gunicorn would lose it."""
    signal.signal(signal.SIGTERM, worker.handle_exit)


def note_request(_worker: Any, request: Any) -> None:
    """gunicorn's hook `pre_request`: keep gunicorn's request object for `BodiesInTime`."""
    _heads[gevent.getcurrent()].request = request


class BodiesInTime:
    """WSGI applications whose requests' bodies arrive in time.

    `environ["service.connection"]` is the client's socket. Two events tell of the process's end:
    `environ["service.is_stopping"]` is set once the process was told to stop, `environ["service.is_closing"]` when it
    goes on to close the door.

    Args:
        application: answers the requests.
        by_port: answer, in its place, those that came in on other ports.
    """

    def __init__(self, application: WSGIApplication, by_port: Mapping[int, WSGIApplication]) -> None:
        self._application, self._by_port = application, by_port

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        head = _heads[gevent.getcurrent()]
        environ["service.connection"] = head.connection
        environ["service.is_stopping"], environ["service.is_closing"] = _is_stopping, _is_closing
        environ.pop("HTTP_UPGRADE", None)  # to a websocket, say: Flask would refuse instead of going on with HTTP
        length = environ.get("CONTENT_LENGTH")
        if not length and "HTTP_TRANSFER_ENCODING" not in environ:
            return self._answer(environ, start_response, head)
        length_bytes = int(length) if length else None
        environ["wsgi.input"] = body = RequestBody(environ["wsgi.input"], length_bytes, head.request, head.connection)
        try:
            answer = self._answer(environ, start_response, head)
        except BaseException:
            body.after_the_answer()
            raise
        body.before_the_answer()
        return ClosingIterator(answer, body.after_the_answer)

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse, head: ArrivingHead) -> Iterable[bytes]:
        answer = self._by_port.get(head.port, self._application)(environ, start_response)
        if _is_stopping.is_set():  # so the client's next request goes elsewhere, and finds no door that just closes
            head.request.force_close()
        return answer


class Log(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's log, whose lines have the form of all others."""

    def setup(self, cfg: Any) -> None:
        """Leave the lines to the handler that all others have; gunicorn calls this as it starts."""
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class HideRequest(logging.Filter):
    """Hides in gunicorn's log the words of a request: they may hold an API key."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite a line of the log; always True, so that no line is lost."""
        if str(record.msg).startswith("Invalid request"):
            record.msg, record.args = hide_quoted(record.getMessage()), ()
        elif str(record.msg).startswith("Error handling request"):  # with its address
            record.msg, record.args = "Error handling request", ()
        return True


def hide_quoted(message: str) -> str:
    """The message without what follows its first quotation mark."""
    return re.sub(r"""['"].*""", "'(hidden)'", message, flags=re.DOTALL)


class Refusals:
    """Writes gunicorn's own refusals, of requests that never reach the application, as JSON.

    Args:
        headers: name -> value, of every refusal.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def write_error(self, client: socket.socket, status: int, _reason: str, message: str) -> None:
        """Answer a client with an HTTP status and gunicorn's message, then wait a little until the client has read."""
        says = f"This request cannot be read: {hide_quoted(message)[:MOST_ECHOED_CHARACTERS]}."
        request_id = request_ids.new()
        request_log.note_unreadable(request_id, status)
        told = {"success": False, "error": says if message else SERVER_FAILED, "request_id": request_id}
        body = json.dumps(told)
        head = {
            "Connection": "close",
            "Content-Type": "application/json",
            "Content-Length": len(body),
            request_ids.HEADER: request_id,
            **self._headers,
        }
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            *(f"{name}: {value}" for name, value in head.items()),
        ]
        linger("\r\n".join([*lines, "", body]).encode(), client)


def _headers_without_server(response: Any) -> list[str]:
    return [line for line in _stock_headers(response) if not line.startswith("Server:")]


class Heartbeat:
    """When a worker was last alive, in a file of memory that it shares with gunicorn's master.

    gunicorn's own is a file in a directory: where that has become full or read-only, the next worker that has to be
    replaced ends the whole server.
    """

    def __init__(self, _settings: Any) -> None:
        self._file = os.fdopen(os.memfd_create("heartbeat"), "r+b", buffering=0)

    def notify(self) -> None:
        """Note that the worker is alive now, monotonic seconds."""
        os.utime(self.fileno(), (time.monotonic(),) * 2)

    def last_update(self) -> float:
        """When the worker was alive, monotonic seconds."""
        return os.fstat(self.fileno()).st_mtime

    def fileno(self) -> int:
        """The number of the open file."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file in this process."""
        self._file.close()


def beat_in_memory() -> None:
    """Have gunicorn's workers tell by a `Heartbeat` that they live, where the system has files of memory (Linux)."""
    if hasattr(os, "memfd_create"):
        base.WorkerTmp = Heartbeat


def replace_refusals(headers: Mapping[str, str]) -> None:
    """Make gunicorn's own refusals JSON with `headers`, hide requests in its log, and have no answer name the server.

    gunicorn has no settings for the first and the last; it looks their functions up under these two names.
    """
    util.write_error = Refusals(headers).write_error
    wsgi.Response.default_headers = _headers_without_server
    logging.getLogger("gunicorn.error").addFilter(HideRequest())
