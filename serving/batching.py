"""Take, predict and answer at the same time, so that the model never waits for Redis.

    fetcher: take, decode --> the next batch --> run(): predict --> answerer: answer, strike off
             (thread)         grows while        (the calling       (thread)
                              the model is busy   thread)

Work-conserving: when the model is free it gets what is waiting, at once; a batch closes when the model is free or
the batch is full, never earlier and never on a timer.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serving.errors import LeaseLost, ModelFailed, OutOfMemory, QueueAway, ServiceError
from serving.queue_worker import Outcome, QueueWorker

# While the model is busy the next batch is topped up after these pauses, which double as long as nothing comes: on a
# CPU each look takes time from the model. Blocking instead would win jobs that an idle model server is waiting for.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.005, 0.08
RETURN_EXPIRED_SECONDS = 1.0
RECONNECT_SECONDS = 0.5
EXIT_STUCK = 70

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

    def ends(self, *, answer: str | None = None, failure: str | None = None) -> Outcome:
        return Outcome(self.text, self.job_id, self.reply_to, answer, failure, self.attempts)


class Observer(Protocol):
    """Who counts."""

    def predicted(self, jobs: int, seconds: float) -> None: ...

    def ended(self, outcomes: Sequence[Outcome]) -> None: ...


class BatchLoop:
    """Runs batches until told to stop.

    Args:
        join: registers a worker under a fresh name. Raises QueueAway.
        read: a job as it travels, and how often it came back -> Item. Raises nothing.
        predict: pixels (n, height, width, 3) uint8 0..255 -> n answers, JSON. Raises ModelFailed, OutOfMemory.
        now: the time by Redis's clock, unix seconds.
        batch_size: most jobs in one call of `predict`.
        wait_seconds: longest wait on an empty queue.
        lease_seconds: a call of `predict` that takes longer has lost its jobs; one that takes three times as long
            ends the process, for whoever supervises it to start another.
    """

    def __init__(
        self,
        *,
        join: Callable[[], QueueWorker],
        read: Callable[[bytes, int], Item],
        predict: Callable[[np.ndarray], list[str]],
        now: Callable[[], float],
        observer: Observer,
        batch_size: int,
        wait_seconds: float,
        lease_seconds: float,
    ) -> None:
        self._join, self._read, self._predict, self._now, self._observer = join, read, predict, now, observer
        self._batch_size, self._wait_seconds, self._lease_seconds = batch_size, wait_seconds, lease_seconds
        self._answers: queue.SimpleQueue[tuple[QueueWorker, list[Outcome]] | None] = queue.SimpleQueue()
        # All below is guarded by `_changed`, which is notified of every change; `_changes` counts them.
        self._changed = threading.Condition()
        self._changes = 0
        self._worker: QueueWorker | None = None
        self._worker_failed: tuple[QueueWorker, ServiceError] | None = None  # an answer told that it must start afresh
        self._next_batch: list[Item] = []
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._in_hand = 0  # jobs that `_worker` took and has not struck off
        self._predicting_since: float | None = None  # monotonic seconds
        self._stopping = False
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Take no more, answer what is being predicted, give back the rest. For a signal handler: takes no lock."""
        self._stopping = True

    def run(self) -> None:
        """Predict in this thread until stopped; raises what ended it otherwise, the jobs in hand then being left
        to the lease, so that their attempts are counted."""
        threads = [
            threading.Thread(target=self._guarded, args=(step,), name=step.__name__.strip("_"), daemon=True)
            for step in (self._fetch, self._answer)
        ]
        for thread in threads:
            thread.start()
        try:
            while not self._stopping:
                batch = self._wait_for_batch()
                if batch is not None:
                    self._run_batch(*batch)
        finally:  # what is predicted is answered, whatever happened
            self._stopping = True
            self._answers.put(None)
            for thread in threads:
                thread.join()
        if self._failure is not None:
            raise self._failure
        self._leave()

    def _leave(self) -> None:
        try:
            returned = self._worker.leave() if self._worker is not None else 0
            log.info("stopped; %d jobs that were not begun went back to the queue", returned)
        except QueueAway as error:
            log.warning(
                "stopped without the queue, which returns the jobs when the lease runs out: %s", error.__cause__
            )

    def _tell(self) -> None:
        self._changes += 1
        self._changed.notify_all()

    # Predict: the calling thread.

    def _wait_for_batch(self) -> tuple[QueueWorker, list[Item]] | None:
        with self._changed:
            if not self._next_batch or self._worker is None:
                self._changed.wait(0.2)  # not for ever: stop() notifies nobody
            if not self._next_batch or self._worker is None or self._stopping:
                return None
            batch, self._next_batch = self._next_batch[: self._batch_size], self._next_batch[self._batch_size :]
            self._predicting_since = time.monotonic()
            self._tell()
            return self._worker, batch

    def _run_batch(self, worker: QueueWorker, batch: list[Item]) -> None:
        for outcomes in self._outcomes(batch):
            self._answers.put((worker, outcomes))
            with self._changed:
                self._predicting_since = time.monotonic()
        with self._changed:
            self._predicting_since = None
            self._tell()

    def _outcomes(self, batch: list[Item]) -> Iterator[list[Outcome]]:
        """Predict a batch; where the model fails, by halves, so that a guilty job ends alone. In the jobs' order."""
        expired = self._now()
        good = [item for item in batch if item.pixels is not None and item.deadline > expired]
        started = time.monotonic()
        try:
            answers = self._predict(np.stack([item.pixels for item in good if item.pixels is not None])) if good else []
        except ModelFailed as error:
            if isinstance(error, OutOfMemory) and len(good) > 1:
                self._batch_size = max(1, len(good) // 2)
                log.warning("out of memory with %d images; batches of %d from now on", len(good), self._batch_size)
            if len(good) > 1:
                yield from self._outcomes(batch[: len(batch) // 2])
                yield from self._outcomes(batch[len(batch) // 2 :])
                return
            self._blame(good[0], error)
            yield [item.ends(failure=str(error) if item is good[0] else item.failure) for item in batch]
            return
        if good:
            self._observer.predicted(len(good), time.monotonic() - started)
        by_item = dict(zip(map(id, good), answers, strict=True))
        yield [item.ends(answer=by_item.get(id(item)), failure=item.failure) for item in batch]

    def _blame(self, item: Item, error: ModelFailed) -> None:
        """Is it the image? If the model fails on a blank one as well the model is broken, and no job's fault."""
        log.error("the model failed on job %s: %s", item.job_id, error)
        self._predict(np.zeros_like(item.pixels)[np.newaxis])

    # Fetch: a thread.

    def _fetch(self) -> None:
        expired_checked, away = 0.0, False
        while not self._stopping:
            try:
                worker = self._worker or self._start()
                away = False
                room, hands_are_empty, changes = self._wait_for_room()
                if room and time.monotonic() - expired_checked >= RETURN_EXPIRED_SECONDS:
                    if returned := worker.return_expired():
                        log.warning("returned %d jobs of model servers whose lease ran out", returned)
                    expired_checked = time.monotonic()
                if room:
                    self._top_up(worker, room, hands_are_empty, changes)
            except LeaseLost as error:
                log.warning("%s; starting afresh when the model is free", error)
                self._drop_worker()
                self._wait_for_model()
            except QueueAway as error:
                if not away:  # said once, not twice a second
                    log.warning("the queue is away: %s", error.__cause__)
                away = True
                self._give_back(self._drop_worker())

    def _start(self) -> QueueWorker:
        worker = self._join()
        log.info("joined the queue as %s", worker.name)
        with self._changed:
            self._worker = worker
        return worker

    def _wait_for_room(self) -> tuple[int, bool, int]:
        """How many jobs the next batch has room for (0: none yet), whether nothing is in hand, and `_changes` then."""
        with self._changed:
            if self._worker_failed is not None and self._worker_failed[0] is self._worker:
                raise self._worker_failed[1]
            since = self._predicting_since
            if since is not None and time.monotonic() - since > self._lease_seconds:
                raise LeaseLost("the model has been busy for longer than the lease")
            room = self._batch_size - len(self._next_batch)
            if room <= 0:
                self._changed.wait(0.2)
            return max(room, 0), self._in_hand == 0, self._changes

    def _top_up(self, worker: QueueWorker, room: int, hands_are_empty: bool, changes: int) -> None:
        taken = worker.take(room, self._wait_seconds if hands_are_empty else 0.0)
        items = [self._read(text, taken.attempts) for text in taken.jobs]
        with self._changed:
            self._in_hand += len(items)
            self._next_batch += items
            if items:
                self._tell()
            if items or hands_are_empty:
                self._pause_seconds = FIRST_PAUSE_SECONDS
            elif changes == self._changes:  # else the model got free, or the hands empty, while Redis was asked
                self._changed.wait(self._pause_seconds)
                self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)

    def _drop_worker(self) -> QueueWorker | None:
        """Forget the worker and what it holds but has not begun: the queue has it, or gets it back."""
        with self._changed:
            worker, self._worker = self._worker, None
            self._next_batch, self._in_hand = [], 0
        return worker

    def _wait_for_model(self) -> None:
        """A model that hangs must not take more jobs; one that hangs for good must not stay."""
        began = time.monotonic()
        with self._changed:
            while self._predicting_since is not None and not self._stopping:
                self._changed.wait(0.2)
                if time.monotonic() - began > 2 * self._lease_seconds:
                    log.critical("the model hangs: this process ends, to be started again")
                    os._exit(EXIT_STUCK)  # the thread that hangs could not be ended otherwise

    def _give_back(self, worker: QueueWorker | None) -> None:
        while not self._stopping:
            time.sleep(RECONNECT_SECONDS)
            try:
                if worker is not None:
                    worker.leave(forget=False)
                return
            except QueueAway:
                continue

    # Answer: a thread.

    def _answer(self) -> None:
        while (entry := self._answers.get()) is not None:
            worker, outcomes = entry
            failed = self._deliver(worker, outcomes)
            self._observer.ended(outcomes)
            with self._changed:
                if failed is not None:
                    self._worker_failed = (worker, failed)
                elif worker is self._worker:
                    self._in_hand -= len(outcomes)
                self._tell()

    def _deliver(self, worker: QueueWorker, outcomes: list[Outcome]) -> ServiceError | None:
        """Answer, however long Redis is away; while stopping, for one lease. What it returns ends the worker's name."""
        failed: QueueAway | None = None
        give_up_at = float("inf")
        while time.monotonic() < give_up_at:
            try:
                struck_off = worker.answer(outcomes, strike_off=failed is None)
                return failed or (None if struck_off else LeaseLost(f"the lease of {worker.name} ran out"))
            except QueueAway as error:
                if failed is None:
                    log.warning("answers wait for the queue: %s", error.__cause__)
                failed = error
                if self._stopping:
                    give_up_at = min(give_up_at, time.monotonic() + self._lease_seconds)
                time.sleep(RECONNECT_SECONDS)
        return failed  # the jobs are in the processing list still, and go to others

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException as error:
            log.exception("%s failed", step.__name__.strip("_"))
            self._failure = error
            self._stopping = True
