"""The ticket of a request that may share its answer with others: it finds it stored, or takes part in a flight.

A *flight* is one computation of an answer, and the requests that wait for it: the *leader*, whose job is in the queue,
and *followers*, which have none. Whatever a ticket wishes, it puts into the box of its process's flights:

    request --> LOOK --> FOUND: the answer is there
                         LEADS: the request submits its job --> its answer --> LAND: the followers get it
                         FOLLOWS: it waits; if the leader goes, it may have to LEAD, and its job is submitted
                         ALONE: as if there were no cache
    client gone, time over --> LEAVE: a follower goes; a leader's job goes on while it has followers
"""

import time
from enum import Enum, auto
from queue import Empty, SimpleQueue

from serving.jobs.answer_cache import Question
from serving.jobs.job import Answer, Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.served import Served
from serving.jobs.ticket import Ticket, Tickets


class Part(Enum):
    """A ticket's part in what its flights do."""

    ASKS = auto()  # it looks, and knows nothing yet
    FOUND = auto()  # its answer was stored
    ALONE = auto()  # it shares nothing
    FOLLOWS = auto()
    LEADS = auto()
    LEFT = auto()


class Wish(Enum):
    """What the flights are to do for a ticket."""

    LOOK = auto()
    WATCH = auto()  # see whether a follower has to lead
    LAND = auto()
    LEAVE = auto()


class FlightTicket(Ticket):
    """Stands for one request and its job, whose image is missing until somebody needs it.

    Args:
        job: without its image.
        question: what the request asks.
        served: what is served.
        queue, tickets: as for every ticket.
        box: of the flights of this process.
    """

    def __init__(
        self,
        job: Job,
        question: Question,
        served: Served,
        queue: JobQueue,
        tickets: Tickets,
        *,
        box: "SimpleQueue[tuple[Wish, FlightTicket]]",
    ) -> None:
        super().__init__(job, queue, tickets)
        self.question, self.served, self.key = question, served, question.key(served)
        self.part = Part.ASKS
        self.is_given_up = False  # its request is over
        self.refusal: Exception | None = None  # why it knows nothing, or its job may not be in the queue
        self._box = box

    @property
    def answer(self) -> Answer | None:
        """The answer, once it came."""
        return self._answer

    @property
    def waits_to_lead(self) -> bool:
        """Whether this follower has an image with which it could lead."""
        return self.part is Part.FOLLOWS and bool(self.job.image) and self._answer is None

    def look(self, seconds: float) -> None:
        """Look for the answer, and take part in a flight; `part` says how it ended.

        Raises TimedOut, QueueAway, RuntimeError: as `wait_until_accepted` does.
        """
        self._tickets.add(self)
        self._box.put((Wish.LOOK, self))
        self.wait_until_accepted(seconds)

    def wait(self, until: float) -> Answer | None:
        """Wait as every ticket does. Raises the error with which the job of a follower that had to lead was refused."""
        while self._answer is None and self.refusal is None:
            try:
                self._news.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
        if self._answer is None and self.refusal is not None:
            raise self.refusal
        return self._answer

    def tell(self, news: Answer | Exception | None) -> None:
        """As for every ticket; a leader's answer is for its followers, too."""
        leads = self.part is Part.LEADS
        if isinstance(news, Exception):
            self.refusal = news
        elif isinstance(news, Answer) and self.part is Part.ASKS:  # the leader's answer overtook the reply to the look
            self.part = Part.FOLLOWS
        super().tell(news)
        if leads and isinstance(news, Answer):
            self._box.put((Wish.LAND, self))

    def nudge(self) -> None:
        """The leader has gone: this follower may have to lead."""
        self._box.put((Wish.WATCH, self))

    def cancel(self) -> None:
        """Give the request up, and its job unless others wait for its answer."""
        if self._answer is not None or self.is_given_up:
            return
        self.is_given_up = True
        if self.part in (Part.FOUND, Part.ALONE, Part.LEFT):
            self.drop()
            return
        self._box.put((Wish.LEAVE, self))

    def drop(self) -> None:
        """Nobody waits for the job's answer any more: the job leaves the queue, if it is there."""
        self.part = Part.LEFT
        super().cancel()
