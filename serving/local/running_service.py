"""Where the service is that runs from this folder: run_service.py writes it down, the operator's tools read it.

    run_service.py -- write --> .service.json -- find --> queue_admin.py, run_model_server.py --check-health

The private Redis of run_service.py has a port that nobody can know beforehand. A server does not look here: to which
Redis it belongs must not depend on who else runs on its machine.
"""

import contextlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from serving.errors import QueueAway, StartError
from serving.jobs.job_queue import JobQueue
from serving.local.printing import printable

FILE = ".service.json"
MOST_BYTES = 65_536


@dataclass(frozen=True)
class RunningService:
    """What the file tells: the service's settings REDIS_URL and IMAGE_QUEUE, and the process of run_service.py.

    `queues` has the queue of each model by the model's name, the default first; it is empty where there is only one.
    """

    redis_url: str
    image_queue: str
    process_id: int
    queues: Mapping[str, str] = field(default_factory=dict)

    def is_alive(self) -> bool:
        """Whether its process is there and another than this one, as far as this machine knows."""
        if self.process_id == os.getpid():  # ids are used again, in a container after each restart
            return False
        try:
            os.kill(self.process_id, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass
        return True


def write(folder: Path, service: RunningService) -> None:
    """Write down where `service` is, for this user alone, since the URL may hold a password. Raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=FILE, dir=folder)  # of mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(service), file)
        Path(name).replace(folder / FILE)
    except OSError:
        Path(name).unlink()
        raise


def remove(folder: Path, process_id: int) -> None:
    """Remove the file, if it tells of the service of this process."""
    service = find(folder)
    if service is not None and service.process_id == process_id:
        with contextlib.suppress(OSError):
            (folder / FILE).unlink()


def find(folder: Path) -> RunningService | None:
    """What the file in `folder` tells; None if there is none, or one that another user could have written."""
    path = folder / FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            _check_owner(os.fstat(file.fileno()))
            told = json.loads(file.read(MOST_BYTES))
        service = RunningService(str(told["redis_url"]), str(told["image_queue"]), int(told["process_id"]))
        queues = {str(name): str(queue) for name, queue in dict(told.get("queues", {})).items()}
        return replace(service, queues=queues)
    except FileNotFoundError:
        return None
    except OSError as error:
        why = error.strerror or str(error)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        why = "run_service.py did not write it"
    print(f"{path} is ignored: {why}.", file=sys.stderr)
    return None


def _check_owner(status: os.stat_result) -> None:
    """Raises PermissionError: another user could lead this one, and the password of this one, to a Redis of theirs."""
    if not stat.S_ISREG(status.st_mode):
        raise PermissionError(None, "it is no file")
    if status.st_uid != os.geteuid():
        raise PermissionError(None, "it belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(None, "others may write into it")


def connect(
    folder: Path, redis_url: str, queues: Mapping[str, str], settings_given: Collection[str]
) -> dict[str, JobQueue]:
    """Reach the queues that an operator of this folder means: of each model by its name, "" stands for the only one.

    Those are the ones at `redis_url` if that setting is among the names `settings_given`, else those of the service
    that runs from `folder`, else the ones at `redis_url`, which is then the default. If IMAGE_QUEUE or MODELS_FILE is
    among the settings given, `queues` counts in the Redis of that service, too.

    Raises:
        QueueAway: Redis does not answer; the message says what to set.
    """
    service = None if "redis_url" in settings_given else find(folder)
    if service is not None:
        own = service.queues or {"": service.image_queue}
        meant = queues if {"image_queue", "models_file"} & set(settings_given) else own
        try:
            reached = _reach(service.redis_url, meant)
        except QueueAway:
            print(
                f"The Redis of run_service.py (process {service.process_id}) does not answer: was it killed? Trying "
                "the default of REDIS_URL.",
                file=sys.stderr,
            )
        else:
            print(f"Redis: the one of run_service.py, process {service.process_id}", file=sys.stderr)
            return reached
    return _reach(redis_url, queues)


def _reach(redis_url: str, queues: Mapping[str, str]) -> dict[str, JobQueue]:
    """Raises QueueAway."""
    reached = {name: JobQueue(redis_url, queue) for name, queue in queues.items()}
    try:
        next(iter(reached.values())).connect()  # the others are in the same Redis
    except QueueAway:
        close(reached)
        raise
    return reached


def close(reached: Mapping[str, JobQueue]) -> None:
    """Close the connections of all."""
    for queue in reached.values():
        queue.close()


def chosen(reached: Mapping[str, JobQueue], names: Sequence[str] | None) -> dict[str, JobQueue]:
    """Those of the models that --model names; with None all. Raises StartError: there is no such model."""
    if names is None:
        return dict(reached)
    if "" in reached:
        raise StartError("--model names one of several models. This service has only one: leave --model out.")
    for name in names:
        if name not in reached:
            raise StartError(f"--model {printable(name)}: there is no such model, but {', '.join(reached)}.")
    return {name: reached[name] for name in names}
