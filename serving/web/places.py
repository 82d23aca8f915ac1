"""Limits how many requests one process has in hand.

a request for a model -- hold --> one of the places kept for this model, else one of those for all, else a 503
"""

import contextlib
import threading
from collections.abc import Iterator

from serving.errors import Refused, Unavailable


class Places:
    """Limits how many requests for one model a process has in hand. One that finds no place is refused at once.

    Args:
        count: how many places are kept for this model.
        common: free places besides, which all models share; None: there is no other model.
    """

    def __init__(self, count: int, common: threading.BoundedSemaphore | None = None) -> None:
        self._count, self._common = count, common
        self._free = threading.BoundedSemaphore(count)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold one place as long as a `with` block lasts. Raises Unavailable when none is free."""
        free = self._free
        if not free.acquire(blocking=False):
            if self._common is None:
                raise _refusal(f"{self._count} requests are in hand already.")
            free = self._common
            if not free.acquire(blocking=False):
                raise _refusal("Too many requests for this model are in hand already.")
        try:
            yield
        finally:
            free.release()


def share(count: int, models: int) -> list[Places]:
    """The places of a process, at least 1, for each of its models.

    Half of them are kept, as many for each model, and the other half is for whoever comes first: so requests that wait
    for a model whose model server is away leave places for the others.
    """
    if models == 1:
        return [Places(count)]
    kept = count // (2 * models)
    common = threading.BoundedSemaphore(count - models * kept)
    return [Places(kept, common) for _ in range(models)]


def _refusal(says: str) -> Unavailable:
    return Unavailable(f"{says} Try again in a moment.", reason=Refused.PLACES)
