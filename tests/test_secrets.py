"""No password and no key is told: not in a log, not to a client, not to who lists the processes of the host."""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

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
    some_photo,
    upload,
    wait_for,
)

PASSWORD, KEY, OTHER_KEY, ADMIN_KEY = "1f7c-of-redis", "5e2a-of-clients", "9b3d-of-others", "77c4-of-the-operator"
SECRETS = (PASSWORD, KEY, OTHER_KEY, ADMIN_KEY)
SCRIPTS = {"run_web_server.py": [], "run_model_server.py": [], "run_service.py": [], "queue_admin.py": ["dead", "list"]}
PHOTO = as_bytes(some_photo(), "JPEG")


@pytest.fixture(scope="module")
def locked_server() -> Iterator[RedisServer]:
    server = RedisServer()
    server.client.config_set("requirepass", "the-right-one")
    yield server
    server.remove()


def nothing_is_told(text: str) -> bool:
    return not any(secret in text for secret in SECRETS)


# What the scripts refuse to start with, and a word of the sentence with which they do: all of them these, …
REFUSED_BY_ALL = {
    "redis://:{}@127.0.0.1:{port}/0": "password",
    "redis://:{}/with-a-slash@127.0.0.1:{port}/0": "%2F",
    "htp://:{}@127.0.0.1:{port}/0": "REDIS_URL=(hidden)",
}
# … and the one that starts fastest these as well.
REFUSED = {
    "redis://user:{}@127.0.0.1:{port}/0": "password",
    "redis://:{}@127.0.0.1:1/0": "refused",
    "rediss://:{}@127.0.0.1:1/0?ssl_ca_certs=/no/such.pem": "cannot be read",
    "redis://:{}@127.0.0.1:{port}/0?ssl_password={}": "ssl_password",
    "redis://127.0.0.1:{port}/0?password={}": "password",
    "redis+sentinel://:{}@127.0.0.1:1/name?sentinel_password={}": "Sentinel",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_redis_url_that_is_refused_is_not_told(script: str, locked_server: RedisServer, processes: Processes) -> None:
    ports = {"WEB_PORT": str(free_port()), "METRICS_PORT": "0"}
    for url, word in (REFUSED_BY_ALL | (REFUSED if script == "queue_admin.py" else {})).items():
        given = url.replace("{}", PASSWORD).replace("{port}", str(locked_server.port))
        ended = processes.start(script, *SCRIPTS[script], REDIS_URL=given, API_KEY=KEY, **ports)
        assert ended.wait(timeout=60) == 2, url
        said = output(ended)
        assert word in said, url
        assert nothing_is_told(said), said
    wrong = {"API_KEY": " , ", "BATCH_SIZE": KEY, "ADMIN_API_KEY": f"a b:{ADMIN_KEY}"}
    refused = processes.start(script, *SCRIPTS[script], REDIS_URL=locked_server.url, **wrong)
    assert refused.wait(timeout=60) == 2
    said = output(refused)
    assert {"API_KEY=(hidden)", "ADMIN_API_KEY=(hidden)"} <= set(said.split())
    assert ADMIN_KEY not in said


def command_lines() -> str:
    """Those of all processes of this host: that is what anybody here can read."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(lines)


def raw_request(port: int, *lines: str) -> str:
    """The answer to a request in which anything may be wrong."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        connection.settimeout(30)
        return connection.recv(65536).decode(errors="replace")


def told(answer: Answer) -> str:
    return f"{answer.status} {answer.headers} {answer.body.decode(errors='replace')}"


def test_a_service_in_trouble_tells_no_secret(light_model: dict[str, str]) -> None:
    redis = RedisServer()
    redis.client.config_set("requirepass", PASSWORD)
    url = f"redis://:{PASSWORD}@127.0.0.1:{redis.port}/0?health_check_interval=30"
    keys = {"API_KEY": f"{KEY}, {OTHER_KEY}", "ADMIN_API_KEY": f"ada:{ADMIN_KEY}"}
    processes = Processes({"REDIS_URL": url, "METRICS_PORT": "0"} | keys | light_model)
    port = free_port()
    web, said = f"http://127.0.0.1:{port}", []
    right = {"Authorization": f"Bearer {KEY}"}
    try:
        settings = {"WEB_PORT": str(port), "WEB_WORKERS": "1", "REQUEST_TIMEOUT_SECONDS": "2", "LOG_FORMAT": "json"}
        service = processes.start("run_service.py", **settings)
        wait_for(lambda: is_up(f"{web}/readyz"))
        assert nothing_is_told(command_lines())
        statuses = [upload(f"{web}/predict", PHOTO, **right).status]
        for headers in ({"Authorization": f"Basic {KEY}"}, {"Authorization": f"Bearer {KEY}x"}, {"X_Key": KEY}):
            said.append(told(upload(f"{web}/predict", PHOTO, **headers)))
        admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
        statuses.append(http("POST", f"{web}/admin/queue", b'{"paused": false}', **admin).status)
        for headers in (right, admin, {"Authorization": f"Bearer {ADMIN_KEY}x"}, {"Cookie": f"key={ADMIN_KEY}"}):
            said += [told(http("GET", f"{web}/admin/{page}", **headers)) for page in ("stats", "nowhere")]
            said.append(told(http("POST", f"{web}/admin/queue", ADMIN_KEY.encode(), **headers)))
        for page in ("", "readyz", "metrics", "openapi.json", "nowhere"):
            said.append(told(http("GET", f"{web}/{page}", **right)))
        for wrong in (
            f"Authorization Bearer {KEY}",
            f"Authorization : Bearer {KEY}",
            f" Bearer {KEY}",
            f"Authorization Bearer {KEY}'x",
            f"A: {KEY}\0",
        ):
            head = raw_request(port, "POST /predict HTTP/1.1", "Host: here", wrong, "Content-Length: 0")
            assert head.startswith("HTTP/1.1 400"), head
            said.append(head)
        for first in (f"Authorization: Bearer {KEY}", f"Authorization:{KEY}"):  # no request line
            raw_request(port, first, "Host: here")
        letters = processes.start("queue_admin.py", "dead", "list")
        assert letters.wait(timeout=30) == 0

        # The password changes under way.
        redis.client = type(redis.client)(port=redis.port, password=PASSWORD)
        redis.client.config_set("requirepass", "another")
        redis.client.client_kill_filter(_type="normal", skipme=True)
        statuses.append(upload(f"{web}/predict", PHOTO, **right).status)
        said.append(told(upload(f"{web}/predict", PHOTO, **right)))
        said.append(told(http("GET", f"{web}/readyz")))
        time.sleep(1)  # for the model server to notice
        redis.process.kill()  # and then Redis is away
        redis.process.wait()
        statuses.append(upload(f"{web}/predict", PHOTO, **right).status)
        said.append(told(http("GET", f"{web}/metrics", **right)))
        os.kill(service.pid, signal.SIGTERM)
        assert service.wait(timeout=60) == 0
        assert statuses == [200, 200, 503, 503]
        # Each line of a service is JSON, and says whose it is.
        assert {json.loads(line)["process"] for line in output(service).splitlines()} == {"service", "web", "model"}
        log = output(service) + output(letters)
        assert "invalid username-password pair" in log
        assert "resume image_queue: 0 changed, asked by ada" in log
        assert "Connection refused" in log
        assert "Invalid HTTP Header: '(hidden)'" in log
        for text in (*said, log):
            assert nothing_is_told(text), text
    finally:
        processes.end()
        redis.client.close()
