"""What a model server counts."""

import pytest
from prometheus_client import CollectorRegistry

from serving.jobs.job import Outcome
from serving.telemetry.build import Build
from serving.telemetry.model_metrics import OUTCOMES, MetricsPage, ModelMetrics

MODEL = {"model": "cats", "version": "1a2b", "precision": "float32", "runtime": "keras"}
BUILD = Build("1.2", "0123456789ab", "3.11.7")
ENDS = {
    "answered": Outcome(b"", answer="[]"),
    "failed": Outcome(b"", failure="of another size", status=503),
    "expired": Outcome(b""),
    "canceled": Outcome(b"", is_canceled=True),
    "dead": Outcome(b"", failure="guilty"),
}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> ModelMetrics:
    return MetricsPage(BUILD, registry=registry).of(MODEL)


def by(registry: CollectorRegistry, name: str, label: str) -> dict[str, float]:
    """The series of a metric, by one label."""
    found = (sample for family in registry.collect() for sample in family.samples if sample.name == name)
    return {sample.labels[label]: sample.value for sample in found}


def test_a_job_counts_by_the_way_it_ended_and_each_way_is_there_from_the_start(
    metrics: ModelMetrics, registry: CollectorRegistry
) -> None:
    assert by(registry, "classify_jobs_total", "outcome") == dict.fromkeys(ENDS, 0.0)
    for number, outcome in enumerate(ENDS.values(), 1):
        metrics.ended([outcome] * number)
    assert by(registry, "classify_jobs_total", "outcome") == dict(zip(ENDS, range(1, 6), strict=True))
    assert by(registry, "model_jobs_total", "end") == {"answered": 1, "failed": 2 + 5, "dropped": 3 + 4}
    assert OUTCOMES.keys() == ENDS.keys()


def test_jobs_of_dead_model_servers_went_back_or_were_given_up(
    metrics: ModelMetrics, registry: CollectorRegistry
) -> None:
    metrics.returned(3, 1)
    metrics.lost_lease()
    value = registry.get_sample_value
    assert value("classify_jobs_redelivered_total") == 3
    assert value("classify_jobs_total", {"outcome": "dead"}) == 1
    assert value("classify_leases_lost_total") == 1


def test_a_batch_counts_with_its_padding_and_its_time(metrics: ModelMetrics, registry: CollectorRegistry) -> None:
    metrics.predicted(5, 3, 0.004)
    metrics.predicted(8, 0, 0.02)
    value = registry.get_sample_value
    assert value("classify_batch_images_sum") == value("model_batch_images_sum") == 13
    assert value("classify_batch_padding_images_sum") == 3
    assert value("classify_batch_padding_images_bucket", {"le": "0.0"}) == 1
    assert value("classify_batch_duration_seconds_bucket", {"le": "0.005"}) == 1
    assert value("model_batch_seconds_bucket", {"le": "0.005"}) == 1
    assert value("classify_batch_duration_seconds_count") == value("model_batch_seconds_count") == 2


def test_it_tells_what_it_serves_and_which_build_it_is(metrics: ModelMetrics, registry: CollectorRegistry) -> None:
    value = registry.get_sample_value
    assert value("classify_model_info", MODEL) == 1
    build = {"version": "1.2", "commit": "0123456789ab", "python": "3.11.7"}
    assert value("classify_build_info", build) == 1


def test_of_several_models_each_series_says_which_and_the_old_names_count_all(registry: CollectorRegistry) -> None:
    page = MetricsPage(BUILD, by_model=True, registry=registry)
    dogs = page.of(MODEL | {"model": "dogs", "version": "3c4d"})
    page.of(MODEL).ended([ENDS["answered"]] * 2)
    dogs.ended([ENDS["answered"]])
    dogs.predicted(5, 3, 0.004)
    dogs.lost_lease()
    dogs.returned(2, 0)
    value = registry.get_sample_value
    assert value("classify_jobs_total", {"model": "cats", "outcome": "answered"}) == 2
    assert value("classify_jobs_total", {"model": "dogs", "outcome": "answered"}) == 1
    assert value("classify_jobs_total", {"model": "dogs", "outcome": "dead"}) == 0  # there from the start
    for name, count in (("batch_images_sum", 5), ("batch_padding_images_sum", 3), ("batch_duration_seconds_count", 1)):
        assert [value(f"classify_{name}", {"model": model}) for model in ("cats", "dogs")] == [0, count]
    for name, count in (("jobs_redelivered_total", 2), ("leases_lost_total", 1)):
        assert [value(f"classify_{name}", {"model": model}) for model in ("cats", "dogs")] == [0, count]
    assert value("model_jobs_total", {"end": "answered"}) == 3
    assert value("model_batch_images_sum") == 5
    assert by(registry, "classify_model_info", "model") == {"cats": 1, "dogs": 1}
