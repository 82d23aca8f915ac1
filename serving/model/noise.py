"""Keeps from standard error what frameworks write to it while they load, which alarms and helps nobody.

TensorFlow writes a dozen lines, from C++ and before it reads any setting of its own, on a healthy machine as well: that
CUDA is not there, that oneDNN is. With LOG_LEVEL=debug all of it is written as it comes.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence

from serving.model import gpus

_PREFIX = re.compile(r"^([IWEF]\d{4} .*?\] |\S+ \S+ [A-Z]+ [\w.]+: )")  # of Google's logs, and of ours in text
_ABOUT_GPUS = re.compile(r"gpu|cuda|cudnn|rocm|cuinit", re.IGNORECASE)

log = logging.getLogger(__name__)


@contextlib.contextmanager
def kept_back() -> Iterator[list[str]]:
    """Keep what this process writes to standard error meanwhile; afterwards the yielded list holds its lines.

    Errors that are raised pass: their text tells more than the lines. With LOG_LEVEL=debug the list stays empty.
    """
    lines: list[str] = []
    if log.isEnabledFor(logging.DEBUG):
        yield lines
        return
    # A pipe, since no folder need be writable. What does not fit into it is dropped, instead of waiting for a reader.
    standard_error, (reader, writer) = os.dup(2), os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    os.dup2(writer, 2)
    os.close(writer)
    try:
        yield lines
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
        with open(reader, "rb", buffering=0) as written:  # noqa: PTH123  # a descriptor, no path
            lines += (written.read() or b"").decode(errors="replace").splitlines()


def about_gpus(lines: Sequence[str]) -> str:
    """Return what a framework says of GPUs in its lines, each thing once; a text for people, empty if nothing."""
    found = [_said(line) for line in lines if _ABOUT_GPUS.search(line)]
    return " ".join(dict.fromkeys(found))


def _said(line: str) -> str:
    """What a line says, without what stands before it in a log, in ours of JSON as well."""
    if line.startswith('{"timestamp"'):
        with contextlib.suppress(ValueError, KeyError):
            return str(json.loads(line)["event"])
    return _PREFIX.sub("", line)


def tensorflows_level() -> str:
    """Return what TF_CPP_MIN_LOG_LEVEL is to be: 0 all, 1 warnings, 2 errors."""
    if log.isEnabledFor(logging.DEBUG):
        return "0"
    return "1" if gpus.is_there_any() else "2"  # beside a GPU a warning may tell why it is not seen
