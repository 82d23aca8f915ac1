"""Several Redis servers (shards) as a web process meets them: which of them gets a job, and what becomes of those that
wait in one that goes away.

    request -- check_room --> is there room in one of them?
            -- send --------> the one with the least predicted wait --> ShardTicket
    ShardTicket.wait <------- the answer
                     -- the shard is away --> the job once more, to the next one, before its deadline

A shard knows nothing of the others. Each has its own sender and listener here (web_side.py); the sender finds out that
its Redis went away, and that it is back. A shard whose model servers serve another model than the first one's gets
nothing.
"""

import itertools
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

from serving.errors import QueueAway, QueueFull, Unavailable
from serving.jobs.async_jobs import AsyncJobs
from serving.jobs.job import Answer, Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.live_counts import LiveCounts
from serving.jobs.shards_served import ServedOfShards
from serving.jobs.ticket import Ticket
from serving.jobs.watch import Watch
from serving.jobs.web_side import WebSide


@dataclass(frozen=True)
class WebShard:
    """One model's queue in one Redis, with what works at it; threads may share it."""

    label: str  # of the Redis: "1", "2" …; "" where the service has a single one
    queue: JobQueue
    web_side: WebSide
    async_jobs: AsyncJobs
    watch: Watch  # of its asynchronous jobs

    def start(self) -> None:
        """Start the threads that work for its requests."""
        self.web_side.start()
        self.watch.start()


def shard_of(digest: str, count: int) -> int:
    """Which of `count` shards, from 0, what has this digest (hexadecimal) belongs to; the same in all processes."""
    return int(digest[:16], 16) % count


class Shards:
    """The web sides of all shards in the place of a single one's, for one model; safe to share between threads.

    Args:
        shards: at least two, in the order of REDIS_URLS.
    """

    def __init__(self, shards: Sequence[WebShard]) -> None:
        self._shards = shards
        self.served = ServedOfShards([(shard.label, shard.web_side) for shard in shards])
        self._turns = itertools.count()
        for shard in shards:
            shard.web_side.choose_among_several()

    def all(self) -> Sequence[WebShard]:
        """Every shard, in the order of REDIS_URLS."""
        return self._shards

    @property
    def shares_answers(self) -> bool:
        """Whether requests may share answers."""
        return self._shards[0].web_side.shares_answers

    @property
    def counts(self) -> LiveCounts:
        """Where to count what became of a picture: on a shard that answers."""
        answering = (shard.web_side.counts for shard in self._shards if not shard.web_side.is_away)
        return next(answering, self._shards[0].web_side.counts)

    @property
    def is_away(self) -> bool:
        """Whether no Redis answered when last asked."""
        return all(shard.web_side.is_away for shard in self._shards)

    def check_room(self) -> None:
        """Refuse a request at once, before it costs anything, if no shard has room for its job.

        Raises what WebSide.check_room raises; of several refusals the one after which a client may come back soonest.
        """
        refusals: list[Unavailable] = []
        for shard in self._ranked():
            try:
                shard.web_side.check_room()
            except Unavailable as error:
                refusals.append(error)
            else:
                return
        raise _kindest(refusals)

    def send(self, job: Job, until: float) -> "ShardTicket":
        """Submit a job to the shard with the least predicted wait, and if that refuses it, to the next one.

        `until`: its deadline, monotonic seconds. Raises what WebSide.send raises.
        """
        shard, ticket = self.send_beside(job, until, tried=())
        return ShardTicket(self, shard, ticket, until)

    def send_beside(self, job: Job, until: float, tried: Collection[str]) -> tuple[WebShard, Ticket]:
        """Submit a job to one of the shards whose labels are not among those `tried`; see `send`."""
        refusals: list[Unavailable] = []
        for shard in self._ranked():
            if shard.label not in tried:
                try:
                    return shard, shard.web_side.send(job, until)
                except Unavailable as error:
                    refusals.append(error)
        raise _kindest(refusals)

    def sharing_side(self, digest: str) -> WebSide | None:
        """The web side at which answers to what has this digest are shared; None: its shard takes nothing now."""
        number = shard_of(digest, len(self._shards))
        side = self._shards[number].web_side
        return side if self._takes(number) and side.load().ahead < side.most_waiting() else None

    def kept(self, side: WebSide, ticket: Ticket, until: float) -> "ShardTicket":
        """The ticket with which to wait until then, of one that this side made."""
        (shard,) = (shard for shard in self._shards if shard.web_side is side)
        return ShardTicket(self, shard, ticket, until)

    def _takes(self, number: int) -> bool:
        """Whether a shard may get jobs: its Redis answers, and its model servers serve the model."""
        return not self._shards[number].web_side.is_away and self.served.fits(number)

    def _ranked(self) -> list[WebShard]:
        """The shards that may get jobs, the one with the least predicted wait first.

        That is the number of jobs ahead, divided by the rate at which the shard's model servers settle them. A shard
        whose rate has not shown yet counts as one of the usual rate.
        """
        places = [number for number in range(len(self._shards)) if self._takes(number)]
        sides = {number: self._shards[number].web_side for number in places}
        loads = {number: side.load() for number, side in sides.items()}
        usual = median([load.rate for load in loads.values() if load.rate] or [1.0])
        turn = next(self._turns)

        def rank(number: int) -> tuple[bool, bool, float, int, int]:
            side, load = sides[number], loads[number]
            is_served = side.served.last_alive() is not None
            wait_seconds = load.ahead / (load.rate or usual)
            return load.is_draining, load.is_paused or not is_served, wait_seconds, side.tickets.count(), number - turn

        return [self._shards[number] for number in sorted(places, key=rank)]


class ShardTicket:
    """Stands for one request, whose job may be sent to another shard once more; a Ticket's verbs.

    Args:
        shards: of which one has the job.
        shard: that one.
        ticket: of the job there.
        until: the request's deadline, monotonic seconds.
    """

    def __init__(self, shards: Shards, shard: WebShard, ticket: Ticket, until: float) -> None:
        self._shards, self._shard, self._ticket, self._until = shards, shard, ticket, until
        self._tried = [shard.label]
        self.since = ticket.since

    @property
    def answered_at(self) -> float:
        """When the answer came, monotonic seconds."""
        return self._ticket.answered_at

    @property
    def is_submitted(self) -> bool:
        """Whether the request has a job of its own, as far as is known."""
        return self._ticket.is_submitted

    def wait(self, until: float) -> Answer | None:
        """Wait for the answer until `until`, monotonic seconds; None when it has not come by then.

        If the shard went away meanwhile, the job is sent to another one. Raises Unavailable: none of those takes it
        that have not had it yet.
        """
        answer = self._ticket.wait(until)
        if answer is None and self._shard.web_side.is_away and time.monotonic() < self._until:
            self._send_again()
        return answer

    def cancel(self) -> None:
        """Give the request up; see Ticket.cancel."""
        self._ticket.cancel()

    def __enter__(self) -> "ShardTicket":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def _send_again(self) -> None:
        job = self._ticket.job
        self._ticket.cancel()  # before: whatever the old shard still says of the job must reach nobody
        self._shard, self._ticket = self._shards.send_beside(job, self._until, self._tried)
        self._tried.append(self._shard.label)


def _kindest(refusals: Sequence[Unavailable]) -> Unavailable:
    """Of several refusals the one after which a client may come back soonest."""
    full = [error for error in refusals if isinstance(error, QueueFull)]
    if full:
        return min(full, key=_retry_after)
    away = "None of the queues can be reached. Try again in a moment."
    others = [error for error in refusals if not isinstance(error, QueueAway)]
    return (others or refusals or [QueueAway(away)])[0]


def _retry_after(error: Unavailable) -> int:
    return error.retry_after_seconds
