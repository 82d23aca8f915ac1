"""Whose turn it is: people's jobs first, asynchronous ones when the model would wait, and now and then in any case."""

import json
from collections.abc import Callable, Iterator

import pytest
import redis
from conftest import new_job, wait_for
from test_loop import Model, Running, all_answered, answers, image, push

from serving.batching.lanes import Turns
from serving.jobs.job import Job, Lane
from serving.jobs.job_queue import JobQueue
from serving.jobs.model_queue import Taken

FIRST_OF_BULK = 200  # values from here on are asynchronous jobs
PEOPLE, BULK = Lane


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


def push_bulk(raw: redis.Redis, queue: JobQueue, count: int) -> list[Job]:
    jobs = [new_job(image=image(FIRST_OF_BULK + number)) for number in range(count)]
    for job in jobs:
        raw.hset(queue.keys.job(job.id), "status", "queued")
    raw.rpush(queue.keys.bulk.waiting, *[job.to_text() for job in jobs])
    return jobs


def took(lane: Lane, count: int, *, all_that_waited: bool = False, other_waits: bool = False) -> Taken:
    return Taken([b"{}"] * count, lane=lane, all_that_waited=all_that_waited, other_waits=other_waits)


def test_bulk_is_due_after_people_had_their_share_of_full_batches() -> None:
    turns = Turns(bulk_every=8)
    for _ in range(7):
        assert not turns.is_bulks(batch_size=4)
        turns.note(took(PEOPLE, 4, other_waits=True))
    assert turns.is_bulks(batch_size=4)
    turns.note(took(BULK, 1))
    assert not turns.is_bulks(batch_size=4)


def test_no_turn_goes_to_a_lane_where_nothing_waits() -> None:
    turns = Turns(bulk_every=2)
    turns.note(took(PEOPLE, 100, other_waits=False))
    assert not turns.is_bulks(batch_size=4)
    turns.note(took(PEOPLE, 1, other_waits=True))
    assert turns.is_bulks(batch_size=4)
    turns.note(took(BULK, 0))  # another model server was faster
    assert not turns.is_bulks(batch_size=4)


def test_bulk_keeps_its_turn_while_its_next_job_waits_for_empty_hands() -> None:
    turns = Turns(bulk_every=2)
    turns.note(took(PEOPLE, 4, other_waits=True))
    turns.note(Taken([], runs_alone=True, lane=BULK))
    assert turns.is_bulks(batch_size=4)
    turns.note(took(BULK, 1))
    assert not turns.is_bulks(batch_size=4)


@pytest.mark.parametrize(
    ("people", "model_waits", "last_bulk_seconds", "may"),
    [
        (took(PEOPLE, 0, other_waits=True), True, 5.0, True),
        (took(PEOPLE, 0, other_waits=True), False, 5.0, False),  # a person who comes now would wait for two batches
        (took(PEOPLE, 0, other_waits=True), False, None, False),
        (took(PEOPLE, 0, other_waits=True), False, 0.02, True),
        (took(PEOPLE, 1, other_waits=True), True, 0.02, False),
        (took(PEOPLE, 0, other_waits=False), True, 0.02, False),
        (Taken([], runs_alone=True, other_waits=True), True, 0.02, False),
    ],
)
def test_bulk_is_taken_only_where_no_person_would_wait_long(
    people: Taken, model_waits: bool, last_bulk_seconds: float | None, may: bool
) -> None:
    turns = Turns(bulk_every=8)
    turns.note(people)
    assert turns.may_take_bulk(people, model_waits=model_waits, last_bulk_seconds=last_bulk_seconds) is may


def test_an_idle_model_server_takes_asynchronous_jobs(
    raw: redis.Redis, queue: JobQueue, start: Callable[..., Running]
) -> None:
    start()
    jobs = push_bulk(raw, queue, 30)
    wait_for(lambda: all_answered(raw, jobs))
    assert answers(raw, jobs) == [[FIRST_OF_BULK + number] for number in range(30)]
    assert {raw.hget(queue.keys.job(job.id), "status") for job in jobs} == {b"succeeded"}
    assert "model_ms" in json.loads(raw.get(queue.keys.about(jobs[0].id)))


def test_behind_a_busy_model_only_peoples_jobs_are_taken(
    raw: redis.Redis, queue: JobQueue, start: Callable[..., Running]
) -> None:
    running = start(batch_size=8)
    running.model.free.clear()
    first = push(raw, [0])
    assert running.model.busy.wait(5)
    asynchronous = push_bulk(raw, queue, 20)
    people = push(raw, range(1, 9))
    wait_for(lambda: raw.llen("image_queue") == 0)
    assert queue.waiting(lane=Lane.BULK) == 20
    running.model.free.set()
    wait_for(lambda: all_answered(raw, first + people + asynchronous))
    assert running.model.batches[:2] == [[0], list(range(1, 9))]


def evals(raw: redis.Redis) -> int:
    """How many scripts Redis has run: a model server's look at a lane is one."""
    return int(raw.info("commandstats")["cmdstat_eval"]["calls"])


def test_a_quick_batch_of_people_says_nothing_of_how_long_a_batch_of_bulk_takes(
    raw: redis.Redis, queue: JobQueue, start: Callable[..., Running]
) -> None:
    running = start(batch_size=8)
    quick = push(raw, [0])
    wait_for(lambda: all_answered(raw, quick))
    running.model.busy.clear()
    running.model.free.clear()
    push_bulk(raw, queue, 24)
    assert running.model.busy.wait(5)
    looks = evals(raw)
    wait_for(lambda: evals(raw) > looks + 4 or queue.waiting(lane=Lane.BULK) < 16)
    person = push(raw, [1])
    wait_for(lambda: raw.llen("image_queue") == 0, seconds=5)  # no second batch of bulk took its place in the inbox
    running.model.free.set()
    wait_for(lambda: all_answered(raw, person))
    assert running.model.batches[0] == [0]
    assert running.model.batches[2] == [1]


class SlowStart(Model):
    """Begins once the test has filled both lanes."""

    def __init__(self) -> None:
        super().__init__()
        self.free.clear()


def test_neither_lane_starves_the_other(raw: redis.Redis, queue: JobQueue, start: Callable[..., Running]) -> None:
    running = start(batch_size=4, model=SlowStart())
    people = push(raw, [number % FIRST_OF_BULK for number in range(150)])
    asynchronous = push_bulk(raw, queue, 50)
    running.model.free.set()
    wait_for(lambda: all_answered(raw, people + asynchronous))
    order = [value >= FIRST_OF_BULK for batch in running.model.batches for value in batch]
    end_of_people = max(place for place, is_bulk in enumerate(order) if not is_bulk)
    shares = [sum(order[start : start + 32]) for start in range(0, end_of_people - 32, 32)]
    assert all(1 <= share <= 12 for share in shares), shares  # about one batch in eight, which is 4 jobs


def test_a_suspicious_asynchronous_job_runs_alone_though_people_keep_coming(
    raw: redis.Redis, queue: JobQueue, start: Callable[..., Running]
) -> None:
    running = start(batch_size=4, model=SlowStart())
    people = push(raw, range(150))
    jobs = push_bulk(raw, queue, 1)
    raw.hset(queue.keys.attempts, jobs[0].id, 1)
    running.model.free.set()
    wait_for(lambda: all_answered(raw, people + jobs))
    place = running.model.batches.index([FIRST_OF_BULK])
    assert place < len(running.model.batches) - 10


def test_a_canceled_job_never_meets_the_model(raw: redis.Redis, queue: JobQueue, start: Callable[..., Running]) -> None:
    canceled, other = push_bulk(raw, queue, 2)
    raw.hset(queue.keys.job(canceled.id), "canceled", "1")
    running = start()
    wait_for(lambda: raw.hget(queue.keys.job(other.id), "status") == b"succeeded")
    assert raw.hget(queue.keys.job(canceled.id), "status") == b"canceled"
    assert running.model.batches == [[FIRST_OF_BULK + 1]]
    wait_for(lambda: sorted(running.counts.ends) == ["answered", "canceled"])


def test_an_asynchronous_job_past_its_deadline_says_so(
    raw: redis.Redis, queue: JobQueue, start: Callable[..., Running]
) -> None:
    running = start()
    job = new_job(image=image(1), deadline=1.0)
    raw.hset(queue.keys.job(job.id), "status", "queued")
    raw.rpush(queue.keys.bulk.waiting, job.to_text())
    wait_for(lambda: raw.hget(queue.keys.job(job.id), "status") == b"failed")
    assert b"expired" in raw.hget(queue.keys.job(job.id), "error")
    assert running.model.batches == []
    wait_for(lambda: running.counts.ends == ["expired"])


def test_stopping_gives_asynchronous_jobs_back(
    raw: redis.Redis, queue: JobQueue, start: Callable[..., Running]
) -> None:
    running = start(batch_size=2)
    running.model.free.clear()
    jobs = push_bulk(raw, queue, 6)
    assert running.model.busy.wait(5)
    running.stop()
    states = [raw.hget(queue.keys.job(job.id), "status") for job in jobs]
    assert states == [b"succeeded"] * 2 + [b"queued"] * 4
    assert queue.waiting(lane=Lane.BULK) == 4
