"""Writes which limits refuse requests into the log, without flooding it.

a refusal of a new kind --> a line at once --> the next ones of this kind are counted --> their sum, every 10 s
"""

import atexit
import logging
import re
import threading

log = logging.getLogger(__name__)

EVERY_SECONDS = 10.0
_NUMBER = re.compile(r"\b[0-9]+\b")
_JOB = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")


class RefusalLog:
    """The refusals of one process; threads may share it. Those that are not told yet are told as the process ends.

    Refusals are of one kind if they have the same page, status, sentence and cause, but for the numbers and the jobs'
    ids in them.

    Args:
        every_seconds: from one line about a kind to the next.
    """

    def __init__(self, every_seconds: float = EVERY_SECONDS) -> None:
        self._every_seconds = every_seconds
        self._lock = threading.Lock()
        self._untold: dict[str, int] = {}  # kind -> refusals since its last line; a kind is there for a while after it
        atexit.register(self.tell_all)

    def note(
        self, page: str, status: int, sentence: str, cause: BaseException | None = None, request_id: str = ""
    ) -> None:
        """Note a refusal; `sentence` is what its client was told, `cause` the error behind it."""
        # Not the repr of the cause: that of Redis's errors tells only their class.
        because = f" ({type(cause).__name__}: {cause})" if cause is not None else ""
        line = f"{page}: {status}: {sentence}{because}"
        kind = f"{_JOB.sub('…', page)}: {status}: {_NUMBER.sub('…', _JOB.sub('…', sentence + because))}"
        with self._lock:
            is_new = kind not in self._untold
            self._untold[kind] = 0 if is_new else self._untold[kind] + 1
        if is_new:
            log.warning("%s%s", line, f" (request {request_id})" if request_id else "")
            self._tell_later(kind)

    def tell_all(self) -> None:
        """Tell of all that is counted, and begin anew."""
        with self._lock:
            untold, self._untold = self._untold, {}
        for kind, count in untold.items():
            self._tell(kind, count)

    def _tell_later(self, kind: str) -> None:
        timer = threading.Timer(self._every_seconds, self._tell_in_time, [kind])
        timer.daemon = True
        timer.start()

    def _tell_in_time(self, kind: str) -> None:
        with self._lock:
            count = self._untold.pop(kind, 0)
            if count:
                self._untold[kind] = 0
        if count:
            self._tell(kind, count)
            self._tell_later(kind)

    def _tell(self, kind: str, count: int) -> None:
        if count:
            log.warning("%d more requests in the last %g s: %s", count, self._every_seconds, kind)
