"""examples/custom_model: what it trains is served, and right, as its README says."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Processes, clean_environment, free_port, output, wait_for

EXAMPLE = ROOT / "examples" / "custom_model"
ROW = r"^(\w+) +(\w+) +(\d+\.\d\d)%  (right|WRONG)$"


@pytest.fixture(scope="module")
def url(shapes_model: dict[str, str]) -> Iterator[str]:
    """The service, as `make run` starts it, with the example's network."""
    port = str(free_port())
    processes = Processes({"WEB_PORT": port, "METRICS_PORT": "0", "WEB_WORKERS": "1"})
    service = processes.start("run_service.py", **shapes_model)
    wait_for(lambda: service.poll() is not None or "Ready after" in output(service), seconds=90)
    assert service.poll() is None, output(service)
    yield f"http://127.0.0.1:{port}"
    service.send_signal(signal.SIGTERM)
    assert service.wait(timeout=60) == 0
    processes.end()


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "ask.py"), *arguments]
    return subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=90)


def test_the_example_answers_right_on_pictures_that_it_has_never_seen(url: str) -> None:
    asked = ask(url, "--pictures", "40", "--seed", "7")
    rows = [re.match(ROW, line) for line in asked.stdout.splitlines()[:-1]]
    assert asked.stdout.splitlines()[-1] == "40 of 40 right."
    assert [row and row[4] for row in rows] == ["right"] * 40
    assert {row[1] for row in rows if row} == {"circle", "square", "star", "triangle"}
    assert (asked.returncode, asked.stderr) == (0, "")


def test_what_the_service_says_of_a_picture_is_shown(url: str) -> None:
    asked = ask(f"{url}/nowhere")
    assert asked.returncode == 2
    assert asked.stderr.startswith(f'{url}/nowhere does not answer as this service: {{"success":false,"error":"')


def test_where_no_service_answers_the_example_says_so() -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    asked = ask(nowhere)
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr == f"{nowhere} does not answer as this service: [Errno 111] Connection refused\n"


def test_a_count_of_pictures_that_cannot_be_is_refused() -> None:
    asked = ask("--pictures=0")
    assert asked.returncode == 2
    assert asked.stderr.splitlines()[-1].endswith("argument --pictures: it is a whole number from 1 to 100,000")


def test_the_readme_names_the_files_that_there_are(shapes_model: dict[str, str]) -> None:
    named = re.findall(r"examples/custom_model/([\w./]+)", (EXAMPLE / "README.md").read_text())
    saved = {f"model/{Path(path).name}" for path in shapes_model.values()}
    assert set(named) == {"train.py", "ask.py"} | saved
