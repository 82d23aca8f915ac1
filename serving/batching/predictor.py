"""Runs the model on one batch after the other. Where the model fails on a batch, halves find the guilty job.

inbox -- take --> Batch -- the model --> Predicted --> handover
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from serving.batching.batch import Batch, Item, Predicted
from serving.batching.batch_log import BatchLog
from serving.batching.handover import Handover
from serving.batching.inbox import Inbox
from serving.batching.state import LoopState
from serving.errors import ModelFailed, OutOfMemory
from serving.jobs.job import Lane
from serving.jobs.model_queue import ModelQueue
from serving.model.runtime import Model
from serving.telemetry.model_metrics import ModelMetrics

log = logging.getLogger(__name__)


class Predictor:
    """The thread that calls the model.

    Args:
        queue: tells the time by Redis's clock.
        inbox: where the jobs wait.
        model: maps pixels to probabilities.
        handover: the way to the answerer.
        state: what the threads know of each other.
        metrics: counts images and times the model.
        batch_log: tells of each batch.
    """

    def __init__(
        self,
        queue: ModelQueue,
        inbox: Inbox,
        model: Model,
        handover: Handover,
        state: LoopState,
        metrics: ModelMetrics,
        batch_log: BatchLog | None = None,
    ) -> None:
        self._queue, self._inbox, self._model, self._handover = queue, inbox, model, handover
        self._state, self._metrics, self._batch_log = state, metrics, batch_log or BatchLog()

    def run(self) -> None:
        """Predict until the loop stops.

        Raises:
            ModelFailed: the model is broken: it fails on a blank image as well, and no job is to blame.
        """
        while not self._state.stopping:
            batch = self._inbox.take()
            if batch is not None and not self._state.stopping:  # else the batch goes back, or its lease ends
                self._run(batch)

    def _run(self, batch: Batch) -> None:
        """Predict a batch and hand it over. The model counts as busy meanwhile, but not while the handover is full."""
        self._state.model_busy_since = time.monotonic()
        try:
            for predicted in self.predict(batch):
                self._state.model_busy_since = None
                self._handover.put(predicted)
                self._state.model_busy_since = time.monotonic()
        finally:
            self._state.model_busy_since = None

    def predict(self, batch: Batch) -> Iterator[Predicted]:
        """Run the model on a batch; yield its items in their order.

        Where the model fails on a batch, each half is yielded as soon as the model is done with it, so that its answers
        leave before the next half runs.

        Raises:
            ModelFailed: the model is broken.
        """
        now = self._queue.now()
        to_predict = [item for item in batch.items if item.row is not None and item.deadline > now]
        started = time.monotonic()
        try:
            probabilities = self._model.probabilities(batch.pixels(to_predict)) if to_predict else ()
        except ModelFailed as error:
            if isinstance(error, OutOfMemory) and len(to_predict) > 1:
                self._inbox.batch_size = max(1, len(to_predict) // 2)
                log.warning(
                    "out of memory with %d images; batches of %d from now on", len(to_predict), len(to_predict) // 2
                )
            if len(to_predict) > 1:
                for half in batch.halves():
                    yield from self.predict(half)
                return
            self._check_on_blank(batch, to_predict[0], error)
            items = [replace(item, failure=str(error)) if item is to_predict[0] else item for item in batch.items]
            yield Predicted(batch.member, items, [None] * len(items), began=started)
            return
        seconds = time.monotonic() - started
        if to_predict:
            if any(item.lane is Lane.BULK for item in to_predict):
                self._state.last_bulk_seconds = seconds
            padding = self._model.padding(len(to_predict))
            self._metrics.predicted(len(to_predict), padding, seconds)
            self._batch_log.predicted(batch.member.name, to_predict, padding, 1000 * seconds)
        by_row = {item.row: row for item, row in zip(to_predict, probabilities, strict=True)}
        probabilities_of = [by_row.get(item.row) for item in batch.items]
        yield Predicted(batch.member, batch.items, probabilities_of, 1000 * seconds, started)

    def _check_on_blank(self, batch: Batch, item: Item, error: ModelFailed) -> None:
        """Run the model on a blank image.

        Raises ModelFailed if that fails too: then the model is broken, and no job is to blame.
        """
        log.error("the model failed on job %s: %r", item, error.__cause__ or error)
        self._model.probabilities(np.zeros_like(batch.rows[:1]))
