"""The model server alone: real processes with a real Keras model; the test itself fills the queue and reads it."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis
from conftest import DATA, REAL_MODEL, Processes, free_port, http, is_up, keys, new_job, output, wait_for

import helpers
from serving.jobs.job import Job

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def colour_job(colour: str, wire: str = "uint8", **changes: object) -> Job:
    pixels = np.full((32, 32, 3), COLOURS[colour], np.uint8)
    return new_job(image=helpers.encode_image(pixels, wire), **changes)


def push(raw: redis.Redis, *jobs: Job) -> None:
    raw.rpush("image_queue", *[job.to_text() for job in jobs])


def label(raw: redis.Redis, job: Job) -> str:
    return json.loads(wait_for(lambda: raw.get(job.id)))[0]["label"]


def live_model_servers(raw: redis.Redis) -> int:
    return raw.zcount("{image_queue}:workers", time.time(), "+inf")


@pytest.fixture
def start(processes: Processes, raw: redis.Redis, light_model: dict[str, str]) -> Callable[..., object]:
    def start(**settings: str) -> object:
        process = processes.start("run_model_server.py", **(light_model | settings))
        wait_for(lambda: "joined the queue" in output(process) or process.poll() is not None)
        assert process.poll() is None, output(process)
        return process

    return start


def test_every_kind_of_job_is_answered_and_only_results_remain(raw: redis.Redis, start: Callable[..., object]) -> None:
    process = start()
    the_tutorials = colour_job("green", "float32")  # id and image alone, preprocessed on the other side
    floats = colour_job("red", "float32", dtype="float32", shape=(32, 32, 3))
    with_batch_axis = colour_job("red", dtype="uint8", shape=(1, 32, 32, 3))
    bare = colour_job("blue")
    jobs = [the_tutorials, floats, with_batch_axis, bare]
    push(raw, *jobs)
    assert [label(raw, job) for job in jobs] == ["green", "red", "red", "blue"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    lasting = {"{image_queue}:served", "{image_queue}:served_last"}
    labels = {key for key in keys(raw) if key.startswith("{image_queue}:labels:")}
    assert len(labels) == 1
    assert keys(raw) == {job.id for job in jobs} | lasting | labels


def test_garbage_ends_as_dead_letters_with_reasons_and_stops_nothing(
    raw: redis.Redis, start: Callable[..., object]
) -> None:
    start()
    not_base64 = new_job(image="!!!")
    raw.rpush("image_queue", b"", b"garbage", b"\xff\xfe", b"[" * 50_000, b'{"id": "image_queue", "image": ""}')
    push(raw, not_base64)
    good = colour_job("red")
    push(raw, good)
    assert label(raw, good) == "red"
    letters = [json.loads(text) for text in raw.lrange("{image_queue}:dead", 0, -1)]
    assert len(letters) == 6, [letter["reason"] for letter in letters]
    assert "base64" in letters[5]["reason"]
    assert json.loads(raw.get(not_base64.id)) == {"error": letters[5]["reason"]}
    assert raw.llen("image_queue") == 0


def test_a_job_for_a_model_of_another_size_is_told_to_come_again_and_is_no_dead_letter(
    raw: redis.Redis, start: Callable[..., object]
) -> None:
    process = start()
    wrong_shape = colour_job("red", dtype="uint8", shape=(64, 64, 3))
    wrong_length = new_job(image=helpers.encode_image(np.zeros((64, 64, 3), np.uint8), "float32"))  # the tutorial's
    push(raw, wrong_shape, wrong_length, colour_job("red"))
    for job, says in (wrong_shape, "(64, 64, 3)"), (wrong_length, "49152 bytes"):
        answer = json.loads(wait_for(lambda job=job: raw.get(job.id)))
        assert answer["status"] == 503
        assert says in answer["error"]
    assert raw.llen("{image_queue}:dead") == 0
    wait_for(lambda: "prepared for a model of another size" in output(process))


# One queue, one model


def labelled(light_model: dict[str, str], folder: Path) -> dict[str, str]:
    """Settings of a model server whose labels are others."""
    (folder / "labels.txt").write_text("cat\ndog\nowl\nfox\n")
    return light_model | {"MODEL_LABELS": str(folder / "labels.txt"), "LEASE_SECONDS": "1"}


def test_a_second_model_on_one_queue_refuses_to_start(
    raw: redis.Redis, processes: Processes, start: Callable[..., object], light_model: dict[str, str], tmp_path: Path
) -> None:
    first = start(LEASE_SECONDS="1")
    second = processes.start("run_model_server.py", **labelled(light_model, tmp_path))
    assert second.wait(timeout=30) == 2, output(second)
    says = output(second).splitlines()[-1]
    assert says.startswith("The queue image_queue is served by ")
    assert f":{first.pid}:" in says  # the other one, by its host and process
    assert "IMAGE_QUEUE" in says
    assert "Traceback" not in output(second)
    jobs = [colour_job(colour) for colour in COLOURS]
    push(raw, *jobs)
    assert [label(raw, job) for job in jobs] == list(COLOURS)


def test_another_model_waits_until_the_lease_of_a_dead_model_server_ends(
    raw: redis.Redis, processes: Processes, start: Callable[..., object], light_model: dict[str, str], tmp_path: Path
) -> None:
    first = start(LEASE_SECONDS="5")
    first.kill()
    second = processes.start("run_model_server.py", **labelled(light_model, tmp_path))  # its own lease is shorter
    wait_for(lambda: "joined the queue" in output(second) or second.poll() is not None)
    job = colour_job("green")
    push(raw, job)
    assert label(raw, job) == "dog"


def test_another_version_of_the_model_joins_as_an_upgrade(raw: redis.Redis, start: Callable[..., object]) -> None:
    start(MODEL_NAME="colours", MODEL_WEIGHTS="version 1")
    start(MODEL_NAME="colours", MODEL_WEIGHTS="version 2")
    serves = [json.loads(text) for text in raw.hvals("{image_queue}:serves")]
    assert {entry["name"] for entry in serves} == {"colours"}
    assert len({entry["version"] for entry in serves}) == 2
    assert json.loads(raw.get("{image_queue}:served_last")) in serves
    (labels,) = {raw.get(f"{{image_queue}}:labels:{entry['labels_digest']}") for entry in serves}
    assert json.loads(labels) == ["red", "green", "blue", "grey"]


def test_killed_in_mid_batch_its_jobs_are_answered_by_another(raw: redis.Redis, start: Callable[..., object]) -> None:
    first = start(LEASE_SECONDS="1")
    jobs = [colour_job(colour) for colour in ("red", "green", "blue") * 100]
    push(raw, *jobs)

    def caught_in_mid_batch() -> bool:
        first.send_signal(signal.SIGSTOP)
        if raw.keys("*processing*"):
            return True
        first.send_signal(signal.SIGCONT)
        return False

    wait_for(caught_in_mid_batch)
    first.kill()
    first.wait()
    start(LEASE_SECONDS="1")
    assert [label(raw, job) for job in jobs] == ["red", "green", "blue"] * 100
    wait_for(lambda: not raw.keys("*processing*") and not raw.exists("{image_queue}:attempts"))
    assert raw.llen("{image_queue}:dead") == 0


def test_stopped_it_loses_its_lease_and_going_on_it_is_fenced(raw: redis.Redis, start: Callable[..., object]) -> None:
    stopped, other = start(LEASE_SECONDS="1"), start(LEASE_SECONDS="1")
    stopped.send_signal(signal.SIGSTOP)
    jobs = [colour_job("red") for _ in range(20)]
    push(raw, *jobs)
    assert {label(raw, job) for job in jobs} == {"red"}
    wait_for(lambda: live_model_servers(raw) == 1)
    stopped.send_signal(signal.SIGCONT)
    wait_for(lambda: live_model_servers(raw) == 2)
    assert "starting afresh" in output(stopped)
    more = [colour_job("blue") for _ in range(20)]
    push(raw, *more)
    assert {label(raw, job) for job in more} == {"blue"}
    assert other.poll() is None
    assert raw.llen("{image_queue}:dead") == 0


def test_a_redis_that_restarts_is_found_again(processes: Processes, light_model: dict[str, str]) -> None:
    from conftest import RedisServer

    own = RedisServer()
    try:
        process = processes.start("run_model_server.py", **light_model, REDIS_URL=own.url)
        wait_for(lambda: live_model_servers(own.client))
        own.stop()
        time.sleep(1)
        own.start()
        job = colour_job("green")
        push(own.client, job)
        assert label(own.client, job) == "green"
        assert process.poll() is None
    finally:
        own.remove()


def test_its_metrics_tell_batches_and_ends(raw: redis.Redis, start: Callable[..., object]) -> None:
    port = str(free_port())
    start(METRICS_PORT=port)
    job = colour_job("red")
    push(raw, job)
    raw.rpush("image_queue", b"garbage")
    assert label(raw, job) == "red"
    wait_for(lambda: raw.llen("{image_queue}:dead"))
    assert is_up(f"http://127.0.0.1:{port}/metrics")
    wait_for(lambda: b'model_jobs_total{end="failed"} 1.0' in http("GET", f"http://127.0.0.1:{port}/metrics").body)
    answer = http("GET", f"http://127.0.0.1:{port}/metrics")
    assert "Server" not in answer.headers  # it would name versions
    page = answer.body.decode()
    assert 'model_jobs_total{end="answered"} 1.0' in page
    assert "model_batch_images_count 1.0" in page


@pytest.mark.parametrize(
    ("settings", "status", "says"),
    [
        # tests/test_service.py has these two by the whole service.
        pytest.param({"MODEL": "NoSuchNet", "MODEL_RUNTIME": "auto"}, 2, "MODEL=NoSuchNet", marks=pytest.mark.slow),
        ({"MODEL_LABELS": "/nowhere.txt"}, 2, "MODEL_LABELS=/nowhere.txt"),
        ({"MODEL_RUNTIME": "runtimes:NoSuchClass"}, 2, "MODEL_RUNTIME=runtimes:NoSuchClass cannot be imported"),
        ({"MODEL_RUNTIME": "no_such_module:Class"}, 2, "MODEL_RUNTIME=no_such_module:Class cannot be imported"),
        ({"MODEL_RUNTIME": "tensorflow"}, 2, "MODEL_RUNTIME"),
        # Proxies that refuse: so the download fails, and at once, also where there is a network.
        pytest.param(
            {"MODEL": "MobileNetV2", "MODEL_RUNTIME": "auto", "IMAGE_WIDTH": "224", "IMAGE_HEIGHT": "224"},
            3,
            "MODEL_WEIGHTS",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_it_cannot_set_up_ends_it_at_once_with_what_to_set(
    processes: Processes,
    raw: redis.Redis,
    light_model: dict[str, str],
    tmp_path: Path,
    settings: dict[str, str],
    status: int,
    says: str,
) -> None:
    refusing = {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1", "KERAS_HOME": str(tmp_path)}
    process = processes.start("run_model_server.py", **(light_model | settings | refusing))
    assert process.wait(timeout=60) == status, output(process)
    assert says in output(process).splitlines()[-1]
    assert "Traceback" not in output(process)
    assert raw.keys("*") == []  # it never half worked


def test_a_batch_that_outlasts_the_lease_is_found_out_while_warming_up(
    processes: Processes, raw: redis.Redis, light_model: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "faults").write_text('{"image_seconds": 0.05}')
    settings = {"LEASE_SECONDS": "0.5", "BATCH_SIZE": "16", "MODEL_RUNTIME": "runtimes:Faulty"}
    slow = light_model | settings | {"FAULTS": str(tmp_path / "faults")}
    process = processes.start("run_model_server.py", **slow)
    assert process.wait(timeout=60) == 2, output(process)
    assert output(process).splitlines()[-1].startswith("LEASE_SECONDS: a batch of 16 takes ")
    assert "Traceback" not in output(process)
    assert raw.keys("*") == []  # it never half worked


def check_health(processes: Processes, **settings: str) -> tuple[int, str]:
    """Exit status and words of the check."""
    check = processes.start("run_model_server.py", "--check-health", **settings)
    return check.wait(timeout=20), output(check)


def test_the_health_check_tells_a_server_that_stands_still_from_one_that_works(
    processes: Processes, raw: redis.Redis, start: Callable[..., object]
) -> None:
    assert check_health(processes)[0] == 1  # none has started
    raw.zadd("{image_queue}:workers", {"another-host:1:abc": time.time() + 60})
    assert check_health(processes)[0] == 1
    port = str(free_port())
    server = start(LEASE_SECONDS="1", METRICS_PORT=port)
    assert check_health(processes) == (0, "")
    server.send_signal(signal.SIGSTOP)
    wait_for(lambda: live_model_servers(raw) == 1)  # the one on the other host
    status, says = check_health(processes, LEASE_SECONDS="1")
    assert status == 1
    assert "for 1 s none made progress" in says
    server.send_signal(signal.SIGCONT)
    wait_for(lambda: live_model_servers(raw) == 2)
    assert check_health(processes) == (0, "")
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=20) == 0
    assert check_health(processes)[0] == 1


def test_the_health_check_ends_with_2_where_it_cannot_know(processes: Processes) -> None:
    for settings, says in ({"REDIS_URL": "redis://127.0.0.1:1/0"}, "REDIS_URL"), ({"LEASE_SECONDS": "0"}, "LEASE_SEC"):
        status, words = check_health(processes, **settings)
        assert status == 2
        assert says in words
        assert "Traceback" not in words


def test_the_health_check_does_not_wait_for_keras(processes: Processes, raw: redis.Redis) -> None:
    check = processes.start("run_model_server.py", "--check-health", PYTHONPROFILEIMPORTTIME="1")
    assert check.wait(timeout=20) == 1
    assert re.search(r"\| +redis\b", output(check))
    assert not re.search(r"\| +(keras|tensorflow|jax|torch)\b", output(check))


def test_fetch_only_needs_no_redis(processes: Processes, tiny_model: dict[str, str]) -> None:
    process = processes.start("run_model_server.py", "--fetch-only", **tiny_model, REDIS_URL="redis://127.0.0.1:1/0")
    assert process.wait(timeout=60) == 0, output(process)


def test_random_weights_warn_in_every_answer(processes: Processes, raw: redis.Redis) -> None:
    processes.start(
        "run_model_server.py",
        MODEL="MobileNetV2",
        MODEL_WEIGHTS="random",
        MODEL_LABELS="numbers",
        MODEL_RUNTIME="keras",
        IMAGE_WIDTH="32",
        IMAGE_HEIGHT="32",
        BATCH_SIZE="1",
        TOP="2",
    )
    job = colour_job("red")
    push(raw, job)
    answer = json.loads(wait_for(lambda: raw.get(job.id)))
    assert [prediction["label"][:6] for prediction in answer] == ["class "] * 2  # a list, as the tutorial reads it
    about = json.loads(raw.get(f"{{image_queue}}:about:{job.id}"))
    assert about["model"] == "MobileNetV2"
    assert "random weights" in about["warning"]
    assert 0 < raw.ttl(f"{{image_queue}}:about:{job.id}") <= raw.ttl(job.id)


def test_the_default_labels_are_read_from_keras_home(processes: Processes, raw: redis.Redis, tmp_path: Path) -> None:
    source = DATA / "imagenet_class_index.json"
    if not source.is_file():
        pytest.skip(f"{source} is missing")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / source.name).write_bytes(source.read_bytes())
    weights = {name: REAL_MODEL[name] for name in ("MODEL", "MODEL_WEIGHTS")}
    process = processes.start("run_model_server.py", "--fetch-only", **weights, KERAS_HOME=str(tmp_path))
    assert process.wait(timeout=60) == 0, output(process)
    assert os.listdir(tmp_path / "models") == [source.name]


def test_two_full_lanes_share_a_model_server(raw: redis.Redis, start: Callable[..., object]) -> None:
    """People's jobs go first, and one batch in eight is of asynchronous jobs. BATCH_SIZE is 8."""
    people = [colour_job("red") for _ in range(800)]
    asynchronous = [colour_job("blue") for _ in range(800)]
    push(raw, *people)
    raw.rpush("{image_queue}:bulk", *[job.to_text() for job in asynchronous])
    start()
    settled: list[tuple[int, int]] = []
    while not settled or settled[-1] != (800, 800):
        told = raw.mget("{image_queue}:served", "{image_queue}:bulk:served")
        settled.append((int(told[0] or 0), int(told[1] or 0)))
        assert len(settled) < 20_000
        time.sleep(0.001)
    under_load = [(of_people, of_bulk) for of_people, of_bulk in settled if of_people < 800]
    in_hand = 8 * 6  # batches at the model, before and behind it
    assert all(of_bulk <= of_people / 7 + in_hand for of_people, of_bulk in under_load)
    assert all(of_bulk >= of_people / 7 - in_hand for of_people, of_bulk in under_load)
    assert [label(raw, job) for job in (people[0], people[-1], asynchronous[0], asynchronous[-1])] == [
        *("red", "red", "blue", "blue")
    ]
