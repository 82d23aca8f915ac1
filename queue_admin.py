"""The operator's command: see how the service is doing, stop and start its parts, care for the jobs that were given up.

    both lanes, model servers -- status, servers --> how the service is doing, and whether it is well
                              -- peek -------------> the jobs that wait longest, without their images
    {image_queue}:paused     <-- pause ------------- no model server takes, until `resume`
    {image_queue}:draining   <-- drain ------------- web servers refuse, model servers empty both lanes, until `resume`
    {image_queue}:quiet      <-- quiet SERVER ------ this model server takes no more, until `wake SERVER`
    {image_queue}:dead        -- dead list, show --> what failed, when, why; the image as a file
                              -- dead requeue -----> the end of its lane --> a model server --> an answer
                              -- dead drop --------> nowhere

    python queue_admin.py status --watch
    python queue_admin.py servers
    python queue_admin.py quiet gpu-1:4711           python queue_admin.py wake --all
    python queue_admin.py pause                      python queue_admin.py resume
    python queue_admin.py drain --wait --timeout 300
    python queue_admin.py peek 20 --bulk
    python queue_admin.py dead list
    python queue_admin.py dead show 3f2b9c04 --save image.png
    python queue_admin.py dead requeue 3f2b9c04      then: redis-cli get <the whole id>
    python queue_admin.py dead drop --all

The settings are the service's: REDIS_URL, IMAGE_QUEUE and so on. While REDIS_URL is not set, the service is the one
that `make run` started from this folder, if one runs. Exit status: 0 well, or done; 1 not well, or not done; 2 a wrong
setting or command line, or Redis does not answer; 130 Ctrl-C; 143 SIGTERM.
"""

if __name__ == "__main__":  # before the imports of what may be missing
    from serving.local.packages import check

    check()

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import settings
from serving import errors
from serving.jobs.control import drain, pause, resume
from serving.jobs.job import Job, Lane
from serving.jobs.job_queue import JobQueue
from serving.jobs.operator import Letter, image_shape, read_letters
from serving.jobs.overview import overview
from serving.jobs.peek import MOST_PEEKED, peek
from serving.jobs.served import ServedNow
from serving.local import letters, running_service, servers, waiting_jobs
from serving.local.printing import NotDone, printable, show
from serving.local.status import Timeouts, as_json, as_view, read_status
from serving.local.watch import wait_until_empty, watch, why_away

HERE = Path(__file__).parent
EXIT_NOT_DONE = 1
EXIT_INTERRUPTED = 130


def main(command_line: Sequence[str] | None = None) -> int:
    """Find the queue that the command line means, do what it says; return the exit status."""
    arguments = parse_arguments(command_line)
    config = settings.load()
    try:
        reached = running_service.connect(HERE, config.redis_url, config.image_queue, config.model_fields_set)
    except errors.QueueAway as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    with contextlib.closing(reached) as queue:
        try:
            status = run(arguments, queue, config)
            sys.stdout.flush()  # a pipe that nobody reads any more must show here, not as Python ends
            return status
        except errors.QueueAway as error:
            print(why_away(error), file=sys.stderr)
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
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verb = verbs.add_parser("status", help="how the service is doing; exit status 1 if it is not well")
    verb.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    verb.add_argument("--json", action="store_true", help="JSON, for machines; with --watch a line a second")
    verb = verbs.add_parser("servers", help="the model servers: what each serves, and has in hand")
    verb.add_argument("--json", action="store_true", help="JSON, for machines")
    verb = verbs.add_parser("peek", help="the jobs that wait longest; no image leaves Redis")
    verb.add_argument("count", metavar="N", nargs="?", type=count_of_jobs, default=10, help="how many; 10")
    verb.add_argument("--bulk", action="store_true", help="of the asynchronous jobs")
    verb.add_argument("--json", action="store_true", help="JSON, for machines")
    add_changing_verbs(verbs)
    add_dead_verbs(verbs.add_parser("dead", help="the dead letters, jobs that were given up", formatter_class=form))
    arguments = parser.parse_args(command_line)
    if arguments.verb == "drain" and arguments.timeout and not arguments.wait:
        parser.error("--timeout says how long to --wait: give both")
    return arguments


def add_changing_verbs(verbs: Any) -> None:
    """What stops and starts the work of model servers and web servers."""
    for name, text in (
        ("quiet", "have a model server take no more; it ends what it has in hand"),
        ("wake", "have a quiet model server take again"),
    ):
        verb = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        which = verb.add_mutually_exclusive_group(required=True)
        which.add_argument("server", metavar="SERVER", nargs="?", help="a beginning of its name that no other has, or")
        which.add_argument("--all", action="store_true", help="those that live now")
    verbs.add_parser("pause", help="have no model server take; web servers accept until their bounds")
    verbs.add_parser("resume", help="end a pause and a drain")
    verb = verbs.add_parser("drain", help="have web servers refuse what is new, while model servers empty both lanes")
    verb.add_argument("--wait", action="store_true", help="until nothing waits, and nothing is in hand")
    verb.add_argument("--timeout", metavar="SECONDS", type=seconds, help="wait no longer, and then end with 1")


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


def seconds(text: str) -> float:
    """The seconds that the command line means. Raises ArgumentTypeError."""
    with contextlib.suppress(ValueError):
        if 0 < (told := float(text)) < math.inf:
            return told
    raise argparse.ArgumentTypeError(f"give seconds above 0, not {printable(text)!r}")


def run(arguments: argparse.Namespace, queue: JobQueue, config: settings.Settings) -> int:
    """Do what the verb says; return the exit status. Raises QueueAway, NotDone."""
    timeouts = Timeouts(config.request_timeout_seconds, config.job_timeout_seconds)
    match arguments.verb:
        case "status" if arguments.watch:
            watch(queue, timeouts, arguments.json)
        case "status":
            status = read_status(queue, timeouts)
            print(as_json(status)) if arguments.json else show(as_view(status))
            return 0 if status.verdict.is_well else EXIT_NOT_DONE
        case "servers":
            alive = overview(queue).servers
            print(servers.as_json(alive)) if arguments.json else servers.print_servers(alive)
        case "peek":
            lane = Lane.BULK if arguments.bulk else Lane.PEOPLE
            waiting = lane, *peek(queue, lane, arguments.count)
            print(waiting_jobs.as_json(*waiting)) if arguments.json else waiting_jobs.print_jobs(*waiting)
        case "quiet" | "wake" as verb:
            alive = overview(queue).servers
            meant = alive if arguments.all else [servers.named(arguments.server, alive)]
            return 0 if servers.change(verb, meant, queue) else EXIT_NOT_DONE
        case "pause" | "resume" | "drain":
            change_queue(arguments, queue)
        case "dead":
            width, height = config.input_size() or ServedNow(queue).input_size()
            return run_dead(arguments, queue, (height, width, 3))
    return 0


def change_queue(arguments: argparse.Namespace, queue: JobQueue) -> None:
    """Pause, resume or drain, say what holds from now on; wait for the end of a drain if that is wanted."""
    match arguments.verb:
        case "pause":
            done, was_so = pause(queue), "It was paused already."
            print("Paused: no model server takes. `resume` ends it." if done else was_so)
        case "resume":
            print("Resumed." if resume(queue) else "It was neither paused nor draining.")
        case "drain":
            done, was_so = drain(queue), "It drains already."
            print("Draining: web servers refuse what is new with 503. `resume` ends it." if done else was_so)
            if arguments.wait:
                took_seconds = wait_until_empty(queue, arguments.timeout)
                print(f"Empty after {took_seconds:.1f} s: nothing waits, nothing is in hand.")


def run_dead(arguments: argparse.Namespace, queue: JobQueue, shape: tuple[int, int, int]) -> int:
    """Read the letters, choose those that `arguments` mean, act on them; return the exit status."""
    found = read_letters(queue)
    match arguments.dead_verb:
        case "list":
            print(letters.as_json(found)) if arguments.json else letters.print_letters(found)
            return 0
        case "show":
            letter = letters.named(arguments.id, found)
            letters.tell(letter)
            return save(letter, arguments.save, shape) if arguments.save else 0
    # --all does not mean letters that come from now on: nobody has seen them.
    chosen = found if arguments.all else [letters.named(arguments.id, found)]
    return 0 if letters.act_on_each(chosen, arguments.dead_verb, queue) else EXIT_NOT_DONE


def save(letter: Letter, path: Path, shape: tuple[int, int, int]) -> int:
    """Write the image of a letter's job to a file; return the exit status."""
    # Imported late: nothing else here needs numpy and Pillow.
    import helpers
    from serving.images.decode import save_image

    try:
        job = Job.from_text(letter.job)
        save_image(helpers.decode_image(job.image, image_shape(job, shape), job.dtype), path)
        print(f"saved     {path}")
        return 0
    except (errors.BadJob, ValueError) as error:
        print(f"There is no image to save: {printable(str(error))}.", file=sys.stderr)
    except OSError as error:
        print(f"{path} cannot be written: {error.strerror or error}.", file=sys.stderr)
    return EXIT_NOT_DONE


if __name__ == "__main__":
    sys.exit(main())
