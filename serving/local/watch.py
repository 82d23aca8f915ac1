"""Looks at the queue again and again, for the operator's command.

watch -- every second --> a screen that is drawn anew; in a pipe one more line
wait_until_empty -- four times a second --> a progress bar; in a pipe a line now and then
"""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from serving.errors import QueueAway
from serving.jobs.job_queue import JobQueue
from serving.jobs.overview import Overview, overview
from serving.local.printing import NotDone, moment, printable
from serving.local.status import Status, Timeouts, as_json, as_line, as_view, read_status

WATCH_SECONDS = 1.0
DRAIN_SECONDS = 0.25
STILL_DRAINING = "The queue goes on draining; `resume` ends it."
LINE_SECONDS = 5.0  # between two lines of wait_until_empty in a pipe
STOPPED_BY_SIGTERM = 128 + signal.SIGTERM


def watch(queue: JobQueue, timeouts: Timeouts, as_json_lines: bool) -> None:
    """Show the status every second, also while Redis is away, until KeyboardInterrupt."""
    _end_by_an_exception()
    if as_json_lines or not sys.stdout.isatty():
        for seen in _every_second(queue, timeouts):
            print(_as_json_line(queue, seen) if as_json_lines else _as_line(seen), flush=True)
        return
    with Live(console=Console(), auto_refresh=False) as screen:
        for seen in _every_second(queue, timeouts):
            view = as_view(seen) if isinstance(seen, Status) else Text(_as_line(seen), "bold red")
            screen.update(view, refresh=True)


def _end_by_an_exception() -> None:
    """Have SIGTERM raise SystemExit: the cursor, which a live screen hides, comes back as that leaves the screen."""
    with contextlib.suppress(ValueError):  # this is not the main thread
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED_BY_SIGTERM))


def _every_second(queue: JobQueue, timeouts: Timeouts) -> Iterator[Status | QueueAway]:
    while True:
        next_at = time.monotonic() + WATCH_SECONDS
        try:
            yield read_status(queue, timeouts)
        except QueueAway as error:
            yield error
        time.sleep(max(0.0, next_at - time.monotonic()))


def _as_line(seen: Status | QueueAway) -> str:
    return as_line(seen) if isinstance(seen, Status) else f"{moment(time.time())}  {why_away(seen)}"


def _as_json_line(queue: JobQueue, seen: Status | QueueAway) -> str:
    if isinstance(seen, Status):
        return as_json(seen, indent=None)
    problem = {"code": "redis_away", "text": why_away(seen)}
    return json.dumps({"queue": queue.name, "at": time.time(), "well": False, "problems": [problem], "notes": []})


def why_away(error: QueueAway) -> str:
    """What is wrong with Redis, in a sentence for an operator, who may read more than a client."""
    return f"{error} ({printable(str(error.__cause__))})" if error.__cause__ else str(error)


def wait_until_empty(queue: JobQueue, timeout_seconds: float | None) -> float:
    """Wait until nothing waits and nothing is in hand; return how long that took, seconds.

    While Redis is away the wait goes on. Raises NotDone: the time is over, or the queue does not drain any more.
    """
    began, most = time.monotonic(), 0
    _end_by_an_exception()
    try:
        with _Bar() as bar:
            while True:
                left, says = _left(queue)
                took = time.monotonic() - began
                if left == 0:
                    return took
                if timeout_seconds is not None and took >= timeout_seconds:
                    raise NotDone(f"Not empty after {timeout_seconds:g} s: {says}. {STILL_DRAINING}")
                most = max(most, left or 0)
                bar.show(says, most, None if left is None else most - left)
                time.sleep(DRAIN_SECONDS)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
        print(STILL_DRAINING, file=sys.stderr)
        raise


class _Bar:
    """A progress bar on a terminal; elsewhere a line now and then. It writes to standard error."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bars.add_task("", total=None)
        self._next_line_at, self._was_known = 0.0, True  # monotonic seconds

    def __enter__(self) -> "_Bar":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, says: str, total: int, completed: int | None) -> None:
        """Show how many jobs of how many are over (None: nobody knows, the bar stays), and a sentence."""
        if not self._bars.disable:
            self._bars.update(self._task, total=total, completed=completed, description=says)
        elif time.monotonic() >= self._next_line_at or self._was_known != (completed is not None):
            self._next_line_at, self._was_known = time.monotonic() + LINE_SECONDS, completed is not None
            print(says, file=sys.stderr, flush=True)


def _left(queue: JobQueue) -> tuple[int | None, str]:
    """How many jobs wait or are in hand, and that in words; None: Redis is away. Raises NotDone: it does not drain."""
    try:
        now = overview(queue)
    except QueueAway as error:
        return None, why_away(error)
    if not now.is_draining:
        raise NotDone("The queue does not drain any more: somebody resumed it, or Redis lost its data.")
    return now.waiting + now.bulk_waiting + now.in_flight, _in_words(now)


def _in_words(now: Overview) -> str:
    told = f"{now.waiting} waiting, {now.bulk_waiting} bulk waiting, {now.in_flight} in hand"
    if now.is_paused:
        return f"{told}; the queue is paused"
    return told if any(not server.is_quiet for server in now.servers) else f"{told}; no model server takes"
