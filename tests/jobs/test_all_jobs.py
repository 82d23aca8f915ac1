"""Asynchronous jobs of several queues by their ids alone, on a real Redis."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from conftest import Answering, RedisServer, new_job, wait_for

from serving.errors import QueueAway, UnknownJob
from serving.jobs.all_jobs import AllJobs
from serving.jobs.async_jobs import AsyncJobs
from serving.jobs.job import Status
from serving.jobs.job_queue import JobQueue
from serving.jobs.served import ServedNow

NAMES = ("image_queue", "image_queue:a", "image_queue:b")
UNKNOWN = "11111111-1111-4111-8111-111111111111"


def jobs_on(queue: JobQueue) -> AsyncJobs:
    return AsyncJobs(queue, ServedNow(queue), most_waiting=9, timeout_seconds=60, result_ttl_seconds=60)


@pytest.fixture
def queues(redis_server: RedisServer, raw: redis.Redis) -> Iterator[list[JobQueue]]:
    found = [JobQueue(redis_server.url, name, resend=True) for name in NAMES]
    yield found
    for queue in found:
        queue.close()


@pytest.fixture
def of_each(queues: list[JobQueue]) -> list[AsyncJobs]:
    return [jobs_on(queue) for queue in queues]


def test_a_job_is_found_in_its_queue_in_one_round_trip(
    queues: list[JobQueue], of_each: list[AsyncJobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [jobs.submit(new_job()).id for jobs in of_each]
    round_trips: list[int] = []
    for number, queue in enumerate(queues):
        exchange = queue.redis.exchange

        def note(*commands: Any, number: int = number, exchange: Any = exchange) -> Any:
            round_trips.append(number)
            return exchange(*commands)

        monkeypatch.setattr(queue.redis, "exchange", note)
    together = AllJobs(of_each)
    for number, job_id in enumerate(ids):
        assert together.look(job_id) == (number, of_each[number].look(job_id))
    assert len(round_trips) == 2 * len(ids)
    del round_trips[:]
    assert together.cancel(ids[1]).status == Status.CANCELED
    assert len(round_trips) == 1
    assert [together.look(job_id)[1].status for job_id in ids] == [Status.QUEUED, Status.CANCELED, Status.QUEUED]
    assert [queue.redis.llen(queue.keys.bulk.waiting) for queue in queues] == [1, 0, 1]


def test_its_answer_comes_with_what_travels_beside_it(redis_server: RedisServer, of_each: list[AsyncJobs]) -> None:
    stand_in = Answering(redis_server.url, queue=NAMES[2])
    try:
        job_id = of_each[2].submit(new_job()).id
        wait_for(lambda: of_each[2].look(job_id).is_over)
        number, state = AllJobs(of_each).look(job_id)
        assert (number, state) == (2, of_each[2].look(job_id))
        assert state.answer is not None
        assert state.status == Status.SUCCEEDED
        assert AllJobs(of_each).cancel(job_id) == state  # what is over stays as it is
    finally:
        stand_in.stop()


def test_what_no_queue_knows_is_unknown_even_if_an_answer_lies_under_its_id(
    raw: redis.Redis, of_each: list[AsyncJobs]
) -> None:
    before = set(raw.keys())
    for _ in range(2):
        for ask in AllJobs(of_each).look, AllJobs(of_each).cancel:
            with pytest.raises(UnknownJob, match="it has expired, or its id is another one"):
                ask(UNKNOWN)
        assert set(raw.keys()) == before
        raw.set(UNKNOWN, "[]")  # of a request that waits, and reads it itself
        before.add(UNKNOWN.encode())


def test_while_redis_is_away_nothing_is_said_of_a_job() -> None:
    away = AllJobs([jobs_on(JobQueue("redis://127.0.0.1:1/0", name)) for name in NAMES])
    with pytest.raises(QueueAway):
        away.look(UNKNOWN)
