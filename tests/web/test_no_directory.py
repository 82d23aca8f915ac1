"""A web server needs no directory: others may tidy what lies there, and it may be full, read-only or missing."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
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
