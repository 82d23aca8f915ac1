"""Child processes: start them, restart them with back-off, stop them, leave none behind, notice one that hangs."""

import contextlib
import io
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence

from serving.local.terminal import Output

FIRST_BACK_OFF_SECONDS = 1.0
LONGEST_BACK_OFF_SECONDS = 30.0
# A child that ran for so long had started well: after its next death the back-off is the first one again.
STEADY_SECONDS = 60.0
# A child that was never ready, and failed so often in the same way, would fail for ever.
MOST_SAME_FAILURES = 5


class StopSignals:
    """Counts the signals that ask this process to stop: SIGINT, SIGTERM, SIGHUP. A second one asks to hurry."""

    def __init__(self) -> None:
        self._count = 0

    def listen(self) -> None:
        """Count from now on; only the main thread may call this."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # `nohup` ignores SIGHUP on purpose.
            if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:
                signal.signal(number, self._note)

    @property
    def ask_to_stop(self) -> bool:
        """Whether one signal came, or more."""
        return self._count > 0

    @property
    def ask_to_hurry(self) -> bool:
        """Whether a second signal came."""
        return self._count > 1

    def _note(self, *_: object) -> None:
        self._count += 1


class Child:
    """One process of the service, and the next one when it dies.

    Each child runs in a session of its own. So the terminal's Ctrl-C reaches the supervisor alone, which stops the
    children in their order; and the processes that a child leaves behind are found by its group.

    Args:
        name: how the lines of this process are marked.
        command: the command line.
        environment: variables beside those of this process; may be changed before the next start.
        output: takes the lines that the process writes.

    Attributes:
        was_ready: whether one of its processes ever was; whoever looks after the child notes it.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], output: Output) -> None:
        self.name = name
        self.command = list(command)
        self.environment = dict(environment)
        self.was_ready = False
        self._failures: list[int] = []  # the statuses of the last processes, all the same
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._back_off = FIRST_BACK_OFF_SECONDS
        self._restart_at: float | None = None

    @property
    def process_id(self) -> int:
        """The id of the process that runs now, or ran last; 0 before the first start."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start the process."""
        self._restart_at = None
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            self.command,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        threading.Thread(target=self._relay, args=(self._process,), daemon=True).start()

    def _relay(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101  (PIPE above; for mypy)
        # The newlines stay as they are: a line of a progress bar ends in a carriage return.
        with io.TextIOWrapper(process.stdout, errors="replace", newline="") as lines:
            for line in lines:
                self._output.write(self.name, line.rstrip("\n"))

    def exit_status(self) -> int | None:
        """The status that the process ended with, negative for a signal; None while it runs or is to be restarted."""
        return self._process.poll() if self._process and self._restart_at is None else None

    def fails_for_good(self, status: int) -> bool:
        """Note a status that the process ended with; return whether the next process would end so as well.

        That is so after MOST_SAME_FAILURES that are the same, if the child was never ready.
        """
        self._failures = [*self._failures, status] if status in self._failures else [status]
        return not self.was_ready and len(self._failures) >= MOST_SAME_FAILURES

    def restart_later(self) -> float:
        """Plan a restart; return the seconds until then, which double with each quick death."""
        if time.monotonic() - self._started > STEADY_SECONDS:
            self._back_off = FIRST_BACK_OFF_SECONDS
        seconds, self._back_off = self._back_off, min(2 * self._back_off, LONGEST_BACK_OFF_SECONDS)
        self._kill_group()  # a process that the child left behind may hold its port
        self._restart_at = time.monotonic() + seconds
        return seconds

    def restart_if_due(self) -> None:
        """Start the process again when a planned restart is due."""
        if self._restart_at is not None and time.monotonic() >= self._restart_at:
            self.start()

    def stop(self, patience_seconds: float, signals: StopSignals) -> None:
        """Ask the process to end, and wait; kill it after `patience_seconds`, or as soon as `signals` ask to hurry."""
        if self._process is None:
            return
        until = time.monotonic() + patience_seconds
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        while self._process.poll() is None and time.monotonic() < until and not signals.ask_to_hurry:
            time.sleep(0.05)
        self._kill_group()
        self._process.wait()

    def _kill_group(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


class LeaseWatch:
    """Whether one process hangs: it held a lease, and has been without one for longer than a lease lasts."""

    def __init__(self, lease_seconds: float) -> None:
        self.hangs = False
        self._lease_seconds = lease_seconds
        self._held_at: float | None = None  # None: the process has held no lease yet, since it loads

    def observe(self, has_lease: bool | None, now: float) -> bool:
        """Note at `now`, monotonic seconds, whether the process holds a lease; return whether `hangs` has changed.

        `has_lease` None: nobody knows, since Redis is away. No process can renew its lease meanwhile, so that a lease
        which runs out then tells nothing.
        """
        if has_lease is None:
            if self._held_at is not None and not self.hangs:
                self._held_at = now
            return False
        if has_lease:
            self._held_at = now
        hung, self.hangs = self.hangs, self._held_at is not None and now - self._held_at > self._lease_seconds
        return hung != self.hangs
