"""A request that waits: what its job is made of, then the job, and a place to sleep until it is answered."""

import contextlib
import threading
import time
from collections.abc import Callable

from serving.jobs.job_queue import Job


class PendingRequest:
    """One request of a web process.

    Its thread waits for it and hears how it ends; others make its job, and wake it with an answer or an error.

    Args:
        encode: makes the image, as in Job; called at most once.
        make_job: the job of that image.
    """

    def __init__(self, encode: Callable[[], str], make_job: Callable[..., Job]) -> None:
        self.since = time.monotonic()
        self.job: Job | None = None  # without its text: as many requests may wait as there are places
        self.has_ended = False  # nobody waits any more
        self._encode: Callable[[], str] | None = encode  # it holds the upload, which is large
        self._make_job = make_job
        self._answer = ""
        self._error: Exception | None = None
        self._asleep = threading.Lock()  # an Event would make two of them, and more
        self._asleep.acquire()

    def encode(self) -> bool:
        """Make the job. Returns whether there is one now; else the request has ended, or has failed."""
        encode, self._encode = self._encode, None
        if encode:
            try:
                self.job = self._make_job(image=encode())
            except Exception as error:
                self.fail(error)
        return self.job is not None

    def end(self) -> None:
        """Nobody waits any more."""
        self.has_ended = True
        self._encode = self._error = None

    def wait(self, seconds: float) -> bool:
        """Whether the answer came, or the request failed, within `seconds`."""
        return self._asleep.acquire(timeout=seconds)

    def answer(self, answer: str) -> None:
        self._answer = answer
        self._wake()

    def fail(self, error: Exception) -> None:
        """Have `result` raise `error`, which is this request's alone, unless it was answered all the same."""
        self._error = error
        if self.has_ended:
            self._error = None
        self._wake()

    def result(self) -> str:
        """The answer. Raises what the request failed with."""
        # Its traceback holds this very request, and what was decoded: kept here it would wait for the collector.
        error, self._error = self._error, None
        try:
            if error and not self._answer:
                raise error
            return self._answer
        finally:
            del error

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # it was awake: the answer came twice, as a message and as found
            self._asleep.release()
