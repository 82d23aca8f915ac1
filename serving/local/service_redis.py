"""The Redis of run_service.py: the one that REDIS_URL names, else one on this machine, else a private one."""

import os
from collections.abc import Mapping
from pathlib import Path

from serving import errors
from serving.jobs.job_queue import JobQueue
from serving.local import running_service
from serving.local.redis_server import PrivateRedis
from serving.local.running_service import RunningService
from serving.local.supervisor import Child
from serving.local.terminal import Output, tell

START_SECONDS = 10


class ServiceRedis:
    """The Redis that all processes of one service share.

    Attributes:
        url: where it is; until `start` has settled on one, where it is looked for first.
        processes: its process, if the service starts one itself.

    Args:
        url: REDIS_URL, or its default.
        is_named: whether REDIS_URL is set, so that no other Redis will do.
        queue_name: IMAGE_QUEUE.
        output: takes what a process of Redis writes.
    """

    def __init__(self, url: str, *, is_named: bool, queue_name: str, output: Output) -> None:
        self.url = url
        self.processes: list[Child] = []
        self._is_named, self._queue_name, self._output = is_named, queue_name, output

    def start(self, directory: str) -> None:
        """Settle on a Redis, and start it if it is a private one, which may write into `directory`.

        Raises:
            QueueAway: there is none; the message says what to do.
            StartError: the private one does not start.
        """
        try:
            doubts = JobQueue(self.url, self._queue_name).connect()
        except errors.QueueAway:
            if self._is_named:
                raise
            self._start_private(directory)
        else:
            if not self._is_named:
                tell("Redis: the one on localhost:6379")
            for doubt in doubts:
                tell(f"WARNING: {doubt}", "bold yellow")

    def tell_tools(self, folder: Path, queues: Mapping[str, str]) -> None:
        """Write into `folder` where this Redis is, for the operator's tools; if that cannot be, say what they need.

        `queues` has the queue of each model by the model's name, "" for a single one.
        """
        other = running_service.find(folder)
        if other is not None and other.is_alive():
            tell(
                f"queue_admin.py looks at the service that runs here already (process {other.process_id}); for this "
                "one, set its REDIS_URL."
            )
            return
        try:
            running_service.write(folder, RunningService(self.url, self._queue_name, os.getpid(), dict(queues)))
        except OSError as error:
            path = folder / running_service.FILE
            tell(f"{path} cannot be written ({error.strerror}): queue_admin.py needs REDIS_URL set to this Redis.")

    def _start_private(self, directory: str) -> None:
        private = PrivateRedis(directory)
        self.url = private.url
        self.processes = [Child("redis", private.command, {}, self._output)]
        self.processes[0].start()
        try:
            JobQueue(private.url, self._queue_name).connect(START_SECONDS)
        except errors.QueueAway as error:
            said = self._output.last_line("redis", "nothing")
            raise errors.StartError(f"The private Redis ({private.server}) does not start; it said: {said}") from error
        self.processes[0].was_ready = True
        tell(f"Redis: a private one on port {private.port} ({private.server}); it keeps nothing when it stops")
