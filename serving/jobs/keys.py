"""Every key of a queue. Q is the queue's name; the braces put all but the answers into one slot of a Redis cluster.

Each of the two lanes has its own: people's jobs, for which requests wait, and bulk, the asynchronous ones.

    Q                       LIST    waiting jobs, JSON, oldest at the left         until taken
    {Q}:processing:<server> LIST    jobs that this model server took               until settled or returned
    {Q}:settled             HASH    model server -> how many jobs it has settled   until it leaves or its jobs return
    {Q}:served              STRING  settled_total (an old name): jobs ever settled for ever
    {Q}:emptied             STRING  last_empty_at: when a take left none waiting,  for ever
                                    or a pause ended

In lane bulk they are {Q}:bulk, {Q}:bulk:processing:<server>, {Q}:bulk:settled, {Q}:bulk:served, {Q}:bulk:emptied.
Both lanes share

    {Q}:workers             ZSET    model server -> when its lease runs out        renewed by progress
    {Q}:attempts            HASH    job id -> how often the job came back          until settled
    {Q}:dead                LIST    dead letters, JSON, newest at the right        capped at MOST_DEAD_LETTERS
    {Q}:serves              HASH    model server -> what it serves, JSON           until it leaves or dies
    {Q}:labels:<digest>     STRING  labels in the order of their classes, JSON     30 days, renewed
    {Q}:served_last         STRING  what joined last, as in {Q}:serves             30 days, renewed
    {Q}:answered_at         STRING  when a web server last had an answer           60 s
    {Q}:seconds             HASH    second modulo 64 -> what happened in it, JSON  75 s, renewed
    {Q}:paused              STRING  since when nobody takes, unix seconds          until resumed, or drained
    {Q}:draining            STRING  since when no job is accepted, unix seconds    until resumed
    {Q}:quiet               HASH    model server that takes no more -> since when, until it wakes, or leaves; a dead
                                    unix seconds                                   one's: until its name is forgotten
    <job id>                STRING  the answer, JSON                               read once, or its time to live
    {Q}:about:<job id>      STRING  what travels beside it, JSON, if it warns      the answer's time to live
    {Q}:answered:…          pub/sub answers just set, JSON: job id -> answer; ABOUT  -
                                    … or ids of followers that may have to lead

An asynchronous job has besides, set by the web server that submits it,

    {Q}:job:<job id>        HASH    status (job.Status), submitted_at, deadline    expires_at: its deadline, and
                                    and expires_at (unix seconds), canceled ("1"), JOB_RESULT_TTL_SECONDS more
                                    error
    {Q}:idem:<digest>       STRING  job id, a space, fingerprint of the request    the job's

Where answers are shared (flights.py), a key of the cache is a SHA-256 of what is asked, and there are

    {Q}:cache               HASH    its key -> when it ends, unix seconds, and the  the longest CACHE_TTL_SECONDS
                                    answer, JSON; "bytes" -> of all of them
    {Q}:cached              ZSET    its key -> when it ends                         the same
    {Q}:flight:<its key>    HASH    "leader" -> its job's id, "until" -> when its   the last deadline of those who wait,
                                    lease runs out; a follower's id -> its          and a lease
                                    deadline, a space, its process's channel
    <a follower's id>       STRING  the answer, as a job's                          60 s, read once

No release renames a key, because two releases may share a queue.
"""

from dataclasses import dataclass

from serving.jobs.job import Lane

ABOUT = "about"  # in a message, beside the job ids: what travels beside all its answers


@dataclass(frozen=True)
class LaneKeys:
    """The keys of one lane."""

    waiting: str
    all_processing: str  # how the keys of all processing lists begin
    settled_by_server: str
    settled_total: str
    last_empty_at: str

    def processing(self, server: str) -> str:
        """The key of a model server's processing list."""
        return self.all_processing + server


class Keys:
    """The keys of the queue `name`."""

    def __init__(self, name: str) -> None:
        self._start = f"{{{name}}}:"
        self.people = self._lane(name, "")
        self.bulk = self._lane(f"{self._start}bulk", "bulk:")
        self.leases, self.attempts, self.dead = self._named("workers", "attempts", "dead")
        self.serves, self.served_last, self.answered_at = self._named("serves", "served_last", "answered_at")
        self.seconds, self.paused, self.draining, self.quiet = self._named("seconds", "paused", "draining", "quiet")
        self.all_jobs = f"{self._start}job:"  # how the keys of all asynchronous jobs begin
        self.cache, self.cached = self._named("cache", "cached")
        self.all_flights = f"{self._start}flight:"  # how the keys of all flights begin

    def _named(self, *kinds: str) -> list[str]:
        return [self._start + kind for kind in kinds]

    def _lane(self, waiting: str, kind: str) -> LaneKeys:
        return LaneKeys(waiting, *self._named(*(kind + end for end in ("processing:", "settled", "served", "emptied"))))

    def lane(self, lane: Lane) -> LaneKeys:
        """The keys of a lane."""
        return self.people if lane is Lane.PEOPLE else self.bulk

    def channel(self, web: str = "") -> str:
        """The channel on which the web process `web` hears of answers, and of what travels beside them.

        With "" how all such channels begin. Web processes of earlier releases listen on channels without `ABOUT`: they
        would take what travels beside answers for an answer.
        """
        return f"{self._start}answered:{ABOUT}:{web}"

    def is_channel(self, name: str) -> bool:
        """Whether a web process of this or an earlier release may listen on the channel `name`."""
        return name.startswith(f"{self._start}answered:")

    def labels(self, digest: str) -> str:
        """The key of the labels that have this digest."""
        return f"{self._start}labels:{digest}"

    def about(self, job_id: str) -> str:
        """The key of what travels beside a job's answer."""
        return f"{self._start}about:{job_id}"

    def job(self, job_id: str) -> str:
        """The key of an asynchronous job."""
        return self.all_jobs + job_id

    def flight(self, key: str) -> str:
        """The key of a flight, by the key of its answer in the cache."""
        return self.all_flights + key

    def idempotency(self, digest: str) -> str:
        """The key of an Idempotency-Key, by the digest of it and of the API key that came with it."""
        return f"{self._start}idem:{digest}"
