"""The models by which a web process answers, each with a queue of its own and with what works at it.

    a request -- Models.default, Models.of(name) --> WebModel: its service, its asynchronous jobs
    /jobs/<id> -- Models.look, Models.cancel -------> the job, and the model whose it is

The models share the places of the process, but for those that are kept for each (`places`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.errors import NotFound, Refused, Unavailable
from serving.jobs.all_jobs import AllJobs
from serving.jobs.async_jobs import AsyncJobs, JobState
from serving.jobs.job_queue import JobQueue
from serving.jobs.shards import Shards, WebShard
from serving.jobs.watch import Watch
from serving.jobs.web_side import WebSide
from serving.web.classify import PredictionService
from serving.web.uploads import quotable


@dataclass(frozen=True)
class WebModel:
    """One model, as a web process meets it; threads may share it."""

    name: str | None  # as the settings call it; None: as its model servers do, which may come later
    shards: Sequence[WebShard]  # its queue in each Redis, in the order of REDIS_URLS; at least one
    web_side: WebSide | Shards  # of the only shard, or over all of them
    service: PredictionService
    top: int  # predictions of an answer, unless the request says how many
    label: str = ""  # its name in the metrics and in the log of an operator's acts; "": the service names no models

    def start(self) -> None:
        """Start the threads that work for its requests."""
        for shard in self.shards:
            shard.start()

    @property
    def queue(self) -> JobQueue:
        """Its queue in the first Redis."""
        return self.shards[0].queue

    @property
    def async_jobs(self) -> AsyncJobs:
        """The asynchronous jobs in the first Redis."""
        return self.shards[0].async_jobs

    @property
    def watch(self) -> Watch:
        """… and who waits for them."""
        return self.shards[0].watch

    def called(self) -> str | None:
        """The name by which clients ask for the model; None: no model server has told it yet. Raises QueueAway."""
        if self.name is not None:
            return self.name
        self.web_side.served.look_if_due()  # another one may have come
        served = self.web_side.served.served()
        return served.name if served is not None else None


class Models:
    """The models of a web process; threads may share it.

    Args:
        models: at least one, the default first. Only one that is alone may have no name.
    """

    def __init__(self, models: Sequence[WebModel]) -> None:
        self.default = models[0]
        self._all = list(models)
        self._by_name = {model.name: model for model in models if model.name is not None}
        self._jobs = AllJobs([model.async_jobs for model in models])

    def all(self) -> Sequence[WebModel]:
        """Every model, the default first."""
        return self._all

    def of(self, name: str) -> WebModel:
        """The model of this name, which a client gave.

        Raises:
            NotFound: there is none; the message names those that there are.
            Unavailable: the only model has no name in the settings, and no model server has told one yet.
            QueueAway: Redis had to be asked, and does not answer.
        """
        found = self._by_name.get(name)
        if found is not None:
            return found
        names = list(self._by_name)
        if self.default.name is None:
            called = self.default.called()
            if called == name:
                return self.default
            if called is None:
                raise not_told()
            names = [called]
        raise NotFound(
            f"There is no model `{quotable(name.encode().decode('latin-1'))}`; this service has "
            f"{', '.join(f'`{one}`' for one in names)}."
        )

    def start(self) -> None:
        """Start what works for the requests of each model; without it no job is submitted, and none answered."""
        for model in self._all:
            model.start()

    def look(self, job_id: str) -> tuple[WebModel, JobState]:
        """Tell of an asynchronous job, and of which model it is. `job_id` is a UUID. Raises UnknownJob, QueueAway."""
        number, state = self._jobs.look(job_id)
        return self._all[number], state

    def cancel(self, job_id: str) -> JobState:
        """Cancel a job unless it is over, and tell of it. `job_id` is a UUID. Raises UnknownJob, QueueAway."""
        return self._jobs.cancel(job_id)


def not_told() -> Unavailable:
    """The refusal of what needs to know the model, as long as no model server has told what it serves."""
    says = (
        "No model server has told yet what it serves: start one, or wait while it loads. One of another make never "
        "tells; it answers POST /predict."
    )
    return Unavailable(says, retry_after_seconds=5, reason=Refused.NO_MODEL_SERVER)
