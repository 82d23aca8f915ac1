"""Some of bench.py's systems in short turns, one after the other, or two checkouts of this service: for ratios.

    python benchmarks/turns.py [--only ours --only Triton --only Mosec] [--turns 5] [--connections 16 64]
    python benchmarks/turns.py --beside ../before --model ResNet50 --runtime openvino --alone
    python benchmarks/turns.py --beside ../before --model none --seconds 3
    KERAS_BACKEND=jax python benchmarks/turns.py --model ResNet50 --model-servers 1 2 4      # on a GPU

A ratio is the median over the turns of a system's figure divided by the first system's in the same turn, so that what
the machine does meanwhile strikes both. Idle systems stand by: their memory is there, and costs a little. With --alone
each is started for its turn and stopped after it. Give a slow model 20 s a turn and more. With --beside and a model,
both checkouts run their own `run_model_server.py`, which chooses precision and batch sizes by itself; so each needs
nothing but the settings that it has.
"""

import argparse
import contextlib
import dataclasses
import itertools
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from load import Up, started
from models import NO_MODEL, Model, kept
from systems import BY_NAME, ROOT, System, named, ours, shared_model

from serving.local.load_images import made_photo
from serving.model import gpus

BEST = ["ours", "Triton", "Mosec"]
OLDER = "benchmarks/rivals/ours_model.py"  # how checkouts that know no MODEL_RUNTIME of one's own run the shared model

Figures = dict[str, Any]
Turns = dict[int, dict[str, list[Figures]]]  # connections -> name -> a turn each


def line(name: str, turns: list[Figures], first: list[Figures]) -> str:
    """A row of the table."""
    middle = {figure: median(turn[figure] for turn in turns) for figure in ("rate", "p50_ms", "p99_ms", "all_core_ms")}
    ratio = {
        figure: median(mine[figure] / max(other[figure], 1e-9) for mine, other in zip(turns, first, strict=True))
        for figure in ("rate", "p50_ms", "all_core_ms")
    }
    cost = ", ".join(f"{part} {median(turn['core_ms'][part] for turn in turns):.2f}" for part in turns[0]["core_ms"])
    failed = sum(turn["failed"] for turn in turns)
    return (
        f"| {name} | {middle['rate']:.1f}/s | {ratio['rate']:.3f} | {middle['p50_ms']:.1f} ms | {ratio['p50_ms']:.3f} "
        f"| {middle['p99_ms']:.0f} ms | {middle['all_core_ms']:.2f} ({cost}) | {ratio['all_core_ms']:.3f} "
        f"| {failed:.0f} |"
    )


def chosen(
    names: list[str], servers: list[int], beside: Path | None, settings: dict[str, str] | None = None
) -> list[System]:
    """The systems of those names, and ours with so many model servers; or, with `beside`, that checkout and this one,
    each with the shared model, or by itself with such settings."""
    if beside:
        return [checkout(str(beside), beside.absolute(), settings), checkout("ours", ROOT, settings)]
    found = named(names)
    for count in servers:
        several = partial(ours, servers=count)
        found.append(dataclasses.replace(BY_NAME["ours"], name=f"ours, {count} model servers", commands=several))
        if "Mosec" in names:
            predictors = {"BENCH_PREDICTORS": str(count)}
            found.append(dataclasses.replace(BY_NAME["Mosec"], name=f"Mosec, {count} predict", environment=predictors))
    return found


def checkout(name: str, root: Path, settings: dict[str, str] | None) -> System:
    """The service of that checkout, with the shared model, or by itself with such settings."""
    environment, model_server = shared_model(root) | (settings or {}), "run_model_server.py"
    if not settings and (root / OLDER).exists():
        environment, model_server = {"PYTHONPATH": str(root)}, OLDER
    commands = partial(ours, root=root, model_server=model_server)
    return dataclasses.replace(BY_NAME["ours"], name=name, commands=commands, environment=environment)


def model_of(options: argparse.Namespace) -> Model:
    """What --model, --runtime and --precision ask for; not kept yet."""
    if options.model == "none":
        return NO_MODEL
    precision = options.precision or ("float32" if options.model == "MobileNetV2" else "auto")
    return Model(options.model, options.model, precision)


def settings_of(model: Model, runtime: str) -> dict[str, str]:
    """The service's settings for that model."""
    which = {"MODEL": model.name, "MODEL_WEIGHTS": model.weights, "MODEL_LABELS": "numbers"}
    return which | {"MODEL_RUNTIME": runtime, "MODEL_PRECISION": model.precision}


def measured(systems: list[System], model: Model, options: argparse.Namespace) -> Turns:
    """All turns of all systems, in alternating order; with --alone all numbers of connections at each start."""
    photos = [made_photo(seed) for seed in range(4)]
    turns: Turns = {connections: {system.name: [] for system in systems} for connections in options.connections}
    groups = [options.connections] if options.alone else [[connections] for connections in options.connections]
    with contextlib.ExitStack() as stack:
        up: dict[str, Up] = {}
        if not options.alone:
            up = {system.name: stack.enter_context(started(system, model, photos)) for system in systems}
        for group, number in itertools.product(groups, range(options.turns)):
            for system in systems[:: 1 if number % 2 else -1]:
                with contextlib.ExitStack() as turn:
                    one = up.get(system.name) or turn.enter_context(started(system, model, photos))
                    for connections in group:
                        figures = one.turn(connections, options.seconds)
                        figures["all_core_ms"] = sum(figures["core_ms"].values())
                        turns[connections][system.name].append(figures)
                        print(f"{connections} connections: {system.name} {figures['rate']:.1f}/s", file=sys.stderr)
    return turns


def main() -> int:
    """Measure, and print a table for each number of connections; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help=f"a system; default: {', '.join(BEST)}")
    several = "ours with so many, each a system; and Mosec with as many that predict, where it is among --only"
    parser.add_argument("--model-servers", type=int, nargs="+", default=[], help=several)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="of this service: it first, and then this one")
    model_help = "of keras.applications, with random weights; none: costs nothing (default: %(default)s)"
    parser.add_argument("--model", default="MobileNetV2", help=model_help)
    runtime = "keras" if gpus.is_there_any() else "openvino"
    parser.add_argument("--runtime", choices=["openvino", "keras"], default=runtime, help="default here: %(default)s")
    parser.add_argument("--precision", help="default: auto; of MobileNetV2 float32")
    parser.add_argument("--alone", action="store_true", help="start each system for its turn, and stop it after it")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20, help="a turn (default: %(default)s)")
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 64])
    options = parser.parse_args()
    only = options.only or ([] if options.model_servers else BEST)
    model, settings = model_of(options), None
    if options.beside and model.name:
        settings = settings_of(model, options.runtime)
    elif options.runtime == "openvino":
        model = kept(model)
    turns = measured(chosen(only, options.model_servers, options.beside, settings), model, options)
    for connections, of in turns.items():
        print(f"\n{model.title}, {connections} connections\n")
        print("| | requests | ÷ first | p50 | ÷ first | p99 | core-ms a request | ÷ first | failed |")
        print("|---|---|---|---|---|---|---|---|---|")
        first = next(iter(of.values()))
        for name, found in of.items():
            print(line(name, found, first))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
