"""This service against the best model servers, with the same model, the same decoder and the same load, in one run.

    make bench                                  # 3 rounds, about an hour on two cores
    make bench ARGS="--rounds 2 --write"        # and a page in docs/measurements, with a picture
    make bench ARGS="--rounds 1 --kind resnet50 --only ours --only Mosec"

Three kinds: ResNet50 in the precision that this service chooses, MobileNetV2 in float32, and a model that costs
nothing, which leaves serving alone. Each system is started alone, in every round anew (several that stand by take a
third of two cores for nothing, and their memory is swept away meanwhile), and wrk loads it: 16 connections, 64, then
one. The floor is decoding and the model in one process, without any server. Figures are medians of the rounds; CPU
time is the operating system's, of all processes of a system.
"""

import argparse
import dataclasses
import datetime
import json
import platform
import re
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import report
from load import started
from models import KINDS, Model, kept, said
from systems import CPUS, RIVAL_PYTHON, RIVALS, ROOT, SYSTEMS, System, named

from serving.local.load_images import made_photo

MOST = ["ours", "Triton", "Mosec", "LitServe"]
# A process a core is the faster way for these, but only where no model takes all cores by itself.
BY_DEFAULT = dict.fromkeys(KINDS, MOST) | {"none": [*MOST, "Triton, an instance a core", "Mosec, a worker a core"]}


def measure(system: System, model: Model, photos: list[bytes], seconds: float) -> dict[str, Any]:
    """One round of one system, in turns of so many seconds, half as many for one connection."""
    with started(system, model, photos) as up:
        some, many = up.turn(16, seconds), up.turn(64, seconds)
        memory = up.memory_mb()
        alone = up.turn(1, seconds / 2)
    return {
        "16": some["rate"],
        "64": many["rate"],
        "p99_64_ms": many["p99_ms"],
        "alone_p50_ms": alone["p50_ms"],
        "alone_p99_ms": alone["p99_ms"],
        "core_ms": many["core_ms"],
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
both, _ = run(6, lambda i: model.predict(shared.decode(photos[i % len(photos)])[np.newaxis]))
batch, batch_core = run(12, lambda _: model.predict(pixels))
size = shared.BATCH_SIZE
print(json.dumps({"decode_ms": decode_core, "model_core_ms": batch_core / size, "model_ms": batch / size,
    "alone_ms": both, "64": 1000 * shared.CPUS / (decode_core + batch_core / size)}))
"""


def floor(model: Model, photos: list[bytes]) -> dict[str, float]:
    """Decoding and the model in one process; what they would do with all cores and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / str(place)) for place in range(len(photos))]
        for file, photo in zip(files, photos, strict=True):
            Path(file).write_bytes(photo)
        command = [str(RIVAL_PYTHON), "-c", FLOOR, str(RIVALS), *files]
        figures: dict[str, float] = json.loads(said(command, **model.environment))
    return figures | {"has_model": bool(model.name)}


def middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of each figure."""
    return {
        name: middle([one[name] for one in rounds]) if isinstance(value, dict) else median(one[name] for one in rounds)
        for name, value in rounds[0].items()
    }


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """What a reader of the figures must know of where and how they came to be."""
    facts = Path("/proc/cpuinfo").read_text()
    processor = re.search(r"model name\s*: (.*)", facts)
    has_bfloat16 = "with" if re.search("avx512_bf16|amx_bf16", facts) else "without"
    machine = f"{CPUS} cores of {processor[1] if processor else platform.machine()}, {has_bfloat16} bfloat16"
    try:
        commit = said(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    except (OSError, SystemExit):  # no checkout
        commit = "unknown"
    arguments = shlex.join(sys.argv[1:])
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{machine}; Python {platform.python_version()}; commit {commit}",
        "command": f'make bench ARGS="{arguments}"' if arguments else "make bench",
        "rounds": options.rounds,
        "seconds": options.seconds,
    }


def measured(options: argparse.Namespace, models: dict[str, Model], photos: list[bytes]) -> dict[str, Any]:
    """All rounds of all systems, kind by kind in each round: kind -> its title, its systems, its floor."""
    rounds: dict[str, dict[str, list[dict[str, Any]]]] = {kind: {} for kind in models}
    floors: dict[str, list[dict[str, float]]] = {kind: [] for kind in models}
    for number in range(options.rounds):
        for kind, model in models.items():
            floors[kind].append(floor(model, photos))
            for system in options.only or named(BY_DEFAULT[kind]):
                if system.needs_model and not model.name:
                    continue
                tell(f"round {number + 1} of {options.rounds}, {model.title}: {system.name}")
                rounds[kind].setdefault(system.name, []).append(measure(system, model, photos, options.seconds))
                tell(json.dumps(rounds[kind][system.name][-1]))
    return {
        kind: {
            "title": models[kind].title,
            "systems": {name: middle(found) for name, found in rounds[kind].items()},
            "floor": middle(floors[kind]),
            "each_round": rounds[kind],
            "each_floor": floors[kind],
        }
        for kind in models
    }


def tell(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def main() -> int:
    """Measure, and print what docs/measurements is to hold; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=24, help="a turn; half of it for one connection (default: 24)")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="may be given several times; default: all")
    names = ", ".join(system.name for system in SYSTEMS)
    parser.add_argument("--only", action="append", metavar="NAME", help=f"may be given several times; of: {names}")
    parser.add_argument("--weights", default="random", help="random, imagenet, or a file (default: %(default)s)")
    parser.add_argument("--photos", type=Path, nargs="*", help="JPEGs (default: made here)")
    parser.add_argument("--json", type=Path, help="keep all figures in this file")
    parser.add_argument(
        "--write", action="store_true", help="a page into docs/measurements, a picture into docs/images"
    )
    options = parser.parse_args()
    for program, how in ((shutil.which("wrk"), "apt install wrk"), (RIVAL_PYTHON.exists(), "make bench")):
        if not program:
            parser.error(f"something is missing: {how}")
    options.only = named(options.only or [])
    photos = [path.read_bytes() for path in options.photos or []] or [made_photo(seed) for seed in range(4)]
    models = {
        kind: kept(dataclasses.replace(model, weights=options.weights))
        for kind, model in KINDS.items()
        if not options.kind or kind in options.kind
    }
    found = conditions(options) | {"kinds": measured(options, models, photos)}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    print(report.performance_rows(found), report.page(found), sep="\n\n")
    if options.write:
        report.write(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
