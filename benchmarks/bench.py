"""This service against the best model servers, with the same model, the same decoder and the same load, in one run.

    make bench                                  # all of it: about half an hour on two cores
    make bench ARGS="--write"                   # and its tables and pictures into docs/performance.md
    make bench ARGS="--rounds 2 --only ours --only Mosec"

All systems are started on this machine and then loaded in turns, a few seconds each, in every round in another order:
such a machine is slower in some minutes than in others. One that is not loaded waits, which costs next to nothing.
wrk sends from 16 connections, from 64, then one request after the other. All of it with MobileNetV2 on OpenVINO, then
with a model that costs nothing, which leaves serving alone. The floor is decoding and the model in one process,
without any server. Figures are medians of the rounds; CPU time is the operating system's, of all processes of a system.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import report
from systems import RIVAL_PYTHON, RIVALS, ROOT, SYSTEMS, System, bodies, running, wait_until_it_answers

from stress_test import made_photo

HERE = Path(__file__).parent
WARM_UP_SECONDS, SATURATED_SECONDS, SETTLE_SECONDS, ALONE_SECONDS = 4, 4, 1, 3
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def wrk(url: str, connections: int, seconds: float, headers: list[str], files: list[str]) -> dict[str, float]:
    options = ["-t", "1", "-c", str(connections), "-d", f"{seconds:g}s", "--timeout", "30s", "-s", HERE / "load.lua"]
    command = ["wrk", *options, url, "--", *headers, "--", *files]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(ended.stdout.split("RESULT ", 1)[1].splitlines()[0])
    return figures


def family(root: int) -> list[int]:
    """A process and all that descend from it."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(pid): int(parent) for pid, parent in (line.split() for line in listed.splitlines())}
    found = [root]
    for process in found:
        found += [pid for pid, parent in parents.items() if parent == process]
    return found


def cpu_seconds(root: int) -> float:
    ticks = 0
    for pid in family(root):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_A_SECOND


def memory_mb(root: int) -> float:
    total = 0
    for pid in family(root):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("Pss:")[1].split()[0])
    return total / 1024


@dataclass(frozen=True)
class Running:
    """A system that answers, and how it is asked."""

    url: str
    processes: dict[str, int]
    headers: list[str]
    files: list[str]

    def load(self, connections: int, seconds: float) -> dict[str, float]:
        return wrk(self.url, connections, seconds, self.headers, self.files)


@contextlib.contextmanager
def started(system: System, model: str, photos: list[bytes]) -> Iterator[Running]:
    """The system, warmed up."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        headers, files = bodies(system, photos, folder)
        with running(system, model, folder) as (url, processes):
            wait_until_it_answers(url, headers, Path(files[0]).read_bytes(), folder)
            ready = Running(url, processes, headers, files)
            ready.load(64, WARM_UP_SECONDS)
            yield ready


def measure(system: Running) -> dict[str, object]:
    """One turn of one system."""
    some = system.load(16, SATURATED_SECONDS)
    before = {name: cpu_seconds(pid) for name, pid in system.processes.items()}
    many = system.load(64, SATURATED_SECONDS)
    spent = {name: cpu_seconds(pid) - before[name] for name, pid in system.processes.items()}
    memory = sum(memory_mb(pid) for pid in system.processes.values())
    time.sleep(SETTLE_SECONDS)  # what the 64 left behind must not wait in front of the one
    alone = system.load(1, ALONE_SECONDS)
    return {
        "16": some["requests"] / some["seconds"],
        "64": many["requests"] / many["seconds"],
        "p99_64_ms": many["p99_ms"],
        "alone_p50_ms": alone["p50_ms"],
        "alone_p99_ms": alone["p99_ms"],
        "core_ms": {name: 1000 * seconds / max(1, many["requests"]) for name, seconds in spent.items()},
        "memory_mb": memory,
        "failed": some["failed"] + many["failed"] + alone["failed"],
    }


FLOOR = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np, shared
photos = [open(path, "rb").read() for path in sys.argv[2:]]
model = shared.load()
def run(seconds, step):
    step(0)
    times, cpu, began = [], time.process_time(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        step(len(times))
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times)), 1000 * (time.process_time() - cpu) / len(times)
pixels = np.stack([shared.decode(photos[i % len(photos)]) for i in range(shared.BATCH_SIZE)])
decode, decode_core = run(1.5, lambda i: shared.decode(photos[i % len(photos)]))
both, _ = run(1.5, lambda i: model.predict(shared.decode(photos[i % len(photos)])[np.newaxis]))
batch, batch_core = run(3, lambda _: model.predict(pixels))
size = shared.BATCH_SIZE
print(json.dumps({"decode_ms": decode_core, "model_core_ms": batch_core / size, "model_ms": batch / size,
    "alone_ms": both, "64": 1000 * shared.CPUS / (decode_core + batch_core / size)}))
"""


def floor(model: str, photos: list[bytes]) -> dict[str, float]:
    """Decoding and the model in one process; what they would do with all cores and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / str(place)) for place in range(len(photos))]
        for file, photo in zip(files, photos, strict=True):
            Path(file).write_bytes(photo)
        command = [str(RIVAL_PYTHON), "-c", FLOOR, str(RIVALS), *files]
        said = subprocess.run(
            command, env=os.environ | {"BENCH_MODEL": model}, capture_output=True, text=True, check=False
        )
    if said.returncode:
        raise SystemExit(said.stderr)
    figures: dict[str, float] = json.loads(said.stdout.splitlines()[-1])
    return figures


KEEP = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from serving import model, openvino_runtime
network = model.load_model("MobileNetV2", sys.argv[2], width=224, height=224, precision="float32")
openvino_runtime.keep(network, [f"class {i}" for i in range(1000)], Path(sys.argv[3]))
"""


def keep(weights: str) -> str:
    """The folder of MobileNetV2 for OpenVINO, converted anew; the ways to run it are measured at its first use."""
    folder = RIVAL_PYTHON.parent.parent / "model"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-c", KEEP, str(ROOT), weights, str(folder)], check=True, capture_output=True)
    return str(folder)


def middle(rounds: list[dict[str, object]]) -> dict[str, object]:
    """The medians of each figure."""
    return {
        name: middle([one[name] for one in rounds])  # type: ignore[misc]
        if isinstance(value, dict)
        else median(one[name] for one in rounds)  # type: ignore[type-var]
        for name, value in rounds[0].items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", action="append", metavar="NAME", help="a system; may be given several times")
    parser.add_argument("--kind", choices=["model", "none"], help="only with the model, or only without")
    parser.add_argument("--weights", default="random", help="MobileNetV2's (default: %(default)s; they change no time)")
    parser.add_argument("--photos", type=Path, nargs="*", help="JPEGs (default: made here)")
    parser.add_argument("--json", type=Path, help="keep all figures in this file")
    parser.add_argument("--write", action="store_true", help="put tables and pictures into docs/performance.md")
    arguments = parser.parse_args()
    for program, how in ((shutil.which("wrk"), "apt install wrk"), (RIVAL_PYTHON.exists(), "make bench")):
        if not program:
            parser.error(f"something is missing: {how}")
    photos = [path.read_bytes() for path in arguments.photos or []] or [made_photo(seed) for seed in range(4)]
    kinds = {"model": keep(arguments.weights), "none": ""}
    kinds = {kind: model for kind, model in kinds.items() if arguments.kind in (None, kind)}
    chosen = [system for system in SYSTEMS if not arguments.only or system.name in arguments.only]
    results: dict[str, dict[str, list[dict[str, object]]]] = {}
    floors: dict[str, list[dict[str, float]]] = {}
    for kind, model in kinds.items():
        systems = [system for system in chosen if kind == "model" or not system.needs_weights]
        results[kind], floors[kind] = {system.name: [] for system in systems}, []
        with contextlib.ExitStack() as stack:
            ready = {}
            for system in systems:
                print(f"{kind}: starting {system.name}", file=sys.stderr, flush=True)
                if system.needs_weights:
                    system.environment = {"BENCH_KERAS": arguments.weights}
                ready[system.name] = stack.enter_context(started(system, model, photos))
            for number in range(arguments.rounds):
                floors[kind].append(floor(model, photos))
                for place in range(len(systems)):
                    name = systems[(place + number) % len(systems)].name
                    results[kind][name].append(measure(ready[name]))
                    said = json.dumps(results[kind][name][-1])
                    print(
                        f"{kind}, round {number + 1} of {arguments.rounds}: {name} {said}", file=sys.stderr, flush=True
                    )
    medians = {kind: {name: middle(rounds) for name, rounds in of.items()} for kind, of in results.items()}
    low = {kind: middle(rounds) for kind, rounds in floors.items()}
    text = report.as_text(medians, low, arguments.rounds)
    print(text)
    if arguments.json:
        each = {"each_round": results, "each_floor": floors}
        kept = {"medians": medians, "floors": low, "rounds": arguments.rounds, **each}
        arguments.json.write_text(json.dumps(kept, indent=1))
    if arguments.write:
        report.write(text, medians, low)
    return 0


if __name__ == "__main__":
    sys.exit(main())
