"""A web server needs no directory: others may tidy what lies there, and it may be full, read-only or missing."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import redis
from conftest import (
    KERAS_HOME,
    Answering,
    Processes,
    as_bytes,
    free_port,
    http,
    is_up,
    output,
    some_photo,
    upload,
    wait_for,
)

from serving.telemetry.metrics import WebMetrics
from serving.web.request_notes import RequestNotes

PHOTO = as_bytes(some_photo(), "JPEG")
SEAL = 'mount --bind "$folder" "$folder" && mount -o remount,bind,ro "$folder" && ! test -w "$folder"'
SEALED = f'for folder in /dev/shm /tmp /var/tmp; do {SEAL} || exit 1; done; cd /; exec "$@"'
PREFIX = ["unshare", "--mount", "sh", "-c", SEALED, "sh"]


def start(processes: Processes, **settings: str) -> str:
    port = str(free_port())
    processes.start("run_web_server.py", WEB_PORT=port, **({"WEB_WORKERS": "2"} | settings))
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: is_up(f"{url}/healthz"))
    return url


def workers_of(master: int) -> set[int]:
    """The web processes of a server; the master may be the child of a program that prepares its start."""
    listed = subprocess.run(["pgrep", "-P", str(master)], capture_output=True, text=True, check=False).stdout
    return {int(line) for line in listed.split()}


def counted(url: str) -> float:
    page = http("GET", f"{url}/metrics").body.decode()
    return sum(
        float(line.split()[1]) for line in page.splitlines() if line.startswith('web_requests_total{status="200"')
    )


def check_that_processes_are_replaced(processes: Processes, url: str) -> None:
    """Ask, kill each web process, and ask again: nothing that was counted is lost, and the server stays."""
    master = processes.running[-1]
    for _ in range(4):
        assert upload(f"{url}/predict", PHOTO).status == 200
    assert counted(url) == 4
    wait_for(lambda: len(workers_of(master.pid)) == 2)
    for worker in (before := workers_of(master.pid)):
        os.kill(worker, signal.SIGKILL)
    wait_for(lambda: len(workers_of(master.pid) - before) == 2)
    wait_for(lambda: is_up(f"{url}/healthz"))
    for _ in range(4):
        assert upload(f"{url}/predict", PHOTO).status == 200
    assert counted(url) == 8
    assert master.poll() is None
    assert "Traceback" not in output(master)


def test_a_web_server_lives_on_without_the_temporary_folder(
    processes: Processes, answering: Answering, tmp_path: Path
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    url = start(processes, TMPDIR=str(folder))
    shutil.rmtree(folder)
    check_that_processes_are_replaced(processes, url)


def test_a_web_server_starts_in_a_directory_that_was_removed(processes: Processes, answering: Answering) -> None:
    processes.prefix = ["sh", "-c", 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"', f"{KERAS_HOME}-gone"]
    assert upload(f"{start(processes)}/predict", PHOTO).status == 200


def can_seal() -> bool:
    return subprocess.run([*PREFIX, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_seal(), reason="only root may mount folders read-only")
def test_a_web_server_serves_where_no_temporary_folder_can_be_written(
    processes: Processes, answering: Answering
) -> None:
    processes.prefix = PREFIX
    check_that_processes_are_replaced(processes, start(processes))


def took(seconds: float) -> RequestNotes:
    return RequestNotes(0.0, route="predict", total_ms=1000 * seconds)


def test_each_process_counts_in_a_row_of_its_own_and_the_page_has_the_sums(raw: redis.Redis) -> None:
    counts = WebMetrics()
    for seconds in (0.001, 0.005, 0.006):
        counts.answered(took(seconds), 200)
    counts.next_process()
    for status, seconds in ((200, 0.3), (503, 31.0), (499, 30.0)):
        counts.answered(took(seconds), status)
    page, kind = counts.render(7, 9, None)
    assert kind.startswith("text/plain")
    samples = dict(line.rsplit(" ", 1) for line in page.decode().splitlines() if not line.startswith("#"))
    assert samples.pop("web_request_seconds_sum") == str(0.001 + 0.005 + 0.006 + 0.3 + 31.0 + 30.0)
    assert samples == {
        'web_requests_total{status="200"}': "4.0",
        'web_requests_total{status="499"}': "1.0",
        'web_requests_total{status="503"}': "1.0",
        'web_request_seconds_bucket{le="0.005"}': "2.0",
        **{f'web_request_seconds_bucket{{le="{bound}"}}': "3.0" for bound in (0.01, 0.025, 0.05, 0.1, 0.25)},
        **{f'web_request_seconds_bucket{{le="{bound}"}}': "4.0" for bound in (0.5, 1.0, 2.5, 5.0, 10.0)},
        'web_request_seconds_bucket{le="30.0"}': "5.0",
        'web_request_seconds_bucket{le="+Inf"}': "6.0",
        "web_request_seconds_count": "6.0",
        "queue_waiting_jobs": "7.0",
        "queue_bulk_waiting_jobs": "9.0",
    }


def test_processes_that_are_forked_add_up_however_often_they_are_replaced() -> None:
    counts = WebMetrics()
    for number in range(2000):  # more than there are rows
        counts.next_process()
        if number % 100 == 0 and not (child := os.fork()):
            counts.answered(took(0.1), 200)
            os._exit(0)
        elif number % 100 == 0:
            os.waitpid(child, 0)
    page, _ = counts.render(None, None, None)
    assert b'web_requests_total{status="200"} 20.0\n' in page
