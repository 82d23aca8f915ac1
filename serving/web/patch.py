"""After `patch`, a greenlet that waits for a socket, a lock or a queue lets the others run meanwhile."""

from gevent import monkey


def patch() -> None:
    """Patch this process, before it imports what waits. Only run_web_server.py does, when it is the program."""
    monkey.patch_all()
