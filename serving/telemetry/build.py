"""Which build of the service this is, as far as that is known: its version, its commit, its Python."""

import contextlib
import platform
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

UNKNOWN = "unknown"
GIT_SECONDS = 5
_COMMIT = re.compile(r"[0-9a-f]{7,64}(-dirty)?")


@dataclass(frozen=True)
class Build:
    """What a process runs; UNKNOWN where nothing tells."""

    version: str = UNKNOWN  # of pyproject.toml
    commit: str = UNKNOWN  # "-dirty" at its end: files that git knows have changed since
    python: str = platform.python_version()


def build_of(folder: Path, told_commit: str) -> Build:
    """The build of the service that lies in `folder`; `told_commit` counts where that is no repository of its own."""
    commit = (_described(folder) if (folder / ".git").exists() else told_commit).strip()
    return Build(_version(folder / "pyproject.toml"), commit if _COMMIT.fullmatch(commit) else UNKNOWN)


def _version(project: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(tomllib.loads(project.read_text())["project"]["version"])
    return UNKNOWN


def _described(folder: Path) -> str:
    """The commit as git tells it; "" where it does not."""
    # Named by its .git: a copy without one may lie inside another repository, whose commit says nothing of it.
    places = [f"--git-dir={folder / '.git'}", f"--work-tree={folder}"]
    describe = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    command = ["git", "--no-optional-locks", *places, *describe]
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True, timeout=GIT_SECONDS
        ).stdout
    return ""
