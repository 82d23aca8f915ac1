"""The processes that chaos.py lets go wrong: a Redis, a web server, model servers, and what they leave in Redis.

Rig            restarts model servers that die at once, without ending their leases
SupervisedRig  run_service.py does it
ProxiedRig     all but us reach Redis through a proxy that can cut connections
NetworkRig     web server, model servers and Redis are hosts in a network of their own
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from chaos_load import FIRST_LEVEL, GRACE_SECONDS, LEVELS, SIDE, Traffic, number_of
from conftest import Processes, RedisServer, free_port, output, wait_for
from faults import CuttingProxy, Network

import helpers
from serving.jobs.job import Job, Lane
from serving.jobs.job_queue import JobQueue
from serving.jobs.operator import read_letters

QUEUE = "image_queue"
BATCH_SECONDS = 0.1
LEASE_SECONDS = 2.0
DEADLINE_SECONDS = 30.0
RESULT_TTL_SECONDS = 60
WEB_WORKERS = 2
SETTINGS = {
    "LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "REQUEST_TIMEOUT_SECONDS": f"{DEADLINE_SECONDS:g}",
    "RESULT_TTL_SECONDS": str(RESULT_TTL_SECONDS),
    "SERVER_SLEEP": "0.5",
    "WEB_WORKERS": str(WEB_WORKERS),
    "METRICS_PORT": "0",
    "PYTHONPATH": str(Path(__file__).parent),  # of the runtimes whose batches go wrong
}
# Nobody here waits longer for what is to become true: a restart of a model server takes some 6 s on two cores.
PATIENCE_SECONDS = 40.0


class Rig:
    """Two model servers with faults on command, a web server of two processes, a Redis that keeps its data."""

    model_servers = 2
    counts_computations = True

    def __init__(self, model: dict[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.restarts = 0
        self.spoiled = False  # a scenario changed what a next one relies on
        self._model = model
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._restart_the_dead, name="keeper", daemon=True)
        self.order()
        try:
            self.redis = self._start_redis()
            self.queue = JobQueue(self.redis.url, QUEUE)
            self._start_servers()
            wait_for(self.is_whole, PATIENCE_SECONDS)
        except BaseException:
            self.close()
            raise

    # What the kinds of rigs differ in.

    def _start_redis(self) -> RedisServer:
        return RedisServer("--appendonly", "yes")

    def _start_servers(self) -> None:
        self._processes = {host: self._processes_of(host) for host in ("web", "model0", "model1")}
        self.models = [self._start_model(number) for number in range(self.model_servers)]
        self.start_web()
        self._keeper.start()

    def _processes_of(self, _host: str) -> Processes:
        return Processes(self._environment(self.redis.url))

    def web_host(self) -> str:
        return "127.0.0.1"

    def _environment(self, redis_url: str) -> dict[str, str]:
        return (
            SETTINGS
            | self._model
            | {
                "REDIS_URL": redis_url,
                "FAULTS": str(self.folder / "faults.json"),
                "TMPDIR": str(self.folder),
            }
        )

    # Processes.

    def start_web(self, **settings: str) -> None:
        """Start the web server, on a new port, and wait until it answers."""
        self.port = free_port()
        address = {"WEB_HOST": self.web_host(), "WEB_PORT": str(self.port)}
        self.web = self._processes["web"].start("run_web_server.py", **(address | settings))
        wait_for(lambda: len(self.web_workers()) == WEB_WORKERS and self._web_listens(), PATIENCE_SECONDS)

    def stop_web(self) -> int:
        """Tell the web server to stop, and wait for it; its exit status."""
        self.web.send_signal(signal.SIGTERM)
        return self.web.wait(timeout=DEADLINE_SECONDS + GRACE_SECONDS)

    @contextlib.contextmanager
    def web_with(self, **settings: str) -> Iterator[None]:
        """Another web server, with these settings, for a time."""
        self.stop_web()
        self.start_web(**settings)
        yield
        self.stop_web()
        self.start_web()

    def _start_model(self, number: int) -> subprocess.Popen[bytes]:
        return self._processes[f"model{number}"].start("run_model_server.py")

    def _restart_the_dead(self) -> None:
        while not self._closing.wait(0.1):
            for number, process in enumerate(self.models):
                if process.poll() is not None:
                    self.models[number] = self._start_model(number)
                    self.restarts += 1

    def _web_listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.web_host(), self.port), timeout=1):
            return True
        return False

    def model_ids(self) -> list[int]:
        return [process.pid for process in self.models]

    def web_workers(self) -> list[int]:
        return children_of(self.web.pid)

    def close(self) -> None:
        self._closing.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for processes in getattr(self, "_processes", {}).values():
            for process in processes.running:
                process.send_signal(signal.SIGCONT)
            processes.end()
        if hasattr(self, "redis"):
            self.redis.process.send_signal(signal.SIGCONT)
            self.redis.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Load and faults.

    def traffic(self, **options: Any) -> Traffic:
        defaults = {"patience_seconds": DEADLINE_SECONDS + GRACE_SECONDS + 1}
        return Traffic(self.web_host(), self.port, **(defaults | options))

    def order(self, **faults: float) -> None:
        """What the model servers' next batches go through: see runtimes.py."""
        new = self.folder / "faults.new"
        new.write_text(json.dumps({"batch_seconds": BATCH_SECONDS} | faults))
        new.replace(self.folder / "faults.json")  # they never read half of it

    def stop_in_mid_batch(self, process_id: int) -> None:
        """SIGSTOP a model server at a moment at which it has jobs in hand."""

        def is_caught() -> bool:
            os.kill(process_id, signal.SIGSTOP)
            pattern = f"{{{QUEUE}}}:processing:{socket.gethostname()}:{process_id}:*".replace("{", "?").replace(
                "}", "?"
            )
            if any(self.redis.client.scan_iter(pattern)):
                return True
            os.kill(process_id, signal.SIGCONT)
            return False

        wait_for(is_caught, PATIENCE_SECONDS)

    def kill_in_mid_batch(self, process_id: int) -> None:
        self.stop_in_mid_batch(process_id)
        os.kill(process_id, signal.SIGKILL)

    # What is to be seen afterwards.

    def is_whole(self) -> bool:
        """Whether all model servers hold a lease, by Redis's clock."""
        now = self.queue.now(good_for_seconds=1.0)
        return bool(self.redis.client.zcount(self.queue.keys.leases, now, "+inf") >= self.model_servers)

    def computed(self) -> Counter[int]:
        """Number of a request -> how often a model server computed it."""
        colours = b"".join(file.read_bytes() for file in self.folder.glob("computed.*"))
        levels = np.frombuffer(colours, np.uint8).reshape(-1, 3).astype(np.int64) - FIRST_LEVEL
        return Counter((levels @ np.array([LEVELS**2, LEVELS, 1])).tolist())

    def dead_letters(self) -> list[int]:
        """The numbers of the requests whose jobs are dead letters."""
        jobs = [Job.from_text(letter.job) for letter in read_letters(self.queue)]
        return [number_of(helpers.decode_image(job.image, (SIDE, SIDE, 3), job.dtype)[1, 1].tolist()) for job in jobs]

    def remains(self, *, dead_letters: bool = False) -> list[str]:
        """The keys that should not be in Redis any more; an answer that nobody read may be, for its lifetime."""
        client, found = self.redis.client, []
        of_lanes = [self.queue.keys.lane(lane) for lane in Lane]
        lasting = {
            *(key for of in of_lanes for key in (of.settled_total, of.last_empty_at, of.settled_by_server)),
            self.queue.keys.leases,
            *(self.queue.keys.serves, self.queue.keys.served_last, self.queue.keys.answered_at),
            self.queue.keys.seconds,
            *([self.queue.keys.dead] if dead_letters else []),
        }
        for key in client.keys("*"):
            is_answer = QUEUE.encode() not in key and 0 < client.ttl(key) <= RESULT_TTL_SECONDS
            is_published = key.decode().startswith(self.queue.keys.labels(""))
            if not (is_answer or is_published) and key.decode() not in lasting:
                found.append(key.decode())
        return found

    def answers_again(self) -> bool:
        """Whether a new request gets its 200."""
        with self.traffic(users=1, patience_seconds=5.0) as traffic:
            traffic.stop_sending()
        return all(request.status == 200 for request in traffic.requests)


class SupervisedRig(Rig):
    """run_service.py with one model server: the service as users start it."""

    model_servers = 1
    counts_computations = False

    def _start_servers(self) -> None:
        self._processes = {"service": Processes(self._environment(self.redis.url))}
        self.port = free_port()
        self.service = self._processes["service"].start("run_service.py", WEB_PORT=str(self.port))
        wait_for(lambda: "Ready after" in output(self.service), PATIENCE_SECONDS)

    def model_ids(self) -> list[int]:
        return children_of(self.service.pid, "run_model_server.py")

    def close(self) -> None:
        if hasattr(self, "service"):
            for process_id in self.model_ids():
                os.kill(process_id, signal.SIGCONT)
            self.service.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.service.wait(timeout=20)
        super().close()


class ProxiedRig(Rig):
    """All but this process reach Redis through a proxy."""

    def _start_redis(self) -> RedisServer:
        redis = super()._start_redis()
        self.proxy = CuttingProxy(redis.port, most_bytes=100_000)
        return redis

    def _processes_of(self, _host: str) -> Processes:
        return Processes(self._environment(f"redis://127.0.0.1:{self.proxy.port}/0"))

    def close(self) -> None:
        super().close()
        if hasattr(self, "proxy"):
            self.proxy.stop()


class NetworkRig(Rig):
    """Web server, model servers and Redis are hosts, joined by a bridge."""

    def _start_redis(self) -> RedisServer:
        self.network = Network("redis", "web", "model0", "model1")
        return RedisServer(
            *("--appendonly", "yes", "--protected-mode", "no"),
            host=self.network.address["redis"],
            prefix=self.network.prefix("redis"),
        )

    def _processes_of(self, host: str) -> Processes:
        return Processes(self._environment(self.redis.url), self.network.prefix(host))

    def web_host(self) -> str:
        return self.network.address["web"]

    def close(self) -> None:
        super().close()
        if hasattr(self, "network"):
            self.network.remove()


def children_of(process_id: int, of_script: str = "") -> list[int]:
    command = ["pgrep", "-P", str(process_id), *(["-f", of_script] if of_script else [])]
    return [int(line) for line in subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()]


def every(seconds: float, within: float, do: Callable[[], object]) -> int:
    """Do something again and again for a time, at most so often; how often it was."""
    times, until = 0, time.monotonic() + within
    while (began := time.monotonic()) < until:
        do()
        times += 1
        time.sleep(max(0.0, min(began + seconds, until) - time.monotonic()))
    return times
