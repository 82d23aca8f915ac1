"""Compares what web processes do with asynchronous jobs with a model of it, in random interleavings.

    rules: one command to Redis each --> Redis, by the real scripts  \\
                                     --> plain lists and dicts        --> `agrees`, after each step

What model servers do among each other is test_protocol_model.py's; here one takes jobs, ends them, and gives them back.
"""

import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import RedisServer
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from serving.errors import KeyReused, QueueFull
from serving.jobs import job_queue
from serving.jobs.async_jobs import AsyncJobs, Idempotency
from serving.jobs.job import Job, Lane, Outcome, Status
from serving.jobs.job_queue import JobQueue
from serving.jobs.model_side import ModelSide
from serving.jobs.served import ServedNow

EXAMPLES = int(os.environ.get("PROTOCOL_EXAMPLES", "0"))
MOST_WAITING = 5
ENDED = {Status.SUCCEEDED, Status.FAILED, Status.CANCELED}
KEYS = st.sampled_from([None, "a", "b"])


class Life(RuleBasedStateMachine):
    """Asynchronous jobs by their numbers, in the order in which they were submitted."""

    def __init__(self, queue: JobQueue) -> None:
        super().__init__()
        queue.redis.flushdb()
        self.queue, self.redis = queue, queue.redis
        self.jobs = AsyncJobs(
            queue, ServedNow(queue), most_waiting=MOST_WAITING, timeout_seconds=600, result_ttl_seconds=600
        )
        self.side = ModelSide(queue, lease_seconds=600, max_attempts=3, result_ttl_seconds=60)
        self.member, self.texts = self.side.join(), list[bytes]()
        self.ids: list[str] = []
        self.lane: list[int] = []
        self.hand: list[int] = []
        self.status: list[Status] = []
        self.late: set[int] = set()
        self.keys: dict[str, tuple[int, str]] = {}

    @rule(key=KEYS, fingerprint=st.sampled_from("fg"), is_sent_twice=st.booleans())
    def submit(self, key: str | None, fingerprint: str, is_sent_twice: bool) -> None:
        job = Job(str(uuid.uuid4()), "AAAA")
        idempotency = None if key is None else Idempotency(key, fingerprint)
        expected = self.expected(key, fingerprint, len(self.ids))
        exchange = self.redis.exchange
        if is_sent_twice:
            self.redis.exchange = lambda *commands: exchange(*commands) and exchange(*commands)
        try:
            told: int | type = [*self.ids, job.id].index(self.jobs.submit(job, idempotency).id)
        except (QueueFull, KeyReused) as error:
            told = type(error)
        self.redis.exchange = exchange
        assert told == expected
        if told == len(self.ids):
            self.ids.append(job.id)
            self.lane.append(told)
            self.status.append(Status.QUEUED)
            if key is not None:
                self.keys[key] = told, fingerprint
        elif isinstance(told, int):
            self.note_time(told)  # it was looked at

    def expected(self, key: str | None, fingerprint: str, new: int) -> int | type:
        if key is not None and key in self.keys:
            number, of = self.keys[key]
            return number if of == fingerprint else KeyReused
        return QueueFull if len(self.lane) >= MOST_WAITING else new

    @rule(key=KEYS, fingerprint=st.sampled_from("fg"))
    def find(self, key: str | None, fingerprint: str) -> None:
        try:
            found = self.jobs.find(None if key is None else Idempotency(key, fingerprint))
            told: int | type = -1 if found is None else self.ids.index(found)
        except (QueueFull, KeyReused) as error:
            told = type(error)
        assert told == self.expected(key, fingerprint, -1)

    @precondition(lambda self: self.lane)
    @rule(most=st.integers(1, 3))
    def take(self, most: int) -> None:
        taken = self.member.take(most, lane=Lane.BULK)
        numbers, self.lane = self.lane[:most], self.lane[most:]
        assert [self.number_of(text) for text in taken.jobs] == numbers
        assert taken.ended == {place for place, number in enumerate(numbers) if self.status[number] in ENDED}
        for number in numbers:
            self.set_status(number, Status.PROCESSING)
        self.hand += numbers
        self.texts += taken.jobs

    @precondition(lambda self: self.hand)
    @rule(fails=st.booleans())
    def end(self, fails: bool) -> None:
        number, text = self.hand.pop(0), self.texts.pop(0)
        failure = "It failed." if fails else None
        assert self.member.answer([Outcome(text, self.ids[number], answer="[]", failure=failure, lane=Lane.BULK)])
        self.set_status(number, Status.FAILED if fails else Status.SUCCEEDED)

    @precondition(lambda self: self.hand)
    @rule()
    def give_back(self) -> None:
        assert self.member.leave() == len(self.hand)
        for number in self.hand:
            self.set_status(number, Status.QUEUED)
        self.lane, self.hand, self.texts = self.hand + self.lane, [], []
        self.member = self.side.join()

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(range(len(self.ids))))
        if self.status[number] == Status.PROCESSING or (
            self.status[number] == Status.QUEUED and number not in self.late
        ):
            self.status[number] = Status.CANCELED
            if number in self.lane:  # jobs that come back keep their order, so that each is found
                self.lane.remove(number)
        told = self.jobs.cancel(self.ids[number])
        self.note_time(number)
        assert told.status == self.status[number]

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def time_is_over(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(range(len(self.ids))))
        self.redis.hset(self.queue.keys.job(self.ids[number]), "deadline", 1)
        self.late.add(number)

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(range(len(self.ids))))
        told = self.jobs.look(self.ids[number])
        self.note_time(number)
        assert told.status == self.status[number]
        assert (told.answer is not None) == (told.status == Status.SUCCEEDED or self.redis.exists(told.id) == 1)
        assert told.answer is None or told.status in (Status.SUCCEEDED, Status.FAILED)

    @rule()
    def look_at_all(self) -> None:
        over = self.jobs.over(self.ids) if self.ids else set()
        for number in range(len(self.ids)):
            self.note_time(number)
        assert over == {self.ids[number] for number, status in enumerate(self.status) if status in ENDED}

    @invariant()
    def agrees(self) -> None:
        waiting = self.redis.lrange(self.queue.keys.bulk.waiting, 0, -1)
        assert [self.number_of(text) for text in waiting] == self.lane
        statuses = [str(self.redis.hget(self.queue.keys.job(job_id), "status"), "utf-8") for job_id in self.ids]
        assert statuses == self.status
        assert all(self.redis.ttl(key) > 0 for key in self.redis.keys("{image_queue}:[ij][do]*"))

    def number_of(self, text: bytes) -> int:
        return self.ids.index(Job.from_text(text).id)

    def set_status(self, number: int, status: Status) -> None:
        if self.status[number] not in ENDED:
            self.status[number] = status

    def note_time(self, number: int) -> None:
        """Whoever looks at a job whose time is over finds that it failed."""
        if number in self.late:
            self.set_status(number, Status.FAILED)


def check(queue: JobQueue, examples: int, **changes: Any) -> None:
    options = {
        "max_examples": examples,
        "stateful_step_count": 40,
        "derandomize": not EXAMPLES,
        "database": None,
        "deadline": None,
        "suppress_health_check": list(HealthCheck),
    }
    run_state_machine_as_test(lambda: Life(queue), settings=settings(**options | changes))


@pytest.fixture
def real_queue(redis_server: RedisServer) -> Iterator[JobQueue]:
    # A database of its own: a thread that another test left behind would be a stranger here.
    queue = JobQueue(redis_server.url.removesuffix("/0") + "/2", "image_queue")
    yield queue
    queue.redis.flushdb()
    queue.close()


def test_every_interleaving_agrees_with_the_model(real_queue: JobQueue) -> None:
    check(real_queue, EXAMPLES or 30)


BROKEN = {
    "a job sent twice waits twice": ("submit_async", "if redis.call('HGET', KEYS[3], 'status')", "if false"),
    "a full lane takes one more": ("submit_async", "> tonumber(ARGV[2])", "> ARGV[2] + 1"),
    "what is refused stays": ("submit_async", "redis.call('LTRIM', KEYS[1], 0, -2)", ""),
    "a key is not looked up": ("submit_async", "if kept then", "if false then"),
    "a key takes any request": ("submit_async", "fingerprint == ARGV[5]", "true"),
    "a key lives for ever": ("submit_async", ", 'EX', seconds", ""),
    "a job lives for ever": ("submit_async", "redis.call('EXPIRE', KEYS[3], seconds)", ""),
    "a cancel leaves the job where it is": ("cancel_async", "redis.call('LREM', KEYS[1], 1, text)", ""),
    "a cancel looks in one half": ("cancel_async", "low = middle + 1", "break"),
    "a cancel overrules an end": ("cancel_async", "if not (waits or status == 'processing')", "if not status"),
    "a cancel comes after the deadline": ("cancel_async", "and now() <= tonumber", "and 0 <= tonumber"),
    "a look forgets the time": ("look_async", "status == 'queued' and clock > deadline or", ""),
    "a look leaves no trace": ("look_async", "redis.call('HSET', KEYS[i], 'status', status, 'error', ARGV[1])", ""),
    "a look fails what has ended": ("look_async", "status == 'queued' and clock", "clock"),
}


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_script_is_found(real_queue: JobQueue, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above finds each of these faults; otherwise it would prove nothing."""
    script, right, wrong = BROKEN[broken]
    text = job_queue._SCRIPTS[script]
    assert right in text, "the script has changed: break it in another way"
    monkeypatch.setitem(job_queue._SCRIPTS, script, text.replace(right, wrong))
    with pytest.raises(AssertionError):
        check(real_queue, 1000, phases=[Phase.generate], report_multiple_bugs=False, derandomize=False)
