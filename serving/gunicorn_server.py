"""Run a WSGI application in several processes with threads each. The only module that knows gunicorn."""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.workers.gthread import ThreadWorker

STUCK_WORKER_SECONDS = 60
# Longer than the 60 s after which the usual load balancers drop an idle connection: they must be first.
KEEP_ALIVE_SECONDS = 75
SHARED_MEMORY = "/dev/shm"  # noqa: S108


def serve(
    create_app: Callable[[], Any], *, host: str, port: int, processes: int, threads: int, drain_seconds: float
) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight then have `drain_seconds` to end.

    Each process creates an application of its own, after the fork: threads and connections do not survive one.
    """
    # The processes add up their metrics in files, which the library looks for as it is imported.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory = tempfile.mkdtemp(prefix="web-metrics-")
    options = {
        "bind": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "workers": processes,
        "worker_class": _Worker,
        "threads": threads,
        "keepalive": KEEP_ALIVE_SECONDS,
        "worker_tmp_dir": SHARED_MEMORY
        if Path(SHARED_MEMORY).is_dir()
        else None,  # heartbeats must not wait for a disk
        "graceful_timeout": int(drain_seconds) + 5,
        "timeout": STUCK_WORKER_SECONDS,
        "child_exit": _forget_process,
        "control_socket_disable": True,  # nobody here speaks to it, and several services would share its path
    }
    parent = os.getpid()
    try:
        _Server(create_app, options).run()
    finally:
        if os.getpid() == parent:  # the web processes come by here as well, while others still count
            shutil.rmtree(directory, ignore_errors=True)


class _Worker(ThreadWorker):  # type: ignore[misc]
    """gthread that, once told to stop, also closes the door: else clients would connect and wait for nothing."""

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive:
            for listener in self.sockets:
                listener.close()


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


def _forget_process(_server: Any, worker: Any) -> None:
    from serving import metrics

    metrics.forget_process(worker.pid)
