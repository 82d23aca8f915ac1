"""What the operator's command says of model servers, and how one is named.

ServerView, … -- print_servers, as_json --> a table, JSON
              -- named --> the one that is meant -- change --> quiet, or awake
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import Any

from serving.jobs.control import UnknownServer, quiet, wake
from serving.jobs.job_queue import JobQueue
from serving.jobs.overview import ServerView
from serving.local.printing import NotDone, add_row, duration, new_table, printable, show


def print_servers(servers: Sequence[ServerView]) -> None:
    """Print a line for each model server."""
    if not servers:
        print("No model server lives.")
        return
    right = ("in hand", "bulk in hand", "lease left")
    table = new_table("name", "model", "version", "precision", "runtime", *right, "", right=right, cut=("",))
    for server in by_name(servers):
        served = server.served
        model = [served.name, served.version, served.precision, served.runtime] if served else [None] * 4
        hands = server.in_hand, server.bulk_in_hand, duration(server.lease_seconds_left)
        add_row(table, server.name, *model, *hands, remarks(server))
    show(table)


def remarks(server: ServerView) -> str:
    """What is particular about a model server; "" if nothing is."""
    return "; ".join([*["quiet"] * server.is_quiet, *[server.differs] * bool(server.differs)])


def as_json(servers: Sequence[ServerView]) -> str:
    """A JSON list; docs/operations.md tells the members."""
    return json.dumps(members(servers), indent=1)


def members(servers: Sequence[ServerView]) -> list[Mapping[str, Any]]:
    """The members of model servers in JSON."""
    return [_members(server) for server in by_name(servers)]


def by_name(servers: Sequence[ServerView]) -> list[ServerView]:
    """In an order that stays while they live: Redis lists them by their leases."""
    return sorted(servers, key=attrgetter("name"))


def _members(server: ServerView) -> Mapping[str, Any]:
    return {
        **{"name": server.name, "host": server.host, "process_id": server.process_id},
        **{"quiet": server.is_quiet, "in_hand": server.in_hand, "bulk_in_hand": server.bulk_in_hand},
        "lease_seconds_left": round(server.lease_seconds_left, 3),
        "serves": asdict(server.served) if server.served else None,
        "differs": server.differs or None,
    }


def named(wanted: str, servers: Mapping[str, Sequence[ServerView]]) -> dict[str, list[ServerView]]:
    """The one whose name is, or alone begins with, `wanted`, by the name of its model.

    A process that serves several models has a name for each: a beginning that they share means all of them. Raises
    NotDone: there is none, or more than one.
    """
    every = [(model, server) for model, of_model in servers.items() for server in of_model]
    found = [(model, server) for model, server in every if server.name == wanted]
    found = found or [(model, server) for model, server in every if wanted and server.name.startswith(wanted)]
    processes = {(server.host, server.process_id) for _, server in found}
    by_model = {model: [server] for model, server in found}
    if len(processes) == 1 and len(by_model) == len(found):
        return by_model
    if not found:
        raise NotDone(f'There is no model server "{printable(wanted)}". `servers` shows those that there are.')
    which = "\n".join(f"  {printable(server.name)}" for _, server in found)
    raise NotDone(f'"{printable(wanted)}" may be any of {len(found)} model servers:\n{which}')


def change(verb: str, servers: Sequence[ServerView], queue: JobQueue) -> bool:
    """Quiet or wake each, and say what holds from now on; return False if one has gone meanwhile. Raises QueueAway."""
    gone = 0
    for server in servers:
        try:
            print(_change(verb, server, queue))
        except UnknownServer as error:
            print(error, file=sys.stderr)
            gone += 1
    return gone == 0


def _change(verb: str, server: ServerView, queue: JobQueue) -> str:
    """Quiet or wake one; return what holds from now on. Raises QueueAway, UnknownServer."""
    name = printable(server.name)
    if verb == "wake":
        return f"{name} takes again." if wake(queue, server.name) else f"{name} was not quiet."
    if not quiet(queue, server.name):
        return f"{name} was quiet already."
    in_hand = server.in_hand + server.bulk_in_hand
    return f"{name} takes no more; {in_hand} in hand." if in_hand else f"{name} takes no more."
