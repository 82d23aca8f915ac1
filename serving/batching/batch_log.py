"""Writes a line for each batch into the log of a model server."""

from collections.abc import Sequence

from serving.batching.batch import Item
from serving.jobs.job import Lane
from serving.telemetry import logs

BATCH = "batch"
MOST_IDS, LONGEST_ID = 8, 128


class BatchLog:
    """The log of the batches of one model server; to be made after the log is set up.

    Args:
        queue: IMAGE_QUEUE.
        model: the name of the model.
    """

    def __init__(self, queue: str = "", model: str = "") -> None:
        self._events = logs.Events("serving.batching.batches")
        self._queue, self._model = queue or None, model or None

    def predicted(self, server: str, items: Sequence[Item], padding: int, predict_ms: float) -> None:
        """Write the line of a batch.

        Args:
            server: the name of the model server in the queue.
            items: the jobs that the model ran, at least one.
            padding: images without a job that it ran beside them.
            predict_ms: how long the model had them, milliseconds.
        """
        requests = [item.request_id[:LONGEST_ID] for item in items[:MOST_IDS] if item.request_id]
        self._events.info(
            BATCH,
            images=len(items),
            padding=padding,
            bulk=sum(item.lane is Lane.BULK for item in items),
            predict_ms=round(predict_ms, 2),
            model=self._model,
            queue=self._queue,
            server=server,
            jobs=[item.job_id for item in items[:MOST_IDS] if item.job_id],
            requests=list(dict.fromkeys(requests)) or None,
        )
