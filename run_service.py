"""The whole service on one machine: Redis where there is none, model servers, web server.

    run_service -- starts --> Redis (REDIS_URL, else localhost:6379, else a private one), model servers, web server
                -- watches -> restarts what dies, tells of a model server that hangs
                -- stops ---> web server first, which answers what is in flight, then model servers, then Redis

`python run_service.py`, or `make run`; Ctrl-C stops it, a second Ctrl-C at once. docs/settings.md lists what the
environment sets. Exit status: 0 stopped; 1 a server failed again and again before it was ever ready; 2 a wrong setting,
no Redis, or a server that refuses to start.
"""

if __name__ == "__main__":  # before the imports of what may be missing
    from serving.local.packages import check

    check()

import argparse
import functools
import os
import sys
import tempfile
import time
from pathlib import Path

import service_parts
import settings
from serving import errors
from serving.jobs.job_queue import JobQueue
from serving.local import running_service, terminal, web_address
from serving.local.lease_keeper import LeaseKeeper
from serving.local.service_redis import ServiceRedis
from serving.local.supervisor import Child, StopSignals
from serving.local.terminal import Output, progress, tell
from serving.model import gpus
from serving.model.spec import name_of

HERE = Path(__file__).parent
MODEL_STOP_SECONDS, REDIS_STOP_SECONDS = 30, 10
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

    def run(self) -> int:
        """Start everything, look after it until a signal comes, stop it; the exit status."""
        self.signals.listen()
        with tempfile.TemporaryDirectory(prefix="classification-redis-") as directory:
            try:
                web_address.check(self.config.web_host, self.config.web_port)
                web_address.check(self.config.web_host, self.config.web_metrics_port, port_setting="WEB_METRICS_PORT")
                self.redis.start(directory)
                self.redis.tell_tools(HERE)
                self.start_servers()
                self.wait_until_ready()
                self.watch()
            except (errors.StartError, errors.QueueAway) as error:
                tell(str(error), "bold red")
                return error.exit_status
            finally:
                self.stop()
        return 0

    @functools.cached_property
    def leases(self) -> LeaseKeeper:
        """What the queue knows of the model servers."""
        # A user who presses Ctrl-C should not wait long for a Redis that hangs.
        queue = JobQueue(self.redis.url, self.config.image_queue, timeout_seconds=REDIS_TIMEOUT_SECONDS)
        return LeaseKeeper(queue, self.config.lease_seconds)

    def start_servers(self) -> None:
        """Start the model servers, each on a GPU of its own where there are several, and the web server."""
        name = self.config.model_name or name_of(self.config.model)
        common = {"REDIS_URL": self.redis.url, "MODEL_NAME": name, "PYTHONUNBUFFERED": "1"}
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
            while not self.signals.ask_to_stop and not (self.has_web(address) and self.has_model()):
                self.look_after_children(starting=True)
                words = self.output.last_line(self.models[0].name, "starting").split(": ", 1)[-1]
                line.show(f"Loading the model, {time.monotonic() - began:.0f} s: {words[:80]}")
                time.sleep(0.2)
        if not self.signals.ask_to_stop:
            key = "-H 'Authorization: Bearer <key>' " if self.config.api_keys() else ""
            tell(f"\nReady after {time.monotonic() - began:.0f} s. The page: {address}/", "bold green")
            tell(f"From a program, with a picture of yours:\n\n    curl {key}-F image=@photo.jpg {address}/predict\n")
            tell("Ctrl-C stops it.")

    def has_web(self, address: str) -> bool:
        """Whether the web server says that it can answer predictions."""
        web = self.web[0]
        web.was_ready = web.was_ready or web_address.is_up(address)
        return web.was_ready and web_address.is_ready(address)

    def has_model(self) -> bool:
        """Whether a model server of this service, and not somebody else's, holds a lease."""
        holds = [self.leases.holds_lease(child) for child in self.models]
        return any(holds)

    def watch(self) -> None:
        """Look after all processes until a signal comes."""
        observe_at = 0.0
        while not self.signals.ask_to_stop:
            self.look_after_children(starting=False)
            if time.monotonic() >= observe_at:
                for child in self.models:
                    self.leases.observe(child)
                observe_at = time.monotonic() + OBSERVE_LEASES_EVERY_SECONDS
            time.sleep(0.2)

    def look_after_children(self, *, starting: bool) -> None:
        """Restart what died.

        Raises:
            StartError: while `starting`, a server refuses its settings.
            ServerGivenUp: a server, without which there is no service, fails again and again before it is ever ready.
        """
        for child in self.redis.processes + self.models + self.web:
            child.restart_if_due()
            status = child.exit_status()
            if status is None:
                continue
            no_weights = child in self.models and status == errors.WeightsDownloadFailed.exit_status
            if starting and no_weights and self.go_on_with_random_weights():
                return
            if starting and status == errors.StartError.exit_status:
                said = self.output.last_line(child.name, "nothing")
                raise errors.StartError(f"The {child.name} server refuses to start: {said}")
            self.restart_later(child, status)

    def restart_later(self, child: Child, status: int) -> None:
        """Plan the restart of a child that died with `status`; the queue returns its jobs at once, counted.

        Raises ServerGivenUp.
        """
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        # A process that was killed still has its lease. While Redis is away, no server can become ready.
        redis_is_away = child in self.models and self.leases.holds_lease(child) is None
        if not redis_is_away and child.fails_for_good(status):
            return self.give_up(child, how)
        seconds = child.restart_later()
        tell(f"The {child.name} server {how}; it starts again in {seconds:g} s.", "bold yellow")
        if child in self.models:
            self.leases.end(child)

    def give_up(self, child: Child, how: str) -> None:
        """Start a child no more. Raises ServerGivenUp if no other one does its work."""
        says = f"The {child.name} server {how} five times in a row, and was never ready. Its last lines:\n"
        says += "\n".join(self.output.last_lines(child.name))
        if child not in self.models or len(self.models) == 1:
            raise errors.ServerGivenUp(says)
        self.models.remove(child)
        tell(f"{says}\nIt is started no more; the others go on.", "bold red")

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
        patience = self.config.drain_delay_seconds + self.config.request_timeout_seconds + 10
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
        "--model-servers", type=int, metavar="N", help="how many; default: MODEL_SERVERS, else one for each usable GPU"
    )
    arguments = parser.parse_args()
    if arguments.model_servers is not None and arguments.model_servers < 1:
        parser.error(f"--model-servers {arguments.model_servers}: at least 1 is needed")
    config = settings.load(terminal.refuse)
    terminal.write(config.log_format)
    service_parts.tell_of_gpus(config)
    return Service(config, arguments.model_servers or service_parts.how_many_model_servers(config)).run()


if __name__ == "__main__":
    sys.exit(main())
