"""What run_service.py shows on the terminal: its own lines, its progress, and what its child processes write."""

import contextlib
from collections import deque
from collections.abc import Container, Iterator

from rich.console import Console
from rich.status import Status
from rich.text import Text

LINES_KEPT = 5

_console = Console(stderr=True, highlight=False, soft_wrap=True)


def tell(text: str, style: str = "") -> None:
    """Print a line, in one of rich's styles.

    The reader may be gone (`| tee` was stopped as well): that must not keep the service from stopping.
    """
    with contextlib.suppress(OSError, SystemExit):  # rich turns a broken pipe into an exit
        _console.print(Text(text, style=style))


class Progress:
    """A line that is redrawn in place while something takes long."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def show(self, text: str) -> None:
        """Put this text in the line."""
        self._status.update(Text(text))


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Show a `Progress` line until the end of the block."""
    with _console.status("") as status:
        yield Progress(status)


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
            text = line.strip("\r")
            tell(f"{name:>6} | {text}", "dim")

    def last_line(self, name: str, default: str) -> str:
        """The last line of the process `name`, or `default` when it has written none."""
        return self.last_lines(name)[-1] if self.last_lines(name) else default

    def last_lines(self, name: str) -> list[str]:
        """The last lines of the process `name`, at most LINES_KEPT."""
        return [line.strip("\r") for line in self._last_lines.get(name, ())]
