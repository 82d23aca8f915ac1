"""A web server that stops behind a real balancer, under load: no request of any client fails."""

import contextlib
import http.client
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Answering, Processes, as_bytes, free_port, is_up, some_photo, wait_for

PHOTO = as_bytes(some_photo(), "JPEG")
USERS = 8

# Sends no request twice, and asks each web server whether it is ready.
HAPROXY = """
defaults
  mode http
  retries 0
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend clients
  bind 127.0.0.1:{port}
  default_backend web
backend web
  balance roundrobin
  http-reuse always
  option httpchk GET /readyz
  timeout check 10s
  default-server check inter 100ms fall 1 rise 1
  server first 127.0.0.1:{first}
  server second 127.0.0.1:{second}
"""
# Does not ask; sends a request to another web server where it is refused a connection.
NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream web {{ server 127.0.0.1:{first}; server 127.0.0.1:{second}; keepalive 32; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://web; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""
BALANCERS = {"haproxy": (HAPROXY, ["-db", "-f"]), "nginx": (NGINX, ["-c"])}


@contextlib.contextmanager
def balancer(name: str, folder: Path, first: int, second: int) -> Iterator[int]:
    """The port of a balancer in front of two web servers."""
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if program is None:
        pytest.skip(f"{name} is not installed: apt-get install {name}")
    text, options = BALANCERS[name]
    port = free_port()
    file = folder / "balancer.conf"
    file.write_text(text.format(port=port, first=first, second=second, folder=folder))
    process = subprocess.Popen([program, *options, str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: process.poll() is not None or is_up(f"http://127.0.0.1:{port}/readyz"))
        assert process.poll() is None, f"{name} does not take its configuration"
        yield port
    finally:
        process.kill()
        process.wait()


class Users:
    """Clients who send one photo after the other, each over a kept connection, until the `with` block ends."""

    def __init__(self, port: int) -> None:
        self.ended: Counter[object] = Counter()
        self._port, self._is_over = port, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(USERS)]

    def __enter__(self) -> "Users":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._is_over.is_set():
            try:
                connection.request("POST", "/predict", PHOTO, {"Content-Type": "image/jpeg"})
                answer = connection.getresponse()
                answer.read()
                self.ended[answer.status] += 1
            except (OSError, http.client.HTTPException) as error:
                self.ended[type(error).__name__] += 1
                connection.close()
        connection.close()


@pytest.mark.parametrize("name", ["haproxy", pytest.param("nginx", marks=pytest.mark.slow)])
def test_a_web_server_that_stops_behind_a_balancer_costs_no_request(
    processes: Processes, answering: Answering, tmp_path: Path, name: str
) -> None:
    ports = [free_port(), free_port()]
    first, _ = [
        processes.start("run_web_server.py", WEB_PORT=str(port), WEB_WORKERS="2", DRAIN_DELAY_SECONDS="2")
        for port in ports
    ]
    for port in ports:
        wait_for(lambda port=port: is_up(f"http://127.0.0.1:{port}/readyz"))
    with balancer(name, tmp_path, *ports) as port, Users(port) as users:
        wait_for(lambda: users.ended[200] > 3 * USERS)
        first.send_signal(signal.SIGTERM)
        wait_for(lambda: first.poll() is not None)
        assert first.returncode == 0
        answered = users.ended[200]
        wait_for(lambda: users.ended[200] > answered + USERS)  # by the other one
    assert set(users.ended) == {200}
