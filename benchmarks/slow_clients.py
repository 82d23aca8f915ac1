"""Ordinary requests beside clients that send a byte and stop, and beside one that posts 50-megapixel PNGs; no model.

    python benchmarks/slow_clients.py [--beside ../before] [--dribbling 1800] [--turns 2]

Ordinary requests come one after the other (beside PNGs: from four clients at once), each a new connection, as browsers'
do. --beside measures another checkout of this service as well, in turns.
"""

import argparse
import contextlib
import io
import resource
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from statistics import median, quantiles

from models import NO_MODEL
from PIL import Image
from systems import BOUNDARY, bodies, running, wait_until_it_answers
from turns import chosen

from serving.local.load_images import made_photo

HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 40000\r\n\r\nx"
ORDINARY, PNG_SECONDS, CLIENTS = 200, 15, 4


def ask(url: str, body: bytes, kind: str) -> float:
    """Seconds until a request is answered, whatever it says."""
    began = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": kind}), timeout=120) as response:
        response.read()
    return time.perf_counter() - began


def told(name: str, seconds: list[float]) -> str:
    ms = [1000 * value for value in seconds]
    return f"| {name} | {len(ms)} | {median(ms):.1f} ms | {quantiles(ms, n=100)[98]:.1f} ms | {max(ms):.0f} ms |"


def dribble(url: str, count: int, stack: contextlib.ExitStack) -> None:
    host, _, port = url.split("/")[2].partition(":")
    for _ in range(count):
        connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
        connection.sendall(HEAD)


def beside_dribblers(url: str, form: bytes, kind: str, count: int) -> list[str]:
    rows = [told("alone", [ask(url, form, kind) for _ in range(ORDINARY)])]
    with contextlib.ExitStack() as stack:
        dribble(url, count, stack)
        time.sleep(0.5)
        rows.append(told(f"beside {count} that dribble", [ask(url, form, kind) for _ in range(ORDINARY)]))
    return rows


def beside_pngs(url: str, form: bytes, kind: str, png: bytes) -> list[str]:
    until = time.monotonic() + PNG_SECONDS
    seconds: list[float] = []
    pngs: list[float] = []

    def post(into: list[float], body: bytes, of: str) -> None:
        while time.monotonic() < until:
            into.append(ask(url, body, of))

    threads = [threading.Thread(target=post, args=(seconds, form, kind)) for _ in range(CLIENTS)]
    threads.append(threading.Thread(target=post, args=(pngs, png, "image/png")))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [told(f"beside 50-megapixel PNGs ({len(pngs)} of them)", seconds)]


def main() -> int:
    """The tables, on standard output; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="of this service: it first, and then this one")
    parser.add_argument("--dribbling", type=int, default=1800)
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    file = io.BytesIO()
    Image.effect_mandelbrot((7070, 7070), (-2.0, -1.5, 1.0, 1.5), 20).convert("RGB").save(file, "PNG", compress_level=1)
    with contextlib.ExitStack() as stack:
        up = {}
        for system in chosen(["ours"], [], options.beside):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            headers, files = bodies(system, [made_photo(0)], folder)
            url, _ = stack.enter_context(running(system, NO_MODEL, folder))
            wait_until_it_answers(url, headers, Path(files[0]).read_bytes(), folder)
            up[system.name] = url
        form, kind = Path(files[0]).read_bytes(), f"multipart/form-data; boundary={BOUNDARY}"
        for number in range(options.turns):
            for name, url in list(up.items())[:: 1 if number % 2 else -1]:
                print(f"\n{name}, turn {number + 1}\n\n| ordinary requests | | median | p99 | longest |")
                print("|---|---|---|---|---|", flush=True)
                for row in beside_dribblers(url, form, kind, options.dribbling):
                    print(row, flush=True)
                print(*beside_pngs(url, form, kind, file.getvalue()), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
