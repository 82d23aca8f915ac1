"""Sends commands by redis-py's public names, several in one round trip, and turns its errors into ours.

commands -- one pipeline --> Redis -- replies --> the first error among them is raised, else all are returned
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import redis

from serving.errors import QueueAway, QueueOutOfMemory

Command = tuple[str | bytes | int | float, ...]

_REPLICA_ERRORS = (redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError)


class RedisClient(redis.Redis):
    """A client that leaves a Redis which has become a replica: its address leads to the new primary by now.

    A primary that was demoted keeps its connections, and answers each write with an error, for ever. So the client
    closes its connections when it reads such an error.
    """

    resend = False  # whether the client sends a command whose connection broke once more

    def exchange(self, *commands: Command) -> list[Any]:
        """Send commands and read their replies, in one round trip. Raises the first RedisError among the replies."""
        connection = self._take_connection()
        try:
            try:
                replies = _exchange(connection, commands)
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                if not self.resend:
                    raise
                replies = _exchange(connection, commands)
        finally:
            self._put_back(connection)
        done = replies[-1] if isinstance(replies[-1], list) else []
        # When Redis refuses a transaction, the first error says why; EXEC's error only says that nothing was done.
        for reply in (*replies, *done):
            if isinstance(reply, redis.exceptions.RedisError):
                raise self._as_lost_connection(reply) or reply
        return replies

    def transact(self, commands: Sequence[Command], ahead: Sequence[Command] = ()) -> tuple[list[Any], list[Any]]:
        """Run `commands` in one transaction, after the commands `ahead`, which may block; all in one round trip.

        Returns the replies to `ahead`, and the replies to `commands`. Raises RedisError.
        """
        replies = self.exchange(*ahead, ("MULTI",), *commands, ("EXEC",))
        return replies[: len(ahead)], replies[-1]

    def told(self) -> dict[str, Any]:
        """What INFO tells; nothing where this user may not ask. Raises QueueAway."""
        with redis_errors_as_ours(), contextlib.suppress(redis.exceptions.NoPermissionError):
            return dict(self.info())
        return {}

    @contextlib.contextmanager
    def subscribed(self, channel: str) -> Iterator[Iterator[bytes]]:
        """An endless iterator over the messages that arrive on `channel` from now on, as bytes.

        When nothing arrives for the socket's timeout, the iterator sends a PING, and waits as long again for its reply.

        Raises:
            redis.RedisError: Redis refuses the channel. The iterator raises it when the connection broke, or when
                Redis did not reply to the PING.
        """
        connection: Any = self.connection_pool.get_connection()
        try:
            connection.send_command("SUBSCRIBE", channel)
            connection.read_response()
            yield _messages(connection)
        finally:
            connection.disconnect()  # no other command may use a connection that is subscribed
            self.connection_pool.release(connection)

    @functools.cached_property
    def _idle(self) -> list[Any]:
        """Connections of a client that resends.

        The pool checks each connection that it hands out, which costs as much as a command. A client that resends
        need not check: it finds out by using the connection.
        """
        return []

    def _take_connection(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self.connection_pool.get_connection()

    def _put_back(self, connection: Any) -> None:
        if self.resend:
            self._idle.append(connection)
        else:
            self.connection_pool.release(connection)

    def _as_lost_connection(self, error: redis.exceptions.RedisError) -> redis.exceptions.ConnectionError | None:
        """A lost connection in place of an error that only a replica gives; None for any other error."""
        # Redis 6.2 reports a script's error with this code in the middle of the words.
        if not isinstance(error, _REPLICA_ERRORS) and "-READONLY" not in str(error):
            return None
        # The idle connections go as well: on them the replica would go on answering reads, with old values.
        self.connection_pool.disconnect(inuse_connections=False)
        for connection in list(self._idle):
            connection.disconnect()
        return redis.exceptions.ConnectionError(f"this Redis is a replica by now, and takes no writes ({error})")


def _exchange(connection: Any, commands: Sequence[Command]) -> list[Any]:
    """The replies, errors among them as exceptions. Raises RedisError: the connection broke, and is closed."""
    connection.connect()  # does nothing while it is connected; else asks Sentinel, if there is one, for the primary
    try:
        # In one piece: redis-py itself would send a large argument apart, and Redis would wake up for each piece.
        connection.send_packed_command([b"".join(connection.pack_commands(commands))], check_health=False)
        return [_read_reply(connection) for _ in commands]
    except BaseException:
        # Otherwise a later command would take what still arrives for its own reply. redis-py does not do it for a
        # connection that Sentinel found.
        connection.disconnect()
        raise


def _read_reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.exceptions.ResponseError as error:
        return error


def _messages(connection: Any) -> Iterator[bytes]:
    is_asked = False
    while True:
        try:
            reply, is_asked = connection.read_response(disconnect_on_error=False), False
        except redis.exceptions.TimeoutError:
            if is_asked:
                raise
            connection.send_command("PING", check_health=False)
            is_asked = True
        else:
            if isinstance(reply, list) and reply[0] == b"message":
                yield reply[2]


@contextlib.contextmanager
def redis_errors_as_ours() -> Iterator[None]:
    """Turn Redis's errors into QueueAway, whose sentence the client reads; the cause, for the log, may name hosts."""
    try:
        yield
    except redis.exceptions.OutOfMemoryError as error:
        raise QueueOutOfMemory("The queue is out of memory. Try again in a moment.") from error
    except redis.exceptions.ResponseError as error:
        raise QueueAway("The queue does not work at the moment. Try again in a moment.") from error
    except redis.exceptions.RedisError as error:
        raise QueueAway("The queue cannot be reached. Try again in a moment.") from error
