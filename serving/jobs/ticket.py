"""What `submit` gives back for a job, and the tickets of all requests of one web process.

Ticket.wait <-- its news <-- the sender: the job is in the queue, or was refused
                         <-- the sender or the listener: Tickets.hand_out(answers)
Ticket.cancel --> the outbox, from which the sender takes the job out of the queue
"""

import time
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue

from serving.errors import TimedOut
from serving.jobs.job import Answer, Job, Status
from serving.jobs.job_queue import JobQueue

MOST_LEFT, LEFT_SECONDS = 1000, 600.0  # jobs that were left in the queue, and for how long their answers are looked for


class Ticket:
    """Stands for one submitted job: with it a request waits for the answer, asks where the job is, or gives it up.

    Used in a `with` statement, the ticket gives the job up at the end of the block, unless the answer came.
    """

    def __init__(self, job: Job, queue: JobQueue, tickets: "Tickets") -> None:
        self.job = job
        self.since = self.answered_at = time.monotonic()
        self.is_canceled = False
        self.is_submitted = False  # the job may be in the queue: set before the attempt, whose reply may be lost
        self._queue, self._tickets = queue, tickets
        self._answer: Answer | None = None
        # What the sender and the listener tell, in any order: None (the job is in the queue), an error, or an answer.
        self._news: SimpleQueue[Answer | Exception | None] = SimpleQueue()

    def wait(self, until: float) -> Answer | None:
        """Wait for the answer until `until`, monotonic seconds; None when it has not come by then."""
        while self._answer is None:
            try:
                self._news.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
        return self._answer

    def status(self) -> Status:
        """Where the job is, in one round trip to Redis. Raises QueueAway.

        Redis compares the job with each one that waits, so this is for a question now and then, not for each request.
        """
        if self.is_canceled:
            return Status.CANCELED
        if self._answer is not None:
            return _status_of(self._answer.text.encode())
        text, place = self._queue.exchange(("GET", self.job.id), ("LPOS", self._queue.name, self.job.to_text()))
        if text is not None:
            return _status_of(text)
        if place is not None:
            return Status.QUEUED
        return Status.PROCESSING if self.job.deadline > self._queue.now() else Status.FAILED

    def cancel(self) -> None:
        """Give the job up: it leaves the queue soon, unless a model server has it already.

        After an answer this does nothing.
        """
        if self._answer is None and not self.is_canceled:
            self.is_canceled = True
            self._tickets.forget(self)
            self._tickets.outbox.put(self)

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def tell(self, news: Answer | Exception | None) -> None:
        """Wake the request that waits; for the sender and the listener. `news`: see `_news`."""
        if isinstance(news, Answer):
            self._answer, self.answered_at = news, time.monotonic()
            self._tickets.forget(self)
        self._news.put(news)

    def nudge(self) -> None:
        """Another request, for whose answer this one waited, has gone; for tickets that share answers."""

    def wait_until_accepted(self, seconds: float) -> None:
        """Wait until the job is in the queue.

        Raises:
            TimedOut: Redis did not take the job within `seconds`.
            QueueFull, Draining, QueueAway, RuntimeError: the job was refused.
        """
        try:
            news = self._news.get(timeout=seconds)
        except Empty:
            raise TimedOut("The queue did not take the image in time. Try again in a moment.") from None
        if isinstance(news, Exception):
            raise news


def _status_of(answer: bytes) -> Status:
    return Status.FAILED if answer.startswith(b'{"error"') else Status.SUCCEEDED


class Tickets:
    """The tickets of one process; safe to share between threads."""

    def __init__(self) -> None:
        self.outbox: SimpleQueue[Ticket] = SimpleQueue()  # for the sender: to submit, or, if canceled, to take back
        self._waiting: dict[str, Ticket] = {}  # job id -> the ticket that waits for its answer
        self._answered: list[str] = []  # ids of answers that were handed out, and whose keys nobody needs any more
        # Ids of jobs that were given up and are still in the queue -> until when to look for their answers, monotonic
        # seconds. Whoever answers them may give the keys no time to live.
        self._left: dict[str, float] = {}

    def add(self, ticket: Ticket) -> None:
        """From now on `hand_out` finds this ticket."""
        self._waiting[ticket.job.id] = ticket

    def forget(self, ticket: Ticket) -> None:
        """Nobody waits with this ticket any more."""
        self._waiting.pop(ticket.job.id, None)

    def count(self) -> int:
        """How many wait for an answer."""
        return len(self._waiting)

    def waiting_since(self, before: float) -> list[str]:
        """The ids of the jobs whose tickets have waited since `before`, monotonic seconds, or longer."""
        return [job_id for job_id, ticket in list(self._waiting.items()) if ticket.since < before]

    def leave(self, job_id: str) -> None:
        """Nobody waits for this job, and the job is still in the queue: its answer, if one comes, is to be deleted."""
        if len(self._left) >= MOST_LEFT:
            del self._left[next(iter(self._left))]
        self._left[job_id] = time.monotonic() + LEFT_SECONDS

    def left_to_look_for(self) -> list[str]:
        """The ids of the jobs that were left in the queue at most LEFT_SECONDS ago, and have no answer yet."""
        if self._left:
            now = time.monotonic()
            self._left = {job_id: until for job_id, until in self._left.items() if until > now}
        return list(self._left)

    def hand_out(self, answers: Mapping[str, Answer]) -> None:
        """Wake the requests that wait for these answers, job id -> answer.

        The sender deletes the answers' keys later, many at once.
        """
        for job_id, answer in answers.items():
            ticket = self._waiting.get(job_id)
            if ticket is not None:
                ticket.tell(answer)
            else:
                self._left.pop(job_id, None)
        self._answered.extend(answers)

    def nudge(self, job_ids: Sequence[str]) -> None:
        """Tell tickets that nobody computes their answer any more."""
        for ticket in map(self._waiting.get, job_ids):
            if ticket is not None:
                ticket.nudge()

    def pop_answered(self) -> list[str]:
        """The ids of the answers that were handed out since the last call; Redis need not keep them any longer."""
        answered, self._answered = self._answered, []
        return answered
