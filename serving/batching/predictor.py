"""A batch of jobs -> how each of them ends. Where the model fails on a batch, halves find the guilty job."""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from serving.batching.batch import Stage, side_by_side
from serving.errors import ModelFailed, OutOfMemory
from serving.jobs.job import Outcome

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """A taken job, ready for the model; or, without pixels, one that ends without it (`failure`, else dropped)."""

    text: bytes
    job_id: str | None = None
    reply_to: str | None = None
    deadline: float = float("inf")  # unix seconds, Redis's clock
    pixels: np.ndarray | None = None  # (height, width, 3) uint8 0..255
    failure: str | None = None
    attempts: int = 0

    def staged(self, stage: Stage) -> "Item":
        """The same with its pixels in `stage`."""
        return self if self.pixels is None else replace(self, pixels=stage.put(self.pixels))

    def ends(self, *, answer: str | None = None, failure: str | None = None) -> Outcome:
        return Outcome(self.text, self.job_id, self.reply_to, answer, failure, self.attempts)


class Observer(Protocol):
    """Who counts."""

    def predicted(self, jobs: int, seconds: float) -> None: ...

    def ended(self, outcomes: Sequence[Outcome]) -> None: ...


Write = Callable[[], list[str]]  # writes n answers, JSON, of what the model has computed; another thread may call it


class BatchPredictor:
    """Predicts batches of items.

    Args:
        predict: pixels (n, height, width, 3) uint8 0..255 -> what writes n answers. Raises ModelFailed, OutOfMemory.
        now: the time by Redis's clock, unix seconds.
        observer: is told of every batch.
        batch_size: most images in one call of `predict`; the attribute falls when that many do not fit into memory.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray], Write],
        now: Callable[[], float],
        observer: Observer,
        batch_size: int,
    ) -> None:
        self._predict, self._now, self._observer = predict, now, observer
        self.batch_size = batch_size

    def split(self, items: list[Item]) -> tuple[list[Item], list[Item]]:
        """The items of one batch, those that end without the model going along for free, and the rest."""
        images = 0
        for position, item in enumerate(items):
            images += item.pixels is not None
            if images > self.batch_size:
                return items[:position], items[position:]
        return items, []

    def outcomes(self, batch: Sequence[Item]) -> Iterator[Callable[[], list[Outcome]]]:
        """How the items end, in their order, in as many pieces as it took: of each a function that tells, so that the
        thread which answers can write the answers while the model goes on.

        Raises:
            ModelFailed: the model is broken: it fails on a blank image as well, and no job is to blame.
        """
        expired = self._now()
        good = [item for item in batch if item.pixels is not None and item.deadline > expired]
        started = time.monotonic()
        try:
            pixels = [item.pixels for item in good if item.pixels is not None]
            write = self._predict(side_by_side(pixels)) if good else list
        except ModelFailed as error:
            if isinstance(error, OutOfMemory) and len(good) > 1:
                self.batch_size = max(1, len(good) // 2)
                log.warning("out of memory with %d images; batches of %d from now on", len(good), self.batch_size)
            if len(good) > 1:
                yield from self.outcomes(batch[: len(batch) // 2])
                yield from self.outcomes(batch[len(batch) // 2 :])
                return
            self._blame(good[0], error)
            ends = [item.ends(failure=str(error) if item is good[0] else item.failure) for item in batch]
            yield lambda: ends
            return
        if good:
            self._observer.predicted(len(good), time.monotonic() - started)
        yield functools.partial(_written, batch, good, write)

    def _blame(self, item: Item, error: ModelFailed) -> None:
        """Is it the image? If the model fails on a blank one as well the model is broken, and no job's fault."""
        log.error("the model failed on job %s: %r", item.job_id, error.__cause__ or error)
        self._predict(np.zeros_like(item.pixels)[np.newaxis])


def _written(batch: Sequence[Item], good: Sequence[Item], write: Write) -> list[Outcome]:
    by_item = dict(zip(map(id, good), write(), strict=True))
    return [item.ends(answer=by_item.get(id(item)), failure=item.failure) for item in batch]
