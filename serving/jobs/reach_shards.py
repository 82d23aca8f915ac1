"""Which Redis servers answer as a process starts, and which of them a model server is to serve."""

import random
from collections.abc import Sequence

from serving.errors import QueueAway
from serving.jobs.job_queue import JobQueue


def connect_shards(shards: Sequence[tuple[str, str]], queue_name: str) -> list[str]:
    """Make sure that one Redis answers, at least; return what an operator should know of each, a sentence each.

    Args:
        shards: label and URL of each Redis, at least one; a single one without a label.
        queue_name: of a queue in each.

    Raises:
        QueueAway: none answers, or the service cannot work with one that does; the message says which, and what to set.
    """
    doubts, away = list[str](), list[QueueAway]()
    for label, url in shards:
        try:
            told = JobQueue(url, queue_name).connect()
        except QueueAway as error:
            if not label:
                raise
            error.args = (str(error).replace("REDIS_URL", f"REDIS_URLS, number {label}", 1),)
            if not isinstance(error.__cause__, QueueAway):  # it answers, or nobody can ask it
                raise
            away.append(error)
        else:
            doubts += [f"number {label} of REDIS_URLS: {doubt}" if label else doubt for doubt in told]
    if len(away) == len(shards):
        raise away[0]
    return doubts + [f"{error} It is used once it answers." for error in away]


def fewest_served(shards: Sequence[Sequence[JobQueue]]) -> int:
    """Return which shard, counted from 0, the fewest model servers serve, of those that answer; of several, any.

    Args:
        shards: of each the queues of the models that are to be served.

    Raises QueueAway: none answers.
    """
    servers, away = dict[int, int](), list[QueueAway]()
    for number, queues in enumerate(shards):
        try:
            servers[number] = sum(len(queue.model_server_names(expired=False)) for queue in queues)
        except QueueAway as error:
            away.append(error)
    if not servers:
        raise away[0]
    fewest = min(servers.values())
    # Not the first: model servers that start together would all choose it.
    return random.choice([number for number, count in servers.items() if count == fewest])  # noqa: S311
