"""Whether the client of a request still waits for its answer."""

import contextlib
import socket

from serving.errors import ClientGone


def check_connection(connection: socket.socket | None) -> None:
    """Raises ClientGone if the client has hung up; None: nobody can tell."""
    if connection is not None and has_hung_up(connection):
        raise ClientGone("The client hung up.")


def has_hung_up(connection: socket.socket) -> bool:
    """Whether a client has closed its connection or its half of it. Bytes that it has sent stay unread."""
    waits = connection.gettimeout()
    try:
        connection.settimeout(0.0)  # not MSG_DONTWAIT: gevent's sockets ignore this flag, and wait
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        with contextlib.suppress(OSError):
            connection.settimeout(waits)
