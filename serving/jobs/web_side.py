"""The web server's side of the queue: submit a job, get a ticket, wait with it for the answer.

    submit(job) -- outbox --> sender: all that came meanwhile, in one round trip --> queue … model server
    ticket.wait <-- listener <-- the message that carries answers
                <-- sender <---- a look for answers that no message told of

Two threads work for all requests of a process: the sender (sender.py) and the listener (listener.py). gevent turns both
into greenlets, as it does each request.

A message brings the answers themselves, so that no request reads Redis for its own. The key under the job's id holds
the answer too. Where the message is lost (a broken connection, a model server that sends none), the sender finds the
answer there, with one look for all tickets that wait.
"""

import threading
import time
import uuid
from dataclasses import replace

from serving.jobs.admission import Admission, Load
from serving.jobs.answer_cache import CacheTerms
from serving.jobs.flights import Flights
from serving.jobs.job import Job
from serving.jobs.job_queue import CLOCK_GOOD_FOR_SECONDS, JobQueue
from serving.jobs.listener import Listener
from serving.jobs.live_counts import LiveCounts
from serving.jobs.sender import Sender
from serving.jobs.served import ServedNow
from serving.jobs.ticket import Ticket, Tickets
from serving.jobs.tracing import Tracing


class WebSide:
    """Submits jobs on behalf of the requests of one process; safe to share between threads.

    Args:
        queue: the queue.
        max_queue_length: jobs that may wait, at most; fewer when they could not be answered in time.
        timeout_seconds: how long a request waits for its answer at most.
        poll_seconds: how often the sender looks for answers that no message told of.
        own_size: width and height of the model's input in pixels, where no model server tells; None: nothing is set.
        own_name: of the model whose answers are wanted; None: of any model.
        only_colours: whether no grey pictures can be sent, since they travel as float32.
        cache: how answers are shared with other requests; None: they are not.
    """

    def __init__(
        self,
        queue: JobQueue,
        *,
        max_queue_length: int,
        timeout_seconds: float,
        poll_seconds: float,
        own_size: tuple[int, int] | None = None,
        own_name: str | None = None,
        only_colours: bool = False,
        cache: CacheTerms | None = None,
    ) -> None:
        self.channel = queue.keys.channel(uuid.uuid4().hex)
        self.tickets = Tickets()
        self.tracing: Tracing | None = None  # where somebody wants traces
        self._queue = queue
        self._admission = Admission(max_queue_length, timeout_seconds)
        self.served = ServedNow(queue, own_size, own_name, only_colours=only_colours)
        self.counts = LiveCounts(queue)
        self.sender = Sender(queue, self.tickets, self._admission, self.served, self.counts, poll_seconds)
        self.flights: Flights | None = None
        if cache is not None:
            self.flights = Flights(queue, self.tickets, self.channel, cache, poll_seconds=poll_seconds)

    def start(self) -> None:
        """Start the sender and the listener; without them no job is submitted, and none answered."""
        threading.Thread(target=self.sender.run, name="sender", daemon=True).start()
        listener = Listener(self._queue, self.channel, self.tickets)
        threading.Thread(target=listener.run, name="listener", daemon=True).start()
        if self.flights is not None:
            threading.Thread(target=self.flights.run, name="flights", daemon=True).start()

    def check_room(self) -> None:
        """Refuse a request at once, before it costs anything, while the queue is full or drains, or another model's.

        Raises:
            QueueFull: more jobs wait than can be answered in time.
            Draining: an operator has told the service to accept nothing.
            Unavailable: another model than the wanted one would answer.
            QueueAway: Redis had to be asked, and does not answer.
        """
        self.served.check_name()
        full = self._admission.is_full()
        if full is None:
            self._admission.note(**self._queue.queue_state()._asdict())
            full = self._admission.is_full()
        if full:
            raise self._admission.refusal("Too many images wait already.")

    def deadline_at(self, until: float) -> float:
        """`until`, monotonic seconds of this machine, by Redis's clock, unix seconds. Raises QueueAway."""
        return self._queue.now(CLOCK_GOOD_FOR_SECONDS) + until - time.monotonic()

    def addressed(self, job: Job, until: float) -> Job:
        """The job with the deadline `until`, monotonic seconds, and with the way of its answer. Raises QueueAway."""
        deadline = self.deadline_at(until)
        submitted_at = deadline - (until - time.monotonic())
        return replace(job, deadline=deadline, submitted_at=submitted_at, reply_to=self.channel)

    def send(self, job: Job, until: float) -> Ticket:
        """Address a job, and submit it, see both."""
        return self.submit(self.addressed(job, until))

    def sharing_side(self, digest: str) -> "WebSide | None":
        """Where answers to what has this digest are shared: here, if anywhere."""
        del digest
        return self if self.flights is not None else None

    def kept(self, side: "WebSide", ticket: Ticket, until: float) -> Ticket:
        """The ticket with which to wait until then, of one that this side made: itself."""
        del side, until
        return ticket

    def load(self) -> Load:
        """What was last seen of the queue; asks nobody."""
        return self._admission.load()

    def most_waiting(self) -> int:
        """How many jobs may wait for one more to be let in."""
        return self._admission.most_waiting()

    @property
    def shares_answers(self) -> bool:
        """Whether requests may share answers."""
        return self.flights is not None

    @property
    def is_away(self) -> bool:
        """Whether Redis did not answer when last asked; it is asked at each poll if `choose_among_several` was said."""
        return self.sender.is_away

    def choose_among_several(self) -> None:
        """Look at the queue at each poll from now on, so that `load` and `is_away` are never older."""
        self.sender.keeps_looking = True

    def submit(self, job: Job, ticket: Ticket | None = None) -> Ticket:
        """Put a job at the end of the queue, and wait until Redis has accepted it, at most until its `deadline`.

        `ticket`: one that stands for the job already; None: a new one. Returns the ticket.

        Raises:
            QueueFull: more jobs wait than can be answered in time.
            Draining: an operator has told the service to accept nothing.
            QueueAway: Redis did not take the job.
            TimedOut: its deadline came before Redis took it.
        """
        if self.tracing is None:
            return self._submit(job, ticket)
        with self.tracing.sending(job.id) as traceparent:
            return self._submit(replace(job, traceparent=traceparent), ticket)

    def seconds_left(self, job: Job) -> float:
        """Seconds until the job's deadline, as a lock can wait for them."""
        return max(0.0, min(job.deadline - self._queue.now(), threading.TIMEOUT_MAX))

    def _submit(self, job: Job, ticket: Ticket | None) -> Ticket:
        seconds = self.seconds_left(job)
        if ticket is None:
            ticket = Ticket(job, self._queue, self.tickets)
        ticket.job = job
        self.tickets.add(ticket)  # before it is submitted: the answer may be faster than the reply
        self.tickets.outbox.put(ticket)
        try:
            ticket.wait_until_accepted(seconds)
        except BaseException:
            ticket.cancel()
            raise
        return ticket
