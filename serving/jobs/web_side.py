"""The web server's side of the queue: submit a job, get a ticket, wait with it for the answer.

    submit(job) -- outbox --> sender: all that came meanwhile, in one round trip --> queue … model server
    ticket.wait <-- listener <-- the message that carries answers
                <-- sender <---- a look for answers that no message told of

Two threads work for all requests of a process: the sender here, and the listener (serving/jobs/listener.py). gevent
turns both into greenlets, as it does each request.

A message brings the answers themselves, so that no request reads Redis for its own. The key under the job's id holds
the answer too: where the message is lost (a broken connection, a model server that sends none), the sender finds it
there, with one look for all tickets that wait.
"""

import logging
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue

from serving.errors import QueueAway, QueueFull, TimedOut
from serving.jobs.admission import Admission
from serving.jobs.job import Job, Status
from serving.jobs.job_queue import CLOCK_GOOD_FOR_SECONDS, JobQueue
from serving.jobs.listener import Listener

MOST_SUBMITTED_TOGETHER = 16

log = logging.getLogger(__name__)


class Ticket:
    """What `submit` gives back for a job: with it one waits for the answer, asks where the job is, or gives it up.

    Used in a `with` statement, it gives the job up at the end of the block, unless the answer came.
    """

    def __init__(self, job: Job, web_side: "WebSide") -> None:
        self.job = job
        self.since = time.monotonic()
        self.is_canceled = False
        self.is_submitted = False  # it may be in the queue: set before the attempt, whose reply may be lost
        self._web_side = web_side
        self._answer: str | None = None
        # What the sender and the listener tell, in any order: None (it is in the queue), an error, or an answer.
        self._news: SimpleQueue[str | Exception | None] = SimpleQueue()

    def wait(self, until: float) -> str | None:
        """Wait for the answer, JSON text, until `until`, monotonic seconds; None when it has not come by then."""
        while self._answer is None:
            try:
                self._news.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
        return self._answer

    def status(self) -> Status:
        """Where the job is, in one round trip to Redis; see JobQueue.state for what it costs. Raises QueueAway."""
        if self.is_canceled:
            return Status.CANCELED
        answer, waits = (
            (self._answer, False) if self._answer else self._web_side.queue.state(self.job.id, self.job.to_text())
        )
        if answer is not None:
            return Status.SUCCEEDED if not answer.startswith('{"error"') else Status.FAILED
        if waits:
            return Status.QUEUED
        return Status.PROCESSING if self.job.deadline > self._web_side.queue.now() else Status.FAILED

    def cancel(self) -> None:
        """Give the job up: it leaves the queue soon, unless a model server has it already. Nothing after an answer."""
        if self._answer is None and not self.is_canceled:
            self.is_canceled = True
            self._web_side.forget(self)
            self._web_side.send_cancel(self)

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def tell(self, news: str | Exception | None) -> None:
        """For the sender and the listener: wake who waits."""
        if isinstance(news, str):
            self._answer = news
            self._web_side.forget(self)
        self._news.put(news)

    def wait_until_accepted(self, seconds: float) -> None:
        """Wait until the job is in the queue. Raises what it was refused with, or TimedOut after `seconds`."""
        try:
            news = self._news.get(timeout=seconds)
        except Empty:
            raise TimedOut("The queue did not take the image in time. Try again in a moment.") from None
        if isinstance(news, Exception):
            raise news


class WebSide:
    """Submits jobs on behalf of the requests of one process; safe to share between threads.

    Args:
        queue: the queue.
        max_queue_length: jobs that may wait, at most; fewer when they could not be answered in time.
        timeout_seconds: how long a request waits for its answer at most.
        poll_seconds: how often the sender looks for answers that no message told of.
    """

    def __init__(self, queue: JobQueue, *, max_queue_length: int, timeout_seconds: float, poll_seconds: float) -> None:
        self.queue = queue
        self.channel = queue.channel(uuid.uuid4().hex)
        self._poll_seconds = poll_seconds
        self._admission = Admission(max_queue_length, timeout_seconds)
        self._outbox: SimpleQueue[Ticket] = SimpleQueue()  # for the sender: to submit, or, if canceled, to take back
        self._tickets: dict[str, Ticket] = {}  # job id -> who waits for its answer
        self._answered: list[str] = []  # ids of answers that were handed out, and whose keys nobody needs any more

    def start(self) -> None:
        """Start the sender and the listener; without them no job is submitted, and none answered."""
        threading.Thread(target=self._send_for_ever, name="sender", daemon=True).start()
        listener = Listener(self.queue, self.channel, self.hand_out)
        threading.Thread(target=listener.run, name="listener", daemon=True).start()

    def check_room(self) -> None:
        """Refuse at once what the queue has no room for, before it costs anything. Raises QueueFull, QueueAway."""
        full = self._admission.is_full()
        if full is None:
            self._admission.note(*self.queue.queue_state())
            full = self._admission.is_full()
        if full:
            raise self._refusal("Too many images wait already.")

    def deadline_at(self, until: float) -> float:
        """`until`, monotonic seconds of this machine, by Redis's clock, unix seconds. Raises QueueAway."""
        return self.queue.now(CLOCK_GOOD_FOR_SECONDS) + until - time.monotonic()

    def submit(self, job: Job) -> Ticket:
        """Put a job at the end of the queue, and wait until Redis has accepted it, at most until its `deadline`.

        Raises:
            QueueFull: more jobs wait than can be answered in time.
            QueueAway: Redis did not take the job.
            TimedOut: its deadline came before Redis took it.
        """
        seconds = min(job.deadline - self.queue.now(), threading.TIMEOUT_MAX)
        ticket = Ticket(job, self)
        self._tickets[job.id] = ticket  # before it is submitted: the answer may be faster than the reply
        self._outbox.put(ticket)
        try:
            ticket.wait_until_accepted(max(0.0, seconds))
        except BaseException:
            ticket.cancel()
            raise
        return ticket

    def submit_texts(self, jobs: Sequence[str]) -> int:
        """Put jobs, as they travel, at the end of the queue. Returns how many, of the first, it had room for.

        Raises QueueAway.
        """
        answered, self._answered = self._answered, []  # what Redis does not delete now ends by its time to live
        room = self._admission.most_waiting()
        accepted, ahead, settled_total, last_empty_at, clock = self.queue.submit(jobs, room, delete=answered)
        self.queue.set_clock(float(clock))
        self._admission.note(float(clock), ahead, settled_total, float(last_empty_at))
        return int(accepted)

    def forget(self, ticket: Ticket) -> None:
        """Nobody waits with this ticket any more."""
        self._tickets.pop(ticket.job.id, None)

    def send_cancel(self, ticket: Ticket) -> None:
        """Have a canceled ticket's job taken out of the queue."""
        self._outbox.put(ticket)

    def hand_out(self, answers: Mapping[str, str]) -> None:
        """Wake who waits for these answers, job id -> JSON. Their keys are deleted later, many at once."""
        for job_id, answer in answers.items():
            ticket = self._tickets.get(job_id)
            if ticket is not None:
                ticket.tell(answer)
        self._answered += answers

    def _send_for_ever(self) -> None:
        look_at = time.monotonic() + self._poll_seconds
        while True:
            lot = self._next_lot(look_at)
            try:
                self._send(lot)
                lot = []
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + self._poll_seconds
                    self._look_up()
            except QueueAway as error:
                # Those that wait in the outbox as well: each would take as long to hear the same.
                self._refuse([*lot, *self._drain()], error)
            except Exception as error:
                log.exception("jobs could not be submitted")
                self._refuse(lot, error)

    def _next_lot(self, until: float) -> list[Ticket]:
        """What is in the outbox, up to MOST_SUBMITTED_TOGETHER; waits for a first one, not after `until`."""
        lot: list[Ticket] = []
        try:
            lot.append(self._outbox.get(timeout=max(0.0, until - time.monotonic())))
            while len(lot) < MOST_SUBMITTED_TOGETHER:
                lot.append(self._outbox.get_nowait())
        except Empty:
            pass
        return lot

    def _send(self, lot: Sequence[Ticket]) -> None:
        for ticket in lot:
            if ticket.is_canceled and ticket.is_submitted:
                self.queue.cancel(ticket.job.to_text())
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
            ticket.tell(self._refusal("Too many images wait: the queue filled up just now."))

    def _look_up(self) -> None:
        """Find answers that no message told of, and delete those that were read."""
        before = time.monotonic() - self._poll_seconds
        ids = [job_id for job_id, ticket in list(self._tickets.items()) if ticket.since < before]
        if ids:
            self.hand_out(self.queue.find_answers(ids))
        answered, self._answered = self._answered, []
        if answered:
            self.queue.delete_answers(answered)

    def _refuse(self, lot: Sequence[Ticket], error: Exception) -> None:
        for ticket in lot:
            if not ticket.is_canceled:  # what was canceled, and could not be taken out, ends by its deadline
                ticket.tell(_of_its_own(error))

    def _drain(self) -> list[Ticket]:
        lot: list[Ticket] = []
        try:
            while True:
                lot.append(self._outbox.get_nowait())
        except Empty:
            return lot

    def _refusal(self, says: str) -> QueueFull:
        seconds = self._admission.retry_after_seconds()
        return QueueFull(f"{says} Try again in {seconds} s.", retry_after_seconds=seconds)


def _of_its_own(error: Exception) -> Exception:
    """The error of one job of several that failed together: each is raised in a thread of its own."""
    if isinstance(error, QueueAway):
        own: Exception = type(error)(str(error), error.retry_after_seconds)
        own.__cause__ = error.__cause__
    else:
        own = RuntimeError("the job could not be submitted")
        own.__cause__ = error
    return own
