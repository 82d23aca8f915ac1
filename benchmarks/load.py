"""Start a system and load it with wrk for a while: requests a second, latency, CPU time a request.

The first seconds, until every connection has its share, and what the end cuts off are left out: of a slow model, they
are whole batches. What is measured is how many requests are sent in between; in a closed loop each follows an answer.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from models import Model
from systems import START_SECONDS, System, bodies, running, wait_until_it_answers

HERE = Path(__file__).parent
MOST_RAMP_SECONDS, LAST_SECONDS, WARM_UP_SECONDS = 3.0, 0.2, 4
MOST_SETTLE_SECONDS, LOOK_SECONDS, IDLE_CORES = 30, 1.0, 0.3
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def family(root: int) -> list[int]:
    """A process and all that descend from it."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(pid): int(parent) for pid, parent in (line.split() for line in listed.splitlines())}
    found = [root]
    for process in found:
        found += [pid for pid, parent in parents.items() if parent == process]
    return found


def cpu_seconds(root: int) -> float:
    """CPU time so far, of a process and all that descend from it."""
    ticks = 0
    for pid in family(root):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_A_SECOND


def memory_mb(root: int) -> float:
    """Memory (PSS) of a process and all that descend from it."""
    total = 0
    for pid in family(root):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("Pss:")[1].split()[0])
    return total / 1024


def slope(moments: list[float], since: float, until: float) -> float:
    """Events a second: the slope of the line through their number over time. Counted, it would depend on how many whole
    batches fit in, by 3 % for one that takes half a second in a turn of 20; the line is off by a thousandth."""
    at = np.linspace(since, until, 1000)
    return float(np.polyfit(at - since, np.searchsorted(moments, at), 1)[0])


@dataclass
class Up:
    """A system that runs."""

    url: str
    processes: dict[str, int]  # name -> id
    headers: list[str]
    files: list[str]  # of the bodies

    def turn(self, connections: int, seconds: float) -> dict[str, Any]:
        """Load it: rate (requests a second), p50_ms, p99_ms, failed (requests), core_ms (process name -> its CPU time
        a request). Raises SystemExit when wrk fails."""
        options = ["-t", "1", "-c", str(connections), "-d", f"{seconds:g}s", "--timeout", "30s"]
        command = ["wrk", *options, "-s", HERE / "load.lua", self.url, "--", *self.headers, "--", *self.files]
        ends = time.monotonic() + seconds - LAST_SECONDS
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
            time.sleep(min(MOST_RAMP_SECONDS, seconds / 4))
            first = self._moment()
            time.sleep(max(0.0, ends - time.monotonic()))
            last = self._moment()
            printed, errors = client.communicate()
        if "RESULT " not in printed:
            raise SystemExit(f"wrk on {self.url} failed: {errors.strip()}\n{printed}")
        figures: dict[str, Any] = json.loads(printed.split("RESULT ", 1)[1].splitlines()[0])
        rate = slope(figures.pop("sent_at"), first["at"], last["at"])
        requests = max(1.0, rate * (last["at"] - first["at"]))
        core_ms = {name: 1000 * (last[name] - first[name]) / requests for name in self.processes}
        self._settle()
        return figures | {"rate": rate, "core_ms": core_ms}

    def memory_mb(self) -> float:
        """Memory (PSS) of all its processes."""
        return sum(memory_mb(pid) for pid in self.processes.values())

    def wait_for_all_model_servers(self) -> None:
        """Where this service has several, one alone answers already while the others compile."""
        several = sum(name.startswith("model") for name in self.processes)
        ready, until = 1, time.monotonic() + START_SECONDS
        while ready < several:
            if time.monotonic() > until:
                raise SystemExit(f"{self.url}: {ready} of {several} model servers are ready")
            time.sleep(0.2)
            with urllib.request.urlopen(self.url.replace("/predict", "/readyz"), timeout=30) as response:
                ready = json.load(response)["model_servers"]

    def _settle(self) -> None:
        """Wait until it is idle: the requests that the end cut off must not stand before those of the next turn."""
        until = time.monotonic() + MOST_SETTLE_SECONDS
        spent, before = 0.0, float("-inf")
        while spent - before > IDLE_CORES * LOOK_SECONDS and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
            before, spent = spent, sum(cpu_seconds(pid) for pid in self.processes.values())

    def _moment(self) -> dict[str, float]:
        """The time on the monotonic clock, and the CPU seconds of each process so far."""
        spent = {name: cpu_seconds(pid) for name, pid in self.processes.items()}
        return spent | {"at": time.monotonic()}


@contextlib.contextmanager
def started(system: System, model: Model, photos: list[bytes]) -> Iterator[Up]:
    """Start a system, wait until all of it answers, warm it up; stop it at the end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        headers, files = bodies(system, photos, folder)
        with running(system, model, folder) as (url, processes):
            wait_until_it_answers(url, headers, Path(files[0]).read_bytes(), folder)
            up = Up(url, processes, headers, files)
            up.wait_for_all_model_servers()
            up.turn(64, WARM_UP_SECONDS)
            yield up
