"""A queue that drains: nothing new comes in, what is there is worked off; on a real Redis."""

import threading
import time
from collections.abc import Callable

import pytest
import redis
from conftest import answered, ask, new_job, new_web_side, push, wait_for

from serving.errors import Draining
from serving.jobs import control, operator
from serving.jobs.async_jobs import AsyncJobs, Idempotency
from serving.jobs.job import Job, Lane, Outcome
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.jobs.readiness import Readiness, readiness
from serving.jobs.served import ServedNow

NewMember = Callable[..., Membership]


def async_jobs(queue: JobQueue) -> AsyncJobs:
    return AsyncJobs(queue, ServedNow(queue), most_waiting=10, timeout_seconds=60, result_ttl_seconds=60)


def test_a_job_of_people_is_refused_atomically_and_then_before_it_costs_anything(
    queue: JobQueue, raw: redis.Redis
) -> None:
    side = new_web_side(queue)
    side.check_room()
    control.drain(queue)
    with pytest.raises(Draining, match="The service is draining: it answers what it has") as refused:
        ask(side)
    assert refused.value.retry_after_seconds == 10
    with pytest.raises(Draining):
        side.check_room()
    time.sleep(0.1)  # what was seen is too old to refuse by
    with pytest.raises(Draining):
        side.check_room()
    assert raw.exists("image_queue") == 0
    control.resume(queue)
    wait_for(lambda: not is_refused(side.check_room))


def is_refused(check: Callable[[], object]) -> bool:
    try:
        check()
    except Draining:
        return True
    return False


def test_jobs_that_wait_already_stay_when_others_are_refused(queue: JobQueue, raw: redis.Redis) -> None:
    side, jobs = new_web_side(queue), push(raw, 2)
    control.drain(queue)
    assert side.sender.submit_texts([new_job().to_text() for _ in range(3)]) == 0
    assert [Job.from_text(text).id for text in raw.lrange("image_queue", 0, -1)] == [job.id for job in jobs]


def test_an_asynchronous_job_is_refused_and_leaves_nothing(queue: JobQueue, raw: redis.Redis) -> None:
    jobs = async_jobs(queue)
    control.drain(queue)
    before = set(raw.keys("*"))
    with pytest.raises(Draining):
        jobs.find(None)
    with pytest.raises(Draining):
        jobs.submit(new_job())
    with pytest.raises(Draining):
        jobs.submit(new_job(), Idempotency("d", "f"))
    assert set(raw.keys("*")) == before


def test_a_request_that_is_sent_again_finds_its_job_while_the_queue_drains(queue: JobQueue, raw: redis.Redis) -> None:
    jobs, key = async_jobs(queue), Idempotency("d", "f")
    job = new_job()
    assert jobs.submit(job, key).id == job.id
    control.drain(queue)
    assert jobs.find(key) == job.id
    assert jobs.submit(job, key).id == job.id  # the same command once more
    assert jobs.submit(new_job(), key).id == job.id
    assert raw.llen(queue.keys.bulk.waiting) == 1


def test_both_lanes_are_emptied_and_those_who_wait_are_answered(
    queue: JobQueue, raw: redis.Redis, new_member: NewMember
) -> None:
    side, jobs, member = new_web_side(queue), async_jobs(queue), new_member()
    control.pause(queue)
    job_id = jobs.submit(new_job()).id
    told: list[str | None] = []
    client = threading.Thread(target=lambda: told.append(ask(side)))
    client.start()
    wait_for(lambda: raw.llen("image_queue"))
    control.drain(queue)  # which ends the pause
    for lane in Lane:
        (text,) = member.take(8, lane=lane).jobs
        job = Job.from_text(text)
        assert member.answer([Outcome(text, job.id, job.reply_to, '["yes"]', lane=lane)])
    client.join(timeout=10)
    assert told == ['["yes"]']
    assert jobs.look(job_id).is_over


def test_a_dead_letter_can_be_put_back_and_is_worked_off(
    queue: JobQueue, raw: redis.Redis, new_member: NewMember
) -> None:
    push(raw, 1)
    member = new_member()
    (text,) = member.take(1).jobs
    member.answer([Outcome(text, Job.from_text(text).id, failure="bad")])
    control.drain(queue)
    (letter,) = operator.read_letters(queue)
    assert operator.requeue(queue, letter)
    (text,) = member.take(1).jobs
    assert member.answer([answered(text)])


def test_readiness_tells_of_a_pause_and_of_a_drain(queue: JobQueue, raw: redis.Redis, new_member: NewMember) -> None:
    new_member()
    assert readiness(queue) == Readiness(1, answered_lately=False, is_paused=False, is_draining=False)
    control.pause(queue)
    assert readiness(queue) == Readiness(1, answered_lately=False, is_paused=True, is_draining=False)
    control.drain(queue)
    assert readiness(queue) == Readiness(1, answered_lately=False, is_paused=False, is_draining=True)


def test_the_end_of_a_pause_begins_the_measure_of_the_rate_anew(queue: JobQueue, raw: redis.Redis) -> None:
    for verb in control.resume, control.drain:
        raw.delete(queue.keys.people.last_empty_at)
        verb(queue)  # there was no pause
        assert queue.queue_state().last_empty_at == 0
        control.pause(queue)
        assert queue.queue_state().is_paused
        verb(queue)
        assert queue.queue_state().last_empty_at == pytest.approx(queue.now(), abs=5)
