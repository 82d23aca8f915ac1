"""/openapi.json is a valid document, and what the server answers is what it says."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import jsonschema
import pytest
import redis
import schemathesis
from conftest import (
    Answer,
    Answering,
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    http,
    is_up,
    output,
    some_photo,
    upload,
    wait_for,
)
from openapi_spec_validator import validate
from PIL import Image

from settings import Settings
from web_parts import describe

KEY, OPERATORS_KEY = {"Authorization": "Bearer sesame"}, {"Authorization": "Bearer open"}
# Not `positive_data_acceptance`: bytes at random are no picture, and a model may have fewer labels than `top`.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ensure_resource_availability",
    "ignored_auth",
)


@pytest.mark.parametrize("asks_for_key", [False, True])
@pytest.mark.parametrize("has_operator", [False, True])
def test_the_document_is_valid(asks_for_key: bool, has_operator: bool) -> None:
    document = document_of(asks_for_key, has_operator)
    validate(document)
    assert ("401" in document["paths"]["/predict"]["post"]["responses"]) == asks_for_key
    assert "403" not in document["paths"]["/predict"]["post"]["responses"]
    assert set(document["paths"]["/metrics"]["get"]["responses"]) == {"200", "401" if asks_for_key else "403"}


def test_the_operators_page_is_described_where_there_is_one_with_a_key_of_its_own() -> None:
    for asks_for_key in (False, True):
        ours, operators = document_of(asks_for_key, has_operator=False), document_of(asks_for_key, has_operator=True)
        added = operators["paths"].keys() - ours["paths"].keys()
        assert added == {path for path in operators["paths"] if path.startswith("/admin")} != set()
        for path in added:
            for operation in operators["paths"][path].values():
                assert operation["security"] == [{"operator_key": []}]
                assert "401" in operation["responses"]
        assert all(operators["paths"][path] == ours["paths"][path] for path in ours["paths"])


def document_of(asks_for_key: bool, has_operator: bool) -> dict[str, Any]:
    keys = {"api_key": "sesame" if asks_for_key else None, "admin_api_key": "open" if has_operator else None}
    return describe(Settings(**keys))


@pytest.mark.parametrize("asks_for_key", [False, True])
def test_every_operation_has_examples_which_are_as_their_schemas_say(asks_for_key: bool) -> None:
    document = document_of(asks_for_key, has_operator=True)
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                for kind, content in answer["content"].items():
                    told = [one["value"] for one in content.get("examples", {}).values()] or [content["example"]]
                    for example in told:
                        schema = content["schema"] | {"components": document["components"]}
                        jsonschema.validate(example, schema)
                        if kind == "application/problem+json":
                            assert example["status"] == int(status)
            for parameter in operation.get("parameters", ()):
                schema = parameter["schema"]
                for example in schema.get("examples") or [parameter["example"]]:
                    jsonschema.validate(example, schema)


def check(document: dict[str, Any], method: str, path: str, answer: Any) -> None:
    responses = document["paths"][path][method]["responses"]
    assert str(answer.status) in responses, (path, answer.status)
    for name, header in responses[str(answer.status)].get("headers", {}).items():
        told = answer.headers[name]
        if told is None:
            assert not header["required"], (path, name)
            continue
        jsonschema.validate(int(told) if told.isdigit() else told, header["schema"])
    schema = responses[str(answer.status)]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json, schema | {"components": document["components"]})


@pytest.fixture(scope="module")
def url(light_model: dict[str, str]) -> Iterator[str]:
    """A service that asks for a key, and has an operator's page."""
    redis_server = RedisServer()
    processes, port = Processes({"REDIS_URL": redis_server.url, "METRICS_PORT": "0"} | light_model), str(free_port())
    processes.start("run_model_server.py")
    web = processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1", API_KEY="sesame", ADMIN_API_KEY="open")
    wait_for(lambda: is_up(f"http://127.0.0.1:{port}/readyz"))
    yield f"http://127.0.0.1:{port}"
    assert "Traceback" not in output(web)
    processes.end()
    redis_server.remove()


def test_what_a_machine_makes_of_the_document_is_answered_as_it_says(url: str) -> None:
    schemathesis.checks.load_all_checks()
    checks = schemathesis.checks.CHECKS.get_by_names(CHECKS)
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses: Counter[tuple[str, int]] = Counter()
    for operation in (result.ok() for result in schema.get_all_operations()):

        @hypothesis.settings(
            max_examples=6,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            key = OPERATORS_KEY if case.operation.path.startswith("/admin") else KEY
            answer = case.call(headers=key)
            statuses[case.operation.path, answer.status_code] += 1
            case.validate_response(answer, checks=checks, headers=key)

        ask()
    print(statuses)
    assert {path for path, _ in statuses} == http("GET", f"{url}/openapi.json").json["paths"].keys()
    assert ("/predict", 200) in statuses
    assert all(("/" + page, 200) in statuses for page in ("healthz", "readyz", "metrics", "state"))
    assert all(("/admin/" + page, 200) in statuses for page in ("stats", "queue", "dead-letters"))


def test_what_an_operator_does_is_answered_as_the_document_says(url: str) -> None:
    document = http("GET", f"{url}/openapi.json").json

    def ask(method: str, path: str, name: str = "", body: bytes | None = None) -> Answer:
        answer = http(method, url + path.replace("{name}", name), body, **OPERATORS_KEY)
        if answer.headers["Content-Type"] == "application/json":
            check(document, method.lower(), path, answer)
        return answer

    assert ask("POST", "/admin/queue", body=b'{"paused": false}').status == 200
    (server,) = ask("GET", "/admin/stats").json["model_servers"]
    assert ask("POST", "/admin/servers/{name}", server["name"], b'{"quiet": true}').json["changed"]
    assert ask("POST", "/admin/servers/{name}", server["name"], b'{"quiet": false}').json["changed"]
    letters = "/admin/dead-letters"
    assert ask("GET", letters).json == {"total": 0, "dead_letters": []}
    for method, end in (("DELETE", ""), ("POST", "/requeue"), ("GET", "/thumbnail")):
        assert ask(method, f"{letters}/{{name}}{end}", "nobody").status == 404


def test_every_answer_has_the_status_and_the_shape_that_the_document_says(
    processes: Processes, redis_server: RedisServer, raw: redis.Redis
) -> None:
    port = str(free_port())
    processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1", MAX_UPLOAD_BYTES="100000")
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: is_up(f"{url}/healthz"))
    document = http("GET", f"{url}/openapi.json").json
    check(document, "get", "/healthz", http("GET", f"{url}/healthz"))
    check(document, "get", "/readyz", http("GET", f"{url}/readyz"))
    check(document, "get", "/metrics", http("GET", f"{url}/metrics", Via="1.1 a-proxy"))
    stand_in = Answering(redis_server.url)
    try:
        photo = as_bytes(some_photo(), "JPEG")
        wait_for(lambda: is_up(f"{url}/readyz"))
        check(document, "get", "/readyz", http("GET", f"{url}/readyz"))
        answers = {
            200: upload(f"{url}/predict", photo),
            400: upload(f"{url}/predict", b""),
            413: upload(f"{url}/predict", b"x" * 200_000),
            415: upload(f"{url}/predict", b"text"),
            422: upload(f"{url}/predict", as_bytes(Image.effect_noise((200, 200), 90), "JPEG")[:2000]),
        }
        stand_in.reply = lambda job: '{"error": "failed"}'
        answers[500] = upload(f"{url}/predict", photo)
        for status, answer in answers.items():
            assert answer.status == status
            check(document, "post", "/predict", answer)
    finally:
        stand_in.stop()
