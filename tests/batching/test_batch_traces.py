"""The spans of batches and of their jobs, on a real Redis; the model is held up, so that jobs become one batch."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import redis
from conftest import Counts, new_job, wait_for, wired
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from otlp_receiver import finished

import helpers
from serving.batching.inbox import Inbox
from serving.errors import ModelFailed
from serving.jobs.job import Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.model_side import ModelSide
from serving.telemetry.traces import ModelTraces

SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Held:
    """A model that may be held up, and fails on an image that is all 66."""

    def __init__(self) -> None:
        self.free, self.busy = threading.Event(), threading.Event()

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        self.busy.set()
        self.free.wait(30)
        if 66 in pixels:
            raise ModelFailed("cannot do this one")
        return pixels[:, 0, 0].astype(np.float32)

    def padding(self, _images: int) -> int:
        return 0

    def answer(self, probabilities: np.ndarray, **asked: object) -> str:
        return json.dumps([*probabilities.tolist(), *asked])


@pytest.fixture
def model(queue: JobQueue, exporter: InMemorySpanExporter) -> Iterator[Held]:
    """The model of a running model server, which is traced."""
    held, traces = Held(), ModelTraces("image_queue", exporter)
    side, inbox = ModelSide(queue, lease_seconds=10, max_attempts=3, result_ttl_seconds=60), Inbox(8, (1, 1, 3))
    loop = wired(side, held, Counts(), inbox, 10.0, traces)  # type: ignore[arg-type]
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    yield held
    loop.stop()
    held.free.set()
    thread.join(timeout=20)
    traces.sender.close()


def traced_jobs(raw: redis.Redis, *values: int, flags: str = "01") -> list[Job]:
    """Jobs in the queue, whose images are of these values, each sent by a span of its own trace."""
    jobs = []
    for number, value in enumerate(values, 1):
        image = helpers.encode_image(np.full((1, 1, 3), value, np.uint8), "uint8")
        jobs.append(new_job(image=image, traceparent=f"00-{number:032x}-{number:016x}-{flags}"))
    raw.rpush("image_queue", *[job.to_text() for job in jobs])
    return jobs


def held_up(raw: redis.Redis, model: Held) -> None:
    """Have the model busy with a job that nobody traces, so that the next jobs become one batch."""
    raw.rpush("image_queue", new_job(image=helpers.encode_image(np.zeros((1, 1, 3), np.uint8), "uint8")).to_text())
    model.busy.wait(10)


def test_the_span_of_a_batch_links_to_each_of_its_jobs_and_is_nobody_s_child(
    raw: redis.Redis, model: Held, exporter: InMemorySpanExporter
) -> None:
    held_up(raw, model)
    jobs = traced_jobs(raw, 1, 2, 3)
    wait_for(lambda: raw.llen("image_queue") == 0)
    model.free.set()
    spans = finished(exporter, "process job", 3)
    (batch,) = finished(exporter, "process image_queue")
    assert batch.parent is None
    assert [link.context.span_id for link in batch.links] == [1, 2, 3]
    assert [link.attributes["messaging.message.id"] for link in batch.links] == [job.id for job in jobs]  # type: ignore[index]
    assert batch.attributes["messaging.batch.message_count"] == 3  # type: ignore[index]
    assert [(span.context.trace_id, span.parent.span_id) for span in spans] == [(1, 1), (2, 2), (3, 3)]  # type: ignore[union-attr]
    assert {span.links[0].context.span_id for span in spans} == {batch.context.span_id}  # type: ignore[union-attr]
    assert all(span.start_time <= batch.start_time <= span.end_time for span in spans)  # type: ignore[operator]


def test_jobs_that_nobody_traces_leave_no_span_and_garbage_harms_none(
    raw: redis.Redis, model: Held, exporter: InMemorySpanExporter
) -> None:
    held_up(raw, model)
    unsampled = traced_jobs(raw, 1, flags="00")
    zeros = new_job(image=unsampled[0].image, traceparent=f"00-{'0' * 32}-{'0' * 16}-01")
    garbage = new_job(image=unsampled[0].image).to_text().replace('"image"', '"traceparent": {"a": []}, "image"')
    raw.rpush("image_queue", zeros.to_text(), garbage)
    model.free.set()
    wait_for(
        lambda: all(raw.exists(job_id) for job_id in (unsampled[0].id, zeros.id, Job.from_text(garbage.encode()).id))
    )
    traced_jobs(raw, 2)
    finished(exporter, "process job")
    assert len(finished(exporter, "process image_queue")) == 1
    assert raw.llen("{image_queue}:dead") == 0


def test_a_job_on_which_the_model_fails_and_one_that_came_too_late_are_errors_without_their_words(
    raw: redis.Redis, model: Held, exporter: InMemorySpanExporter
) -> None:
    model.free.set()
    traced_jobs(raw, 66)
    (failed,) = finished(exporter, "process job")
    late = new_job(image=helpers.encode_image(np.zeros((1, 1, 3), np.uint8), "uint8"), traceparent=SAMPLED)
    raw.rpush("image_queue", late.to_text().replace('"image"', f'"deadline": {time.time() - 1}, "image"'))
    _, expired = finished(exporter, "process job", 2)
    for span, kind in ((failed, "dead"), (expired, "expired")):
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
        assert span.attributes["error.type"] == kind  # type: ignore[index]


@pytest.mark.parametrize(("sampler", "argument", "count"), [("always_off", "", 0), ("traceidratio", "0.000001", 1)])
def test_a_batch_is_kept_where_its_jobs_are(
    sampler: str, argument: str, count: int, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    traces = ModelTraces("image_queue", exporter)
    with contextlib.closing(traces.sender):
        job = type("Taken", (), {"job_id": "x", "traceparent": f"00-{1:032x}-{1:016x}-01", "taken_at": 0.0})
        end = type("End", (), {"answer": "[]", "failure": None, "is_canceled": False})
        for _ in range(20):
            traces.ended([job], [end], 1.0, 2.0, 3.0)  # type: ignore[list-item]
    names = [span.name for span in exporter.get_finished_spans()]
    assert names.count("process image_queue") == names.count("process job") == 20 * count
