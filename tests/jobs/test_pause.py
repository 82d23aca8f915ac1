"""A paused queue and a quiet model server: nobody takes, nothing is lost, nothing spins; on a real Redis."""

import threading
import time
from collections.abc import Callable

import pytest
import redis
from conftest import answered, new_job, push, wait_for

from serving.errors import LeaseLost
from serving.jobs import control
from serving.jobs.job import Job, Lane
from serving.jobs.job_queue import JobQueue
from serving.jobs.leases import has_lease
from serving.jobs.membership import FORGET_NAME_SECONDS, Membership
from serving.jobs.model_side import ModelSide

NewMember = Callable[..., Membership]


@pytest.fixture
def sides(queue: JobQueue) -> Callable[[], ModelSide]:
    """Makes the queue's side of one more process."""
    return lambda: ModelSide(queue, lease_seconds=10.0, max_attempts=3, result_ttl_seconds=60)


def ids(texts: list[bytes]) -> list[str]:
    return [Job.from_text(text).id for text in texts]


def waiting(raw: redis.Redis) -> list[str]:
    return ids(raw.lrange("image_queue", 0, -1))


def test_nobody_takes_and_what_is_in_hand_is_answered(queue: JobQueue, raw: redis.Redis, new_member: NewMember) -> None:
    members = [new_member(), new_member()]
    jobs = [job.id for job in push(raw, 4)]
    raw.rpush(queue.keys.bulk.waiting, new_job().to_text())
    (text,) = members[0].take(1).jobs
    control.pause(queue)
    for member in members * 3:
        for lane in Lane:
            assert member.take(8, lane=lane).jobs == []
    assert members[0].answer([answered(text)])
    assert raw.get(jobs[0]) == b"[]"
    assert (waiting(raw), raw.llen(queue.keys.bulk.waiting)) == (jobs[1:], 1)
    control.resume(queue)
    assert ids(members[1].take(8).jobs) == jobs[1:]
    assert len(members[0].take(8, lane=Lane.BULK).jobs) == 1


def test_jobs_that_a_blocked_model_server_was_given_in_the_moment_of_the_pause_go_back_in_their_order(
    queue: JobQueue, raw: redis.Redis, new_member: NewMember
) -> None:
    member, taken = new_member(), []
    thread = threading.Thread(target=lambda: taken.append(member.take(8, wait_seconds=3.0)))
    thread.start()
    wait_for(lambda: raw.info("clients")["blocked_clients"] == 1)
    control.pause(queue)
    jobs = [new_job() for _ in range(3)]
    raw.rpush("image_queue", *[job.to_text() for job in jobs])
    thread.join()
    assert taken[0].jobs == []
    assert waiting(raw) == [job.id for job in jobs]
    assert member.in_hand == raw.llen(queue.keys.people.processing(member.name)) == 0
    assert raw.get(queue.keys.people.last_empty_at) is None  # nobody kept up with these jobs


def test_a_paused_model_server_sleeps_and_sees_that_it_may_take_again(
    queue: JobQueue, raw: redis.Redis, new_member: NewMember, sent: list[str]
) -> None:
    member, taken = new_member(), []
    control.pause(queue)
    jobs = push(raw, 2)
    member.take(8, 0.05)
    sent.clear()

    def work() -> None:
        while not taken:
            taken.extend(member.take(8, 0.05).jobs)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(1.0)
    assert set(sent) == {"EVAL"}
    assert len(sent) <= 15
    control.resume(queue)
    thread.join(timeout=10)
    assert ids(taken) == [job.id for job in jobs]


def test_empty_hands_keep_their_lease_through_a_pause_and_full_ones_do_not(
    queue: JobQueue, raw: redis.Redis, new_member: NewMember
) -> None:
    idle, busy = new_member(), new_member()
    push(raw, 2)
    assert busy.take(1).jobs
    control.pause(queue)
    for _ in range(2):  # by confirm.lua, and by take.lua
        soon = queue.now() + 5
        raw.zadd(queue.keys.leases, {idle.name: soon, busy.name: soon})
        for member in idle, busy:
            assert member.take(1).jobs == []
        assert raw.zscore(queue.keys.leases, idle.name) > soon
        assert raw.zscore(queue.keys.leases, busy.name) == pytest.approx(soon)
    assert has_lease(queue)


def test_a_lease_that_ran_out_is_lost_through_a_pause_too(
    queue: JobQueue, raw: redis.Redis, new_member: NewMember
) -> None:
    control.pause(queue)
    member = new_member()
    member.take(1)
    raw.zadd(queue.keys.leases, {member.name: queue.now() - 1})
    with pytest.raises(LeaseLost):
        member.take(1)


def test_jobs_of_a_dead_model_server_return_while_the_queue_is_paused(
    queue: JobQueue, raw: redis.Redis, new_member: NewMember
) -> None:
    dead, other = new_member(), new_member()
    jobs = [job.id for job in push(raw, 3)]
    assert len(dead.take(2).jobs) == 2
    control.pause(queue)
    raw.zadd(queue.keys.leases, {dead.name: queue.now() - 1})
    assert other.return_expired().jobs == 2
    assert other.take(8).jobs == []
    assert waiting(raw) == jobs
    control.resume(queue)
    taken = other.take(8)  # it came back, and runs alone
    assert (ids(taken.jobs), taken.attempts) == (jobs[:1], 1)


def test_nobody_takes_from_a_paused_redis_that_is_full(
    queue: JobQueue, raw: redis.Redis, new_member: NewMember
) -> None:
    member = new_member()
    push(raw, 2)
    control.pause(queue)
    raw.config_set("maxmemory", "1")
    try:
        soon = raw.zscore(queue.keys.leases, member.name)
        for _ in range(3):
            assert member.take(1, 0.05).jobs == []
        assert len(waiting(raw)) == 2
        assert raw.zscore(queue.keys.leases, member.name) > soon
        control.resume(queue)
        assert len(member.take(1).jobs) == 1
    finally:
        raw.config_set("maxmemory", "0")


def test_a_quiet_model_server_takes_nothing_and_the_others_go_on(
    queue: JobQueue, raw: redis.Redis, new_member: NewMember
) -> None:
    silent, other = new_member(), new_member()
    jobs = [job.id for job in push(raw, 3)]
    control.quiet(queue, silent.name)
    assert silent.take(8).jobs == silent.take(8).jobs == []
    assert ids(other.take(1).jobs) == jobs[:1]
    control.pause(queue)
    control.resume(queue)
    assert silent.take(8).jobs == []  # a resume wakes nobody
    control.wake(queue, silent.name)
    assert ids(silent.take(8).jobs) == jobs[1:]


def test_a_process_that_was_told_to_be_quiet_stays_so_under_another_name(
    queue: JobQueue, raw: redis.Redis, new_member: NewMember, sides: Callable[[], ModelSide]
) -> None:
    side, other = sides(), new_member()
    member = side.join()
    control.quiet(queue, member.name)
    for ends in "its lease is lost", "Redis was away":
        if ends == "its lease is lost":
            raw.zadd(queue.keys.leases, {member.name: queue.now() - 1})
            other.return_expired()
        else:
            member.leave(forget=False)
        member = side.join()
        push(raw, 1)
        assert member.take(1).jobs == [], ends
    assert len(sides().join().take(1).jobs) == 1  # another process
    assert control.wake(queue, member.name)
    member.leave(forget=False)
    assert len(side.join().take(1).jobs) == 1


def test_nothing_stays_of_a_quiet_model_server_that_left_or_died(
    queue: JobQueue, raw: redis.Redis, new_member: NewMember
) -> None:
    leaves, dies, other = new_member(), new_member(), new_member()
    for member in leaves, dies:
        control.quiet(queue, member.name)
    leaves.leave()
    assert raw.hkeys(queue.keys.quiet) == [dies.name.encode()]
    raw.zadd(queue.keys.leases, {dies.name: queue.now() - 1})
    other.return_expired()
    assert raw.hkeys(queue.keys.quiet) == [dies.name.encode()]  # it may join again
    raw.zadd(queue.keys.leases, {dies.name: queue.now() - FORGET_NAME_SECONDS - 1})
    other.return_expired()
    assert raw.exists(queue.keys.quiet) == 0
