"""The operator's tools find the service that runs from their folder, and no other; and the Python that runs them."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from conftest import ROOT, Processes, RedisServer, clean_environment, free_port, output, wait_for

from serving.local import running_service
from serving.local.running_service import FILE, RunningService

SCRIPTS = [
    "dead_letters.py",
    "queue_admin.py",
    "run_model_server.py",
    "run_service.py",
    "run_web_server.py",
    "stress_test.py",
]
LETTER = json.dumps({"id": "3f2b9c04", "at": 0, "attempts": 3, "reason": "its model server died", "job": "none"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout of its own: this one may have a service running."""
    project = tmp_path / "project"
    shutil.copytree(ROOT / "serving", project / "serving", ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, project)
    return project


@pytest.fixture
def started(light_model: dict[str, str]) -> Iterator[Processes]:
    processes = Processes({"METRICS_PORT": "0", "WEB_WORKERS": "1"} | light_model)
    yield processes
    for process in processes.running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
    processes.end()


def start(started: Processes, folder: Path, **settings: str) -> subprocess.Popen[bytes]:
    """run_service.py of a checkout, ready."""
    process = started.start(str(folder / "run_service.py"), WEB_PORT=str(free_port()), **settings)
    wait_for(lambda: process.poll() is not None or "Ready after" in output(process), seconds=90)
    assert process.poll() is None, output(process)
    return process


def ask(folder: Path, script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / script), *arguments]
    environment = clean_environment() | settings
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def redis_of(folder: Path) -> redis.Redis:
    return redis.Redis.from_url(json.loads((folder / FILE).read_text())["redis_url"])


def test_the_tools_find_the_private_redis_of_the_service_without_a_setting(started: Processes, folder: Path) -> None:
    service = start(started, folder, IMAGE_QUEUE="another")
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
    with redis_of(folder) as client:
        client.rpush("{another}:dead", LETTER)
    listed = ask(folder, "queue_admin.py", "dead", "list")
    assert (listed.returncode, listed.stdout.splitlines()[1].split()[0]) == (0, "3f2b9c04"), listed.stderr
    assert f"Redis: the one of run_service.py, process {service.pid}" in listed.stderr
    assert ask(folder, "run_model_server.py", "--check-health").returncode == 0
    status = ask(folder, "queue_admin.py", "status", "--json")
    assert (status.returncode, json.loads(status.stdout)["queue"]) == (0, "another"), status.stderr
    service.send_signal(signal.SIGTERM)
    assert service.wait(timeout=60) == 0
    assert not list(folder.glob(f"{FILE}*"))


@pytest.mark.slow
def test_a_setting_comes_before_the_service_that_runs_here(started: Processes, folder: Path) -> None:
    service = start(started, folder)
    with redis_of(folder) as client:
        client.rpush("{image_queue}:dead", LETTER)
    other = RedisServer()
    try:
        assert "no dead letters" in ask(folder, "queue_admin.py", "dead", "list", REDIS_URL=other.url).stdout
        assert "no dead letters" in ask(folder, "queue_admin.py", "dead", "list", IMAGE_QUEUE="another").stdout
        (folder / ".env").write_text(f"REDIS_URL={other.url}\n")
        listed = ask(folder, "queue_admin.py", "dead", "list")
        assert "no dead letters" in listed.stdout
        assert str(service.pid) not in listed.stderr
    finally:
        other.remove()


@pytest.mark.slow
def test_of_two_services_in_one_checkout_the_first_is_found_and_the_second_says_so(
    started: Processes, folder: Path
) -> None:
    first = start(started, folder)
    told = (folder / FILE).read_text()
    second = start(started, folder)
    assert f"the service that runs here already (process {first.pid})" in output(second)
    second.send_signal(signal.SIGTERM)
    assert second.wait(timeout=60) == 0
    assert (folder / FILE).read_text() == told


@pytest.mark.slow
def test_after_a_service_was_killed_its_redis_is_said_to_be_away_and_the_next_service_is_found(
    started: Processes, folder: Path
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    running_service.write(folder, RunningService("redis://127.0.0.1:1/0", "image_queue", gone.pid))
    listed = ask(folder, "queue_admin.py", "dead", "list")  # from the default, where this machine may have a Redis
    assert f"The Redis of run_service.py (process {gone.pid}) does not answer: was it killed?" in listed.stderr
    assert "localhost:6379" in listed.stderr or listed.returncode == 0
    service = start(started, folder)
    assert json.loads((folder / FILE).read_text())["process_id"] == service.pid


@pytest.mark.slow
def test_in_a_checkout_that_cannot_be_written_the_service_goes_on_and_says_what_the_tools_lack(
    started: Processes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / FILE).mkdir()  # as root, any folder can be written
    service = start(started, folder)
    assert f"{folder / FILE} cannot be written" in output(service)
    assert "REDIS_URL" in output(service)


@pytest.fixture
def note(tmp_path: Path) -> Path:
    running_service.write(tmp_path, RunningService("redis://127.0.0.1:1/0", "image_queue", os.getpid()))
    assert running_service.find(tmp_path) is not None
    return tmp_path / FILE


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_is_ignored(note: Path, mode: int, capsys: pytest.CaptureFixture[str]) -> None:
    note.chmod(mode)
    assert running_service.find(note.parent) is None
    assert "others may write into it" in capsys.readouterr().err


def test_a_file_of_another_user_is_ignored(
    note: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert running_service.find(note.parent) is None
    assert "belongs to another user" in capsys.readouterr().err


def test_a_link_a_pipe_and_what_nobody_of_ours_wrote_are_ignored(note: Path, tmp_path: Path) -> None:
    elsewhere = note.rename(tmp_path / "elsewhere")
    note.symlink_to(elsewhere)
    assert running_service.find(note.parent) is None
    note.unlink()
    os.mkfifo(note, 0o600)
    assert running_service.find(note.parent) is None
    note.unlink()
    for text in (b"", b"redis://127.0.0.1:1/0", b"[]", b'{"redis_url": "x"}', b"\xff\xfe", b"[" * 60_000):
        note.write_bytes(text)
        note.chmod(0o600)
        assert running_service.find(note.parent) is None


def test_a_file_that_a_process_of_the_same_id_left_behind_is_of_no_living_service() -> None:
    """A container that is started again gives its processes the same ids."""
    for process_id in (os.getpid(), 10**30):
        assert not RunningService("redis://127.0.0.1:1/0", "image_queue", process_id).is_alive()
    assert RunningService("redis://127.0.0.1:1/0", "image_queue", os.getppid()).is_alive()


def test_git_and_images_leave_the_file_out() -> None:
    ignored = subprocess.run(["git", "check-ignore", FILE, f"{FILE}abc"], cwd=ROOT, capture_output=True, text=True)
    if "not a git repository" not in ignored.stderr:
        assert ignored.stdout.split() == [FILE, f"{FILE}abc"]
    assert f"!{FILE}" not in (ROOT / ".dockerignore").read_text()  # which begins with *


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_python_without_the_packages_is_told_which_one_has_them(script: str, folder: Path) -> None:
    def said() -> str:
        ended = subprocess.run(
            [sys.executable, "-S", str(folder / script)], capture_output=True, text=True, timeout=30, check=False
        )
        assert ended.returncode == 2, ended.stderr
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        return ended.stderr

    python = folder / ".venv" / "bin" / "python"
    assert f"`make run` makes a Python that has all: {python} {folder / script}" in said()
    python.parent.mkdir(parents=True)
    python.touch()
    assert f"Use the one of .venv: {python} {folder / script}" in said()
