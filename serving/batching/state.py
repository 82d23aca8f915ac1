"""What the three threads of a model server know of each other, besides the inbox and the queue of predicted batches.

field              written by                      read by
lease_seconds      nobody                          all
stopping           a signal handler, any thread    the fetcher after each take, the predictor every WAIT_SECONDS, the
                                                   answerer while Redis is away
failure            a thread that failed            the loop, which raises it; wait_for_model
model_busy_since   the predictor                   the fetcher; wait_for_model
last_bulk_seconds  the predictor                   the fetcher
"""

import logging
import os
import time
from dataclasses import dataclass

EXIT_STUCK = 70
WAIT_SECONDS = 0.2  # the longest wait without a look at `stopping`: a signal handler may not wake a thread

log = logging.getLogger(__name__)


@dataclass
class LoopState:
    """The state that the threads share; each field is read and written whole, so it needs no lock.

    Args:
        lease_seconds: a call of the model that takes longer loses its jobs to others; after two leases more
            `wait_for_model` ends the process.
    """

    lease_seconds: float
    stopping: bool = False
    failure: BaseException | None = None
    model_busy_since: float | None = None  # monotonic seconds; None: the model is free
    # How long the model had the last batch with asynchronous jobs; None: there was none.
    last_bulk_seconds: float | None = None

    def is_model_late(self) -> bool:
        """Tell whether the model has been busy for longer than the lease."""
        since = self.model_busy_since
        return since is not None and time.monotonic() - since > self.lease_seconds

    def wait_for_model(self) -> None:
        """Wait until the model is free: a model that hangs must not take more jobs.

        After two leases of waiting the process ends with EXIT_STUCK, for its supervisor to start another: no thread can
        end a call that hangs. A loop that stops in good order does not wait.
        """
        began = time.monotonic()
        while self.model_busy_since is not None and not (self.stopping and self.failure is None):
            if time.monotonic() - began > 2 * self.lease_seconds:
                log.critical("the model hangs: this process ends, to be started again")
                os._exit(EXIT_STUCK)
                return
            time.sleep(WAIT_SECONDS / 4)
