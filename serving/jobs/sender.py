"""Talks to Redis for all requests of a web process: submits their jobs together, looks for lost answers and for what is
served.
"""

import contextlib
import logging
import math
import time
from collections.abc import Sequence
from queue import Empty

from serving.errors import QueueAway, QueueOutOfMemory
from serving.jobs.admission import Admission
from serving.jobs.job import Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.live_counts import LiveCounts
from serving.jobs.readiness import ANSWERED_SECONDS, AnswerNote
from serving.jobs.served import ServedNow
from serving.jobs.ticket import Ticket, Tickets

MOST_SUBMITTED_TOGETHER = 16

log = logging.getLogger(__name__)


class Sender:
    """Sends what the outbox holds, for as long as the process lives.

    Args:
        queue: the queue.
        tickets: the tickets of this process.
        admission: says how many jobs may wait, and learns from each reply.
        served: learns what is served.
        counts: tells all processes what this one counted.
        poll_seconds: how often to look for answers that no message told of.
    """

    def __init__(
        self,
        queue: JobQueue,
        tickets: Tickets,
        admission: Admission,
        served: ServedNow,
        counts: LiveCounts,
        poll_seconds: float,
    ) -> None:
        self._queue, self._tickets, self._admission = queue, tickets, admission
        self._served, self._note, self._counts = served, AnswerNote(queue), counts
        self._poll_seconds = poll_seconds
        # Whether somebody chooses among several queues: then this one is looked at with each poll, and `is_away` tells
        # whether its Redis did not answer when last asked.
        self.keeps_looking = self.is_away = False
        # When an answer was last found that no message told of, while no model server told what it serves; monotonic
        # seconds.
        self._untold_at = -math.inf

    def run(self) -> None:
        """Submit, cancel, and look for answers, without end; for a thread of its own."""
        look_at = time.monotonic() + self._poll_seconds
        while True:
            lot = self._next_lot(look_at)
            try:
                self._send(lot)
                lot = []
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + self._poll_seconds
                    if self.keeps_looking:
                        self._admission.note(**self._queue.queue_state()._asdict())
                        self.is_away = False
                    self.find_answers()
                    self._served.look_if_due()
                    self._counts.tell_if_due()
            except QueueAway as error:
                self.is_away = not isinstance(error, QueueOutOfMemory)
                # The tickets in the outbox are refused as well: each would take as long to hear the same.
                self._refuse([*lot, *self._empty_outbox()], error)
            except Exception as error:
                log.exception("jobs could not be submitted")
                self._refuse(lot, error)

    def submit_texts(self, jobs: Sequence[str]) -> int:
        """Put jobs, as they travel, at the end of the queue; return how many of them, the first ones, it had room for.

        Raises QueueAway.
        """
        answered = self._tickets.pop_answered()  # an answer that Redis does not delete now ends by its time to live
        room = self._admission.most_waiting()
        accepted, state = self._queue.submit(jobs, room, delete=answered)
        self._queue.set_clock(state.clock)
        self._note_answers(answered)
        self._admission.note(**state._asdict())
        return accepted

    def find_answers(self) -> None:
        """Find answers that no message told of, and delete those that were read. Raises QueueAway."""
        ids = self._tickets.waiting_since(time.monotonic() - self._poll_seconds) + self._tickets.left_to_look_for()
        found = self._queue.find_answers(ids) if ids else {}
        if found:
            if self._served.alive() is None:  # else it is of one that tells, and this look overtook the message
                self._untold_at = time.monotonic()
            self._tickets.hand_out(found)
        answered = self._tickets.pop_answered()
        if answered:
            self._queue.delete_answers(answered)
            self._note_answers(answered)

    def _note_answers(self, answered: Sequence[str]) -> None:
        if answered:
            with contextlib.suppress(QueueAway):  # a Redis that is out of memory takes no note, but may take jobs
                self._note.answered()

    def _next_lot(self, until: float) -> list[Ticket]:
        """The next tickets of the outbox, up to MOST_SUBMITTED_TOGETHER; waits for a first one, not after `until`."""
        lot: list[Ticket] = []
        try:
            lot.append(self._tickets.outbox.get(timeout=max(0.0, until - time.monotonic())))
            while len(lot) < MOST_SUBMITTED_TOGETHER:
                lot.append(self._tickets.outbox.get_nowait())
        except Empty:
            pass
        return lot

    def _empty_outbox(self) -> list[Ticket]:
        lot: list[Ticket] = []
        try:
            while True:
                lot.append(self._tickets.outbox.get_nowait())
        except Empty:
            return lot

    def _send(self, lot: Sequence[Ticket]) -> None:
        for ticket in lot:
            if ticket.is_canceled and ticket.is_submitted:
                self._give_up(ticket.job)
        tickets = [ticket for ticket in lot if not ticket.is_canceled]
        if not tickets:
            return
        for ticket in tickets:
            ticket.is_submitted = True
        accepted = self.submit_texts([ticket.job.to_text() for ticket in tickets])
        for ticket in tickets[:accepted]:
            ticket.tell(None)
        for ticket in tickets[accepted:]:
            ticket.is_submitted = False
            ticket.tell(self._admission.refusal("Too many images wait: the queue filled up just now."))

    def _give_up(self, job: Job) -> None:
        """Take a job out of the queue for which nobody waits any more.

        It stays there while model servers answer that hold no lease, as the tutorial's: such a one reads the head of
        the list, and once it has answered cuts as many jobs off. If one of them was gone by then, it would cut off a
        job that it has not read. Raises QueueAway.
        """
        lately = time.monotonic() - self._untold_at < ANSWERED_SECONDS
        if lately and not self._queue.model_server_names(expired=False):
            self._tickets.leave(job.id)
        else:
            self._queue.cancel(job.to_text())

    def _refuse(self, lot: Sequence[Ticket], error: Exception) -> None:
        for ticket in lot:
            # A canceled job that could not be taken out of the queue ends by its deadline.
            if not ticket.is_canceled:
                ticket.tell(copy_of(error))


def copy_of(error: Exception) -> Exception:
    """The error for one job of several that failed together: each thread raises an error of its own."""
    if isinstance(error, QueueAway):
        own: Exception = type(error)(str(error), error.retry_after_seconds)
        own.__cause__ = error.__cause__
    else:
        own = RuntimeError("the job could not be submitted")
        own.__cause__ = error
    return own
