"""Tells files and folders from each other by their content."""

import hashlib
import json
from pathlib import Path

from serving.errors import ModelUnavailable


def digest(path: Path) -> str:
    """The SHA-256 of a file's content, or of a folder's: its files' names with theirs. Raises ModelUnavailable."""
    try:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            named = [[file.relative_to(path).as_posix(), digest(file)] for file in files]
            return hashlib.sha256(json.dumps(named).encode()).hexdigest()
        with path.open("rb") as file:
            return str(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise ModelUnavailable(f"{path} cannot be read: {error.strerror}.") from error
