"""Writes the answers while the model goes on, and ends the jobs in the queue.

Predicted -- the model's labels --> answers, JSON -- answer, in one round trip --> the queue: set, woken, struck off
"""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from serving.batching.batch import Item
from serving.batching.handover import Handover
from serving.batching.inbox import Inbox
from serving.batching.state import LoopState
from serving.errors import QueueAway
from serving.jobs.job import Outcome
from serving.jobs.model_queue import Member
from serving.model.runtime import Model
from serving.telemetry.model_metrics import ModelMetrics

if TYPE_CHECKING:
    from serving.telemetry.traces import ModelTraces

RECONNECT_SECONDS = 0.5

log = logging.getLogger(__name__)


class Answerer:
    """The thread that answers.

    Args:
        handover: brings the predicted batches.
        model: writes an answer from an image's probabilities.
        inbox: wakes the fetcher when no job is in hand any more.
        state: what the threads know of each other.
        metrics: counts how jobs ended.
        traces: records batches and their jobs; None: nobody wants traces.
    """

    def __init__(
        self,
        handover: Handover,
        model: Model,
        inbox: Inbox,
        state: LoopState,
        metrics: ModelMetrics,
        traces: "ModelTraces | None" = None,
    ) -> None:
        self._handover, self._model, self._inbox = handover, model, inbox
        self._state, self._metrics, self._traces = state, metrics, traces

    def run(self) -> None:
        """Answer until the handover is finished."""
        try:
            while (predicted := self._handover.get()) is not None:
                began = time.monotonic()
                outcomes = [
                    self._outcome(item, probabilities, predicted.model_ms)
                    for item, probabilities in zip(predicted.items, predicted.probabilities, strict=True)
                ]
                if self._deliver(predicted.member, outcomes):
                    self._metrics.ended(outcomes)
                    tell_of_dead_letters(predicted.items, outcomes)
                    if self._traces is not None:
                        done = predicted.began + (predicted.model_ms or 0.0) / 1000
                        self._traces.ended(predicted.items, outcomes, predicted.began, done, began)
                self._inbox.answered()
        finally:
            self._handover.abandon()

    def _outcome(self, item: Item, probabilities: np.ndarray | None, model_ms: float | None) -> Outcome:
        if probabilities is None:
            return item.to_outcome(None)
        return item.to_outcome(self._model.answer(probabilities, top=item.top, index=item.index), model_ms)

    def _deliver(self, member: Member, outcomes: list[Outcome]) -> bool:
        """Send the outcomes, and try again while Redis is away; return whether they arrived.

        Once the loop stops, the answerer tries for one lease more, and then leaves the jobs to others.
        """
        is_away, give_up_at = False, float("inf")
        while time.monotonic() < give_up_at:
            try:
                member.answer(outcomes)
                return True
            except QueueAway as error:
                if not is_away:
                    log.warning("answers wait for the queue: %s", error.__cause__)
                is_away = True
                if self._state.stopping:
                    give_up_at = min(give_up_at, time.monotonic() + self._state.lease_seconds)
                time.sleep(RECONNECT_SECONDS)
        log.warning("gave up %d answers; their jobs go to others", len(outcomes))
        return False


def tell_of_dead_letters(items: Sequence[Item], outcomes: Sequence[Outcome]) -> None:
    """Write a line for each of these jobs that has become a dead letter; `items` are the same jobs, in their order."""
    for item, outcome in zip(items, outcomes, strict=True):
        if outcome.is_dead_letter:
            log.warning("job %s is a dead letter now: %.200s", item, outcome.failure)
