"""Lines stay whole between processes, and no process waits for whoever reads its log."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, wait_for

SET_UP = (
    "import logging, os, pathlib, sys, time\nfrom serving.telemetry import logs\n"
    "logs.set_up(sys.argv[1], 'info')\nlog, events = logging.getLogger('serving.x'), logs.Events('serving.y')\n"
)


def start(body: str, stderr: int, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SET_UP + body, *arguments]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=stderr)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_lines_of_several_processes_do_not_get_into_each_other(log_format: str) -> None:
    reader, writer = os.pipe()
    body = "for n in range(1500): events.info('request', n=n, x=str(os.getpid()) * 40); n % 9 or log.info('x' * 3000)"
    running = [start(body, writer, log_format) for _ in range(4)]
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        lines = [line for line in pipe.read().decode().splitlines() if not re.search(r"\Wx{3000}\W*$", line)]
    assert [process.wait() for process in running] == [0] * 4
    found = [re.search(r"^.{45,130}\Wn\W+(\d+)\W+x\W+((\d+)\3{39})\W*$", line) for line in lines]
    assert [line for line, one in zip(lines, found, strict=True) if one is None] == []
    assert Counter(one[1] for one in found if one) == {str(number): 4 for number in range(1500)}


def test_a_process_whose_log_nobody_reads_goes_on_and_tells_later_how_much_was_dropped(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    body = (
        "for n in range(20_000): events.info('request', n=n, x='x' * 80)\n"
        "log.warning('a slow one')\n"
        "pathlib.Path(sys.argv[2]).touch()\n"
        "while pathlib.Path(sys.argv[2]).exists(): time.sleep(0.01)\n"
    )
    process = start(body, writer, "json", str(tmp_path / "done"))
    os.close(writer)
    wait_for(lambda: (tmp_path / "done").exists())  # with nobody reading
    lines = []
    with os.fdopen(reader, "rb") as pipe:
        for line in pipe:
            lines.append(json.loads(line))
            if "were dropped" in lines[-1]["event"]:
                (tmp_path / "done").unlink()
    assert process.wait() == 0
    numbers = [line["n"] for line in lines if line["event"] == "request"]
    assert numbers == list(range(len(numbers)))  # the first ones, in their order
    assert len(numbers) > 5000
    assert [line["event"] for line in lines[len(numbers) :]] == [
        f"{20_001 - len(numbers)} lines of the log were dropped, because nobody read them in time"
    ]


def test_a_reader_that_has_gone_stops_no_process() -> None:
    reader, writer = os.pipe()
    process = start("for n in range(100): events.info('request', n=n); log.warning('x')", writer, "text")
    os.close(reader)
    os.close(writer)
    assert process.wait() == 0


def test_a_process_without_a_standard_error_writes_into_no_other_file(tmp_path: Path) -> None:
    body = (
        f"with open({str(tmp_path / 'a file')!r}, 'w'), open({str(tmp_path / 'another')!r}, 'w'):\n"
        "    events.info('request'); log.warning('x')"
    )
    command = f'exec {sys.executable} -c "$BODY" text 2>&- 1>&-'
    environment = os.environ | {"PYTHONPATH": str(ROOT), "BODY": SET_UP + body}
    assert subprocess.run(command, shell=True, env=environment, check=False).returncode == 0  # noqa: S602
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"", b""]
