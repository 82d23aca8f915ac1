"""Child processes: start, restart with back-off, stop in order, leave none behind; tell one that hangs."""

import contextlib
import io
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence

FIRST_BACK_OFF_SECONDS = 1.0
LONGEST_BACK_OFF_SECONDS = 30.0
# A child that ran this long had started well; its next death begins a new row of back-offs.
STEADY_SECONDS = 60.0


class Child:
    """One process of the service, and the next one when it dies.

    Each runs in a session of its own: the terminal's Ctrl-C reaches the supervisor alone, which stops the children
    in their order, and what a child leaves behind can be found by its group.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], say: Callable[[str, str], None]
    ) -> None:
        self.name = name
        self.command = list(command)
        self.environment = dict(environment)
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._back_off = FIRST_BACK_OFF_SECONDS
        self._restart_at: float | None = None

    @property
    def process_id(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start the process; its output goes to `say`, line by line."""
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
        # Lines that end in a carriage return are told apart: a progress bar ends so.
        with io.TextIOWrapper(process.stdout, errors="replace", newline="") as lines:
            for line in lines:
                self._say(self.name, line.rstrip("\n"))

    def exit_status(self) -> int | None:
        """The status it ended with, negative for a signal; None while it runs or waits to be restarted."""
        return self._process.poll() if self._process and self._restart_at is None else None

    def restart_later(self) -> float:
        """Plan a restart after a back-off, which doubles with each quick death; how many seconds it is."""
        if time.monotonic() - self._started > STEADY_SECONDS:
            self._back_off = FIRST_BACK_OFF_SECONDS
        seconds, self._back_off = self._back_off, min(2 * self._back_off, LONGEST_BACK_OFF_SECONDS)
        self._kill_group()  # what it left behind may hold its port
        self._restart_at = time.monotonic() + seconds
        return seconds

    def restart_if_due(self) -> None:
        if self._restart_at is not None and time.monotonic() >= self._restart_at:
            self.start()

    def stop(self, patience_seconds: float, hurry: Callable[[], bool]) -> None:
        """Ask it to end and wait; end it after `patience_seconds`, or at once when `hurry`."""
        if self._process is None:
            return
        until = time.monotonic() + patience_seconds
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        while self._process.poll() is None and time.monotonic() < until and not hurry():
            time.sleep(0.05)
        self._kill_group()
        self._process.wait()

    def _kill_group(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


class LeaseWatch:
    """Whether one process hangs: it held a lease, and has been without for longer than a lease lasts."""

    def __init__(self, lease_seconds: float) -> None:
        self.hangs = False
        self._lease_seconds = lease_seconds
        self._held_at: float | None = None  # None: never yet, for it loads

    def look(self, has_lease: bool, now: float) -> bool:
        """Note what is seen at `now`, in monotonic seconds; whether `hangs` has changed."""
        if has_lease:
            self._held_at = now
        hung, self.hangs = self.hangs, self._held_at is not None and now - self._held_at > self._lease_seconds
        return hung != self.hangs

    def cannot_look(self, now: float) -> None:
        """Nothing is known at `now`: a lease that nobody can renew, since Redis is away, tells nothing."""
        if self._held_at is not None and not self.hangs:
            self._held_at = now
