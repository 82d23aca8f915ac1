"""Starts and stops the web server's processes: gunicorn serves, by its gevent worker.

    serve --> gunicorn's master -- forks --> web processes: each makes an application, and serves it in an event loop
                                -- watches -> starts another for one that ended or stands still

What the worker does otherwise than gunicorn's own stands in `gunicorn_worker`.
"""

import contextlib
import gc
import logging
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from wsgiref.types import WSGIApplication

import gevent
import gevent.threadpool
from gunicorn.app.base import BaseApplication

from serving.errors import RequestError
from serving.telemetry import logs
from serving.telemetry.web_metrics import WebMetrics
from serving.web import gunicorn_worker
from serving.web.arrival import KEEP_ALIVE_SECONDS, RequestBody

STUCK_WORKER_SECONDS = 60
# Each connection costs a greenlet and an open file, but no place.
MOST_CONNECTIONS, SPARE_FILES = 8192, 200
DECODERS = 2


def decoding_pool() -> gevent.threadpool.ThreadPool:
    """Real threads for images that would hold the event loop up too long; two, since each may take hundreds of MB."""
    hub = gevent.get_hub()
    hub.NOT_ERROR = (*hub.NOT_ERROR, RequestError)  # gevent would print a traceback for each image that is broken
    return gevent.threadpool.ThreadPool(DECODERS)


@dataclass(frozen=True)
class Applications:
    """What one web process serves."""

    service: WSGIApplication
    on_metrics_port: WSGIApplication


def serve(
    create_apps: Callable[[], Applications],
    counts: WebMetrics,
    *,
    host: str,
    port: int,
    metrics_port: int,
    processes: int,
    drain_seconds: float,
    delay_seconds: float,
    headers: Mapping[str, str],
    most_upload_bytes: int,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        create_apps: called in each process after the fork, because threads and connections do not survive a fork.
        counts: is told before each fork.
        host, port: where the server listens; the host is a name or an IP address.
        metrics_port: where it listens for Prometheus, on the same host; 0: nowhere.
        processes: how many web processes serve.
        drain_seconds: how long requests may take that are in flight when the server closes the door.
        delay_seconds: how long the door stays open after the server was told to stop.
        headers: of answers to requests that never reach the application.
        most_upload_bytes: that the requests of one process may hold in all.
    """
    RequestBody.most_in_hand = most_upload_bytes
    gunicorn_worker.Worker.delay_seconds = delay_seconds
    gunicorn_worker.replace_refusals(headers)
    gunicorn_worker.beat_in_memory()
    ports = [port, metrics_port] if metrics_port else [port]
    settings = _settings(host, ports, processes, delay_seconds + drain_seconds)
    _Server(create_apps, counts, settings, metrics_port).run()


def set_up_logs(log_format: str, log_level: str) -> None:
    """Set up the log of the web server, with all its processes; the arguments are as of `logs.set_up`."""
    # Libraries' debug lines tell what is in a request, or in an upload.
    logs.set_up(log_format, log_level, libraries_level="warning" if log_level == "warning" else "info")
    gevent.get_hub().print_exception = _note_failure


def _note_failure(_context: object, kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    """Log the error of a greenlet, or of a callback of the loop, that nobody has caught."""
    logs.uncaught(kind, error, traceback)


def _settings(host: str, ports: Sequence[int], processes: int, stop_seconds: float) -> dict[str, Any]:
    """gunicorn's settings."""
    return {
        "bind": [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for port in ports],
        "workers": processes,
        "worker_class": gunicorn_worker.Worker,
        "worker_connections": max(1, min(MOST_CONNECTIONS, _raise_file_limit() - SPARE_FILES)),
        "keepalive": int(KEEP_ALIVE_SECONDS),
        "graceful_timeout": int(stop_seconds) + 5,
        "timeout": STUCK_WORKER_SECONDS,
        # No header of a proxy changes anything: gunicorn believes the scheme and the path in those of a trusted one.
        "forwarded_allow_ips": "",
        "logger_class": gunicorn_worker.Log,
        "loglevel": logging.getLevelName(logging.getLogger().getEffectiveLevel()).lower(),
        "control_socket_disable": True,  # nobody here uses it, and several services would share its path
        "post_fork": gunicorn_worker.hear_sigterm,
        "pre_request": gunicorn_worker.note_request,
    }


def _raise_file_limit() -> int:
    """Allow as many open files as the system lets us; returns how many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS says that there is no limit, and then refuses that
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft > 0 else 1024


class _Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    def __init__(
        self, create_apps: Callable[[], Applications], counts: WebMetrics, settings: dict[str, Any], metrics_port: int
    ) -> None:
        self._create_apps, self._counts, self._settings = create_apps, counts, settings
        self._metrics_port = metrics_port
        super().__init__(prog=sys.argv[0])

    def load_config(self) -> None:
        """Take the settings over; gunicorn calls this in the master."""
        for name, value in self._settings.items():
            self.cfg.set(name, value)
        self.cfg.set("pre_fork", self._before_a_fork)

    def _before_a_fork(self, _arbiter: Any, _worker: Any) -> None:
        self._counts.next_process()

    def load(self) -> WSGIApplication:
        """Create the applications; gunicorn calls this in each web process."""
        created = self._create_apps()
        application = gunicorn_worker.BodiesInTime(created.service, {self._metrics_port: created.on_metrics_port})
        # The garbage collector need not look again at what is there now (docs/decisions/023).
        gc.collect()
        gc.freeze()
        return application
