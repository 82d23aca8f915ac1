"""Ten minutes at 80 % of what the service can do: does memory grow, is everything answered, what is left in Redis?

    python benchmarks/soak.py [--minutes 10] [--share 0.8] [--json figures.json]

Starts the whole service (run_service.py, with the settings of the environment) and a Redis of its own, finds its
capacity in a closed loop, brings as many requests at once as it ever has in hand, for heaps and threads grow to what
the fullest moment needs and stay so, then sends at a rate. Memory is the resident memory of each kind of process,
without what they share (Pss), sampled every few seconds; compared are the medians of the second and of the last minute.
Exit status: 0; 1 if a request was not answered, memory grew by 2 %, or a key is left that has no purpose.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import redis  # noqa: E402

from serving.local import redis_server  # noqa: E402

KINDS = {"run_web_server.py": "web processes", "run_model_server.py": "model server"}
LASTING = {f"{{image_queue}}:{key}" for key in ("served", "emptied", "settled", "workers")}
SAMPLE_SECONDS, MINUTE = 2.0, 60.0
CAPACITY_REQUESTS = 1500
AT_ONCE, FULL_REQUESTS = 800, 4000  # more than there are places in two web processes
MOST_GROWTH = 0.02


@contextlib.contextmanager
def service() -> Iterator[tuple[str, redis.Redis, int]]:
    """The address of a running service, its Redis, and the process that started it."""
    server = redis_server.find_server()
    if server is None:
        raise SystemExit("No Redis server is installed.")
    web, port = redis_server.free_port(), redis_server.free_port()
    settings = {"WEB_PORT": str(web), "METRICS_PORT": "0", "REDIS_URL": f"redis://127.0.0.1:{port}/0"}
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        queue = subprocess.Popen(redis_server.command(server, port, folder), stdout=log)
        time.sleep(0.5)
        started = subprocess.Popen([sys.executable, ROOT / "run_service.py"], env=os.environ | settings, stderr=log)
        try:
            while "Ready after" not in (said := (Path(folder) / "log").read_text(errors="replace")):
                if started.poll() is not None:
                    raise SystemExit(said)
                time.sleep(0.2)
            yield f"http://127.0.0.1:{web}", redis.Redis(port=port), queue.pid
        finally:
            started.send_signal(signal.SIGTERM)
            started.wait(timeout=60)
            queue.terminate()
            queue.wait(timeout=10)


def memory_mb(redis_pid: int) -> dict[str, float]:
    """The memory of each kind of process, MB."""
    found: dict[str, float] = defaultdict(float)
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        pid, command = line.split(maxsplit=1)
        kinds = [kind for script, kind in KINDS.items() if str(ROOT / script) in command]
        for kind in ["Redis"] if int(pid) == redis_pid else kinds:
            with contextlib.suppress(OSError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                found[kind] += int(rollup.split("Pss:")[1].split()[0]) / 1024
    return found


def load(url: str, *options: str) -> dict[str, object]:
    """stress_test.py's figures."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, ROOT / "stress_test.py", "--url", url, "--json", report.name, *options]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        figures: dict[str, object] = json.loads(Path(report.name).read_text())
        return figures


def sample(into: list[tuple[float, dict[str, float]]], redis_pid: int, stop: threading.Event) -> None:
    began = time.monotonic()
    while not stop.wait(SAMPLE_SECONDS):
        into.append((time.monotonic() - began, memory_mb(redis_pid)))
        if sys.stderr.isatty():
            print(f"\r{time.monotonic() - began:5.0f} s", end="", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--share", type=float, default=0.8, help="of the capacity (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    samples: list[tuple[float, dict[str, float]]] = []
    with service() as (url, client, redis_pid):
        capacity = float(load(url, "--requests", str(CAPACITY_REQUESTS))["answered_per_s"])  # type: ignore[arg-type]
        rate = arguments.share * capacity
        load(url, "--concurrency", str(AT_ONCE), "--requests", str(FULL_REQUESTS))
        print(f"capacity {capacity:.1f}/s; {rate:.1f}/s for {arguments.minutes:g} minutes", flush=True)
        stop = threading.Event()
        watch = threading.Thread(target=sample, args=(samples, redis_pid, stop))
        watch.start()
        figures = load(url, "--rate", f"{rate:.2f}", "--requests", str(int(rate * 60 * arguments.minutes)))
        stop.set()
        watch.join()
        time.sleep(2)
        keys = sorted(key.decode() for key in client.keys("*"))
    growth = {}
    for kind in [*KINDS.values(), "Redis"]:
        first = median(now[kind] for at, now in samples if MINUTE <= at < 2 * MINUTE)
        last = median(now[kind] for at, now in samples if at > samples[-1][0] - MINUTE)
        growth[kind] = last / first - 1
        print(f"{kind:14} {first:8.1f} MB in the second minute, {last:8.1f} in the last: {growth[kind]:+.2%}")
    print("outcomes:", figures["outcomes"], "latency:", figures["latency_ms"])
    print("keys left:", keys)
    if arguments.json:
        arguments.json.write_text(json.dumps({"samples": samples, "figures": figures["outcomes"], "keys": keys}))
    all_answered = figures["outcomes"]["answered"] == figures["sent"]  # type: ignore[index]
    return int(not all_answered or max(growth.values()) >= MOST_GROWTH or not set(keys) <= LASTING)


if __name__ == "__main__":
    sys.exit(main())
