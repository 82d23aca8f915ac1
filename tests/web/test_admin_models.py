"""/admin over HTTP where there are several models: each look and each act is of one of them, and says of which."""

from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import redis
from conftest import RedisServer, new_job
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

import web_parts
from run_web_server import create_app
from serving.jobs.job import Outcome
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.jobs.model_side import ModelSide
from serving.jobs.overview import overview
from serving.jobs.served import Served
from serving.telemetry.build import Build
from settings import Settings

ADA = {"Authorization": "Bearer sesame"}
SERVED = Served("cats", "0123", "float32", "openvino", 224, 224, 3, "x")


@pytest.fixture
def client(redis_server: RedisServer, raw: redis.Redis, tmp_path: Path) -> Iterator[FlaskClient]:
    """A client of an application of two models, cats, the default, and flowers."""
    (tmp_path / "models.yaml").write_text("models: {cats: {model: MobileNetV2}, flowers: {model: flowers.keras}}")
    config = Settings(redis_url=redis_server.url, admin_api_key="ada:sesame", models_file=str(tmp_path / "models.yaml"))
    with ThreadPool(1) as pool:
        yield create_app(config, pool, web_parts.open_counts(config, Build())).test_client()


@pytest.fixture
def queues(redis_server: RedisServer, client: FlaskClient) -> Iterator[dict[str, JobQueue]]:
    found = {name: JobQueue(redis_server.url, f"image_queue:{name}") for name in ("cats", "flowers")}
    yield found
    for queue in found.values():
        queue.close()


@pytest.fixture
def member(queues: dict[str, JobQueue]) -> Membership:
    """A model server of cats."""
    terms: dict[str, Any] = {"lease_seconds": 10.0, "max_attempts": 3, "result_ttl_seconds": 60}
    return ModelSide(queues["cats"], served=SERVED, labels=["a"], **terms).join()


def ask(client: FlaskClient, method: str, path: str, model: str | None = None, **options: Any) -> TestResponse:
    query = {"query_string": {"model": model}} if model else {}
    return client.open(path, method=method, headers=ADA, **query, **options)


def test_the_stats_are_of_one_model_and_say_of_each_whether_it_is_well(
    client: FlaskClient, queues: dict[str, JobQueue], member: Membership
) -> None:
    told = {model: ask(client, "GET", "/admin/stats", model).get_json() for model in (None, "cats", "flowers")}
    assert [told[model]["model"] for model in told] == ["cats", "cats", "flowers"]
    assert [len(told[model]["model_servers"]) for model in told] == [1, 1, 0]
    for one in told.values():
        assert [(model["name"], model["default"], model["well"]) for model in one["models"]] == [
            ("cats", True, True),
            ("flowers", False, False),
        ]
        (problem,) = one["models"][1]["problems"]
        assert problem["code"] == "no_model_server"
        assert problem["text"].startswith("No model server lives")
    document = client.get("/openapi.json").get_json()
    schema = document["paths"]["/admin/stats"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(told["flowers"], schema | {"components": document["components"]})


@pytest.mark.parametrize("body", [{"paused": True}, {"draining": True}])
def test_an_act_changes_the_model_that_it_names_alone(
    client: FlaskClient, queues: dict[str, JobQueue], caplog: pytest.LogCaptureFixture, body: dict[str, bool]
) -> None:
    answer = ask(client, "POST", "/admin/queue", "flowers", json=body)
    assert answer.get_json() == {"success": True, "changed": True, "model": "flowers"}
    verb = "pause" if "paused" in body else "drain"
    assert [record.getMessage() for record in caplog.records] == [
        f"{verb} image_queue:flowers: 1 changed, asked by ada"
    ]
    seen = {name: overview(queue) for name, queue in queues.items()}
    assert {name: one.is_paused or one.is_draining for name, one in seen.items()} == {"cats": False, "flowers": True}
    assert ask(client, "POST", "/admin/queue", json=body).get_json()["model"] == "cats"  # the default


def test_a_model_server_is_known_to_its_own_model(
    client: FlaskClient, member: Membership, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"/admin/servers/{member.name}"
    assert ask(client, "POST", path, "flowers", json={"quiet": True}).status_code == 404
    caplog.clear()
    assert ask(client, "POST", path, "cats", json={"quiet": True}).get_json()["model"] == "cats"
    (line,) = [record.getMessage() for record in caplog.records if record.name == "operator"]
    assert line == f"quiet {member.name} of cats: 1 changed, asked by ada"


def test_dead_letters_are_those_of_the_model(
    client: FlaskClient, queues: dict[str, JobQueue], member: Membership, raw: redis.Redis
) -> None:
    job = new_job()
    raw.rpush("image_queue:cats", job.to_text())
    (taken,) = member.take(1).jobs
    member.answer([Outcome(taken, job.id, failure="it failed")])
    totals = [ask(client, "GET", "/admin/dead-letters", model).get_json()["total"] for model in ("cats", "flowers")]
    assert totals == [1, 0]
    for verb, path in (("POST", f"/admin/dead-letters/{job.id}/requeue"), ("DELETE", f"/admin/dead-letters/{job.id}")):
        assert ask(client, verb, path, "flowers").status_code == 404
    answer = ask(client, "POST", f"/admin/dead-letters/{job.id}/requeue", "cats")
    assert answer.get_json() == {"success": True, "changed": True, "model": "cats"}
    assert (raw.llen("image_queue:cats"), raw.llen("image_queue:flowers")) == (1, 0)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/admin/stats"), ("GET", "/admin/dead-letters"), ("POST", "/admin/queue"), ("POST", "/admin/servers/x")],
)
def test_a_model_that_is_not_there_is_told_to_who_has_the_key_alone(
    client: FlaskClient, raw: redis.Redis, method: str, path: str
) -> None:
    body = {"json": {"paused": True}} if method == "POST" else {}
    answer = ask(client, method, path, "dogs", **body)
    assert answer.status_code == 404
    assert "There is no model `dogs`; this service has `cats`, `flowers`." in answer.get_json()["error"]
    assert client.open(path, method=method, query_string={"model": "dogs"}, **body).status_code == 401
    assert raw.keys("*paused*") == []
