"""What is served on several shards, told as if by one: by the first one, in their order, that a model server serves."""

import logging
from collections.abc import Sequence
from typing import Protocol

from serving.jobs.job import Answer
from serving.jobs.served import LOOK_EVERY_SECONDS, Served, ServedNow

log = logging.getLogger(__name__)


class Side(Protocol):
    """A shard's web side, as far as this module needs it."""

    served: ServedNow

    @property
    def is_away(self) -> bool:
        """Whether its Redis did not answer when last asked."""


class ServedOfShards:
    """What a web process knows of what is served on its shards: ServedNow's questions; safe to share between threads.

    Args:
        sides: the web side of each shard, by its label, at least one.
    """

    def __init__(self, sides: Sequence[tuple[str, Side]]) -> None:
        self._sides = sides
        self._left_out: dict[str, Served] = {}  # by the shard's label, what it serves otherwise than the first one

    def fits(self, number: int) -> bool:
        """Whether jobs may go to this shard, counted from 0: it serves what the first one serves, or nothing so far."""
        label, side = self._sides[number]
        served, first = side.served.last_alive(), self._first().last_alive()
        if served is None or first is None or served.stands_for() == first.stands_for():
            self._left_out.pop(label, None)
            return True
        if self._left_out.get(label) != served:
            self._left_out[label] = served
            log.warning(
                "number %s of REDIS_URLS is served by %s, and the first one by %s: it gets no requests. Stop either.",
                label,
                served.in_words(first),
                first.in_words(served),
            )
        return False

    def input_shape(self) -> tuple[int, int, int]:
        """See ServedNow.input_shape. Raises QueueAway."""
        return self._first().input_shape()

    def alive(self) -> Served | None:
        """See ServedNow.alive. Raises QueueAway."""
        return self._first().alive()

    def served(self) -> Served | None:
        """See ServedNow.served."""
        return self._first().served()

    def labels(self) -> Sequence[str] | None:
        """See ServedNow.labels. Raises QueueAway."""
        return self._first().labels()

    def check_name(self) -> None:
        """See ServedNow.check_name. Raises Unavailable, QueueAway."""
        self._first().check_name()

    def check_channels(self, served: Served) -> None:
        """See ServedNow.check_channels. Raises Unavailable."""
        self._first().check_channels(served)

    def check_answer(self, answer: Answer) -> None:
        """See ServedNow.check_answer. Raises Unavailable."""
        self._first().check_answer(answer)

    def look_if_due(self, seconds: float = LOOK_EVERY_SECONDS) -> None:
        """Look at what is served on the shard that tells, if the last look is older than that. Raises QueueAway."""
        self._first().look_if_due(seconds)

    def look(self) -> None:
        """Ask the Redis of the shard that tells what is served. Raises QueueAway."""
        self._first().look()

    def _first(self) -> ServedNow:
        """Of the first shard that answers and is served; else that answers and was ever served; else that answers."""
        there = [side.served for _, side in self._sides if not side.is_away] or [side.served for _, side in self._sides]
        alive = next((one for one in there if one.last_alive() is not None), None)
        return alive or next((one for one in there if one.served() is not None), there[0])
