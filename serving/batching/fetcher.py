"""Takes jobs from the queue, decodes them, and puts them into the inbox, so that the model never waits for Redis.

queue -- take from a lane, under a lease --> jobs as they travel -- read_job --> Item, pixels -- put --> inbox
"""

import logging
import time
from dataclasses import replace

import numpy as np

import helpers
from serving.batching.batch import Item
from serving.batching.inbox import Inbox
from serving.batching.lanes import Turns
from serving.batching.state import LoopState
from serving.errors import BadJob, LeaseLost, OtherModel, QueueAway, Unavailable
from serving.jobs.job import Job, Lane
from serving.jobs.model_queue import Member, ModelQueue, Taken
from serving.telemetry.model_metrics import ModelMetrics

# While the model is busy the fetcher looks at the queue after these pauses, which double as long as nothing comes: on a
# CPU each look takes time from the model. The fetcher does not block in Redis meanwhile: it would take jobs away from
# an idle model server, which blocks there.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.005, 0.02
RETURN_EXPIRED_SECONDS = 1.0
RECONNECT_SECONDS = 0.5
TELL_AGAIN_SECONDS = 10.0

log = logging.getLogger(__name__)


class Fetcher:
    """The thread that takes jobs.

    Args:
        queue: where model servers join, take and answer.
        inbox: where the jobs wait for the model.
        state: what the threads know of each other.
        shape: of the model's input, (height, width, channels).
        metrics: counts jobs that went back to the queue, and leases that were lost.
        wait_seconds: the longest wait on an empty queue; for so long an asynchronous job may go unseen.
        bulk_every: of so many full batches at least one is of asynchronous jobs, if some wait.
    """

    def __init__(
        self,
        queue: ModelQueue,
        inbox: Inbox,
        state: LoopState,
        shape: tuple[int, int, int],
        metrics: ModelMetrics,
        *,
        wait_seconds: float,
        bulk_every: int,
    ) -> None:
        self._queue, self._inbox, self._state, self._shape = queue, inbox, state, shape
        self._metrics, self._wait_seconds, self._turns = metrics, wait_seconds, Turns(bulk_every)
        self._member: Member | None = None
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._expired_checked = 0.0  # monotonic seconds
        self._told_of_sizes = -TELL_AGAIN_SECONDS  # monotonic seconds
        # When the lease of the model server ends that serves another model, monotonic seconds; None: the queue has let
        # this one in.
        self._refused_until: float | None = None

    def run(self) -> None:
        """Take jobs until the loop stops. Raises OtherModel: the queue is served by another model, which lives on."""
        is_away = False
        while not self._state.stopping:
            try:
                member = self._member or self._join()
                is_away = False
                self._fetch(member)
            except LeaseLost as error:
                log.warning("%s; starting afresh when the model is free", error)
                self._metrics.lost_lease()
                self._forget_member()
                self._state.wait_for_model()
            except OtherModel as error:
                self._wait_for_a_lease_to_end(error)
            except QueueAway as error:
                if not is_away:  # said once, not twice a second
                    log.warning("the queue is away: %s", error.__cause__)
                is_away = True
                dropped = self._forget_member()
                self._state.wait_for_model()  # the model ends its batch, which is answered under the old membership
                self._give_back(dropped)

    def leave(self) -> None:
        """Give the jobs that were not begun back to the queue, and end the lease."""
        try:
            returned = self._member.leave() if self._member is not None else 0
            log.info("stopped; %d jobs that were not begun went back to the queue", returned)
        except QueueAway as error:
            log.warning(
                "stopped without the queue, which returns the jobs when the lease runs out: %s", error.__cause__
            )

    def _join(self) -> Member:
        member = self._member = self._queue.join()
        self._refused_until = None
        log.info("joined the queue as %s", member.name)
        self._inbox.open(member)
        return member

    def _fetch(self, member: Member) -> None:
        room = self._inbox.wait_for_room()
        if member.is_lost:
            raise LeaseLost(f"the lease of {member.name} ran out")
        if self._state.is_model_late():
            raise LeaseLost("the model has been busy for longer than the lease")
        if not room:
            return
        if time.monotonic() - self._expired_checked >= RETURN_EXPIRED_SECONDS:
            self._expired_checked = time.monotonic()
            returned = member.return_expired()
            self._metrics.returned(returned.jobs, returned.dead_letters)
            if returned.jobs:
                log.warning("returned %d jobs of model servers whose lease ran out", returned.jobs)
        self._top_up(member, room)

    def _top_up(self, member: Member, room: int) -> None:
        """Take up to `room` jobs; then pause, unless it is known that more wait."""
        wait_seconds = self._wait_seconds if member.in_hand == 0 and not self._turns.bulk_waits else 0.0
        taken = self._take(member, room, wait_seconds)
        now = self._queue.now()
        jobs = [
            read_job(text, taken, self._shape, now, is_over=place in taken.ended)
            for place, text in enumerate(taken.jobs)
        ]
        self._tell_of_other_sizes([item for item, _ in jobs if item.status is not None])
        self._inbox.put(jobs)
        if taken.jobs:
            self._pause_seconds = FIRST_PAUSE_SECONDS
        has_waited = wait_seconds > 0 and not taken.jobs and not taken.runs_alone
        more_wait = bool(taken.jobs) and not taken.all_that_waited
        if not has_waited and not more_wait:
            self._inbox.wait_until_wanted(self._pause_seconds)
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)

    def _take(self, member: Member, room: int, wait_seconds: float) -> Taken:
        """Take up to `room` jobs from the lane whose turn it is; with `wait_seconds`, wait for one of people's."""
        turns = self._turns
        if turns.is_bulks(self._inbox.batch_size):
            taken = member.take(room, lane=Lane.BULK)
            turns.note(taken)
            if taken.jobs or taken.runs_alone:
                return taken
        taken = member.take(room, wait_seconds)
        turns.note(taken)
        model_waits = member.in_hand == 0 or self._inbox.model_waits()
        if turns.may_take_bulk(taken, model_waits=model_waits, last_bulk_seconds=self._state.last_bulk_seconds):
            taken = member.take(room, lane=Lane.BULK)
            turns.note(taken)
        return taken

    def _tell_of_other_sizes(self, items: list[Item]) -> None:
        if items and time.monotonic() - self._told_of_sizes >= TELL_AGAIN_SECONDS:
            self._told_of_sizes = time.monotonic()
            log.warning("%d jobs, among them %s: %s", len(items), items[0], items[0].failure)

    def _forget_member(self) -> Member | None:
        """Forget the lease, and the jobs under it that the model has not begun: the queue gets them back."""
        member, self._member = self._member, None
        self._inbox.close()
        return member

    def _wait_for_a_lease_to_end(self, error: OtherModel) -> None:
        """Wait a moment, in case the other model server is dead; raise `error` if it lives on after its lease."""
        if self._refused_until is None:
            self._refused_until = time.monotonic() + error.lease_seconds + RECONNECT_SECONDS
            log.warning("%s Waiting for %.0f s, in case that one is dead", error, error.lease_seconds)
        if time.monotonic() > self._refused_until:
            raise error
        time.sleep(RECONNECT_SECONDS)

    def _give_back(self, member: Member | None) -> None:
        while not self._state.stopping:
            time.sleep(RECONNECT_SECONDS)
            try:
                if member is not None:
                    member.leave(forget=False)
                return
            except QueueAway:
                continue


def read_job(
    text: bytes, taken: Taken, shape: tuple[int, int, int], now: float, *, is_over: bool = False
) -> tuple[Item, np.ndarray | None]:
    """Read a job of `taken` as it travels: the item, and its pixels, `shape` (height, width, channels) uint8 0..255.

    The pixels are None where the item ends without the model: the item's failure says what is wrong with the job, or
    nobody waits for its answer: the job is past its deadline by `now` (unix seconds, Redis's clock), or `is_over`.
    """
    try:
        job = Job.from_text(text)
    except BadJob as error:
        return Item(text, failure=str(error), attempts=taken.attempts, lane=taken.lane), None
    item = Item(
        text,
        job.id,
        job.reply_to,
        job.deadline,
        attempts=taken.attempts,
        lane=taken.lane,
        top=job.top,
        index=job.index,
        request_id=job.request_id,
        traceparent=job.traceparent,
        taken_at=0.0 if job.traceparent is None else time.monotonic(),
    )
    if job.deadline <= now:
        return item, None
    if is_over:
        return replace(item, is_canceled=True), None
    try:
        if job.shape not in (None, shape, (1, *shape)):  # (1, …): the tutorial's
            raise helpers.WrongSize(f"the image's shape is {job.shape}; this model server takes {shape}")
        return item, helpers.decode_image(job.image, shape, job.dtype)
    except helpers.WrongSize as error:
        # The job is good, for another model: a dead letter of it would push out one that tells of a fault.
        failure = f"The image was prepared for a model of another size: {error}. Send it again."
        return replace(item, failure=failure, status=Unavailable.status), None
    except ValueError as error:
        return replace(item, failure=f"The job cannot be read: {error}."), None
