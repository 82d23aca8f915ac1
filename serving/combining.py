"""Few threads do what many bring, several things at a time.

    put -- a place is free --> done at once, by the thread that brings it
        -- none is -----------> waits --> a thread takes 1, then 2, 4, … up to `most` --> done together

Whoever holds the place works for the others as well, instead of each waiting for a turn of its own, so that the code
and its data stay in the caches of one core. After Hendler, Incze, Shavit and Tzafrir, "Flat combining and the
synchronization-parallelism tradeoff" (SPAA 2010).
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")

log = logging.getLogger(__name__)


class Combiner(Generic[Item]):
    """Calls `work` with what is put into it.

    Args:
        work: does a few items, one at least; must not raise.
        places: how many calls of `work` may run at once.
        most: items for one call, at most.
    """

    def __init__(self, work: Callable[[list[Item]], None], *, places: int, most: int) -> None:
        self._work, self._most = work, most
        self._count, self._places = places, threading.BoundedSemaphore(places)
        self._waiting: SimpleQueue[Item] = SimpleQueue()

    def start(self) -> None:
        """Start the threads that take what waits."""
        for _ in range(self._count):
            threading.Thread(target=self._take_what_waits, name="combiner", daemon=True).start()

    def put(self, item: Item) -> None:
        """Have `item` done: before this returns, or later by another thread."""
        # Nobody overtakes those that wait.
        if self._waiting.empty() and self._places.acquire(blocking=False):
            try:
                self._work([item])
            finally:
                self._places.release()
        else:
            self._waiting.put(item)

    def _take_what_waits(self) -> None:
        while True:
            items, most = [self._waiting.get()], 1
            with self._places:
                while items:
                    try:
                        self._work(items)
                    except Exception:
                        log.exception("what these wait for was not done")
                    # More and more: who comes next may be idle yet, and must not wait for a whole lot.
                    most = min(2 * most, self._most)
                    items = self._next(most)

    def _next(self, most: int) -> list[Item]:
        items: list[Item] = []
        with contextlib.suppress(Empty):
            while len(items) < most:
                items.append(self._waiting.get_nowait())
        return items
