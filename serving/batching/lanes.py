"""Decides from which lane the fetcher takes: people's jobs, for which requests wait, or bulk, the asynchronous ones.

    people    first, whenever some wait
    bulk      when people's lane gave nothing and the model would wait, or batches of bulk are short;
              and in any case after people had (bulk_every - 1) full batches since bulk had its turn

A person's job must not stand behind a heap of asynchronous ones. Where batches of bulk are long, bulk is therefore
taken only as the model asks for work: a person then waits for one batch of bulk at most. Where they are short the
fetcher may keep one more at hand. What people's batches take says nothing of it: they may be of one job each.
"""

from serving.jobs.job import Lane
from serving.jobs.model_queue import Taken

SHORT_BATCH_SECONDS = 0.1


class Turns:
    """Whose turn it is; only the fetcher uses it.

    Args:
        bulk_every: of so many full batches at least one is bulk's, if bulk waits; 2 or more.
    """

    def __init__(self, bulk_every: int) -> None:
        self._bulk_every = bulk_every
        self._people_since = 0  # people's jobs taken since bulk had its turn
        self.bulk_waits = False  # when last seen

    def is_bulks(self, batch_size: int) -> bool:
        """Whether people have had their share while bulk waits."""
        return self.bulk_waits and self._people_since >= (self._bulk_every - 1) * batch_size

    def may_take_bulk(self, people: Taken, *, model_waits: bool, last_bulk_seconds: float | None) -> bool:
        """Whether bulk may be taken after a take from people's lane gave `people`."""
        is_short = last_bulk_seconds is not None and last_bulk_seconds < SHORT_BATCH_SECONDS
        return self.bulk_waits and not people.jobs and not people.runs_alone and (model_waits or is_short)

    def note(self, taken: Taken) -> None:
        """Note what a take gave."""
        if taken.lane is Lane.PEOPLE:
            self._people_since += len(taken.jobs)
            self.bulk_waits = taken.other_waits
        elif not taken.runs_alone:  # else bulk's turn is yet to come: its next job waits for empty hands
            self._people_since = 0
            self.bulk_waits = bool(taken.jobs) and not taken.all_that_waited
