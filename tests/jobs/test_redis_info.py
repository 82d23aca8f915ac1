"""What a Redis tells of itself at start: one that cannot keep the promise is refused, one that may not is told of."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from conftest import ROOT, RedisServer, clean_environment, free_port, output, wait_for
from conftest import Processes as Started
from test_failover import SentinelServer
from test_redis_url import PASSWORD, documented_rights, refusal

from serving.jobs.job_queue import JobQueue

KEEPS = ("--appendonly", "yes")
LIMITED = ("--maxmemory", "100mb", "--maxmemory-policy")
SCRIPTS = {"run_web_server.py": [], "run_model_server.py": [], "run_service.py": [], "queue_admin.py": ["dead", "list"]}

NewRedis = Callable[..., RedisServer]


@pytest.fixture
def new_redis() -> Iterator[NewRedis]:
    servers: list[RedisServer] = []

    def new(*options: str) -> RedisServer:
        servers.append(RedisServer(*options))
        return servers[-1]

    yield new
    for server in servers:
        server.remove()


def doubts(url: str) -> list[str]:
    """What is said of the Redis at `url` at a start."""
    queue = JobQueue(url, "image_queue")
    found = queue.connect()
    queue.close()
    return found


# Refused


def test_a_redis_in_cluster_mode_is_refused_whatever_the_database(new_redis: NewRedis) -> None:
    server = new_redis("--cluster-enabled", "yes")
    assert "cluster mode" in refusal(server.url)
    assert "cluster mode" in refusal(server.url.replace("/0", "/1"))


def test_a_replica_is_refused_and_its_primary_named_writable_or_not(new_redis: NewRedis) -> None:
    primary = new_redis()
    replica = new_redis("--replicaof", "127.0.0.1", str(primary.port))
    for read_only in ("yes", "no"):  # what a writable one accepts is gone with the next resynchronisation
        replica.client.config_set("replica-read-only", read_only)
        assert f"a replica of 127.0.0.1:{primary.port}" in refusal(replica.url)
    assert doubts(primary.url) == doubts(new_redis().url)  # one with a replica is as good as one without


def test_a_sentinel_in_the_place_of_a_redis_is_refused_and_told_how_to_be_written(new_redis: NewRedis) -> None:
    sentinel = SentinelServer("127.0.0.1", new_redis().port)
    try:
        wait_for(sentinel.primary)
        for database in (0, 1):
            said = refusal(f"redis://127.0.0.1:{sentinel.port}/{database}")
            assert "a Sentinel, not a Redis" in said
            assert "redis+sentinel://" in said
    finally:
        sentinel.remove()


def test_a_database_that_the_redis_does_not_have_is_refused(new_redis: NewRedis) -> None:
    said = refusal(new_redis().url.replace("/0", "/99"))
    assert "has no database of that number" in said
    assert "DB index is out of range" in said


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_program_ends_with_2_and_a_sentence_beside_a_redis_that_it_refuses(
    script: str, new_redis: NewRedis
) -> None:
    server = new_redis("--cluster-enabled", "yes")
    ended = subprocess.run(
        [sys.executable, str(ROOT / script), *SCRIPTS[script]],
        env=clean_environment() | {"REDIS_URL": server.url, "WEB_PORT": str(free_port()), "METRICS_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert "REDIS_URL: this Redis runs in cluster mode" in ended.stderr
    assert "Traceback" not in ended.stderr


# Told of


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_a_policy_that_throws_any_key_out_is_told_to_lose_accepted_jobs(new_redis: NewRedis, policy: str) -> None:
    server = new_redis(*KEEPS, *LIMITED, policy)
    (said,) = doubts(server.url)
    assert "throws accepted jobs away" in said
    assert policy in said
    assert "noeviction" in said


@pytest.mark.parametrize("policy", ["volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"])
def test_a_policy_for_keys_with_a_lifetime_is_told_to_lose_answers(new_redis: NewRedis, policy: str) -> None:
    """Waiting jobs have no lifetime; answers do, and so do the counts of jobs that came back."""
    (said,) = doubts(new_redis(*KEEPS, *LIMITED, policy).url)
    assert "throws answers away that nobody has read" in said
    assert policy in said


@pytest.mark.parametrize("options", [(*LIMITED, "noeviction"), ("--maxmemory-policy", "allkeys-lru")])
def test_a_redis_that_throws_nothing_out_and_keeps_its_data_is_not_told_of(
    new_redis: NewRedis, options: tuple[str, ...]
) -> None:
    assert doubts(new_redis(*KEEPS, *options).url) == []


@pytest.mark.parametrize("snapshots", ["", "3600 1 300 100"])
def test_a_redis_without_an_append_only_file_is_told_of_with_and_without_snapshots(
    new_redis: NewRedis, snapshots: str
) -> None:
    (said,) = doubts(new_redis("--save", snapshots).url)
    assert "set its appendonly to yes" in said


def test_the_documented_rights_are_enough_to_know_all_of_it(new_redis: NewRedis) -> None:
    def as_user(server: RedisServer) -> str:
        server.client.execute_command("ACL", "SETUSER", "classification", "on", f">{PASSWORD}", *documented_rights())
        return f"redis://classification:{PASSWORD}@127.0.0.1:{server.port}/0"

    assert "cluster mode" in refusal(as_user(new_redis("--cluster-enabled", "yes")))
    assert len(doubts(as_user(new_redis(*LIMITED, "allkeys-lru")))) == 2
    assert doubts(as_user(new_redis(*KEEPS))) == []


@pytest.mark.parametrize("script", ["run_web_server.py", "run_model_server.py"])
def test_a_server_tells_of_it_once_as_a_warning(script: str, new_redis: NewRedis, light_model: dict[str, str]) -> None:
    server = new_redis(*LIMITED, "allkeys-lru")
    environment = {"REDIS_URL": server.url, "METRICS_PORT": "0", "WEB_WORKERS": "2"} | light_model
    started = Started(environment | {"WEB_PORT": str(free_port())})
    try:
        process = started.start(script)
        wait_for(lambda: "ooting worker" in output(process) or "joined the queue" in output(process))
        for words in ("WARNING", "throws accepted jobs away", "set its appendonly to yes"):
            assert words in output(process)
        assert (
            output(process).count("throws accepted jobs away")
            == output(process).count("set its appendonly to yes")
            == 1
        )
    finally:
        started.end()


def test_what_asks_for_health_or_dead_letters_tells_nothing_of_it(new_redis: NewRedis) -> None:
    server = new_redis(*LIMITED, "allkeys-lru")
    for script, *arguments, status in (
        ("queue_admin.py", "dead", "list", 0),
        ("run_model_server.py", "--check-health", 1),
    ):
        ended = subprocess.run(
            [sys.executable, str(ROOT / script), *arguments],
            env=clean_environment() | {"REDIS_URL": server.url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == status
        assert "noeviction" not in ended.stdout + ended.stderr


def test_a_redis_that_does_not_tell_is_trusted() -> None:
    """Some that speak Redis's protocol leave parts of INFO out."""
    from serving.jobs.redis_info import doubts, refusal

    assert (refusal({"redis_version": "7.2.4"}), doubts({"redis_version": "7.2.4"})) == (None, [])
