"""Turns whatever a library raises while a model starts into one sentence: ModelUnavailable.

    load, build, convert, the first batch -- raise anything --> model_unavailable --> ModelUnavailable

The whole error, with its traceback, is logged with LOG_LEVEL=debug.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from serving.errors import ModelUnavailable, Signal, StartError

LONGEST = 300  # characters of a library's own words; Keras writes pages
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_KERAS_CALLED = re.compile(r"Exception encountered when calling \S+\(\)\.")
# What Keras writes behind a reason: a layer's configuration, tensors, what a program would do where we have a setting.
_NO_REASON = ("Full object config: ", "Arguments received by ", "If you trust the source of the artifact")

log = logging.getLogger(__name__)


@contextlib.contextmanager
def model_unavailable(what: str, advice: str) -> Iterator[None]:
    """Map whatever is raised to ModelUnavailable, which says `what` went wrong, why, and the `advice`.

    Errors of ours pass as they are.

    Raises:
        ModelUnavailable: something else was raised.
    """
    try:
        yield
    except (StartError, Signal):
        raise
    except Exception as error:
        log.debug("%s", what, exc_info=True)
        raise ModelUnavailable(f"{what}: {why(error)}. {advice}") from error


def why(error: BaseException) -> str:
    """Say in a few words, on one line, without a full stop, what an error says in pages."""
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    # Where Keras cannot load a model, the reason stands below the model's whole configuration.
    said = _KERAS_CALLED.sub("", said.rpartition("Exception encountered: ")[2])
    for what_follows in _NO_REASON:
        said = said.partition(what_follows)[0]
    return shortened(said or type(error).__name__).rstrip(".")


def shortened(text: str) -> str:
    """Return a library's text on one line, without its colours, and no longer than people read."""
    words = " ".join(_COLOURS.sub("", text).split())
    return words if len(words) <= LONGEST else words[:LONGEST].rsplit(" ", 1)[0] + " …"


def check_file(path: Path) -> None:
    """Raise OSError or ValueError, which say why, if `path` is no file that can be read; a pipe would be waited for."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    with path.open("rb") as file:
        file.read(1)
