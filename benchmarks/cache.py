"""What CACHE_TTL_SECONDS brings: the same ten photos again and again, with the cache and without, every answer checked.

    python benchmarks/cache.py [--connections 64] [--turns 10] [--seconds 8] [--data FOLDER]

Needs wrk. Two services of this checkout are up, one of them with the cache; turns of the two follow each other, in an
order that alternates, and each has its ratio. An answer is right if it has the labels that the service without the
cache gives to the same photo, in their order, and the likeliest with the same probability (within 0.02: a batch of
another size rounds otherwise). FOLDER is that of the tests' real weights and photos (TEST_DATA); without one the
weights are random and the photos are made, and the answers of ten photos may be too much alike to tell them apart.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from load import cpu_seconds
from models import Model
from PIL import Image
from systems import BY_NAME, System, bodies, running, wait_until_it_answers

from serving.local.load_images import made_photo

HERE = Path(__file__).parent
PHOTOS = 10
WARM_UP_SECONDS = 3.0


def photos_of(data: Path | None) -> list[bytes]:
    """Ten photos: ten parts of the two that the folder has, or made ones."""
    if data is None:
        return [made_photo(seed) for seed in range(PHOTOS)]
    photos = []
    for path in sorted((data / "photos").glob("*.jpg"))[:2]:
        with Image.open(path) as opened:
            width, height = opened.size
            for step in range(PHOTOS // 2):
                file, cut = io.BytesIO(), step * min(width, height) // 40
                opened.crop((cut, cut, width - cut, height - cut)).save(file, "JPEG", quality=90)
                photos.append(file.getvalue())
    return photos


def settings_of(data: Path | None) -> dict[str, str]:
    """The service's settings for the light model."""
    own = {"MODEL": "MobileNetV2", "MODEL_PRECISION": "float32", "MODEL_LABELS": "numbers", "MODEL_WEIGHTS": "random"}
    if data is not None:
        own["MODEL_WEIGHTS"] = str(data / "mobilenet_v2_imagenet.weights.h5")
        own["MODEL_LABELS"] = str(data / "imagenet_class_index.json")
    return own


def answer(url: str, headers: list[str], body: bytes) -> bytes:
    """The service's answer to one body."""
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": headers[0]}), timeout=60) as found:
        return bytes(found.read())


def turn(url: str, processes: dict[str, int], connections: int, seconds: float, arguments: list[str]) -> dict[str, Any]:
    """Load one service: rate (right answers a second), p50_ms, p99_ms, wrong, failed, core_ms (by process)."""
    before = {name: cpu_seconds(pid) for name, pid in processes.items()}
    options = ["-t", "1", "-c", str(connections), "-d", f"{seconds:g}s", "--timeout", "30s", "-s", HERE / "cache.lua"]
    ran = subprocess.run(["wrk", *options, url, "--", *arguments], capture_output=True, text=True, check=False)
    if "RESULT " not in ran.stdout:
        raise SystemExit(f"wrk on {url} failed: {ran.stderr.strip()}\n{ran.stdout}")
    for line in ran.stdout.splitlines():
        if line.startswith("WRONG "):
            print(line, file=sys.stderr)
    found: dict[str, Any] = json.loads(ran.stdout.split("RESULT ", 1)[1].splitlines()[0])
    spent = {name: cpu_seconds(pid) - before[name] for name, pid in processes.items()}
    core_ms = {name: 1000 * seconds_spent / max(1, found["right"]) for name, seconds_spent in spent.items()}
    return found | {"rate": found["right"] / found["seconds"], "core_ms": core_ms}


def measured(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All turns, by `without` and `with` the cache."""
    photos, settings = photos_of(options.data), settings_of(options.data)
    kinds = {"without": "0", "with": "600"}
    with contextlib.ExitStack() as stack:
        up: dict[str, tuple[str, dict[str, int]]] = {}
        for kind, ttl in kinds.items():
            own = folder / kind
            own.mkdir()
            environment = settings | {"CACHE_TTL_SECONDS": ttl}
            system: System = dataclasses.replace(BY_NAME["ours, raw body"], environment=environment)
            up[kind] = stack.enter_context(running(system, Model("MobileNetV2", "MobileNetV2"), own))
            headers, files = bodies(system, photos, own)
            wait_until_it_answers(up[kind][0], headers, photos[0], own)
        expected = []
        for number, photo in enumerate(photos):
            expected.append(folder / f"expected-{number}")
            expected[-1].write_bytes(answer(up["without"][0], headers, photo))
        if len({path.read_bytes() for path in expected}) < PHOTOS:
            print("some of the photos have the same answer: that each gets its own is not shown", file=sys.stderr)
        arguments = [headers[0], "--", *files, "--", *map(str, expected)]
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for kind in kinds:
            turn(*up[kind], options.connections, WARM_UP_SECONDS, arguments)
        for number in range(options.turns):
            for kind in list(kinds)[:: 1 if number % 2 else -1]:
                found[kind].append(turn(*up[kind], options.connections, options.seconds, arguments))
                print(f"{kind} the cache: {found[kind][-1]['rate']:.1f}/s", file=sys.stderr)
    return found


def line(kind: str, turns: list[dict[str, Any]]) -> str:
    """A row of the table."""
    rate, p50_ms, p99_ms = (statistics.median(one[name] for one in turns) for name in ("rate", "p50_ms", "p99_ms"))
    cost = {part: statistics.median(one["core_ms"][part] for one in turns) for part in turns[0]["core_ms"]}
    parts = ", ".join(f"{part} {core_ms:.2f}" for part, core_ms in cost.items())
    bad = " | ".join(str(sum(one[name] for one in turns)) for name in ("right", "wrong", "failed"))
    return f"| {kind} | {rate:.1f}/s | {p50_ms:.1f} ms | {p99_ms:.0f} ms | {parts} | {bad} |"


def main() -> int:
    """Measure, and print a table; the exit status: 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=8.0, help="a turn (default: %(default)s)")
    data = os.environ.get("TEST_DATA")
    parser.add_argument("--data", type=Path, default=Path(data) if data else None, metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measured(options, Path(name))
    print("| cache | right answers | p50 | p99 | core-ms an answer | right | wrong | failed |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, turns in found.items():
        print(line(kind, turns))
    ratios = [one["rate"] / other["rate"] for other, one in zip(found["without"], found["with"], strict=True)]
    print(f"\nwith ÷ without: {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
    return int(any(one["wrong"] or one["failed"] for turns in found.values() for one in turns))


if __name__ == "__main__":
    raise SystemExit(main())
