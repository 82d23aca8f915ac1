"""The ways to reach Redis, each with a real server: TLS, users with few rights, a primary that changes."""

import contextlib
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import trustme
from conftest import (
    ROOT,
    Processes,
    RedisServer,
    as_bytes,
    ask,
    free_port,
    is_up,
    new_job,
    new_web_side,
    oldest_redis,
    some_photo,
    upload,
    wait_for,
)

from serving.errors import QueueAway, QueueFull
from serving.jobs import control, operator
from serving.jobs.async_jobs import AsyncJobs, Idempotency
from serving.jobs.job import Job, Outcome, Status
from serving.jobs.job_queue import JobQueue
from serving.jobs.leases import end_leases
from serving.jobs.live_counts import LiveCounts
from serving.jobs.live_view import look
from serving.jobs.membership import Membership
from serving.jobs.model_side import ModelSide
from serving.jobs.overview import overview, redis_memory
from serving.jobs.served import ServedNow
from serving.local import redis_server as local_redis

PASSWORD = "a-secret-of-redis"


def refusal(url: str) -> str:
    """The sentence with which a server refuses to start with this REDIS_URL."""
    with pytest.raises(QueueAway) as caught:
        JobQueue(url, "image_queue").connect()
    said = str(caught.value)
    assert said.startswith("REDIS_URL")
    assert PASSWORD not in said
    return said


# TLS


class TlsServer(RedisServer):
    """A Redis with a password that speaks TLS, as `localhost` by a certificate of a CA of its own."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.ca, self.tls_port = trustme.CA(), free_port()
        self.ca_file, self.certificate, self.key = (directory / name for name in ("ca.pem", "server.pem", "server.key"))
        issued = self.ca.issue_cert("localhost")
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        issued.cert_chain_pems[0].write_to_path(str(self.certificate))
        issued.private_key_pem.write_to_path(str(self.key))
        super().__init__(
            *("--tls-port", str(self.tls_port), "--tls-ca-cert-file", str(self.ca_file)),
            *("--tls-cert-file", str(self.certificate), "--tls-key-file", str(self.key)),
            *(options or ("--tls-auth-clients", "no")),
        )
        self.client.config_set("requirepass", PASSWORD)

    def tls_url(self, host: str = "localhost", password: str = PASSWORD, **options: object) -> str:
        query = "&".join(f"{name}={value}" for name, value in ({"ssl_ca_certs": self.ca_file} | options).items())
        return f"rediss://:{password}@{host}:{self.tls_port}/0?{query}"


def skip_without_tls() -> None:
    server = local_redis.find_server()
    assert server
    # Without a certificate it ends; one that was built without TLS never asks for it.
    command = [*local_redis.command(server, 0, tempfile.gettempdir()), "--tls-port", str(free_port())]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if "tls-cert-file" not in said.stdout + said.stderr:
        pytest.skip(f"{server} was built without TLS")


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    skip_without_tls()
    server = TlsServer(tmp_path_factory.mktemp("tls"))
    yield server
    server.remove()


def test_over_tls_with_a_password_and_the_right_ca_redis_answers(tls_server: TlsServer) -> None:
    queue = JobQueue(tls_server.tls_url(), "image_queue")
    queue.connect()
    assert queue.waiting() == 0
    queue.close()


def test_a_certificate_of_an_unknown_ca_is_refused(tls_server: TlsServer, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    for url in (tls_server.tls_url(ssl_ca_certs=other), tls_server.tls_url().partition("?")[0]):
        assert "no CA known here signed the server's certificate; name the right one: ?ssl_ca_certs=" in refusal(url)


def test_a_certificate_for_another_host_is_refused(tls_server: TlsServer) -> None:
    assert "the server's certificate is for another host name" in refusal(tls_server.tls_url("127.0.0.1"))


def test_a_wrong_password_is_refused_over_tls_as_well(tls_server: TlsServer) -> None:
    assert "the server refuses the user or the password" in refusal(
        tls_server.tls_url(password=f"{PASSWORD}-but-wrong")
    )


def test_the_wrong_scheme_for_a_port_is_named(tls_server: TlsServer) -> None:
    assert "the server speaks no TLS on this port" in refusal(f"rediss://localhost:{tls_server.port}/0")
    assert "does it speak only TLS (rediss://)" in refusal(f"redis://localhost:{tls_server.tls_port}/0")


def test_a_file_that_cannot_be_read_is_named(tls_server: TlsServer) -> None:
    assert "ssl_ca_certs=/no/such/ca.pem cannot be read" in refusal(tls_server.tls_url(ssl_ca_certs="/no/such/ca.pem"))


def test_a_client_shows_its_certificate_where_redis_asks_for_one(tmp_path: Path) -> None:
    skip_without_tls()
    server = TlsServer(tmp_path, "--tls-auth-clients", "yes")
    try:
        assert "want a client's certificate" in refusal(server.tls_url())
        mine = server.ca.issue_cert("model-server")
        certificate, key = tmp_path / "mine.pem", tmp_path / "mine.key"
        mine.cert_chain_pems[0].write_to_path(str(certificate))
        mine.private_key_pem.write_to_path(str(key))
        queue = JobQueue(server.tls_url(ssl_certfile=certificate, ssl_keyfile=key), "image_queue")
        queue.connect()
        queue.close()
    finally:
        server.remove()


def test_a_photo_is_answered_over_tls(tls_server: TlsServer, light_model: dict[str, str]) -> None:
    with_tls = Processes({"REDIS_URL": tls_server.tls_url(), "METRICS_PORT": "0"} | light_model)
    port = str(free_port())
    try:
        with_tls.start("run_model_server.py")
        with_tls.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1")
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/readyz"))
        assert upload(f"http://127.0.0.1:{port}/predict", as_bytes(some_photo(), "JPEG")).status == 200
    finally:
        with_tls.end()


# A user with no more rights than the documentation names


def documented_rights() -> list[str]:
    page = (ROOT / "docs" / "deployment.md").read_text()
    (block,) = re.findall(r"^ACL SETUSER classification on >password (.+?)^```", page, re.MULTILINE | re.DOTALL)
    return block.split()


def rights_for_several_models() -> list[str]:
    page = (ROOT / "docs" / "models.md").read_text()
    (block,) = re.findall(r"^ACL SETUSER classification (.+?)^```", page, re.MULTILINE | re.DOTALL)
    return block.split()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    server = RedisServer()
    server.client.execute_command("ACL", "SETUSER", "classification", "on", f">{PASSWORD}", *documented_rights())
    yield server
    server.remove()


@pytest.fixture
def as_user(shared_server: RedisServer) -> Iterator[JobQueue]:
    shared_server.client.flushall()
    queue = JobQueue(f"redis://classification:{PASSWORD}@127.0.0.1:{shared_server.port}/1", "image_queue")
    queue.connect()
    yield queue
    queue.close()


def member_of(queue: JobQueue, **changes: object) -> Membership:
    options = {"lease_seconds": 10.0, "max_attempts": 3, "result_ttl_seconds": 60} | changes
    return ModelSide(queue, **options).join()  # type: ignore[arg-type]


@pytest.mark.parametrize("listens", [True, False])
def test_the_documented_rights_are_enough_for_a_job_that_is_answered(
    shared_server: RedisServer, as_user: JobQueue, listens: bool
) -> None:
    member = member_of(as_user)
    client = new_web_side(as_user, poll_seconds=60 if listens else 0.05)
    if listens:
        wait_for(lambda: shared_server.client.pubsub_channels("{image_queue}:answered:*"))

    def serve() -> None:
        (text,) = member.take(1, wait_seconds=5).jobs
        job = Job.from_text(text)
        member.answer([Outcome(text, job.id, job.reply_to, answer='["yes"]')])

    server = threading.Thread(target=serve)
    server.start()
    assert ask(client) == '["yes"]'
    server.join()  # the client has its answer before the member's reply comes
    assert member.leave() == 0


def test_several_models_need_the_rights_that_their_page_names(shared_server: RedisServer) -> None:
    name, commands = "of_several", documented_rights()
    shared_server.client.flushall()
    for rights, is_enough in (commands, False), (rights_for_several_models(), True):
        shared_server.client.execute_command("ACL", "SETUSER", name, "on", f">{PASSWORD}", *rights)
        queue = JobQueue(f"redis://{name}:{PASSWORD}@127.0.0.1:{shared_server.port}/1", "image_queue:flowers")
        with contextlib.nullcontext() if is_enough else pytest.raises(QueueAway):
            client, member = new_web_side(queue), member_of(queue)
            wait_for(lambda: shared_server.client.pubsub_channels("{image_queue:flowers}:answered:*"))
            assert client.submit(new_job(deadline=client.deadline_at(time.monotonic() + 9)))
            (text,) = member.take(1, wait_seconds=5).jobs
            member.answer([Outcome(text, Job.from_text(text).id, None, answer='["yes"]')])
        queue.close()


def test_the_documented_rights_are_enough_for_jobs_that_return_and_for_dead_letters(as_user: JobQueue) -> None:
    new_web_side(as_user).sender.submit_texts([new_job().to_text()])
    member = member_of(as_user, max_attempts=2)
    for _ in range(2):  # the second time it comes back once, and runs alone
        dead = member_of(as_user, max_attempts=2)
        assert dead.take(2).jobs
        as_user.redis.zadd(as_user.keys.leases, {dead.name: as_user.now() - 1})
        member.return_expired()
    (letter,) = operator.read_letters(as_user)
    assert operator.requeue(as_user, letter)
    (text,) = member.take(1).jobs
    member.answer([Outcome(text, Job.from_text(text).id, failure="bad")])
    assert operator.drop(as_user, *operator.read_letters(as_user))
    end_leases(as_user, 1)
    assert member.leave() == 0


def test_the_documented_rights_are_enough_for_asynchronous_jobs(as_user: JobQueue) -> None:
    jobs = AsyncJobs(as_user, ServedNow(as_user), most_waiting=1, timeout_seconds=60, result_ttl_seconds=60)
    job_id = jobs.submit(new_job(), Idempotency("d", "f")).id
    assert jobs.find(Idempotency("d", "f")) == job_id
    assert jobs.submit(new_job(), Idempotency("d", "f")).status == Status.QUEUED
    with pytest.raises(QueueFull):
        jobs.submit(new_job())
    as_user.redis.hset(as_user.keys.job(job_id), "deadline", 1)
    assert jobs.over([job_id]) == {job_id}
    assert jobs.look(job_id).status == Status.FAILED
    assert jobs.cancel(job_id).status == Status.FAILED
    as_user.redis.rpop(as_user.keys.bulk.waiting)
    assert jobs.cancel(jobs.submit(new_job()).id).status == Status.CANCELED


def test_the_documented_rights_are_enough_for_a_look_at_the_state(as_user: JobQueue) -> None:
    counts, at = LiveCounts(as_user), as_user.now() - 5
    counts.answered(10.0, at)
    counts.tell(at + 1)
    assert look(as_user).last_minute.answered == 1


def test_the_documented_rights_are_enough_for_an_operator(as_user: JobQueue) -> None:
    name = member_of(as_user).name
    assert control.quiet(as_user, name)
    assert [server.is_quiet for server in overview(as_user).servers] == [True]
    assert control.wake(as_user, name)
    assert control.pause(as_user)
    assert control.drain(as_user)
    assert (redis_memory(as_user).used_bytes or 0) > 0
    assert control.resume(as_user)


def test_the_documented_rights_name_every_command_of_the_scripts() -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "serving" / "jobs" / "lua").glob("*.lua"))
    commands = {name.lower() for name in re.findall(r"redis\.p?call\('(\w+)'", scripts)}
    # What Python sends by itself.
    commands |= {"info", "ping", "select", "time", "multi", "exec", "eval", "subscribe", "get", "mget", "unlink"}
    commands |= {"blmove", "llen", "lrange", "lrem", "zrangebyscore", "zadd"}
    assert {right[1:] for right in documented_rights() if right.startswith("+")} == commands


def test_the_documented_rights_are_for_nothing_else(as_user: JobQueue) -> None:
    client = as_user.redis
    for command in ("KEYS *", "FLUSHALL", "CONFIG GET *", "GET another", "PUBLISH another x", "ACL LIST"):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command.split())
    with pytest.raises(redis.exceptions.NoPermissionError), client.pubsub() as pubsub:
        pubsub.subscribe("another")
        pubsub.get_message(timeout=5)


def test_a_missing_right_and_a_wrong_user_are_named(shared_server: RedisServer) -> None:
    port = shared_server.port
    assert "refuses the user or the password" in refusal(f"redis://nobody:{PASSWORD}@127.0.0.1:{port}/0")
    shared_server.client.execute_command("ACL", "SETUSER", "poor", "on", f">{PASSWORD}", "+ping")
    assert "'info' command" in refusal(f"redis://poor:{PASSWORD}@127.0.0.1:{port}/0")


# A primary that changes


@pytest.mark.parametrize("version", ["the newest at hand", "6.2"])
def test_a_primary_that_was_demoted_is_left_like_a_lost_connection(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if version == "6.2":
        path = oldest_redis()
        monkeypatch.setattr(local_redis, "find_server", lambda: path)
    server, other = RedisServer(), RedisServer()
    queue = JobQueue(server.url, "image_queue")
    client = new_web_side(queue, poll_seconds=60)
    try:
        member = member_of(queue)
        connection = queue.redis.client_id()
        server.client.replicaof("127.0.0.1", other.port)
        with pytest.raises(QueueAway) as caught:
            client.sender.submit_texts([new_job().to_text()])
        assert "is a replica by now" in str(caught.value.__cause__)
        assert queue.redis.client_id() != connection
        with pytest.raises(QueueAway):
            member.take(1)
        server.client.replicaof("NO", "ONE")
        client.sender.submit_texts([new_job().to_text()])
        member = member_of(queue)
        assert len(member.take(1).jobs) == 1
    finally:
        queue.close()
        server.remove()
        other.remove()


# Messages


def test_a_quiet_redis_is_not_a_dead_one(shared_server: RedisServer) -> None:
    queue = JobQueue(shared_server.url, "image_queue", timeout_seconds=0.1)
    with queue.redis.subscribed("channel") as messages:
        threading.Timer(1.0, shared_server.client.publish, ("channel", "at last")).start()  # after ten timeouts
        assert next(messages) == b"at last"
    wait_for(lambda: shared_server.client.pubsub_numsub("channel") == [(b"channel", 0)])
    assert queue.waiting() == 0  # by another connection
    queue.close()


def test_a_redis_without_a_sign_of_life_is_a_lost_connection() -> None:
    server = RedisServer()
    queue = JobQueue(server.url, "image_queue", timeout_seconds=0.2)
    try:
        with queue.redis.subscribed("channel") as messages:
            server.process.send_signal(signal.SIGSTOP)
            with pytest.raises(redis.exceptions.TimeoutError):
                next(messages)
    finally:
        server.process.send_signal(signal.SIGCONT)
        queue.close()
        server.remove()


def test_a_reply_that_came_too_late_is_not_taken_for_the_next_one(shared_server: RedisServer) -> None:
    queue = JobQueue(shared_server.url, "image_queue", timeout_seconds=0.2)
    with pytest.raises(redis.exceptions.TimeoutError):
        queue.redis.exchange(("BLPOP", "nothing-comes", 0.5))
    time.sleep(0.6)  # it has come by now
    assert queue.redis.exchange(("ECHO", "mine"), ("ECHO", "too")) == [b"mine", b"too"]
    queue.close()


def test_of_several_commands_the_first_error_is_raised_and_the_connection_stays_in_step(
    shared_server: RedisServer,
) -> None:
    queue = JobQueue(shared_server.url, "image_queue")
    with pytest.raises(redis.exceptions.ResponseError, match="unknown command"):
        queue.redis.exchange(("ECHO", "a"), ("NO-SUCH-COMMAND",), ("LPUSH", "without a value"))
    assert queue.redis.exchange(("ECHO", "b")) == [b"b"]
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        queue.redis.transact([("SET", "a-string", "x"), ("LPUSH", "a-string", "y")])
    assert queue.redis.transact([("GET", "a-string")], ahead=[("ECHO", "c")]) == ([b"c"], [b"x"])
    queue.close()


@pytest.mark.parametrize("resend", [True, False])
def test_a_connection_that_redis_has_closed_meanwhile_costs_no_error(shared_server: RedisServer, resend: bool) -> None:
    queue = JobQueue(shared_server.url, "image_queue", resend=resend)
    for _ in range(2):
        assert queue.redis.exchange(("ECHO", "a"), ("ECHO", "b")) == [b"a", b"b"]
        shared_server.client.client_kill_filter(_type="normal", skipme=True)
    queue.close()


# The URL


@pytest.mark.parametrize(
    "login", [":{}/x", ":{}@x", ":{}?x", ":{}#x", ":[{}", ":x/{}", ":1/{}", ":1?{}", ":1#{}", ":\u2100{}"]
)
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_password_that_must_be_escaped_and_is_not_is_refused_without_being_told(scheme: str, login: str) -> None:
    assert "is written %2F" in refusal(f"{scheme}://{login.format(PASSWORD)}@localhost/0") or login == ":{}@x"


@pytest.mark.parametrize("option", ["ssl_cert_reqs=perhaps", "db=x", "no_such_option=1"])
def test_an_option_that_makes_no_sense_is_named(option: str) -> None:
    assert "cannot be understood" in refusal(f"rediss://:{PASSWORD}@localhost:1/0?{option}")
