"""The queue as a model server meets it: ModelQueue, which gives it a Member, which takes jobs (Taken) and answers them.

jobs.model_side and jobs.membership are those that run; the batching wing knows no more than this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.jobs.job import Lane, Outcome


@dataclass(frozen=True)
class Taken:
    """What one `take` gave: jobs as they travel. With `attempts` above 0 it is one job, which came back so often."""

    jobs: list[bytes]
    attempts: int = 0
    all_that_waited: bool = False  # no other job waited, as far as the model server knows
    runs_alone: bool = False  # a job that came back is next, or in hand: answer what is in hand, then take again
    lane: Lane = Lane.PEOPLE
    other_waits: bool = False  # jobs waited in the other lane
    ended: frozenset[int] = frozenset()  # places in `jobs` of those that nobody wants any more


@dataclass(frozen=True)
class Returned:
    """What became of the jobs of model servers whose lease ran out."""

    jobs: int = 0  # that went back to the heads of their lanes
    dead_letters: int = 0  # that were given up, since they had come back too often


class Member(Protocol):
    """One name under which a model server takes jobs, with its lease: jobs.membership.Membership is the one that runs.

    Every method raises QueueAway.

    One thread may call `take` and `return_expired` while another calls `answer`.
    """

    @property
    def name(self) -> str:
        """The name in the queue, made anew with each `join`."""

    @property
    def in_hand(self) -> int:
        """How many jobs this name has taken and not yet struck off."""

    @property
    def is_lost(self) -> bool:
        """Whether a command found that the lease is lost; then it is lost for good."""

    def take(self, most: int, wait_seconds: float = 0.0, *, lane: Lane = Lane.PEOPLE) -> Taken:
        """Take up to `most` jobs of a lane; with `wait_seconds`, wait for a first one.

        Only empty hands may wait, and only for people's jobs.

        Raises:
            LeaseLost: others took this name for dead, and get its jobs.
        """

    def answer(self, outcomes: Sequence[Outcome]) -> bool:
        """End the oldest jobs in hand of each lane, in their order; False if the lease was lost meanwhile.

        The same outcomes may be sent again when QueueAway left open whether they arrived.
        """

    def return_expired(self) -> Returned:
        """Return the jobs of every model server whose lease ran out to the heads of their lanes."""

    def leave(self, *, forget: bool = True) -> int:
        """Give back the jobs in hand, with no attempt counted, and end the lease; return how many jobs went back.

        With `forget` False others go on looking after this name, because one of its commands may still be under way.
        """


class ModelQueue(Protocol):
    """The queue as a model server meets it: jobs.model_side.ModelSide is the one that runs."""

    def join(self) -> Member:
        """Register under a fresh name, whose lease begins now. Raises QueueAway."""

    def now(self) -> float:
        """The time by the queue's own clock, unix seconds, by which deadlines count. Raises QueueAway."""
