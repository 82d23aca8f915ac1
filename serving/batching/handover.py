"""Brings predicted batches from the predictor to the answerer, in order, and never more than a few at a time."""

import queue

from serving.batching.batch import Predicted
from serving.batching.state import WAIT_SECONDS, LoopState

# Where writing answers takes longer than predicting, jobs in hand would grow without end if the predictor did not wait.
MOST_WAITING = 2


class Handover:
    """A bounded queue whose sender does not wait for a receiver that has failed."""

    def __init__(self, state: LoopState) -> None:
        self._state = state
        self._queue: queue.Queue[Predicted | None] = queue.Queue(MOST_WAITING)

    def put(self, predicted: Predicted | None) -> None:
        """Add a batch; wait while there is no room for it, unless a thread of the loop has failed."""
        while True:
            try:
                return self._queue.put(predicted, timeout=WAIT_SECONDS)
            except queue.Full:
                if self._state.failure is not None:
                    return  # its jobs are left to the lease

    def get(self) -> Predicted | None:
        """Take the oldest batch; wait for it. None: no more will come."""
        return self._queue.get()

    def finish(self) -> None:
        """Tell the receiver that no more will come."""
        self.put(None)
