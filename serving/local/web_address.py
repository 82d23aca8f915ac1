"""Whether a server can listen at an address of this machine, where it is to be opened, and whether it can answer."""

import errno
import socket
import urllib.error
import urllib.request

from serving.errors import StartError

ANSWER_SECONDS = 5


def check(host: str, port: int, port_setting: str = "WEB_PORT") -> None:
    """Raises StartError when the web server cannot listen there; gunicorn itself tries five times and exits with 1.

    `port` is what `port_setting` is set to; with 0 the server does not listen there.
    """
    if port == 0:
        return
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:
        raise StartError(what_is_wrong(error, "WEB_HOST", host, port_setting, port)) from error


def what_is_wrong(error: OSError | UnicodeError, host_setting: str, host: str, port_setting: str, port: int) -> str:
    """What to set so that a server can listen, after it could not.

    Args:
        error: with which the system refused.
        host_setting: WEB_HOST or METRICS_HOST, which is set to `host`.
        port_setting: such as WEB_PORT, which is set to `port`.
    """
    if isinstance(error, UnicodeError):  # of Python's codec for host names
        why = "this is no name of a host"
    else:
        why = error.strerror or str(error)
        of_the_host = isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
        if not of_the_host:
            free = "a port above 1023" if error.errno == errno.EACCES else "a free port"
            return f"{port_setting}={port} on {host}: {why}. Set {port_setting} to {free}."
    return (
        f"{host_setting}={host}: {why}. Set {host_setting} to an address of this machine, as 127.0.0.1 or ::1, or to "
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
