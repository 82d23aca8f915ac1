"""The whole service on one machine: Redis where there is none, model servers, web server.

    run_service -- starts --> Redis (REDIS_URL, else localhost:6379, else a private one), model servers, web server
                -- watches -> restarts what dies, tells of a model server that hangs
                -- stops ---> web server first, which answers what is in flight, then model servers, then Redis

`python run_service.py`, or `make run`; Ctrl-C stops it, a second Ctrl-C at once. docs/settings.md lists what the
environment sets. Exit status: 0 stopped; 2 a wrong setting, no Redis, or a server that refuses to start.
"""

if __name__ == "__main__":  # before the imports of what may be missing
    from serving.local.packages import check

    check()

import argparse
import contextlib
import functools
import os
import sys
import tempfile
import time
from pathlib import Path

import settings
from serving import errors
from serving.jobs.job_queue import JobQueue
from serving.jobs.leases import end_leases, has_lease
from serving.local import running_service, web_address
from serving.local.service_redis import ServiceRedis
from serving.local.supervisor import Child, LeaseWatch, StopSignals
from serving.local.terminal import Output, progress, tell
from serving.model import gpus

HERE = Path(__file__).parent
MODEL_STOP_SECONDS = 30
REDIS_STOP_SECONDS = 10
OBSERVE_LEASES_EVERY_SECONDS = 1.0
REDIS_TIMEOUT_SECONDS = 3.0


class Service:
    """The processes of one machine. `run` returns the exit status."""

    def __init__(self, config: settings.Settings, model_servers: int) -> None:
        self.config = config
        self.model_servers = model_servers
        self.output = Output(quiet=["redis"])
        is_named = "redis_url" in config.model_fields_set
        self.redis = ServiceRedis(
            config.redis_url, is_named=is_named, queue_name=config.image_queue, output=self.output
        )
        self.models: list[Child] = []
        self.web: list[Child] = []
        self.signals = StopSignals()
        self.watches: dict[int, LeaseWatch] = {}  # by process id: the next process of a child begins anew

    def run(self) -> int:
        """Start everything, look after it until a signal comes, stop it; the exit status."""
        self.signals.listen()
        with tempfile.TemporaryDirectory(prefix="classification-redis-") as directory:
            try:
                web_address.check(self.config.web_host, self.config.web_port)
                self.redis.start(directory)
                self.write_down_where()
                self.start_servers()
                self.wait_until_ready()
                self.watch()
            except (errors.StartError, errors.QueueAway) as error:
                tell(str(error), "bold red")
                return error.exit_status
            finally:
                self.stop()
        return 0

    def write_down_where(self) -> None:
        """Tell the operator's tools where the queue is; where they cannot be told, say what they need."""
        other = running_service.find(HERE)
        if other is not None and other.is_alive():
            tell(
                f"dead_letters.py looks at the service that runs here already (process {other.process_id}); for this "
                "one, set its REDIS_URL."
            )
            return
        here = running_service.RunningService(self.redis.url, self.config.image_queue, os.getpid())
        try:
            running_service.write(HERE, here)
        except OSError as error:
            path = HERE / running_service.FILE
            tell(f"{path} cannot be written ({error.strerror}): dead_letters.py needs REDIS_URL set to this Redis.")

    @functools.cached_property
    def queue(self) -> JobQueue:
        """The queue, for questions about leases."""
        # A user who presses Ctrl-C should not wait long for a Redis that hangs.
        return JobQueue(self.redis.url, self.config.image_queue, timeout_seconds=REDIS_TIMEOUT_SECONDS)

    def start_servers(self) -> None:
        """Start the model servers, each on a GPU of its own where there are several, and the web server."""
        common = {"REDIS_URL": self.redis.url, "PYTHONUNBUFFERED": "1"}
        for number, gpu in enumerate(gpus.pinned(self.model_servers, os.environ.get(gpus.CUDA_VISIBLE_DEVICES))):
            port = self.config.metrics_port + number if self.config.metrics_port else 0
            name = "model" if self.model_servers == 1 else f"model{number + 1}"
            self.models.append(self.python(name, "run_model_server.py", common | gpu | {"METRICS_PORT": str(port)}))
        self.web.append(self.python("web", "run_web_server.py", common))
        for child in self.models + self.web:
            child.start()

    def python(self, name: str, script: str, environment: dict[str, str]) -> Child:
        """A child that runs one of our scripts; not started yet."""
        return Child(name, [sys.executable, str(HERE / script), "--redis-is-known"], environment, self.output)

    def wait_until_ready(self) -> None:
        """Show what the model server does until the service can answer; then say where the service is."""
        address = web_address.to_open(self.config.web_host, self.config.web_port)
        began = time.monotonic()
        with progress() as line:
            while not self.signals.ask_to_stop and not (self.has_model() and web_address.is_ready(address)):
                self.look_after_children(starting=True)
                words = self.output.last_line(self.models[0].name, "starting").split(": ", 1)[-1]
                line.show(f"Loading the model, {time.monotonic() - began:.0f} s: {words[:80]}")
                time.sleep(0.2)
        if not self.signals.ask_to_stop:
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
        """Look after all processes until a signal comes."""
        observe_at = 0.0
        while not self.signals.ask_to_stop:
            self.look_after_children(starting=False)
            if time.monotonic() >= observe_at:
                for child in self.models:
                    self.observe_lease(child)
                observe_at = time.monotonic() + OBSERVE_LEASES_EVERY_SECONDS
            time.sleep(0.2)

    def observe_lease(self, child: Child) -> None:
        """Say once that a model server lives without making progress, and once that it goes on."""
        holds: bool | None = None
        with contextlib.suppress(errors.QueueAway):
            holds = has_lease(self.queue, child.process_id)
        watch = self.watches.setdefault(child.process_id, LeaseWatch(self.config.lease_seconds))
        if not watch.observe(holds, time.monotonic()):
            return
        if watch.hangs:
            tell(
                f"The {child.name} server hangs: its process {child.process_id} lives, but has lost its lease, and "
                "others get its jobs. Its last line above may say why. Kill it, and another one is started.",
                "bold yellow",
            )
        else:
            tell(f"The {child.name} server goes on: it holds a lease again.", "bold green")

    def look_after_children(self, *, starting: bool) -> None:
        """Restart what died. Raises StartError: while `starting`, a server refuses its settings."""
        for child in self.redis.processes + self.models + self.web:
            child.restart_if_due()
            status = child.exit_status()
            if status is None:
                continue
            no_weights = child in self.models and status == errors.WeightsDownloadFailed.exit_status
            if starting and no_weights and self.go_on_with_random_weights():
                return
            if starting and status == errors.StartError.exit_status:
                raise errors.StartError(f"The {child.name} server refuses to start: see its last line above.")
            self.restart_later(child, status)

    def restart_later(self, child: Child, status: int) -> None:
        """Plan the restart of a child that died with `status`; the queue returns its jobs at once, counted."""
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        seconds = child.restart_later()
        tell(f"The {child.name} server {how}; it starts again in {seconds:g} s.", "bold yellow")
        self.watches.pop(child.process_id, None)
        if child in self.models:
            with contextlib.suppress(errors.QueueAway):  # then the lease runs out by itself
                end_leases(self.queue, child.process_id)

    def go_on_with_random_weights(self) -> bool:
        """Start all model servers with random weights, and say so; False if MODEL_WEIGHTS asks for other weights."""
        if self.config.model_weights != "imagenet":
            return False
        tell(
            "The ImageNet weights cannot be downloaded: going on with RANDOM weights. The service works, its "
            "predictions mean nothing, and each says so. Set MODEL_WEIGHTS to a weights file for real ones.",
            "bold red",
        )
        labels = "numbers" if self.config.model_labels == "imagenet" else self.config.model_labels
        for child in self.models:
            child.stop(0, self.signals)
            child.environment |= {"MODEL_WEIGHTS": "random", "MODEL_LABELS": labels}
            child.start()
        return True

    def stop(self) -> None:
        """Stop the web server, then the model servers, then Redis: so no accepted request is cut off."""
        if self.signals.ask_to_stop:
            tell("Stopping; what is in flight is answered. Ctrl-C again stops at once.")
        patience = self.config.request_timeout_seconds + 10
        for children, seconds in (
            (self.web, patience),
            (self.models, MODEL_STOP_SECONDS),
            (self.redis.processes, REDIS_STOP_SECONDS),
        ):
            for child in children:
                child.stop(seconds, self.signals)
        running_service.remove(HERE, os.getpid())
        if self.signals.ask_to_stop:
            tell("Stopped.")


def main() -> int:
    """Read the command line and the settings, run the service; the exit status."""
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
    """As many as MODEL_SERVERS says; else one for each GPU, if the model runs on GPUs, else one."""
    on_gpus = gpus.nvidia(os.environ.get(gpus.CUDA_VISIBLE_DEVICES)) if config.model_runtime != "openvino" else []
    return config.model_servers or max(1, len(on_gpus))


if __name__ == "__main__":
    sys.exit(main())
