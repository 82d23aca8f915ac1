"""The jobs that wait for the model, with their images side by side in memory.

    fetcher: put --> the next rows of one array -- take --> predictor: a Batch of those rows
                     `-- empty again: the other array is filled from now on, while the model reads this one

The batch closes when the model asks for it, never earlier and never on a timer. Copying the images together at that
moment would make the model wait, so the fetcher does it (docs/decisions/025).
"""

import threading
from collections.abc import Sequence

import numpy as np

from serving.batching.batch import Batch, Item
from serving.batching.state import WAIT_SECONDS
from serving.jobs.model_queue import Member


class Inbox:
    """Jobs on their way from the fetcher to the predictor, which are two threads.

    Args:
        batch_size: the most images in one batch.
        shape: of each image, (height, width, channels).
    """

    def __init__(self, batch_size: int, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.batch_size = batch_size  # the predictor sets it lower when that many do not fit into memory
        lock = threading.Lock()
        self._has_jobs = threading.Condition(lock)  # the predictor waits for it
        self._is_wanted = threading.Condition(lock)  # the fetcher waits for it
        # All below is guarded by the lock.
        self._arrays = [np.empty((batch_size, *shape), np.uint8) for _ in range(2)]
        self._filling = self._arrays[0]
        self._used_rows = 0  # of the array that is being filled
        self._with_model: np.ndarray | None = None  # the array whose rows the last batch has
        self._member: Member | None = None
        self._items: list[Item] = []
        self._last_batch = 0  # its number of items
        self._model_waits = False

    # The fetcher's side.

    def open(self, member: Member) -> None:
        """Begin anew: the jobs that follow are taken under the lease of `member`."""
        with self._has_jobs:
            self._member = member
            self._fill_afresh()

    def close(self) -> None:
        """Forget the jobs that no batch has: the queue has them, or gets them back."""
        with self._has_jobs:
            self._member = None
            self._items = []

    def wait_for_room(self) -> int:
        """Wait a moment until another image fits into the next batch; return how many fit (0: none yet)."""
        with self._is_wanted:
            if self._room() <= 0:
                self._is_wanted.wait(WAIT_SECONDS)
            return max(0, self._room())

    def put(self, jobs: Sequence[tuple[Item, np.ndarray | None]]) -> None:
        """Add jobs: items, each with its pixels (height, width, channels) uint8 0..255; None: to end without the model.

        At most as many have pixels as `wait_for_room` has told; otherwise IndexError is raised.
        """
        if not jobs:
            return
        with self._has_jobs:
            for item, pixels in jobs:
                if pixels is not None:
                    self._filling[self._used_rows] = pixels
                    item.row = self._used_rows
                    self._used_rows += 1
                self._items.append(item)
            self._has_jobs.notify()

    def wait_until_wanted(self, seconds: float) -> None:
        """Wait, for at most so many seconds, until it is worth looking at the queue for more jobs."""
        with self._is_wanted:
            if not self._wants_jobs():
                self._is_wanted.wait(seconds)

    def model_waits(self) -> bool:
        """Whether the predictor waits for a job, and none is here."""
        with self._is_wanted:
            return self._model_waits and not self._items

    # The predictor's side.

    def take(self) -> Batch | None:
        """Take what is there, up to `batch_size` images; wait a moment for a first job, and return None without any.

        The caller must no longer read the rows of the batch that it took before: the fetcher may fill them again now.
        """
        with self._has_jobs:
            if not self._items:
                self._model_waits = True
                self._wake_fetcher()
                self._has_jobs.wait(WAIT_SECONDS)
                self._model_waits = False
            if not self._items or self._member is None:
                return None
            had_room = self._room() > 0
            items, self._items = _split(self._items, self.batch_size)
            batch = Batch(self._member, items, self._filling)
            self._with_model = self._filling
            if not self._items:  # else those that are left stay beside the batch
                self._fill_afresh()
            self._last_batch = len(items)
            if not had_room:
                self._is_wanted.notify()
            return batch

    # The answerer's side.

    def answered(self) -> None:
        """Wake the fetcher if no job is in hand any more: it then waits in Redis, and so renews the lease.

        The answerer calls this after each answer.
        """
        with self._is_wanted:
            self._wake_fetcher()

    def _fill_afresh(self) -> None:
        """Fill the array that the model does not have, from its first row."""
        first, second = self._arrays
        self._filling = second if self._with_model is first else first
        self._used_rows = 0

    def _room(self) -> int:
        waiting = sum(item.row is not None for item in self._items)
        return min(self.batch_size - waiting, len(self._filling) - self._used_rows)

    def _wants_jobs(self) -> bool:
        # After a batch of one job the fetcher does not look at once: the next job comes only after the answer.
        starves = self._model_waits and not self._items and self._last_batch > 1
        member = self._member
        return starves or member is None or member.is_lost or member.in_hand == 0

    def _wake_fetcher(self) -> None:
        # Each wake-up takes the interpreter from the other threads, so only where there is something to do.
        if self._wants_jobs():
            self._is_wanted.notify()


def _split(items: list[Item], batch_size: int) -> tuple[list[Item], list[Item]]:
    """The items of one batch, and the rest. Items without a row go along for free."""
    images = 0
    for position, item in enumerate(items):
        images += item.row is not None
        if images > batch_size:
            return items[:position], items[position:]
    return items, []
