"""/v2 on a real service: what each path answers, what tensors become, what is refused, and in which form."""

import base64
import json
import re
import struct
import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import (
    ROOT,
    Answer,
    Answering,
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    http,
    is_up,
    output,
    upload,
    wait_for,
)
from flask import Flask
from PIL import Image
from test_openapi import check

from serving.errors import RequestError, TimedOut, Unavailable
from serving.jobs import job
from serving.jobs.served import Served, digest_of
from serving.web import open_inference, problems, uploads
from serving.web.classify import Reply
from serving.web.open_inference import check_version

RED, BLUE = (as_bytes(Image.new("RGB", (40, 40), colour), "PNG") for colour in ("red", "blue"))
SIDE = 32
PURE = np.zeros((2, SIDE, SIDE, 3), np.uint8)  # red, blue
PURE[0, ..., 0] = PURE[1, ..., 2] = 255
LIMITS = {"MAX_UPLOAD_BYTES": "20000", "MAX_REQUEST_BYTES": "100000", "MAX_IMAGES": "8"}
QUEUE = "open_inference"  # not the one at which a stand-in answers
SIZE = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def processes(redis_server: RedisServer) -> Iterator[Processes]:
    redis_server.client.flushall()
    started = Processes({"REDIS_URL": redis_server.url, "METRICS_PORT": "0"})
    yield started
    started.end()


@pytest.fixture(scope="module")
def service(processes: Processes, light_model: dict[str, str]) -> str:
    """The address of a web server whose model server has four labels; the largest image has 20,000 bytes."""
    port = free_port()
    queue = {"IMAGE_QUEUE": QUEUE}
    web = processes.start("run_web_server.py", WEB_PORT=str(port), WEB_WORKERS="1", **LIMITS, **queue)
    wait_for(lambda: is_up(f"http://127.0.0.1:{port}/healthz"))
    url = f"http://127.0.0.1:{port}"
    for path in ("health/ready", "models/mean_colour", "models/mean_colour/ready", "models/mean_colour/config"):
        before = http("GET", f"{url}/v2/{path}")
        assert (before.status, list(before.json), before.headers["Retry-After"]) == (503, ["error"], "5")
    wait_for(lambda: "GET /v2/models/<name>: 503" in output(web))
    assert "/ready" not in output(web)  # probes ask all the time while nobody waits
    processes.start("run_model_server.py", MODEL_NAME="mean_colour", **light_model, **queue)
    wait_for(lambda: is_up(f"{url}/v2/health/ready"))
    return url


@pytest.fixture(scope="module")
def model(service: str) -> str:
    """The address of the model."""
    return f"{service}/v2/models/mean_colour"


def tensor(data: Any, **changes: Any) -> dict[str, Any]:
    """An input of pixels in JSON."""
    return {"name": "pixels", "datatype": "UINT8", "shape": [1, SIDE, SIDE, 3], "data": data} | changes


def files(*contents: bytes) -> dict[str, Any]:
    """An input of files in JSON."""
    texts = [base64.b64encode(content).decode() for content in contents]
    return {"name": "image", "datatype": "BYTES", "shape": [len(texts)], "data": texts}


def infer(model: str, *inputs: dict[str, Any], **members: Any) -> Answer:
    body = json.dumps({"inputs": inputs, **members}).encode()
    return http("POST", f"{model}/infer", body, Content_Type="application/json")


def infer_binary(model: str, content: bytes, one: dict[str, Any], **members: Any) -> Answer:
    one = {name: value for name, value in one.items() if name != "data"}
    head = json.dumps({"inputs": [one | {"parameters": {"binary_data_size": len(content)}}], **members}).encode()
    headers = {"Content_Type": "application/octet-stream", SIZE: str(len(head))}
    return http("POST", f"{model}/infer", head + content, **headers)


def rows(answer: Answer) -> np.ndarray:
    """The probabilities of an answer in JSON."""
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == "application/json"
    (output,) = answer.json["outputs"]
    assert (output["name"], output["datatype"]) == ("probabilities", "FP32")
    return np.array(output["data"], np.float32).reshape(output["shape"])


def by_predict(service: str, image: bytes) -> dict[str, float]:
    return {one["label"]: one["probability"] for one in upload(f"{service}/predict", image).json["predictions"]}


# What the service and its model are.


def test_the_server_and_its_health_are_told(service: str) -> None:
    for path in ("/v2", "/v2/"):
        told = http("GET", f"{service}{path}").json
        assert told["name"]
        assert set(told["extensions"]) == {"binary_tensor_data", "classification", "model_configuration"}
    assert http("GET", f"{service}/v2/health/live").json == {"live": True}
    assert http("GET", f"{service}/v2/health/ready").json == {"live": True, "ready": True}


def test_the_model_is_told_with_and_without_its_version(model: str) -> None:
    told = http("GET", model).json
    assert told["name"] == "mean_colour"
    assert told["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, SIDE, SIDE, 3]}]
    assert told["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 4]}]
    assert {one["name"] for one in told["instead_of_inputs"]} == {"pixels", "image"}
    (version,) = told["versions"]
    config = http("GET", f"{model}/config").json
    assert config["max_batch_size"] == int(LIMITS["MAX_IMAGES"])
    (pixels,), (output,) = config["input"], config["output"]
    assert (pixels["data_type"], pixels["format"], pixels["dims"]) == ("TYPE_FP32", "FORMAT_NHWC", [SIDE, SIDE, 3])
    assert (output["name"], output["data_type"], output["dims"]) == ("probabilities", "TYPE_FP32", [4])
    assert http("GET", f"{model}/ready").json == {"name": "mean_colour", "ready": True}
    for path, answer in (("", told), ("/config", config), ("/ready", {"name": "mean_colour", "ready": True})):
        assert http("GET", f"{model}/versions/{version}{path}").json == answer
    one = http("POST", f"{model}/versions/{version}/infer", json.dumps({"inputs": [files(RED)]}).encode())
    assert (one.status, one.json["model_version"]) == (200, version)


@pytest.mark.parametrize("path", ["", "/ready", "/config", "/infer"])
def test_another_model_or_version_is_not_there_and_the_answer_names_what_is(
    service: str, model: str, path: str
) -> None:
    method, body = ("POST", json.dumps({"inputs": [files(RED)]}).encode()) if path == "/infer" else ("GET", None)
    for url, named in ((f"{service}/v2/models/ResNet50", "mean_colour"), (f"{model}/versions/1", "version")):
        answer = http(method, f"{url}{path}", body)
        assert (answer.status, list(answer.json)) == (404, ["error"])
        assert named in answer.json["error"]
        assert answer.headers["X-Request-ID"]


def test_what_is_no_part_of_the_protocol_is_refused_in_its_form(service: str, model: str) -> None:
    for method, url, allowed in (
        ("GET", f"{service}/v2/nothing", None),
        ("POST", f"{service}/v2/repository/models/mean_colour/load", None),
        ("GET", f"{model}/infer", "POST"),
        ("POST", model, "GET, HEAD"),
        ("DELETE", f"{service}/v2", "GET, HEAD"),
    ):
        answer = http(method, url, b"" if method == "POST" else None)
        assert list(answer.json) == ["error"], url
        assert answer.headers["Allow"] == allowed if allowed else answer.status == 404, url
        assert answer.status == (405 if allowed else 404), url


def test_each_answer_is_as_openapi_json_says(service: str, model: str) -> None:
    document = http("GET", f"{service}/openapi.json").json
    (version,) = http("GET", model).json["versions"]
    body = json.dumps({"inputs": [files(RED)], "id": "1"}).encode()
    for path in ("/v2", "/v2/health/live", "/v2/health/ready"):
        check(document, "get", path, http("GET", service + path))
    for told, path in (("", ""), ("/versions/{version}", f"/versions/{version}")):
        for end in ("", "/config", "/ready"):
            check(document, "get", f"/v2/models/{{name}}{told}{end}", http("GET", f"{model}{path}{end}"))
            unknown = http("GET", f"{service}/v2/models/other{path}{end}")
            check(document, "get", f"/v2/models/{{name}}{told}{end}", unknown)
        for content in (body, b"hello", b'{"inputs": []}'):
            answer = http("POST", f"{model}{path}/infer", content)
            check(document, "post", f"/v2/models/{{name}}{told}/infer", answer)


# Pictures in, probabilities out.


def test_files_and_pixels_of_a_batch_are_answered_as_predict_answers_each(service: str, model: str) -> None:
    expected = [by_predict(service, image) for image in (RED, BLUE)]
    told = np.array([[one[label] for label in ("red", "green", "blue", "grey")] for one in expected], np.float32)
    floats = np.abs(PURE.astype("<f4") - np.float32(0.3))  # 0.3 and 254.7 are rounded
    shape = {"shape": [2, SIDE, SIDE, 3]}
    answers = {
        "files in JSON": infer(model, files(RED, BLUE)),
        "files in JSON, [n, 1]": infer(model, files(RED, BLUE) | {"shape": [2, 1]}),
        "pixels in JSON": infer(model, tensor(PURE.ravel().tolist(), **shape)),
        "pixels in JSON, nested": infer(model, tensor(PURE.tolist(), **shape)),
        "floats in JSON": infer(model, tensor([float(value) for value in floats.ravel()], datatype="FP32", **shape)),
        "files behind it": infer_binary(
            model, b"".join(struct.pack("<I", len(file)) + file for file in (RED, BLUE)), files(RED, BLUE)
        ),
        "pixels behind it": infer_binary(model, PURE.tobytes(), tensor(None, **shape)),
        "floats behind it": infer_binary(model, floats.tobytes(), tensor(None, datatype="FP32", **shape)),
    }
    for name, answer in answers.items():
        np.testing.assert_array_equal(rows(answer), told, err_msg=name)
        assert rows(answer).sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_an_answer_brings_its_tensor_behind_the_json_where_that_is_asked_for(model: str) -> None:
    told = rows(infer(model, files(RED, BLUE)))
    for asks in (
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}]},
    ):
        answer = infer(model, files(RED, BLUE), **asks)
        assert answer.headers["Content-Type"] == "application/octet-stream"
        length = int(answer.headers[SIZE])
        (output,) = json.loads(answer.body[:length])["outputs"]
        assert output["parameters"] == {"binary_data_size": len(answer.body) - length}
        np.testing.assert_array_equal(np.frombuffer(answer.body[length:], "<f4").reshape(output["shape"]), told)
    overridden = {"name": "probabilities", "parameters": {"binary_data": False}}
    assert rows(infer(model, files(RED), outputs=[overridden], parameters={"binary_data_output": True})).shape == (1, 4)


def test_the_likeliest_classes_come_as_text_with_their_index(service: str, model: str) -> None:
    asked = {"name": "probabilities", "parameters": {"classification": 2}}
    (output,) = infer(model, files(RED, BLUE), outputs=[asked]).json["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    likeliest = by_predict(service, RED)
    assert output["data"][0] == f"{likeliest['red']:.6f}:0:red"
    assert output["data"][2].split(":")[1:] == ["2", "blue"]
    for count in (0, 5, -1, "2"):
        asked["parameters"] = {"classification": count}
        assert infer(model, files(RED), outputs=[asked]).status == 400
    asked["parameters"] = {"classification": 4}
    assert infer(model, files(RED), outputs=[asked]).json["outputs"][0]["shape"] == [1, 4]


def test_an_answer_carries_the_requests_id_and_the_headers_of_a_prediction(model: str) -> None:
    answer = infer(model, files(RED), id="42")
    assert answer.json["id"] == "42"
    assert answer.json["model_name"] == "mean_colour"
    assert answer.json["model_version"] == answer.headers["X-Model-Version"]
    assert "total;dur=" in answer.headers["Server-Timing"]
    assert "id" not in infer(model, files(RED)).json


# What is refused.


@pytest.mark.parametrize(
    ("value", "says"), [(255.5, "0 to 255"), (-0.1, "0 to 255"), (float("nan"), "0 to 255"), (float("inf"), "0 to 255")]
)
def test_a_float_that_is_no_colour_refuses_the_request_and_its_picture_is_named(
    model: str, value: float, says: str
) -> None:
    floats = PURE.astype("<f4")
    floats[1, 5, 5, 1] = value
    answer = infer_binary(model, floats.tobytes(), tensor(None, datatype="FP32", shape=[2, SIDE, SIDE, 3]))
    assert (answer.status, list(answer.json)) == (400, ["error"])
    assert answer.json["error"].startswith("pixels[1]: ")
    assert says in answer.json["error"]


def test_the_first_bad_file_of_a_batch_is_named_with_its_own_status(model: str) -> None:
    for bad, status in ((b"hello", 415), (b"", 400), (BLUE[:60], 422), (b"\x89PNG" + bytes(20_000), 413)):
        answer = infer(model, files(RED, BLUE, bad, b"hello"))
        assert (answer.status, list(answer.json)) == (status, ["error"])
        assert answer.json["error"].startswith("image[2]: ")
    no_base64 = files(RED) | {"shape": [2], "data": ["AA=A", "AAAA"]}
    assert infer(model, no_base64).json["error"].startswith("image[0]: The text is not base64")


def test_a_bad_file_spoils_no_neighbours_computation_and_the_request_is_counted_once(
    redis_server: RedisServer, model: str, service: str
) -> None:
    def counts() -> tuple[float, int]:
        page = http("GET", f"{service}/metrics").body.decode()
        (refused,) = [line for line in page.splitlines() if line.startswith('web_requests_total{status="415"}')]
        return float(refused.split()[1]), int(redis_server.client.get(f"{{{QUEUE}}}:served") or 0)

    assert infer(model, files(b"hello")).status == 415
    refused, settled = counts()
    assert infer(model, files(RED, b"hello", BLUE)).status == 415
    assert counts() == (refused + 1, settled + 2)


def test_inputs_and_outputs_that_the_model_does_not_have_are_refused(model: str) -> None:
    red = PURE[:1].ravel().tolist()
    for inputs, says in (
        ([tensor(red, name="colour")], "`colour`"),
        ([files(RED), tensor(red)], "`image`, `pixels`"),
        ([tensor(red, name="image")], "no UINT8"),
        ([files(RED) | {"name": "pixels"}], "no BYTES"),
        ([tensor(red, shape=[SIDE, SIDE, 3])], f"[n, {SIDE}, {SIDE}, 3]"),
        ([tensor(red, shape=[1, 3, SIDE, SIDE])], f"[n, {SIDE}, {SIDE}, 3]"),
        ([tensor([7], shape=[])], "shape []"),
        ([files(RED, RED) | {"shape": [1, 2]}], "shape [1, 2]"),
    ):
        answer = infer(model, *inputs)
        assert answer.status == 400, inputs
        assert says in answer.json["error"]
    twice = [{"name": "probabilities"}] * 2
    assert "more than once" in infer(model, files(RED), outputs=twice).json["error"]
    assert "`scores`" in infer(model, files(RED), outputs=[{"name": "scores"}]).json["error"]


def test_a_request_that_brings_too_much_is_refused(model: str) -> None:
    many = infer(model, files(*[RED] * 9))
    assert (many.status, "more than 8 images" in many.json["error"]) == (413, True)
    large = http("POST", f"{model}/infer", bytes(200_000))
    assert (large.status, "100,000 bytes" in large.json["error"]) == (413, True)
    packed = http("POST", f"{model}/infer", b"{}", Content_Encoding="gzip")
    assert (packed.status, "Content-Encoding" in packed.json["error"]) == (415, True)


def test_a_body_that_is_no_request_is_refused(model: str) -> None:
    for body, headers in ((b"", {}), (b"hello", {}), (b"{}", {SIZE: "x"}), (RED, {"Content_Type": "image/png"})):
        answer = http("POST", f"{model}/infer", body, **headers)
        assert (answer.status, list(answer.json)) == (400, ["error"])


# The client of Triton itself.

TRITON_PYTHON = ROOT / ".venv-triton" / "bin" / "python"


@pytest.fixture(scope="module")
def told(service: str) -> dict[str, Any]:
    """What the real tritonclient got from the service; see triton_client.py."""
    if not TRITON_PYTHON.exists():
        pytest.fail("there is no environment for tritonclient; this makes it: make .venv-triton/.ready")
    given = {"images": [base64.b64encode(image).decode() for image in (RED, BLUE)], "side": SIDE}
    command = [str(TRITON_PYTHON), str(ROOT / "tests" / "triton_client.py"), service.partition("://")[2], "mean_colour"]
    ended = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_tritonclient_learns_what_is_served(told: dict[str, Any], model: str) -> None:
    about = told["about"]
    assert [about[f"{what}ready"] for what in ("", "model ", "version ", "other ")] == [True, True, True, False]
    assert about["live"]
    assert "binary_tensor_data" in about["server"]["extensions"]
    assert about["metadata"] == about["metadata of version"] == http("GET", model).json
    assert about["config"] == http("GET", f"{model}/config").json
    (version,) = about["metadata"]["versions"]
    assert about["index"] == [{"name": "mean_colour", "version": version, "state": "READY", "reason": ""}]


def test_tritonclient_sends_pixels_behind_the_json_or_in_it(told: dict[str, Any], model: str) -> None:
    expected = rows(infer(model, files(RED)))
    for way in ("usual", "in JSON"):
        np.testing.assert_array_equal(np.array(told["pixels"][way], np.float32), expected)
    usual, plain = told["pixels"]["usual answer"], told["pixels"]["in JSON answer"]
    assert (usual["id"], usual["outputs"][0]["parameters"]) == ("42", {"binary_data_size": 16})
    assert "parameters" not in plain["outputs"][0]


def test_tritonclient_sends_files_and_reads_classes(told: dict[str, Any], model: str) -> None:
    red, blue = rows(infer(model, files(RED, BLUE)))
    np.testing.assert_array_equal(np.array(told["images"]["three"], np.float32), [red, blue, red])
    np.testing.assert_array_equal(np.array(told["images"]["base64"], np.float32), [red])
    assert [row[0].split(":")[1:] for row in told["images"]["classes"]] == [
        ["0", "red"],
        ["2", "blue"],
        ["0", "red"],
    ]
    assert [len(row) for row in told["images"]["classes"]] == [3, 3, 3]
    np.testing.assert_array_equal(np.array(told["at_once"], np.float32)[:, 0], [red, blue, red, blue])


def test_the_documents_example_runs(told: dict[str, Any], service: str, model: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    (example,) = re.findall(r"^```python\n(import numpy.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "dog.jpg").write_bytes(RED)
    for stands, instead in (("127.0.0.1:5000", service.partition("://")[2]), ("MobileNetV2", "mean_colour")):
        assert stands in example
        example = example.replace(stands, instead)
    ended = subprocess.run(
        [str(TRITON_PYTHON), "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ":0:red" in ended.stdout, ended.stderr


def test_tritonclient_reads_why_it_was_refused(told: dict[str, Any]) -> None:
    for what, status, says in (
        ("no image", "415", "image[1]: "),
        ("scaled", "400", "pixels[0]: A value is not a number from 0 to 255"),
        ("other model", "404", "There is no model `other`"),
        ("other version", "404", "has no version `1`"),
        ("packed", "415", "Content-Encoding"),
        ("no extension", "404", "/v2/models/<model>/infer"),
    ):
        assert told["refused"][what][0] == status, what
        assert says in told["refused"][what][1]


class Body(bytearray):
    """Bytes that tell when they are gone."""


@pytest.mark.parametrize("name", ["image", "pixels"])
def test_who_waits_holds_no_body(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tensor(PURE[0].ravel().tolist()) if name == "pixels" else files(RED)
    one, content = {key: value for key, value in one.items() if key != "data"}, PURE[:1].tobytes()
    content = content if name == "pixels" else struct.pack("<I", len(RED)) + RED
    head = json.dumps({"inputs": [one | {"parameters": {"binary_data_size": len(content)}}]}).encode()
    alive: list[object] = []

    def read_body(_most: int) -> Body:
        body = Body(head + content)
        alive.append(weakref.ref(body))
        return body

    def predict_all(pictures: Iterator[Any], *_: object) -> list[RequestError]:
        for _picture in pictures:
            alive.append(alive.pop(0))
        del _picture
        alive.append(alive.pop()())
        return [TimedOut("No answer came.")]

    served = SimpleNamespace(look_if_due=int, labels=lambda: LABELS, served=lambda: SERVED, check_name=int)
    served.check_channels = str
    sides = {
        "web_side": SimpleNamespace(served=served),
        "service": SimpleNamespace(predict_all=predict_all),
        "label": "",
    }
    app, models = Flask("any"), SimpleNamespace(of=lambda _name: SimpleNamespace(**sides))
    monkeypatch.setattr(open_inference, "read_body", read_body)
    app.config["API_KEYS"] = []
    app.extensions |= {
        "models": models,
        "upload limits": uploads.Limits(10**6, 16, 10**7),
    }
    open_inference.add_to(app)
    problems.add_to(app)
    asked = app.test_client().post("/v2/models/stand-in/infer", headers={SIZE: str(len(head))})
    assert (asked.status_code, alive) == (504, [None])


# Keys, and what model servers may say.

LABELS = ["red", "green", "red"]  # labels may repeat
SERVED = Served("stand-in", "7", "float32", "none", SIDE, SIDE, 3, digest_of(LABELS), warning="It guesses.")
KEY = {"Authorization": "Bearer sesame"}


@pytest.fixture(scope="module")
def stand_in(processes: Processes, redis_server: RedisServer) -> Iterator[tuple[Answering, str]]:
    """A stand-in for a model server, and the address of its model at a web server with a key."""
    standing, port = Answering(redis_server.url, SERVED, LABELS), free_port()
    processes.start("run_web_server.py", WEB_PORT=str(port), WEB_WORKERS="1", API_KEY="sesame")
    wait_for(lambda: is_up(f"http://127.0.0.1:{port}/v2/health/ready"))
    yield standing, f"http://127.0.0.1:{port}/v2/models/stand-in"
    standing.stop()


def ask(model: str, *contents: bytes, path: str = "/infer") -> Answer:
    return http("POST", f"{model}{path}", json.dumps({"inputs": [files(*contents)]}).encode(), **KEY)


def test_all_but_health_asks_for_the_key(stand_in: tuple[Answering, str]) -> None:
    _, model = stand_in
    server = model.partition("/models")[0]
    body = json.dumps({"inputs": [files(RED)]}).encode()
    assert http("GET", f"{server}/health/live").status == 200
    for path in (server, model, f"{model}/config", f"{model}/ready", f"{model}/infer"):
        method, content = ("POST", body) if path.endswith("infer") else ("GET", None)
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = http(method, path, content, **headers)
            assert (answer.status, list(answer.json)) == (401, ["error"]), path
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert http(method, path, content, **KEY).status != 401, path


def test_each_job_asks_for_all_classes_by_index_or_for_as_many_as_the_classification(
    stand_in: tuple[Answering, str],
) -> None:
    standing, model = stand_in
    found = [{"label": LABELS[i], "probability": p, "index": i} for i, p in ((2, 0.5), (0, 0.375), (1, 0.125))]
    standing.reply = lambda job: json.dumps(found[: job.top])
    answer = ask(model, RED, BLUE)
    assert answer.json["outputs"][0]["data"] == [0.375, 0.125, 0.5] * 2
    assert answer.json["parameters"] == {"warning": "It guesses."}
    assert [(job.top, job.index, job.request_id) for job in standing.jobs[-2:]] == [
        (3, True, answer.headers["X-Request-ID"])
    ] * 2
    asked = {"name": "probabilities", "parameters": {"classification": 2}}
    body = json.dumps({"inputs": [files(RED)], "outputs": [asked]}).encode()
    assert http("POST", f"{model}/infer", body, **KEY).json["outputs"][0]["data"] == [
        "0.500000:2:red",
        "0.375000:0:red",
    ]
    assert standing.jobs[-1].top == 2


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ('{"error": "It broke."}', 500, "image[0]: It broke."),
        ('{"error": "Come again.", "status": 503}', 503, "image[0]: Come again."),
        ('[{"label": "red", "probability": 1.0}]', 503, "older release"),
        ('[{"label": "red", "probability": 1.0, "index": 0}]', 503, "older release"),
        ('[{"label": "red", "probability": 0.3, "index": 3}]', 503, "older release"),
    ],
)
def test_what_a_model_server_says_instead_is_passed_on(
    stand_in: tuple[Answering, str], text: str, status: int, says: str
) -> None:
    standing, model = stand_in
    standing.reply = lambda job: json.dumps(json.loads(text) * 3) if text.endswith("3}]") else text
    answer = ask(model, RED)
    assert (answer.status, list(answer.json)) == (status, ["error"])
    assert says in answer.json["error"]
    assert ("Retry-After" in answer.headers) == (status == 503)


def test_a_version_that_another_one_has_just_replaced_is_not_answered_in_its_name() -> None:
    replies = [Reply(job.Answer("[]", {"version": version} if version else {}), 0, 0) for version in (None, "7", "8")]
    assert check_version(replies, None) == "8"
    assert check_version(replies[:2], "7") == "7"
    assert check_version(replies[:1], "7") is None
    with pytest.raises(Unavailable, match="8 has just replaced 7"):
        check_version(replies, "7")
