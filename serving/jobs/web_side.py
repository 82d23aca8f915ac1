"""The web server's side of the queue: submit a job, wait for its answer.

    ask -- encode, submit --> queue … model server … SET <id>, message -- listener --> the waiting request wakes

Two threads at a time encode images (that is, decode uploads), and submit their jobs: a request's own while there is a
place, else one that does so for several of those that wait, in one round trip. A request by itself runs that code with
cold caches, and fights for the interpreter (docs/decisions/023).

The message carries the answers, which saves a round trip before the request wakes; the key is what counts. Without a
message (a lost connection, a model server that sends none) a second thread finds the answer when it next looks: once
for all requests that wait, not once for each.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import orjson

from serving.errors import ClientGone, QueueAway, QueueFull, TimedOut
from serving.jobs.admission import Admission
from serving.jobs.combining import Combiner
from serving.jobs.job_queue import CLOCK_GOOD_FOR_SECONDS, Job, JobQueue, translated
from serving.jobs.pending import PendingRequest

RECONNECT_SECONDS = 0.5
# Images that one process encodes at once: more would not be faster, and each may take hundreds of megabytes.
ENCODERS = 2
MOST_SUBMITTED_TOGETHER = 16
# What is encoded waits for no others once they have taken so long: a small image must not wait for large ones.
LONGEST_LOT_SECONDS = 0.02

log = logging.getLogger(__name__)


class QueueClient:
    """Asks the queue on behalf of the requests of one process; safe to share between threads.

    Args:
        queue: the queue.
        max_queue_length: jobs that may wait, at most; fewer when they could not be answered in time.
        timeout_seconds: a request not answered by then ends.
        poll_seconds: how often it is looked for answers that no message told of, and for clients that hung up.
    """

    def __init__(
        self, queue: JobQueue, *, max_queue_length: int, poll_seconds: float, timeout_seconds: float = 30.0
    ) -> None:
        self._queue = queue
        self._timeout_seconds = timeout_seconds
        self._poll_seconds = poll_seconds
        self._keys = [queue.name, queue.served, queue.emptied]
        self._channel = queue.channel(uuid.uuid4().hex)
        self._admission = Admission(max_queue_length, timeout_seconds)
        self._submitting = Combiner(self._encode_and_submit, places=ENCODERS, most=MOST_SUBMITTED_TOGETHER)
        self._waiting: dict[str, PendingRequest] = {}
        self._given_up: SimpleQueue[Job] = SimpleQueue()  # jobs whose request has ended
        self._handed_out: list[str] = []  # ids of answers that nobody needs to read any more

    def start(self) -> "QueueClient":
        """Start the threads that submit, listen for answers and look for them; without these no request is answered."""
        self._submitting.start()
        for work in (self._listen, self._look_after):
            threading.Thread(target=work, name=work.__name__.strip("_"), daemon=True).start()
        return self

    def check_room(self) -> None:
        """Refuse at once what the queue has no room for, before it costs anything. Raises QueueFull, QueueAway."""
        full = self._admission.is_full()
        if full is None:
            waiting, served, emptied, clock = self._queue.run("look", self._keys, [])
            self._admission.note(float(clock), waiting, served, float(emptied))
            full = self._admission.is_full()
        if full:
            raise self._refusal()

    def ask(
        self,
        encode: Callable[[], str],
        dtype: str,
        shape: tuple[int, ...],
        has_hung_up: Callable[[], bool] = lambda: False,
        since: float | None = None,
    ) -> str:
        """Submit an image and wait for its answer, JSON text.

        Args:
            encode: makes the image, as in Job; called at most once, by any thread. What it raises is raised here.
            dtype, shape: as in Job.
            has_hung_up: says whether the client has gone.
            since: when the request came, monotonic seconds; its deadline counts from there. None: now.

        Raises:
            QueueFull: more jobs wait than can be answered in time.
            QueueAway: Redis did not take the job.
            TimedOut: no answer within `timeout_seconds`.
            ClientGone: nobody waits for the answer.
        """
        until = (time.monotonic() if since is None else since) + self._timeout_seconds
        job_id = str(uuid.uuid4())
        deadline = self._queue.now(CLOCK_GOOD_FOR_SECONDS) + until - time.monotonic()
        make_job = partial(Job, id=job_id, dtype=dtype, shape=shape, deadline=deadline, reply_to=self._channel)
        request = PendingRequest(encode, make_job)
        with self._expecting(job_id, request):
            self._submitting.put(request)
            while not request.wait(max(0.0, min(self._poll_seconds, until - time.monotonic()))):
                if has_hung_up():
                    self._give_up(request)
                    raise ClientGone("The client hung up.")
                if time.monotonic() >= until:
                    self._give_up(request)
                    raise self._too_late()
        return request.result()

    def _too_late(self) -> TimedOut:
        return TimedOut(
            f"No answer within {self._timeout_seconds:g} s. The service is busy, or its model server is away: "
            "try again."
        )

    def submit(self, jobs: Sequence[str]) -> int:
        """Put jobs, as they travel, at the end of the queue. Returns how many, of the first, it had room for.

        Raises QueueAway.
        """
        accepted, ahead, served, emptied, clock = self._queue.submit(jobs, self._admission.most_waiting())
        self._queue.set_clock(float(clock))
        self._admission.note(float(clock), ahead, served, float(emptied))
        return int(accepted)

    def _encode_and_submit(self, requests: list[PendingRequest]) -> None:
        lot: list[PendingRequest] = []
        rest, until = deque(requests), time.monotonic() + LONGEST_LOT_SECONDS
        try:
            while rest:
                if (request := rest.popleft()).encode():
                    lot.append(request)
                if time.monotonic() > until or not rest:
                    self._submit_lot(lot)
                    lot, until = [], time.monotonic() + LONGEST_LOT_SECONDS
        except Exception as error:
            # Those that wait as well, where Redis is away: to each it would take as long to hear the same.
            others = self._submitting.drain() if isinstance(error, QueueAway) else []
            for request in (*lot, *rest, *others):
                request.fail(_of_its_own(error))

    def _submit_lot(self, lot: list[PendingRequest]) -> None:
        lot = [request for request in lot if not request.has_ended]
        jobs = [request.job for request in lot if request.job]
        if not jobs:
            return
        try:
            accepted = self.submit([job.to_text() for job in jobs])
        except QueueAway:
            for job in jobs:
                self._given_up.put(job)  # the reply may be all that was lost
            raise
        for request in lot[accepted:]:
            request.fail(self._refusal())
        for request, job in zip(lot[:accepted], jobs, strict=False):
            if request.has_ended:  # meanwhile
                self._given_up.put(job)

    def _give_up(self, request: PendingRequest) -> None:
        request.end()
        if request.job:
            self._given_up.put(request.job)

    def _refusal(self) -> QueueFull:
        seconds = self._admission.retry_after_seconds()
        return QueueFull(f"Too many images wait already. Try again in {seconds} s.", retry_after_seconds=seconds)

    @contextlib.contextmanager
    def _expecting(self, job_id: str, request: PendingRequest) -> Iterator[None]:
        # Registered before the job is submitted: the answer may be faster than this thread.
        self._waiting[job_id] = request
        try:
            yield
        finally:
            del self._waiting[job_id]

    def _look_after(self) -> None:
        """Take jobs for which nobody waits any more out of the queue, look for answers that no message told of, and
        delete those that were handed out."""
        while True:
            time.sleep(self._poll_seconds)
            try:
                self._cancel_given_up()
                self._look_up()
                self._delete_handed_out()
            except QueueAway:
                # Each request that Redis refuses adds a job here. What is not cancelled ends by its deadline.
                self._given_up = SimpleQueue()
            except Exception:
                log.exception("looking for answers failed")

    def _cancel_given_up(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                job = self._given_up.get_nowait()
                self._queue.run("cancel", [self._queue.name, self._queue.attempts], [job.to_text()])

    def _look_up(self) -> None:
        before = time.monotonic() - self._poll_seconds
        ids = [job_id for job_id, request in list(self._waiting.items()) if request.since < before]
        if ids:
            with translated():
                found: Any = self._queue.redis.mget(ids)
            self._hand_out({job_id: str(text, "utf-8") for job_id, text in zip(ids, found, strict=True) if text})

    def _delete_handed_out(self) -> None:
        handed_out, self._handed_out = self._handed_out, []  # what Redis does not delete now ends by its time to live
        if handed_out:
            with translated():
                self._queue.redis.exchange(("UNLINK", *handed_out))

    def _listen(self) -> None:
        away = False
        while True:
            try:
                with translated(), self._queue.redis.subscribed(self._channel) as messages:
                    away = False
                    for message in messages:
                        self._hand_out(orjson.loads(message))
            except QueueAway as error:
                if not away:  # said once, not twice a second
                    log.warning("not listening for answers, requests poll meanwhile: %s", error.__cause__)
                away = True
            except Exception:
                log.exception("the listener failed, requests poll meanwhile")
            time.sleep(RECONNECT_SECONDS)

    def _hand_out(self, answers: Any) -> None:
        """Wake who waits for these answers. Their keys are deleted later, many at once."""
        if not answers or not isinstance(answers, dict):  # not from a model server of ours
            return
        for job_id, answer in answers.items():
            request = self._waiting.get(job_id)
            if request is not None:
                request.answer(answer)
        self._handed_out += answers


def _of_its_own(error: Exception) -> Exception:
    """The error of one request of several that failed together: each raises it in a thread of its own."""
    if not isinstance(error, QueueAway):
        own: Exception = RuntimeError("it could not be submitted")
        own.__cause__ = error
    else:
        own = type(error)(str(error), error.retry_after_seconds)
        own.__cause__ = error.__cause__
    return own
