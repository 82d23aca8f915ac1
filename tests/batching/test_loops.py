"""Several models in one process, on a real Redis: each has its own queue, and they stop together."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import redis
from conftest import Counts, RedisServer, new_job, wait_for, wired

import helpers
from serving.batching.inbox import Inbox
from serving.batching.loops import BatchLoops
from serving.batching.state import EXIT_STUCK
from serving.errors import ModelFailed, OtherModel
from serving.jobs.job import Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.model_side import ModelSide
from serving.jobs.served import Served

SHAPE, LEASE_SECONDS = (1, 1, 3), 0.5
IMAGE = helpers.encode_image(np.zeros(SHAPE, np.uint8), "uint8")
CATS = Served("cats", "1a2b", "float32", "keras", 1, 1, 3, "0b5e0f3a7c1d")


class Model:
    """Answers with its name; may be held up, and be broken."""

    def __init__(self, name: str) -> None:
        self.name, self.is_broken = name, False
        self.free, self.busy = threading.Event(), threading.Event()
        self.free.set()

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        self.busy.set()
        self.free.wait(30)
        if self.is_broken:
            raise ModelFailed("the weights are gone")
        return np.ones((len(pixels), 1), np.float32)

    def padding(self, _images: int) -> int:
        return 0

    def answer(self, _probabilities: np.ndarray, **_asked: object) -> str:
        return json.dumps(self.name)


class Running:
    """The loops of models in a thread, and how that ended."""

    def __init__(self, url: str, names: list[str], served: dict[str, Served], lease_seconds: float) -> None:
        self.models, self.queues, loops = {name: Model(name) for name in names}, {}, []
        for name, model in self.models.items():
            self.queues[name] = JobQueue(url, f"image_queue:{name}")
            of_name = {"served": served.get(name), "labels": ["a"]}
            terms = {"lease_seconds": lease_seconds, "max_attempts": 3, "result_ttl_seconds": 60}
            side = ModelSide(self.queues[name], **terms, **of_name)  # type: ignore[arg-type]
            loops.append(wired(side, model, Counts(), Inbox(1, SHAPE), lease_seconds, name=name))
        self.loops, self.error = BatchLoops(loops, lease_seconds), None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        try:
            self.loops.run()
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        for model in self.models.values():
            model.free.set()
        self.loops.stop()
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()


@pytest.fixture
def start(redis_server: RedisServer, raw: redis.Redis) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*names: str, lease_seconds: float = 10.0, **served: Served) -> Running:
        started.append(Running(redis_server.url, list(names), served, lease_seconds))
        wait_for(lambda: all(live(raw, name) for name in names if name not in served))
        return started[-1]

    yield start
    for running in started:
        running.end()


def push(raw: redis.Redis, name: str, count: int = 1) -> list[Job]:
    jobs = [new_job(image=IMAGE) for _ in range(count)]
    raw.rpush(f"image_queue:{name}", *(job.to_text() for job in jobs))
    return jobs


def live(raw: redis.Redis, name: str) -> int:
    return raw.zcard(f"{{image_queue:{name}}}:workers")


def test_each_model_answers_its_own_queue_and_stopped_all_give_back_what_they_have_not_begun(
    raw: redis.Redis, start: Callable[..., Running]
) -> None:
    running = start("cats", "dogs", "owls")
    jobs = {name: push(raw, name, 3) for name in running.models}
    for name, of_name in jobs.items():
        assert [json.loads(wait_for(lambda job=job: raw.get(job.id))) for job in of_name] == [name] * 3
    for model in running.models.values():
        model.busy.clear()
        model.free.clear()
    jobs = {name: push(raw, name, 5) for name in running.models}
    for model in running.models.values():
        model.busy.wait(10)
    running.end()
    assert running.error is None
    for name, of_name in jobs.items():
        answered = [job for job in of_name if raw.exists(job.id)]
        assert answered  # what the model had is answered
        assert raw.llen(f"image_queue:{name}") == 5 - len(answered)
        assert live(raw, name) == 0
        assert not raw.exists(f"{{image_queue:{name}}}:attempts")


def test_a_model_that_breaks_ends_all_and_the_others_stop_in_good_order(
    raw: redis.Redis, start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    running = start("cats", "dogs")
    dogs = running.models["dogs"]
    dogs.free.clear()
    in_hand = push(raw, "dogs", 4)
    dogs.busy.wait(10)
    running.models["cats"].is_broken = True
    with caplog.at_level(logging.ERROR):
        push(raw, "cats")
        wait_for(lambda: "the model server of cats failed: those of the other models stop as well" in caplog.text)
    assert running.thread.is_alive()  # a batch is with the other model
    dogs.free.set()
    running.thread.join(timeout=10)
    assert isinstance(running.error, ModelFailed)
    answered = [job for job in in_hand if raw.exists(job.id)]
    assert answered
    assert raw.llen("image_queue:dogs") == 4 - len(answered)
    assert live(raw, "dogs") == 0
    assert raw.llen("{image_queue:cats}:dead") == 0  # its lease sees to it, and counts
    assert len(raw.keys("{image_queue:cats}:processing:*")) == 1


def test_a_queue_that_is_served_by_another_model_ends_all_with_its_sentence(
    raw: redis.Redis, start: Callable[..., Running], redis_server: RedisServer
) -> None:
    other = ModelSide(
        JobQueue(redis_server.url, "image_queue:dogs"),
        **{"lease_seconds": 60, "max_attempts": 3, "result_ttl_seconds": 60},  # type: ignore[arg-type]
        served=CATS,
        labels=["a"],
    ).join()
    keeping = threading.Event()

    def keep() -> None:
        """Renew a lease that ends soon, again and again."""
        while True:
            raw.zadd("{image_queue:dogs}:workers", {other.name: time.time() + 0.6})
            if keeping.wait(0.1):
                return

    keeper = threading.Thread(target=keep)
    keeper.start()
    wait_for(lambda: raw.zscore("{image_queue:dogs}:workers", other.name) < time.time() + 1)
    try:
        running = start("cats", "dogs", dogs=Served(**(vars(CATS) | {"name": "dogs"})))
        (job,) = push(raw, "cats")
        assert wait_for(lambda: raw.get(job.id))  # the one whose queue is free works meanwhile
        running.thread.join(timeout=20)
    finally:
        keeping.set()
        keeper.join()
    assert isinstance(running.error, OtherModel)
    assert "The queue image_queue:dogs is served by" in str(running.error)
    assert live(raw, "cats") == 0


def test_where_one_model_fails_and_another_hangs_the_process_ends_all_the_same(
    raw: redis.Redis, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    exits: list[int] = []
    monkeypatch.setattr("os._exit", exits.append)
    running = start("cats", "dogs", lease_seconds=LEASE_SECONDS)
    running.models["cats"].is_broken = True
    running.models["dogs"].free.clear()
    push(raw, "dogs")
    running.models["dogs"].busy.wait(10)
    push(raw, "cats")
    wait_for(lambda: exits)
    assert exits == [EXIT_STUCK]
    running.models["dogs"].free.set()
    wait_for(lambda: not live(raw, "dogs"))
