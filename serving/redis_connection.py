"""The connection to Redis: REDIS_URL -> a client, its errors -> ours. The only module that knows the Redis library."""

import contextlib
from collections.abc import Iterator

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving.errors import QueueAway, QueueOutOfMemory

# Above the longest blocking command (queue_worker.LONGEST_BLOCK_SECONDS); redis-py's own default is 5 s.
SOCKET_TIMEOUT_SECONDS = 10.0
CONNECT_TIMEOUT_SECONDS = 3.0
REDIS_URL_HELP = (
    "Set it to a running Redis 6.2 or newer: redis://[:password@]host:port/db, rediss:// (TLS), unix://path"
)


def open_redis(url: str, *, resend: bool, timeout_seconds: float) -> redis.Redis:
    """A client, not connected yet; with `resend` a command whose connection broke is sent once more.

    Raises:
        QueueAway: `url` cannot be understood.
    """
    keepalive = {} if url.startswith("unix:") else {"socket_keepalive": True}
    try:
        client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 1 if resend else 0),
            **keepalive,
        )
        client.connection_pool.make_connection()  # not connected yet, but its options are checked
    except (ValueError, TypeError) as error:
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
        raise QueueAway(f"REDIS_URL: {error.__cause__}. {REDIS_URL_HELP}") from error
    if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
        raise QueueAway(f"REDIS_URL: this is Redis {version}. {REDIS_URL_HELP}")


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
