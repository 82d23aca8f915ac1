"""The web server's side of the queue: submit a job, wait for its answer.

    ask -- submit --> queue … model server … SET <id>, message -- listener --> the waiting request wakes

The message carries the answers, which saves a round trip before the request wakes; the key is what counts. Without a
message (a lost connection, a model server that sends none) the request finds its answer when it next looks there.
"""

import contextlib
import json
import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from typing import Any

from serving.errors import QueueAway, QueueFull, TimedOut
from serving.job_queue import CLOCK_GOOD_FOR_SECONDS, Job, JobQueue, translated

RATE_WINDOW_SECONDS = 10.0
MOST_RETRY_AFTER_SECONDS = 60
RECONNECT_SECONDS = 0.5

log = logging.getLogger(__name__)


class QueueClient:
    """Asks the queue on behalf of the requests of one process; safe to share between threads."""

    def __init__(self, queue: JobQueue, *, max_queue_length: int, poll_seconds: float) -> None:
        self._queue = queue
        self._max_queue_length = max_queue_length
        self._poll_seconds = poll_seconds
        self._channel = queue.channel(uuid.uuid4().hex)
        self._waiting: dict[str, _Waiting] = {}
        self._rate = _ServedRate()

    def start(self) -> "QueueClient":
        """Start the thread that listens for answers; without it requests poll."""
        threading.Thread(target=self._listen, name="listener", daemon=True).start()
        return self

    def ask(self, image: str, dtype: str, shape: tuple[int, ...], timeout_seconds: float) -> str:
        """Submit an encoded image and wait for its answer, JSON text.

        Raises:
            QueueFull: `max_queue_length` jobs wait already.
            QueueAway: Redis did not take the job.
            TimedOut: no answer within `timeout_seconds`.
        """
        until = time.monotonic() + timeout_seconds
        job = Job(
            id=str(uuid.uuid4()),
            image=image,
            dtype=dtype,
            shape=shape,
            deadline=self._queue.now(CLOCK_GOOD_FOR_SECONDS) + timeout_seconds,
            reply_to=self._channel,
        )
        with self._expecting(job.id) as waiting:
            self.submit(job)
            while (left := until - time.monotonic()) > 0:
                waiting.woken.wait(min(self._poll_seconds, left))
                answer = waiting.answer or self._look_up(job.id)
                if answer is not None:
                    return answer
        raise TimedOut(
            f"No answer within {timeout_seconds:g} s. The service is busy, or its model server is away: try again."
        )

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue. Raises QueueFull, QueueAway."""
        queue = self._queue
        accepted, waiting, served, clock = queue.run(
            "submit", [queue.name, queue.served], [job.to_text(), self._max_queue_length]
        )
        queue.set_clock(float(clock))
        self._rate.note(float(clock), served)
        if not accepted:
            seconds = self._rate.seconds_for(waiting)
            raise QueueFull(f"{waiting} images wait already. Try again in {seconds} s.", retry_after_seconds=seconds)

    @contextlib.contextmanager
    def _expecting(self, job_id: str) -> Iterator["_Waiting"]:
        # Registered before the job is submitted: the answer may be faster than this thread.
        self._waiting[job_id] = waiting = _Waiting()
        try:
            yield waiting
        finally:
            del self._waiting[job_id]

    def _look_up(self, job_id: str) -> str | None:
        """Read the answer and delete its key; in two steps, lest an answer whose reply is lost were gone."""
        redis = self._queue.redis
        try:
            with translated():
                answer: Any = redis.get(job_id)
        except QueueAway:  # it may be back before the deadline
            return None
        if answer is None:
            return None
        with contextlib.suppress(QueueAway), translated():  # then it expires
            redis.unlink(job_id)
        return str(answer, "utf-8")

    def _listen(self) -> None:
        away = False
        while True:
            try:
                with translated(), self._subscription() as pubsub:
                    pubsub.subscribe(self._channel)
                    away = False
                    while True:
                        message = pubsub.get_message(timeout=1.0)
                        if message is not None:
                            self._hand_out(json.loads(message["data"]))
            except QueueAway as error:
                if not away:  # said once, not twice a second
                    log.warning("not listening for answers, requests poll meanwhile: %s", error.__cause__)
                away = True
            except Exception:
                log.exception("the listener failed, requests poll meanwhile")
            time.sleep(RECONNECT_SECONDS)

    def _subscription(self) -> Any:
        return self._queue.redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]

    def _hand_out(self, answers: Any) -> None:
        """Wake who waits for these answers; then delete their keys, which nobody needs to read any more."""
        if not isinstance(answers, dict):  # not from a model server of ours; the requests poll
            return
        for job_id, answer in answers.items():
            waiting = self._waiting.get(job_id)
            if waiting is not None:
                waiting.answer = answer
                waiting.woken.set()
        self._queue.redis.unlink(*answers)


class _Waiting:
    """One request's place to sleep."""

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.answer: str | None = None


class _ServedRate:
    """How fast all model servers together work, from the counter that each submit brings back."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=10_000)
        self._lock = threading.Lock()

    def note(self, clock: float, served: int) -> None:
        with self._lock:
            self._samples.append((clock, served))
            while self._samples[0][0] < clock - RATE_WINDOW_SECONDS:
                self._samples.popleft()

    def seconds_for(self, jobs: int) -> int:
        """Whole seconds until `jobs` jobs are served at the measured rate; 1 to MOST_RETRY_AFTER_SECONDS."""
        with self._lock:
            (first_clock, first_served), (last_clock, last_served) = self._samples[0], self._samples[-1]
        if last_served <= first_served:  # nothing measured: the model servers are away, or have just begun
            return MOST_RETRY_AFTER_SECONDS if last_clock - first_clock >= RATE_WINDOW_SECONDS / 2 else 1
        rate = (last_served - first_served) / (last_clock - first_clock)
        return min(MOST_RETRY_AFTER_SECONDS, max(1, math.ceil(jobs / rate)))
