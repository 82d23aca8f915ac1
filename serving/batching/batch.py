"""Defines what the threads of a model server hand to each other: Item, Batch, Predicted.

    fetcher -- Item, pixels --> inbox -- Batch --> predictor -- Predicted --> answerer -- Outcome --> the queue

The order of the items is the order in which the queue gave them. Every step keeps it, since `Member.answer` strikes off
the oldest jobs in hand of each lane.
"""

from dataclasses import dataclass

import numpy as np

from serving.jobs.job import Lane, Outcome
from serving.jobs.model_queue import Member


@dataclass(slots=True)
class Item:
    """A taken job: its text as it travelled, and the row of the array where its pixels lie, which the inbox sets.

    Without a row the model does not run it: the job has failed, or will be dropped: canceled, or past its deadline.
    """

    text: bytes
    job_id: str | None = None
    reply_to: str | None = None
    deadline: float = float("inf")  # unix seconds, Redis's clock
    failure: str | None = None
    attempts: int = 0
    row: int | None = None
    status: int | None = None  # the HTTP status that goes with the failure; None: 500, and a dead letter
    top: int | None = None  # how many predictions the client wants; None: as many as the settings say
    index: bool = False  # whether it wants the index of each class
    request_id: str | None = None
    lane: Lane = Lane.PEOPLE  # from which the job was taken
    is_canceled: bool = False  # nobody wants it any more
    traceparent: str | None = None  # the span that submitted it, for traces
    taken_at: float = 0.0  # monotonic seconds, of a job with a traceparent

    def __str__(self) -> str:
        return f"{self.job_id}" + (f" of request {self.request_id}" if self.request_id else "")

    def to_outcome(self, answer: str | None, model_ms: float | None = None) -> Outcome:
        """Tell how the job ends: with `answer` (JSON), else with its failure, else dropped.

        `model_ms`: how long the model had the batch, milliseconds; None: the model did not run the job.
        """
        return Outcome(
            *(self.text, self.job_id, self.reply_to, answer, self.failure, self.attempts, self.status, model_ms),
            lane=self.lane,
            is_canceled=self.is_canceled,
        )


@dataclass(frozen=True)
class Batch:
    """Items in the order in which they were taken, and the array that their rows belong to.

    `rows` is (rows, height, width, channels) uint8 0..255, and has rows of other batches as well.
    """

    member: Member  # under whose lease the items were taken
    items: list[Item]
    rows: np.ndarray

    def pixels(self, items: list[Item]) -> np.ndarray:
        """Return the images of these items, which all have rows: (items, height, width, channels) uint8 0..255.

        The array is a part of `rows`, not a copy, where the rows follow each other; a copy otherwise.
        """
        chosen = [item.row for item in items if item.row is not None]
        if chosen[-1] - chosen[0] == len(chosen) - 1:
            return self.rows[chosen[0] : chosen[-1] + 1]
        return self.rows[chosen]

    def halves(self) -> "list[Batch]":
        """Split the batch in two."""
        middle = len(self.items) // 2
        return [Batch(self.member, part, self.rows) for part in (self.items[:middle], self.items[middle:])]


@dataclass(frozen=True)
class Predicted:
    """Items that the model is done with.

    `probabilities` has an entry for each item: (classes,) float32 0..1, or None where the model did not run the item.
    `model_ms` is how long the model had them, milliseconds, since `began`, monotonic seconds.
    """

    member: Member
    items: list[Item]
    probabilities: list[np.ndarray | None]
    model_ms: float | None = None
    began: float = 0.0
