"""Looks at the queue again and again, for the operator's command.

watch -- every second --> a screen that is drawn anew; in a pipe one more line
wait_until_empty -- four times a second --> a progress bar; in a pipe a line now and then
"""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from serving.errors import QueueAway, StartError
from serving.jobs.job_queue import JobQueue
from serving.jobs.overview import Overview, overview
from serving.local.models import joined
from serving.local.printing import NotDone, moment, printable
from serving.local.status import Status, Timeouts, all_as_json, as_lines, as_views, read_statuses

WATCH_SECONDS = 1.0
DRAIN_SECONDS = 0.25
STILL_DRAINING = "The queue goes on draining; `resume` ends it."
LINE_SECONDS = 5.0  # between two lines of wait_until_empty in a pipe
STOPPED_BY_SIGTERM = 128 + signal.SIGTERM

Seen = dict[str, Status] | QueueAway  # the status of each model by its name, or why there is none


def watch(queues: Mapping[str, JobQueue], timeouts: Timeouts, as_json_lines: bool) -> None:
    """Show the status of each model every second, also while Redis is away, until KeyboardInterrupt."""
    _end_by_an_exception()
    if as_json_lines or not sys.stdout.isatty():
        for seen in _every_second(queues, timeouts):
            print(_as_json_line(queues, seen) if as_json_lines else _as_line(seen), flush=True)
        return
    with Live(console=Console(), auto_refresh=False) as screen:
        for seen in _every_second(queues, timeouts):
            view = Text(_as_line(seen), "bold red") if isinstance(seen, QueueAway) else as_views(seen)
            screen.update(view, refresh=True)


def _end_by_an_exception() -> None:
    """Have SIGTERM raise SystemExit: the cursor, which a live screen hides, comes back as that leaves the screen."""
    with contextlib.suppress(ValueError):  # this is not the main thread
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED_BY_SIGTERM))


def _every_second(queues: Mapping[str, JobQueue], timeouts: Timeouts) -> Iterator[Seen]:
    while True:
        next_at = time.monotonic() + WATCH_SECONDS
        try:
            yield read_statuses(queues, timeouts)
        except QueueAway as error:
            yield error
        time.sleep(max(0.0, next_at - time.monotonic()))


def _as_line(seen: Seen) -> str:
    return f"{moment(time.time())}  {why_away(seen)}" if isinstance(seen, QueueAway) else as_lines(seen)


def _as_json_line(queues: Mapping[str, JobQueue], seen: Seen) -> str:
    if not isinstance(seen, QueueAway):
        return all_as_json(seen, indent=None)
    away = {"code": "redis_away", "text": why_away(seen)}
    told = {"at": time.time(), "well": False, "problems": [away], "notes": []}
    texts = {name: json.dumps({"queue": queue.name, **told}) for name, queue in queues.items()}
    return joined(texts, None, well=False)


def why_away(error: QueueAway | StartError) -> str:
    """What is wrong, mostly with Redis, in a sentence for an operator, who may read more than a client."""
    return f"{error} ({printable(str(error.__cause__))})" if error.__cause__ else str(error)


def wait_until_empty(queues: Sequence[JobQueue], timeout_seconds: float | None) -> float:
    """Wait until nothing waits and nothing is in hand, in all queues; return how long that took, seconds.

    While Redis is away the wait goes on. Raises NotDone: the time is over, or the queue does not drain any more.
    """
    began, most = time.monotonic(), 0
    _end_by_an_exception()
    try:
        with _Bar() as bar:
            while True:
                left, says = _left(queues)
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


def _left(queues: Sequence[JobQueue]) -> tuple[int | None, str]:
    """How many jobs wait or are in hand, and that in words; None: Redis is away. Raises NotDone: one does not drain."""
    try:
        now = [overview(queue) for queue in queues]
    except QueueAway as error:
        return None, why_away(error)
    if not all(one.is_draining for one in now):
        raise NotDone("The queue does not drain any more: somebody resumed it, or Redis lost its data.")
    return sum(map(_left_in, now)), _in_words(now)


def _left_in(now: Overview) -> int:
    return now.waiting + now.bulk_waiting + now.in_flight


def _in_words(now: Sequence[Overview]) -> str:
    told = f"{sum(one.waiting for one in now)} waiting, {sum(one.bulk_waiting for one in now)} bulk waiting, "
    told += f"{sum(one.in_flight for one in now)} in hand"
    if any(one.is_paused for one in now):
        return f"{told}; the queue is paused"
    stuck = [one for one in now if _left_in(one) and all(server.is_quiet for server in one.servers)]
    return f"{told}; no model server takes" if stuck else told
