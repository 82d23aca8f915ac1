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

_OF_A_REPLICA = (redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError)


class RedisClient(redis.Redis):
    """A client that stays with no replica: where its address leads by now, there is the primary.

    A primary that was demoted keeps its connections, and answers each write with an error: for ever, if nobody looks.
    """

    resend = False  # whether commands whose connection broke are sent once more

    def exchange(self, *commands: Command) -> list[Any]:
        """Send commands and read their replies, in one round trip. Raises RedisError: the first error among them."""
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
        # Of a transaction that was refused the first error tells why; EXEC's only that it was not done.
        for reply in (*replies, *done):
            if isinstance(reply, redis.exceptions.RedisError):
                raise self._of_a_replica(reply) or reply
        return replies

    def transact(self, commands: Sequence[Command], ahead: Sequence[Command] = ()) -> tuple[list[Any], list[Any]]:
        """Run `commands` in one transaction, after the commands `ahead`, which may block, all in one round trip.

        Returns the replies to `ahead`, and the replies to `commands`. Raises RedisError.
        """
        replies = self.exchange(*ahead, ("MULTI",), *commands, ("EXEC",))
        return replies[: len(ahead)], replies[-1]

    @contextlib.contextmanager
    def subscribed(self, channel: str) -> Iterator[Iterator[bytes]]:
        """What is published on `channel` meanwhile, without end.

        Where nothing comes for the socket's timeout, Redis has as long again to give a sign of life.

        Raises:
            redis.RedisError: Redis refuses; or, as the messages are read, the connection broke, or there was no sign
                of life.
        """
        connection: Any = self.connection_pool.get_connection()
        try:
            connection.send_command("SUBSCRIBE", channel)
            connection.read_response()
            yield _messages(connection)
        finally:
            connection.disconnect()  # nobody else may get it, subscribed as it is
            self.connection_pool.release(connection)

    @functools.cached_property
    def _idle(self) -> list[Any]:
        """Connections of a client that resends. The pool looks whether each that it hands out has been closed, which
        costs as much as using it; such a client finds out by using it."""
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

    def _of_a_replica(self, error: redis.exceptions.RedisError) -> redis.exceptions.ConnectionError | None:
        """What a replica's error is instead: a connection that is lost."""
        # Redis 6.2 says it of a script in the midst of the error's words.
        if not isinstance(error, _OF_A_REPLICA) and "-READONLY" not in str(error):
            return None
        # The idle ones as well: reads would go on being answered there, with what is old.
        self.connection_pool.disconnect(inuse_connections=False)
        for connection in list(self._idle):
            connection.disconnect()
        return redis.exceptions.ConnectionError(f"this Redis is a replica by now, and takes no writes ({error})")


def _exchange(connection: Any, commands: Sequence[Command]) -> list[Any]:
    """The replies, errors among them as exceptions. Raises RedisError: the connection broke, and is closed."""
    connection.connect()  # nothing where it is connected; else by Sentinel, if there is one, which knows the primary
    try:
        # In one piece: by itself redis-py sends a large argument apart, and Redis would wake for each.
        connection.send_packed_command([b"".join(connection.pack_commands(commands))], check_health=False)
        return [_read_reply(connection) for _ in commands]
    except BaseException:  # what came later would be taken for the reply to something else; Sentinel's stay connected
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
    """Redis's errors -> QueueAway. The client reads the sentence, the log has the cause, which may name hosts."""
    try:
        yield
    except redis.exceptions.OutOfMemoryError as error:
        raise QueueOutOfMemory("The queue is out of memory. Try again in a moment.") from error
    except redis.exceptions.ResponseError as error:
        raise QueueAway("The queue does not work at the moment. Try again in a moment.") from error
    except redis.exceptions.RedisError as error:
        raise QueueAway("The queue cannot be reached. Try again in a moment.") from error
