"""The operator's command: look at the queue, pause it, empty it, and care for the jobs that were given up.

    people's jobs, bulk jobs -- peek -----------------> the jobs that wait longest, without their images
    {image_queue}:dead       -- dead list, show ------> what failed, when, why; the image as a file
                             -- dead requeue ---------> the end of its lane --> a model server --> an answer
                             -- dead drop ------------> nowhere

    python queue_admin.py peek 20
    python queue_admin.py dead list
    python queue_admin.py dead show 3f2b9c04 --save image.png
    python queue_admin.py dead requeue 3f2b9c04      then: redis-cli get <the whole id>
    python queue_admin.py dead drop --all

The settings are the service's: REDIS_URL, IMAGE_QUEUE and so on. While REDIS_URL is not set, the service is the one
that `make run` started from this folder, if one runs. Exit status: 0 well, or done; 1 not well, or not done; 2 a wrong
setting or command line, or Redis does not answer; 130 Ctrl-C.
"""

if __name__ == "__main__":  # before the imports of what may be missing
    from serving.local.packages import check

    check()

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import settings
from serving import errors
from serving.jobs.job import Job, Lane
from serving.jobs.job_queue import JobQueue
from serving.jobs.operator import Letter, read_letters
from serving.jobs.peek import MOST_PEEKED, peek
from serving.jobs.served import ServedNow
from serving.local import letters, running_service, waiting_jobs
from serving.local.printing import NotDone, printable

HERE = Path(__file__).parent
EXIT_NOT_DONE = 1
EXIT_INTERRUPTED = 130


def main(command_line: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    arguments = parse_arguments(command_line)
    config = settings.load()
    try:
        reached = running_service.connect(HERE, config.redis_url, config.image_queue, config.model_fields_set)
        with contextlib.closing(reached) as queue:
            return run(arguments, queue, config)
    except errors.QueueAway as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except NotDone as error:
        print(error, file=sys.stderr)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_NOT_DONE


def parse_arguments(command_line: Sequence[str] | None) -> argparse.Namespace:
    """The command line: `verb`, for `dead` its `dead_verb`, and their arguments."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="queue_admin.py", description=__doc__, formatter_class=form)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="peek | dead")
    verb = verbs.add_parser("peek", help="the jobs that wait longest; no image leaves Redis")
    verb.add_argument("count", metavar="N", nargs="?", type=count_of_jobs, default=10, help="how many; 10")
    verb.add_argument("--bulk", action="store_true", help="of the asynchronous jobs")
    verb.add_argument("--json", action="store_true", help="JSON, for machines")
    add_dead_verbs(verbs.add_parser("dead", help="the dead letters, jobs that were given up", formatter_class=form))
    return parser.parse_args(command_line)


def add_dead_verbs(parser: argparse.ArgumentParser) -> None:
    """What `dead` can do."""
    parser.description = "The dead letters, jobs that were given up. An ID may be a beginning that no other letter has."
    verbs = parser.add_subparsers(dest="dead_verb", required=True, metavar="list | show | requeue | drop")
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


def count_of_jobs(text: str) -> int:
    """How many jobs the command line means. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_PEEKED):
        raise argparse.ArgumentTypeError(f"give a whole number from 1 to {MOST_PEEKED}, not {printable(text)!r}")
    return int(text)


def run(arguments: argparse.Namespace, queue: JobQueue, config: Any) -> int:
    """Do what the verb says; return the exit status. Raises QueueAway, NotDone."""
    match arguments.verb:
        case "peek":
            lane = Lane.BULK if arguments.bulk else Lane.PEOPLE
            count, jobs = peek(queue, lane, arguments.count)
            if arguments.json:
                print(waiting_jobs.jobs_as_json(lane, count, jobs))
            else:
                waiting_jobs.print_jobs(lane, count, jobs)
            return 0
    width, height = config.input_size() or ServedNow(queue).input_size()
    return run_dead(arguments, queue, (height, width, 3))


def run_dead(arguments: argparse.Namespace, queue: JobQueue, shape: tuple[int, ...]) -> int:
    """Read the letters, choose those that `arguments` mean, act on them; return the exit status."""
    found = read_letters(queue)
    match arguments.dead_verb:
        case "list":
            print(letters.letters_as_json(found)) if arguments.json else letters.print_letters(found)
            return 0
        case "show":
            letter = letters.named(arguments.id, found)
            letters.tell(letter)
            return save(letter, arguments.save, shape) if arguments.save else 0
    # --all does not mean letters that come from now on: nobody has seen them.
    chosen = found if arguments.all else [letters.named(arguments.id, found)]
    return 0 if letters.act_on_each(chosen, arguments.dead_verb, queue) else EXIT_NOT_DONE


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


if __name__ == "__main__":
    sys.exit(main())
