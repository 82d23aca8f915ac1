"""Limits how many requests one process has in hand."""

import contextlib
import threading
from collections.abc import Iterator

from serving.errors import Refused, Unavailable


class Places:
    """Limits how many requests one process has in hand. A request that finds no place is refused at once.

    Args:
        count: how many places there are, at least 1.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = threading.BoundedSemaphore(count)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold one place as long as a `with` block lasts. Raises Unavailable when none is free."""
        if not self._free.acquire(blocking=False):
            says = f"{self._count} requests are in hand already. Try again in a moment."
            raise Unavailable(says, reason=Refused.PLACES)
        try:
            yield
        finally:
            self._free.release()
