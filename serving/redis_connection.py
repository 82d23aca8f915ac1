"""The connection to Redis: REDIS_URL -> a client, its errors -> ours. The only module that knows the Redis library."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving.errors import QueueAway, QueueOutOfMemory

# Above the longest blocking command (queue_worker.LONGEST_BLOCK_SECONDS); redis-py's own default is 5 s.
SOCKET_TIMEOUT_SECONDS = 10.0
CONNECT_TIMEOUT_SECONDS = 3.0
_OF_A_REPLICA = (redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError)
REDIS_URL_HELP = (
    "Set it to a running Redis 6.2 or newer: redis://[[user]:password@]host:port/db, rediss:// (TLS), unix://path"
)
FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_OTHER_HOST = "its certificate is for another host name"
_UNKNOWN_CA = "its certificate is of no CA known here; give the CA's: ?ssl_ca_certs=/path/ca.pem"
_CUT_OFF = (
    "it cuts the connection off; does it speak only TLS (rediss://) on this port, or want a client's certificate "
    "(?ssl_certfile=/path/my.pem&ssl_keyfile=/path/my.key)?"
)
# What an error's own words leave open: words of it -> what it means for REDIS_URL.
HINTS = {
    "NOAUTH": "it asks for a password",
    "WRONGPASS": "it refuses the user or the password",
    "Hostname mismatch": _OTHER_HOST,
    "IP address mismatch": _OTHER_HOST,
    "local issuer certificate": _UNKNOWN_CA,
    "self-signed certificate": _UNKNOWN_CA,
    "CERTIFICATE_REQUIRED": _CUT_OFF,
    "EOF occurred": _CUT_OFF,
    "Connection closed by server": _CUT_OFF,
    "reset by peer": _CUT_OFF,
    "WRONG_VERSION_NUMBER": "it speaks no TLS on this port",
    "Timeout connecting": "nobody answers there; with rediss:// perhaps since it speaks no TLS on this port",
}


class _ReconnectingRedis(redis.Redis):
    """A client that stays with no replica: where its address leads by now, there is the primary.

    A primary that was demoted keeps its connections, and answers each write with an error: for ever, if nobody looks.
    """

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        try:
            return super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        except redis.exceptions.ResponseError as error:
            # Redis 6.2 says it of a script in the midst of the error's words.
            if not isinstance(error, _OF_A_REPLICA) and "-READONLY" not in str(error):
                raise
            # The idle ones as well: reads would go on being answered there, with what is old.
            self.connection_pool.disconnect(inuse_connections=False)
            raise redis.exceptions.ConnectionError("this Redis is a replica by now, and takes no writes") from error


def open_redis(url: str, *, resend: bool, timeout_seconds: float) -> redis.Redis:
    """A client, not connected yet; with `resend` a command whose connection broke is sent once more.

    Raises:
        QueueAway: `url` cannot be understood.
    """
    keepalive = {} if url.startswith("unix:") else {"socket_keepalive": True}
    try:
        _check_address(url)
        client: redis.Redis = _ReconnectingRedis.from_url(
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 1 if resend else 0),
            **keepalive,
        )
        client.connection_pool.make_connection()  # not connected yet, but its options are checked
        _check_files(client.connection_pool.connection_kwargs)
    except (ValueError, TypeError, redis.exceptions.RedisError) as error:
        raise QueueAway(f"REDIS_URL cannot be understood: {error}. {REDIS_URL_HELP}") from error
    return client


def check(client: redis.Redis) -> None:
    """Reach Redis, at start-up.

    Raises:
        QueueAway: it does not answer, refuses the password, or is older than 6.2, which lacks BLMOVE; the message
            says which, and what to set.
    """
    try:
        with translated():
            version = str(client.info("server")["redis_version"])
    except QueueAway as error:
        raise QueueAway(f"REDIS_URL: {_explain(error.__cause__)}. {REDIS_URL_HELP}") from error
    if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
        raise QueueAway(f"REDIS_URL: this is Redis {version}. {REDIS_URL_HELP}")


def _check_address(url: str) -> None:
    """Raises ValueError in words that quote nothing: an error of the library's may quote a part of the password."""
    try:
        parts = urlsplit(url)
        readable = parts.port != 0 and "@" not in parts.path + parts.query + parts.fragment
    except ValueError:
        readable = False
    if not readable:
        raise ValueError(
            "it is not scheme://user:password@host:port/db. In a user, a password or a path "
            "/ is written %2F, ? %3F, # %23, @ %40, % %25"
        ) from None


def _check_files(options: dict[str, Any]) -> None:
    """Raises ValueError; the library would name neither the option nor the file, and only as it connects."""
    for name in FILES:
        path = options.get(name)
        if path is not None and not os.access(path, os.R_OK):
            raise ValueError(f"{name}={path} cannot be read")


def _explain(error: BaseException | None) -> str:
    says = str(error).rstrip(".")
    # The library takes the code, with which Redis's errors begin, out of their words.
    known = f"{getattr(error, 'status_code', '')} {says}"
    hint = next((hint for words, hint in HINTS.items() if words in known), None)
    return f"{hint} ({says})" if hint else says


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Redis's errors -> QueueAway. The client reads the sentence, the log has the cause, which may name hosts."""
    try:
        yield
    except redis.exceptions.OutOfMemoryError as error:
        raise QueueOutOfMemory("The queue is out of memory. Try again in a moment.") from error
    except redis.exceptions.ResponseError as error:
        raise QueueAway("The queue does not work at the moment. Try again in a moment.") from error
    except redis.exceptions.RedisError as error:
        raise QueueAway("The queue cannot be reached. Try again in a moment.") from error
