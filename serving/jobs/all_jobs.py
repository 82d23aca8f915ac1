"""An asynchronous job by its id alone, in whichever of several queues it is, in one round trip.

id -- each queue's look_async.lua, and the answer under the id --> the queue that knows the job, and the job
"""

from collections.abc import Sequence

from serving.errors import UnknownJob
from serving.jobs.async_jobs import AsyncJobs, JobState
from serving.jobs.redis_client import Command


class AllJobs:
    """The asynchronous jobs of queues in one Redis; threads may share it.

    Args:
        of_each: of each queue, at least one.
    """

    def __init__(self, of_each: Sequence[AsyncJobs]) -> None:
        self._of_each = of_each

    def look(self, job_id: str) -> tuple[int, JobState]:
        """The number of the queue that has the job, counted from 0, and the job. `job_id` is a UUID.

        Raises:
            UnknownJob: no queue knows it.
            QueueAway: Redis does not answer.
        """
        return self._tell(job_id, [])

    def cancel(self, job_id: str) -> JobState:
        """Cancel a job unless it is over, and tell of it. Raises what `look` raises."""
        _, state = self._tell(job_id, [jobs.cancel_command(job_id) for jobs in self._of_each])
        return state

    def _tell(self, job_id: str, ahead: Sequence[Command]) -> tuple[int, JobState]:
        looks, abouts = zip(*(jobs.look_commands(job_id) for jobs in self._of_each), strict=True)
        # In this order: a job whose status says that it succeeded has its answer.
        replies = self._of_each[0].exchange(*ahead, *looks, ("GET", job_id), *abouts)[len(ahead) :]
        found, (text, *about) = replies[: len(looks)], replies[len(looks) :]
        for number, jobs in enumerate(self._of_each):
            state = jobs.read(job_id, found[number], text, about[number])
            if state is not None:
                return number, state
        raise UnknownJob(f"There is no job {job_id}: it has expired, or its id is another one.")
