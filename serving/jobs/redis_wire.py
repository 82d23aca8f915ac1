"""Commands out, replies in, over a connection of redis-py's. The only module that knows its inner parts.

    commands -- hiredis packs --> one send … as many replies as there were commands -- hiredis reads --> Python

redis-py makes the connection: address, TLS, login, Sentinel. Its own way of asking over it, through client, connection
and parser for each reply, takes four times the CPU time for a short command (docs/decisions/017).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import hiredis
import redis
from redis.connection import DefaultParser

Command = tuple[str | bytes | int | float, ...]

_NO_REPLY_YET = object()


class Parser(DefaultParser):  # type: ignore[misc, valid-type]
    """redis-py's parser, for the login and whatever goes its way; and another one, for what goes ours."""

    def on_connect(self, connection: Any, **options: Any) -> None:
        super().on_connect(connection, **options)
        self._replies = hiredis.Reader(
            protocolError=redis.exceptions.InvalidResponse, replyError=self.parse_error, notEnoughData=_NO_REPLY_YET
        )

    def read(self, count: int) -> list[Any]:
        """The next replies, errors among them as exceptions.

        Raises:
            OSError: the connection broke, or for the socket's timeout nothing came.
        """
        socket, reader, buffer = self._sock, self._replies, self._buffer
        if socket is None:  # another thread has disconnected it
            raise ConnectionError("Connection closed.")
        replies: list[Any] = []
        while len(replies) < count:
            reply = reader.gets()
            if reply is _NO_REPLY_YET:
                size = socket.recv_into(buffer)
                if not size:
                    raise ConnectionError("Connection closed by server.")
                reader.feed(buffer, 0, size)
            else:
                replies.append(reply)
        return replies


def exchange(connection: Any, commands: Sequence[Command]) -> list[Any]:
    """Send commands and read their replies, errors among them as exceptions, in one round trip.

    Raises:
        redis.RedisError: the connection broke, and is closed.
    """
    packed = b"".join(hiredis.pack_command(command) for command in commands)  # type: ignore[arg-type]
    connection.send_packed_command([packed], check_health=False)
    with _translated():
        try:
            return connection._parser.read(len(commands))  # type: ignore[no-any-return]
        except BaseException:  # what came later would be taken for the reply to something else
            connection.disconnect()
            raise


def subscribe(connection: Any, channel: str) -> Iterator[bytes]:
    """What is published on `channel` from now on, without end.

    Where nothing comes for the socket's timeout, Redis has as long again to give a sign of life.

    Raises:
        redis.RedisError: Redis refuses; or, when the next message is asked for, the connection broke, or there was no
            sign of life.
    """
    (reply,) = exchange(connection, [("SUBSCRIBE", channel)])
    if isinstance(reply, redis.exceptions.RedisError):
        raise reply
    return _messages(connection)


def _messages(connection: Any) -> Iterator[bytes]:
    is_asked = False
    with _translated():
        while True:
            try:
                (reply,), is_asked = connection._parser.read(1), False
            except TimeoutError:
                if is_asked:
                    raise
                connection.send_command("PING", check_health=False)
                is_asked = True
            else:
                if isinstance(reply, list) and reply[0] == b"message":
                    yield reply[2]


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """A socket's errors -> redis-py's."""
    try:
        yield
    except TimeoutError as error:
        raise redis.exceptions.TimeoutError("Timeout reading from socket") from error
    except OSError as error:
        raise redis.exceptions.ConnectionError(f"Error while reading from socket: {error}") from error
