"""Throughput and latency against the offered load, from 10 % to 150 % of the capacity of a running service.

    python benchmarks/load_curve.py --plot docs/images/load-curve.png [--url http://127.0.0.1:5000] [--seconds 20]

The capacity is found in a closed loop of 64 connections; then requests come at random moments at a given rate (open
loop), and latency counts from the moment that a request was due.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHARES = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5)
CAPACITY_REQUESTS = 2000


def load(url: str, *options: str) -> dict[str, Any]:
    """stress_test.py's figures."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, ROOT / "stress_test.py", "--url", url, "--json", report.name, *options]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        figures: dict[str, Any] = json.loads(Path(report.name).read_text())
        return figures


def draw(points: list[dict[str, float]], capacity: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    rates, times = figure.subplots(1, 2)
    offered = [point["offered"] for point in points]
    rates.plot(offered, [point["answered"] for point in points], "o-", label="answered")
    rates.plot(offered, [point["refused"] for point in points], "s--", color="#E69F00", label="refused (503)")
    rates.plot([0, max(offered)], [0, max(offered)], color="grey", lw=0.8, label="offered")
    rates.axhline(capacity, color="black", ls=":", label=f"closed loop, 64 connections: {capacity:.0f}/s")
    rates.set(title="Throughput", xlabel="offered, requests a second", ylabel="requests a second")
    for name, style in (("p50", "o-"), ("p99", "s--")):
        times.plot(offered, [point[name] for point in points], style, label=name)
    times.axvline(capacity, color="black", ls=":")
    times.set(title="Latency of answered requests", xlabel="offered, requests a second", ylabel="ms", yscale="log")
    for panel in (rates, times):
        panel.grid(alpha=0.25)
        panel.legend()
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:5000")
    parser.add_argument("--seconds", type=float, default=20, help="at each rate (default: %(default)s)")
    parser.add_argument("--plot", type=Path, required=True)
    arguments = parser.parse_args()
    load(arguments.url, "--requests", "300")
    capacity = load(arguments.url, "--requests", str(CAPACITY_REQUESTS))["answered_per_s"]
    points = []
    print(f"capacity {capacity:.1f}/s\n| offered | answered | refused | p50 | p99 |\n|---|---|---|---|---|")
    for share in SHARES:
        rate = share * capacity
        count = max(20, int(rate * arguments.seconds))
        figures = load(arguments.url, "--rate", f"{rate:.3f}", "--requests", str(count))
        seconds = figures["wall_s"]
        outcomes, latency = figures["outcomes"], figures["latency_ms"]
        lost = figures["sent"] - outcomes["answered"] - outcomes["refused"]
        points.append(
            {
                "offered": rate,
                "answered": outcomes["answered"] / seconds,
                "refused": outcomes["refused"] / seconds,
                "p50": latency["p50"],
                "p99": latency["p99"],
            }
        )
        last = points[-1]
        print(
            f"| {share:.0%}, {rate:.1f}/s | {last['answered']:.1f}/s | {last['refused']:.1f}/s | {last['p50']:.0f} ms "
            f"| {last['p99']:.0f} ms |" + (f" {lost} neither" if lost else ""),
            flush=True,
        )
    arguments.plot.parent.mkdir(parents=True, exist_ok=True)
    draw(points, capacity, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
