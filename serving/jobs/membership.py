"""One name under which a model server takes jobs, with its lease.

    take --> the jobs move to the processing list of this name --> answer strikes them off
    leave --> what it still holds goes back to the head of its lane

Progress renews the lease: `take` with empty hands, and `answer`.
"""

import itertools
import json
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from serving.errors import BadJob, LeaseLost
from serving.jobs.hand import Hand
from serving.jobs.job import MOST_DEAD_LETTER_BYTES, Job, Lane, Outcome, read_id
from serving.jobs.job_queue import MOST_DEAD_LETTERS, JobQueue
from serving.jobs.keys import ABOUT
from serving.jobs.leases import process_name
from serving.jobs.live_counts import LiveCounts
from serving.jobs.model_queue import Returned, Taken
from serving.jobs.redis_url import SOCKET_TIMEOUT_SECONDS
from serving.jobs.served import Served, publish

# How long others look after a dead model server's name: longer than TCP goes on sending a BLMOVE of its last moments.
FORGET_NAME_SECONDS = 1200
FORGET_ATTEMPTS_SECONDS = 24 * 3600
PUBLISH_EVERY_SECONDS = 10.0  # a Redis that is out of memory may have thrown away what was published
LONGEST_BLOCK_SECONDS = SOCKET_TIMEOUT_SECONDS / 2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """The terms on which a model server joins; ModelSide says what each means."""

    lease_seconds: float
    max_attempts: int
    result_ttl_seconds: int
    served: Served | None
    labels: Sequence[str]

    def about(self) -> dict[str, Any]:
        """What travels beside each answer."""
        return self.served.about() if self.served is not None else {}


class Membership:
    """A name in the queue; `ModelSide.join` makes it (see jobs.model_queue.Member).

    One thread may call `take` and `return_expired` while another calls `answer`. Every method raises QueueAway when
    Redis does not answer.
    """

    def __init__(self, queue: JobQueue, terms: Terms, counts: LiveCounts) -> None:
        self.name = f"{process_name(os.getpid())}{uuid.uuid4().hex[:8]}"
        self.is_lost = False  # whether a command found that the lease is lost, and then for good
        self._queue, self._terms, self._about, self._counts = queue, terms, terms.about(), counts
        self._hands = {lane: Hand(queue, lane, self.name, terms.lease_seconds) for lane in Lane}
        self._published_at = time.monotonic()

    @property
    def in_hand(self) -> int:
        """How many jobs of both lanes this name has taken and not yet struck off."""
        return sum(hand.in_hand for hand in self._hands.values())

    def take(self, most: int, wait_seconds: float = 0.0, *, lane: Lane = Lane.PEOPLE) -> Taken:
        """Take up to `most` jobs; with `wait_seconds`, wait for a first one of lane people, only with no job in hand.

        Raises:
            LeaseLost: others took this name for dead, and get its jobs.
        """
        # The wait must end well before the lease, which nobody renews meanwhile.
        timeout_seconds = min(wait_seconds, self._terms.lease_seconds / 3, LONGEST_BLOCK_SECONDS)
        try:
            taken = self._hands[lane].take(most, timeout_seconds if lane is Lane.PEOPLE else 0.0)
        except LeaseLost:
            self.is_lost = True
            raise
        return self._begin(taken) if lane is Lane.BULK and taken.jobs else taken

    def _begin(self, taken: Taken) -> Taken:
        """Write that asynchronous jobs are being processed, and find those that have ended before."""
        queue, ids = self._queue, [read_id(text) for text in taken.jobs]
        places = [place for place, job_id in enumerate(ids) if job_id is not None]
        keys = [queue.keys.job(job_id) for job_id in ids if job_id is not None]
        ended = queue.run("begin", [queue.keys.leases, *keys], [self.name])
        return replace(taken, ended=frozenset(itertools.compress(places, ended)))

    def answer(self, outcomes: Sequence[Outcome]) -> bool:
        """End the oldest jobs in hand of each lane, in their order, in one round trip; False if the lease was lost.

        With a lost lease the answers count all the same, but the jobs were no longer this name's to strike off. The
        same outcomes may be sent again when the reply was lost: Redis strikes them off once.
        """
        counts = Counter(outcome.lane for outcome in outcomes)
        dead_letters = [outcome for outcome in outcomes if outcome.is_dead_letter]
        holds_lease = self._end(outcomes, counts, dead_letters)
        for lane, count in counts.items():
            self._hands[lane].settled += count
        self._counts.batch(sum(outcome.model_ms is not None for outcome in outcomes))
        return holds_lease

    def _end(
        self, outcomes: Sequence[Outcome], struck_off: Mapping[Lane, int], dead_letters: Sequence[Outcome] = ()
    ) -> bool:
        """Set the answers, wake their web processes, strike off so many of the oldest jobs in hand of each lane."""
        scripts: list[tuple[str, Sequence[str], Sequence[Any]]] = []
        results = [outcome for outcome in outcomes if outcome.lane is Lane.BULK and outcome.job_id]
        if results:
            scripts.append(self._write_results(results))
        for lane, hand in self._hands.items():
            of_lane = [outcome for outcome in outcomes if outcome.lane is lane]
            if of_lane:
                letters = [letter for letter in dead_letters if letter.lane is lane]
                scripts.append(self._answer(hand, of_lane, struck_off.get(lane, 0), letters))
        if not scripts:
            return not self.is_lost
        holds_lease = all(self._queue.run_in_turn(scripts)[bool(results) :])
        self.is_lost = self.is_lost or not holds_lease
        return holds_lease

    def _answer(
        self, hand: Hand, outcomes: Sequence[Outcome], struck_off: int, dead_letters: Sequence[Outcome]
    ) -> tuple[str, list[str], list[Any]]:
        """What answer.lua is run with for the jobs of one lane."""
        keys, replies, messages = self._queue.keys, {}, []
        letters = [outcome.to_dead_letter(self._queue.now()) for outcome in dead_letters]
        if hand.lane is Lane.PEOPLE:
            replies = {outcome.job_id: reply for outcome in outcomes if (reply := outcome.reply()) and outcome.job_id}
            if "warning" in self._about:  # whoever misses the message must read the warning all the same
                replies |= {keys.about(job_id): json.dumps(self._about) for job_id in replies}
            messages = self._messages(outcomes)
        lane = [hand.keys.settled_total, hand.keys.settled_by_server, hand.processing_of_other]
        terms = [self.name, self._terms.lease_seconds, struck_off, hand.settled, self._terms.result_ttl_seconds]
        return (
            "answer",
            [hand.processing, keys.leases, keys.attempts, keys.dead, *lane, *replies],
            [*terms, MOST_DEAD_LETTERS, len(letters), *letters, *replies.values(), *messages],
        )

    def _write_results(self, outcomes: Sequence[Outcome]) -> tuple[str, list[str], list[Any]]:
        """What results.lua is run with for asynchronous jobs."""
        of = self._queue.keys
        keys: list[str] = [of.leases]
        args: list[Any] = [self._terms.result_ttl_seconds]
        about = json.dumps(self._about_batch(outcomes))
        for outcome in outcomes:
            job_id, (status, error) = outcome.job_id or "", outcome.status_and_error()
            keys += [of.job(job_id), job_id, of.about(job_id)]
            args += [status, outcome.reply() or "", about, error]
        return "results", keys, args

    def return_expired(self) -> Returned:
        """Return the jobs of every model server whose lease ran out to the heads of their lanes.

        It also tells what this model server counted, and every PUBLISH_EVERY_SECONDS what it serves.
        """
        queue, keys, returned, dead_letters = self._queue, self._queue.keys, 0, 0
        self._counts.tell_if_due()
        if self._terms.served is not None and time.monotonic() - self._published_at > PUBLISH_EVERY_SECONDS:
            self._published_at = time.monotonic()
            publish(queue, self.name, self._terms.served, self._terms.labels)
        for name in queue.model_server_names(expired=True):
            count, *given_up = queue.run(
                "return_jobs",
                [keys.leases, keys.attempts, keys.dead, keys.serves, *self._lists_of(name), keys.quiet],
                [
                    *(name, self._terms.max_attempts, MOST_DEAD_LETTERS, MOST_DEAD_LETTER_BYTES),
                    *(FORGET_NAME_SECONDS, FORGET_ATTEMPTS_SECONDS, keys.all_jobs),
                ],
            )
            returned += count
            outcomes = [
                self._given_up(text, lane) for lane, texts in zip(Lane, given_up, strict=True) for text in texts
            ]
            if outcomes:
                for outcome in outcomes:
                    log.warning("job %s is a dead letter now: %s", outcome.job_id or "without an id", outcome.failure)
                self._end(outcomes, struck_off={})
            dead_letters += len(outcomes)
        return Returned(returned, dead_letters)

    def _lists_of(self, server: str) -> list[str]:
        """Of each lane: the key of its waiting jobs, of a model server's processing list, and of their counter."""
        lanes = [self._queue.keys.lane(lane) for lane in Lane]
        return [key for keys in lanes for key in (keys.waiting, keys.processing(server), keys.settled_by_server)]

    def leave(self, *, forget: bool = True) -> int:
        """Give back the jobs in hand, with no attempt counted, and end the lease; return how many jobs went back.

        With `forget` False others go on looking after this name, because one of its commands may still be under way.
        """
        keys = self._queue.keys
        lists = [keys.leases, keys.serves, *self._lists_of(self.name), keys.quiet]
        return int(self._queue.run("leave", lists, [self.name, int(forget), keys.all_jobs]))

    def _given_up(self, text: bytes, lane: Lane) -> Outcome:
        times = self._terms.max_attempts
        failure = f"The model server failed {times} times on this image. It is kept as a dead letter."
        try:
            job = Job.from_text(text)
        except BadJob:
            return Outcome(text, failure=failure, lane=lane)
        return Outcome(text, job.id, job.reply_to, failure=failure, lane=lane)

    def _messages(self, outcomes: Sequence[Outcome]) -> list[str]:
        """Channel, answers, channel, answers, …: one message per web process, with all its answers."""
        of_batch = self._about_batch(outcomes)
        about: dict[str, object] = {ABOUT: of_batch} if of_batch else {}
        answers: dict[str, dict[str, object]] = {}
        for outcome in outcomes:
            channel, reply = outcome.reply_to or "", outcome.reply()
            # A job must not make us publish on any channel but our own ones.
            if outcome.job_id and reply is not None and self._queue.keys.is_channel(channel):
                beside = about if channel.startswith(self._queue.keys.channel()) else {}
                answers.setdefault(channel, dict(beside))[outcome.job_id] = reply
        return [text for channel, replies in answers.items() for text in (channel, orjson.dumps(replies).decode())]

    def _about_batch(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """What travels beside the answers of one batch."""
        took = [outcome.model_ms for outcome in outcomes if outcome.model_ms is not None]  # all the same
        return self._about | ({"model_ms": round(took[0], 3)} if took else {})
