"""Patches the standard library: a greenlet that waits for a socket, a lock or a queue lets other greenlets run."""

from gevent import monkey


def patch() -> None:
    """Patch this process, before it imports modules that wait. Only run_web_server.py calls this, as the program."""
    monkey.patch_all()
