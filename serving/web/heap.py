"""Sets glibc's heap up for a process that decodes images: it keeps freed space instead of giving it back to the system
after every image (docs/decisions/007)."""

import os
import sys

SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(16 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TOP_PAD_": str(1024 * 1024),
}


def restart_with_settings() -> None:
    """Start this very process again with SETTINGS in its environment, unless they are all there.

    glibc reads them as a process starts. A value that the environment has already stays.
    """
    missing = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    if missing:
        os.execve(sys.executable, sys.orig_argv, os.environ | missing)  # noqa: S606
