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
import os
import sys
import tempfile
import time
from pathlib import Path

import service_parts
import settings
from serving import errors
from serving.local import running_service, terminal, web_address
from serving.local.model_group import ModelGroup
from serving.local.service_redis import ServiceRedis
from serving.local.supervisor import Child, StopSignals
from serving.local.terminal import Output, progress, tell

HERE = Path(__file__).parent
MODEL_STOP_SECONDS, REDIS_STOP_SECONDS = 30, 10
OBSERVE_LEASES_EVERY_SECONDS = 1.0


class Service:
    """The processes of one machine. `run` returns the exit status.

    Args:
        config: the settings.
        model_servers: how many for each model; None: as many as the settings say.
    """

    def __init__(self, config: settings.Settings, model_servers: int | None) -> None:
        self.config = config
        self.model_servers = model_servers
        self.output = Output(quiet=["redis"])
        is_named = "redis_url" in config.model_fields_set
        self.redis = ServiceRedis(
            config.redis_url, is_named=is_named, queue_name=config.image_queue, output=self.output
        )
        self.models: list[ModelGroup] = []
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
                self.redis.tell_tools(HERE, self.config.queues())
                self.start_servers()
                self.wait_until_ready()
                self.watch()
            except (errors.StartError, errors.QueueAway) as error:
                tell(str(error), "bold red")
                return error.exit_status
            finally:
                self.stop()
        return 0

    def start_servers(self) -> None:
        """Start the model servers, each on a GPU of its own where there are several, and the web server."""
        self.models = service_parts.model_groups(self.config, self.redis.url, self.output, self.model_servers)
        common = service_parts.common_environment(self.config, self.redis.url)
        self.web.append(service_parts.python("web", "run_web_server.py", common, self.output))
        for child in self.model_children() + self.web:
            child.start()

    def model_children(self) -> list[Child]:
        """The model servers of all models."""
        return [child for group in self.models for child in group.children]

    def wait_until_ready(self) -> None:
        """Show what the model servers do until the service can answer; then say where the service is."""
        address = web_address.to_open(self.config.web_host, self.config.web_port)
        began = time.monotonic()
        with progress() as line:
            while not self.signals.ask_to_stop:
                loading = [group for group in self.models if not (group.is_given_up or group.is_ready())]
                if not loading and self.has_web(address):
                    break
                self.look_after_children(starting=True)
                line.show(f"{self.in_words(loading)}, {time.monotonic() - began:.0f} s: {self.last_words(loading)}")
                time.sleep(0.2)
        if not self.signals.ask_to_stop:
            self.tell_where(address, time.monotonic() - began)

    def in_words(self, loading: list[ModelGroup]) -> str:
        """How far the service is; `loading` are the models that are not ready."""
        if len(self.models) == 1:
            return "Loading the model"
        return f"Loading, {len(self.models) - len(loading)} of {len(self.models)} models ready"

    def last_words(self, loading: list[ModelGroup]) -> str:
        """What a model server that still loads said last."""
        children = [child for group in loading or self.models for child in group.children]
        said = self.output.last_line(children[0].name, "starting") if children else "starting"
        return said.split(": ", 1)[-1][:80]

    def tell_where(self, address: str, seconds: float) -> None:
        """Say where the service is, and how a program asks each model."""
        key = "-H 'Authorization: Bearer <key>' " if self.config.api_keys() else ""
        paths = ["predict", *(f"predict/{group.model}" for group in self.models[1:] if not group.is_given_up)]
        commands = "\n".join(f"    curl {key}-F image=@photo.jpg {address}/{path}" for path in paths)
        tell(f"\nReady after {seconds:.0f} s. The page: {address}/", "bold green")
        tell(f"From a program, with a picture of yours:\n\n{commands}\n")
        tell("Ctrl-C stops it.")

    def has_web(self, address: str) -> bool:
        """Whether the web server says that it can answer predictions."""
        web = self.web[0]
        web.was_ready = web.was_ready or web_address.is_up(address)
        return web.was_ready and web_address.is_ready(address)

    def watch(self) -> None:
        """Look after all processes until a signal comes."""
        observe_at = 0.0
        while not self.signals.ask_to_stop:
            self.look_after_children(starting=False)
            if time.monotonic() >= observe_at:
                for group in self.models:
                    group.observe()
                observe_at = time.monotonic() + OBSERVE_LEASES_EVERY_SECONDS
            time.sleep(0.2)

    def look_after_children(self, *, starting: bool) -> None:
        """Restart what died.

        Raises:
            StartError: while `starting`, a server refuses its settings.
            ServerGivenUp: a server, without which there is no service, fails again and again before it is ever ready.
        """
        for child in self.redis.processes + self.model_children() + self.web:
            child.restart_if_due()
            status = child.exit_status()
            if status is None:
                continue
            group = next((group for group in self.models if child in group.children), None)
            no_weights = starting and status == errors.WeightsDownloadFailed.exit_status
            if no_weights and group is not None and self.go_on_with_random_weights(group):
                return
            if starting and status == errors.StartError.exit_status:
                said = self.output.last_line(child.name, "nothing")
                raise errors.StartError(f"The {child.name} server refuses to start: {said}")
            self.restart_later(child, status, group)

    def restart_later(self, child: Child, status: int, group: ModelGroup | None) -> None:
        """Plan the restart of a child that died with `status`; the queue returns its jobs at once, counted.

        Raises ServerGivenUp.
        """
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        # A process that was killed still has its lease. While Redis is away, no server can become ready.
        redis_is_away = group is not None and group.leases.holds_lease(child) is None
        if not redis_is_away and child.fails_for_good(status):
            return self.give_up(child, how, group)
        seconds = child.restart_later()
        tell(f"The {child.name} server {how}; it starts again in {seconds:g} s.", "bold yellow")
        if group is not None:
            group.leases.end(child)

    def give_up(self, child: Child, how: str, group: ModelGroup | None) -> None:
        """Start a child no more. Raises ServerGivenUp if no other one does its work, and no other model is served."""
        says = f"The {child.name} server {how} five times in a row, and was never ready. Its last lines:\n"
        says += "\n".join(self.output.last_lines(child.name))
        if group is None or self.model_children() == [child]:
            raise errors.ServerGivenUp(says)
        group.children.remove(child)
        left = "the others go on" if group.children else f"nobody serves {group.model} now; the other models go on"
        tell(f"{says}\nIt is started no more; {left}.", "bold red")

    def go_on_with_random_weights(self, group: ModelGroup) -> bool:
        """Start all model servers of a model with random weights, and say so; False if it is to have other weights."""
        (model,) = (one for one in self.config.models() if group.model in ("", one.name))
        if model.weights != "imagenet":
            return False
        of = f" of {group.model}" if group.model else ""
        tell(
            f"The ImageNet weights{of} cannot be downloaded: going on with RANDOM weights. The service works, its "
            f"predictions{of} mean nothing, and each says so. Set MODEL_WEIGHTS to a weights file for real ones.",
            "bold red",
        )
        group.take_random_weights(self.signals)
        return True

    def stop(self) -> None:
        """Stop the web server, then the model servers, then Redis: so no accepted request is cut off."""
        if self.signals.ask_to_stop:
            tell("Stopping; what is in flight is answered. Ctrl-C again stops at once.")
        patience = self.config.drain_delay_seconds + self.config.request_timeout_seconds + 10
        for children, seconds in (
            (self.web, patience),
            (self.model_children(), MODEL_STOP_SECONDS),
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
        "--model-servers", type=int, metavar="N", help="how many for each model; default: as the settings say"
    )
    arguments = parser.parse_args()
    if arguments.model_servers is not None and arguments.model_servers < 1:
        parser.error(f"--model-servers {arguments.model_servers}: at least 1 is needed")
    config = settings.load(terminal.refuse)
    terminal.write(config.log_format)
    service_parts.tell_of_gpus(config)
    return Service(config, arguments.model_servers).run()


if __name__ == "__main__":
    sys.exit(main())
