"""Several Redis servers as a web process meets them: which one gets a job, and what becomes of one that goes away."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from conftest import RedisServer, answered, new_job, wait_for

from serving.errors import Draining, QueueAway, QueueFull
from serving.jobs import control
from serving.jobs.async_jobs import AsyncJobs
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.jobs.model_side import ModelSide
from serving.jobs.reach_shards import connect_shards, fewest_served
from serving.jobs.served import Served
from serving.jobs.shards import Shards, ShardTicket, WebShard, shard_of
from serving.jobs.watch import Watch
from serving.jobs.web_side import WebSide

SERVED = Served("a", "1", "float32", "keras", 8, 8, 3, "x")
QUEUE = "shards_queue"


class Rig:
    """Shards on two real Redis servers, with a model server of each that takes when it is told to."""

    def __init__(self, servers: list[RedisServer]) -> None:
        self.servers = servers
        for server in servers:
            server.client.flushall()
        self.members = [self.join(server) for server in servers]
        self.shards = Shards([self.shard(str(place), server) for place, server in enumerate(servers, 1)])
        for shard in self.shards.all():
            shard.start()
        wait_for(lambda: all(shard.web_side.served.last_alive() for shard in self.shards.all()))

    def join(self, server: RedisServer, served: Served = SERVED) -> Membership:
        terms = {"lease_seconds": 60.0, "max_attempts": 3, "result_ttl_seconds": 60}
        return ModelSide(JobQueue(server.url, QUEUE), served=served, labels=["y"], **terms).join()  # type: ignore[arg-type]

    def shard(self, label: str, server: RedisServer) -> WebShard:
        queue = JobQueue(server.url, QUEUE, resend=True, timeout_seconds=1.0)
        side = WebSide(queue, max_queue_length=4, timeout_seconds=10.0, poll_seconds=0.05)
        jobs = AsyncJobs(queue, side.served, most_waiting=4, timeout_seconds=60, result_ttl_seconds=60)
        return WebShard(label, queue, side, jobs, Watch(jobs))

    def send(self, seconds: float = 10.0) -> ShardTicket:
        return self.shards.send(new_job(), time.monotonic() + seconds)

    def waiting(self) -> list[int]:
        """Jobs that wait in each Redis."""
        return [server.client.llen(QUEUE) for server in self.servers]

    def answer(self, number: int, most: int = 8) -> int:
        """Have a model server of a shard answer what waits there; returns how many jobs that were."""
        texts = self.members[number].take(most).jobs
        assert not texts or self.members[number].answer([answered(text) for text in texts])
        return len(texts)


@pytest.fixture(scope="module")
def both() -> Iterator[list[RedisServer]]:
    """Two Redis servers that no test stops."""
    servers = [RedisServer(), RedisServer()]
    yield servers
    for server in servers:
        server.remove()


@pytest.fixture
def rig(both: list[RedisServer]) -> Rig:
    return Rig(both)


@pytest.fixture
def mortal(both: list[RedisServer]) -> Iterator[Rig]:
    """A rig whose first Redis may be killed."""
    server = RedisServer()
    yield Rig([server, both[1]])
    server.process.send_signal(signal.SIGCONT)
    server.remove()


def text_of(ticket: ShardTicket, seconds: float = 10.0) -> str | None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:  # as a request waits, which looks after its client meanwhile
        answer = ticket.wait(min(until, time.monotonic() + 0.05))
        if answer is not None:
            return answer.text
    return None


def test_jobs_go_in_turns_where_nothing_tells_the_shards_apart(rig: Rig) -> None:
    tickets = [rig.send() for _ in range(6)]
    assert rig.waiting() == [3, 3]
    assert [rig.answer(number) for number in (0, 1)] == [3, 3]
    assert None not in [text_of(ticket) for ticket in tickets]


def test_a_job_goes_where_fewer_wait(rig: Rig) -> None:
    rig.servers[0].client.rpush(QUEUE, *(new_job().to_text() for _ in range(3)))
    wait_for(lambda: rig.shards.all()[0].web_side.load().ahead == 3)
    for _ in range(2):
        rig.send()
    assert rig.waiting() == [3, 2]


def test_a_full_shard_is_passed_over_and_all_full_is_a_refusal(rig: Rig) -> None:
    for _ in range(8):
        rig.send()
    assert rig.waiting() == [4, 4]
    with pytest.raises(QueueFull, match=r"Too many images wait.*Try again in \d+ s"):
        rig.send()
    with pytest.raises(QueueFull):
        rig.shards.check_room()
    assert rig.answer(1) == 4
    wait_for(lambda: rig.shards.all()[1].web_side.load().ahead == 0)
    rig.shards.check_room()
    rig.send()
    assert rig.waiting() == [4, 1]


def test_a_shard_that_drains_or_is_paused_gets_nothing_while_another_takes(rig: Rig) -> None:
    first, second = rig.shards.all()
    control.pause(first.queue)
    wait_for(lambda: first.web_side.load().is_paused)
    rig.send()
    assert rig.waiting() == [0, 1]
    control.drain(second.queue)
    wait_for(lambda: second.web_side.load().is_draining)
    rig.send()  # it can wait for the end of the pause
    assert rig.waiting() == [1, 1]
    control.drain(first.queue)
    with pytest.raises(Draining):
        rig.send()


def test_a_shard_without_a_model_server_gets_nothing_while_another_has_one(rig: Rig) -> None:
    rig.members[0].leave()
    wait_for(lambda: rig.shards.all()[0].web_side.served.last_alive() is None)
    for _ in range(3):
        rig.send()
    assert rig.waiting() == [0, 3]


def test_a_shard_that_serves_another_model_gets_nothing_and_the_log_says_so(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.members[1].leave()
    rig.join(rig.servers[1], Served("b", "1", "float32", "keras", 8, 8, 3, "x"))
    wait_for(lambda: (rig.shards.all()[1].web_side.served.last_alive() or SERVED).name == "b")
    for _ in range(3):
        rig.send()
    assert rig.waiting() == [3, 0]
    assert caplog.text.count("number 2 of REDIS_URLS is served by b, and the first one by a") == 1


def test_requests_that_wait_in_a_shard_that_dies_are_answered_by_another(mortal: Rig) -> None:
    tickets = [mortal.send() for _ in range(4)]
    assert mortal.waiting() == [2, 2]
    mortal.servers[0].process.kill()
    told: list[str | None] = []
    clients = [threading.Thread(target=lambda ticket=ticket: told.append(text_of(ticket))) for ticket in tickets]
    for client in clients:
        client.start()
    wait_for(lambda: mortal.servers[1].client.llen(QUEUE) == 4)
    assert mortal.answer(1) == 4
    for client in clients:
        client.join(timeout=10)
    assert len(told) == 4
    assert None not in told


def test_a_request_is_refused_when_no_other_shard_takes_its_job(mortal: Rig) -> None:
    tickets = [mortal.send() for _ in range(8)]
    mortal.servers[0].process.kill()
    wait_for(lambda: mortal.shards.all()[0].web_side.is_away)
    refused = 0
    for ticket in tickets:
        try:
            assert ticket.wait(time.monotonic() + 0.01) is None
        except QueueFull:
            refused += 1
    assert refused == 4
    assert mortal.servers[1].client.llen(QUEUE) == 4


def test_a_job_goes_to_each_shard_once_at_most(mortal: Rig) -> None:
    control.pause(mortal.shards.all()[1].queue)
    wait_for(lambda: mortal.shards.all()[1].web_side.load().is_paused)
    ticket = mortal.send()
    assert mortal.waiting() == [1, 0]
    mortal.shards.all()[0].web_side.sender.is_away = True  # as its sender says it, until it looks the next time
    assert ticket.wait(time.monotonic() + 0.001) is None
    assert mortal.waiting()[1] == 1
    mortal.shards.all()[1].web_side.sender.is_away = True
    with pytest.raises(QueueAway):
        ticket.wait(time.monotonic() + 0.001)


def test_an_answer_of_a_shard_that_was_given_up_reaches_nobody(mortal: Rig) -> None:
    control.pause(mortal.shards.all()[1].queue)
    wait_for(lambda: mortal.shards.all()[1].web_side.load().is_paused)
    ticket = mortal.send()
    (text,) = mortal.members[0].take(1).jobs  # it has the job in hand
    mortal.shards.all()[0].web_side.sender.is_away = True
    assert ticket.wait(time.monotonic() + 0.001) is None
    assert mortal.members[0].answer([answered(text, '["of the first"]')])
    assert ticket.wait(time.monotonic() + 0.3) is None
    control.resume(mortal.shards.all()[1].queue)
    (text,) = mortal.members[1].take(1).jobs
    assert mortal.members[1].answer([answered(text, '["of the second"]')])
    answer = ticket.wait(time.monotonic() + 5)
    assert answer is not None
    assert answer.text == '["of the second"]'


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_new_requests_pass_over_a_shard_that_is_away_and_find_it_when_it_is_back(mortal: Rig, how: int) -> None:
    first = mortal.shards.all()[0]
    os.kill(mortal.servers[0].process.pid, how)
    wait_for(lambda: first.web_side.is_away)
    began = time.monotonic()
    for _ in range(3):
        mortal.shards.check_room()
        mortal.send()
    assert time.monotonic() - began < 1  # nobody waited for the Redis that is away
    assert mortal.servers[1].client.llen(QUEUE) == 3
    if how == signal.SIGKILL:
        mortal.servers[0].process.wait()
        mortal.servers[0].start()
    else:
        os.kill(mortal.servers[0].process.pid, signal.SIGCONT)
    mortal.members[0] = mortal.join(mortal.servers[0])
    wait_for(lambda: not first.web_side.is_away)
    wait_for(lambda: first.web_side.served.last_alive())
    mortal.send()
    assert mortal.servers[0].client.llen(QUEUE) == 1


def test_all_shards_away_is_told_as_one_redis_away_is(mortal: Rig) -> None:
    for shard in mortal.shards.all():
        shard.web_side.sender.keeps_looking = False
        shard.web_side.sender.is_away = True
    assert mortal.shards.is_away
    for call in (mortal.shards.check_room, mortal.send):
        with pytest.raises(QueueAway, match="Try again in a moment"):
            call()


def test_a_digest_has_one_shard_in_every_process() -> None:
    assert [shard_of("f" * 64, count) for count in (1, 2, 3)] == [0, 1, 0]
    assert {shard_of(f"{number:016x}" + "0" * 48, 3) for number in range(9)} == {0, 1, 2}


def test_a_process_starts_while_one_redis_answers(both: list[RedisServer]) -> None:
    nobody = "redis://127.0.0.1:1/0"
    told = connect_shards([("1", nobody), ("2", both[0].url)], QUEUE)
    assert any(one.startswith("REDIS_URLS, number 1: ") and one.endswith("It is used once it answers.") for one in told)
    assert any(one.startswith("number 2 of REDIS_URLS: Redis writes no log of its changes") for one in told)
    with pytest.raises(QueueAway, match="REDIS_URLS, number 1: "):
        connect_shards([("1", nobody), ("2", "redis://127.0.0.1:1/1")], QUEUE)
    with pytest.raises(QueueAway, match="^REDIS_URL: "):
        connect_shards([("", nobody)], QUEUE)


def test_no_process_starts_beside_a_redis_that_cannot_keep_the_promise(both: list[RedisServer]) -> None:
    both[1].client.replicaof("127.0.0.1", both[0].port)
    try:
        with pytest.raises(QueueAway, match="REDIS_URLS, number 2: this Redis is a replica"):
            connect_shards([("1", both[0].url), ("2", both[1].url)], QUEUE)
    finally:
        both[1].client.replicaof("NO", "ONE")
    with pytest.raises(QueueAway, match="REDIS_URLS, number 2 cannot be understood"):
        connect_shards([("1", both[0].url), ("2", "redis://127.0.0.1/0?a=1")], QUEUE)


def test_a_model_server_takes_the_shard_with_the_fewest_others(rig: Rig) -> None:
    queues = [[JobQueue(server.url, QUEUE)] for server in rig.servers]
    rig.join(rig.servers[0])
    assert {fewest_served(queues) for _ in range(4)} == {1}
    rig.join(rig.servers[1])
    assert {fewest_served(queues) for _ in range(40)} == {0, 1}  # model servers that start together spread
    nobody = [JobQueue("redis://127.0.0.1:1/0", QUEUE)]
    assert fewest_served([nobody, queues[1]]) == 1
    with pytest.raises(QueueAway):
        fewest_served([nobody, nobody])
