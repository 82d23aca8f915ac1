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

Of several models (MODELS_FILE) a verb means all; with --model NAME, which each verb takes, that one alone. The settings
are the service's: REDIS_URL, IMAGE_QUEUE, MODELS_FILE and so on. While REDIS_URL is not set, the service is the one
that `make run` started from this folder, if one runs. Exit status: 0 well, or done; 1 not well, or not done; 2 a wrong
setting or command line, or Redis does not answer; 130 Ctrl-C; 143 SIGTERM.
"""

if __name__ == "__main__":  # before the imports of what may be missing
    from serving.local.packages import check

    check()

import argparse
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import settings
from serving import errors
from serving.jobs.control import drain, pause, resume
from serving.jobs.job import Job, Lane
from serving.jobs.job_queue import JobQueue
from serving.jobs.operator import Letter, image_shape, read_letters
from serving.jobs.overview import overview
from serving.jobs.peek import peek
from serving.jobs.served import ServedNow
from serving.local import letters, running_service, servers, waiting_jobs
from serving.local.command_line import parse_arguments
from serving.local.models import Told, of_model
from serving.local.printing import NotDone, printable, show
from serving.local.status import Timeouts, all_as_json, are_well, as_views, read_statuses
from serving.local.watch import wait_until_empty, watch, why_away

HERE = Path(__file__).parent
EXIT_NOT_DONE = 1
EXIT_INTERRUPTED = 130


def main(command_line: Sequence[str] | None = None) -> int:
    """Find the queues that the command line means, do what it says; return the exit status."""
    arguments = parse_arguments(command_line, __doc__)
    config = settings.load()
    try:
        reached = running_service.connect(HERE, config.redis_url, config.queues(), config.model_fields_set)
    except errors.QueueAway as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    with contextlib.ExitStack() as stack:
        stack.callback(running_service.close, reached)
        try:
            queues = running_service.chosen(reached, arguments.model and [arguments.model])
            status = run(arguments, queues, config)
            sys.stdout.flush()  # a pipe that nobody reads any more must show here, not as Python ends
            return status
        except (errors.StartError, errors.QueueAway) as error:
            print(why_away(error), file=sys.stderr)
            return error.exit_status
        except NotDone as error:
            print(error, file=sys.stderr)
        except BrokenPipeError:  # `| head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        return EXIT_NOT_DONE


def run(arguments: argparse.Namespace, queues: Mapping[str, JobQueue], config: settings.Settings) -> int:
    """Do what the verb says to the queue of each model, by its name; return the exit status.

    Raises QueueAway, NotDone.
    """
    timeouts = Timeouts(config.request_timeout_seconds, config.job_timeout_seconds)
    match arguments.verb:
        case "status" if arguments.watch:
            watch(queues, timeouts, arguments.json)
        case "status":
            statuses = read_statuses(queues, timeouts)
            print(all_as_json(statuses)) if arguments.json else show(as_views(statuses))
            return 0 if are_well(statuses) else EXIT_NOT_DONE
        case "servers" | "peek":
            look(arguments, queues)
        case "quiet" | "wake" as verb:
            alive = {name: overview(queue).servers for name, queue in queues.items()}
            meant = alive if arguments.all else servers.named(arguments.server, alive)
            done = [servers.change(verb, of_model, queues[name]) for name, of_model in meant.items()]
            return 0 if all(done) else EXIT_NOT_DONE
        case "pause" | "resume" | "drain":
            change_queues(arguments, queues)
        case "dead":
            return run_dead(arguments, queues, config)
    return 0


def look(arguments: argparse.Namespace, queues: Mapping[str, JobQueue]) -> None:
    """Show the model servers of each model, or the jobs that wait for it longest."""
    told = Told(queues, arguments.json)
    for name, queue in queues.items():
        told.begin(name)
        if arguments.verb == "servers":
            alive = overview(queue).servers
            told.json(servers.as_json(alive)) if arguments.json else servers.print_servers(alive)
        else:
            lane = Lane.BULK if arguments.bulk else Lane.PEOPLE
            waiting = lane, *peek(queue, lane, arguments.count)
            told.json(waiting_jobs.as_json(*waiting)) if arguments.json else waiting_jobs.print_jobs(*waiting)
    told.end()


def change_queues(arguments: argparse.Namespace, queues: Mapping[str, JobQueue]) -> None:
    """Pause, resume or drain, say what holds from now on; wait for the end of a drain if that is wanted."""
    for name, queue in queues.items():
        print(of_model(name, queues), change_queue(arguments.verb, queue), sep="")
    if arguments.verb == "drain" and arguments.wait:
        took_seconds = wait_until_empty(list(queues.values()), arguments.timeout)
        print(f"Empty after {took_seconds:.1f} s: nothing waits, nothing is in hand.")


def change_queue(verb: str, queue: JobQueue) -> str:
    """Pause, resume or drain one queue; return what holds from now on."""
    match verb:
        case "pause":
            says = "Paused: no model server takes. `resume` ends it."
            return says if pause(queue) else "It was paused already."
        case "drain":
            says = "Draining: web servers refuse what is new with 503. `resume` ends it."
            return says if drain(queue) else "It drains already."
    return "Resumed." if resume(queue) else "It was neither paused nor draining."


def run_dead(arguments: argparse.Namespace, queues: Mapping[str, JobQueue], config: settings.Settings) -> int:
    """Read the letters, choose those that `arguments` mean, act on them; return the exit status."""
    found = {name: read_letters(queue) for name, queue in queues.items()}
    if arguments.dead_verb == "list":
        told = Told(queues, arguments.json)
        for name, of_model in found.items():
            told.begin(name)
            told.json(letters.as_json(of_model)) if arguments.json else letters.print_letters(of_model)
        told.end()
        return 0
    # --all does not mean letters that come from now on: nobody has seen them.
    is_all = arguments.dead_verb != "show" and arguments.all
    chosen = found if is_all else letters.named_of(arguments.id, found)
    if arguments.dead_verb == "show":
        ((name, (letter,)),) = chosen.items()
        letters.tell(letter)
        return save(letter, arguments.save, queues[name], config) if arguments.save else 0
    done = [letters.act_on_each(each, arguments.dead_verb, queues[name]) for name, each in chosen.items()]
    return 0 if all(done) else EXIT_NOT_DONE


def save(letter: Letter, path: Path, queue: JobQueue, config: settings.Settings) -> int:
    """Write the image of a letter's job to a file; return the exit status."""
    # Imported late: nothing else here needs numpy and Pillow.
    import helpers
    from serving.images.decode import save_image

    shape = ServedNow(queue, config.input_size()).input_shape()
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
