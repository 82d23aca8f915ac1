"""The programs of the tutorial from which this service descends (tests/tutorial), beside ours on one queue: any web
servers together, and one kind of model server at a time.

Each picture has a colour of its own, which its answer tells: so each answer is known to be right, or another's.
"""

import io
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import redis
from chaos_load import Traffic, number_of_answer, picture
from conftest import (
    Processes,
    RedisServer,
    answered,
    as_bytes,
    free_port,
    http,
    keys,
    new_job,
    new_web_side,
    output,
    some_photo,
    upload,
    wait_for,
)
from PIL import Image
from test_service import keras_directly
from tutorial import model_server

import helpers
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.jobs.served import Served
from serving.jobs.ticket import Ticket
from serving.local.load_images import made_photo
from serving.model.classifier import RANDOM_WARNING

USERS, EACH = 12, 10
SLEEPS = {"CLIENT_SLEEP": "0.02", "SERVER_SLEEP": "0.02"}  # as the tutorial sleeps, but ten times as often
OURS = {"WEB_WORKERS": "1", "REQUEST_TIMEOUT_SECONDS": "20", "MAX_QUEUE_LENGTH": "10"}
WEB_SERVERS = {
    "tutorial": ("tests/tutorial/web_server.py", {}),
    "ours, float32": ("run_web_server.py", OURS | {"IMAGE_DTYPE": "float32"}),
    "ours, uint8": ("run_web_server.py", OURS),
}
ALL_BUT_UINT8 = ("tutorial", "ours, float32")
HANG_UP = dict.fromkeys(range(0, 100_000, 4), 0.03).get  # request's index -> after how many seconds
_numbers = itertools.count(1)


class Place:
    """A Redis with web servers of both makes; a test starts model servers there."""

    def __init__(self, light_model: dict[str, str]) -> None:
        self.server = RedisServer()
        self.raw: redis.Redis = self.server.client
        self.processes = Processes({"REDIS_URL": self.server.url, "METRICS_PORT": "0"} | SLEEPS)
        ours = light_model | {"IMAGE_WIDTH": "224", "IMAGE_HEIGHT": "224"}
        self.model_servers = {
            "tutorial": ("tests/tutorial/model_server.py", {}),
            "ours": ("run_model_server.py", ours),
            "ours, random weights": ("run_model_server.py", ours | {"MODEL_WEIGHTS": "random"}),
        }
        self.urls = {name: f"http://127.0.0.1:{free_port()}" for name in WEB_SERVERS}
        self.kind, self.process = "", None  # of the model server that runs
        for name in WEB_SERVERS:
            self.start_web_server(name, self.urls[name])

    def start_web_server(self, name: str, url: str) -> "subprocess.Popen[bytes]":
        script, settings = WEB_SERVERS[name]
        return self.processes.start(script, **settings, WEB_PORT=url.rpartition(":")[2])

    def have_served_by(self, kind: str) -> "subprocess.Popen[bytes]":
        """Have a model server of this kind run, and none of another."""
        if kind != self.kind or self.process is None or self.process.poll() is not None:
            self.stop_model_server()
            self.kind, self.process = kind, self._start(kind)
        return self.process

    def stop_model_server(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(timeout=20) in (0, 1, -signal.SIGTERM), output(self.process)
        self.process = None

    def _start(self, kind: str) -> "subprocess.Popen[bytes]":
        script, settings = self.model_servers[kind]
        process = self.processes.start(script, **settings)
        ready = "joined the queue" if script.startswith("run") else "the model is loaded"
        wait_for(lambda: ready in output(process) or process.poll() is not None)
        assert process.poll() is None, output(process)
        return process

    def end(self) -> None:
        self.processes.end()
        self.server.remove()


def accepts(url: str) -> bool:
    try:
        return http("GET", f"{url}/healthz").status in (200, 404)  # the tutorial's has no such page
    except OSError:
        return False


@pytest.fixture(scope="module")
def place(light_model: dict[str, str]) -> Iterator[Place]:
    place = Place(light_model)
    for url in place.urls.values():
        wait_for(lambda url=url: accepts(url))
    yield place
    place.end()


def ask(url: str) -> tuple[str, str | None]:
    """One request: how it ended, and the warning in its answer."""
    number = next(_numbers)
    answer = upload(f"{url}/predict", picture(number))
    if answer.status == 200 and number_of_answer(answer.json["predictions"]) == number:
        return "right", answer.json.get("warning")
    if answer.status == 503 and int(answer.headers["Retry-After"]) >= 1:
        return "refused", None
    return f"wrong: {answer.status} {answer.body[:200]!r}", None


def load(urls: list[str], users: int = USERS, each: int = EACH) -> list[tuple[str, str | None]]:
    """The ends of the requests that so many users send to each web server, all at the same time."""
    with ThreadPoolExecutor(users * len(urls)) as pool:
        turns = [pool.submit(lambda url=url: [ask(url) for _ in range(each)]) for url in urls for _ in range(users)]
        return [end for turn in turns for end in turn.result()]


def check_sum(ends: list[tuple[str, str | None]], sent: int) -> Counter[str]:
    counts = Counter(end for end, _ in ends)
    assert set(counts) <= {"right", "refused"}, counts
    assert counts["right"] + counts["refused"] == sent
    return counts


# Pairings, each under load


@pytest.mark.parametrize(
    ("kind", "web"),
    [
        ("tutorial", "tutorial"),
        ("tutorial", "ours, float32"),  # the tutorial's model server reads nothing else
        ("ours", "tutorial"),
        ("ours", "ours, float32"),
        ("ours", "ours, uint8"),
        ("ours, random weights", "tutorial"),
        ("ours, random weights", "ours, float32"),
    ],
)
def test_each_picture_gets_its_own_answer(place: Place, kind: str, web: str) -> None:
    place.have_served_by(kind)
    ends = load([place.urls[web]])
    counts = check_sum(ends, USERS * EACH)
    assert counts["right"] >= USERS
    assert web != "tutorial" or not counts["refused"]  # it refuses nothing
    print(f"\n{web} -> {kind}: sent {len(ends)}, right {counts['right']}, refused {counts['refused']}")
    # The tutorial's web server hands on what it finds, and finds a list.
    says = RANDOM_WARNING if "random" in kind and web != "tutorial" else None
    assert {warning for end, warning in ends if end == "right"} == {says}


@pytest.mark.slow  # a change of the model server under load, below, has web servers of both makes as well
@pytest.mark.parametrize("kind", ["tutorial", "ours"])
def test_web_servers_of_both_makes_share_one_kind_of_model_server(place: Place, kind: str) -> None:
    place.have_served_by(kind)
    webs = [web for web in WEB_SERVERS if kind != "tutorial" or web in ALL_BUT_UINT8]
    ends = load([place.urls[web] for web in webs], users=6)
    counts = check_sum(ends, 6 * EACH * len(webs))
    assert counts["right"] >= 6 * EACH  # those of the tutorial's at least
    print(f"\n{', '.join(webs)} together -> {kind}: sent {len(ends)}, {dict(counts)}")
    wait_for(lambda: place.raw.llen("image_queue") == 0 and not place.raw.keys("????????-*"))


@pytest.mark.timeout(300)  # Keras starts six times
@pytest.mark.slow  # what a network adds to the pairings above is its time
def test_the_pairings_with_keras_resnet50_answer_as_keras_does(place: Place, tmp_path: Path) -> None:
    weights = str(tmp_path / "seeded.weights.h5")
    script = (
        "import sys, keras; keras.utils.set_random_seed(7);"
        "keras.applications.ResNet50(weights=None).save_weights(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", script, weights], check=True, capture_output=True)
    photos = [as_bytes(Image.open(io.BytesIO(made_photo(i))).resize((224, 224)), "PNG") for i in range(8)]
    truth = [rows[0] for rows in keras_directly("ResNet50", "resnet50", weights, photos, tmp_path)]
    ours = {"MODEL": "ResNet50", "MODEL_LABELS": "numbers", "MODEL_RUNTIME": "keras", "BATCH_SIZE": "4"}
    place.model_servers |= {
        "tutorial, ResNet50": ("tests/tutorial/model_server.py", {"RESNET50_WEIGHTS": weights}),
        "ours, ResNet50": ("run_model_server.py", ours | {"MODEL_WEIGHTS": weights}),
        "tutorial, ResNet50, random": ("tests/tutorial/model_server.py", {"RESNET50_WEIGHTS": "random"}),
        "ours, ResNet50, random": ("run_model_server.py", ours | {"MODEL_WEIGHTS": "random"}),
    }
    for kind in list(place.model_servers)[-4:]:
        place.have_served_by(kind)
        for web in ALL_BUT_UINT8:
            with ThreadPoolExecutor(len(photos)) as pool:
                answers = list(pool.map(lambda photo, web=web: upload(f"{place.urls[web]}/predict", photo), photos * 4))
            assert [answer.status for answer in answers] == [200] * 4 * len(photos)
            found = [answer.json["predictions"] for answer in answers]
            assert {len(predictions) for predictions in found} == {5}
            if not kind.endswith("random"):
                assert [one[0]["label"] for one in found] == [f"class {index:.0f}" for index, _ in truth] * 4
                assert np.allclose(
                    [one[0]["probability"] for one in found], [value for _, value in truth] * 4, atol=1e-3
                )


# The list that all share


def push_jobs(raw: redis.Redis, count: int) -> list[str]:
    """Put jobs of the tutorial's into the list; return their ids, oldest first."""
    jobs = [new_job(image=helpers.encode_image(np.zeros((224, 224, 3), np.uint8), "float32")) for _ in range(count)]
    for job in jobs:
        raw.rpush("image_queue", json.dumps({"id": job.id, "image": job.image}))
    return [job.id for job in jobs]


def waiting(raw: redis.Redis) -> list[str]:
    return [json.loads(text)["id"] for text in raw.lrange("image_queue", 0, -1)]


def the_tutorials_answers(raw: redis.Redis, jobs: list[model_server.Job]) -> None:
    model_server.answer(raw, jobs, *model_server.load())


def test_both_kinds_of_model_server_together_lose_jobs(raw: redis.Redis, new_member: Callable[..., Membership]) -> None:
    ids = push_jobs(raw, 6)
    slice_of_two = model_server.read(raw, 2)
    taken = [json.loads(text)["id"] for text in new_member().take(2).jobs]
    assert taken == [job["id"] for job in slice_of_two] == ids[:2]  # both have the same two
    the_tutorials_answers(raw, slice_of_two)
    model_server.trim(raw, 2)
    assert waiting(raw) == ids[4:]  # the third and the fourth are gone: nobody read them, nobody will answer them
    assert not raw.exists(*ids[2:4])
    assert not any(ids[2].encode() in text for key in raw.keys("*processing*") for text in raw.lrange(key, 0, -1))


def test_a_client_that_hangs_up_costs_nobody_else_the_answer_of_the_tutorials_model_server(
    raw: redis.Redis, queue: JobQueue
) -> None:
    side = new_web_side(queue)
    pixels = helpers.encode_image(np.zeros((224, 224, 3), np.uint8), "float32")

    def submit() -> Ticket:
        deadline = side.deadline_at(time.monotonic() + 20)
        return side.submit(new_job(image=pixels, deadline=deadline, reply_to=side.channel))

    def one_turn(jobs: list[model_server.Job]) -> None:
        the_tutorials_answers(raw, jobs)
        model_server.trim(raw, len(jobs))

    first = submit()
    one_turn(model_server.read(raw))
    assert first.wait(time.monotonic() + 5)  # by which the web process knows of whom its answers come
    gone, patient = submit(), submit()
    jobs = model_server.read(raw, 1)
    gone.cancel()
    wait_for(lambda: side.tickets.left_to_look_for() == [gone.job.id])
    assert waiting(raw) == [gone.job.id, patient.job.id]  # the model server has read one, and will cut one off
    one_turn(jobs)
    one_turn(model_server.read(raw, 1))
    assert patient.wait(time.monotonic() + 5)
    wait_for(lambda: keys(raw) == set())  # the answer of which nobody wants to know goes as well
    assert side.tickets.left_to_look_for() == []


def test_once_ours_answers_a_job_whose_client_hung_up_leaves_the_queue_again(
    raw: redis.Redis, queue: JobQueue, new_member: Callable[..., Membership]
) -> None:
    side = new_web_side(queue)
    side.sender._untold_at = time.monotonic()
    new_member()
    ticket = side.submit(new_job(deadline=side.deadline_at(time.monotonic() + 20), reply_to=side.channel))
    ticket.cancel()
    wait_for(lambda: raw.llen("image_queue") == 0)


def test_an_answer_of_ours_that_was_found_before_its_message_keeps_no_job_in_the_queue_after_its_death(
    raw: redis.Redis, queue: JobQueue, new_member: Callable[..., Membership]
) -> None:
    side = new_web_side(queue)

    def submit(**changes: object) -> Ticket:
        return side.submit(new_job(deadline=side.deadline_at(time.monotonic() + 20), **changes))

    member = new_member(served=Served("ours", "0123", "float32", "keras", 2, 2, 3, "x"), labels=["a"])
    side.served.look()
    answered_late = submit()  # without a channel: the look finds the answer, as it does when it overtakes a message
    member.answer([answered(text) for text in member.take(1).jobs])
    assert answered_late.wait(time.monotonic() + 5)
    raw.delete("{image_queue}:workers", "{image_queue}:serves")  # as if its lease had run out
    side.served.look()
    gone = submit(reply_to=side.channel)
    gone.cancel()
    wait_for(lambda: waiting(raw) == [])
    assert side.tickets.left_to_look_for() == []


def test_clients_that_hang_up_under_load_cost_nobody_an_answer(place: Place) -> None:
    place.have_served_by("tutorial")
    url = place.urls["ours, float32"]
    assert ask(url)[0] == "right"
    with Traffic("127.0.0.1", int(url.rpartition(":")[2]), users=12, hang_up=HANG_UP) as traffic:
        wait_for(lambda: len(traffic.requests) > 150)
    patient = [one for one in traffic.requests if not one.hung_up]
    right = [one for one in patient if one.status == 200 and one.answer_of == one.number]
    refused = [one for one in patient if one.status == 503]
    assert len(right) + len(refused) == len(patient), [one for one in patient if one.status not in (200, 503)]
    assert len(right) > 20
    print(f"\nsent {len(traffic.requests)}, waited {len(patient)}: right {len(right)}, refused {len(refused)}")
    wait_for(lambda: place.raw.llen("image_queue") == 0 and not place.raw.keys("????????-*"))


def test_the_tutorials_model_server_ends_at_a_job_of_ours_in_uint8_and_ours_goes_on(place: Place) -> None:
    process = place.have_served_by("tutorial")
    pixels = np.full((224, 224, 3), 200, np.uint8)
    ends_it = new_job(image=helpers.encode_image(pixels, "uint8"), dtype="uint8", shape=pixels.shape)
    place.raw.rpush("image_queue", ends_it.to_text())
    wait_for(lambda: process.poll() is not None)
    assert "cannot reshape" in output(process)
    (behind,) = push_jobs(place.raw, 1)
    assert waiting(place.raw) == [ends_it.id, behind]  # so it would end at the same job again
    place.have_served_by("ours")
    for job_id in (ends_it.id, behind):
        assert json.loads(wait_for(lambda job_id=job_id: place.raw.get(job_id)))[0]["probability"] > 0


# From one kind of model server to the other


def wait_for_more(ends: list[tuple[str, str | None]]) -> None:
    wanted = len(ends) + 40
    wait_for(lambda: len(ends) >= wanted)


def test_a_change_of_the_model_server_and_back_loses_no_request(place: Place) -> None:
    urls, ends, done = [place.urls[web] for web in ALL_BUT_UINT8], [], threading.Event()

    def go_on(url: str) -> None:
        while not done.is_set():
            ends.append(ask(url))

    clients = [threading.Thread(target=go_on, args=(url,)) for url in urls for _ in range(4)]
    place.have_served_by("tutorial")
    for client in clients:
        client.start()
    for kind in ("ours", "tutorial"):
        wait_for_more(ends)
        place.have_served_by(kind)
    wait_for_more(ends)
    done.set()
    for client in clients:
        client.join()
    print("\nthere and back:", check_sum(ends, len(ends)))
    assert not place.raw.llen("{image_queue}:dead")


# Our web server beside the tutorial's model server


def test_what_our_web_server_can_do_beside_the_tutorials_model_server(place: Place) -> None:
    url, photo = f"http://127.0.0.1:{free_port()}", as_bytes(some_photo(), "JPEG")
    place.stop_model_server()
    place.raw.flushall()
    web_server = place.start_web_server("ours, float32", url)  # one that has met no other model server
    wait_for(lambda: accepts(url))
    assert http("GET", f"{url}/readyz").status == 503  # nobody has answered yet
    place.have_served_by("tutorial")
    answer = upload(f"{url}/predict", photo)
    assert answer.json["predictions"][0]["label"] in ("red", "green", "blue", "grey")
    assert "X-Model-Version" not in answer.headers
    assert "model;" not in answer.headers["Server-Timing"]
    ready = wait_for(lambda: (told := http("GET", f"{url}/readyz")).status == 200 and told)
    assert ready.json == {"ready": True, "model_servers": 0}
    state = wait_for(lambda: (told := http("GET", f"{url}/state").json)["status"] == "ready" and told)
    assert state["model_servers"] == []
    assert state["warning"] is None

    assert len(upload(f"{url}/predict?top=2", photo).json["predictions"]) == 2
    assert len(upload(f"{url}/predict?top=9", photo).json["predictions"]) == 4  # as many as the model server tells
    assert upload(f"{url}/predict?top=0", photo).status == 400
    v2 = http("GET", f"{url}/v2/models/ResNet50")
    assert v2.status == 503
    assert "another make" in v2.json["error"]

    waits = http("POST", f"{url}/predict", photo, Content_Type="image/jpeg", Prefer="respond-async")
    assert waits.status == 202
    job = f"{url}{waits.headers['Location']}"
    assert upload(f"{url}/predict", photo).status == 200
    assert http("GET", job).json["status"] == "queued"  # the tutorial's reads one list alone
    place.have_served_by("ours")
    assert wait_for(lambda: (told := http("GET", job).json)["status"] == "succeeded" and told)["predictions"]
    assert wait_for(lambda: upload(f"{url}/predict", photo).headers["X-Model-Version"])
    web_server.send_signal(signal.SIGTERM)
    assert web_server.wait(timeout=20) == 0
