"""/openapi.json is a valid document, and what the server answers is what it says."""

from typing import Any

import jsonschema
import pytest
import redis
from conftest import Answering, Processes, RedisServer, as_bytes, free_port, http, is_up, some_photo, upload, wait_for
from openapi_spec_validator import validate
from PIL import Image

from run_web_server import describe
from settings import Settings


@pytest.mark.parametrize("asks_for_key", [False, True])
def test_the_document_is_valid(asks_for_key: bool) -> None:
    document = describe(Settings(api_key="sesame" if asks_for_key else None))
    validate(document)
    assert ("401" in document["paths"]["/predict"]["post"]["responses"]) == asks_for_key
    assert "403" not in document["paths"]["/predict"]["post"]["responses"]
    assert set(document["paths"]["/metrics"]["get"]["responses"]) == {"200", "401" if asks_for_key else "403"}


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
