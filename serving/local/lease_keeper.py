"""What run_service.py knows of its model servers from their leases: who is ready, who hangs, whose jobs may go back."""

import contextlib
import time

from serving.errors import QueueAway
from serving.jobs.job_queue import JobQueue
from serving.jobs.leases import end_leases, has_lease
from serving.local.supervisor import Child, LeaseWatch
from serving.local.terminal import tell


class LeaseKeeper:
    """Asks the queue about the leases of a service's model servers, each lease of `lease_seconds`."""

    def __init__(self, queue: JobQueue, lease_seconds: float) -> None:
        self._queue, self._lease_seconds = queue, lease_seconds
        self._watches: dict[int, LeaseWatch] = {}  # by process id: the next process of a child begins anew

    def holds_lease(self, child: Child) -> bool | None:
        """Whether a model server holds a lease, hence is ready, which is noted; None: Redis is away, nobody knows."""
        try:
            holds = has_lease(self._queue, child.process_id)
        except QueueAway:
            return None
        child.was_ready = child.was_ready or holds
        return holds

    def observe(self, child: Child) -> None:
        """Say once that a model server lives without making progress, and once that it goes on."""
        watch = self._watches.setdefault(child.process_id, LeaseWatch(self._lease_seconds))
        if not watch.observe(self.holds_lease(child), time.monotonic()):
            return
        if watch.hangs:
            tell(
                f"The {child.name} server hangs: its process {child.process_id} lives, but has lost its lease, and "
                "others get its jobs. Its last lines in the log may say why. Kill it, and another one is started.",
                "bold yellow",
            )
        else:
            tell(f"The {child.name} server goes on: it holds a lease again.", "bold green")

    def end(self, child: Child) -> None:
        """End the lease of a model server that is dead, so that the queue returns its jobs at once, counted."""
        self._watches.pop(child.process_id, None)
        with contextlib.suppress(QueueAway):  # then the lease runs out by itself
            end_leases(self._queue, child.process_id)
