"""An operator's verbs for the whole queue, and for one model server of it. Each works at once, and on every process.

    pause  --> {Q}:paused ---> model servers take nothing: confirm.lua, take.lua
    drain  --> {Q}:draining -> web servers accept nothing: submit.lua, submit_async.lua
    resume --> neither
    quiet  --> {Q}:quiet ----> this model server takes nothing, until it wakes

The scripts that move jobs read these keys with every take and every submit. So all of it outlives every process, and
holds as long as Redis keeps its data.
"""

import logging

from serving.jobs.job_queue import JobQueue

log = logging.getLogger("operator")


class UnknownServer(Exception):
    """No model server of this name lives on the queue; the message says so, and what to do."""


def pause(queue: JobQueue) -> bool:
    """Have no model server take any more: what is in hand ends, what waits stays, and web servers accept more of it.

    Returns whether it changed anything. Raises QueueAway.
    """
    return bool(queue.run("pause", [queue.keys.leases, queue.keys.paused], []))


def drain(queue: JobQueue) -> bool:
    """Have web servers refuse what is new, while model servers empty both lanes. A pause ends by this.

    Returns whether it changed anything. Raises QueueAway.
    """
    return _end_pause("drain", queue)


def resume(queue: JobQueue) -> bool:
    """End a pause and a drain; model servers that are quiet stay so.

    Returns whether it changed anything. Raises QueueAway.
    """
    return _end_pause("resume", queue)


def quiet(queue: JobQueue, server: str) -> bool:
    """Have one model server take no more, by its name in the queue: it ends what it has in hand, and keeps its lease.

    One of a release that knows no such verb goes on taking.

    Returns whether it changed anything.

    Raises:
        UnknownServer: no model server of this name lives.
        QueueAway: Redis does not answer.
    """
    return _of_one("quiet", queue, server)


def wake(queue: JobQueue, server: str) -> bool:
    """Have a quiet model server take again. Returns and raises as `quiet` does."""
    return _of_one("wake", queue, server)


def _end_pause(verb: str, queue: JobQueue) -> bool:
    keys = queue.keys
    return bool(queue.run(verb, [keys.leases, keys.paused, keys.people.last_empty_at, keys.draining], []))


def _of_one(verb: str, queue: JobQueue, server: str) -> bool:
    state = queue.run(verb, [queue.keys.leases, queue.keys.quiet], [server])
    if state < 0:
        shown = "".join(character if character.isprintable() else "?" for character in server)[:200]
        raise UnknownServer(f'There is no model server "{shown}". Take a name from those that the queue lists.')
    return bool(state)


def note(verb: str, what: str, how_many: int = 1, by: str = "") -> None:
    """Leave the one line in the log that each act of an operator leaves, whatever LOG_LEVEL says.

    Args:
        verb: what was done, as the operator calls it: "pause", "requeue".
        what: with what: the queue's name, a model server's, "dead letters".
        how_many: how many of these it changed; 0: it was so already.
        by: who asked, as a name that is no secret; "": whoever may use the command.
    """
    log.warning("%s %s: %d changed%s", verb, what, how_many, f", asked by {by}" if by else "")
