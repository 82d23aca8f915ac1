"""The dead letters: jobs that were given up. Look at them, send them through the service once more, or drop them.

    {image_queue}:dead -- list, show --> what failed, when, why; the image as a file
                       -- requeue -----> the end of image_queue --> a model server --> the answer, under the job's id
                       -- drop --------> nowhere

    python dead_letters.py list
    python dead_letters.py show 3f2b9c04 --save image.png
    python dead_letters.py requeue 3f2b9c04      then: redis-cli get <the whole id>
    python dead_letters.py requeue --all
    python dead_letters.py drop 3f2b9c04

An ID is a job's id, or what `list` shows in its place; a beginning that no other letter has will do. The settings are
the service's: REDIS_URL, IMAGE_QUEUE, IMAGE_WIDTH, IMAGE_HEIGHT. While REDIS_URL is not set, they are those of the
service that `make run` started from this folder, if one runs. Exit status: 0 done; 1 there is no such letter, or the
command failed for one; 2 a wrong setting, or Redis does not answer.
"""

if __name__ == "__main__":  # before the imports of what may be missing
    from serving.local.packages import check

    check()

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

import settings
from serving import errors
from serving.jobs.job import Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.operator import Letter, drop, find, read_letters, requeue, short_name
from serving.jobs.served import ServedNow
from serving.local import running_service

HERE = Path(__file__).parent
EXIT_NOT_DONE = 1
WIDE_CHARACTERS = 1000  # the width of a pipe, as for `| grep`; on a screen a line is cut off at the edge
MOST_GARBAGE_SHOWN_BYTES = 200


def main() -> int:
    """Do what the command line says; return the exit status."""
    arguments = parse_arguments()
    config = settings.load()
    try:
        reached = running_service.connect(HERE, config.redis_url, config.image_queue, config.model_fields_set)
        with contextlib.closing(reached) as queue:
            width, height = config.input_size() or ServedNow(queue).input_size()
            return run(arguments, queue, (height, width, 3))
    except errors.QueueAway as error:
        print(error, file=sys.stderr)
        return error.exit_status


def parse_arguments() -> argparse.Namespace:
    """The command line: `verb`, and its arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list | show | requeue | drop")
    verb = verbs.add_parser("list", help="a line for each dead letter, oldest first")
    verb.add_argument("--json", action="store_true", help="a JSON list, for machines")
    verb = verbs.add_parser("show", help="all that is known of one")
    verb.add_argument("id", metavar="ID")
    verb.add_argument("--save", metavar="FILE.png", type=Path, help="write its image to this file")
    for name, text in (
        ("requeue", "put its job back at the end of the queue, as a new one"),
        ("drop", "delete it, its job with it"),
    ):
        verb = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        which = verb.add_mutually_exclusive_group(required=True)
        which.add_argument("id", metavar="ID", nargs="?", help="this one, or")
        which.add_argument("--all", action="store_true", help="those that are there now, oldest first")
    return parser.parse_args()


def run(arguments: argparse.Namespace, queue: JobQueue, shape: tuple[int, ...]) -> int:
    """Read the letters, choose those that `arguments` mean, act on them; return the exit status. Raises QueueAway."""
    letters = read_letters(queue)
    match arguments.verb:
        case "list":
            print_json(letters) if arguments.json else print_table(letters)
            return 0
        case "show":
            return show(named(arguments.id, letters), arguments.save, shape)
    # --all does not mean letters that come from now on: nobody has seen them.
    chosen = letters if arguments.all else [named(arguments.id, letters)]
    return act_on_each(chosen, arguments.verb, queue)


def print_table(letters: Sequence[Letter]) -> None:
    """Print a line for each letter."""
    if not letters:
        print("There are no dead letters.")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("id", "when", "attempts", "size"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("attempts", "size") else "left")
    table.add_column("reason")
    for letter in letters:
        row = short_name(letter, letters), moment(letter.at), str(letter.attempts), decimal(len(letter.job))
        table.add_row(*row, Text(printable(letter.reason), no_wrap=True, overflow="ellipsis"))
    console = Console(width=None if sys.stdout.isatty() else WIDE_CHARACTERS)
    with console.capture() as lines:
        console.print(table)
    for line in lines.get().splitlines():
        print(line.rstrip())  # rich fills each line up to the longest


def print_json(letters: Sequence[Letter]) -> None:
    """Print letters as JSON: `name` is what the other commands take, `at` unix seconds, `size` the job's, in bytes."""
    told = [
        {
            **{"name": letter.name, "id": letter.id, "digest": letter.digest},
            **{"at": letter.at if math.isfinite(letter.at) else None, "attempts": letter.attempts},
            **{"reason": letter.reason, "size": len(letter.job)},
        }
        for letter in letters
    ]
    print(json.dumps(told, indent=1))


def show(letter: Letter, save_to: Path | None, shape: tuple[int, ...]) -> int:
    """Print a letter's fields, a line each; write its image to the file `save_to`, if any; return the exit status."""
    fields: dict[str, object] = {
        **{"id": letter.id, "digest": letter.digest, "when": moment(letter.at)},
        **{"attempts": letter.attempts, "reason": letter.reason, "size": f"{len(letter.job):,} bytes"},
    }
    try:
        job = Job.from_text(letter.job)
        fields |= {"dtype": job.dtype, "shape": job.shape, "deadline": moment(job.deadline), "reply to": job.reply_to}
        fields |= {"image": f"{len(job.image):,} characters"}
    except errors.BadJob as error:
        fields |= {"no job": error, "it begins": ascii(letter.job[:MOST_GARBAGE_SHOWN_BYTES])[1:]}
    for name, value in fields.items():
        print(f"{name:<10}{'none' if value is None else printable(str(value))}")
    return save(letter, save_to, shape) if save_to else 0


def save(letter: Letter, path: Path, shape: tuple[int, ...]) -> int:
    """Write the image of a letter's job to a file; return the exit status."""
    # Imported late: nothing else here needs numpy and Pillow.
    import helpers
    from serving.images.decode import save_image

    try:
        job = Job.from_text(letter.job)
        save_image(helpers.decode_image(job.image, shape_of(job, shape), job.dtype), path)
        print(f"saved     {path}")
        return 0
    except (errors.BadJob, ValueError) as error:
        print(f"There is no image to save: {printable(str(error))}.", file=sys.stderr)
    except OSError as error:
        print(f"{path} cannot be written: {error.strerror or error}.", file=sys.stderr)
    return EXIT_NOT_DONE


def shape_of(job: Job, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width, 3 as the job tells them, else as `shape` does. Raises ValueError when they are no image's."""
    told = job.shape or shape
    height, width, channels = told[-3:] if len(told) in (3, 4) else (0, 0, 0)  # four, the first 1: the tutorial's
    if channels != 3 or min(height, width) < 1:
        raise ValueError(f"its shape is {told}")
    return height, width, channels


def act_on_each(letters: Sequence[Letter], verb: str, queue: JobQueue) -> int:
    """Requeue or drop each letter, say of each what came of it; return the exit status. Raises QueueAway."""
    act, done = (requeue, "requeued") if verb == "requeue" else (drop, "dropped")
    failed = 0
    for letter in letters:
        try:
            problem = "" if act(queue, letter) else "it has gone meanwhile"
        except errors.BadJob as error:
            problem = printable(str(error))
        if problem:
            print(f"{letter.name} cannot be {done}: {problem}", file=sys.stderr)
        else:
            print(f"{done} {letter.name}")
        failed += bool(problem)
    return EXIT_NOT_DONE if failed else 0


def named(wanted: str, letters: Sequence[Letter]) -> Letter:
    """The one letter whose name is, or alone begins with, `wanted`; exits if there is none, or more than one."""
    found = find(letters, wanted)
    if len(found) == 1:
        return found[0]
    if not found:
        sys.exit(f'There is no dead letter "{printable(wanted)}". `list` shows those that there are.')
    which = "\n".join(f"  {short_name(letter, letters)}  {moment(letter.at)}" for letter in found)
    sys.exit(f'"{printable(wanted)}" may be any of {len(found)} dead letters:\n{which}')


def moment(seconds: float) -> str:
    """Unix seconds as date and time in this machine's zone, as in the servers' logs; "none" if they are no date."""
    try:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # NaN, infinity, the year 300,000
        return "none"


def printable(text: str) -> str:
    """Text on one line, without characters that steer the terminal: garbage may contain them."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


if __name__ == "__main__":
    sys.exit(main())
