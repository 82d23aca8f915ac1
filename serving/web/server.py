"""Run a WSGI application in several processes with threads each. It and gunicorn_worker alone know gunicorn."""

import contextlib
import gc
import logging
import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication

from serving.errors import CannotStart
from serving.web import gunicorn_worker

STUCK_WORKER_SECONDS = 60
# Longer than the 60 s after which the usual load balancers drop an idle connection: they must be first.
KEEP_ALIVE_SECONDS = 75
HEAP_SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(16 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TOP_PAD_": str(1024 * 1024),
}
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
    headers: Mapping[str, str],
) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight then have `drain_seconds` to end.

    `threads` requests may be in hand in each process; a few more threads are there to refuse others.
    Each process creates an application of its own, after the fork: threads and connections do not survive one.
    Every answer carries `headers`, unless it brings its own; also where the request never reaches the application.
    """
    gunicorn_worker.answer_with(headers)
    # The processes add up their metrics in files, which the library looks for as it is imported.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory = tempfile.mkdtemp(prefix="web-metrics-")
    options = {
        "bind": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "workers": processes,
        "worker_class": gunicorn_worker.Worker,
        "threads": threads + gunicorn_worker.SPARE_THREADS,
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


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, create_app: Callable[[], Any], options: dict[str, Any]) -> None:
        self._create_app, self._options = create_app, options
        super().__init__(prog=sys.argv[0])

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        application = self._create_app()
        # What is there now stays: no collection need look at it again (docs/decisions/023).
        gc.collect()
        gc.freeze()
        return application
