"""Asynchronous jobs on a real Redis: submit, look, cancel, wait; an Idempotency-Key is one job."""

import itertools
import threading
import time
import uuid
from collections.abc import Callable

import pytest
import redis
from conftest import RedisServer, keys, new_job, wait_for

from serving.errors import KeyReused, QueueAway, QueueFull, UnknownJob
from serving.jobs.async_jobs import AsyncJobs, Idempotency
from serving.jobs.job import Answer, Job, Lane, Outcome, Status
from serving.jobs.job_queue import JobQueue
from serving.jobs.model_side import ModelSide
from serving.jobs.operator import read_letters, requeue
from serving.jobs.served import ServedNow
from serving.jobs.watch import Watch

BULK = "{image_queue}:bulk"
NewJobs = Callable[..., AsyncJobs]


@pytest.fixture
def new_jobs(queue: JobQueue) -> NewJobs:
    def new(on: JobQueue = queue, **changes: object) -> AsyncJobs:
        options = {"most_waiting": 10, "timeout_seconds": 60.0, "result_ttl_seconds": 60} | changes
        return AsyncJobs(on, ServedNow(on), **options)  # type: ignore[arg-type]

    return new


def hash_of(job_id: str) -> str:
    return f"{{image_queue}}:job:{job_id}"


def waiting(raw: redis.Redis) -> list[str]:
    return [Job.from_text(text).id for text in raw.lrange(BULK, 0, -1)]


class ModelServer:
    """Takes asynchronous jobs, one at a time, and ends them."""

    def __init__(self, queue: JobQueue) -> None:
        self.member = ModelSide(queue, lease_seconds=30, max_attempts=3, result_ttl_seconds=5).join()

    def take(self) -> str:
        (self.text,) = self.member.take(1, lane=Lane.BULK).jobs
        return Job.from_text(self.text).id

    def end(self, answer: str | None = "[]", failure: str | None = None) -> None:
        job_id = Job.from_text(self.text).id
        self.member.answer([Outcome(self.text, job_id, answer=answer, failure=failure, lane=Lane.BULK)])

    def take_and_end(self) -> str:
        job_id = self.take()
        self.end()
        return job_id


@pytest.fixture
def server(queue: JobQueue) -> ModelServer:
    return ModelServer(queue)


# The life of a job.


def test_a_job_is_told_of_from_its_submission_to_its_answer_by_any_process(
    new_jobs: NewJobs, server: ModelServer, redis_server: RedisServer
) -> None:
    one, other = new_jobs(), new_jobs(JobQueue(redis_server.url, "image_queue", resend=True))
    job = new_job()
    state = one.submit(job)
    assert (state.id, state.status, state.is_over) == (job.id, Status.QUEUED, False)
    assert other.look(job.id) == state
    assert server.take() == job.id
    assert other.look(job.id).status == Status.PROCESSING
    server.end('[{"label": "a"}]')
    ended = other.look(job.id)
    assert (ended.status, ended.is_over) == (Status.SUCCEEDED, True)
    assert ended.answer == Answer('[{"label": "a"}]')
    assert ended.expires_at == state.expires_at


def test_a_job_that_failed_tells_its_error(new_jobs: NewJobs, server: ModelServer) -> None:
    jobs, job = new_jobs(), new_job()
    jobs.submit(job)
    server.take()
    server.end(failure="The model failed.")
    state = jobs.look(job.id)
    assert (state.status, state.answer) == (Status.FAILED, Answer('{"error": "The model failed."}'))


def test_the_job_that_travels_has_its_deadline_and_no_channel(new_jobs: NewJobs, raw: redis.Redis) -> None:
    state = new_jobs(timeout_seconds=100, result_ttl_seconds=50).submit(new_job(reply_to="x", top=3))
    job = Job.from_text(raw.lindex(BULK, 0))
    assert 95 < job.deadline - time.time() < 105
    assert (job.reply_to, job.top, job.id) == (None, 3, state.id)
    assert state.expires_at == pytest.approx(job.deadline + 50, abs=0.01)
    assert job.submitted_at == pytest.approx(job.deadline - 100, abs=0.01)


def test_whatever_a_job_leaves_in_redis_has_its_lifetime(
    new_jobs: NewJobs, server: ModelServer, raw: redis.Redis
) -> None:
    before = keys(raw)
    job_id = new_jobs(timeout_seconds=100, result_ttl_seconds=50).submit(new_job(), Idempotency("d", "f")).id
    server.take_and_end()
    left = keys(raw) - before - {"{image_queue}:bulk:served", "{image_queue}:bulk:emptied"}
    assert left == {hash_of(job_id), "{image_queue}:idem:d", job_id, f"{{image_queue}}:about:{job_id}"}
    assert all(145 <= raw.ttl(key) <= 151 for key in left)


def test_a_job_is_unknown_once_it_has_expired(new_jobs: NewJobs, raw: redis.Redis) -> None:
    jobs = new_jobs()
    for job_id in (str(uuid.uuid4()), jobs.submit(new_job()).id):
        raw.delete(hash_of(job_id))
        with pytest.raises(UnknownJob, match=job_id):
            jobs.look(job_id)
        with pytest.raises(UnknownJob):
            jobs.cancel(job_id)
    gone = jobs.submit(new_job()).id
    raw.hset(hash_of(gone), "status", "succeeded")  # and its answer was evicted
    with pytest.raises(UnknownJob):
        jobs.look(gone)


@pytest.mark.parametrize(("status", "grace"), [("queued", 0), ("processing", 60)])
def test_a_job_that_nobody_answers_fails_after_its_deadline_and_stays_failed(
    new_jobs: NewJobs, raw: redis.Redis, status: str, grace: int
) -> None:
    jobs, job = new_jobs(), new_job()
    jobs.submit(job)
    raw.hset(hash_of(job.id), mapping={"status": status, "deadline": time.time() - grace + 5})
    assert jobs.look(job.id).status == status
    raw.hset(hash_of(job.id), "deadline", time.time() - grace - 0.1)
    state = jobs.look(job.id)
    assert (state.status, state.error) == (Status.FAILED, raw.hget(hash_of(job.id), "error").decode())
    assert "expired" in state.error
    assert raw.hget(hash_of(job.id), "status") == b"failed"  # so that no model server begins with it
    assert jobs.cancel(job.id).status == Status.FAILED


# Room.


def test_a_full_lane_refuses_and_leaves_nothing_behind(
    new_jobs: NewJobs, server: ModelServer, raw: redis.Redis
) -> None:
    jobs = new_jobs(most_waiting=2)
    accepted = [jobs.submit(new_job()).id for _ in range(2)]
    before = keys(raw)
    with pytest.raises(QueueFull, match="Too many asynchronous jobs") as refused:
        jobs.submit(new_job(), Idempotency("d", "f"))
    assert refused.value.retry_after_seconds == 10
    with pytest.raises(QueueFull):
        jobs.find(Idempotency("d", "f"))
    assert keys(raw) == before
    assert waiting(raw) == accepted
    server.take()
    assert jobs.find(None) is None
    jobs.submit(new_job(), Idempotency("d", "f"))


def test_the_bound_holds_when_many_submit_at_once(new_jobs: NewJobs, raw: redis.Redis) -> None:
    jobs, refused = new_jobs(most_waiting=7), []

    def submit() -> None:
        try:
            jobs.submit(new_job())
        except QueueFull as error:
            refused.append(error)

    in_threads([submit] * 20)
    assert (len(waiting(raw)), len(refused)) == (7, 13)
    assert len(raw.keys(hash_of("*"))) == 7


@pytest.mark.parametrize("key", [None, Idempotency("d", "f")])
@pytest.mark.parametrize("most_waiting", [1, 10])
def test_a_command_that_is_sent_twice_makes_one_job(
    new_jobs: NewJobs, raw: redis.Redis, queue: JobQueue, key: Idempotency | None, most_waiting: int
) -> None:
    jobs, job = new_jobs(most_waiting=most_waiting), new_job()
    exchange = queue.redis.exchange

    def twice(*commands: object) -> list[object]:
        exchange(*commands)  # its reply is lost
        return exchange(*commands)

    queue.redis.exchange = twice  # type: ignore[method-assign,assignment]
    assert jobs.submit(job, key).status == Status.QUEUED
    assert waiting(raw) == [job.id]
    assert key is None or jobs.find(key) == job.id


# Cancel.


def test_a_job_that_waits_leaves_its_lane_when_it_is_canceled_and_the_others_stay(
    new_jobs: NewJobs, raw: redis.Redis
) -> None:
    jobs = new_jobs(most_waiting=100)
    ids = [jobs.submit(new_job()).id for _ in range(21)]
    raw.hset("{image_queue}:attempts", ids[7], 1)
    for canceled in (ids[0], ids[20], ids[10], ids[7]):
        assert jobs.cancel(canceled).status == Status.CANCELED
        assert jobs.cancel(canceled).status == Status.CANCELED  # again is no error
        ids.remove(canceled)
        assert waiting(raw) == ids
    assert raw.hgetall("{image_queue}:attempts") == {}


def test_a_job_that_stands_out_of_order_is_canceled_all_the_same(new_jobs: NewJobs, raw: redis.Redis) -> None:
    jobs = new_jobs()
    ids = [jobs.submit(new_job()).id for _ in range(5)]
    raw.lmove(BULK, BULK, "LEFT", "RIGHT")  # as an operator who requeues the first one's dead letter
    for job_id in ids:
        assert jobs.cancel(job_id).status == Status.CANCELED
    assert all(raw.hget(hash_of(job_id), "canceled") == b"1" for job_id in ids)


def test_a_cancel_is_final_for_a_job_in_a_model_servers_hands(
    new_jobs: NewJobs, server: ModelServer, raw: redis.Redis
) -> None:
    jobs, job = new_jobs(), new_job()
    jobs.submit(job)
    server.take()
    state = jobs.cancel(job.id)
    assert (state.status, state.answer, state.is_over) == (Status.CANCELED, None, True)
    server.end()
    assert jobs.look(job.id) == state
    assert raw.get(job.id) is None


def test_a_job_whose_cancel_missed_it_in_its_lane_is_dropped_as_it_is_taken(
    new_jobs: NewJobs, server: ModelServer, raw: redis.Redis
) -> None:
    jobs = new_jobs()
    ids = [jobs.submit(new_job()).id for _ in range(3)]
    raw.lmove(BULK, BULK, "LEFT", "RIGHT")
    jobs.cancel(ids[0])
    assert waiting(raw) == [*ids[1:], ids[0]]
    taken = server.member.take(3, lane=Lane.BULK)
    assert taken.ended == {2}


def test_a_job_that_an_operator_requeued_waits_without_a_deadline(
    new_jobs: NewJobs, server: ModelServer, raw: redis.Redis, queue: JobQueue
) -> None:
    jobs, (one, other) = new_jobs(), (new_job(), new_job())
    for job in (one, other):
        jobs.submit(job)
        server.take()
        server.end(failure="The model failed.")
        raw.hset(hash_of(job.id), "deadline", 1)
    for letter in read_letters(queue):
        assert requeue(queue, letter)
    assert [jobs.look(job.id).status for job in (one, other)] == ["queued", "queued"]
    assert jobs.cancel(other.id).status == Status.CANCELED
    assert waiting(raw) == [one.id]
    server.take_and_end()
    assert jobs.look(one.id).status == Status.SUCCEEDED


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_a_job_that_is_over_cannot_be_canceled(
    new_jobs: NewJobs, server: ModelServer, raw: redis.Redis, status: str
) -> None:
    jobs, job = new_jobs(), new_job()
    jobs.submit(job)
    server.take()
    server.end(failure="x" if status == "failed" else None)
    assert jobs.cancel(job.id).status == status
    assert raw.hget(hash_of(job.id), "canceled") is None


# Idempotency-Key.


def test_the_same_key_is_the_same_job_through_all_its_life(
    new_jobs: NewJobs, server: ModelServer, raw: redis.Redis
) -> None:
    jobs, key = new_jobs(), Idempotency("d", "f")
    assert jobs.find(key) is None
    first = jobs.submit(new_job(), key)
    assert jobs.find(key) == first.id
    assert jobs.submit(new_job(), key).id == first.id
    server.take_and_end()
    assert jobs.submit(new_job(), key).status == Status.SUCCEEDED
    assert waiting(raw) == []
    assert jobs.submit(new_job(), Idempotency("another", "f")).id != first.id


def test_the_same_key_with_another_request_is_refused(new_jobs: NewJobs, raw: redis.Redis) -> None:
    jobs = new_jobs()
    jobs.submit(new_job(), Idempotency("d", "f"))
    for refused in (lambda: jobs.find(Idempotency("d", "g")), lambda: jobs.submit(new_job(), Idempotency("d", "g"))):
        with pytest.raises(KeyReused, match="another image"):
            refused()
    assert len(waiting(raw)) == 1


def test_a_key_finds_its_job_while_the_lane_is_full(new_jobs: NewJobs, raw: redis.Redis) -> None:
    jobs, key = new_jobs(most_waiting=1), Idempotency("d", "f")
    job_id = jobs.submit(new_job(), key).id
    assert jobs.find(key) == job_id
    assert jobs.submit(new_job(), key).id == job_id


def test_of_many_at_once_with_one_key_one_makes_the_job(
    new_jobs: NewJobs, raw: redis.Redis, redis_server: RedisServer
) -> None:
    processes = [new_jobs(JobQueue(redis_server.url, "image_queue", resend=True)) for _ in range(2)]
    ids: list[str] = []
    turns = itertools.cycle(processes)
    in_threads([lambda: ids.append(next(turns).submit(new_job(), Idempotency("d", "f")).id)] * 20)
    assert len(ids) == 20
    assert set(ids) == set(waiting(raw))
    assert len(waiting(raw)) == 1


def in_threads(targets: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# Redis.


def test_a_redis_without_room_refuses_the_job_and_still_cancels_and_tells() -> None:
    server = RedisServer("--maxmemory-policy", "noeviction")
    try:
        queue = JobQueue(server.url, "image_queue", resend=True)
        jobs = AsyncJobs(queue, ServedNow(queue), most_waiting=9, timeout_seconds=60, result_ttl_seconds=60)
        first, second = (jobs.submit(new_job()).id for _ in range(2))
        server.client.config_set("maxmemory", 1)
        with pytest.raises(QueueAway):
            jobs.submit(new_job(), Idempotency("d", "f"))
        assert server.client.keys("{image_queue}:idem:*") == []
        assert jobs.cancel(first).status == Status.CANCELED
        server.client.config_set("maxmemory", 0)
        server.client.hset(hash_of(second), "deadline", 1)
        server.client.config_set("maxmemory", 1)
        assert jobs.look(second).status == Status.FAILED
    finally:
        server.remove()


def test_jobs_outlive_a_redis_that_is_killed_and_started_again() -> None:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    try:
        queue = JobQueue(server.url, "image_queue", resend=True)
        jobs = AsyncJobs(queue, ServedNow(queue), most_waiting=9, timeout_seconds=60, result_ttl_seconds=60)
        ended, waits = (jobs.submit(new_job(), Idempotency(name, "f")).id for name in "ew")
        assert ModelServer(JobQueue(server.url, "image_queue")).take_and_end() == ended
        server.process.kill()
        server.process.wait()
        server.start()
        assert jobs.look(waits).status == Status.QUEUED
        assert jobs.look(ended).answer == Answer("[]")
        assert [jobs.find(Idempotency(name, "f")) for name in "we"] == [waits, ended]
        assert waiting(server.client) == [waits]
    finally:
        server.remove()


# Waiting.


def test_many_wait_for_many_jobs_and_one_look_a_turn_wakes_them(
    new_jobs: NewJobs, server: ModelServer, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = new_jobs(most_waiting=100)
    watch, looks, over = Watch(jobs), [], jobs.over
    monkeypatch.setattr(jobs, "over", lambda ids: looks.append(len(ids)) or over(ids))
    ids = [jobs.submit(new_job()).id for _ in range(30)]
    woken: list[str] = []

    def wait(job_id: str) -> None:
        with watch.watching(job_id) as event:
            assert event.wait(10)
            woken.append(job_id)

    threads = [threading.Thread(target=wait, args=(job_id,)) for job_id in [*ids, *ids]]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(watch._events) == 30)
    watch.look()
    assert woken == []
    for _ in range(10):
        server.take_and_end()
    jobs.cancel(ids[10])
    raw.delete(hash_of(ids[11]))
    watch.look()
    wait_for(lambda: sorted(woken) == sorted(ids[:12] * 2))
    assert looks == [30, 30]
    for _ in ids[12:]:
        raw.delete(hash_of(ids.pop()))
    watch.look()
    for thread in threads:
        thread.join()
    assert watch._events == {}


def test_who_waits_is_woken_soon_and_a_redis_that_is_away_is_waited_for(new_jobs: NewJobs, server: ModelServer) -> None:
    jobs = new_jobs()
    watch = Watch(jobs)
    watch.start()
    job_id = jobs.submit(new_job()).id
    failures = iter([QueueAway("away"), RuntimeError("a bug")])
    over = jobs.over

    def fail_twice(ids: list[str]) -> set[str]:
        for failure in failures:
            raise failure
        return over(ids)

    jobs.over = fail_twice  # type: ignore[method-assign,assignment]
    with watch.watching(job_id) as event:
        assert not event.wait(0.3)
        server.take_and_end()
        assert event.wait(5)
    wait_for(lambda: not watch._some_wait.is_set())  # nobody waits, and nobody looks
