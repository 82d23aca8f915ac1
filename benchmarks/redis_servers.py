"""Redis and Valkey servers side by side, at 200 kB a job: alone, with a full queue, and end to end without a model.

    python benchmarks/redis_servers.py --redis-server /usr/bin/redis-server --redis-server ../valkey-server
    python benchmarks/redis_servers.py --redis-server redis-server --io-threads 1 4 [--rounds 5] [--seconds 6]

In each round every server has its turn, the first of them first or last. A ratio is the median over the rounds of a
server's figure divided by the first one's in the same round, so that what the machine does meanwhile strikes both.

*alone*: the scripts of submit, take and answer, one after the other, by one client. What bounds a server is its main
thread, whose CPU time a job has a column of its own; threads that wait for work by asking for it spend some as well.
*full queue*: model servers with a model that sleeps, beside a feeder. *end to end*: wrk, a web server, a model server
whose model costs nothing.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from full_queue import fed  # noqa: E402
from load import Up, started  # noqa: E402
from models import NO_MODEL  # noqa: E402
from scaling import cost_alone, private_redis, some_image  # noqa: E402
from systems import BY_NAME, shared_model  # noqa: E402

from serving.jobs.job_queue import JobQueue  # noqa: E402
from serving.local.load_images import made_photo  # noqa: E402

BATCH_SIZE = 32
# As redis_server.find_server() asks for a version, and redis_server.command() starts it.
PROGRAM = """#!/bin/sh
[ "$1" = --version ] && exec {path} --version
exec {path} "$@" --io-threads {io_threads} --io-threads-do-reads yes
"""
UNITS = {
    "alone, core-ms a job": "ms",
    "its main thread": "ms",
    "full queue": "/s",
    "Redis's cores": "",
    "end to end": "/s",
    "Redis's core-ms a request": "ms",
}


@dataclass
class Server:
    """A server program and how many threads read and write for it; what was measured, a value each round."""

    path: Path
    io_threads: int
    found: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in UNITS})

    @property
    def title(self) -> str:
        said = subprocess.run([self.path, "--version"], capture_output=True, text=True, check=True).stdout
        name, version = re.findall(r"(\w+) server v=([\d.]+)", said)[0]
        return f"{name} {version}" + (f", io-threads {self.io_threads}" if self.io_threads > 1 else "")

    @contextlib.contextmanager
    def first_on_path(self) -> Iterator[None]:
        """What looks for a server meanwhile finds this one, with its threads."""
        before = os.environ["PATH"]
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "redis-server"
            program.write_text(PROGRAM.format(path=self.path, io_threads=self.io_threads))
            program.chmod(0o755)
            os.environ["PATH"] = f"{folder}{os.pathsep}{before}"
            try:
                yield
            finally:
                os.environ["PATH"] = before

    def note(self, name: str, value: float) -> None:
        self.found[name].append(value)


def measure_queue(server: Server, options: argparse.Namespace) -> None:
    """A round of the server alone, and of it between a feeder and model servers."""
    with tempfile.TemporaryDirectory() as folder, server.first_on_path(), private_redis(folder) as redis:
        url, process = redis
        image = some_image()
        whole, main = cost_alone(JobQueue(url, "image_queue"), image, process, options.seconds)
        server.note("alone, core-ms a job", whole)
        server.note("its main thread", main)
        environment = os.environ | shared_model() | {"BENCH_MODEL": f"sleep {options.sleep_ms}"}
        environment |= {"REDIS_URL": url, "RESULT_TTL_SECONDS": "1", "METRICS_PORT": "0", "LEASE_SECONDS": "60"}
        environment |= {"BATCH_SIZE": str(BATCH_SIZE), "BENCH_FEEDERS": str(options.feeders)}
        rate, busy = fed(ROOT, environment, redis, image, options.model_servers, options.seconds)
        server.note("full queue", rate)
        server.note("Redis's cores", busy)


def measure_service(server: Server, up: Up, options: argparse.Namespace) -> None:
    """A round from a client's request to its answer."""
    figures = up.turn(options.connections, options.seconds)
    if figures["failed"]:
        raise SystemExit(f"{server.title}: {figures['failed']:.0f} requests failed")
    server.note("end to end", figures["rate"])
    server.note("Redis's core-ms a request", figures["core_ms"]["Redis"])


def in_turn(servers: list[Server], number: int) -> list[Server]:
    return servers[:: 1 if number % 2 else -1]


def line(server: Server, first: Server) -> str:
    """A row of the table: of each figure the median, and how it stands to the first server's."""
    cells = []
    for name, unit in UNITS.items():
        mine, other = server.found[name], first.found[name]
        ratio = median(one / max(two, 1e-9) for one, two in zip(mine, other, strict=True))
        digits = 0 if unit == "/s" else 3 if unit == "ms" else 2
        cells.append(f"{median(mine):.{digits}f}{' ms' if unit == 'ms' else unit} ({ratio:.2f})")
    return f"| {server.title} | {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-server", action="append", required=True, metavar="PATH", help="once for each")
    parser.add_argument("--io-threads", type=int, nargs="+", default=[1], help="each with every server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6, help="a turn of each of the three (default: %(default)s)")
    parser.add_argument("--sleep-ms", type=float, default=25, help="a batch of 32, of the full queue")
    parser.add_argument("--model-servers", type=int, default=2, help="at the full queue (default: %(default)s)")
    parser.add_argument("--feeders", type=int, default=1, help="processes that bring jobs to the full queue")
    parser.add_argument("--connections", type=int, default=64, help="of wrk (default: %(default)s)")
    options = parser.parse_args()
    paths = [shutil.which(path) for path in options.redis_server]
    if None in paths:
        parser.error(f"no program: {options.redis_server[paths.index(None)]}")
    servers = [Server(Path(str(path)).resolve(), count) for count in options.io_threads for path in paths]
    for number in range(options.rounds):
        for server in in_turn(servers, number):
            measure_queue(server, options)
            print(f"round {number + 1}: {server.title} {server.found['full queue'][-1]:.0f}/s", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        photos, up = [made_photo(seed) for seed in range(4)], {}
        for server in servers:
            with server.first_on_path():
                up[server.title] = stack.enter_context(started(BY_NAME["ours"], NO_MODEL, photos))
        for number in range(options.rounds):
            for server in in_turn(servers, number):
                measure_service(server, up[server.title], options)
                print(f"round {number + 1}: {server.title} {server.found['end to end'][-1]:.0f}/s", file=sys.stderr)
    print(f"| | {' | '.join(UNITS)} |\n|{'---|' * (len(UNITS) + 1)}")
    for server in servers:
        print(line(server, servers[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
