"""Lane bulk, in which asynchronous jobs wait: the guarantee of people's jobs, and a status that outlives them."""

import json
import time
from collections.abc import Callable

import pytest
import redis
from conftest import answered, keys, new_job

from serving.jobs import operator
from serving.jobs.job import Job, Lane, Outcome, Status
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import FORGET_NAME_SECONDS, Membership

NewMember = Callable[..., Membership]

HASH_SECONDS = 7200
BULK = "{image_queue}:bulk"


def put(raw: redis.Redis, queue: JobQueue, count: int = 1, *, has_hash: bool = True, **changes: object) -> list[Job]:
    """Put asynchronous jobs into lane bulk, as a web process does."""
    jobs = [new_job(**changes) for _ in range(count)]
    for job in jobs:
        if has_hash:
            raw.hset(queue.keys.job(job.id), mapping={"status": "queued", "submitted_at": "1.5"})
            raw.expire(queue.keys.job(job.id), HASH_SECONDS)
    assert queue.submit([job.to_text() for job in jobs], 100, lane=Lane.BULK)[0] == count
    return jobs


def take(member: Membership, most: int = 8) -> list[bytes]:
    return member.take(most, lane=Lane.BULK).jobs


def bulk_answer(text: bytes, answer: str = "[]") -> Outcome:
    return Outcome(text, Job.from_text(text).id, answer=answer, lane=Lane.BULK, model_ms=12.3456)


def status(raw: redis.Redis, queue: JobQueue, job: Job) -> str | None:
    value = raw.hget(queue.keys.job(job.id), "status")
    return value.decode() if value is not None else None


def end_lease(raw: redis.Redis, queue: JobQueue, member: Membership) -> None:
    raw.zadd(queue.keys.leases, {member.name: queue.now() - 1})


def test_an_asynchronous_job_is_answered_for_as_long_as_its_hash_lives(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    (job,) = put(raw, queue)
    member = new_member()
    (text,) = take(member)
    assert status(raw, queue, job) == Status.PROCESSING
    assert member.answer([bulk_answer(text, '["beagle"]')])
    assert status(raw, queue, job) == Status.SUCCEEDED
    assert raw.get(job.id) == b'["beagle"]'
    assert json.loads(raw.get(queue.keys.about(job.id))) == {"model_ms": 12.346}
    for key in (job.id, queue.keys.about(job.id), queue.keys.job(job.id)):
        assert HASH_SECONDS - 60 < raw.ttl(key) <= HASH_SECONDS
    assert raw.get(queue.keys.bulk.settled_total) == b"1"
    assert raw.get(queue.keys.people.settled_total) is None
    assert raw.hgetall(queue.keys.bulk.settled_by_server) == {member.name.encode(): b"1"}


def test_a_job_whose_hash_is_gone_is_answered_like_any_other(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    (job,) = put(raw, queue, has_hash=False)
    member = new_member()
    member.answer([bulk_answer(text) for text in take(member)])
    assert raw.get(job.id) == b"[]"
    assert 0 < raw.ttl(job.id) <= 60
    assert raw.exists(queue.keys.job(job.id)) == 0


def test_a_failure_and_an_expired_job_say_why(raw: redis.Redis, queue: JobQueue, new_member: NewMember) -> None:
    broken, late = put(raw, queue, 2)
    member = new_member()
    texts = take(member)
    failed = Outcome(texts[0], broken.id, failure="The model failed on it.", lane=Lane.BULK)
    assert member.answer([failed, Outcome(texts[1], late.id, lane=Lane.BULK)])
    assert raw.hmget(queue.keys.job(broken.id), "status", "error") == [b"failed", b"The model failed on it."]
    ended, why = raw.hmget(queue.keys.job(late.id), "status", "error")
    assert (ended, b"expired" in why) == (b"failed", True)
    assert json.loads(raw.get(broken.id)) == {"error": "The model failed on it."}
    assert raw.exists(late.id) == 0


def test_a_canceled_job_is_not_run(raw: redis.Redis, queue: JobQueue, new_member: NewMember) -> None:
    canceled, other = put(raw, queue, 2)
    raw.hset(queue.keys.job(canceled.id), "canceled", "1")
    member = new_member()
    taken = member.take(8, lane=Lane.BULK)
    assert (len(taken.jobs), taken.ended) == (2, {0})
    assert status(raw, queue, canceled) == Status.CANCELED
    assert member.answer([Outcome(taken.jobs[0], canceled.id, lane=Lane.BULK), bulk_answer(taken.jobs[1])])
    assert [status(raw, queue, job) for job in (canceled, other)] == [Status.CANCELED, Status.SUCCEEDED]
    assert raw.hexists(queue.keys.job(canceled.id), "error") == 0
    assert member.in_hand == 0


def test_a_job_that_is_canceled_while_the_model_runs_has_no_answer(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    (job,) = put(raw, queue)
    member = new_member()
    (text,) = take(member)
    raw.hset(queue.keys.job(job.id), "canceled", "1")
    assert member.answer([bulk_answer(text)])
    assert status(raw, queue, job) == Status.CANCELED
    assert raw.exists(job.id, queue.keys.about(job.id)) == 0


def test_the_first_answer_counts(raw: redis.Redis, queue: JobQueue, new_member: NewMember) -> None:
    (job,) = put(raw, queue)
    slow, fast = new_member(), new_member()
    (text,) = take(slow)
    end_lease(raw, queue, slow)
    assert fast.return_expired().jobs == 1
    assert not slow.answer([bulk_answer(text, '["first"]')])  # it was taken for dead, and answers all the same
    taken = fast.take(1, lane=Lane.BULK)
    assert (taken.jobs, taken.attempts, taken.ended) == ([text], 1, {0})  # nobody need compute it again
    assert fast.answer([bulk_answer(text, '["second"]')])
    assert (raw.get(job.id), status(raw, queue, job)) == (b'["first"]', Status.SUCCEEDED)


def test_a_model_server_taken_for_dead_says_nothing_of_jobs_that_others_have(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    """Between the take and what it writes of its jobs, others may have returned them."""
    (job,) = put(raw, queue)
    member = new_member()
    end_lease(raw, queue, member)
    assert queue.run("begin", [queue.keys.leases, queue.keys.job(job.id)], [member.name]) == [0]
    assert status(raw, queue, job) == Status.QUEUED


@pytest.mark.parametrize("ends", ["dies", "leaves"])
def test_jobs_go_back_to_the_head_of_the_lane_that_they_came_from(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, ends: str
) -> None:
    asynchronous = put(raw, queue, 3)
    people = [new_job() for _ in range(3)]
    queue.submit([job.to_text() for job in people], 100)
    member = new_member()
    member.take(2)
    take(member, 2)
    assert member.in_hand == 4
    if ends == "leaves":
        assert member.leave() == 4
    else:
        end_lease(raw, queue, member)
        assert new_member().return_expired().jobs == 4
    assert raw.lrange("image_queue", 0, -1) == [job.to_text().encode() for job in people]
    assert raw.lrange(BULK, 0, -1) == [job.to_text().encode() for job in asynchronous]
    assert [status(raw, queue, job) for job in asynchronous] == ["queued"] * 3
    assert raw.hlen(queue.keys.attempts) == (4 if ends == "dies" else 0)


@pytest.mark.parametrize("held", Lane)
def test_a_take_renews_the_lease_only_with_no_job_of_either_lane_in_hand(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, held: Lane
) -> None:
    """Otherwise nobody would notice that the model hangs."""
    queue.submit([new_job().to_text()], 100, lane=held)
    member = new_member()
    member.take(1, lane=held)
    before = raw.zscore(queue.keys.leases, member.name)
    time.sleep(0.01)
    for lane in Lane:
        member.take(1, lane=lane)
        raw.hset(queue.keys.attempts, "another", 1)  # take.lua from now on
        member.take(1, lane=lane)
        assert raw.zscore(queue.keys.leases, member.name) == before
        raw.delete(queue.keys.attempts)


@pytest.mark.parametrize("came_back", Lane)
def test_a_job_that_came_back_runs_alone_across_both_lanes(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, came_back: Lane
) -> None:
    suspect, other = new_job(), new_job()
    queue.submit([suspect.to_text()], 100, lane=came_back)
    queue.submit([other.to_text()] * 2, 100, lane=came_back.other)
    raw.hset(queue.keys.attempts, suspect.id, 1)
    member = new_member()
    assert member.take(1, lane=came_back.other).jobs
    assert member.take(4, lane=came_back).runs_alone
    member.answer([Outcome(other.to_text().encode(), other.id, answer="[]", lane=came_back.other)])
    assert member.take(4, lane=came_back).attempts == 1
    assert member.take(4, lane=came_back.other).runs_alone


def test_a_batch_of_both_lanes_is_answered_in_one_round_trip(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(raw, queue, 2)
    queue.submit([new_job().to_text() for _ in range(2)], 100)
    member = new_member()
    people, asynchronous = member.take(2).jobs, take(member, 2)
    outcomes = [answered(people[0]), bulk_answer(asynchronous[0]), answered(people[1]), bulk_answer(asynchronous[1])]
    exchange, sent = queue.redis.exchange, []
    monkeypatch.setattr(queue.redis, "exchange", lambda *commands: sent.append(commands) or exchange(*commands))
    assert member.answer(outcomes[:3])
    assert [commands[0][0] for commands in sent] == ["EVAL"]
    member._hands[Lane.PEOPLE].settled = member._hands[Lane.BULK].settled = 0  # its reply was lost
    assert member.answer(outcomes[:3])
    assert member.in_hand == 1
    assert raw.lrange(queue.keys.bulk.processing(member.name), 0, -1) == [asynchronous[1]]
    assert raw.llen(queue.keys.people.processing(member.name)) == 0


def test_a_model_server_finds_what_one_left_whom_an_earlier_release_forgot(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    """An earlier release knows lane people alone, and forgets the name of a dead one, with jobs of lane bulk."""
    (job,) = put(raw, queue)
    dead = new_member()
    take(dead)
    raw.zrem(queue.keys.leases, dead.name)
    raw.hdel(queue.keys.people.settled_by_server, dead.name)
    member = new_member()
    assert member.return_expired().jobs == 1
    assert raw.lrange(BULK, 0, -1) == [job.to_text().encode()]
    assert raw.hkeys(queue.keys.bulk.settled_by_server) == [member.name.encode()]
    raw.zadd(queue.keys.leases, {dead.name: queue.now() - FORGET_NAME_SECONDS - 1})
    member.return_expired()
    assert raw.zrange(queue.keys.leases, 0, -1) == [member.name.encode()]


def test_a_dead_letter_goes_back_to_its_lane_and_waits_again(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    (job,) = put(raw, queue)
    member = new_member(max_attempts=1)
    take(member)
    end_lease(raw, queue, member)
    assert new_member(max_attempts=1).return_expired().jobs == 0
    assert status(raw, queue, job) == Status.FAILED
    assert b"dead letter" in raw.get(job.id)
    (letter,) = operator.read_letters(queue)
    assert (letter.lane, letter.id) == (Lane.BULK, job.id)
    assert operator.requeue(queue, letter)
    assert (queue.waiting(), queue.waiting(lane=Lane.BULK)) == (0, 1)
    assert raw.hgetall(queue.keys.job(job.id)) == {b"status": b"queued", b"submitted_at": b"1.5"}
    assert raw.exists(job.id, queue.keys.about(job.id)) == 0


def test_asynchronous_jobs_end_while_redis_is_out_of_memory(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    jobs = put(raw, queue, 3)
    member, leaving = new_member(), new_member()
    raw.config_set("maxmemory", 1)
    try:
        texts = take(member, 1)
        assert member.answer([bulk_answer(text) for text in texts])
        assert len(take(leaving)) == 2
        assert leaving.leave() == 2
        assert [status(raw, queue, job) for job in jobs] == ["succeeded", "queued", "queued"]
    finally:
        raw.config_set("maxmemory", 0)


@pytest.mark.parametrize("lane", Lane)
def test_a_model_server_whose_last_answer_redis_forgot_starts_afresh(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, lane: Lane
) -> None:
    """A failover may lose it. Otherwise what it has answered would stay in its list, before all that it takes later."""
    jobs = [new_job() for _ in range(3)]
    queue.submit([job.to_text() for job in jobs], 100, lane=lane)
    member = new_member()
    outcomes = [
        Outcome(text, job.id, answer="[]", lane=lane)
        for text, job in zip(member.take(3, lane=lane).jobs, jobs, strict=True)
    ]
    assert member.answer(outcomes[:1])
    processing = queue.keys.lane(lane).processing(member.name)
    raw.lpush(processing, jobs[0].to_text())
    raw.hset(queue.keys.lane(lane).settled_by_server, member.name, 0)
    assert not member.answer(outcomes[1:])
    assert member.is_lost
    assert new_member().return_expired().jobs == 3
    assert queue.waiting(lane=lane) == 3


def test_only_what_has_a_lifetime_or_a_purpose_remains(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    (job,) = put(raw, queue)
    member = new_member()
    member.answer([bulk_answer(text) for text in take(member)])
    member.leave()
    living = {job.id, queue.keys.about(job.id), queue.keys.job(job.id)}
    assert keys(raw) - living == {queue.keys.bulk.settled_total, queue.keys.bulk.last_empty_at}
