"""REDIS_URL -> a client of that Redis; and what to set where none is reached.

redis://, rediss://, unix://             a Redis by its address
redis+sentinel://, rediss+sentinel://    whichever Redis the Sentinels call the primary when a connection is made
"""

import contextlib
import os
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import SSLConnection, parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from serving.errors import QueueAway
from serving.jobs import redis_info
from serving.jobs.redis_client import RedisClient, redis_errors_as_ours

# Above the longest blocking command (membership.LONGEST_BLOCK_SECONDS); redis-py's own default is 5 s.
SOCKET_TIMEOUT_SECONDS = 10.0
CONNECT_TIMEOUT_SECONDS = 3.0
# How many bytes one call reads at most, into a buffer that each connection keeps. A job has 200 kB.
SHORT_READ_BYTES, LONG_READ_BYTES = 32 * 1024, 1024 * 1024
# After this time the client asks the next Sentinel; all of them together must not use up a request's deadline.
SENTINEL_TIMEOUT_SECONDS = 1.0
SENTINEL_PORT = 26379
REDIS_URL_HELP = (
    "Set it to a running Redis 6.2 or newer: redis://[[user]:password@]host:port/db, rediss:// (TLS), unix://path, "
    "redis+sentinel://host,host/service_name/db"
)
FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_OTHER_HOST = "the server's certificate is for another host name"
_UNKNOWN_CA = "no CA known here signed the server's certificate; name the right one: ?ssl_ca_certs=/path/ca.pem"
_CUT_OFF = (
    "the server cuts the connection off; does it speak only TLS (rediss://) on this port, or want a client's "
    "certificate (?ssl_certfile=/path/my.pem&ssl_keyfile=/path/my.key)?"
)
# Words of an error -> what that error means for REDIS_URL, where its own words leave that open.
HINTS = {
    "No master found": "no Sentinel that answers knows a live primary of this name; is a ?sentinel_password= missing?",
    "NOAUTH": "the server asks for a password",
    "WRONGPASS": "the server refuses the user or the password",
    # A database other than 0 is chosen as the connection is made, before anything could be asked.
    "SELECT is not allowed in cluster mode": redis_info.IS_IN_CLUSTER_MODE,
    "DB index is out of range": redis_info.HAS_NO_SUCH_DATABASE,
    "unknown command `SELECT`": redis_info.IS_SENTINEL,  # until Redis 6.2
    "unknown command 'SELECT'": redis_info.IS_SENTINEL,
    "Hostname mismatch": _OTHER_HOST,
    "IP address mismatch": _OTHER_HOST,
    "local issuer certificate": _UNKNOWN_CA,
    "self-signed certificate": _UNKNOWN_CA,
    "CERTIFICATE_REQUIRED": _CUT_OFF,
    "EOF occurred": _CUT_OFF,
    "Connection closed by server": _CUT_OFF,
    "reset by peer": _CUT_OFF,
    "WRONG_VERSION_NUMBER": "the server speaks no TLS on this port",
    "Timeout connecting": "nobody answers there; with rediss://, perhaps the server speaks no TLS on this port",
}


def open_redis(url: str, *, resend: bool, timeout_seconds: float) -> RedisClient:
    """A client, not connected yet, that waits at most `timeout_seconds` for a reply.

    With `resend` the client sends a command whose connection broke once more. Such a client is for a web server, which
    has many connections and gets short replies; one without is for a model server.

    Raises:
        QueueAway: `url` cannot be understood.
    """
    options = {
        "socket_timeout": timeout_seconds,
        "socket_read_size": SHORT_READ_BYTES if resend else LONG_READ_BYTES,
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "protocol": 2,  # with protocol 3 redis-py does more work for each reply
        "retry": Retry(NoBackoff(), 0),
    }
    if not url.startswith("unix:"):
        options["socket_keepalive"] = True
    client: RedisClient
    try:
        if "+sentinel://" in url:
            client = _of_sentinel(url, options)
        else:
            _address(url)
            client = cast(RedisClient, RedisClient.from_url(url, **options))  # declared to return the base class
        client.connection_pool.make_connection()  # this connects nothing, but checks the options
        _check_files(client.connection_pool.connection_kwargs)
    except (ValueError, TypeError, redis.exceptions.RedisError) as error:
        raise QueueAway(f"REDIS_URL cannot be understood: {error}. {REDIS_URL_HELP}") from error
    client.resend = resend
    return client


def _of_sentinel(url: str, options: dict[str, Any]) -> RedisClient:
    """A client of the primary that Sentinel names; each new connection asks who that is. Raises ValueError, TypeError.

    redis[s]+sentinel://[[user]:password@]host[:port][,host[:port]…]/service_name[/db][?option=value&…]

    The URL's options are for the primary, except `sentinel_username` and `sentinel_password`; TLS is for both.
    """
    scheme, _, rest = url.partition("+sentinel://")
    place, question_mark, query = rest.partition("?")
    authority, _, path = place.partition("/")
    login, at, hosts = authority.rpartition("@")
    addresses = [_address(f"{scheme}://{login}{at}{host}/{path}{question_mark}{query}") for host in hosts.split(",")]
    service, _, db = path.partition("/")
    if not service or not all(host for host, _ in addresses):
        raise ValueError("it names no Sentinel, or no service")
    options = options | parse_url(f"{scheme}://{login}{at}sentinel/{db}{question_mark}{query}")
    del options["host"]
    options["ssl"] = options.pop("connection_class", None) is SSLConnection
    to_sentinel = {name: value for name, value in options.items() if name.startswith(("ssl", "socket_keepalive"))}
    to_sentinel |= {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    to_sentinel["socket_timeout"] = to_sentinel["socket_connect_timeout"] = SENTINEL_TIMEOUT_SECONDS
    to_sentinel["retry"] = Retry(NoBackoff(), 0)
    with_ports = [(host, port or SENTINEL_PORT) for host, port in addresses]
    sentinel = Sentinel(with_ports, sentinel_kwargs=to_sentinel)
    client: RedisClient = sentinel.master_for(unquote(service), redis_class=RedisClient, **options)
    return client


def check(client: redis.Redis) -> list[str]:
    """Reach Redis, at start-up; return what may cost jobs there, a sentence each: see `redis_info.doubts`.

    Raises:
        QueueAway: Redis does not answer, refuses the password, or is one with which the service cannot work; the
            message says which, and what to set.
    """
    try:
        with redis_errors_as_ours():
            info = client.info()
    except QueueAway as error:
        raise QueueAway(f"REDIS_URL: {_explain(error.__cause__)}. {REDIS_URL_HELP}") from error
    why = redis_info.refusal(info)
    if why is not None:
        raise QueueAway(f"REDIS_URL: {why}. {REDIS_URL_HELP}")
    return redis_info.doubts(info)


def _address(url: str) -> tuple[str | None, int | None]:
    """Host and port. Raises ValueError, whose words quote nothing: the library's may quote a part of the password."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if "@" not in parts.path + parts.query + parts.fragment:
            return parts.hostname, parts.port
    raise ValueError(
        "it is not scheme://user:password@host:port/db. In a user, a password or a path "
        "/ is written %2F, ? %3F, # %23, @ %40, % %25"
    )


def _check_files(options: dict[str, Any]) -> None:
    """Raises ValueError, which names option and file; the library would name neither, and fail only as it connects."""
    for name in FILES:
        path = options.get(name)
        if path is not None and not os.access(path, os.R_OK):
            raise ValueError(f"{name}={path} cannot be read")


def _explain(error: BaseException | None) -> str:
    # Where no Sentinel knows a primary, the library goes on with its own objects, as Python writes them.
    says = str(error).partition(" : <")[0].rstrip(".")
    # Redis's errors begin with a code, which the library takes out of their words.
    known = f"{getattr(error, 'status_code', '')} {says}"
    hint = next((hint for words, hint in HINTS.items() if words in known), None)
    return f"{hint} ({says})" if hint else says
