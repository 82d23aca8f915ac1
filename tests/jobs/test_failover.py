"""A primary that dies or steps down behind a real Sentinel: the service finds the next one by itself."""

import contextlib
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from conftest import (
    Processes,
    RedisServer,
    as_bytes,
    ask,
    free_port,
    is_up,
    new_job,
    new_web_side,
    some_photo,
    upload,
    wait_for,
)
from test_redis_url import PASSWORD, TlsServer, skip_without_tls

from serving.errors import LeaseLost, QueueAway, TimedOut
from serving.jobs.job import Job, Outcome
from serving.jobs.job_queue import JobQueue
from serving.jobs.model_side import ModelSide
from serving.jobs.redis_url import CONNECT_TIMEOUT_SECONDS
from serving.jobs.web_side import WebSide
from serving.local import redis_server as local_redis

NAME = "mymaster"
DEADLINE_SECONDS = 6.0
PHOTO = as_bytes(some_photo(), "JPEG")


class SentinelServer:
    """A Sentinel that watches the primary at `host` and `port`, with `lines` more in its configuration."""

    def __init__(self, host: str, port: int, *lines: str, port_option: str = "port") -> None:
        server = local_redis.find_server()
        assert server
        self.port = free_port()
        self.directory = tempfile.TemporaryDirectory(prefix="test-sentinel-")
        configuration = Path(self.directory.name) / "sentinel.conf"
        configuration.write_text(
            "\n".join(
                [
                    *("bind 127.0.0.1", f"{port_option} {self.port}", f"dir {self.directory.name}", *lines),
                    *(f"sentinel monitor {NAME} {host} {port} 1", f"sentinel down-after-milliseconds {NAME} 500"),
                    f"sentinel failover-timeout {NAME} 5000",
                ]
            )
            + "\n"
        )
        self.client = redis.Redis(port=self.port)
        self.process = subprocess.Popen([server, str(configuration), "--sentinel"], stdout=subprocess.DEVNULL)

    def primary(self) -> int | None:
        """The port of the primary, as far as this Sentinel knows."""
        with contextlib.suppress(redis.exceptions.ConnectionError):
            return int(self.client.sentinel_get_master_addr_by_name(NAME)[1])
        return None

    def knows_replicas(self) -> bool:
        with contextlib.suppress(redis.exceptions.ConnectionError):
            found = self.client.sentinel_slaves(NAME)
            return bool(found) and all(one["master-link-status"] == "ok" and not one["is_sdown"] for one in found)
        return False

    def remove(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        self.directory.cleanup()


class Cluster:
    """A primary, a replica, a Sentinel; `url` names a Sentinel that is down before the one that is up."""

    def __init__(self) -> None:
        at_once = ("--repl-diskless-sync-delay", "0")
        first = RedisServer(*at_once)
        second = RedisServer(*at_once, "--replicaof", "127.0.0.1", str(first.port))
        self.servers = {server.port: server for server in (first, second)}
        wait_for(lambda: second.client.info("replication")["master_link_status"] == "up")
        self.sentinel = SentinelServer("127.0.0.1", first.port)
        self.url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{self.sentinel.port}/{NAME}/0"

    def primary(self) -> RedisServer:
        port = wait_for(self.sentinel.primary)
        return self.servers[port]  # type: ignore[index]

    def remove(self) -> None:
        self.sentinel.remove()
        for server in self.servers.values():
            if server.process.poll() is None:
                server.remove()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    started = Cluster()
    try:
        wait_for(started.sentinel.knows_replicas)
        yield started
    finally:
        started.remove()


class Load:
    """Two clients that send one photo after the other; notes each status with its count, and the longest wait."""

    def __init__(self, url: str) -> None:
        self.url, self.statuses, self.longest_seconds = url, Counter[int](), 0.0
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self.ask) for _ in range(2)]
        for thread in self.threads:
            thread.start()

    def ask(self) -> None:
        while not self.ended.wait(0.02):
            began = time.monotonic()
            status = upload(f"{self.url}/predict", PHOTO).status
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
            self.statuses[status] += 1

    def stop(self) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()


def answered_again(load: Load) -> None:
    """Wait until requests are answered again, ten in a row at least."""
    wait_for(lambda: is_up(f"{load.url}/readyz"))
    before = load.statuses[200]
    wait_for(lambda: load.statuses[200] >= before + 10)


@pytest.mark.slow  # two failovers
def test_a_primary_that_is_killed_and_one_that_steps_down_cost_seconds_and_no_restart(
    cluster: Cluster, light_model: dict[str, str]
) -> None:
    processes = Processes({"REDIS_URL": cluster.url, "METRICS_PORT": "0", "LEASE_SECONDS": "3"} | light_model)
    port = str(free_port())
    try:
        servers = [
            processes.start("run_model_server.py"),
            processes.start(
                "run_web_server.py", WEB_PORT=port, WEB_WORKERS="1", REQUEST_TIMEOUT_SECONDS=str(DEADLINE_SECONDS)
            ),
        ]
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: is_up(f"{url}/readyz"))
        load = Load(url)
        try:
            answered_again(load)
            killed = cluster.primary()
            killed.process.kill()
            killed.process.wait()
            wait_for(lambda: cluster.primary() is not killed)
            answered_again(load)
            killed.start()  # Sentinel makes it a replica
            wait_for(cluster.sentinel.knows_replicas)
            stepped_down = cluster.primary()
            wait_for(lambda: asked_to_fail_over(cluster.sentinel))
            wait_for(lambda: cluster.primary() is killed)
            wait_for(lambda: stepped_down.client.info("replication")["role"] == "slave")
            answered_again(load)
        finally:
            load.stop()
        assert [server.poll() for server in servers] == [None, None]
        # 504: accepted by a primary that died before its replica had heard of it.
        assert set(load.statuses) <= {200, 503, 504}
        assert load.statuses[504] <= 6
        assert load.longest_seconds < DEADLINE_SECONDS + CONNECT_TIMEOUT_SECONDS
    finally:
        processes.end()


def asked_to_fail_over(sentinel: SentinelServer) -> bool:
    try:
        return bool(sentinel.client.execute_command("SENTINEL", "FAILOVER", NAME))
    except redis.exceptions.ResponseError:  # no replica is fit yet, or the last failover is not over
        time.sleep(0.2)
        return False


def test_a_primary_that_hangs_holds_nobody_longer_than_its_deadline(cluster: Cluster) -> None:
    queue = JobQueue(cluster.url, "image_queue", resend=True, timeout_seconds=1.0)
    client = new_web_side(queue, poll_seconds=0.1, timeout_seconds=4)
    ended = threading.Event()
    server = threading.Thread(target=serve, args=[cluster.url, ended])
    server.start()
    # A Sentinel takes a primary for dead after 0.5 s, also one that was only slow: the one that hangs is chosen late.
    wait_for(lambda: answer_of(client))
    hung = cluster.primary()
    try:
        hung.process.send_signal(signal.SIGSTOP)
        waits, answer = [], None
        while not answer:
            began = time.monotonic()
            answer = answer_of(client)
            waits.append(time.monotonic() - began)
        assert max(waits) < 4 + CONNECT_TIMEOUT_SECONDS
        assert cluster.primary() is not hung
    finally:
        hung.process.send_signal(signal.SIGCONT)
        ended.set()
        server.join()
        queue.close()


def answer_of(client: WebSide) -> str | None:
    """The answer to a job with a deadline of 4 s; None: there is none."""
    with contextlib.suppress(QueueAway, TimedOut):
        return ask(client, 4)
    return None


def serve(url: str, ended: threading.Event) -> None:
    """A model server without a model: it starts afresh when Redis is away."""
    queue = JobQueue(url, "image_queue", timeout_seconds=2.0)
    while not ended.is_set():
        with contextlib.suppress(QueueAway, LeaseLost):
            member = ModelSide(queue, lease_seconds=3, max_attempts=3, result_ttl_seconds=60).join()
            while not ended.is_set():
                jobs = [(text, Job.from_text(text)) for text in member.take(8, wait_seconds=0.5).jobs]
                member.answer([Outcome(text, job.id, job.reply_to, answer='["yes"]') for text, job in jobs])
        ended.wait(0.1)
    queue.close()


def test_sentinels_may_have_tls_and_a_password_of_their_own(tmp_path: Path) -> None:
    skip_without_tls()
    server = TlsServer(tmp_path)
    sentinel = SentinelServer(
        *("localhost", server.tls_port, "port 0", "tls-replication yes", "tls-auth-clients no"),
        *(f"tls-cert-file {server.certificate}", f"tls-key-file {server.key}", f"tls-ca-cert-file {server.ca_file}"),
        # Otherwise it tells an address, for which the certificate is not made.
        *("sentinel resolve-hostnames yes", "sentinel announce-hostnames yes", "requirepass another-secret"),
        port_option="tls-port",
    )
    url = f"rediss+sentinel://:{PASSWORD}@localhost:{sentinel.port}/{NAME}/1?ssl_ca_certs={server.ca_file}"
    try:
        with pytest.raises(QueueAway, match="is a .sentinel_password= missing") as caught:
            JobQueue(url, "image_queue").connect()
        assert PASSWORD not in str(caught.value)
        assert "<" not in str(caught.value)
        queue = JobQueue(f"{url}&sentinel_password=another-secret", "image_queue")
        wait_for(lambda: can_connect(queue))
        new_web_side(queue).sender.submit_texts([new_job().to_text()])
        assert queue.waiting() == 1
        queue.close()
        here = JobQueue(server.tls_url().replace("/0?", "/1?"), "image_queue")
        assert here.waiting() == 1
        here.close()
    finally:
        sentinel.remove()
        server.remove()


def can_connect(queue: JobQueue) -> bool:
    with contextlib.suppress(QueueAway):
        queue.connect()
        return True
    return False


def test_a_name_that_no_sentinel_knows_and_sentinels_that_are_away_are_named(cluster: Cluster) -> None:
    for url in (cluster.url.replace(NAME, "another"), f"redis+sentinel://127.0.0.1:1/{NAME}"):
        with pytest.raises(QueueAway) as caught:
            JobQueue(url, "image_queue").connect()
        assert str(caught.value).startswith("REDIS_URL: no Sentinel that answers knows a live primary of this name")
        assert "<" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://host",
        "redis+sentinel:///name",
        "redis+sentinel://a,,b/name",
        "rediss+sentinel://:x/y@host/name",
    ],
)
def test_a_url_without_sentinels_or_without_a_name_is_refused(url: str) -> None:
    with pytest.raises(QueueAway, match="REDIS_URL cannot be understood"):
        JobQueue(url, "image_queue")
