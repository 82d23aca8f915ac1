"""Whether a server can listen at an address of this machine, where it is to be opened, and whether it can answer."""

import errno
import socket
import urllib.error
import urllib.request

from serving.errors import StartError

ANSWER_SECONDS = 5


def check(host: str, port: int) -> None:
    """Raises StartError when the web server cannot listen there; gunicorn itself tries five times and exits with 1."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:
        raise StartError(what_is_wrong(error, "WEB", host, port)) from error


def what_is_wrong(error: OSError | UnicodeError, server: str, host: str, port: int) -> str:
    """What to set so that a server can listen, after it could not.

    Args:
        error: with which the system refused.
        server: WEB or METRICS, of which WEB_HOST, WEB_PORT and so on are settings.
        host, port: what they are set to.
    """
    if isinstance(error, UnicodeError):  # of Python's codec for host names
        why = "this is no name of a host"
    else:
        why = error.strerror or str(error)
        of_the_host = isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
        if not of_the_host:
            free = "a port above 1023" if error.errno == errno.EACCES else "a free port"
            return f"{server}_PORT={port} on {host}: {why}. Set {server}_PORT to {free}."
    return (
        f"{server}_HOST={host}: {why}. Set {server}_HOST to an address of this machine, as 127.0.0.1 or ::1, or to "
        "0.0.0.0 for all of them."
    )


def to_open(host: str, port: int) -> str:
    """The URL to open in a browser for the address on which a server listens."""
    if host == "0.0.0.0":  # noqa: S104
        host = "127.0.0.1"
    elif ":" in host:
        host = host.strip("[]")
        host = f"[{'::1' if host == '::' else host}]"
    return f"http://{host}:{port}"


def is_ready(url: str) -> bool:
    """Whether the server at `url` says that it can answer predictions; False also while nothing answers there."""
    return _answers(f"{url}/readyz")


def is_up(url: str) -> bool:
    """Whether the server at `url` answers at all."""
    return _answers(f"{url}/healthz")


def _answers(url: str) -> bool:
    try:
        # Without the proxies that the environment may name: this is our own machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=ANSWER_SECONDS) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
