"""Several models in one service: two real model servers at two queues, a third model whose server is away, and the web
server between them and its clients."""

import contextlib
import itertools
import json
import socket
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from conftest import Answer, Answering, Processes, RedisServer, as_bytes, free_port, http, is_up, upload, wait_for
from flask.testing import FlaskClient
from PIL import Image
from test_openapi import check

import run_web_server
import settings
from serving.errors import Unavailable
from serving.jobs import control
from serving.jobs.job_queue import JobQueue
from serving.jobs.served import Served
from serving.telemetry.build import Build
from serving.telemetry.web_metrics import WebMetrics
from serving.web.places import Places, share

RED, BLUE = (as_bytes(Image.new("RGB", (40, 40), colour), "PNG") for colour in ("red", "blue"))
MODELS_FILE = """
default: colours
models:
  farben: {model: mean colour, width: 16}
  colours: {model: mean colour}
  away: {model: mean colour, width: 8, height: 8}
"""
LABELS = {"colours": ["red", "green", "blue", "grey"], "farben": ["rot", "gruen", "blau", "grau"]}
SIDES = {"colours": 32, "farben": 16}
RUNTIMES = {"colours": "MeanColour", "farben": "Independent"}
NAMES = "`colours`, `farben`, `away`"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "models.yaml").write_text(MODELS_FILE)
    for name, labels in LABELS.items():
        (folder / f"{name}.txt").write_text("\n".join(labels))
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[str]:
    """The address of the web server; its model servers are ready, but for that of the model `away`."""
    redis_server = RedisServer()
    processes, port = Processes({"REDIS_URL": redis_server.url, "METRICS_PORT": "0"}), str(free_port())
    for name, side in SIDES.items():
        model = {"MODEL": "mean colour", "MODEL_RUNTIME": f"runtimes:{RUNTIMES[name]}", "MODEL_NAME": name}
        model |= {"MODEL_LABELS": str(folder / f"{name}.txt"), "IMAGE_WIDTH": str(side), "IMAGE_HEIGHT": str(side)}
        tests = str(Path(__file__).parents[1])
        processes.start("run_model_server.py", IMAGE_QUEUE=f"image_queue:{name}", PYTHONPATH=tests, **model)
    limits = {"MAX_QUEUE_LENGTH": "2", "REQUEST_TIMEOUT_SECONDS": "1", "CLIENT_SLEEP": "0.05"}
    file = str(folder / "models.yaml")
    processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1", MODELS_FILE=file, **limits)
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: all(is_up(f"{url}/readyz/{name}") for name in SIDES))
    yield url
    processes.end()
    redis_server.remove()


@pytest.fixture(scope="module")
def document(service: str) -> dict[str, Any]:
    return http("GET", f"{service}/openapi.json").json


def first_label(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return answer.json["predictions"][0]["label"]


def test_each_model_answers_under_its_name_and_the_default_without_one(service: str, document: dict[str, Any]) -> None:
    for image, number in (RED, 0), (BLUE, 2):
        assert first_label(upload(f"{service}/predict", image)) == LABELS["colours"][number]
        for name, labels in LABELS.items():
            answer = upload(f"{service}/predict/{name}", image)
            assert first_label(answer) == labels[number]
            check(document, "post", "/predict/{name}", answer)
            assert answer.headers["X-Model-Version"]


def test_a_named_model_is_asked_in_all_the_ways_of_the_default_one(service: str) -> None:
    raw = http("POST", f"{service}/predict/farben?top=2", BLUE, Content_Type="image/png")
    assert [one["label"] for one in raw.json["predictions"]] == ["blau", "grau"]
    assert http("POST", f"{service}/predict/farben?top=5", BLUE, Content_Type="image/png").status == 400
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    form = b"\r\n".join([part + RED, part + b"no image", part + BLUE, b"--b--\r\n"])
    several = http("POST", f"{service}/predict/farben", form, Content_Type="multipart/form-data; boundary=b")
    told = [
        result["predictions"][0]["label"] if result["success"] else result["status"]
        for result in several.json["results"]
    ]
    assert told == ["rot", 415, "blau"]


@pytest.mark.parametrize("name", ["nobody", "Farben", "farben%20", "%C3%B6", "%00", "%FF", "..", "%2e%2e", "a" * 300])
@pytest.mark.parametrize("path", ["POST /predict/", "GET /readyz/", "GET /v2/models/", "POST /v2/models/*/infer"])
def test_another_name_is_told_which_there_are_and_is_never_answered_by_another_model(
    service: str, document: dict[str, Any], path: str, name: str
) -> None:
    method, _, where = path.partition(" ")
    where, end = where.replace("*/infer", ""), "/infer" if where.endswith("infer") else ""
    answer = raw_http(service, method, f"{where}{name}{end}", RED)
    assert answer.status == 404
    assert answer.json["error"].startswith("There is no model `")
    assert answer.json["error"].endswith(f"`; this service has {NAMES}.")
    assert len(answer.body) < 400
    if where in ("/predict/", "/readyz/"):
        check(document, method.lower(), where + "{name}", answer)


def raw_http(url: str, method: str, path: str, body: bytes) -> Answer:
    """Ask for a path as it stands here: libraries would tidy it up."""
    host, port = url.removeprefix("http://").split(":")
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
        with connection.makefile("rb") as file:
            status, lines = int(file.readline().split()[1]), iter(file.readline, b"\r\n")
            headers = dict(line.decode().rstrip().split(": ", 1) for line in lines)
            return Answer(status, Headers(headers), file.read())


class Headers(dict[str, str]):
    """Headers of which those that are missing are None."""

    def __missing__(self, _name: str) -> None:
        return None


def test_a_name_with_a_slash_is_no_page(service: str) -> None:
    for path in ("/predict/a/b", "/predict/farben%2Fx", "/predict/", "/predict/farben/"):
        answer = raw_http(service, "POST", path, RED)
        assert (answer.status, answer.json["error"].split(".")[0]) == (404, "There is no such page")


def test_the_models_are_told_with_how_each_is_doing(service: str, document: dict[str, Any]) -> None:
    answer = http("GET", f"{service}/models")
    check(document, "get", "/models", answer)
    colours, farben, away = answer.json["models"]
    assert [(one["name"], one["default"], one["ready"]) for one in answer.json["models"]] == [
        ("colours", True, True),
        ("farben", False, True),
        ("away", False, False),
    ]
    assert [(one["width"], one["height"], one["channels"], one["classes"]) for one in (colours, farben)] == [
        (32, 32, 3, 4),
        (16, 16, 3, 4),
    ]
    assert upload(f"{service}/predict", RED).headers["X-Model-Version"] == colours["version"]
    assert (colours["independent"], farben["independent"]) == (False, True)
    assert (away["version"], away["width"], away["classes"], away["independent"]) == (None, None, None, None)


def test_the_service_is_ready_as_long_as_one_model_is_and_each_model_for_itself(
    service: str, document: dict[str, Any]
) -> None:
    ready = http("GET", f"{service}/readyz")
    check(document, "get", "/readyz", ready)
    assert ready.json == {
        "ready": True,
        "model_servers": 2,
        "models": {"colours": True, "farben": True, "away": False},
    }
    assert http("GET", f"{service}/readyz/farben").json == {"ready": True, "model_servers": 1}
    assert http("GET", f"{service}/readyz/away").status == 503
    assert http("GET", f"{service}/v2/models/farben/ready").json == {"name": "farben", "ready": True}
    assert http("GET", f"{service}/v2/health/ready").status == 503  # of the protocol: every model is ready


def test_v2_lists_the_models(service: str, document: dict[str, Any]) -> None:
    answer = http("POST", f"{service}/v2/repository/index", b"")
    check(document, "post", "/v2/repository/index", answer)
    assert [(one["name"], one["state"]) for one in answer.json] == [
        ("colours", "READY"),
        ("farben", "READY"),
        ("away", "UNAVAILABLE"),
    ]


def test_v2_has_each_model_with_its_own_size_and_labels(service: str) -> None:
    for name, side in SIDES.items():
        metadata = http("GET", f"{service}/v2/models/{name}").json
        assert (metadata["name"], metadata["inputs"][0]["shape"]) == (name, [-1, side, side, 3])
        pixels = np.zeros((1, side, side, 3), np.uint8)
        pixels[..., 2] = 255
        tensor = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
        wanted = {"name": "probabilities", "parameters": {"classification": 1}}
        body = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
        answer = http("POST", f"{service}/v2/models/{name}/infer", body, Content_Type="application/json").json
        assert (answer["model_name"], answer["outputs"][0]["data"][0].split(":")[1:]) == (name, ["2", LABELS[name][2]])


def test_a_model_whose_server_is_away_and_whose_queue_is_full_keeps_no_other_from_answering(service: str) -> None:
    with ThreadPool(4) as pool:
        hopeless = (
            pool.map_async(upload, [f"{service}/predict/away"] * 2, chunksize=1)
            if False
            else [pool.apply_async(upload, (f"{service}/predict/away", RED)) for _ in range(4)]
        )
        for name in 3 * [*SIDES]:
            assert upload(f"{service}/predict/{name}", RED).status == 200
        ends = sorted(one.get().status for one in hopeless)
    assert ends == [503, 503, 504, 504]  # two wait in vain, and there is room for two alone


def test_a_job_is_told_of_by_its_id_alone_whichever_model_it_is_of(service: str) -> None:
    for name, labels in LABELS.items():
        accepted = upload(f"{service}/predict/{name}", RED, Prefer="respond-async")
        assert accepted.status == 202
        job = http("GET", service + accepted.headers["Location"], Prefer="wait=10")
        assert (job.json["status"], job.json["predictions"][0]["label"]) == ("succeeded", labels[0])
    hopeless = service + upload(f"{service}/predict/away", RED, Prefer="respond-async").headers["Location"]
    assert http("GET", hopeless, Prefer="wait=0").json["status"] == "queued"
    assert http("DELETE", hopeless).json["status"] == "canceled"
    assert http("GET", hopeless).json["status"] == "canceled"
    unknown = http("GET", f"{service}/jobs/11111111-1111-4111-8111-111111111111")
    assert unknown.status == 404


def test_an_idempotency_key_belongs_to_the_model_and_the_default_is_the_same_by_its_name(service: str) -> None:
    headers = {"Prefer": "respond-async", "Idempotency_Key": "once"}

    def job_of(path: str, image: bytes = RED) -> Answer:
        return upload(service + path, image, **headers)

    job = job_of("/predict").headers["Location"]
    assert job_of("/predict/colours").headers["Location"] == job
    assert job_of("/predict/farben").headers["Location"] not in (None, job)
    assert job_of("/predict/colours", BLUE).status == 422
    waited = upload(f"{service}/predict/farben", RED, Idempotency_Key="once")
    assert first_label(waited) == "rot"


# In this process: what needs a queue that is in a certain state.


@pytest.fixture
def client(redis_server: RedisServer, raw: redis.Redis, folder: Path) -> Iterator[FlaskClient]:
    config = settings.Settings(
        redis_url=redis_server.url, models_file=str(folder / "models.yaml"), request_timeout_seconds=2, web_threads=1
    )
    with ThreadPool(1) as pool:
        app = run_web_server.create_app(config, pool, WebMetrics(Build()))
        app.extensions["models"].start()
        yield app.test_client()


def post(client: FlaskClient, path: str) -> tuple[int, str]:
    answer = client.post(path, data=RED, content_type="image/png")
    return answer.status_code, answer.json.get("error", "")  # type: ignore[union-attr]


def test_a_queue_that_another_model_serves_answers_nothing_under_this_models_name(
    client: FlaskClient, redis_server: RedisServer
) -> None:
    stranger = Served("stranger", "7", "float32", "ours", 16, 16, 3, "1a2b")
    stand_in = Answering(redis_server.url, stranger, queue="image_queue:farben")
    try:
        wait_for(
            lambda: client.get("/readyz/farben").status_code == 503 and stand_in.queue.model_server_names(expired=False)
        )
        status, says = post(client, "/predict/farben")
        assert status == 503
        assert "image_queue:farben is served by the model stranger, and this web server is for farben" in says
        assert client.get("/readyz/farben").status_code == 503
        assert client.get("/v2/models/farben").status_code == 503
        assert post(client, "/predict/stranger")[0] == 404
        (farben,) = [one for one in client.get("/models").json["models"] if one["name"] == "farben"]  # type: ignore[index]
        assert (farben["ready"], farben["version"], farben["width"]) == (False, None, None)
    finally:
        stand_in.stop()


def test_what_an_operator_does_to_one_model_leaves_the_others_alone(
    client: FlaskClient, redis_server: RedisServer
) -> None:
    queues = {name: JobQueue(redis_server.url, f"image_queue:{name}") for name in SIDES}
    stand_ins = [Answering(redis_server.url, queue=queue.name) for queue in queues.values()]
    try:
        wait_for(lambda: all(queue.model_server_names(expired=False) for queue in queues.values()))
        control.drain(queues["colours"])
        assert post(client, "/predict")[0] == 503
        assert post(client, "/predict/farben")[0] == 200
        assert client.get("/readyz").json["models"] == {"colours": False, "farben": True, "away": False}  # type: ignore[index]
        control.drain(queues["farben"])
        refused = client.get("/readyz")
        assert (refused.status_code, "draining" in refused.json["error"]) == (503, True)  # type: ignore[index]
    finally:
        for stand_in in stand_ins:
            stand_in.stop()


def test_all_models_of_a_process_share_its_places(client: FlaskClient) -> None:
    models = client.application.extensions["models"]
    with models.default.service.places.hold():
        assert [post(client, f"/predict/{name}")[1] for name in SIDES] == 2 * [
            "Too many requests for this model are in hand already. Try again in a moment."
        ]
    assert {model.queue.name for model in models.all()} == {f"image_queue:{name}" for name in (*SIDES, "away")}


@pytest.mark.parametrize(("count", "models", "most", "kept"), [(1, 3, 1, 0), (8, 2, 6, 2), (256, 3, 172, 42)])
def test_one_model_cannot_take_the_places_that_are_kept_for_another(
    count: int, models: int, most: int, kept: int
) -> None:
    def fill(stack: contextlib.ExitStack, places: Places) -> int:
        for number in itertools.count():
            try:
                stack.enter_context(places.hold())
            except Unavailable:
                return number
        raise AssertionError

    first, *others = share(count, models)
    for _ in range(2):  # all of them are given back
        with contextlib.ExitStack() as stack:
            assert fill(stack, first) == most
            assert [fill(stack, other) for other in others] == [kept] * (models - 1)
    (alone,) = share(count, 1)
    with contextlib.ExitStack() as stack:
        assert fill(stack, alone) == count
