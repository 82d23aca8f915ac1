"""The way from the predictor to the answerer: in order, bounded, and with an end that nobody misses."""

import threading

import numpy as np
import pytest
import redis
from conftest import Counts, new_job, wait_for, wired

import helpers
from serving.batching.batch import Predicted
from serving.batching.fetcher import Fetcher
from serving.batching.handover import MOST_WAITING, Handover
from serving.batching.inbox import Inbox
from serving.errors import QueueAway
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.jobs.model_side import ModelSide


def predicted(handover: Handover, count: int) -> list[Predicted]:
    """Hands over so many batches, and returns them; they need no content here."""
    batches = [Predicted(None, [], []) for _ in range(count)]  # type: ignore[arg-type]
    for batch in batches:
        handover.put(batch)
    return batches


def test_what_was_put_before_the_end_is_got_before_the_end() -> None:
    handover = Handover()
    first, second = predicted(handover, 2)
    handover.finish()
    assert handover.get() is first
    assert handover.get() is second
    assert handover.get() is None


def test_a_full_handover_waits_for_its_receiver_and_not_for_one_that_has_ended() -> None:
    handover = Handover()
    predicted(handover, MOST_WAITING)
    waiting = threading.Thread(target=predicted, args=(handover, 1), daemon=True)
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    handover.abandon()
    waiting.join(2)
    assert not waiting.is_alive()


class OneClass:
    """A model without any opinion."""

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        return np.ones((len(pixels), 1), np.float32)

    def padding(self, _images: int) -> int:
        return 0

    def answer(self, _probabilities: np.ndarray, **_asked: object) -> str:
        return "[]"


def test_a_fetcher_that_fails_while_the_queue_is_away_ends_the_loop_all_the_same(
    queue: JobQueue, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answerer is alive then, and the handover full: it must still hear of the end."""
    is_away = threading.Event()
    is_away.set()
    really_answer, really_fetch = Membership.answer, Fetcher._fetch

    def answer(member: Membership, outcomes: list[object]) -> bool:
        if is_away.is_set():
            raise QueueAway("cut") from ConnectionError("cut")
        return really_answer(member, outcomes)  # type: ignore[arg-type]

    def fetch(fetcher: Fetcher, member: Membership) -> None:
        if len(counts.batches) > MOST_WAITING + 1:
            raise ValueError("a bug in the fetcher")
        really_fetch(fetcher, member)

    monkeypatch.setattr(Membership, "answer", answer)
    monkeypatch.setattr(Fetcher, "_fetch", fetch)
    counts, model = Counts(), OneClass()
    side = ModelSide(queue, lease_seconds=30, max_attempts=3, result_ttl_seconds=60)
    loop = wired(side, model, counts, Inbox(1, (1, 1, 3)), lease_seconds=30)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            loop.run()
        except ValueError as error:
            errors.append(error)

    image = helpers.encode_image(np.zeros((1, 1, 3), np.uint8), "uint8")
    jobs = [new_job(image=image) for _ in range(2 * MOST_WAITING + 2)]
    raw.rpush("image_queue", *[job.to_text() for job in jobs])
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_for(lambda: len(counts.batches) > MOST_WAITING + 1)
    thread.join(1)
    is_away.clear()
    thread.join(10)
    assert not thread.is_alive()
    assert [str(error) for error in errors] == ["a bug in the fetcher"]
    assert all(raw.exists(job.id) for job in jobs[: MOST_WAITING + 1])  # what was predicted is answered
