"""What a load costs the program that sends it: on aiohttp, as stress_test.py, and on httpx2, through client.py.

    python benchmarks/load_clients.py --url http://127.0.0.1:5000 [--turns 10] [--requests 3000] [--concurrency 64]

Each turn is a process of its own, one after the other in alternating order. Give it a service with a light model: with
a heavy one all wait for the model alike.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import yarl

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from client import AsyncClient  # noqa: E402
from serving.local.load import Load  # noqa: E402
from serving.local.load_images import load_bodies, made_photo  # noqa: E402
from serving.local.load_report import summarise  # noqa: E402

KINDS = ("aiohttp", "client.py")


async def with_aiohttp(options: argparse.Namespace) -> dict[str, float]:
    """The figures of one turn as stress_test.py sends it."""
    load = Load(yarl.URL(options.url) / "predict", options.requests, options.concurrency)
    load.bodies = load_bodies(None, 1, is_raw=True, seed=0)
    await load.run()
    numbers = summarise(load)
    assert numbers["outcomes"]["answered"] == options.requests, numbers["outcomes"]  # noqa: S101
    latency_ms = numbers["latency_ms"]
    return {
        "rate": numbers["answered_per_s"],
        "p50_ms": latency_ms["p50"],
        "p99_ms": latency_ms["p99"],
        "core_ms": numbers["client_cpu_ms_per_request"],
    }


async def with_client(options: argparse.Namespace) -> dict[str, float]:
    """The figures of the same turn through client.py."""
    image, latencies_ms, left = made_photo(0), [], options.requests
    async with AsyncClient(options.url, tries=1) as client:

        async def user() -> None:
            nonlocal left
            while left:
                left -= 1
                sent = time.perf_counter()
                await client.predict(image)
                latencies_ms.append(1000 * (time.perf_counter() - sent))

        began, cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(user() for _ in range(options.concurrency)))
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    latencies_ms.sort()
    count = len(latencies_ms)
    return {
        "rate": count / wall_s,
        "p50_ms": latencies_ms[count // 2],
        "p99_ms": latencies_ms[count * 99 // 100],
        "core_ms": 1000 * cpu_s / count,
    }


def main() -> int:
    """Measure, and print a table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:5000")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--one", choices=KINDS, help="a single turn, as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asyncio.run((with_aiohttp if options.one == "aiohttp" else with_client)(options))))
        return 0
    turns: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for number in range(options.turns):
        for kind in KINDS[:: 1 if number % 2 else -1]:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", kind]
            turns[kind].append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    print("| | answered | ratio (lowest to highest) | p50 | p99 | core-ms of the load |\n|---|---|---|---|---|---|")
    for kind, own in turns.items():
        middle = {name: median(turn[name] for turn in own) for name in own[0]}
        ratios = [mine["rate"] / first["rate"] for mine, first in zip(own, turns[KINDS[0]], strict=True)]
        print(
            f"| {kind} | {middle['rate']:.0f}/s | {median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {middle['p50_ms']:.1f} ms | {middle['p99_ms']:.0f} ms | {middle['core_ms']:.2f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
