"""Few threads do what many bring, several things at a time.

    put -- a place is free --> done at once, by the thread that brings it
        -- none is -----------> waits --> a thread takes 1, then 2, 4, … up to `most` --> done together

Whoever holds a place works for the others as well, instead of each waiting for a turn of its own, so that the code and
its data stay in the caches of one core. After Hendler, Incze, Shavit and Tzafrir, "Flat combining and the
synchronization-parallelism tradeoff" (SPAA 2010).
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

log = logging.getLogger(__name__)


class Combiner(Generic[Item]):
    """Calls `work` with what is put into it, in the order in which it came.

    Args:
        work: does a few items, one at least; must not raise.
        places: how many calls of `work` may run at once.
        most: items for one call, at most.
    """

    def __init__(self, work: Callable[[list[Item]], None], *, places: int, most: int) -> None:
        self._work, self._places, self._most = work, places, most
        # All below is guarded by `_changed`, which wakes one thread when there is both an item and a place.
        self._changed = threading.Condition()
        self._waiting: deque[Item] = deque()
        self._taken_places = 0

    def start(self) -> None:
        """Start the threads that take what waits."""
        for _ in range(self._places):
            threading.Thread(target=self._take_what_waits, name="combiner", daemon=True).start()

    def put(self, item: Item) -> None:
        """Have `item` done: before this returns, or later by another thread."""
        with self._changed:
            if self._waiting or self._taken_places == self._places:  # nobody overtakes those that wait
                self._waiting.append(item)
                return
            self._taken_places += 1
        try:
            self._work([item])
        finally:
            self._leave_place()

    def drain(self) -> list[Item]:
        """What waits, which will not be done now."""
        with self._changed:
            items = list(self._waiting)
            self._waiting.clear()
        return items

    def _leave_place(self) -> None:
        with self._changed:
            self._taken_places -= 1
            if self._waiting:
                self._changed.notify()

    def _take_what_waits(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting and self._taken_places < self._places)
                self._taken_places += 1
                items = self._next(1)
            most = 1
            while items:
                try:
                    self._work(items)
                except Exception:
                    log.exception("what these wait for was not done")
                # More and more: who comes next may be idle yet, and must not wait for a whole lot.
                most = min(2 * most, self._most)
                with self._changed:
                    items = self._next(most)
            self._leave_place()

    def _next(self, most: int) -> list[Item]:
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
