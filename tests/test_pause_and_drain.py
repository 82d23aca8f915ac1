"""An operator's verbs on the whole service: real processes, a real Redis, and sums that close whatever dies."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import (
    Answer,
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    http,
    is_up,
    save_light_model,
    some_photo,
    upload,
    wait_for,
)

from serving.jobs import control
from serving.jobs.job_queue import JobQueue
from serving.jobs.overview import Overview, overview

PHOTO = as_bytes(some_photo(), "JPEG")
SETTINGS = {"METRICS_PORT": "0", "LEASE_SECONDS": "2", "BATCH_SIZE": "4", "WEB_WORKERS": "1", "MAX_ATTEMPTS": "9"}
SAYS = "The service is draining: it answers what it has, and accepts nothing new. Try again in 10 s."


class Service:
    """A web server and two model servers, each of which a test may end and start again."""

    def __init__(self, folder: Path) -> None:
        self.redis = RedisServer("--appendonly", "yes")
        self.faults, self.port = folder / "faults", str(free_port())
        self.url = f"http://127.0.0.1:{self.port}"
        self.queue = JobQueue(self.redis.url, "image_queue")
        model = save_light_model(folder, "Faulty") | {"FAULTS": str(self.faults)}
        self.processes = Processes({"REDIS_URL": self.redis.url, **SETTINGS, **model})
        self.batches_take(0)
        self.start()

    def batches_take(self, seconds: float) -> None:
        self.faults.write_text(json.dumps({"batch_seconds": seconds}))

    def start(self) -> None:
        self.web = self.processes.start("run_web_server.py", WEB_PORT=self.port)
        self.models = [self.start_model() for _ in range(2)]
        wait_for(lambda: is_up(f"{self.url}/healthz") and len(self.seen().servers) == 2)

    def start_model(self) -> subprocess.Popen[bytes]:
        return self.processes.start("run_model_server.py")

    def restart_all(self) -> None:
        """End every process, Redis among them, and start each again."""
        for process in (self.web, *self.models):
            process.terminate()
        for process in (self.web, *self.models):
            assert process.wait(timeout=30) == 0
        self.redis.stop()
        assert self.redis.start()
        self.start()

    def kill_a_holder(self) -> None:
        """End, without a word, a model server that has jobs in hand; start another in its place."""
        holder = wait_for(lambda: next((one for one in self.seen().servers if one.in_hand + one.bulk_in_hand), None))
        os.kill(holder.process_id, signal.SIGKILL)  # type: ignore[attr-defined]
        (dead,) = [model for model in self.models if model.pid == holder.process_id]  # type: ignore[attr-defined]
        self.models[self.models.index(dead)] = self.start_model()

    def seen(self) -> Overview:
        return overview(self.queue)

    def predict(self) -> Answer:
        return upload(f"{self.url}/predict", PHOTO)

    def submit(self, expect: int = 202) -> str:
        answer = upload(f"{self.url}/predict", PHOTO, Prefer="respond-async")
        assert answer.status == expect, answer.body
        return answer.headers.get("Location", "")  # type: ignore[attr-defined]

    def status(self, job: str) -> str:
        return http("GET", self.url + job).json["status"]

    def state(self) -> str:
        return http("GET", f"{self.url}/state").json["status"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service"))
    yield service
    service.processes.end()
    service.redis.remove()


@pytest.fixture
def service(running: Service) -> Iterator[Service]:
    yield running
    control.resume(running.queue)
    running.batches_take(0)


@pytest.fixture
def people() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def test_whoever_waits_in_a_pause_is_answered_after_it_though_a_model_server_dies_meanwhile(
    service: Service, people: ThreadPoolExecutor
) -> None:
    service.batches_take(0.6)
    asked = [people.submit(service.predict) for _ in range(16)]
    wait_for(lambda: sum(server.in_hand > 0 for server in service.seen().servers) == 2)
    assert control.pause(service.queue)
    service.kill_a_holder()
    wait_for(lambda: service.seen().in_flight == 0 and len(service.seen().servers) == 2)
    seen = service.seen()
    assert 0 < seen.waiting < 16  # the dead one's came back, the other one's are answered
    assert seen.waiting + seen.settled_total == 16
    ready = http("GET", f"{service.url}/readyz")
    assert (ready.status, ready.json) == (200, {"ready": True, "model_servers": 2, "paused": True})
    wait_for(lambda: service.state() == "paused")
    assert service.seen().waiting == seen.waiting  # nobody takes
    assert control.resume(service.queue)
    assert [answer.result(timeout=60).status for answer in asked] == [200] * 16
    wait_for(lambda: service.seen().settled_total == 16)
    assert "paused" not in http("GET", f"{service.url}/readyz").json
    wait_for(lambda: service.state() == "ready")


def test_a_pause_and_what_waits_in_it_outlive_every_process(service: Service) -> None:
    before = service.seen().bulk_settled_total
    control.pause(service.queue)
    jobs = [service.submit() for _ in range(10)]
    service.restart_all()
    jobs += [service.submit() for _ in range(2)]
    for model in service.models:
        assert model.poll() is None
    seen = service.seen()
    assert (seen.is_paused, seen.bulk_waiting, seen.in_flight) == (True, 12, 0)
    assert {service.status(job) for job in jobs} == {"queued"}
    control.resume(service.queue)
    wait_for(lambda: all(service.status(job) == "succeeded" for job in jobs))
    wait_for(lambda: service.seen().bulk_settled_total == before + 12)


def test_a_drain_refuses_at_every_door_and_empties_both_lanes_though_all_processes_change(
    service: Service, people: ThreadPoolExecutor
) -> None:
    before = service.seen()
    service.batches_take(0.6)
    asked: list[Future[Answer]] = [people.submit(service.predict) for _ in range(6)]
    jobs = [service.submit() for _ in range(9)]
    wait_for(lambda: service.seen().waiting + service.seen().in_flight + service.seen().bulk_waiting == 15)
    assert control.drain(service.queue)
    service.kill_a_holder()
    refused_by_all_doors(service)
    assert [answer.result(timeout=60).status for answer in asked] == [200] * 6
    service.restart_all()
    refused_by_all_doors(service)
    wait_for(lambda: all(service.status(job) == "succeeded" for job in jobs))
    wait_for(lambda: service.seen().in_flight == 0)
    after = service.seen()
    assert (after.waiting, after.bulk_waiting, after.dead_letters) == (0, 0, 0)
    settled = [one.settled_total + one.bulk_settled_total for one in (before, after)]
    assert settled[1] - settled[0] == 15
    control.resume(service.queue)
    wait_for(lambda: service.predict().status == 200)  # a web process refuses for 0.05 s by what it last saw
    assert http("GET", f"{service.url}/readyz").status == 200


def refused_by_all_doors(service: Service) -> None:
    tensor = {"name": "pixels", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [0] * (32 * 32 * 3)}
    (name,) = {server.served.name for server in service.seen().servers if server.served}
    for answer in (
        service.predict(),
        http("POST", f"{service.url}/predict", PHOTO, Content_Type="image/jpeg"),
        upload(f"{service.url}/predict", PHOTO, Prefer="respond-async"),
        upload(f"{service.url}/predict", PHOTO, Idempotency_Key="one-of-its-own"),
        http("POST", f"{service.url}/v2/models/{name}/infer", json.dumps({"inputs": [tensor]}).encode()),
        http("GET", f"{service.url}/readyz"),
        http("GET", f"{service.url}/v2/health/ready"),
    ):
        assert (answer.status, answer.json["error"].removeprefix("pixels[0]: ")) == (503, SAYS)
        assert answer.headers["Retry-After"] == "10"  # type: ignore[index]
    wait_for(lambda: service.state() == "draining")
