"""Receives the messages that carry answers, and hands the answers to the tickets that wait for them."""

import logging
import time

import orjson

from serving.errors import QueueAway
from serving.jobs.job import Answer
from serving.jobs.job_queue import JobQueue
from serving.jobs.keys import ABOUT
from serving.jobs.ticket import Tickets

RECONNECT_SECONDS = 0.5

log = logging.getLogger(__name__)


class Listener:
    """Listens on one channel for as long as the process lives; the sender finds the answers that it misses.

    Args:
        queue: the queue.
        channel: the channel of this process.
        tickets: get the answers.
    """

    def __init__(self, queue: JobQueue, channel: str, tickets: Tickets) -> None:
        self._queue, self._channel, self._tickets = queue, channel, tickets

    def run(self) -> None:
        """Listen without end, and again after each failure; for a thread of its own."""
        is_away = False
        while True:
            try:
                with self._queue.messages(self._channel) as messages:
                    for message in messages:
                        is_away = False
                        self._read(message)
            except QueueAway as error:
                if not is_away:  # log once, not twice a second
                    log.warning("not listening for answers, requests poll meanwhile: %s", error.__cause__)
                is_away = True
            except Exception:
                log.exception("the listener failed, requests poll meanwhile")
            time.sleep(RECONNECT_SECONDS)

    def _read(self, message: bytes) -> None:
        told = orjson.loads(message)
        if isinstance(told, dict):
            about = told.pop(ABOUT, {})
            self._tickets.hand_out({job_id: Answer(text, about) for job_id, text in told.items()})
        elif isinstance(told, list):  # from flight_leave.lua
            self._tickets.nudge(told)  # else no model server of ours sent it
