"""A listener of a web process: it accepts, and is closed at a moment when nobody waits before it."""

import contextlib
import socket
from typing import Any, Protocol

from gevent.pool import Pool
from gevent.server import StreamServer


class Host(Protocol):
    """What serves those who come in: a worker of gunicorn's."""

    def handle(self, listener: Any, client: socket.socket, address: Any) -> None:
        """Serve a connection as long as it lasts; `listener` has gunicorn's `getsockname`."""


class Door(StreamServer):  # type: ignore[misc]  # gevent has no types
    """Accepts connections, each of which `host` serves in a greenlet of its own.

    Args:
        listener: listens already; other processes may accept from it, too.
        host: serves the connections.
        greenlets: bounds how many there are at once.
        is_shared: whether other processes accept from the same listener.
    """

    def __init__(self, listener: socket.socket, host: Host, greenlets: Pool, *, is_shared: bool) -> None:
        super().__init__(listener, handle=self._serve, spawn=greenlets)
        self._host, self._name = host, listener.getsockname()
        if is_shared:
            self.max_accept = 1  # at a time, lest one process take all
        self.start()

    def getsockname(self) -> Any:
        """The listener's address, also after it was closed: gunicorn asks for it as it begins with a connection."""
        return self._name

    def close_when_nobody_waits(self) -> None:
        """Accept all whom the system has accepted, who would be reset otherwise, and close the listener."""
        with contextlib.suppress(OSError):  # too many open files, say: whoever is served already is served to the end
            while not self.full() and (waits := self.do_read()):  # never switches to another greenlet
                self.do_handle(*waits)
        self.close()

    def _serve(self, client: socket.socket, address: Any) -> None:
        self._host.handle(self, client, address)
