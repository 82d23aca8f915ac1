"""How the operator's command writes: tables that fit a screen or a pipe, moments, durations, text of others.

text from the queue -- printable --> one line that cannot steer the terminal -- new_table, show --> lines
"""

import math
import sys
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

WIDE_CHARACTERS = 1000  # the width of a pipe, as for `| grep`; on a screen a line is cut off at the edge
MINUTE, HOUR, DAY = 60, 3600, 86_400


class NotDone(Exception):
    """What the operator asked for cannot be done. The message says why."""


def new_table(*columns: str, right: Sequence[str] = (), cut: Sequence[str] = ()) -> Table:
    """A table without lines. Its columns in `right` hold numbers; those in `cut` may be cut off at the edge."""
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=name not in cut, justify="right" if name in right else "left")
    return table


def add_row(table: Table, *cells: object) -> None:
    """Add a row. Its cells may be text of others; None is a dash."""
    texts = ["-" if cell is None else printable(str(cell)) for cell in cells]
    table.add_row(*(Text(text, no_wrap=True, overflow="ellipsis") for text in texts))


def show(what: RenderableType) -> None:
    """Print to standard output, without the blanks with which rich fills each line up to the longest."""
    console = Console(width=None if sys.stdout.isatty() else WIDE_CHARACTERS)
    with console.capture() as lines:
        console.print(what)
    for line in lines.get().splitlines():
        print(line.rstrip())


def moment(seconds: float) -> str:
    """Unix seconds as date and time in this machine's zone, as in the servers' logs; "none" if they are no date."""
    try:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # NaN, infinity, the year 300,000
        return "none"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0.8 s, 42 s, 3 min 5 s, 2 h 10 min, 4 d 3 h; with a minus where they are."""
    if not math.isfinite(seconds):
        return "none"
    sign, rest = ("-", -seconds) if seconds < 0 else ("", seconds)
    if rest < 10:
        return f"{sign}{rest:.1f} s"
    whole = round(rest)
    for unit, name, smaller, its_name in ((DAY, "d", HOUR, "h"), (HOUR, "h", MINUTE, "min"), (MINUTE, "min", 1, "s")):
        if whole >= unit:
            return f"{sign}{whole // unit} {name} {whole % unit // smaller} {its_name}"
    return f"{sign}{whole} s"


def printable(text: str) -> str:
    """Text on one line, without characters that steer the terminal: garbage may contain them."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
