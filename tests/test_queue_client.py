"""The web server's side of the queue, on a real Redis: submitted, answered, given up, refused."""

import json
import threading
import time
from collections.abc import Callable

import pytest
import redis
from conftest import RedisServer, answered, keys, new_job, push, wait_for

from serving.errors import ClientGone, QueueAway, QueueFull, TimedOut, UndecodableImage
from serving.job_queue import Job, JobQueue
from serving.queue_client import ENCODERS, QueueClient
from serving.queue_worker import QueueWorker

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


def ask_in_threads(client: QueueClient, requests: list[Callable[[], str]]) -> tuple[list[threading.Thread], list[str]]:
    """Ask for all of them, one after the other; how each ends is in the list once its thread has."""
    ends = [""] * len(requests)

    def ask(place: int) -> None:
        try:
            ends[place] = client.ask(requests[place], "uint8", SHAPE)
        except Exception as error:
            ends[place] = type(error).__name__

    threads = [threading.Thread(target=ask, args=[place]) for place in range(len(requests))]
    for place, thread in enumerate(threads):
        thread.start()
        wait_for(lambda: len(client._waiting) > place or not thread.is_alive())  # noqa: B023
    return threads, ends


def test_those_that_wait_for_an_encoder_are_submitted_together_and_fail_alone(
    raw: redis.Redis, queue: JobQueue, new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[int] = []
    submit = queue.submit
    monkeypatch.setattr(queue, "submit", lambda jobs, most: submitted.append(len(jobs)) or submit(jobs, most))
    client = new_client(queue, max_queue_length=10)
    held = [Held() for _ in range(ENCODERS)]

    def broken() -> str:
        raise UndecodableImage("broken")

    quick = [lambda: "AAAA", broken, *[lambda: "AAAA"] * 8]
    threads, ends = ask_in_threads(client, [*held, *quick])
    assert [one.began for one in held] == [1] * ENCODERS
    assert submitted == []  # the others wait for a place
    for one in held:
        one.may_go_on.set()
    wait_for(lambda: sorted(end for end in ends if end) == ["QueueFull", "UndecodableImage"])
    assert raw.llen("image_queue") == 10
    assert sum(submitted) == 11
    assert max(submitted) > 1
    worker = new_worker()
    worker.answer([answered(text, '["yes"]') for text in worker.take(10).jobs])
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["QueueFull", "UndecodableImage", *['["yes"]'] * 10]


def test_a_request_that_ends_before_its_image_is_encoded_costs_no_more(raw: redis.Redis, queue: JobQueue) -> None:
    client = new_client(queue, timeout_seconds=0.3)
    held = [Held() for _ in range(ENCODERS)]
    late = Held()
    threads, ends = ask_in_threads(client, [*held, late])
    threads[-1].join()
    assert ends[-1] == "TimedOut"
    for one in held:
        one.may_go_on.set()
    for thread in threads:
        thread.join()
    assert ends == ["TimedOut"] * (ENCODERS + 1)
    wait_for(lambda: keys(raw) == set())  # what was submitted after its request had ended is taken out again
    assert late.began == 0


def test_whoever_submits_together_hears_that_redis_is_away() -> None:
    nowhere = JobQueue("redis://127.0.0.1:1/0", "image_queue")
    nowhere.set_clock(time.time())
    client = new_client(nowhere)
    held = [Held() for _ in range(ENCODERS)]
    threads, ends = ask_in_threads(client, [*held, *[lambda: "AAAA"] * 5])
    for one in held:
        one.may_go_on.set()
    for thread in threads:
        thread.join(timeout=5)
    assert ends == ["QueueAway"] * (ENCODERS + 5)


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
