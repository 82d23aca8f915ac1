"""What run_service.py shows on the terminal: its own lines, its progress, and what its child processes write.

With LOG_FORMAT=json each line is an object, that of a child process too, and says in `process` whose it is.
"""

import contextlib
import json
import sys
from collections import deque
from collections.abc import Container, Iterator

from rich.console import Console
from rich.status import Status
from rich.text import Text

from serving.telemetry import log_relay

LINES_KEPT = 5
ITSELF = "service"  # the process of run_service.py
_LEVELS = {"bold yellow": "warning", "bold red": "error"}  # style -> level

_console = Console(stderr=True, highlight=False, soft_wrap=True)
_is_json = _is_redrawing = False


def write(log_format: str) -> None:
    """From now on write lines of this form, text or json."""
    global _is_json
    _is_json = log_format == "json"


def refuse(sentence: str, log_format: str) -> None:
    """Tell in this form why run_service.py does not start."""
    write(log_format)
    tell(sentence, "bold red")


def tell(text: str, style: str = "") -> None:
    """Print a line, in one of rich's styles.

    The reader may be gone (`| tee` was stopped as well): that must not keep the service from stopping.
    """
    with contextlib.suppress(OSError, SystemExit):  # rich turns a broken pipe into an exit
        if _is_json:
            _print(_of_process(ITSELF, log_relay.to_json(text.strip(), _LEVELS.get(style, "info"), "run_service")))
        else:
            _console.print(Text(text, style=style))


def _print(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _of_process(name: str, line: str) -> str:
    """A line of JSON that also says which process wrote it."""
    return f'{{"process":"{name}",{line[1:]}'


class Progress:
    """A line that is redrawn in place while something takes long."""

    def __init__(self, status: Status | None) -> None:
        self._status = status

    def show(self, text: str) -> None:
        """Put this text in the line."""
        if self._status is not None:
            self._status.update(Text(text))


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Show a `Progress` line until the end of the block."""
    global _is_redrawing
    if _is_json:
        yield Progress(None)
        return
    with _console.status("") as status:
        _is_redrawing = True
        yield Progress(status)
    _is_redrawing = False


class Output:
    """Takes the lines that child processes write: shows them, and remembers the last ones of each process.

    Args:
        quiet: names of processes whose lines are remembered alone.
    """

    def __init__(self, quiet: Container[str] = ()) -> None:
        self._quiet = quiet
        self._last_lines: dict[str, deque[str]] = {}

    def write(self, name: str, line: str) -> None:
        """Take a line of the process `name`. One that ends in a carriage return is a progress bar: it is not shown."""
        lines = self._last_lines.setdefault(name, deque(maxlen=LINES_KEPT))
        if lines and lines[-1].endswith("\r"):
            lines.pop()  # the progress bar is drawn over
        lines.append(line)
        if name not in self._quiet and not line.endswith("\r"):
            _show(name, line.strip("\r"))

    def last_line(self, name: str, default: str) -> str:
        """The last line of the process `name`, or `default` when it has written none."""
        return self.last_lines(name)[-1] if self.last_lines(name) else default

    def last_lines(self, name: str) -> list[str]:
        """The last lines of the process `name`, at most LINES_KEPT; of JSON what each says."""
        return [_said(line.strip("\r")) for line in self._last_lines.get(name, ())]


def _show(name: str, line: str) -> None:
    """Show a line of a child process. Of these there may be thousands in a second, for which rich is too slow."""
    if _is_redrawing:
        return tell(f"{name:>6} | {line}", "dim")
    with contextlib.suppress(OSError):
        if _is_json:
            _print(_of_process(name, log_relay.relayed(line)))
        elif _console.is_terminal and not _console.no_color:
            _print(f"\x1b[2m{name:>6} | {line}\x1b[0m")
        else:
            _print(f"{name:>6} | {line}")


def _said(line: str) -> str:
    """What a line of a log says, without what stands around it if it is JSON."""
    if not line.startswith(log_relay.OURS):
        return line
    with contextlib.suppress(ValueError, KeyError):
        told = json.loads(line)
        return "\n".join(str(told[name]) for name in ("event", "exception") if name in told)
    return line
