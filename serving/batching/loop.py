"""Runs fetcher, predictor and answerer at the same time, so that the model never waits for Redis.

    queue -- take --> Fetcher --> Inbox --> Predictor --> Handover --> Answerer -- answer --> queue
                      (thread)              (the calling                (thread)
                                             thread)

Work-conserving: when the model is free it gets what is waiting, at once.
"""

import logging
import threading

from serving.batching.answerer import Answerer
from serving.batching.fetcher import Fetcher
from serving.batching.handover import Handover
from serving.batching.predictor import Predictor
from serving.batching.state import LoopState
from serving.errors import StartError
from serving.telemetry import logs

log = logging.getLogger(__name__)


class BatchLoop:
    """Runs batches until told to stop.

    Args:
        fetcher, predictor, handover, answerer: the three threads, and what lies between two of them.
        state: what they know of each other.
        model: of which model the lines of the log are, where a process has several; None: they do not say it.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        predictor: Predictor,
        handover: Handover,
        answerer: Answerer,
        state: LoopState,
        *,
        model: str | None = None,
    ) -> None:
        self._fetcher, self._predictor, self._answerer = fetcher, predictor, answerer
        self._handover, self._state, self.model = handover, state, model

    def stop(self) -> None:
        """Take no more, answer what is being predicted, give back the rest. A signal handler may call: no lock."""
        self._state.stopping = True

    def stop_on_signal(self, number: int, frame: object) -> None:
        """Stop, as a handler of signals is called."""
        del number, frame
        self.stop()

    def run(self) -> None:
        """Predict in this thread until stopped.

        If a thread failed, `run` raises its error and does not give back the jobs in hand. Their lease runs out, and
        the queue counts an attempt for each.
        """
        threads = [
            threading.Thread(target=self._run_part, args=(part,), name=type(part).__name__.lower(), daemon=True)
            for part in (self._fetcher, self._answerer)
        ]
        for thread in threads:
            thread.start()
        with logs.of_model(self.model):
            try:
                self._predictor.run()
            finally:  # what is predicted is answered, whatever happened
                self._state.stopping = True
                self._handover.finish()
                for thread in threads:
                    thread.join()
            if self._state.failure is not None:
                raise self._state.failure
            self._fetcher.leave()

    def _run_part(self, part: Fetcher | Answerer) -> None:
        with logs.of_model(self.model):
            try:
                part.run()
            except BaseException as error:
                if not isinstance(error, StartError):  # its sentence says all
                    log.exception("%s failed", type(part).__name__.lower())
                self._state.failure = error
                self._state.stopping = True
                self._state.wait_for_model()  # the predicting thread ends the loop, unless the model hangs
