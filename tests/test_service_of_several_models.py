"""run_service.py with a models.yaml: it starts the servers of each model, looks after them, and says where they are."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import (
    ROOT,
    Answer,
    Processes,
    RedisServer,
    as_bytes,
    clean_environment,
    free_port,
    http,
    is_up,
    output,
    some_photo,
    upload,
    wait_for,
)
from PIL import Image
from test_several_models import environment, write_models

import run_model_server
import service_parts
import settings
from serving.jobs.job_queue import JobQueue
from serving.jobs.overview import overview
from serving.local.terminal import Output
from serving.model import gpu_packages, gpus

PHOTO = as_bytes(some_photo(), "JPEG")


class Service(SimpleNamespace):
    """run_service.py, and where it is."""

    process: subprocess.Popen[bytes]
    url: str
    metrics: int

    def said(self) -> str:
        return output(self.process)

    def model_server(self, *arguments: str) -> int:
        """The id of the model server with this command line."""
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", f"run_model_server.py --redis-is-known {' '.join(arguments)}"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        return int(found[0]) if len(found) == 1 else 0


def start(processes: Processes, redis_server: RedisServer, models: Path, **more: str) -> Service:
    metrics, port = free_port(count=2), free_port()
    ports = {"WEB_PORT": str(port), "WEB_WORKERS": "1", "METRICS_PORT": str(metrics)}
    started = processes.start("run_service.py", **environment(models), **ports, REDIS_URL=redis_server.url, **more)
    return Service(process=started, url=f"http://127.0.0.1:{port}", metrics=metrics)


@pytest.fixture(scope="module")
def service(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two models, of which hues has weights of version 1."""
    redis_server.client.flushall()
    models = write_models(tmp_path_factory.mktemp("models"), hues={"weights": "version 1"})
    processes = Processes({})
    service = start(processes, redis_server, models)
    service.processes, service.models, service.redis_url = processes, models, redis_server.url
    wait_for(lambda: "Ready after" in service.said() or service.process.poll() is not None)
    assert service.process.poll() is None, service.said()
    yield service
    service.process.send_signal(signal.SIGTERM)
    service.process.wait(timeout=60)
    processes.end()


def first_label(service: Service, path: str) -> str:
    answer = upload(f"{service.url}/{path}", PHOTO)
    assert answer.status == 200, answer.body
    return answer.json["predictions"][0]["label"]


def test_each_model_has_its_servers_and_the_last_words_say_how_to_ask_each(service: Service) -> None:
    said = service.said()
    assert f"curl -F image=@photo.jpg {service.url}/predict\n" in said
    assert f"curl -F image=@photo.jpg {service.url}/predict/hues\n" in said
    words = {first_label(service, path) for path in ("predict", "predict/colours")}
    german = {"red": "rot", "green": "grün", "blue": "blau", "grey": "grau"}
    assert {german[word] for word in words} == {first_label(service, "predict/hues")}
    assert {line.split(" | ")[0].strip() for line in said.splitlines() if "joined the queue" in line} == {
        *("colours model", "hues model")
    }
    pages = [http("GET", f"http://127.0.0.1:{service.metrics + place}/metrics").body.decode() for place in range(2)]
    told = [re.findall(r'^classify_model_info\{model="(\w+)"', page, re.MULTILINE) for page in pages]
    assert told == [["colours"], ["hues"]]


def test_a_model_server_that_dies_is_started_again_with_its_own_model(service: Service) -> None:
    killed = service.model_server("--model=colours")
    os.kill(killed, signal.SIGKILL)
    assert first_label(service, "predict/hues")  # the other model does not wait for it
    wait_for(lambda: "The colours model server was killed by signal 9; it starts again" in service.said())
    wait_for(lambda: service.model_server("--model=colours") not in (0, killed))
    wait_for(lambda: http("GET", f"{service.url}/readyz/colours").status == 200)
    assert first_label(service, "predict/colours")


@pytest.mark.slow  # test_service.py has it of a single model
def test_a_model_that_refuses_to_start_ends_the_service_with_2(redis_server: RedisServer, tmp_path: Path) -> None:
    processes = Processes({"IMAGE_QUEUE": "refused"})
    try:
        models = write_models(tmp_path, hues={"runtime": "runtimes:NoSuchClass"})
        service = start(processes, redis_server, models)
        assert service.process.wait(timeout=60) == 2
        assert "The hues model server refuses to start: " in service.said()
        assert "MODEL_RUNTIME=runtimes:NoSuchClass" in service.said()
    finally:
        processes.end()


# A new version


COLOURS = {"red": "rot", "green": "grün", "blue": "blau"}
PICTURES = {name: as_bytes(Image.new("RGB", (32, 32), name if name != "green" else "lime"), "PNG") for name in COLOURS}


class Load:
    """People's requests and asynchronous jobs without a pause, from threads, each with what came of it.

    Attributes:
        ends: of each request the label that was right, its status, the label of its answer, and the version that
            answered; of an asynchronous job these of its last look.
        sent: how many were begun.
    """

    def __init__(self, url: str, path: str, labels: dict[str, str], people: int = 3, bulk: int = 2) -> None:
        self.url, self.path, self.labels, self.going = url, path, labels, True
        self.ends: dict[str, list[tuple[str, int, str, str | None]]] = {"people": [], "bulk": []}
        self.sent = {"people": 0, "bulk": 0}
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=("people",)) for _ in range(people)]
        self._threads += [threading.Thread(target=self._run, args=("bulk",)) for _ in range(bulk)]
        for thread in self._threads:
            thread.start()

    def _run(self, kind: str) -> None:
        for colour in itertools.cycle(self.labels):
            if not self.going:
                return
            with self._lock:
                self.sent[kind] += 1
            answer = self._ask(colour) if kind == "people" else self._ask_later(colour)
            told = answer.json.get("predictions") or [{"label": str(answer.body)}]
            end = self.labels[colour], answer.status, told[0]["label"], answer.headers["X-Model-Version"]
            with self._lock:
                self.ends[kind].append(end)

    def _ask(self, colour: str, **headers: str) -> Answer:
        return http("POST", f"{self.url}/{self.path}", PICTURES[colour], Content_Type="image/png", **headers)

    def _ask_later(self, colour: str) -> Answer:
        accepted = self._ask(colour, Prefer="respond-async")
        if accepted.status != 202:
            return accepted
        while (answer := http("GET", self.url + accepted.headers["Location"], Prefer="wait=5")).status == 200:
            if answer.json["status"] not in ("queued", "processing"):
                break
        return answer

    def versions(self, kind: str, last: int = 0) -> list[str | None]:
        """The versions that answered, of the last so many ends; 0: of all."""
        with self._lock:
            return [version for *_, version in self.ends[kind][-last:]]

    def wait_for_more(self, count: int = 10) -> None:
        """Wait until so many more requests of each kind were sent and answered."""
        with self._lock:
            wanted = {kind: sent + count for kind, sent in self.sent.items()}
        wait_for(lambda: all(len(self.ends[kind]) >= many for kind, many in wanted.items()))

    def stop(self) -> None:
        self.going = False
        for thread in self._threads:
            thread.join(timeout=60)
            assert not thread.is_alive()

    def check(self) -> None:
        """Every request was answered, and rightly; both versions answered people and asynchronous jobs."""
        for kind, ends in self.ends.items():
            assert self.sent[kind] == len(ends)
            assert {status for _, status, _, _ in ends} == {200}, [end for end in ends if end[1] != 200][:3]
            wrong = [end for end in ends if end[0] != end[2]]
            assert wrong == []
            versions = [version for *_, version in ends]
            assert len(set(versions)) == 2
            assert None not in versions
            print(f"{kind}: {len(ends)} sent, answered and right, by version {dict(Counter(versions))}")


def admin(url: str, models: Path, *arguments: str) -> str:
    """What queue_admin.py prints."""
    settings = clean_environment() | {"REDIS_URL": url, "MODELS_FILE": str(models)}
    command = [sys.executable, str(ROOT / "queue_admin.py"), *arguments]
    ended = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def replace_version(load: Load, url: str, models: Path, model: str, new: subprocess.Popen[bytes]) -> str:
    """The new model server joins: quiet the old one, and wait until it has nothing in hand; return its name."""
    wait_for(lambda: "joined the queue" in output(new) or new.poll() is not None)
    wait_for(lambda: all(len(set(load.versions(kind))) == 2 for kind in load.ends))  # both answer
    servers = json.loads(admin(url, models, "servers", "--model", model, "--json"))
    (old,) = (server["name"] for server in servers if server["process_id"] != new.pid)
    assert "takes no more" in admin(url, models, "quiet", old, "--model", model)
    with contextlib.closing(JobQueue(url, f"image_queue:{model}")) as queue:
        (seen,) = wait_for(lambda: [one for one in overview(queue).servers if one.name == old and one.in_hand == 0])
        assert seen.is_quiet
        wait_for(lambda: all(one.bulk_in_hand == 0 for one in overview(queue).servers if one.name == old))
    load.wait_for_more()  # those that it had answered before may still have been on their way
    load.wait_for_more()
    for kind in load.ends:
        assert len(set(load.versions(kind, last=8))) == 1  # the new one alone
    return old


def test_a_new_version_takes_over_under_load_without_a_request_that_is_dropped(
    service: Service, redis_server: RedisServer
) -> None:
    """Beside run_service.py: models.yaml changes, a new server joins, the old one is quieted and stopped, and
    run_service.py starts it again from the changed file."""
    load = Load(service.url, "predict/hues", COLOURS)
    try:
        load.wait_for_more()
        write_models(service.models.parent, hues={"weights": "version 2"})
        own = environment(service.models) | {"REDIS_URL": service.redis_url, "METRICS_PORT": "0"}
        new = service.processes.start("run_model_server.py", "--model", "hues", **own)
        old = replace_version(load, service.redis_url, service.models, "hues", new)
        os.kill(int(old.split(":")[1]), signal.SIGTERM)
        wait_for(lambda: "The hues model server ended with status 0; it starts again" in service.said())
        wait_for(lambda: redis_server.client.zcard("{image_queue:hues}:workers") == 2)
        new.send_signal(signal.SIGTERM)
        assert new.wait(timeout=30) == 0
        load.wait_for_more()
    finally:
        load.stop()
    load.check()
    (served,) = map(json.loads, redis_server.client.hvals("{image_queue:hues}:serves"))
    assert served["version"] == load.versions("people")[-1] != load.versions("people")[0]
    assert redis_server.client.llen("{image_queue:hues}:dead") == 0
    refused = re.findall(r"^classify_admission_refused_total\{.*\} (\S+)$", metrics_of(service.url), re.MULTILINE)
    assert refused
    assert {float(count) for count in refused} == {0}


def metrics_of(url: str) -> str:
    return http("GET", f"{url}/metrics").body.decode()


KERAS_MODEL = """
import sys, keras, numpy as np
pixels = keras.Input((32, 32, 3))
mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(pixels))
dense = keras.layers.Dense(4, activation="softmax")
model = keras.Model(pixels, dense(mean))
strong = float(sys.argv[2])
dense.set_weights([strong * np.array([[9, 0, 0, 1], [0, 9, 0, 1], [0, 0, 9, 1]], "float32"), np.zeros(4, "float32")])
model.save(sys.argv[1])
"""


@pytest.mark.slow  # Keras, three times
def test_new_weights_of_a_keras_model_take_over_under_load_without_a_request_that_is_dropped(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Each process started by hand: two files of the same labels and other weights."""
    for name, strong in (("old", "1"), ("new", "2")):
        subprocess.run(
            [sys.executable, "-c", KERAS_MODEL, str(tmp_path / f"{name}.keras"), strong],
            check=True,
            stderr=subprocess.DEVNULL,
        )
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\ngrey\n")
    models = tmp_path / "models.yaml"
    entry = "models: {{flowers: {{model: {}.keras, labels: labels.txt, batch_size: 8}}}}\n"
    models.write_text(entry.format("old"))
    processes, port = Processes({"REDIS_URL": redis_server.url, "MODELS_FILE": str(models)}), free_port()
    try:
        first = processes.start("run_model_server.py", METRICS_PORT="0")
        processes.start("run_web_server.py", WEB_PORT=str(port), WEB_WORKERS="2")
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: is_up(f"{url}/readyz"))
        # Until each web process has learned the size, which it looks for once a second.
        wait_for(lambda: all(upload(f"{url}/predict", PHOTO).status == 200 for _ in range(10)))
        load = Load(url, "predict", {name: name for name in COLOURS})
        try:
            load.wait_for_more()
            models.write_text(entry.format("new"))
            new = processes.start("run_model_server.py", METRICS_PORT="0")
            replace_version(load, redis_server.url, models, "flowers", new)
            first.send_signal(signal.SIGTERM)
            assert first.wait(timeout=30) == 0
            load.wait_for_more()
        finally:
            load.stop()
        load.check()
    finally:
        processes.end()


# What goes wrong


@pytest.mark.slow  # it waits between the tries
def test_a_model_that_is_given_up_leaves_the_others_and_the_service_is_ready_without_it(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    processes = Processes({"IMAGE_QUEUE": "given-up"})
    try:
        models = write_models(tmp_path, hues={"runtime": "runtimes:Ending"})
        service = start(processes, redis_server, models, ENDS_WITH="7")
        wait_for(lambda: "Ready after" in service.said() or service.process.poll() is not None, seconds=100)
        assert "The hues model server ended with status 7 five times in a row" in service.said()
        assert "nobody serves hues now; the other models go on" in service.said()
        assert first_label(service, "predict")
        assert "/predict/hues" not in service.said()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=60) == 0
    finally:
        processes.end()


@pytest.mark.slow  # Keras
def test_the_model_whose_weights_cannot_be_downloaded_alone_goes_on_with_random_ones(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    offline = {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1", "KERAS_HOME": str(tmp_path)}
    processes = Processes({"IMAGE_QUEUE": "random"} | offline)
    try:
        net = {
            "model": "MobileNetV2",
            "runtime": "keras",
            "batch_size": 1,
            "labels": "imagenet",
            "width": 224,
            "height": 224,
        }
        service = start(processes, redis_server, write_models(tmp_path, net=net))
        wait_for(lambda: "Ready after" in service.said() or service.process.poll() is not None, seconds=100)
        assert "The ImageNet weights of net cannot be downloaded: going on with RANDOM weights." in service.said()
        assert "random weights" in upload(f"{service.url}/predict/net", PHOTO).json["warning"]
        assert "warning" not in upload(f"{service.url}/predict", PHOTO).json
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=60) == 0
    finally:
        processes.end()


def test_the_tools_of_the_folder_find_the_queues_of_all_models(redis_server: RedisServer, tmp_path: Path) -> None:
    from serving.local import running_service
    from serving.local.service_redis import ServiceRedis

    redis = ServiceRedis(redis_server.url, is_named=True, queue_name="image_queue", output=Output())
    redis.tell_tools(tmp_path, {"colours": "image_queue:colours", "hues": "image_queue:hues"})
    reached = running_service.connect(tmp_path, "redis://127.0.0.1:1/0", {"": "image_queue"}, [])
    try:
        assert {name: queue.name for name, queue in reached.items()} == {
            **{"colours": "image_queue:colours", "hues": "image_queue:hues"}
        }
        alone = running_service.connect(tmp_path, "redis://127.0.0.1:1/0", {"": "another"}, ["image_queue"])
        assert {name: queue.name for name, queue in alone.items()} == {"": "another"}
        running_service.close(alone)
    finally:
        running_service.close(reached)


@pytest.mark.parametrize("name", ["-v", "--help"])
def test_a_model_whose_name_looks_like_an_option_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = settings.Settings(_env_file=None, models_file=str(write_models(tmp_path, **{name: {}})))
    groups = service_parts.model_groups(config, "redis://127.0.0.1:1/0", Output(), None)
    (child,) = groups[-1].children
    monkeypatch.setattr(sys, "argv", child.command[1:])
    assert run_model_server.parse_arguments().model == [name]


def test_model_servers_take_turns_at_the_gpus_across_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        (tmp_path / f"nvidia{number}").touch()
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.delenv(gpus.CUDA_VISIBLE_DEVICES, raising=False)
    monkeypatch.setattr(gpu_packages, "are_there", lambda _framework: True)
    models = write_models(tmp_path, hues={"servers": 2}, all={"servers": 0})
    config = settings.Settings(_env_file=None, models_file=str(models), metrics_port=9100)
    groups = service_parts.model_groups(config, "redis://127.0.0.1:1/0", Output(), None)
    given = {child.name: child.environment for group in groups for child in group.children}
    assert {name: one[gpus.CUDA_VISIBLE_DEVICES] for name, one in given.items()} == {
        **{"colours model": "0", "hues model1": "1", "hues model2": "2"},
        **{"all model1": "3", "all model2": "0", "all model3": "1", "all model4": "2"},  # one for each GPU
    }
    assert [one["METRICS_PORT"] for one in given.values()] == [str(9100 + place) for place in range(7)]
    assert [child.command[2:] for child in groups[0].children] == [["--redis-is-known", "--model=colours"]]
    (group, *_) = service_parts.model_groups(config, "redis://127.0.0.1:1/0", Output(), 3)
    assert len(group.children) == 3  # what --model-servers says
