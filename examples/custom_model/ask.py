"""Draws pictures that the network has never seen, sends them to a running service, and tells which answers are right.

    shapes.py: a picture with its label --> PNG --> POST /predict --> the likeliest label --> right, or wrong

Exit status: 0 if nine of ten answers are right, 1 if fewer are, 2 if the service does not answer.
"""

import argparse
import io
import json
import sys
import time
import urllib.error
import urllib.request

import shapes
from PIL import Image

TIMEOUT_SECONDS = 60.0


def main() -> int:
    """Ask about each picture, print a line for each, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", default="http://localhost:5000", help="the service (default: %(default)s)")
    parser.add_argument(
        "--pictures", type=shapes.count, default=12, help="how many to ask about (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 10**6, help="the same seed draws the same pictures"
    )
    arguments = parser.parse_args()
    right = 0
    for picture, label in shapes.pictures(arguments.pictures, arguments.seed, side=256):
        try:
            answer, probability = ask(arguments.url, picture)
        except (OSError, ValueError, KeyError) as error:
            print(f"{arguments.url} does not answer as this service: {said(error)}", file=sys.stderr)
            return 2
        right += answer == label
        print(f"{label:10} {answer:10} {probability:7.2%}  {'right' if answer == label else 'WRONG'}", flush=True)
    print(f"{right} of {arguments.pictures} right.")
    return 0 if right >= 0.9 * arguments.pictures else 1


def ask(url: str, picture: Image.Image) -> tuple[str, float]:
    """Return the likeliest label of a picture, and its probability 0..1. Raises OSError, ValueError, KeyError."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    address = f"{url if '://' in url else f'http://{url}'}/predict"
    request = urllib.request.Request(address, file.getvalue(), {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        first = json.load(response)["predictions"][0]
    return first["label"], first["probability"]


def said(error: Exception) -> str:
    """Return what went wrong: the service's own words, if it said any."""
    if isinstance(error, KeyError):
        return "its answer has no predictions"
    if isinstance(error, urllib.error.HTTPError):
        return error.read().decode(errors="replace").strip() or str(error)
    return str(getattr(error, "reason", error))


if __name__ == "__main__":
    sys.exit(main())
