"""Writes the lines of a log to standard error: each in one piece, and without waiting for whoever reads them.

    line -- one write --> standard error
         `- nobody reads, and the pipe is full --> the lines wait here --> written when there is room
                                                   `- more than MOST_WAITING_BYTES: dropped, counted, and told of

A web process that waited for its reader would stand still with all its requests. Where standard error is no pipe but a
file, a terminal or systemd's journal, a write waits as any program's does.
"""

import atexit
import contextlib
import logging
import os
import stat
import sys
import threading
import time
from collections import deque

MOST_WAITING_BYTES = 1024 * 1024
LOOK_AGAIN_SECONDS, LAST_WORDS_SECONDS = 0.05, 1.0

log = logging.getLogger(__name__)


class Output:
    """Standard error as it is now; threads may share it. A process that is forked has its own waiting lines."""

    def __init__(self) -> None:
        self._descriptor, self._home = _open_standard_error()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = self._dropped = 0
        self._is_looking = False
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self._end)

    def write(self, line: bytes) -> None:
        """Write a line, which ends in a newline; never raises. Up to 4,096 bytes (PIPE_BUF) no other line gets into it.

        Longer lines stay whole as long as the pipe has room for them.
        """
        if not self._waiting:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:
                pass
            except OSError:  # the reader is gone: nobody would read why
                return
            if not line:
                return
        self._let_wait(line)

    def write_where_it_points(self, line: bytes) -> None:
        """Write a line; to where standard error points meanwhile, if somebody has turned it away from here."""
        try:
            points = os.fstat(2)
        except OSError:
            return
        if self._home in (None, (points.st_dev, points.st_ino)):
            self.write(line)
        else:
            with contextlib.suppress(OSError):
                os.write(2, line)

    def turned(self) -> None:
        """Note that standard error points elsewhere from now on, on purpose; lines go on to where they went."""
        points = os.fstat(2)
        self._home = (points.st_dev, points.st_ino)

    @property
    def descriptor(self) -> int:
        """Standard error as it was, an open file."""
        return self._descriptor

    def _let_wait(self, line: bytes) -> None:
        with self._lock:
            if self._waiting_bytes + len(line) > MOST_WAITING_BYTES:
                self._dropped += 1
                return
            self._waiting.append(line)
            self._waiting_bytes += len(line)
            starts, self._is_looking = not self._is_looking, True
        if starts:
            threading.Thread(target=self._look, name="log", daemon=True).start()

    def _look(self) -> None:
        """Write what waits as soon as there is room, until nothing waits."""
        while not self._write_waiting():
            time.sleep(LOOK_AGAIN_SECONDS)
        if (dropped := self._dropped) > 0:
            self._dropped = 0
            log.warning("%d lines of the log were dropped, because nobody read them in time", dropped)

    def _write_waiting(self) -> bool:
        """Write lines that wait; return whether none is left."""
        with self._lock:
            while self._waiting:
                line = self._waiting[0]
                try:
                    written = os.write(self._descriptor, line)
                except BlockingIOError:
                    return False
                except OSError:
                    written = len(line)
                self._waiting_bytes -= written
                if written < len(line):
                    self._waiting[0] = line[written:]
                    return False
                self._waiting.popleft()
            self._is_looking = False
            return True

    def _end(self) -> None:
        until = time.monotonic() + LAST_WORDS_SECONDS
        while self._waiting and not self._write_waiting() and time.monotonic() < until:
            time.sleep(LOOK_AGAIN_SECONDS)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._waiting.clear()
        self._waiting_bytes = self._dropped = 0
        self._is_looking = False


def _open_standard_error() -> tuple[int, tuple[int, int] | None]:
    """An open file of our own for standard error, which never waits if that is a pipe; and which file it is.

    O_NONBLOCK belongs to the open file, which this process shares with others, perhaps with a shell. So the pipe is
    opened again, as Linux allows.
    """
    if sys.stderr is None:  # it was closed as the process began: the number 2 may be any file by now
        return os.open(os.devnull, os.O_WRONLY), None
    points = os.fstat(2)
    home = (points.st_dev, points.st_ino)
    if stat.S_ISFIFO(points.st_mode):
        with contextlib.suppress(OSError):  # no /proc; or another user's pipe
            return os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK), home
    return os.dup(2), home
