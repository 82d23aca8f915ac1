"""Everything that a process writes is a line of one form, and no text can make it two."""

import json
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from conftest import ROOT

from serving.telemetry import logs

TEXT = re.compile(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.]+: \S.*")
EVIL = [
    "two\nlines",
    "return\rline",
    "\x1b[2J\x1b[31mred\x1b[0m",
    "C1 \x9b31m",
    "bell \x07 del \x7f nul \0",
    "ends \x85 \u2028 \u2029",
    "turned \u202egpj.exe\u2066",
    'quote " and \\ and {"timestamp":"x"}',
    "half \ud800 a character",
    "ünïcode 犬",
]
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def run(body: str, log_format: str, log_level: str = "info") -> tuple[int, list[str], str]:
    """What a process writes that sets up its log and then runs `body`: its exit status, lines of stderr, and stdout."""
    script = (
        "import logging, os, sys, threading\nfrom serving.telemetry import logs\n"
        f"logs.set_up({log_format!r}, {log_level!r})\n"
        "log, events = logging.getLogger('serving.x'), logs.Events('serving.y')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script + body],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    text = ran.stderr.decode()
    assert text.endswith("\n") or not text
    return ran.returncode, text.split("\n")[:-1], ran.stdout.decode()


def test_a_line_of_text_has_the_form_that_it_always_had() -> None:
    _, lines, _ = run("log.warning('%d jobs', 3); events.info('batch', images=3, predict_ms=1.5, none=None)", "text")
    assert [line[24:] for line in lines] == [
        "WARNING serving.x: 3 jobs",
        "INFO serving.y: batch images=3 predict_ms=1.5",
    ]
    assert all(TEXT.fullmatch(line) for line in lines)


def test_a_line_says_of_which_model_it_is_where_its_thread_serves_one_of_several() -> None:
    body = (
        "def work():\n"
        "    with logs.of_model('cats'):\n"
        "        log.info('joined')\n"
        "    log.info('over')\n"
        "thread = threading.Thread(target=work)\n"
        "thread.start()\n"
        "thread.join()\n"
        "with logs.of_model(None): log.info('of one model')"
    )
    _, lines, _ = run(body, "text")
    assert [line[24:] for line in lines] == [
        *("INFO serving.x: joined model=cats", "INFO serving.x: over", "INFO serving.x: of one model")
    ]
    _, lines, _ = run(body, "json")
    assert [json.loads(line).get("model") for line in lines] == ["cats", None, None]


def test_a_line_of_json_has_a_time_a_level_a_logger_an_event_and_fields() -> None:
    _, lines, _ = run(
        "log.warning('%d jobs', 3); events.info('batch', images=3, predict_ms=1.5, none=None, jobs=['a'])", "json"
    )
    told = [json.loads(line) for line in lines]
    for one in told:
        at = one.pop("timestamp")
        assert re.fullmatch(r"[-0-9]{10}T[0-9:]{8}\.\d{3}Z", at)
        assert abs(datetime.now(UTC) - datetime.fromisoformat(at)) < timedelta(minutes=1)
    assert told == [
        {"level": "warning", "logger": "serving.x", "event": "3 jobs"},
        {"level": "info", "logger": "serving.y", "event": "batch", "images": 3, "predict_ms": 1.5, "jobs": ["a"]},
    ]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_text_can_begin_a_line_or_steer_a_terminal(log_format: str) -> None:
    body = (
        f"for text in {EVIL!r}:\n"
        "    log.info('%s', text)\n"
        "    events.info('request', request_id=text, jobs=[text])\n"
        "    try:\n        raise ValueError(text)\n"
        "    except ValueError:\n        log.exception('failed: %s', text)\n"
    )
    _, lines, _ = run(body, log_format)
    assert CONTROL.search("\n".join(lines)) is None
    begin = [line for line in lines if not line.startswith(logs.INDENT)]
    assert len(begin) == 3 * len(EVIL)
    if log_format == "text":
        assert all(TEXT.fullmatch(line) for line in begin)
    else:
        assert len(lines) == len(begin)
        told = [json.loads(line) for line in lines]
        assert [one["event"] for one in told[::3]][:-2] == EVIL[:-2]  # a reader of JSON gets each as it was
        assert told[-3]["event"] == EVIL[-1]
        assert all("ValueError" in one["exception"] for one in told[2::3])


def test_a_traceback_is_one_field_of_json_and_in_text_lines_that_begin_with_spaces() -> None:
    body = "try: 1 / 0\nexcept ZeroDivisionError: log.exception('it failed')"
    _, (line,), _ = run(body, "json")
    assert re.fullmatch(r"Traceback \(most .*ZeroDivisionError: division by zero", json.loads(line)["exception"], re.S)
    _, (first, *others), _ = run(body, "text")
    assert first.endswith("ERROR serving.x: it failed")
    assert others[0] == "    Traceback (most recent call last):"
    assert others[-1] == "    ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("body", "status", "logger"),
    [
        ("raise ValueError('the reason')", 1, "serving.telemetry.logs"),
        ("t = threading.Thread(target=int, args=('the reason',)); t.start(); t.join()", 0, "serving.telemetry.logs"),
        ("class A:\n    def __del__(self): raise ValueError('the reason')\nA()", 0, "serving.telemetry.logs"),
        ("import warnings; warnings.warn('the reason')", 0, "py.warnings"),
        ("logging.getLogger('tensorflow').warning('the reason')", 0, "tensorflow"),
        ("print('the reason', file=sys.stderr)", 0, "output"),
        ("print('the reason')", 0, "output"),
        ("os.write(2, b'W0000 00:00:1795988539.7 6334 gpu.cc:1] the reason\\n'); os.abort()", -6, "output"),
        ("os.write(1, b'10%\\r50%\\rthe reason'); os.kill(os.getpid(), 9)", -signal.SIGKILL, "output"),
        ("os.write(2, b'\\xff\\x1b[2J the reason \x7f \\0')", 0, "output"),
    ],
)
def test_whoever_writes_it_a_line_is_json_also_the_last_words_of_a_process(body: str, status: int, logger: str) -> None:
    returned, lines, stdout = run(body, "json", "debug")
    assert (returned, stdout) == (status, "")
    (told,) = (json.loads(line) for line in lines)
    assert "the reason" in told["event"] + told.get("exception", "")
    assert told["logger"] == logger
    assert CONTROL.search(lines[0]) is None


def test_an_error_that_nobody_catches_in_an_event_loop_is_one_line() -> None:
    body = (
        "import gevent\nfrom serving.web import server\nserver.set_up_logs('json', 'info')\n"
        "def fail(): raise ValueError('the reason')\n"
        "gevent.spawn(fail).join()\ngevent.get_hub().loop.run_callback(fail)\ngevent.sleep(0.01)"
    )
    status, lines, _ = run(body, "text")
    told = [json.loads(line) for line in lines]
    assert [(one["level"], one["exception"][-22:]) for one in told] == [("critical", "ValueError: the reason")] * 2
    assert status == 0


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_log_level_warning_leaves_out_requests_and_batches(log_format: str) -> None:
    body = "events.info('request'); events.debug('page'); log.info('x'); log.warning('y')"
    (line,) = run(body, log_format, "warning")[1]
    assert "y" in line
    assert [len(run(body, log_format, level)[1]) for level in ("info", "debug")] == [3, 4]


def test_a_refusal_at_the_start_is_a_sentence_or_a_line_of_json() -> None:
    assert run("logs.refuse(ValueError('Set it.'))", "text")[1] == ["Set it."]
    (line,) = run("logs.refuse(ValueError('Set it.'))", "json")[1]
    assert json.loads(line) | {"timestamp": ""} == {
        "timestamp": "",
        "level": "error",
        "logger": "start",
        "event": "Set it.",
    }


@pytest.mark.parametrize("script", ["run_web_server.py", "run_model_server.py", "run_service.py"])
def test_a_wrong_setting_is_a_line_of_json_where_these_are_wanted(script: str) -> None:
    for settings in ({"LOG_FORMAT": "json", "BATCH_SIZE": "no\nnumber"}, {"LOG_FORMAT": "xml"}):
        ran = subprocess.run(
            [sys.executable, str(ROOT / script)],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (ran.returncode, ran.stdout) == (2, "")
        if settings["LOG_FORMAT"] == "json":
            (line,) = ran.stderr.splitlines()
            assert "BATCH_SIZE='no\\nnumber' is not allowed" in json.loads(line)["event"]
        else:
            assert ran.stderr.startswith("LOG_FORMAT='xml' is not allowed")


def test_before_it_is_set_up_nothing_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    logs.Events("serving.tests").info("request")
    assert capfd.readouterr() == ("", "")
