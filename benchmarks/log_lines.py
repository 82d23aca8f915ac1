"""What a line of the log costs the process that writes it, microseconds.

    python benchmarks/log_lines.py [--lines 20000]

The line of a request is written by serving.web.request_log from the notes of a request, as in the service, to a pipe
that another process reads. `warm`: CPU time, line after line, the least of five rounds. `decoding`: CPU time of a line
before which a photo was decoded, so that its code and data have left the caches, the median of 500. Beside it a
sentence by Python's logging.
"""

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from flask import Flask

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from serving.images.decode import open_image, to_pixels  # noqa: E402
from serving.local.load_images import made_photo  # noqa: E402
from serving.telemetry import logs  # noqa: E402
from serving.web.request_log import RequestLog  # noqa: E402
from serving.web.request_notes import PREDICT, RequestNotes  # noqa: E402


def some_notes() -> RequestNotes:
    """The notes of an ordinary request."""
    notes = RequestNotes(time.monotonic(), PREDICT, 0.312, 2.123, 0.551, 3.412, 5.023, 0.121, 12.342)
    notes.body_bytes, notes.images = 42_123, 1
    notes.job_ids = ["9f3b7c52-1111-4222-8333-123456789abc"]
    return notes


def warm(write: Callable[[], object], lines: int) -> float:
    """Microseconds of CPU for a line that follows another."""
    rounds = []
    for _ in range(5):
        began = time.process_time_ns()
        for _ in range(lines):
            write()
        rounds.append((time.process_time_ns() - began) / lines / 1000)
    return min(rounds)


def between_photos(write: Callable[[], object]) -> float:
    """Microseconds of CPU for a line that follows the decoding of a photo."""
    photo, times = made_photo(1), []
    for _ in range(500):
        to_pixels(open_image(photo, 50_000_000), 224, 224)
        began = time.thread_time_ns()
        write()
        times.append((time.thread_time_ns() - began) / 1000)
    return median(times)


def measure(log_format: str, lines: int) -> str:
    """Both costs, of both kinds of line, as a row of a table."""
    logs.set_up(log_format, "info")
    reader, sentence = RequestLog(), logging.getLogger("serving.benchmarks")
    with Flask(__name__).test_request_context("/predict", headers={"X-Request-ID": "0123456789abcdef" * 2}):
        notes = some_notes()
        kinds: list[Callable[[], object]] = [
            lambda: reader.answered(notes, 200),
            lambda: sentence.warning("%d more requests in the last %g s: %s", 12, 10.0, "too many images wait"),
        ]
        figures = [figure for write in kinds for figure in (warm(write, lines), between_photos(write))]
    return f"| {log_format} | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |"


def main() -> None:
    """Measure each form in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--form", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.form:
        said = os.dup(1)  # the log takes standard output
        os.write(said, f"{measure(arguments.form, arguments.lines)}\n".encode())
        return
    print(
        "| form | request, warm | decoding | sentence by logging, warm | decoding |\n|---|---|---|---|---|", flush=True
    )
    for form in ("text", "json"):
        command = [sys.executable, __file__, "--form", form, "--lines", str(arguments.lines)]
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader:
            assert reader.stdin is not None  # noqa: S101  (PIPE above; for mypy)
            subprocess.run(command, stderr=reader.stdin, check=True)
            reader.stdin.close()


if __name__ == "__main__":
    main()
