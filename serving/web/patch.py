"""Sets a process up before it imports what waits or reads the environment: run_web_server.py, as the program."""

import os
from pathlib import Path

from gevent import monkey

# gunicorn reads these by itself as it is imported, or in each request; ours are the settings alone.
GUNICORNS_VARIABLES = ("FORWARDED_ALLOW_IPS", "SCRIPT_NAME", "WEB_CONCURRENCY")


def patch() -> None:
    """Patch the standard library: a greenlet that waits for a socket, a lock or a queue lets other greenlets run.

    To be called before modules are imported that wait. Takes GUNICORNS_VARIABLES out of the environment as well, and
    leaves a working directory that somebody has removed: gunicorn could not be imported in it.
    """
    monkey.patch_all()
    try:
        Path.cwd()
    except FileNotFoundError:
        os.chdir("/")
    for name in GUNICORNS_VARIABLES:
        os.environ.pop(name, None)
