"""Several models from one models.yaml: a process that serves them all, and what an operator does with them."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import redis
from conftest import (
    ROOT,
    Processes,
    RedisServer,
    clean_environment,
    free_port,
    http,
    new_job,
    output,
    wait_for,
)
from test_metrics import documented, on_page

import helpers
import model_parts
import queue_admin
import run_model_server
import settings
from serving.errors import StartError
from serving.jobs.job import Job

COLOURS, HUES = ["red", "green", "blue", "grey"], ["rot", "grün", "blau", "grau"]


def write_models(folder: Path, **more: dict[str, object]) -> Path:
    """models.yaml with the models colours, the default, and hues; `more` are further ones, or other keys of these."""
    for name, labels in (("colours", COLOURS), ("hues", HUES)):
        (folder / f"{name}.txt").write_text("\n".join(labels))
    common = {"model": "mean colour", "runtime": "runtimes:MeanColour", "width": 32, "height": 32, "batch_size": 8}
    models = {name: common | {"labels": f"{name}.txt"} for name in ("colours", "hues")}
    models = {name: models.get(name, common | {"labels": "numbers"}) | more.get(name, {}) for name in models | more}
    path = folder / "models.yaml"
    path.write_text(json.dumps({"default": "colours", "models": models}))  # JSON is YAML
    return path


def environment(models: Path) -> dict[str, str]:
    return {"MODELS_FILE": str(models), "PYTHONPATH": str(Path(__file__).parent)}


def red(**changes: object) -> Job:
    return new_job(image=helpers.encode_image(np.full((32, 32, 3), (255, 0, 0), np.uint8), "uint8"), **changes)


def push(raw: redis.Redis, name: str, *jobs: Job) -> None:
    raw.rpush(f"image_queue:{name}", *(job.to_text() for job in jobs))


def label(raw: redis.Redis, job: Job) -> str:
    return json.loads(wait_for(lambda: raw.get(job.id)))[0]["label"]


class Told(NamedTuple):
    """What a program ended with, and said."""

    status: int
    out: str
    err: str


Command = Callable[..., Told]


@pytest.fixture
def command(service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A program in this process, with the settings of the service."""
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    for name, value in service.processes.environment.items():
        monkeypatch.setenv(name, value)

    def run(program: str, *arguments: str) -> Told:
        monkeypatch.setattr(sys, "argv", [f"{program}.py", *arguments])
        status = run_model_server.main() if program == "run_model_server" else queue_admin.main()
        return Told(status, *capsys.readouterr())

    return run


@pytest.fixture
def admin(command: Command) -> Command:
    return functools.partial(command, "queue_admin")


@pytest.fixture(scope="module")
def service(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """One model server of two models."""
    redis_server.client.flushall()
    models, metrics = write_models(tmp_path_factory.mktemp("models")), free_port()
    processes = Processes({"REDIS_URL": redis_server.url, "LEASE_SECONDS": "5"} | environment(models))
    process = processes.start("run_model_server.py", METRICS_PORT=str(metrics))
    wait_for(lambda: output(process).count("joined the queue") == 2 or process.poll() is not None)
    yield SimpleNamespace(
        process=process, processes=processes, raw=redis_server.client, metrics=f"http://127.0.0.1:{metrics}"
    )
    processes.end()


def test_a_process_answers_the_jobs_of_each_model_with_its_own_labels(service: SimpleNamespace) -> None:
    first, second = red(), red()
    push(service.raw, "colours", first)
    push(service.raw, "hues", second)
    assert (label(service.raw, first), label(service.raw, second)) == ("red", "rot")
    for name in ("colours", "hues"):
        (served,) = map(json.loads, service.raw.hvals(f"{{image_queue:{name}}}:serves"))
        assert served["name"] == name


def test_each_line_of_its_log_says_of_which_model_it_is(service: SimpleNamespace) -> None:
    lines = output(service.process).splitlines()
    for words in ("warming up: ", "joined the queue as "):
        assert sorted(line.rsplit(" ", 1)[1] for line in lines if words in line) == ["model=colours", "model=hues"]
    loads = [number for number, line in enumerate(lines) if "warming up" in line]
    joins = [number for number, line in enumerate(lines) if "joined the queue" in line]
    assert max(loads) < min(joins)  # all models are loaded before the first one is served


def test_its_page_tells_each_metric_of_each_model_as_the_documents_say(service: SimpleNamespace) -> None:
    job = red()
    push(service.raw, "hues", job)
    label(service.raw, job)
    series = 'classify_jobs_total{model="hues",outcome="answered"}'
    wait_for(lambda: re.search(rf"^{re.escape(series)} [1-9]", http_text(service.metrics), re.MULTILINE))

    def with_model(metric: str) -> str:
        name, _, kind = metric.partition(" ")
        if not name.startswith("classify_") or "model" in name:
            return metric
        bare, _, labels = name.rstrip("}").partition("{")
        return f"{bare}{{{','.join(sorted([*filter(None, labels.split(',')), 'model']))}}} {kind}"

    expected = {one if "build_info" in one else with_model(one) for one in documented()["model"]}
    assert on_page(service.metrics) == expected


def http_text(url: str) -> str:
    return http("GET", f"{url}/metrics").body.decode()


def test_it_is_healthy_while_each_of_the_models_makes_progress(
    service: SimpleNamespace, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("run_model_server", "--check-health") == (0, "", "")
    monkeypatch.setenv("MODELS_FILE", str(write_models(tmp_path, cats={})))
    assert command("run_model_server", "--check-health", "--model", "hues", "--model", "colours") == (0, "", "")
    status, _, says = command("run_model_server", "--check-health")
    assert status == 1
    assert says.startswith("No model server of this host for cats holds a lease: ")
    status, _, says = command("run_model_server", "--check-health", "--model", "dogs")
    assert (status, says) == (2, "--model dogs: there is no such model, but colours, hues, cats.\n")


def test_a_model_that_the_file_does_not_name_and_a_name_without_a_file_are_refused(tmp_path: Path) -> None:
    several = settings.Settings(_env_file=None, models_file=str(write_models(tmp_path)))
    assert [model.name for model in model_parts.chosen_models(several, None)] == ["colours", "hues"]
    assert [model.name for model in model_parts.chosen_models(several, ["hues", "hues"])] == ["hues"]
    with pytest.raises(StartError, match=r"--model cats: .*models.yaml names no such model, but colours, hues\."):
        model_parts.chosen_models(several, ["hues", "cats"])
    with pytest.raises(StartError, match="which is not set"):
        model_parts.chosen_models(settings.Settings(_env_file=None), ["cats"])


# The operator's command


def test_status_is_of_all_models_and_not_well_if_one_is_not(service: SimpleNamespace, admin: Command) -> None:
    status, out, _ = admin("status")
    heads = [line for line in out.splitlines() if line.startswith("image_queue")]
    assert (status, [head.split()[0] for head in heads]) == (0, ["image_queue:colours", "image_queue:hues"])
    service.raw.set("{image_queue:hues}:paused", time.time())
    try:
        told = admin("status", "--json")
        read = json.loads(told.out)
        assert (told.status, read["well"], list(read["models"])) == (1, False, ["colours", "hues"])
        assert [one["well"] for one in read["models"].values()] == [True, False]
        one = admin("status", "--json", "--model", "colours")
        assert (one.status, json.loads(one.out)["queue"]) == (0, "image_queue:colours")
        with subprocess.Popen(
            [sys.executable, str(ROOT / "queue_admin.py"), "status", "--watch"],
            env=clean_environment() | service.processes.environment,
            stdout=subprocess.PIPE,
        ) as watching:
            assert watching.stdout is not None
            lines = [watching.stdout.readline().decode() for _ in range(2)]
            watching.kill()
        assert lines[0].startswith("colours: ")
        assert lines[1].startswith("hues: ")
        assert lines[1].endswith("not well: paused\n")
    finally:
        service.raw.delete("{image_queue:hues}:paused")


def test_pause_drain_and_resume_mean_all_models_or_the_one_that_is_named(
    service: SimpleNamespace, admin: Command
) -> None:
    raw = service.raw
    assert admin("pause", "--model", "hues").out == "Paused: no model server takes. `resume` ends it.\n"
    assert (raw.exists("{image_queue:colours}:paused"), raw.exists("{image_queue:hues}:paused")) == (0, 1)
    job = red()
    push(raw, "colours", job)
    assert label(raw, job) == "red"  # the other model goes on
    status, out, _ = admin("drain", "--wait", "--timeout", "30")
    assert status == 0
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["colours", "hues"]
    assert lines[2].startswith("Empty after ")
    assert raw.exists("{image_queue:colours}:draining") == raw.exists("{image_queue:hues}:draining") == 1
    assert admin("resume").out == "colours: Resumed.\nhues: Resumed.\n"
    assert raw.exists("{image_queue:colours}:draining") == raw.exists("{image_queue:hues}:draining") == 0


def test_a_model_server_is_quieted_for_one_model_or_for_all_of_its_process(
    service: SimpleNamespace, admin: Command
) -> None:
    told = json.loads(admin("servers", "--json").out)["models"]
    names = {model: servers[0]["name"] for model, servers in told.items()}
    process = names["hues"].rpartition(":")[0]
    assert process == names["colours"].rpartition(":")[0]
    assert admin("quiet", process, "--model", "hues").out == f"{names['hues']} takes no more.\n"
    assert service.raw.hkeys("{image_queue:colours}:quiet") == []
    status, out, _ = admin("quiet", process)
    assert (status, out.splitlines()) == (
        0,
        [f"{names['colours']} takes no more.", f"{names['hues']} was quiet already."],
    )
    assert admin("wake", "--all").status == 0
    assert service.raw.hkeys("{image_queue:hues}:quiet") == []


def test_dead_letters_are_found_in_whichever_model_they_lie(service: SimpleNamespace, admin: Command) -> None:
    raw, ours = service.raw, red()
    letter = {"id": ours.id, "at": time.time(), "attempts": 3, "reason": "it died", "job": ours.to_text()}
    raw.rpush("{image_queue:hues}:dead", json.dumps(letter))
    listed = admin("dead", "list").out
    assert "colours:\nThere are no dead letters.\n\nhues:\n" in listed
    assert ours.id[:8] in listed
    assert [len(of) for of in json.loads(admin("dead", "list", "--json").out)["models"].values()] == [0, 1]
    assert admin("dead", "show", ours.id[:8], "--model", "colours").status == 1
    assert f"id        {ours.id}" in admin("dead", "show", ours.id[:8]).out
    assert admin("dead", "requeue", ours.id[:8]).out == f"requeued {ours.id}\n"
    assert label(raw, ours) == "rot"
    assert raw.llen("{image_queue:hues}:dead") == 0


def test_a_model_that_is_not_there_ends_the_command_with_2(service: SimpleNamespace, admin: Command) -> None:
    told = admin("status", "--model", "cats\x1b[2J")
    assert (told.status, told.err) == (2, "--model cats?[2J: there is no such model, but colours, hues.\n")


# How it ends


def start_another(service: SimpleNamespace, models: Path, **settings: str) -> subprocess.Popen[bytes]:
    """A model server of two models beside that of the service, on other queues."""
    own = {"IMAGE_QUEUE": "another", "METRICS_PORT": "0"}
    process = service.processes.start("run_model_server.py", **environment(models), **own, **settings)
    wait_for(lambda: output(process).count("joined the queue") == 2 or process.poll() is not None)
    return process


def test_sigterm_ends_all_models_in_good_order(service: SimpleNamespace, tmp_path: Path) -> None:
    process = start_another(service, write_models(tmp_path))
    assert len(service.raw.keys("{another:*}:workers")) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    stopped = [line for line in output(process).splitlines() if "stopped; 0 jobs" in line]
    assert sorted(line.rsplit(" ", 1)[1] for line in stopped) == ["model=colours", "model=hues"]
    assert not service.raw.keys("{another:*}:workers")


def test_a_broken_model_ends_the_process_with_1_and_the_other_one_leaves_in_good_order(
    service: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "faults").write_text("{}")
    models = write_models(tmp_path, hues={"runtime": "runtimes:Faulty"})
    process = start_another(service, models, FAULTS=str(tmp_path / "faults"))
    os.truncate(tmp_path / "faults", 0)  # no JSON: each batch fails, a blank one too
    service.raw.rpush("another:hues", red().to_text())
    assert process.wait(timeout=30) == 1
    says = output(process)
    assert "the model server of hues failed: those of the other models stop as well" in says
    assert re.search(r"stopped; 0 jobs .* model=colours$", says, re.MULTILINE)
    assert not service.raw.exists("{another:colours}:workers")
    assert "ModelFailed" in says


def test_what_is_refused_of_a_model_names_the_file_the_model_and_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "TOP" / "models.yaml"  # a folder that is called as a setting is
    path.parent.mkdir()
    path.write_text(
        "models:\n  colours:\n    model: nowhere.keras\n  weighed:\n    model: nowhere.keras\n    weights: random\n"
    )
    monkeypatch.setenv("MODELS_FILE", str(path))
    config = settings.load()
    says = {
        "colours": rf"`model:` {path.parent}/nowhere\.keras cannot be loaded: No such file or directory\. `model` is ",
        "weighed": r"`weights:` random is for classifiers of keras\.applications; .* Leave `weights` unset\.$",
    }
    for model in config.models():
        start = rf"^{path}, model `{model.name}`: "
        with pytest.raises(StartError, match=start + says[str(model.name)]):
            model_parts.load(config, model)
