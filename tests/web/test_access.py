"""What browsers may do with an answer: on real gunicorn, for every kind of answer, its own refusals included."""

import http.client
import re
import socket
from collections.abc import Callable

import pytest
import redis
from conftest import Answer, Answering, Processes, as_bytes, free_port, is_up, some_photo, upload, wait_for
from conftest import http as ask

from serving.web import access

PHOTO = as_bytes(some_photo(), "JPEG")
Start = Callable[..., str]


@pytest.fixture
def start(processes: Processes) -> Start:
    def start(**settings: str) -> str:
        port = str(free_port())
        processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1", **settings)
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/healthz"))
        return f"http://127.0.0.1:{port}"

    return start


def answer_to(url: str, request: bytes) -> Answer:
    """Send bytes as they are."""
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=10) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return Answer(response.status, response.headers, response.read())


def check(answer: Answer, **own: str) -> None:
    for name, value in (access.ALWAYS | {name.replace("_", "-"): value for name, value in own.items()}).items():
        assert len(answer.headers.get_all(name)) == 1
        if name != "Content-Security-Policy":
            assert answer.headers[name] == value
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert "Server" not in answer.headers
    assert "X-Powered-By" not in answer.headers
    assert not re.search(rb"gunicorn|werkzeug|python", b"%r%r" % (answer.headers.items(), answer.body), re.IGNORECASE)
    assert [name for name in answer.headers if name.startswith("Access-Control-")] == []


def test_every_answer_says_that_it_is_for_its_asker_alone(start: Start, answering: Answering) -> None:
    url = start(API_KEY="sesame", MAX_UPLOAD_BYTES="100000")
    key = {"Authorization": "Bearer sesame"}
    answers = {
        200: [
            upload(f"{url}/predict", PHOTO, **key),
            *(ask("GET", url + page) for page in ("/healthz", "/readyz", "/openapi.json", "/state", "/docs")),
        ],
        400: [upload(f"{url}/predict", b"", **key), ask("POST", f"{url}/predict", **key)],
        401: [upload(f"{url}/predict", PHOTO), ask("GET", f"{url}/metrics")],
        404: [ask("GET", f"{url}/nowhere"), ask("POST", f"{url}/static/x")],
        405: [ask("GET", f"{url}/predict"), ask("OPTIONS", f"{url}/predict"), ask("TRACE", f"{url}/")],
        413: [upload(f"{url}/predict", b"x" * 100_001, **key), upload(f"{url}/predict", b"x" * 1_000_000, **key)],
        415: [upload(f"{url}/predict", b"text", **key)],
        422: [upload(f"{url}/predict", PHOTO[:2000], **key)],
    }
    answering.reply = lambda job: '{"error": "failed"}'
    answers[500] = [upload(f"{url}/predict", PHOTO, **key)]
    for status, found in answers.items():
        for answer in found:
            assert answer.status == status, answer.body
            check(answer)
    metrics = ask("GET", f"{url}/metrics", **key)
    assert metrics.status == 200
    check(Answer(metrics.status, metrics.headers, b""))  # whoever may read the counts may know which Python runs
    page = ask("GET", f"{url}/")
    assert page.status == 200
    # A browser may keep the page, but asks each time whether it is still the same. Its text has examples in Python.
    check(Answer(page.status, page.headers, b""), Cache_Control="no-cache")


def test_refused_while_redis_is_away_or_late_it_says_so_too(start: Start, raw: redis.Redis) -> None:
    url = start(REQUEST_TIMEOUT_SECONDS="0.2")
    for status, answer in (503, ask("GET", f"{url}/readyz")), (504, upload(f"{url}/predict", PHOTO)):
        assert answer.status == status
        check(answer)
    forbidden = ask("GET", f"{url}/metrics", Via="1.1 a-proxy")
    assert forbidden.status == 403
    check(forbidden)


NO_REQUESTS = [
    (400, b"this is not HTTP\r\n\r\n"),
    (400, b"GET / HTTP/9.9\r\n\r\n"),
    (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),  # TLS, to a port that has none
    (400, b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n"),
    (400, b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"),
    (400, b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
    (400, b"GET /<script>alert(1)</script> NONSENSE\r\n\r\n"),
    (414, b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n"),
    (417, b"GET / HTTP/1.1\r\nHost: x\r\nExpect: a miracle\r\n\r\n"),
    (431, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 9000 + b"\r\n\r\n"),
    (501, b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: zip\r\n\r\n"),
]


def test_what_is_refused_before_it_reaches_the_application_is_answered_likewise(start: Start, raw: redis.Redis) -> None:
    url = start()
    for status, request in NO_REQUESTS:
        answer = answer_to(url, request)
        check(answer)
        assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json"), request
        assert answer.headers["Connection"] == "close"
        assert answer.json["success"] is False
        assert answer.json["error"]
        assert len(answer.body) < 1000
    assert ask("GET", f"{url}/healthz").status == 200


# Pages of other origins


def cors(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("Access-Control-")}


def preflight(
    url: str,
    origin: str,
    method: str = "POST",
    wants: str = "authorization,content-type,idempotency-key,prefer,x-request-id",
    path: str = "/predict",
) -> Answer:
    asks = {"Access_Control_Request_Method": method, "Access_Control_Request_Headers": wants}
    return ask("OPTIONS", url + path, Origin=origin, **asks)


def test_no_page_of_another_origin_may_ask_unless_it_is_told_to_be_allowed(start: Start, answering: Answering) -> None:
    url = start()
    refused = preflight(url, "https://app.example")
    assert (refused.status, cors(refused)) == (405, {})
    assert "OPTIONS" not in refused.headers["Allow"]
    answer = upload(f"{url}/predict", PHOTO, Origin="https://app.example")
    assert (answer.status, cors(answer)) == (200, {})


def test_pages_of_the_origins_that_are_set_may_ask_and_no_others(start: Start, answering: Answering) -> None:
    url = start(CORS_ORIGINS="https://app.example, http://localhost:8080", API_KEY="sesame")
    for origin in ("https://app.example", "http://localhost:8080"):
        allowed = preflight(url, origin)
        assert allowed.status == 200
        assert cors(preflight(url, origin, "DELETE", path="/jobs/1")) == cors(allowed)
        assert cors(allowed) == {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Headers": "authorization, content-type, idempotency-key, prefer, x-request-id",
            "Access-Control-Allow-Methods": "DELETE, GET, POST",
            "Access-Control-Expose-Headers": "Cache-Status, Location, Retry-After, Server-Timing, X-Model-Version, "
            "X-Request-ID",
            "Access-Control-Max-Age": str(access.PREFLIGHT_GOOD_FOR_SECONDS),
        }
        answers = {
            200: upload(f"{url}/predict", PHOTO, Origin=origin, Authorization="Bearer sesame"),
            400: upload(f"{url}/predict", b"", Origin=origin, Authorization="Bearer sesame"),
            401: upload(f"{url}/predict", PHOTO, Origin=origin),
        }
        for status, answer in answers.items():
            assert answer.status == status
            assert answer.headers["Access-Control-Allow-Origin"] == origin  # else the page could not read why
            assert answer.headers["Vary"] == "Origin"
            assert "Access-Control-Allow-Credentials" not in answer.headers
    for other in ("https://app.example.evil", "https://xapp.example", "http://app.example", "http://localhost", "null"):
        assert cors(preflight(url, other)) == {}
        assert cors(upload(f"{url}/predict", PHOTO, Origin=other, Authorization="Bearer sesame")) == {}
    assert cors(upload(f"{url}/predict", PHOTO, Authorization="Bearer sesame")) == {}  # no browser, no matter
    assert cors(ask("GET", f"{url}/metrics", Origin="https://app.example", Authorization="Bearer sesame")) == {}


def test_a_star_lets_pages_of_any_origin_ask_but_with_nothing_that_a_browser_adds(
    start: Start, answering: Answering
) -> None:
    url = start(CORS_ORIGINS="*")
    allowed = preflight(url, "https://any.example")
    assert allowed.headers["Access-Control-Allow-Headers"].startswith("authorization, content-type")
    for answer in (allowed, upload(f"{url}/predict", PHOTO, Origin="https://any.example")):
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in answer.headers
    assert cors(preflight(url, "https://any.example", wants="x-other")).get("Access-Control-Allow-Headers") is None
    assert cors(ask("GET", f"{url}/metrics", Origin="https://any.example")) == {}
