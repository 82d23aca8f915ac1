"""Brings predicted batches from the predictor to the answerer, in order, and never more than a few at a time.

predictor: put --> at most MOST_WAITING batches --> get: answerer
"""

import queue
import threading

from serving.batching.batch import Predicted
from serving.batching.state import WAIT_SECONDS

# Where writing answers takes longer than predicting, jobs in hand would grow without end if the predictor did not wait.
MOST_WAITING = 2


class Handover:
    """A bounded queue with an end: the predictor finishes it, and the answerer may abandon it."""

    def __init__(self) -> None:
        # Not a queue.Queue, which wakes the answerer while the predictor still holds the lock that both need.
        self._queue: queue.SimpleQueue[Predicted] = queue.SimpleQueue()
        self._places = threading.Semaphore(MOST_WAITING)
        self._is_finished = self._is_abandoned = False

    def put(self, predicted: Predicted) -> None:
        """Add a batch, and wait for room. When the answerer has ended, the batch is left to the lease."""
        while not self._is_abandoned:
            if self._places.acquire(timeout=WAIT_SECONDS):
                return self._queue.put(predicted)

    def get(self) -> Predicted | None:
        """Take the oldest batch, and wait for it. None: the handover is finished, and no batch is left."""
        while True:
            is_finished = self._is_finished  # before the look: what is put before the end is got
            try:
                predicted = self._queue.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                if is_finished:
                    return None
            else:
                self._places.release()
                return predicted

    def finish(self) -> None:
        """Say that no more batches will come."""
        self._is_finished = True

    def abandon(self) -> None:
        """Say that nobody takes batches any more."""
        self._is_abandoned = True
