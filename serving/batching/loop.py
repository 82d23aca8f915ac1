"""Take, predict and answer at the same time, so that the model never waits for Redis.

    fetcher: take, decode --> the next batch --> run(): predict --> answerer: write the answers, set them, strike off
             (thread)         grows while        (the calling       (thread)
                              the model is busy   thread)

Work-conserving: when the model is free it gets what is waiting, at once; a batch closes when the model is free or
the batch is full, never earlier and never on a timer.
"""

import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable

from serving.batching.batch import Staging
from serving.batching.predictor import BatchPredictor, Item, Observer
from serving.errors import LeaseLost, QueueAway
from serving.jobs.job import Member, Outcome

# While the model is busy the next batch is topped up after these pauses, which double as long as nothing comes: on a
# CPU each look takes time from the model. Blocking instead would win jobs that an idle model server is waiting for.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.005, 0.02
RETURN_EXPIRED_SECONDS = 1.0
RECONNECT_SECONDS = 0.5
# Batches whose answers wait to be written. With so many the thread that calls the model writes them itself, or jobs in
# hand would grow without end where writing takes longer than predicting.
MOST_UNWRITTEN = 2
EXIT_STUCK = 70

log = logging.getLogger(__name__)


class BatchLoop:
    """Runs batches until told to stop.

    Args:
        join: registers a worker under a fresh name. Raises QueueAway.
        read: a job as it travels, and how often it came back -> Item. Raises nothing.
        predictor: a batch of items -> how they end.
        observer: is told how jobs ended.
        wait_seconds: longest wait on an empty queue.
        lease_seconds: a call of `predict` that takes longer has lost its jobs; one that takes three times as long
            ends the process, for whoever supervises it to start another.
    """

    def __init__(
        self,
        *,
        join: Callable[[], Member],
        read: Callable[[bytes, int], Item],
        predictor: BatchPredictor,
        observer: Observer,
        wait_seconds: float,
        lease_seconds: float,
        end_process: Callable[[int], object] = os._exit,  # a thread that hangs cannot be ended otherwise
    ) -> None:
        self._end_process = end_process
        self._join, self._read, self._predictor, self._observer = join, read, predictor, observer
        self._wait_seconds, self._lease_seconds = wait_seconds, lease_seconds
        self._answers: queue.SimpleQueue[tuple[Member, Callable[[], list[Outcome]]] | None] = queue.SimpleQueue()
        # All below is guarded by `_changed`.
        self._changed = threading.Condition()
        self._worker: Member | None = None
        self._lost: Member | None = None  # a worker whose answer told that its lease is lost
        self._next_batch: list[Item] = []
        self._staging = Staging(predictor.batch_size)
        self._last_batch = 0  # its size
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

    # Predict: the calling thread.

    def _wait_for_batch(self) -> tuple[Member, list[Item]] | None:
        with self._changed:
            if not self._next_batch or self._worker is None:
                self._changed.wait(0.2)  # not for ever: stop() notifies nobody
            if not self._next_batch or self._worker is None or self._stopping:
                return None
            batch, self._next_batch = self._predictor.split(self._next_batch)
            if not self._next_batch:  # else what is left stays where it is, beside what the model gets
                self._staging.turn()
            self._last_batch, self._predicting_since = len(batch), time.monotonic()
            self._wake_fetcher(there_is_room=len(batch) >= self._predictor.batch_size)
            return self._worker, batch

    def _run_batch(self, worker: Member, batch: list[Item]) -> None:
        for outcomes_of_piece in self._predictor.outcomes(batch):
            if self._answers.qsize() >= MOST_UNWRITTEN:
                outcomes_of_piece = functools.partial(list, outcomes_of_piece())
            self._answers.put((worker, outcomes_of_piece))
            with self._changed:
                self._predicting_since = time.monotonic()
        with self._changed:
            self._predicting_since = None
            self._wake_fetcher()

    # Fetch: a thread.

    def _fetch(self) -> None:
        expired_checked, away = 0.0, False
        while not self._stopping:
            try:
                worker = self._worker or self._start()
                away = False
                room, hands_are_empty = self._wait_for_room()
                if room and time.monotonic() - expired_checked >= RETURN_EXPIRED_SECONDS:
                    expired_checked = time.monotonic()
                    if returned := worker.return_expired():
                        log.warning("returned %d jobs of model servers whose lease ran out", returned)
                if room:
                    self._top_up(worker, room, hands_are_empty)
            except LeaseLost as error:
                log.warning("%s; starting afresh when the model is free", error)
                self._drop_worker()
                self._wait_for_model()
            except QueueAway as error:
                if not away:  # said once, not twice a second
                    log.warning("the queue is away: %s", error.__cause__)
                away = True
                dropped = self._drop_worker()
                self._wait_for_model()  # what it is at is answered under the old name
                self._give_back(dropped)

    def _start(self) -> Member:
        worker = self._join()
        log.info("joined the queue as %s", worker.name)
        with self._changed:
            self._worker = worker
        return worker

    def _wait_for_room(self) -> tuple[int, bool]:
        """How many jobs the next batch has room for (0: none yet), and whether nothing is in hand."""
        with self._changed:
            if self._lost is not None and self._lost is self._worker:
                raise LeaseLost(f"the lease of {self._lost.name} ran out")
            since = self._predicting_since
            if since is not None and time.monotonic() - since > self._lease_seconds:
                raise LeaseLost("the model has been busy for longer than the lease")
            room = self._predictor.batch_size - sum(item.pixels is not None for item in self._next_batch)
            if room <= 0:
                self._changed.wait(0.2)
            return max(room, 0), self._in_hand == 0

    def _top_up(self, worker: Member, room: int, hands_are_empty: bool) -> None:
        taken = worker.take(room, self._wait_seconds if hands_are_empty else 0.0)
        stage = self._staging.filling
        items = [self._read(text, taken.attempts).staged(stage) for text in taken.jobs]
        with self._changed:
            if stage is not self._staging.filling:  # the model has taken what was there; these are not among it
                items = [item.staged(self._staging.filling) for item in items]
            self._in_hand += len(items)
            self._next_batch += items
            if items:
                self._changed.notify_all()
                self._pause_seconds = FIRST_PAUSE_SECONDS
            waited_in_vain = hands_are_empty and not items and not taken.runs_alone
            if waited_in_vain or (items and not taken.all_that_waited):
                return
            self._changed.wait_for(self._has_to_look, self._pause_seconds)
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)

    def _has_to_look(self) -> bool:
        """Whether the queue is to be looked at before the pause is over."""
        # Where jobs come one at a time, the look is better left until the answer is off: it would find nothing.
        starves = self._predicting_since is None and not self._next_batch and self._last_batch > 1
        has_lost = self._lost is not None and self._lost is self._worker
        return self._in_hand == 0 or starves or has_lost

    def _wake_fetcher(self, *, there_is_room: bool = False) -> None:
        """If there is something to do for it: each wake-up takes the interpreter from the other threads."""
        if there_is_room or self._has_to_look() or self._worker is None:
            self._changed.notify_all()

    def _drop_worker(self) -> Member | None:
        """Forget the worker and what it holds but has not begun: the queue has it, or gets it back."""
        with self._changed:
            worker, self._worker = self._worker, None
            self._next_batch, self._in_hand = [], 0
        return worker

    def _wait_for_model(self) -> None:
        """A model that hangs must not take more jobs; one that hangs for good must not stay."""
        began = time.monotonic()
        with self._changed:
            while self._predicting_since is not None and not (self._stopping and self._failure is None):
                self._changed.wait(0.2)
                if time.monotonic() - began > 2 * self._lease_seconds:
                    log.critical("the model hangs: this process ends, to be started again")
                    self._end_process(EXIT_STUCK)
                    return

    def _give_back(self, worker: Member | None) -> None:
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
            worker, outcomes_of_piece = entry
            outcomes = outcomes_of_piece()
            settled = self._deliver(worker, outcomes)
            self._observer.ended(outcomes)
            with self._changed:
                if not settled:
                    self._lost = worker
                elif worker is self._worker:
                    self._in_hand -= len(outcomes)
                self._wake_fetcher()

    def _deliver(self, worker: Member, outcomes: list[Outcome]) -> bool:
        """Answer, however long Redis is away; while stopping, for one lease. False: the worker lost its lease."""
        away, give_up_at = False, float("inf")
        while time.monotonic() < give_up_at:
            try:
                return worker.answer(outcomes)
            except QueueAway as error:
                if not away:
                    log.warning("answers wait for the queue: %s", error.__cause__)
                away = True
                if self._stopping:
                    give_up_at = min(give_up_at, time.monotonic() + self._lease_seconds)
                time.sleep(RECONNECT_SECONDS)
        return False  # the jobs are in the processing list still, and go to others

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException as error:
            log.exception("%s failed", step.__name__.strip("_"))
            self._failure = error
            self._stopping = True
            self._wait_for_model()  # the thread that calls it raises this, unless it hangs
