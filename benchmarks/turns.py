"""Some of bench.py's systems all up at once, loaded in short turns, one after the other: for ratios on a busy machine.

    python benchmarks/turns.py [--only ours --only Triton --only Mosec] [--turns 5] [--connections 16 64]
    KERAS_BACKEND=jax python benchmarks/turns.py --model ResNet50 --model-servers 1 2 4      # on a GPU
    python benchmarks/turns.py --beside ../before --model none                  # another checkout, and this one

A ratio is the median over the turns of a system's figure divided by the first system's in the same turn, so that what
the machine does meanwhile strikes both. Idle systems stand by: their memory is there, and costs a little.
"""

import argparse
import contextlib
import dataclasses
import json
import tempfile
import time
import urllib.request
from functools import partial
from pathlib import Path
from statistics import median

from bench import cpu_seconds, keep, wrk
from systems import START_SECONDS, SYSTEMS, System, bodies, ours, running, wait_until_it_answers

from stress_test import made_photo

WARM_UP_SECONDS = 2
BEST = ["ours", "Triton", "Mosec"]

Figures = dict[str, float]


@dataclasses.dataclass
class Up:
    """A system that runs."""

    url: str
    processes: dict[str, int]
    headers: list[str]
    files: list[str]

    def wait_for_all_model_servers(self) -> None:
        """Where there are several, one alone answers already while the others compile."""
        several = sum(name.startswith("model") for name in self.processes)
        ready, until = 1, time.monotonic() + START_SECONDS
        while ready < several:
            if time.monotonic() > until:
                raise SystemExit(f"{self.url}: {ready} of {several} model servers are ready")
            time.sleep(0.2)
            with urllib.request.urlopen(self.url.replace("/predict", "/readyz"), timeout=30) as response:
                ready = json.load(response)["model_servers"]

    def turn(self, connections: int, seconds: float) -> Figures:
        before = {name: cpu_seconds(pid) for name, pid in self.processes.items()}
        said = wrk(self.url, connections, seconds, self.headers, self.files)
        spent = {name: cpu_seconds(pid) - before[name] for name, pid in self.processes.items()}
        core_ms = {name: 1000 * used / max(1, said["requests"]) for name, used in spent.items()}
        return said | {"rate": said["requests"] / said["seconds"], "core_ms": sum(core_ms.values())} | core_ms


def line(name: str, turns: list[Figures], first: list[Figures], parts: list[str]) -> str:
    middle = {figure: median(turn[figure] for turn in turns) for figure in turns[0]}
    ratio = {
        figure: median(mine[figure] / max(other[figure], 1e-9) for mine, other in zip(turns, first, strict=True))
        for figure in ("rate", "p50_ms", "core_ms")
    }
    cost = ", ".join(f"{part} {middle[part]:.2f}" for part in parts)
    failed = sum(turn["failed"] for turn in turns)
    return (
        f"| {name} | {middle['rate']:.1f}/s | {ratio['rate']:.2f} | {middle['p50_ms']:.1f} ms | {ratio['p50_ms']:.2f} "
        f"| {middle['p99_ms']:.0f} ms | {middle['core_ms']:.2f} ({cost}) | {ratio['core_ms']:.2f} | {failed:.0f} |"
    )


def chosen(names: list[str], servers: list[int], beside: Path | None) -> list[System]:
    by_name = {system.name: system for system in SYSTEMS}
    if beside:
        other = dataclasses.replace(by_name["ours"], name=str(beside), commands=partial(ours, root=beside.absolute()))
        return [dataclasses.replace(other, environment={"PYTHONPATH": str(beside.absolute())}), by_name["ours"]]
    if unknown := set(names) - set(by_name):
        raise SystemExit(f"no such system: {', '.join(sorted(unknown))}. There are {', '.join(by_name)}.")
    found = [by_name[name] for name in names]
    for count in servers:
        several = partial(ours, servers=count)
        found.append(dataclasses.replace(by_name["ours"], name=f"ours, {count} model servers", commands=several))
        if "Mosec" in names:
            predictors = {"BENCH_PREDICTORS": str(count)}
            found.append(dataclasses.replace(by_name["Mosec"], name=f"Mosec, {count} predict", environment=predictors))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help=f"a system; default: {', '.join(BEST)}")
    several = "ours with so many, each a system; and Mosec with as many that predict, where it is among --only"
    parser.add_argument("--model-servers", type=int, nargs="+", default=[], help=several)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="of this service: it first, and then this one")
    parser.add_argument("--model", help="of keras.applications, by KERAS_BACKEND; none: costs nothing")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 64])
    options = parser.parse_args()
    only = options.only or ([] if options.model_servers else BEST)
    model = {None: lambda: keep("random"), "none": str}.get(options.model, lambda: options.model)()
    photos, up = [made_photo(seed) for seed in range(4)], {}
    with contextlib.ExitStack() as stack:
        folders = []
        for system in chosen(only, options.model_servers, options.beside):
            folders.append(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            headers, files = bodies(system, photos, folders[-1])
            url, processes = stack.enter_context(running(system, model, folders[-1]))
            up[system.name] = Up(url, processes, headers, files)
        for one, folder in zip(up.values(), folders, strict=True):
            wait_until_it_answers(one.url, one.headers, Path(one.files[0]).read_bytes(), folder)
            one.wait_for_all_model_servers()
        for connections in options.connections:
            print(f"\n{connections} connections\n")
            print("| | requests | ÷ first | p50 | ÷ first | p99 | core-ms a request | ÷ first | failed |")
            print("|---|---|---|---|---|---|---|---|---|", flush=True)
            turns: dict[str, list[Figures]] = {name: [] for name in up}
            for one in up.values():
                one.turn(connections, WARM_UP_SECONDS)
            for number in range(options.turns):
                for name in list(up)[:: 1 if number % 2 else -1]:
                    turns[name].append(up[name].turn(connections, options.seconds))
            first = next(iter(turns.values()))
            for name, found in turns.items():
                print(line(name, found, first, list(up[name].processes)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
