"""Tells which processes of this host hold a lease, and ends the leases of those that are known to be dead.

a model server's name in the queue: <host>:<process id>:<random>
"""

import socket

from serving.jobs.job_queue import JobQueue


def has_lease(queue: JobQueue, process_id: int | None = None) -> bool:
    """Whether a process of this host holds a lease; with None, whether any of this host does. Raises QueueAway."""
    return any(name.startswith(process_name(process_id)) for name in queue.model_server_names(expired=False))


def end_leases(queue: JobQueue, process_id: int) -> None:
    """End the leases of a process of this host that is known to be dead, so that its jobs return at once, counted.

    Raises QueueAway.
    """
    for name in queue.model_server_names(expired=False):
        if name.startswith(process_name(process_id)):
            queue.exchange(("ZADD", queue.keys.leases, queue.now() - 1, name))


def process_name(process_id: int | None) -> str:
    """How the names of a process's leases begin; with None, those of all processes of this host."""
    return f"{socket.gethostname()}:" + ("" if process_id is None else f"{process_id}:")
