"""A process of its own that makes lines of JSON of what others write to standard output and standard error.

C++ libraries and crashes write there without asking Python. A server that logs JSON lets such lines run through this
program. It is another process, so that the last words of one that dies arrive as well.

    a server's standard output and error -- a pipe --> this program -- JSON, a line each --> its standard error

It is started by `logs`, imports nothing of ours, and ends with the last process that writes into the pipe.
"""

import json
import os
import re
import signal
import sys
import time

LONGEST_CHARACTERS = 16_384
OURS = '{"timestamp":'
# How Google's libraries in C++ begin their lines: level, month and day.
_GOOGLES = re.compile(r"([IWEF])\d{4} ")
_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "critical"}


def to_json(event: str, level: str, logger: str) -> str:
    """A line of a log, JSON in ASCII without a newline."""
    now = time.time()
    timestamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d}Z"
    told = {"timestamp": timestamp, "level": level, "logger": logger, "event": event[:LONGEST_CHARACTERS]}
    return json.dumps(told, separators=(",", ":")).replace("\x7f", "\\u007f")


def relayed(text: str) -> str:
    """What a server wrote, a line without its end, as JSON; a line that is JSON of ours already stays as it is."""
    if text.startswith(OURS) and text.endswith("}"):
        return text
    found = _GOOGLES.match(text)
    return to_json(text, _LEVELS[found[1]] if found else "info", "output")


def main() -> None:
    """Relay lines until nobody can write any more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the server decides when it ends
    os.chdir("/")
    for line in sys.stdin.buffer:
        # What is drawn over, as a progress bar is, was not meant to stay.
        text = line.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2].replace("\b", "")
        if text.strip():
            os.write(2, f"{relayed(text)}\n".encode())


if __name__ == "__main__":
    main()
