"""GET /state: two web processes, two model servers, and a Redis that goes away."""

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import (
    Answer,
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    http,
    is_up,
    output,
    save_light_model,
    some_photo,
    upload,
    wait_for,
)

from serving.jobs.job_queue import JobQueue
from serving.web.live_state import GOOD_FOR_SECONDS, LatestLook, ModelState, PageFacts, in_json

PHOTO = as_bytes(some_photo(), "JPEG")
FACTS = PageFacts(asks_for_key=False, max_images=16, max_upload_bytes=1000, api_docs=True)
AWAY = ModelState("cats", is_default=True, top=5, is_independent=False, view=None)


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def url(own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of two web processes and two model servers, for which a key is needed."""
    environment = {"REDIS_URL": own_redis.url, "METRICS_PORT": "0", "API_KEY": "sesame"}
    processes = Processes(environment | save_light_model(Path(tmp_path_factory.mktemp("model"))))
    port = str(free_port())
    web = processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="2")
    for _ in range(2):
        processes.start("run_model_server.py")
    address = f"http://127.0.0.1:{port}"
    wait_for(lambda: is_up(f"{address}/readyz"))
    wait_for(lambda: state(address).json["status"] == "ready" and len(state(address).json["model_servers"]) == 2)
    yield address
    assert "Traceback" not in output(web)
    processes.end()


def state(address: str) -> Answer:
    return http("GET", f"{address}/state")


def test_the_counts_of_all_processes_are_in_every_answer(url: str) -> None:
    def predict(number: int) -> int:
        return upload(f"{url}/predict", PHOTO, Authorization="Bearer sesame").status

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(predict, range(24))) == {200}
    assert upload(f"{url}/predict", b"", Authorization="Bearer sesame").status == 400  # which nobody counts

    def all_is_told() -> bool:
        told = [state(url).json["last_minute"] for _ in range(8)]  # of both web processes
        return all(minute["answered"] >= 24 and minute["batches"] >= 1 for minute in told)

    wait_for(all_is_told, seconds=20)
    for _ in range(8):
        told = state(url).json
        minute = told["last_minute"]
        assert (minute["answered"], minute["failed"], told["answered_total"]) == (24, 0, 24)
        assert 0 < minute["p50_ms"] <= minute["p99_ms"]
        assert sum(second["answered"] for second in told["seconds"]) == 24
        assert {second["answered"] for second in told["seconds"][:20]} == {0}
        assert (told["waiting"], told["bulk_waiting"], told["oldest_waiting_seconds"]) == (0, 0, None)
    assert [server["model"] for server in told["model_servers"]] == ["mean-colour"] * 2
    assert len({server["name"] for server in told["model_servers"]}) == 2


def test_anybody_may_read_the_state_which_is_kept_by_nobody_and_names_no_host(url: str) -> None:
    answer = state(url)
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json["asks_for_key"] is True
    assert socket.gethostname() not in answer.body.decode()
    document = http("GET", f"{url}/openapi.json").json
    get = document["paths"]["/state"]["get"]
    assert get["security"] == []
    content = get["responses"]["200"]["content"]["application/json"]
    for told in answer.json, content["example"], in_json(AWAY, [AWAY], FACTS):
        jsonschema.validate(told, content["schema"] | {"components": document["components"]})


def test_while_redis_is_away_the_state_says_so_and_afterwards_it_is_back(url: str, own_redis: RedisServer) -> None:
    own_redis.process.kill()
    own_redis.process.wait()
    away = wait_for(lambda: (told := state(url).json)["status"] == "redis_away" and told)
    assert (away["waiting"], away["answered_per_second"], away["seconds"], away["model_servers"]) == (
        None,
        None,
        [],
        [],
    )
    assert (away["warning"], away["last_minute"]["answered"], away["asks_for_key"]) == (None, None, True)
    own_redis.start()
    wait_for(lambda: state(url).json["status"] == "ready")


class Counting(JobQueue):
    """Counts the looks."""

    looks = 0

    def run_in_turn(self, scripts: Sequence[Any]) -> list[Any]:
        self.looks += sum(script == "overview" for script, *_ in scripts)
        return super().run_in_turn(scripts)


def test_many_requests_of_a_second_wait_for_one_look(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.client.flushall()
    queue = Counting(redis_server.url, "image_queue", resend=True)
    latest, looks = LatestLook({"": queue}), []
    threads = [threading.Thread(target=lambda: looks.append(latest.overviews())) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(look) for look in looks}) == 1
    assert looks[0] is not None
    assert queue.looks == 1
    later = time.monotonic() + GOOD_FOR_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert latest.overviews() is not looks[0]


def test_a_redis_that_went_away_is_asked_once_a_second_too(monkeypatch: pytest.MonkeyPatch) -> None:
    latest = LatestLook({"": JobQueue("redis://127.0.0.1:1/0", "image_queue", resend=True)})
    assert latest.overviews() is None
    latest._queues = None  # type: ignore[assignment]
    assert latest.overviews() is None
    assert json.loads(json.dumps(in_json(AWAY, [AWAY], FACTS)))["status"] == "redis_away"
