"""Receives the messages that carry answers, and hands the answers to those who wait."""

import logging
import time
from collections.abc import Callable, Mapping

import orjson

from serving.errors import QueueAway
from serving.jobs.job_queue import JobQueue

RECONNECT_SECONDS = 0.5

log = logging.getLogger(__name__)


class Listener:
    """Listens on one channel for as long as the process lives; what it misses, requests find by looking.

    Args:
        queue: the queue.
        channel: the channel of this process.
        hand_out: takes answers, job id -> JSON text.
    """

    def __init__(self, queue: JobQueue, channel: str, hand_out: Callable[[Mapping[str, str]], None]) -> None:
        self._queue, self._channel, self._hand_out = queue, channel, hand_out

    def run(self) -> None:
        """Listen; after a failure, again."""
        is_away = False
        while True:
            try:
                with self._queue.messages(self._channel) as messages:
                    for message in messages:
                        is_away = False
                        self._read(message)
            except QueueAway as error:
                if not is_away:  # said once, not twice a second
                    log.warning("not listening for answers, requests poll meanwhile: %s", error.__cause__)
                is_away = True
            except Exception:
                log.exception("the listener failed, requests poll meanwhile")
            time.sleep(RECONNECT_SECONDS)

    def _read(self, message: bytes) -> None:
        answers = orjson.loads(message)
        if isinstance(answers, dict):  # else it is not from a model server of ours
            self._hand_out(answers)
