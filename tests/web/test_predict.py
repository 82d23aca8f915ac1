"""POST /predict beyond one image and its labels: several images, ?top=, ids of requests, times, RFC 9457's problems."""

import json
import re
from collections.abc import Iterator

import pytest
from conftest import Answer, Processes, RedisServer, as_bytes, free_port, http, is_up, output, upload, wait_for
from PIL import Image

RED, BLUE = (as_bytes(Image.new("RGB", (40, 40), colour), "PNG") for colour in ("red", "blue"))
BOUNDARY = "a-boundary-of-the-tests"


@pytest.fixture(scope="module")
def processes(redis_server: RedisServer) -> Iterator[Processes]:
    started = Processes({"REDIS_URL": redis_server.url})
    yield started
    started.end()


@pytest.fixture(scope="module")
def service(processes: Processes, light_model: dict[str, str]) -> str:
    """The address of a web server with a model server of four labels; the largest image has 20,000 bytes."""
    processes.start("run_model_server.py", **light_model)
    port, limits = free_port(), {"MAX_UPLOAD_BYTES": "20000", "MAX_REQUEST_BYTES": "100000", "MAX_IMAGES": "8"}
    processes.start("run_web_server.py", WEB_PORT=str(port), WEB_WORKERS="1", WEB_THREADS="6", **limits)
    wait_for(lambda: is_up(f"http://127.0.0.1:{port}/readyz"))
    return f"http://127.0.0.1:{port}"


def send(url: str, *images: bytes, **headers: str) -> Answer:
    """POST a form with these images, each in a field `image`."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'.encode()
    body = b"".join(head + image + b"\r\n" for image in images) + f"--{BOUNDARY}--\r\n".encode()
    return http("POST", url, body, Content_Type=f"multipart/form-data; boundary={BOUNDARY}", **headers)


def first_labels(answer: Answer) -> list[str]:
    return [result["predictions"][0]["label"] for result in answer.json["results"]]


def test_one_image_is_answered_byte_for_byte_as_ever(service: str) -> None:
    body = upload(f"{service}/predict", RED).body
    predictions = json.loads(body)["predictions"]
    listed = ",".join(f'{{"label":"{one["label"]}","probability":{one["probability"]}}}' for one in predictions)
    assert body == f'{{"success":true,"predictions":[{listed}]}}\n'.encode()


def test_several_images_get_a_result_each_in_their_order(service: str) -> None:
    answer = send(f"{service}/predict", RED, BLUE, RED)
    assert (answer.status, answer.json["success"]) == (200, True)
    assert first_labels(answer) == ["red", "blue", "red"]
    one = upload(f"{service}/predict", RED).json
    assert answer.json["results"][0] == one


def test_an_image_that_is_refused_spoils_no_other(service: str) -> None:
    answer = send(f"{service}/predict", RED, b"hello", b"", BLUE[:60], b"\x89PNG" + bytes(20_000), BLUE)
    assert answer.status == 200
    results = answer.json["results"]
    assert [result.get("status", 200) for result in results] == [200, 415, 400, 422, 413, 200]
    assert [result["success"] for result in results] == [True, False, False, False, False, True]
    for result in results[1:5]:
        assert set(result) == {"success", "error", "status"}
        assert len(result["error"]) > 20


def test_a_request_that_brings_too_much_is_refused_as_a_whole(service: str) -> None:
    many = send(f"{service}/predict", *[RED] * 9)
    assert (many.status, many.json["success"]) == (413, False)
    assert "more than 8 images" in many.json["error"]
    large = send(f"{service}/predict", *[bytes(19_000)] * 9)
    assert large.status == 413
    assert "at most 100,000 bytes" in large.json["error"]


def test_images_beyond_the_places_are_told_so_and_the_others_are_answered(service: str) -> None:
    answer = send(f"{service}/predict", *[RED] * 8)
    assert [result.get("status", 200) for result in answer.json["results"]] == [200] * 6 + [503] * 2


def test_as_many_labels_come_as_are_asked_for(service: str) -> None:
    for top in (1, 2, 4):
        assert len(upload(f"{service}/predict?top={top}", RED).json["predictions"]) == top
    several = send(f"{service}/predict?top=2", RED, BLUE)
    assert [len(result["predictions"]) for result in several.json["results"]] == [2, 2]
    assert upload(f"{service}/predict?colour=red", RED).json == upload(f"{service}/predict", RED).json


@pytest.mark.parametrize(
    "top", ["0", "5", "-1", "2.0", "two", "%C3%A9", "", "1e0", "%C2%B2", "99999999999999999999", "%00"]
)
def test_a_top_that_is_no_number_of_labels_is_refused(service: str, top: str) -> None:
    answer = upload(f"{service}/predict?top={top}", RED)
    assert answer.status == 400
    assert "it must be a whole number from 1 to 4, as many labels as the model has" in answer.json["error"]


def test_the_only_model_is_also_there_under_its_name(service: str) -> None:
    (model,) = http("GET", f"{service}/models").json["models"]
    assert (model["name"], model["default"], model["ready"], model["classes"]) == ("mean-colour", True, True, 4)
    assert upload(f"{service}/predict/mean-colour", RED).json == upload(f"{service}/predict", RED).json
    ready, of_one = (http("GET", f"{service}/readyz{path}").json for path in ("", "/mean-colour"))
    # A model server that has lost its lease and joined again is counted twice until the first lease ends.
    assert ready["ready"] is of_one["ready"] is True
    assert ready.keys() == of_one.keys() == {"ready", "model_servers"}
    for name in ("mean%20colour", "ResNet50"):
        answer = upload(f"{service}/predict/{name}", RED)
        assert (answer.status, "this service has `mean-colour`." in answer.json["error"]) == (404, True)


def test_every_answer_names_its_request(service: str) -> None:
    for path in ("/", "/healthz", "/readyz", "/openapi.json", "/metrics", "/nothing", "/predict"):
        assert http("GET", service + path, X_Request_ID="mine-1.2_3").headers["X-Request-ID"] == "mine-1.2_3"
    assert upload(f"{service}/predict", RED, X_Request_ID="mine").headers["X-Request-ID"] == "mine"
    made = {upload(f"{service}/predict", RED).headers["X-Request-ID"] for _ in range(3)}
    assert len(made) == 3
    for given in ("two words", "é", "x" * 129, "", "a/b", '"'):
        assert http("GET", f"{service}/healthz", X_Request_ID=given).headers["X-Request-ID"] not in (given, None)


def test_an_error_names_its_request_last(service: str, processes: Processes) -> None:
    for refused in (
        upload(f"{service}/predict", b"hello", X_Request_ID="mine"),
        http("GET", f"{service}/nothing", X_Request_ID="mine"),
        http("PUT", f"{service}/predict", X_Request_ID="mine"),
    ):
        assert list(refused.json) == ["success", "error", "request_id"]
        assert refused.json["request_id"] == "mine"


def test_an_answer_tells_where_its_time_went_and_the_models_version(service: str) -> None:
    for answer in (upload(f"{service}/predict", RED), send(f"{service}/predict", RED, BLUE)):
        times = dict(re.findall(r"(\w+);dur=([0-9.]+)", answer.headers["Server-Timing"]))
        assert list(times) == ["decode", "queue", "model", "total"]
        assert sum(map(float, list(times.values())[:3])) <= float(times["total"]) + 1
        assert re.fullmatch(r"[0-9a-f]{6,}|unknown", answer.headers["X-Model-Version"])
    assert "X-Model-Version" not in upload(f"{service}/predict", b"hello").headers


def test_who_accepts_a_problem_gets_one(service: str) -> None:
    for accept in ("application/problem+json", "text/html;q=0.5, application/problem+json;q=0.9"):
        problem = upload(f"{service}/predict", b"hello", Accept=accept)
        assert problem.headers["Content-Type"] == "application/problem+json"
        told = problem.json
        assert (told["type"], told["title"], told["status"]) == ("about:blank", "Unsupported Media Type", 415)
        assert told["detail"] == told["error"]
        assert told["instance"] == "/predict"
        assert list(told)[-1] == "request_id"
    for accept in ("*/*", "application/json", "application/problem+json;q=0"):
        assert upload(f"{service}/predict", b"hello", Accept=accept).headers["Content-Type"] == "application/json"
    assert upload(f"{service}/predict", RED, Accept="application/problem+json").json["success"]


def test_the_log_of_a_refusal_names_the_request(processes: Processes, redis_server: RedisServer) -> None:
    port = free_port()
    web = processes.start(
        "run_web_server.py", WEB_PORT=str(port), IMAGE_QUEUE="nobody", REQUEST_TIMEOUT_SECONDS="0.3", WEB_WORKERS="1"
    )
    wait_for(lambda: is_up(f"http://127.0.0.1:{port}/healthz"))
    (unknown,) = http("GET", f"http://127.0.0.1:{port}/models").json["models"]
    assert (unknown["name"], unknown["ready"], unknown["version"]) == (None, False, None)
    early = upload(f"http://127.0.0.1:{port}/predict/ResNet50", RED)  # its name is not known yet
    assert (early.status, "No model server has told yet" in early.json["error"]) == (503, True)
    assert upload(f"http://127.0.0.1:{port}/predict", RED, X_Request_ID="late-one").status == 504
    assert "(request late-one)" in wait_for(lambda: output(web))
