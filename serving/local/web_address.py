"""Where the web server of this machine is to be opened, and whether it can answer."""

import urllib.error
import urllib.request

ANSWER_SECONDS = 5


def to_open(host: str, port: int) -> str:
    """The URL to open in a browser for the address on which a server listens."""
    if host == "0.0.0.0":  # noqa: S104
        host = "127.0.0.1"
    elif ":" in host:
        host = f"[{'::1' if host == '::' else host}]"
    return f"http://{host}:{port}"


def is_ready(url: str) -> bool:
    """Whether the server at `url` says that it can answer predictions; False also while nothing answers there."""
    try:
        # Without the proxies that the environment may name: this is our own machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url}/readyz", timeout=ANSWER_SECONDS) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
