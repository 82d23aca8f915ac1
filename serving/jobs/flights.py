"""Shares answers among the requests of all web processes: finds those that are stored, and has each answer computed
once for all who ask for it at the same time.

    tickets -- box --> all that came meanwhile, in one round trip --> cache_look, flight_watch, flight_land,
                                                                      flight_leave
One thread works for all requests of a process, as the sender does. Three things keep a flight going whatever dies:

* A leader's process renews a lease. When the lease has run out, the next look of a follower's process, or the next
  request for the same, takes the lead.
* A follower's answer is set under its id, as a model server sets a job's, before a message tells of it. The sender
  finds an answer whose message was lost.
* A leader that goes otherwise (its time is over, or the queue refused its job) wakes the follower that has most time
  left. So a picture on which every model server hangs is submitted again once in a timeout, not once for each follower.

A failure is told to all followers, since each of them asks for the same, and is not stored.
"""

import logging
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import orjson

from serving.errors import Draining, QueueAway
from serving.jobs.answer_cache import ENTRY_BYTES, CacheTerms, Question, from_entry, to_entry, without_times
from serving.jobs.flight_ticket import FlightTicket, Part, Wish
from serving.jobs.job import Answer, Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.sender import copy_of
from serving.jobs.served import NO_IDENTITY, Served
from serving.jobs.ticket import Tickets

MOST_TOGETHER = 64
LEASE_SECONDS = 3.0  # of a leader, at least; its process renews it at every poll
FOLLOWERS_ANSWER_SECONDS = 60  # for which Redis keeps an answer that a follower does not read

_LEADS, _OUT_OF_MEMORY, _DRAINING = 1, -1, -2  # as the scripts say it
_PARTS = {1: Part.LEADS, 0: Part.FOLLOWS, -1: Part.ALONE}

log = logging.getLogger(__name__)

Lot = Sequence[tuple[Wish, FlightTicket]]
Script = tuple[str, Sequence[str], Sequence[Any]]  # its name, keys and arguments
Errand = tuple[Wish, Sequence[FlightTicket], Script]  # a script to run, with the tickets for which it runs


class StoreCounts(Protocol):
    """Counts what became of answers that were to be stored."""

    def not_stored(self, model: str, /) -> None:
        """Redis had no room for an answer of this model."""


class Flights:
    """What a web process has in flight.

    Args:
        queue: the queue.
        tickets: of this process; the sender submits what stands in their outbox.
        channel: of this process.
        terms: how long answers are stored.
        poll_seconds: how often to renew leases, and to look whether leaders have gone.
    """

    def __init__(
        self, queue: JobQueue, tickets: Tickets, channel: str, terms: CacheTerms, *, poll_seconds: float
    ) -> None:
        self._queue, self._tickets, self._channel, self._terms = queue, tickets, channel, terms
        self._poll_seconds, self._lease_seconds = poll_seconds, max(LEASE_SECONDS, 4 * poll_seconds)
        self._box: SimpleQueue[tuple[Wish, FlightTicket]] = SimpleQueue()
        self._aboard: dict[str, FlightTicket] = {}  # by id, those that lead or follow
        self.counts: StoreCounts | None = None

    def ticket(self, job: Job, question: Question, served: Served) -> FlightTicket:
        """A ticket for a request that may share its answer; `job` has no image yet."""
        return FlightTicket(job, question, served, self._queue, self._tickets, box=self._box)

    def run(self) -> None:
        """Do what the tickets wish, without end; for a thread of its own."""
        watch_at = time.monotonic() + self._poll_seconds
        while True:
            lot = self.next_lot(watch_at)
            if time.monotonic() >= watch_at:
                watch_at = time.monotonic() + self._poll_seconds
                lot += self.to_watch(time.monotonic() - self._poll_seconds)
            self.work(lot)

    def next_lot(self, until: float) -> list[tuple[Wish, FlightTicket]]:
        """The next wishes, up to MOST_TOGETHER; waits for a first one, not after `until`, monotonic seconds."""
        lot: list[tuple[Wish, FlightTicket]] = []
        try:
            lot.append(self._box.get(timeout=max(0.0, until - time.monotonic())))
            while len(lot) < MOST_TOGETHER:
                lot.append(self._box.get_nowait())
        except Empty:
            pass
        return lot

    def to_watch(self, before: float) -> list[tuple[Wish, FlightTicket]]:
        """The tickets to be watched: those that lead, and those that follow since `before`, monotonic seconds.

        A job that goes on for followers alone, and whose deadline is over, leaves.
        """
        lot = []
        for job_id, ticket in list(self._aboard.items()):
            if ticket.answer is not None or ticket.part not in (Part.LEADS, Part.FOLLOWS):
                del self._aboard[job_id]
            elif ticket.part is Part.LEADS and ticket.is_given_up and self._is_over(ticket):
                lot.append((Wish.LEAVE, ticket))
            elif ticket.part is Part.LEADS or ticket.since < before:
                lot.append((Wish.WATCH, ticket))
        return lot

    def work(self, lot: Lot) -> None:
        """Do what these tickets wish, in one round trip."""
        try:
            self._run(self._errands(lot))
        except Exception as error:
            if not isinstance(error, QueueAway):
                log.exception("answers could not be shared")
            self._give_up(lot, error)

    def _run(self, errands: Sequence[Errand]) -> None:
        if not errands:
            return
        replies = self._queue.run_in_turn([script for _, _, script in errands])
        for (wish, tickets, _), reply in zip(errands, replies, strict=True):
            self._take(wish, tickets, reply)

    def _errands(self, lot: Lot) -> list[Errand]:
        errands: list[Errand] = []
        looks: dict[Served, list[FlightTicket]] = {}
        watched = [ticket for wish, ticket in lot if wish is Wish.WATCH and self._can_be_watched(ticket)]
        for ticket in [ticket for wish, ticket in lot if wish is Wish.LOOK]:
            looks.setdefault(ticket.served, []).append(ticket)
        errands += [(Wish.LOOK, tickets, self._look(served, tickets)) for served, tickets in looks.items()]
        if watched:
            watched.sort(key=_deadline, reverse=True)  # the first follower of a flight takes the lead
            errands.append((Wish.WATCH, watched, self._watch(watched)))
        for wish, ticket in lot:
            if wish is Wish.LAND and ticket.answer is not None:
                errands.append((wish, [ticket], self._land(ticket, ticket.answer)))
            elif wish is Wish.LEAVE and ticket.part is not Part.LEFT:
                errands.append((wish, [ticket], self._leave(ticket)))
        return errands

    def _take(self, wish: Wish, tickets: Sequence[FlightTicket], reply: Any) -> None:
        """Take a script's reply."""
        if wish is Wish.LOOK:
            for ticket, told in zip(tickets, reply, strict=True):
                self._looked(ticket, told)
        elif wish is Wish.WATCH:
            for ticket, told in zip(tickets, reply, strict=True):
                if told == _LEADS and ticket.part is Part.FOLLOWS:
                    self._lead(ticket)
        elif wish is Wish.LAND:
            if reply == _OUT_OF_MEMORY and self.counts is not None:
                self.counts.not_stored(tickets[0].served.name)
        elif not reply:
            tickets[0].drop()

    def _lead(self, ticket: FlightTicket) -> None:
        """A follower has taken the lead, and submits its job; or it leaves, if its answer came meanwhile."""
        ticket.part = Part.LEADS
        if ticket.answer is None:
            self._tickets.outbox.put(ticket)
        else:
            self._box.put((Wish.LEAVE, ticket))

    def _looked(self, ticket: FlightTicket, told: bytes | int) -> None:
        answer = from_entry(told) if isinstance(told, bytes) else None
        if answer is not None:
            ticket.part = Part.FOUND
            ticket.tell(answer)
            return
        if told == _DRAINING:
            ticket.tell(Draining())
            return
        ticket.part = _PARTS[told] if isinstance(told, int) else Part.ALONE
        if ticket.part is not Part.ALONE:
            self._aboard[ticket.job.id] = ticket
        ticket.tell(None)

    def _give_up(self, lot: Lot, error: Exception) -> None:
        """Redis does not answer: who looks is refused, as a job would be; others find out by their leader's lease."""
        for wish, ticket in lot:
            if wish is Wish.LOOK and ticket.part is Part.ASKS:
                ticket.tell(copy_of(error))
            elif wish is Wish.LEAVE and ticket.part is not Part.LEFT:
                ticket.drop()

    def _look(self, served: Served, tickets: Sequence[FlightTicket]) -> Script:
        keys = self._queue.keys
        asks = [part for ticket in tickets for part in (ticket.key, ticket.job.id, f"{ticket.job.deadline:.6f}")]
        told = [orjson.dumps(served.identity()), orjson.dumps(NO_IDENTITY)]
        terms = [keys.all_flights, self._channel, self._lease_seconds]
        return "cache_look", [keys.leases, keys.serves, keys.cache, keys.draining], [*told, *terms, *asks]

    def _watch(self, tickets: Sequence[FlightTicket]) -> Script:
        keys, told = self._queue.keys, []
        for ticket in tickets:
            told += [ticket.key, ticket.job.id, "" if ticket.part is Part.LEADS else f"{ticket.job.deadline:.6f}"]
        return "flight_watch", [keys.leases], [keys.all_flights, self._channel, self._lease_seconds, *told]

    def _land(self, ticket: FlightTicket, answer: Answer) -> Script:
        keys, about, terms = self._queue.keys, without_times(answer.about), self._terms
        key = ticket.question.key_of(answer, ticket.served)
        followers = [FOLLOWERS_ANSWER_SECONDS, keys.about("") if "warning" in about else ""]
        entry = [key or "", to_entry(answer) if key else "", terms.ttl_seconds, terms.most_bytes, ENTRY_BYTES]
        args = [ticket.job.id, answer.text, orjson.dumps(about), *followers, *entry]
        return "flight_land", [keys.leases, keys.flight(ticket.key), keys.cache, keys.cached], args

    def _leave(self, ticket: FlightTicket) -> Script:
        keys, is_over = self._queue.keys, not ticket.is_submitted or ticket.refusal is not None or self._is_over(ticket)
        return "flight_leave", [keys.leases, keys.flight(ticket.key)], [ticket.job.id, int(is_over)]

    def _is_over(self, ticket: FlightTicket) -> bool:
        return self._queue.now() >= ticket.job.deadline

    @staticmethod
    def _can_be_watched(ticket: FlightTicket) -> bool:
        return ticket.part is Part.LEADS or ticket.waits_to_lead


def _deadline(ticket: FlightTicket) -> float:
    return ticket.job.deadline
