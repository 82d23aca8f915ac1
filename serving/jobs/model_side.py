"""The model server's side of the queue: take jobs under a lease, answer them, return those of the dead.

    ModelSide.join --> what it serves is published, unless others serve something else --> Membership: one fresh name

A model server that lets its lease run out, or does not know whether a command arrived, joins again under a new name;
others return what the old name held.
"""

import json
from collections.abc import Sequence

from serving.errors import OtherModel
from serving.jobs.job_queue import KEEP_SERVED_SECONDS, JobQueue
from serving.jobs.live_counts import LiveCounts
from serving.jobs.membership import Membership, Terms
from serving.jobs.served import Served


class ModelSide:
    """The queue for one model server: `join` gives it a membership (see jobs.model_queue.ModelQueue).

    Args:
        queue: the queue, without `resend`.
        lease_seconds: how long a model server may make no progress before its jobs go to others.
        max_attempts: a job that came back so often becomes a dead letter.
        result_ttl_seconds: how long Redis keeps an answer that nobody reads.
        served: the model that this model server answers with; None: it publishes nothing, and joins in any case.
        labels: of that model, in the order of its classes.
    """

    def __init__(
        self,
        queue: JobQueue,
        *,
        lease_seconds: float,
        max_attempts: int,
        result_ttl_seconds: int,
        served: Served | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        self.queue = queue
        self._counts = LiveCounts(queue)
        self._terms = Terms(lease_seconds, max_attempts, result_ttl_seconds, served, labels)
        self._last_name = ""  # under which this model server joined last

    def join(self) -> Membership:
        """Register under a fresh name, whose lease begins now, and publish what is served.

        A model server that an operator has told to be quiet stays so.

        Raises:
            OtherModel: a model server that lives serves something else on this queue.
            QueueAway: Redis does not answer.
        """
        queue, keys, member = self.queue, self.queue.keys, Membership(self.queue, self._terms, self._counts)
        served = self._terms.served
        digest, text = (served.labels_digest, served.to_text()) if served is not None else ("", "")
        clock, *other = queue.run(
            "join",
            [
                *(keys.leases, keys.people.settled_by_server, keys.bulk.settled_by_server),
                *(keys.serves, keys.served_last, keys.labels(digest), keys.quiet),
            ],
            [
                *(member.name, self._terms.lease_seconds, text, json.dumps(list(self._terms.labels))),
                *(KEEP_SERVED_SECONDS, self._last_name),
            ],
        )
        queue.set_clock(float(clock))
        if other and served is not None:
            name, serves, seconds = (part.decode(errors="replace") for part in other)
            others = Served.from_text(serves) or served
            raise OtherModel(
                f"The queue {queue.name} is served by {name} with {others.in_words(served)}; this model server has "
                f"{served.in_words(others)}, and its answers would go to the same clients. Stop one of them, or set "
                "IMAGE_QUEUE to another name for this model server and its web servers.",
                lease_seconds=float(seconds),
            )
        self._last_name = member.name
        return member

    def now(self) -> float:
        """The time by Redis's clock, unix seconds. Raises QueueAway when Redis was never heard and does not answer."""
        return self.queue.now()
