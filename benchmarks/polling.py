"""What it costs a running service to be asked for /state and /metrics every second.

    make run                                # in another terminal
    python benchmarks/polling.py [--url http://127.0.0.1:5000] [--turns 12] [--seconds 6]

Turns with and without these questions follow each other, in an order that alternates. A ratio is of two neighbours.
"""

import argparse
import http.client
import statistics
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving.local.load_images import made_photo

PAGES = ("/state", "/metrics")


def turn(address: str, photo: bytes, connections: int, seconds: float, *, polls: bool) -> float:
    """Load the service for so many seconds; returns answers a second."""
    until, counts = time.monotonic() + seconds, [0] * connections

    def ask(place: int) -> None:
        connection = http.client.HTTPConnection(address)
        while time.monotonic() < until:
            connection.request("POST", "/predict", photo, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            response.read()
            counts[place] += response.status == 200
        connection.close()

    def poll() -> None:
        connection = http.client.HTTPConnection(address)
        while time.monotonic() < until:
            for page in PAGES:
                connection.request("GET", page)
                connection.getresponse().read()
            time.sleep(1)
        connection.close()

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(connections)]
    threads += [threading.Thread(target=poll)] if polls else []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:5000")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--connections", type=int, default=8)
    arguments = parser.parse_args()
    address, photo = urlsplit(arguments.url).netloc, made_photo(0)
    turn(address, photo, arguments.connections, 2.0, polls=False)
    rates: dict[bool, list[float]] = {False: [], True: []}
    for place in range(arguments.turns):
        for polls in (False, True) if place % 2 else (True, False):
            rates[polls].append(turn(address, photo, arguments.connections, arguments.seconds, polls=polls))
    ratios = [asked / unasked for unasked, asked in zip(rates[False], rates[True], strict=True)]
    print(f"unasked {statistics.median(rates[False]):.1f}/s, asked {statistics.median(rates[True]):.1f}/s")
    print(f"ratio {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
