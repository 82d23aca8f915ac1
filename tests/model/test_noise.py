"""What frameworks write while they load stays away from people, unless they ask for it."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from conftest import ROOT, Processes, output, wait_for

from serving.model import noise

OURS = re.compile(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) (serving\.[\w.]+|model_server): \S.*")
ON_KERAS = {"MODEL_RUNTIME": "keras"}
TENSORFLOWS = "oneDNN custom operations are on"  # on every machine that TensorFlow runs on


def start(processes: Processes, tiny_model: dict[str, str], keras_home: Path, **settings: str) -> str:
    """What a model server writes from its first start until it is ready and stopped again."""
    process = processes.start("run_model_server.py", **tiny_model, KERAS_HOME=str(keras_home), **settings)
    wait_for(lambda: "joined the queue" in output(process) or process.poll() is not None)
    process.terminate()
    assert process.wait(timeout=30) == 0, output(process)
    return output(process)


@pytest.mark.parametrize(
    "settings",
    [{}, *(pytest.param(ON_KERAS | more, marks=pytest.mark.slow) for more in ({}, {"KERAS_BACKEND": "jax"}))],
    ids=str,
)
def test_a_first_start_says_what_the_service_does_and_nothing_else(
    processes: Processes, raw: redis.Redis, tiny_model: dict[str, str], tmp_path: Path, settings: dict[str, str]
) -> None:
    lines = start(processes, tiny_model, tmp_path, **settings).splitlines()
    assert [line for line in lines if not OURS.fullmatch(line)] == []
    assert len(lines) > 4


@pytest.mark.slow
def test_with_log_level_debug_everything_is_shown(
    processes: Processes, raw: redis.Redis, tiny_model: dict[str, str], tmp_path: Path
) -> None:
    assert TENSORFLOWS in start(processes, tiny_model, tmp_path, LOG_LEVEL="debug")


def run(body: str) -> subprocess.CompletedProcess[str]:
    script = f"import os, sys\nfrom serving.model import noise\n{body}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_lines_of_c_and_of_python_are_kept_and_standard_error_is_as_before() -> None:
    ran = run(
        "with noise.kept_back() as lines:\n"
        "    os.write(2, b'of C\\n'); print('of Python', file=sys.stderr)\n"
        "print(lines)\n"
        "print('after', file=sys.stderr)"
    )
    assert (ran.stdout, ran.stderr) == ("['of C', 'of Python']\n", "after\n")


def test_an_error_passes_and_is_told_on_standard_error() -> None:
    ran = run("with noise.kept_back():\n    print('noise', file=sys.stderr)\n    sys.exit('the reason')")
    assert (ran.returncode, ran.stderr) == (1, "the reason\n")


def test_more_than_a_pipe_holds_keeps_nobody_waiting() -> None:
    script = (
        "with noise.kept_back() as lines:\n    for _ in range(300):\n        try: os.write(2, b'x' * 999 + b'\\n')\n"
    )
    ran = run(script + "        except BlockingIOError: pass\nprint(len(lines) > 10)")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "True\n", "")


def test_what_is_said_of_gpus_is_told_once_and_without_prefixes() -> None:
    lines = [
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1795988539.735497    6334 port.cc:153] oneDNN custom operations are on.",
        "W0000 00:00:1795988539.736706    6334 gpu_device.cc:2342] Cannot dlopen some GPU libraries.",
        "W0000 00:00:1795988539.736707    6334 gpu_device.cc:2342] Cannot dlopen some GPU libraries.",
        "2026-11-29 21:47:31,841 WARNING jax._src.xla_bridge: An NVIDIA GPU may be present on this machine.",
        '{"timestamp":"…","level":"warning","logger":"jax","event":"An NVIDIA GPU may be present on this machine."}',
    ]
    assert noise.about_gpus(lines) == "Cannot dlopen some GPU libraries. An NVIDIA GPU may be present on this machine."
    assert noise.about_gpus(lines[:2]) == ""


def test_tensorflow_is_told_to_write_what_is_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(noise.gpus, "DEVICES", tmp_path)
    monkeypatch.setattr(noise.log, "level", logging.INFO)
    assert noise.tensorflows_level() == "2"
    (tmp_path / "nvidia0").touch()
    assert noise.tensorflows_level() == "1"
    noise.log.setLevel(logging.DEBUG)
    assert noise.tensorflows_level() == "0"
