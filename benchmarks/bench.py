"""This service against the best model servers, with the same model, the same decoder and the same load, in one run.

    make bench                                  # all of it: about half an hour on two cores
    make bench ARGS="--write"                   # and its tables and pictures into docs/performance.md
    make bench ARGS="--rounds 1 --only ours --only mosec"

Each system is started in turn on this machine, in every round anew (kept standing by, several of them together take a
third of two cores for nothing, and their memory is swept away meanwhile), and loaded by wrk: 16 connections, 64, then
one after the other. Once with MobileNetV2 on OpenVINO, once with a model that costs nothing, which leaves serving
alone. The floor is decoding and the model in one process, without any server. Figures are medians of the rounds; CPU
time is the operating system's, of all processes of a system.
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
from pathlib import Path
from statistics import median

import report
from systems import RIVAL_PYTHON, RIVALS, ROOT, SYSTEMS, System, bodies, running, wait_until_it_answers

from stress_test import made_photo

HERE = Path(__file__).parent
WARM_UP_SECONDS, SATURATED_SECONDS, SETTLE_SECONDS, ALONE_SECONDS = 3, 8, 2, 5
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def wrk(url: str, connections: int, seconds: float, headers: list[str], files: list[str]) -> dict[str, float]:
    options = ["-t", "1", "-c", str(connections), "-d", f"{seconds:g}s", "--timeout", "30s", "-s", HERE / "load.lua"]
    command = ["wrk", *options, url, "--", *headers, "--", *files]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if "RESULT " not in ended.stdout:
        raise SystemExit(f"wrk on {url} failed: {ended.stderr.strip()}\n{ended.stdout}")
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


def measure(system: System, model: str, photos: list[bytes]) -> dict[str, object]:
    """One round of one system."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        headers, files = bodies(system, photos, folder)
        with running(system, model, folder) as (url, processes):
            wait_until_it_answers(url, headers, Path(files[0]).read_bytes(), folder)
            load = lambda connections, seconds: wrk(url, connections, seconds, headers, files)  # noqa: E731
            load(64, WARM_UP_SECONDS)
            some = load(16, SATURATED_SECONDS)
            before = {name: cpu_seconds(pid) for name, pid in processes.items()}
            many = load(64, SATURATED_SECONDS)
            spent = {name: cpu_seconds(pid) - before[name] for name, pid in processes.items()}
            memory = sum(memory_mb(pid) for pid in processes.values())
            time.sleep(SETTLE_SECONDS)  # what the 64 left behind must not wait in front of the one
            alone = load(1, ALONE_SECONDS)
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
decode, decode_core = run(3, lambda i: shared.decode(photos[i % len(photos)]))
both, _ = run(3, lambda i: model.predict(shared.decode(photos[i % len(photos)])[np.newaxis]))
batch, batch_core = run(6, lambda _: model.predict(pixels))
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
from serving.model import keras_runtime
from serving.model import openvino_runtime
network = keras_runtime.load_model("MobileNetV2", sys.argv[2], width=224, height=224, precision="float32")
openvino_runtime.keep(network, [f"class {i}" for i in range(1000)], Path(sys.argv[3]))
"""


def keep(weights: str) -> str:
    """The folder of MobileNetV2 for OpenVINO, converted anew; the ways to run it are measured while nothing else runs.

    Left to the systems, those that start together would each measure beside the others, and go by different ways.
    """
    folder = RIVAL_PYTHON.parent.parent / "model"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-c", KEEP, str(ROOT), weights, str(folder)], check=True, capture_output=True)
    measuring = os.environ | {"BENCH_MODEL": str(folder), "PYTHONPATH": str(RIVALS)}
    subprocess.run([RIVAL_PYTHON, "-c", "import shared; shared.load()"], env=measuring, check=True, capture_output=True)
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
    parser.add_argument("--rounds", type=int, default=3)
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
    results: dict[str, dict[str, list[dict[str, object]]]] = {kind: {} for kind in kinds}
    floors: dict[str, list[dict[str, object]]] = {kind: [] for kind in kinds}
    for number in range(arguments.rounds):
        for kind, model in kinds.items():
            floors[kind].append(floor(model, photos))  # type: ignore[arg-type]
            for system in chosen:
                if system.name.endswith("model.predict"):
                    if kind == "none":
                        continue
                    system.environment = {"BENCH_KERAS": arguments.weights}
                print(f"round {number + 1} of {arguments.rounds}, {kind}: {system.name}", file=sys.stderr, flush=True)
                results[kind].setdefault(system.name, []).append(measure(system, model, photos))
                print(json.dumps(results[kind][system.name][-1]), file=sys.stderr, flush=True)
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
