"""The loop of a model server, on a real Redis; the model is a function here, so that it can fail on command."""

import base64
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import redis
from conftest import Counts, new_job, wait_for, wired

import helpers
from serving.batching.inbox import Inbox
from serving.batching.state import EXIT_STUCK
from serving.errors import ModelFailed, OutOfMemory, QueueAway
from serving.jobs import control
from serving.jobs.hand import TAKES_NOTHING
from serving.jobs.job import Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.jobs.model_side import ModelSide

GUILTY = 66
SHAPE = (1, 1, 3)


def image(value: int) -> str:
    return base64.b64encode(bytes([value] * 3)).decode()


class Model:
    """Answers with the pixel's value; remembers each batch; may be held up, or fail."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.are_rows: list[bool] = []  # of an array that was there already, for each batch
        self.free = threading.Event()
        self.free.set()
        self.busy = threading.Event()
        self.fails: Callable[[list[int]], None] = lambda _: None

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        values = pixels[:, 0, 0, 0].tolist()
        self.busy.set()
        self.wait()
        assert pixels[:, 0, 0, 0].tolist() == values  # nobody else may write there meanwhile
        self.batches.append(values)
        self.are_rows.append(pixels.base is not None)
        self.fails(values)
        return np.array(values, np.float32)[:, np.newaxis]

    def padding(self, images: int) -> int:
        return -images % 4

    def answer(self, probabilities: np.ndarray, *, top: int | None = None, index: bool = False) -> str:
        return json.dumps(probabilities.astype(int).tolist() + ([[top, index]] if top or index else []))

    def wait(self) -> None:
        self.free.wait(30)


def fails_on_the_guilty(values: list[int]) -> None:
    if GUILTY in values:
        raise ModelFailed("cannot do this one")


class Side(ModelSide):
    """Remembers the names under which the model server has joined."""

    def __init__(self, queue: JobQueue, lease_seconds: float) -> None:
        super().__init__(queue, lease_seconds=lease_seconds, max_attempts=3, result_ttl_seconds=60)
        self.members: list[Membership] = []

    def join(self) -> Membership:
        self.members.append(super().join())
        return self.members[-1]


class Running:
    def __init__(
        self, queue: JobQueue, lease_seconds: float = 10.0, batch_size: int = 8, model: Model | None = None
    ) -> None:
        self.model, self.counts, self.error = model or Model(), Counts(), None
        self.side, self.inbox = Side(queue, lease_seconds), Inbox(batch_size, SHAPE)
        self.loop = wired(self.side, self.model, self.counts, self.inbox, lease_seconds)
        self.thread = threading.Thread(target=self.run, daemon=True)

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.side.members]

    def run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self.loop.stop()
        self.model.free.set()
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()


@pytest.fixture
def start(queue: JobQueue) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(**options: object) -> Running:
        running = Running(queue, **options)  # type: ignore[arg-type]
        running.thread.start()
        started.append(running)
        return running

    yield start
    for running in started:
        running.stop()


def push(raw: redis.Redis, values: range | list[int], **changes: object) -> list[Job]:
    jobs = [new_job(image=image(value), **changes) for value in values]
    raw.rpush("image_queue", *[job.to_text() for job in jobs])
    return jobs


def answers(raw: redis.Redis, jobs: list[Job]) -> list[object]:
    return [json.loads(raw.get(job.id) or "null") for job in jobs]


def all_answered(raw: redis.Redis, jobs: list[Job]) -> bool:
    return all(raw.exists(job.id) for job in jobs)


def test_each_job_gets_its_own_answer(raw: redis.Redis, start: Callable[..., Running]) -> None:
    start()
    jobs = push(raw, range(50))
    wait_for(lambda: all_answered(raw, jobs))
    assert answers(raw, jobs) == [[value] for value in range(50)]


def test_each_job_gets_as_many_predictions_as_it_asks_for(raw: redis.Redis, start: Callable[..., Running]) -> None:
    start()
    jobs = push(raw, [1]) + push(raw, [2], top=3) + push(raw, [3], top=1000, index=True)
    wait_for(lambda: all_answered(raw, jobs))
    assert answers(raw, jobs) == [[1], [2, [3, False]], [3, [1000, True]]]


def test_the_message_tells_how_long_the_model_had_the_batch(
    raw: redis.Redis, start: Callable[..., Running], queue: JobQueue
) -> None:
    with queue.messages(queue.keys.channel("web")) as messages:
        start()
        jobs = push(raw, [1], reply_to=queue.keys.channel("web")) + push(raw, [2])
        told = json.loads(next(messages))
        assert told[jobs[0].id] == "[1]"
        assert 0 < told["about"]["model_ms"] < 60_000
        wait_for(lambda: all_answered(raw, jobs))


def test_the_log_names_the_request_whose_image_the_model_failed_on(
    raw: redis.Redis, start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    running = start()
    running.model.fails = fails_on_the_guilty
    jobs = push(raw, [GUILTY], request_id="from-the-browser")
    wait_for(lambda: all_answered(raw, jobs))
    assert f"the model failed on job {jobs[0].id} of request from-the-browser" in caplog.text


def test_while_the_model_is_busy_the_next_batch_fills(raw: redis.Redis, start: Callable[..., Running]) -> None:
    running = start(batch_size=8)
    running.model.free.clear()
    push(raw, [0])
    running.model.busy.wait(5)
    jobs = []
    for value in range(1, 9):  # one by one, as requests come
        jobs += push(raw, [value])
        time.sleep(0.01)
    wait_for(lambda: raw.llen("image_queue") == 0)
    running.model.free.set()
    wait_for(lambda: all_answered(raw, jobs))
    assert running.model.batches == [[0], list(range(1, 9))]


def test_what_comes_while_the_model_takes_a_batch_is_not_written_over(
    raw: redis.Redis, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_read, is_reading, turns = threading.Event(), threading.Event(), threading.Semaphore(0)
    really_decode = helpers.decode_image

    class OneByOne(Model):
        def wait(self) -> None:
            turns.acquire(timeout=10)

    def decode_slowly(text: str, *rest: object) -> np.ndarray:
        if text == image(2):
            is_reading.set()
            may_read.wait(10)
        return really_decode(text, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(helpers, "decode_image", decode_slowly)
    running = start(model=OneByOne())
    jobs = push(raw, [0])
    running.model.busy.wait(5)
    jobs += push(raw, [1])
    wait_for(lambda: raw.llen("image_queue") == 0)
    jobs += push(raw, [2, 3, 4])
    is_reading.wait(5)
    running.model.busy.clear()
    turns.release()  # 0 ends, 1 begins, without the others, which are read just now
    running.model.busy.wait(5)
    may_read.set()
    wait_for(lambda: len(running.inbox._items) == 3)
    running.model.busy.clear()
    turns.release()
    running.model.busy.wait(5)  # with 2, 3 and 4
    jobs += push(raw, range(5, 13))
    wait_for(lambda: len(running.inbox._items) == 8)
    turns.release(10)
    wait_for(lambda: all_answered(raw, jobs))
    assert answers(raw, jobs) == [[value] for value in range(13)]
    assert running.model.batches == [[0], [1], [2, 3, 4], list(range(5, 13))]
    assert all(running.model.are_rows)  # nothing had to be gathered when the model was free


class HeldWriter(Model):
    """The first answer is held up while it is written."""

    def __init__(self) -> None:
        super().__init__()
        self.is_writing, self.may_write = threading.Event(), threading.Event()
        self.writers: list[str] = []

    def answer(self, probabilities: np.ndarray, **asked: Any) -> str:
        if not self.is_writing.is_set():
            self.is_writing.set()
            self.may_write.wait(10)
        self.writers.append(threading.current_thread().name)
        return super().answer(probabilities, **asked)


def test_the_model_goes_on_while_answers_are_written_and_waits_before_they_pile_up(
    raw: redis.Redis, start: Callable[..., Running]
) -> None:
    model = HeldWriter()
    running = start(model=model)
    jobs = push(raw, [0])
    model.is_writing.wait(5)
    for value in range(1, 4):  # two wait to be written, the third in the predictor's hands
        jobs += push(raw, [value])
        wait_for(lambda: len(model.batches) == value + 1)  # noqa: B023
    jobs += push(raw, [4, 5])
    wait_for(lambda: raw.llen("image_queue") == 0)
    time.sleep(0.5)
    assert len(model.batches) == 4
    assert not any(raw.exists(job.id) for job in jobs)
    model.may_write.set()
    wait_for(lambda: all_answered(raw, jobs))
    assert answers(raw, jobs) == [[value] for value in range(6)]
    assert set(model.writers) == {"answerer"}
    assert running.side.members[0].is_lost is False


def test_a_queue_that_is_away_for_longer_than_a_hanging_model_may_be_is_waited_for(
    raw: redis.Redis, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While answers cannot be delivered the predictor waits, and the model is free: nothing hangs."""
    is_away = threading.Event()
    is_away.set()
    really_answer = Membership.answer
    exits = watch_exits(monkeypatch)

    def answer(member: Membership, outcomes: list[object]) -> bool:
        if is_away.is_set():
            raise QueueAway("cut") from ConnectionError("cut")
        return really_answer(member, outcomes)  # type: ignore[arg-type]

    monkeypatch.setattr(Membership, "answer", answer)
    running = start(lease_seconds=0.5, batch_size=1)
    jobs = push(raw, range(6))
    wait_for(lambda: len(running.model.batches) >= 4)
    time.sleep(2.0)  # four leases; the jobs in hand go round meanwhile
    is_away.clear()
    wait_for(lambda: all_answered(raw, jobs))
    assert exits == []
    assert running.error is None


def test_stopping_answers_what_is_yet_to_be_written(raw: redis.Redis, start: Callable[..., Running]) -> None:
    model = HeldWriter()
    running = start(model=model)
    jobs = push(raw, [1])
    model.is_writing.wait(5)
    jobs += push(raw, [2])
    wait_for(lambda: len(model.batches) == 2)
    running.loop.stop()
    model.may_write.set()
    running.stop()
    assert answers(raw, jobs) == [[1], [2]]
    assert running.side.members[0].in_hand == 0


def watch_exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which a loop would have ended this process."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    return statuses


@pytest.mark.parametrize("hangs", [False, True])
def test_an_answer_that_cannot_be_written_ends_the_process_and_leaves_its_job_to_the_lease(
    raw: redis.Redis, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    class Broken(HeldWriter):
        def answer(self, probabilities: np.ndarray, **asked: Any) -> str:
            super().answer(probabilities, **asked)
            raise ValueError("no label for this class")

    exits = watch_exits(monkeypatch)
    model = Broken()
    running = start(model=model, lease_seconds=0.5)
    (job, *_) = push(raw, [1])
    model.is_writing.wait(5)
    if hangs:
        model.free.clear()
        model.busy.clear()
        push(raw, [2])
        model.busy.wait(5)
    model.may_write.set()
    if hangs:
        wait_for(lambda: exits)
        assert exits == [EXIT_STUCK]
        model.free.set()
    running.thread.join(timeout=10)
    assert isinstance(running.error, ValueError)
    assert not raw.exists(job.id)
    assert raw.llen("{image_queue}:dead") == 0
    assert raw.llen(f"{{image_queue}}:processing:{running.names[0]}") == 1 + hangs  # the lease sees to it, and counts


def test_a_batch_counts_with_the_images_that_a_compiled_batch_ran_besides(
    raw: redis.Redis, start: Callable[..., Running]
) -> None:
    running = start()
    running.model.free.clear()
    jobs = push(raw, [1])
    running.model.busy.wait(5)
    jobs += push(raw, range(5))
    wait_for(lambda: not raw.llen("image_queue"))
    running.model.free.set()
    wait_for(lambda: all_answered(raw, jobs))
    assert running.counts.batches == [(1, 3), (5, 3)]


def test_a_job_that_killed_its_model_servers_counts_as_a_dead_letter_of_who_gave_it_up(
    raw: redis.Redis, start: Callable[..., Running], new_member: Callable[..., Membership]
) -> None:
    (job,) = push(raw, [1])
    raw.hset("{image_queue}:attempts", job.id, 2)
    dead = new_member()
    assert dead.take(1).jobs
    raw.zadd("{image_queue}:workers", {dead.name: 1})
    running = start()
    wait_for(lambda: raw.llen("{image_queue}:dead"))
    wait_for(lambda: running.counts.given_up)
    assert (running.counts.redelivered, running.counts.ends) == (0, [])


def test_an_idle_model_starts_at_once_with_what_is_there(raw: redis.Redis, start: Callable[..., Running]) -> None:
    running = start()
    for value in range(3):
        jobs = push(raw, [value])
        wait_for(lambda: all_answered(raw, jobs))  # noqa: B023
    assert running.model.batches == [[0], [1], [2]]


def test_a_guilty_job_fails_alone_and_its_batch_mates_are_answered(
    raw: redis.Redis, start: Callable[..., Running]
) -> None:
    running = start(batch_size=8)

    running.model.fails = fails_on_the_guilty
    jobs = push(raw, [1, 2, 3, GUILTY, 5, 6, 7, 8])
    wait_for(lambda: all_answered(raw, jobs))
    expected = [[1], [2], [3], {"error": "cannot do this one"}, [5], [6], [7], [8]]
    assert answers(raw, jobs) == expected
    assert [json.loads(text)["id"] for text in raw.lrange("{image_queue}:dead", 0, -1)] == [jobs[3].id]
    assert raw.keys("*processing*") == []


def test_out_of_memory_halves_the_batch_and_remembers(raw: redis.Redis, start: Callable[..., Running]) -> None:
    running = start(batch_size=8)

    def fails(values: list[int]) -> None:
        if len(values) > 3:
            raise OutOfMemory("too many")

    running.model.fails = fails
    jobs = push(raw, range(8))
    wait_for(lambda: all_answered(raw, jobs))
    before = len(running.model.batches)
    jobs += push(raw, range(8, 24))
    wait_for(lambda: all_answered(raw, jobs))
    assert answers(raw, jobs) == [[value] for value in range(24)]
    assert max(len(batch) for batch in running.model.batches[before:]) <= 2
    assert raw.llen("{image_queue}:dead") == 0


def test_a_broken_model_ends_the_process_and_blames_no_job(raw: redis.Redis, start: Callable[..., Running]) -> None:
    running = start()

    def fails(values: list[int]) -> None:
        raise ModelFailed("the GPU has fallen off the bus")

    running.model.fails = fails
    (job,) = push(raw, [1])
    running.thread.join(timeout=10)
    assert isinstance(running.error, ModelFailed)
    assert not raw.exists(job.id)
    assert raw.llen("{image_queue}:dead") == 0
    assert raw.llen(f"{{image_queue}}:processing:{running.names[0]}") == 1  # the lease sees to it, and counts


def test_a_job_past_its_deadline_is_dropped(raw: redis.Redis, start: Callable[..., Running]) -> None:
    running = start()
    late = push(raw, [1], deadline=time.time() - 1)
    in_time = push(raw, [2], deadline=time.time() + 60)
    wait_for(lambda: all_answered(raw, in_time))
    assert not raw.exists(late[0].id)
    assert running.model.batches == [[2]]
    assert raw.llen("{image_queue}:dead") == 0
    assert sorted(running.counts.ends) == ["answered", "expired"]


def test_garbage_in_the_queue_ends_as_dead_letters_and_stops_nothing(
    raw: redis.Redis, start: Callable[..., Running]
) -> None:
    start()
    garbage = [b"", b"{}", b"\xff\xfe\x00", b"[" * 10_000, b"x" * 1_000_000]
    for text in garbage:
        raw.rpush("image_queue", text)
    jobs = push(raw, [1, 2])
    wait_for(lambda: all_answered(raw, jobs))
    letters = [json.loads(text) for text in raw.lrange("{image_queue}:dead", 0, -1)]
    assert [letter["job"].encode("utf-8", "surrogateescape") for letter in letters] == garbage
    assert all(letter["reason"] for letter in letters)


def test_stopping_answers_what_is_predicted_and_gives_back_the_rest(
    raw: redis.Redis, start: Callable[..., Running]
) -> None:
    running = start(batch_size=2)
    running.model.free.clear()
    jobs = push(raw, range(6))
    running.model.busy.wait(5)
    wait_for(lambda: raw.llen("image_queue") == 2)  # two are predicted, two wait in the next batch
    running.loop.stop()
    running.stop()
    assert answers(raw, jobs)[:2] == [[0], [1]]
    left = [Job.from_text(text).id for text in raw.lrange("image_queue", 0, -1)]
    assert left == [job.id for job in jobs[2:]]
    assert raw.keys("*processing*") + raw.keys("*workers*") + raw.keys("*attempts*") == []


def test_a_hung_model_loses_its_jobs_and_harms_nothing_when_it_goes_on(
    raw: redis.Redis, start: Callable[..., Running]
) -> None:
    hung = start(lease_seconds=0.5)
    hung.model.free.clear()
    jobs = push(raw, [1, 2])
    hung.model.busy.wait(5)
    other = start(lease_seconds=0.5)
    wait_for(lambda: all_answered(raw, jobs))
    assert len(hung.names) == 1  # it took no more while it hung
    hung.model.free.set()
    wait_for(lambda: len(hung.names) == 2)  # … and joined under a fresh name
    more = push(raw, range(20))
    wait_for(lambda: all_answered(raw, more))
    assert answers(raw, jobs + more) == [[1], [2], *([value] for value in range(20))]
    assert {1, 2} <= {value for batch in other.model.batches for value in batch}
    assert (hung.counts.leases_lost, other.counts.leases_lost) == (1, 0)
    assert (hung.counts.redelivered, other.counts.redelivered) == (0, 2)


def test_a_busy_model_server_looks_at_the_queue_now_and_then_also_after_it_lost_a_lease(
    raw: redis.Redis, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(lease_seconds=5)
    jobs = push(raw, [1])
    running.model.free.clear()
    running.model.busy.wait(5)
    raw.zadd("{image_queue}:workers", {running.names[0]: 1})  # its answer will find the lease lost
    running.model.free.set()
    wait_for(lambda: len(running.names) == 2)
    running.model.free.clear()
    running.model.busy.clear()
    jobs += push(raw, [2])
    assert running.model.busy.wait(5)
    looks: list[int] = []
    really_move = JobQueue.move
    monkeypatch.setattr(JobQueue, "move", lambda *args: (looks.append(1), really_move(*args))[1])
    time.sleep(0.5)
    running.model.free.set()
    wait_for(lambda: all_answered(raw, jobs))
    assert 10 < len(looks) < 60  # every 20 ms, not all the time


def test_an_answer_whose_reply_was_lost_is_sent_again_and_everything_goes_on(
    raw: redis.Redis, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []
    really_run = JobQueue.run

    def run(queue: JobQueue, script: str, keys: list[str], args: list[object]) -> object:
        reply = really_run(queue, script, keys, args)
        if script == "answer" and len(lost) < 2:
            lost.append(1)
            raise QueueAway("cut") from ConnectionError("cut")
        return reply

    monkeypatch.setattr(JobQueue, "run", run)
    running = start(batch_size=2)
    jobs = push(raw, range(8))
    wait_for(lambda: all_answered(raw, jobs))
    assert answers(raw, jobs) == [[value] for value in range(8)]
    assert sum(len(batch) for batch in running.model.batches) == 8  # nothing was computed twice
    wait_for(lambda: not raw.keys("*processing*"))
    assert raw.get("{image_queue}:served") == b"8"


def test_a_model_that_hangs_for_good_ends_its_process(
    raw: redis.Redis, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    exits = watch_exits(monkeypatch)
    hung = start(lease_seconds=0.5)
    hung.model.free.clear()
    push(raw, [1])
    wait_for(lambda: exits)
    assert exits == [EXIT_STUCK]


def test_a_model_server_whose_name_was_taken_away_while_idle_goes_on(
    raw: redis.Redis, start: Callable[..., Running]
) -> None:
    running = start()
    wait_for(lambda: running.names)
    raw.delete("{image_queue}:workers")
    jobs = push(raw, [1])
    wait_for(lambda: all_answered(raw, jobs))
    assert len(running.names) == 2
    assert running.counts.leases_lost == 1


def test_a_paused_model_server_sleeps_whatever_waits_keeps_its_lease_and_goes_on(
    queue: JobQueue,
    raw: redis.Redis,
    start: Callable[..., Running],
    sent: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "serving.jobs.hand")
    running = start(lease_seconds=0.6)
    wait_for(lambda: running.names)
    control.pause(queue)
    wait_for(lambda: TAKES_NOTHING in caplog.messages)
    jobs = push(raw, range(20))
    raw.rpush(queue.keys.bulk.waiting, new_job(image=image(1)).to_text())
    sent.clear()
    time.sleep(1.5)  # two leases and more
    assert 1 < sent.count("EVAL") <= 25  # ten a second, and what is done every second
    assert not {"BLMOVE", "LMOVE"} & set(sent)
    assert len(running.names) == 1
    assert len(queue.model_server_names(expired=False)) == 1
    assert not any(answers(raw, jobs))
    control.resume(queue)
    wait_for(lambda: all_answered(raw, jobs) and not raw.exists(queue.keys.bulk.waiting))
    assert caplog.messages.count("takes jobs again") == 1
