"""The most that a service of this shape could reach on these cores, whatever its code: its parts, each bare and hot.

    make .venv-bench/.ready && python benchmarks/shape.py [--kind resnet50] [--only ours --only Triton]

The shape is given: a Flask view under gunicorn, and pixels as base64 through a Redis list. Measured, in core-ms an
image and of all processes: decoding and the model (bench.py's floor); an empty Flask view that reads its body, by the
cheapest kind of gunicorn's workers; and a job's way, by commands packed beforehand over one socket. What makes a
service of these (admission, leases, waking, hand-overs, cold caches) is left out, so the rate that their sum leaves is
out of reach. Beside it other servers, each started alone, as by bench.py.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import numpy as np
from bench import floor
from load import Up, cpu_seconds, started
from models import KINDS, kept
from scaling import private_redis, some_image
from systems import CPUS, ROOT, System, bodies, named

import helpers
from serving.local import redis_server
from serving.local.load_images import made_photo

CONNECTIONS, WARM_UP_SECONDS, SECONDS, JOBS = 64, 2, 4, 16
ANSWER = json.dumps([{"label": f"class {place}", "probability": 0.2} for place in range(5)]).encode()
VIEW = f"""
from flask import Flask, Response, request
app = Flask(__name__)
@app.post("/predict")
def predict():
    request.get_data(cache=False)
    return Response({ANSWER!r}, mimetype="application/json")
"""
BESIDE = ["ours", "Triton", "Mosec", "LitServe"]
# Three of gunicorn's own, the last of which is this service's: whichever costs the least.
WORKERS = [
    ["-k", "sync"],
    ["-k", "gthread", "--threads", str(CONNECTIONS)],
    ["-k", "gevent"],
]


def empty_view(photos: list[bytes], worker: list[str]) -> float:
    """core-ms a request of a Flask view that does nothing."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), redis_server.free_port()
        (folder / "view.py").write_text(VIEW)
        headers, files = bodies(System("", lambda *_: {}, "/predict", None), photos, folder)
        command = [sys.executable, "-m", "gunicorn", "-w", str(CPUS), *worker, "-b", f"127.0.0.1:{port}", "view:app"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
        try:
            time.sleep(WARM_UP_SECONDS)
            up = Up(f"http://127.0.0.1:{port}/predict", {"web": server.pid}, headers, files)
            up.turn(CONNECTIONS, WARM_UP_SECONDS)
            said = up.turn(CONNECTIONS, SECONDS)
            if said["failed"] or not said["requests"]:
                raise SystemExit(f"the empty view did not answer: {said}")
            return float(said["core_ms"]["web"])
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


def packed(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def way_of_a_job() -> float:
    """core-ms a job, Redis's included, of base64, RPUSH, LPOP, base64 again, SET and MGET, for several at a time."""
    image, shape = some_image(), (224, 224, 3)
    text = image.encode()
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    push, take = packed(b"RPUSH", b"queue", *[text] * JOBS), packed(b"LPOP", b"queue", b"%d" % JOBS)
    answer = b"".join(packed(b"SET", b"id-%d" % job, ANSWER) for job in range(JOBS))
    look = packed(b"MGET", *[b"id-%d" % job for job in range(JOBS)])
    replies = [b":%d\r\n" % JOBS, packed(*[text] * JOBS), b"+OK\r\n" * JOBS, packed(*[ANSWER] * JOBS)]
    buffer = memoryview(bytearray(max(map(len, replies))))
    with tempfile.TemporaryDirectory() as folder, private_redis(folder) as (url, pid):
        address = urlsplit(url)
        connection = socket.create_connection((address.hostname, address.port))

        def step(*, checks: bool = False) -> None:
            for _ in range(JOBS):
                helpers.encode_image(pixels, "uint8")
            for said, reply in zip((push, take, answer, look), replies, strict=True):
                connection.sendall(said)
                got = 0
                while got < len(reply):
                    got += connection.recv_into(buffer[got : len(reply)])
                if checks and bytes(buffer[: len(reply)]) != reply:
                    raise SystemExit(f"Redis said {bytes(buffer[:80])!r}")
            for _ in range(JOBS):
                helpers.decode_image(image, shape, "uint8")

        with connection:
            step(checks=True)
            jobs, began, before = 0, time.monotonic(), cpu_seconds(pid) + time.process_time()
            while time.monotonic() - began < SECONDS:
                step()
                jobs += JOBS
            return 1000 * (cpu_seconds(pid) + time.process_time() - before) / jobs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", metavar="NAME", help=f"a server; default: {', '.join(BESIDE)}")
    parser.add_argument("--kind", choices=["resnet50", "mobilenetv2"], default="mobilenetv2")
    parser.add_argument("--seconds", type=float, default=24, help="a server's turn (default: %(default)s)")
    options = parser.parse_args()
    others = named(options.only or BESIDE)
    photos, model = [made_photo(seed) for seed in range(4)], kept(KINDS[options.kind])
    parts: dict[str, list[float]] = {"decoding": [], "the model": [], "an empty Flask view": [], "a job's way": []}
    most: list[float] = []
    rates: dict[str, list[float]] = {system.name: [] for system in others}
    for _ in range(options.rounds):
        bare = floor(model, photos)
        view = min(empty_view(photos, worker) for worker in WORKERS)
        found = [bare["decode_ms"], bare["model_core_ms"], view, way_of_a_job()]
        for part, core_ms in zip(parts.values(), found, strict=True):
            part.append(core_ms)
        most.append(1000 * CPUS / sum(found))
        for system in others:
            with started(system, model, photos) as up:
                rates[system.name].append(float(up.turn(CONNECTIONS, options.seconds)["rate"]))
    for name, core_ms in parts.items():
        print(f"{name}: {median(core_ms):.2f} core-ms")
    print(f"at most {median(most):.1f}/s")
    for name, found in rates.items():
        shares = [bound / rate for bound, rate in zip(most, found, strict=True)]
        print(
            f"{name}: {median(found):.1f}/s; that is {median(shares):.2f} of it ({min(shares):.2f}-{max(shares):.2f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
