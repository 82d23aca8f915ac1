"""Tells requests that wait when their asynchronous jobs are over: one look at all of them, ten times a second.

request -- watching(job) --> the jobs that requests wait for -- one look --> Redis
        <-- its event, once the job is over --
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from serving.errors import QueueAway
from serving.jobs.async_jobs import AsyncJobs

LOOK_EVERY_SECONDS = 0.1
MOST_TOGETHER = 500  # jobs in one command, which must not hold Redis up

log = logging.getLogger(__name__)


class Watch:
    """Looks after the jobs of all requests of a process that wait for one; safe to share between threads.

    Args:
        jobs: are looked at.
    """

    def __init__(self, jobs: AsyncJobs) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self._events: dict[str, set[threading.Event]] = {}  # job id -> of each request that waits for this job
        self._some_wait = threading.Event()

    def start(self) -> None:
        """Start the thread that looks; without it no event is ever set."""
        threading.Thread(target=self.run, name="watch", daemon=True).start()

    @contextlib.contextmanager
    def watching(self, job_id: str) -> Iterator[threading.Event]:
        """Within the block, an event that is set once the job is over, or not known any more."""
        event = threading.Event()
        with self._lock:
            self._events.setdefault(job_id, set()).add(event)
            self._some_wait.set()
        try:
            yield event
        finally:
            with self._lock:
                self._events[job_id].discard(event)
                if not self._events[job_id]:
                    del self._events[job_id]

    def run(self) -> None:
        """Look without end, while some request waits; for a thread of its own."""
        while True:
            self._some_wait.wait()
            try:
                self.look()
            except QueueAway as error:
                log.debug("asynchronous jobs cannot be looked at: %s", error.__cause__)
            except Exception:
                log.exception("asynchronous jobs could not be looked at")
            time.sleep(LOOK_EVERY_SECONDS)

    def look(self) -> None:
        """Look at all jobs that requests wait for, once. Raises QueueAway."""
        with self._lock:
            ids = list(self._events)
            if not ids:
                self._some_wait.clear()
        for start in range(0, len(ids), MOST_TOGETHER):
            over = self._jobs.over(ids[start : start + MOST_TOGETHER])
            with self._lock:
                for event in [event for job_id in over for event in self._events.get(job_id, ())]:
                    event.set()
