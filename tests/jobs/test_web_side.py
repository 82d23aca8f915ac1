"""The web server's side of the queue, on a real Redis: submitted, answered, given up, refused."""

import contextlib
import gc
import json
import socket
import threading
import time
import weakref
from collections.abc import Callable

import pytest
import redis
from conftest import RedisServer, answered, keys, new_job, push, wait_for

from serving.errors import ClientGone, QueueAway, QueueFull, TimedOut, UndecodableImage
from serving.jobs.job_queue import Job, JobQueue
from serving.jobs.model_side import QueueWorker
from serving.jobs.web_side import ENCODERS, LONGEST_LOT_SECONDS, QueueClient

NewWorker = Callable[..., QueueWorker]
SHAPE = (1, 1, 3)


def test_a_client_gets_the_answer_and_the_key_is_gone(raw: redis.Redis, queue: JobQueue, new_worker: NewWorker) -> None:
    client = QueueClient(queue, max_queue_length=10, poll_seconds=60).start()  # a poll would come too late
    worker = new_worker()

    def serve() -> None:
        (text,) = worker.take(1, wait_seconds=5).jobs
        worker.answer([answered(text, '["yes"]')])

    wait_for(lambda: raw.pubsub_channels("{image_queue}:answered:*"))
    threading.Thread(target=serve).start()
    assert client.ask(lambda: "AAAA", "uint8", SHAPE) == '["yes"]'
    worker.leave()
    # What it does when it polls; the listener notes the key after it woke the request.
    wait_for(lambda: client._delete_handed_out() or keys(raw) == {"{image_queue}:served"})


def test_a_client_finds_an_answer_that_no_message_told_of(raw: redis.Redis, queue: JobQueue) -> None:
    client = QueueClient(queue, max_queue_length=10, poll_seconds=0.05).start()

    def the_tutorials_model_server() -> None:
        wait_for(lambda: raw.llen("image_queue"))
        job = json.loads(raw.lpop("image_queue"))
        raw.set(job["id"], '["polled"]')

    threading.Thread(target=the_tutorials_model_server).start()
    assert client.ask(lambda: "AAAA", "uint8", SHAPE) == '["polled"]'
    wait_for(lambda: keys(raw) == set())  # the key goes after the request woke


def new_client(queue: JobQueue, **changes: object) -> QueueClient:
    options = {"max_queue_length": 10, "poll_seconds": 0.05, "timeout_seconds": 10.0} | changes
    return QueueClient(queue, **options).start()  # type: ignore[arg-type]


def test_without_an_answer_the_deadline_ends_the_wait_and_the_job(queue: JobQueue, raw: redis.Redis) -> None:
    client = new_client(queue, timeout_seconds=0.3)
    seen: list[Job] = []
    watching = threading.Timer(0.1, lambda: seen.append(Job.from_text(raw.lindex("image_queue", 0))))
    watching.start()
    with pytest.raises(TimedOut, match="within 0.3 s"):
        client.ask(lambda: "AAAA", "uint8", SHAPE)
    assert abs(seen[0].deadline - time.time()) < 30
    wait_for(lambda: keys(raw) == set())


def test_a_job_whose_client_hung_up_is_taken_out_of_the_queue(raw: redis.Redis, queue: JobQueue) -> None:
    others = push(raw, 2)
    client = new_client(queue)
    gone = threading.Event()
    threading.Timer(0.2, gone.set).start()
    with pytest.raises(ClientGone):
        client.ask(lambda: "AAAA", "uint8", SHAPE, has_hung_up=gone.is_set)
    wait_for(lambda: raw.llen("image_queue") == 2)
    assert [Job.from_text(text) for text in raw.lrange("image_queue", 0, -1)] == others


class Held:
    """Stands in for decoding: it goes on when told to."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.began = 0

    def __call__(self) -> str:
        self.began += 1
        self.may_go_on.wait(10)
        return "AAAA"


class Asked:
    """Requests, each in a thread of its own, started one after the other; `ends` has how each ended."""

    def __init__(self, client: QueueClient) -> None:
        self.client = client
        self.threads: list[threading.Thread] = []
        self.ends: list[str] = []

    def ask(self, encode: Callable[[], str]) -> None:
        place = len(self.ends)
        self.ends.append("")

        def ask() -> None:
            try:
                self.ends[place] = self.client.ask(encode, "uint8", SHAPE)
            except Exception as error:
                self.ends[place] = type(error).__name__

        self.threads.append(threading.Thread(target=ask))
        self.threads[-1].start()

    def occupy(self) -> list[Held]:
        """Take all places with images that take as long as they are told to."""
        held = [Held() for _ in range(ENCODERS)]
        for one in held:
            self.ask(one)
            wait_for(lambda: one.began)  # noqa: B023
        return held

    def leave_waiting(self, encode: Callable[[], str]) -> None:
        """Ask while there is no place."""
        waiting = self.client._submitting._waiting
        before = len(waiting)
        self.ask(encode)
        wait_for(lambda: len(waiting) > before)

    def join(self) -> list[str]:
        for thread in self.threads:
            thread.join(timeout=10)
        return self.ends


def submissions(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many jobs each submission has."""
    counts: list[int] = []
    submit = queue.submit
    monkeypatch.setattr(queue, "submit", lambda jobs, most: counts.append(len(jobs)) or submit(jobs, most))
    return counts


def test_those_that_wait_for_an_encoder_are_submitted_together_and_fail_alone(
    raw: redis.Redis, queue: JobQueue, new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = submissions(queue, monkeypatch)
    asked = Asked(new_client(queue, max_queue_length=10))

    def broken() -> str:
        raise UndecodableImage("broken")

    held = asked.occupy()
    for encode in [lambda: "AAAA", broken, *[lambda: "AAAA"] * 8]:
        asked.leave_waiting(encode)
    assert submitted == []
    for one in held:
        one.may_go_on.set()
    wait_for(lambda: sorted(end for end in asked.ends if end) == ["QueueFull", "UndecodableImage"])
    assert raw.llen("image_queue") == 10
    assert sum(submitted) == 11
    assert max(submitted) > 1
    worker = new_worker()
    worker.answer([answered(text, '["yes"]') for text in worker.take(10).jobs])
    assert sorted(asked.join()) == ["QueueFull", "UndecodableImage", *['["yes"]'] * 10]


def test_no_image_waits_for_long_for_others_that_are_submitted_with_it(
    raw: redis.Redis, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = submissions(queue, monkeypatch)
    asked = Asked(new_client(queue, timeout_seconds=2.0))
    held = asked.occupy()
    for _ in range(7):
        asked.leave_waiting(lambda: time.sleep(LONGEST_LOT_SECONDS) or "AAAA")
    for one in held:
        one.may_go_on.set()
    wait_for(lambda: raw.llen("image_queue") == ENCODERS + 7)
    assert submitted == [1] * (ENCODERS + 7)
    asked.join()


def test_a_request_that_ends_while_it_waits_is_let_go_of_and_never_encoded(raw: redis.Redis, queue: JobQueue) -> None:
    asked = Asked(new_client(queue, timeout_seconds=0.3))
    held, late = asked.occupy(), Held()
    gone = weakref.ref(late)
    asked.leave_waiting(late)
    asked.threads[-1].join()
    assert asked.ends[-1] == "TimedOut"
    assert late.began == 0
    del late
    assert gone() is None  # with the upload, though it stands in the line still
    for one in held:
        one.may_go_on.set()
    assert asked.join() == ["TimedOut"] * (ENCODERS + 1)
    wait_for(lambda: keys(raw) == set())


def test_a_job_whose_request_ended_while_it_was_submitted_is_taken_out_again(
    raw: redis.Redis, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(new_client(queue, timeout_seconds=2.0))  # time for a busy machine to begin submitting in
    submit, pushed = queue.submit, threading.Event()

    def slow_submit(jobs: list[str], most: int) -> object:
        if threading.current_thread().name == "combiner":
            asked.threads[-1].join()
            wait_for(asked.client._given_up.empty)
            time.sleep(0.2)  # by then its job was looked for in vain
            pushed.set()
        return submit(jobs, most)

    monkeypatch.setattr(queue, "submit", slow_submit)
    held = asked.occupy()
    asked.leave_waiting(lambda: "AAAA")
    for one in held:
        one.may_go_on.set()
    assert asked.join() == ["TimedOut"] * (ENCODERS + 1)
    assert pushed.wait(10)
    wait_for(lambda: asked.client._submitting._taken_places == 0)
    wait_for(lambda: keys(raw) == set())


def test_whoever_waits_hears_that_redis_is_away_as_soon_as_anybody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # it takes connections, and never answers
        queue = JobQueue(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0", "image_queue", timeout_seconds=1.0)
        queue.set_clock(time.time())
        asked = Asked(new_client(queue, timeout_seconds=2.5))
        held = asked.occupy()
        for _ in range(20):
            asked.leave_waiting(lambda: "AAAA")
        for one in held:
            one.may_go_on.set()
        assert asked.join() == ["QueueAway"] * (ENCODERS + 20)  # and not by their deadline, lot after lot
        queue.close()


def test_what_failed_to_decode_is_gone_with_its_request(queue: JobQueue) -> None:
    client = new_client(queue)
    kept: list[weakref.ref[Held]] = []

    def broken() -> str:
        pixels = Held()  # stands in for hundreds of megabytes
        kept.append(weakref.ref(pixels))
        raise UndecodableImage("broken")

    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with contextlib.suppress(UndecodableImage):
                client.ask(broken, "uint8", SHAPE)
        assert [one() for one in kept] == [None] * 3
    finally:
        gc.enable()


def test_while_redis_is_away_nothing_of_what_it_refused_is_kept() -> None:
    nowhere = JobQueue("redis://127.0.0.1:1/0", "image_queue")
    nowhere.set_clock(time.time())
    client = new_client(nowhere)
    for _ in range(50):
        with pytest.raises(QueueAway):
            client.ask(lambda: "A" * 200_000, "uint8", SHAPE)
    wait_for(lambda: client._given_up.empty(), seconds=1)


def test_a_full_queue_refuses_and_nothing_is_pushed(raw: redis.Redis, queue: JobQueue) -> None:
    push(raw, 3)
    client = new_client(queue, max_queue_length=3)
    for refused in (lambda: client.ask(lambda: "AAAA", "uint8", SHAPE), client.check_room):
        with pytest.raises(QueueFull, match="Too many images wait") as caught:
            refused()
        assert caught.value.retry_after_seconds >= 1
    assert raw.llen("image_queue") == 3
    raw.delete("image_queue")
    time.sleep(0.1)  # what was seen is good for no longer
    client.check_room()


def test_no_more_jobs_are_let_in_than_are_answered_in_time(
    raw: redis.Redis, queue: JobQueue, new_worker: NewWorker
) -> None:
    client = new_client(queue, max_queue_length=1000, timeout_seconds=2.0)
    worker = new_worker()
    push(raw, 40)
    until = time.monotonic() + 3
    refused = []
    while time.monotonic() < until:  # 4 jobs each 0.1 s are answered, 8 are offered
        time.sleep(0.1)
        worker.answer([answered(text) for text in worker.take(4).jobs])
        for _ in range(8):
            if not client.submit([new_job().to_text()]):
                refused.append(client._refusal().retry_after_seconds)
    assert max(refused) <= 4
    assert 20 < raw.llen("image_queue") < 60  # 40 a second are served: 1 of the 2 seconds is promised


def test_deadlines_go_by_redis_clock_and_not_by_this_machines(
    redis_server: RedisServer, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)  # this machine's clock is an hour ahead
    fresh = JobQueue(redis_server.url, "image_queue")
    client = QueueClient(fresh, max_queue_length=10, poll_seconds=0.05, timeout_seconds=0.2)  # it cancels nothing
    with pytest.raises(TimedOut):  # the very first request already
        client.ask(lambda: "AAAA", "uint8", SHAPE)
    assert abs(Job.from_text(raw.lindex("image_queue", 0)).deadline - real()) < 5
    fresh.close()
