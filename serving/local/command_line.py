"""The command line of queue_admin.py.

words --> verb, model, and what the verb takes
"""

import argparse
import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.jobs.peek import MOST_PEEKED
from serving.local.printing import printable


def parse_arguments(command_line: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """The command line: `verb`, for `dead` its `dead_verb`, `model` (None: not given), and the verb's arguments."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="queue_admin.py", description=description, formatter_class=form)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verb = add_verb(verbs, "status", "how the service is doing; exit status 1 if it is not well")
    verb.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    verb.add_argument("--json", action="store_true", help="JSON, for machines; with --watch a line a second")
    verb = add_verb(verbs, "servers", "the model servers: what each serves, and has in hand")
    verb.add_argument("--json", action="store_true", help="JSON, for machines")
    verb = add_verb(verbs, "peek", "the jobs that wait longest; no image leaves Redis")
    verb.add_argument("count", metavar="N", nargs="?", type=count_of_jobs, default=10, help="how many; 10")
    verb.add_argument("--bulk", action="store_true", help="of the asynchronous jobs")
    verb.add_argument("--json", action="store_true", help="JSON, for machines")
    add_changing_verbs(verbs)
    add_dead_verbs(verbs.add_parser("dead", help="the dead letters, jobs that were given up", formatter_class=form))
    arguments = parser.parse_args(command_line)
    if arguments.verb == "drain" and arguments.timeout and not arguments.wait:
        parser.error("--timeout says how long to --wait: give both")
    return arguments


def add_verb(verbs: Any, name: str, text: str, **options: str) -> argparse.ArgumentParser:
    """Add a verb, and return its parser; each verb takes --model."""
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, **options)
    verb.add_argument("--model", metavar="NAME", help="of this model alone; default: of all that the service has")
    return verb


def add_changing_verbs(verbs: Any) -> None:
    """What stops and starts the work of model servers and web servers."""
    for name, text in (
        ("quiet", "have a model server take no more; it ends what it has in hand"),
        ("wake", "have a quiet model server take again"),
    ):
        verb = add_verb(verbs, name, text, description=f"{text[0].upper()}{text[1:]}.")
        which = verb.add_mutually_exclusive_group(required=True)
        which.add_argument("server", metavar="SERVER", nargs="?", help="a beginning of its name that no other has, or")
        which.add_argument("--all", action="store_true", help="those that live now")
    add_verb(verbs, "pause", "have no model server take; web servers accept until their bounds")
    add_verb(verbs, "resume", "end a pause and a drain")
    verb = add_verb(verbs, "drain", "have web servers refuse what is new, while model servers empty both lanes")
    verb.add_argument("--wait", action="store_true", help="until nothing waits, and nothing is in hand")
    verb.add_argument("--timeout", metavar="SECONDS", type=seconds, help="wait no longer, and then end with 1")


def add_dead_verbs(parser: argparse.ArgumentParser) -> None:
    """What `dead` can do."""
    parser.description = "The dead letters, jobs that were given up. An ID may be a beginning that no other letter has."
    verbs = parser.add_subparsers(dest="dead_verb", required=True, metavar="list | show | requeue | drop")
    verb = add_verb(verbs, "list", "a line for each dead letter, oldest first")
    verb.add_argument("--json", action="store_true", help="a JSON list, for machines")
    verb = add_verb(verbs, "show", "all that is known of one")
    verb.add_argument("id", metavar="ID")
    verb.add_argument("--save", metavar="FILE.png", type=Path, help="write its image to this file")
    for name, text in (
        ("requeue", "put its job back at the end of the queue, as a new one"),
        ("drop", "delete it, its job with it"),
    ):
        verb = add_verb(verbs, name, text, description=f"{text[0].upper()}{text[1:]}.")
        which = verb.add_mutually_exclusive_group(required=True)
        which.add_argument("id", metavar="ID", nargs="?", help="this one, or")
        which.add_argument("--all", action="store_true", help="those that are there now, oldest first")


def count_of_jobs(text: str) -> int:
    """How many jobs the command line means. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_PEEKED):
        raise argparse.ArgumentTypeError(f"give a whole number from 1 to {MOST_PEEKED}, not {printable(text)!r}")
    return int(text)


def seconds(text: str) -> float:
    """The seconds that the command line means. Raises ArgumentTypeError."""
    with contextlib.suppress(ValueError):
        if 0 < (told := float(text)) < math.inf:
            return told
    raise argparse.ArgumentTypeError(f"give seconds above 0, not {printable(text)!r}")
