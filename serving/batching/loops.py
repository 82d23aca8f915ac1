"""Runs the models of one process at the same time, each in a loop of its own.

queue of one model ----> BatchLoop (a thread of its own, and its two) ----> answers
queue of another ------> BatchLoop (…)                                ----> answers
                         the calling thread waits, and hears of signals
"""

import concurrent.futures
import logging
import os
from collections.abc import Sequence

from serving.batching.loop import BatchLoop
from serving.batching.state import EXIT_STUCK
from serving.errors import StartError

PATIENCE_LEASES = 3  # a loop that alone would end a process whose model hangs does so after one lease and two more

log = logging.getLogger(__name__)


class BatchLoops:
    """Runs loops until they are told to stop, or until one of them fails.

    Args:
        loops: at least one.
        lease_seconds: of their model servers.
    """

    def __init__(self, loops: Sequence[BatchLoop], lease_seconds: float) -> None:
        self._loops, self._lease_seconds = loops, lease_seconds

    def stop(self) -> None:
        """Have each loop take no more, answer what it predicts, give back the rest. A signal handler may call."""
        for loop in self._loops:
            loop.stop()

    def stop_on_signal(self, number: int, frame: object) -> None:
        """Stop, as a handler of signals is called."""
        del number, frame
        self.stop()

    def run(self) -> None:
        """Predict until stopped; a single loop in this thread.

        If a loop fails, the others stop in good order, and `run` raises the error of the one that failed first. Where
        a model hangs meanwhile, the process ends with EXIT_STUCK: nobody else would end it.
        """
        if len(self._loops) == 1:
            return self._loops[0].run()
        pool = concurrent.futures.ThreadPoolExecutor(len(self._loops), "loop")
        ends = [pool.submit(_run, loop) for loop in self._loops]
        first, others = concurrent.futures.wait(ends, return_when=concurrent.futures.FIRST_COMPLETED)
        self.stop()
        failures = [error for end in first if (error := end.exception()) is not None]
        patience_seconds = PATIENCE_LEASES * self._lease_seconds if failures else None
        if concurrent.futures.wait(others, patience_seconds).not_done:
            log.critical("another model hangs: this process ends, to be started again")
            os._exit(EXIT_STUCK)
            return
        pool.shutdown()
        failures += [error for end in others if (error := end.exception()) is not None]
        if failures:
            raise failures[0]


def _run(loop: BatchLoop) -> None:
    try:
        loop.run()
    except StartError:  # its sentence says all
        raise
    except BaseException:
        log.error("the model server of %s failed: those of the other models stop as well", loop.model)
        raise
