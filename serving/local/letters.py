"""What the operator's command says of dead letters, and does with them.

letters -- named --> the one that is meant -- tell --> its fields, a line each
                                           -- act_on_each --> requeued or dropped, a line each
        -- print_letters, as_json --> all of them
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence

from rich.filesize import decimal

from serving.errors import BadJob
from serving.jobs.job import Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.operator import Letter, drop, find, requeue, short_name
from serving.local.printing import NotDone, add_row, moment, new_table, printable, show

MOST_GARBAGE_SHOWN_BYTES = 200


def print_letters(letters: Sequence[Letter]) -> None:
    """Print a line for each letter."""
    if not letters:
        print("There are no dead letters.")
        return
    table = new_table("id", "when", "attempts", "size", "reason", right=("attempts", "size"), cut=("reason",))
    for letter in letters:
        row = short_name(letter, letters), moment(letter.at), letter.attempts, decimal(len(letter.job))
        add_row(table, *row, letter.reason)
    show(table)


def as_json(letters: Sequence[Letter]) -> str:
    """A JSON list: `name` is what the other commands take, `at` unix seconds, `size` the job's, in bytes."""
    told = [
        {
            **{"name": letter.name, "id": letter.id, "digest": letter.digest},
            **{"at": letter.at if math.isfinite(letter.at) else None, "attempts": letter.attempts},
            **{"reason": letter.reason, "size": len(letter.job), "lane": letter.lane},
        }
        for letter in letters
    ]
    return json.dumps(told, indent=1)


def tell(letter: Letter) -> None:
    """Print a letter's fields, a line each."""
    fields: dict[str, object] = {
        **{"id": letter.id, "digest": letter.digest, "when": moment(letter.at)},
        **{"attempts": letter.attempts, "reason": letter.reason, "size": f"{len(letter.job):,} bytes"},
        "lane": letter.lane,
    }
    try:
        job = Job.from_text(letter.job)
        fields |= {"dtype": job.dtype, "shape": job.shape, "deadline": moment(job.deadline), "reply to": job.reply_to}
        fields |= {"request": job.request_id, "image": f"{len(job.image):,} characters"}
    except BadJob as error:
        fields |= {"no job": error, "it begins": ascii(letter.job[:MOST_GARBAGE_SHOWN_BYTES])[1:]}
    for name, value in fields.items():
        print(f"{name:<10}{'none' if value is None else printable(str(value))}")


def act_on_each(letters: Sequence[Letter], verb: str, queue: JobQueue) -> bool:
    """Requeue or drop each letter, say of each what came of it; return whether all went well. Raises QueueAway."""
    act, done = (requeue, "requeued") if verb == "requeue" else (drop, "dropped")
    problems = 0
    for letter in letters:
        try:
            problem = "" if act(queue, letter) else "it has gone meanwhile"
        except BadJob as error:
            problem = printable(str(error))
        if problem:
            print(f"{letter.name} cannot be {done}: {problem}", file=sys.stderr)
        else:
            print(f"{done} {letter.name}")
        problems += bool(problem)
    return not problems


def named(wanted: str, letters: Sequence[Letter]) -> Letter:
    """The one letter whose name is, or alone begins with, `wanted`. Raises NotDone: there is none, or not one."""
    found = find(letters, wanted)
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotDone(f'There is no dead letter "{printable(wanted)}". `dead list` shows those that there are.')
    which = "\n".join(f"  {short_name(letter, letters)}  {moment(letter.at)}" for letter in found)
    raise NotDone(f'"{printable(wanted)}" may be any of {len(found)} dead letters:\n{which}')


def named_of(wanted: str, letters: Mapping[str, Sequence[Letter]]) -> dict[str, list[Letter]]:
    """The one letter that `wanted` means, of all models, by the name of its model. Raises NotDone, as `named`."""
    letter = named(wanted, [one for of_model in letters.values() for one in of_model])
    return next({name: [letter]} for name, of_model in letters.items() if any(one is letter for one in of_model))
