"""What the web processes count: rows, sums, and the page that is made of them."""

import os
import re
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from conftest import ROOT

from serving.errors import Refused
from serving.telemetry.build import Build
from serving.telemetry.web_metrics import CACHE_RESULTS, PREDICTING, ROUTES, STAGES, USUAL, WebMetrics
from serving.web import request_notes, sharing
from serving.web.request_notes import RequestNotes

BUILD = Build("1.2", "0123456789ab", "3.11.7")
QUEUE = {
    "waiting": 7,
    "bulk_waiting": 9,
    "oldest_waiting_seconds": 1.5,
    "oldest_bulk_waiting_seconds": 60.0,
    "in_flight": 12,
    "bulk_in_flight": 4,
    "dead_letters": 3,
    "is_paused": True,
    "is_draining": False,
    "servers": ["one", "two"],
}


@pytest.fixture
def counts() -> WebMetrics:
    return WebMetrics(BUILD)


def took(seconds: float, route: str = "predict", model: str | None = None, **stages_ms: float) -> RequestNotes:
    return RequestNotes(0.0, route=route, model=model, total_ms=1000 * seconds, **stages_ms)


def samples(counts: WebMetrics, models: Sequence[str] = ("",), **queue: object) -> dict[str, float]:
    page, kind = counts.render({model: SimpleNamespace(**(QUEUE | queue)) for model in models})  # type: ignore[misc]
    assert kind.startswith("text/plain")
    lines = [line.rsplit(" ", 1) for line in page.decode().splitlines() if not line.startswith("#")]
    assert len({name for name, _ in lines}) == len(lines)
    return {name: float(value) for name, value in lines}


def told(counts: WebMetrics, name: str, **queue: object) -> dict[str, float]:
    """The series of one metric that are not 0, by what stands in their braces."""
    of_name = {key: value for key, value in samples(counts, **queue).items() if key.partition("{")[0] == name}
    return {key.partition("{")[2].removesuffix("}"): value for key, value in of_name.items() if value}


def test_each_process_counts_in_a_row_of_its_own_and_the_page_has_the_sums(counts: WebMetrics) -> None:
    for seconds in (0.001, 0.005, 0.006):
        counts.answered(took(seconds), 200)
    counts.next_process()
    for status, seconds in ((200, 0.3), (503, 31.0), (499, 30.0)):
        counts.answered(took(seconds), status)
    counts.answered(took(0.02, "infer"), 200)
    assert told(counts, "classify_requests_total") == {
        'route="predict",status="200"': 4,
        'route="predict",status="499"': 1,
        'route="predict",status="503"': 1,
        'route="infer",status="200"': 1,
    }
    name, page = "classify_request_duration_seconds", samples(counts)
    buckets = {
        key.split('"')[1]: value
        for key, value in page.items()
        if key.startswith(f"{name}_bucket") and 'route="predict"' in key
    }
    assert buckets == {
        **dict.fromkeys(("0.001", "0.0025"), 1),
        "0.005": 2,
        **dict.fromkeys(("0.01", "0.025", "0.05", "0.1", "0.25"), 3),
        **dict.fromkeys(("0.5", "1.0", "2.5", "5.0", "10.0"), 4),
        "30.0": 5,
        "+Inf": 6,
    }
    assert page[f'{name}_sum{{route="predict"}}'] == pytest.approx(0.001 + 0.005 + 0.006 + 0.3 + 31.0 + 30.0)
    assert page[f'{name}_count{{route="infer"}}'] == 1


def test_processes_that_are_forked_add_up_however_often_they_are_replaced(counts: WebMetrics) -> None:
    for number in range(2000):  # more than there are rows
        counts.next_process()
        if number % 100 == 0 and not (child := os.fork()):
            counts.answered(took(0.1), 200)
            os._exit(0)
        elif number % 100 == 0:
            os.waitpid(child, 0)
    assert told(counts, "classify_requests_total") == {'route="predict",status="200"': 20}


def test_the_stages_of_requests_for_predictions_are_counted_where_they_are_known(counts: WebMetrics) -> None:
    counts.answered(took(0.2, read_ms=2.0, decode_ms=4.0, submit_ms=1.0, queue_ms=30.0, predict_ms=9.0), 200)
    counts.answered(took(0.1, "infer", read_ms=3.0), 422)
    counts.answered(took(0.1, "jobs", read_ms=5.0), 200)
    name = "classify_request_stage_duration_seconds"
    assert told(counts, f"{name}_count") == {
        'stage="read"': 2,
        **{f'stage="{stage}"': 1 for stage in ("decode", "submit", "queue", "predict")},
    }
    assert told(counts, f"{name}_sum")['stage="read"'] == pytest.approx(0.005)
    assert samples(counts)[f'{name}_bucket{{le="0.005",stage="decode"}}'] == 1


def test_refusals_are_counted_by_reason_where_clients_ask_for_predictions(counts: WebMetrics) -> None:
    for route in ("predict", "infer", "jobs", "other"):
        counts.answered(RequestNotes(0.0, route=route, refusals=["places", "places", "redis_away"]), 200)
    assert told(counts, "classify_admission_refused_total") == {'reason="places"': 4, 'reason="redis_away"': 2}


def test_every_series_that_an_alert_may_want_is_there_from_the_start(counts: WebMetrics) -> None:
    page = samples(counts)
    for route in ROUTES:
        assert page[f'classify_request_duration_seconds_count{{route="{route}"}}'] == 0
        for status in USUAL[route]:
            assert page[f'classify_requests_total{{route="{route}",status="{status}"}}'] == 0
    for stage in STAGES:
        assert page[f'classify_request_stage_duration_seconds_bucket{{le="+Inf",stage="{stage}"}}'] == 0
    for reason in Refused:
        assert page[f'classify_admission_refused_total{{reason="{reason}"}}'] == 0
    assert page['classify_build_info{commit="0123456789ab",python="3.11.7",version="1.2"}'] == 1


def test_the_gauges_tell_of_both_lanes(counts: WebMetrics) -> None:
    assert told(counts, "classify_queue_jobs") == {'lane="people"': 7, 'lane="bulk"': 9}
    assert told(counts, "classify_jobs_in_flight") == {'lane="people"': 8, 'lane="bulk"': 4}
    assert told(counts, "classify_queue_oldest_job_age_seconds") == {'lane="people"': 1.5, 'lane="bulk"': 60}
    page = samples(counts)
    single = ("redis_up", "dead_letters", "queue_paused", "queue_draining", "model_servers")
    assert [page[f"classify_{name}"] for name in single] == [1, 3, 1, 0, 2]
    assert [page[f"queue_{name}"] for name in ("waiting_jobs", "bulk_waiting_jobs", "model_servers")] == [7, 9, 2]


def test_the_oldest_job_is_no_seconds_old_where_none_waits_and_of_no_known_age_where_it_does_not_tell(
    counts: WebMetrics,
) -> None:
    none_waits = samples(counts, waiting=0, oldest_waiting_seconds=None, oldest_bulk_waiting_seconds=None)
    of_age = {name: value for name, value in none_waits.items() if name.startswith("classify_queue_oldest_job_age")}
    assert of_age == {'classify_queue_oldest_job_age_seconds{lane="people"}': 0}


def test_while_redis_is_away_the_page_says_so_and_has_the_other_counts(counts: WebMetrics) -> None:
    counts.answered(took(0.1), 503)
    page = counts.render(None)[0].decode()
    assert "\nclassify_redis_up 0.0\n" in page
    assert 'classify_requests_total{route="predict",status="503"} 1.0' in page
    assert not [line for line in page.splitlines() if line.startswith(("classify_queue", "classify_model", "queue_"))]


def test_the_old_names_count_requests_for_predictions_as_ever(counts: WebMetrics) -> None:
    for route, status, seconds in (("predict", 200, 0.001), ("infer", 200, 0.3), ("jobs", 404, 0.1), ("infer", 503, 1)):
        counts.answered(took(seconds, route), status)
    assert told(counts, "web_requests_total") == {'status="200"': 2, 'status="503"': 1}
    page = {name: value for name, value in samples(counts).items() if name.startswith("web_request_seconds")}
    assert page.pop("web_request_seconds_sum") == pytest.approx(1.301)
    assert page == {
        **{f'web_request_seconds_bucket{{le="{bound}"}}': 1 for bound in (0.005, 0.01, 0.025, 0.05, 0.1, 0.25)},
        'web_request_seconds_bucket{le="0.5"}': 2,
        **{f'web_request_seconds_bucket{{le="{bound}"}}': 3 for bound in (1.0, 2.5, 5.0, 10.0, 30.0, "+Inf")},
        "web_request_seconds_count": 3,
    }


def test_the_routes_are_those_that_requests_are_noted_under() -> None:
    assert {*request_notes.ROUTES.values(), request_notes.OTHER} == set(ROUTES) == set(USUAL)
    assert {request_notes.PREDICT, request_notes.INFER} == set(PREDICTING)


# Several models


@pytest.fixture
def of_two() -> WebMetrics:
    return WebMetrics(BUILD, ["cats", "flowers"])


def test_of_several_models_each_has_its_own_requests_stages_and_refusals(of_two: WebMetrics) -> None:
    of_two.answered(took(0.1, model="cats", decode_ms=4.0), 200)
    of_two.next_process()
    of_two.answered(took(0.3, "infer", model="cats", decode_ms=2.0), 200)
    of_two.answered(RequestNotes(0.0, route="predict", model="flowers", refusals=["queue_full"]), 503)
    of_two.answered(took(0.1), 404)  # of a model that is not there
    of_two.answered(took(0.1, "jobs", model="cats"), 200)
    page = samples(of_two)
    requests = {name: value for name, value in page.items() if name.startswith("classify_requests_total") and value}
    assert requests == {
        'classify_requests_total{model="cats",route="predict",status="200"}': 1,
        'classify_requests_total{model="cats",route="infer",status="200"}': 1,
        'classify_requests_total{model="flowers",route="predict",status="503"}': 1,
        'classify_requests_total{model="",route="predict",status="404"}': 1,
        'classify_requests_total{model="",route="jobs",status="200"}': 1,
    }
    name = "classify_request_stage_duration_seconds"
    assert page[f'{name}_count{{model="cats",stage="decode"}}'] == 2
    assert page[f'{name}_count{{model="flowers",stage="decode"}}'] == 0
    assert page['classify_request_duration_seconds_sum{model="cats",route="infer"}'] == pytest.approx(0.3)
    refused = "classify_admission_refused_total"
    assert [page[f'{refused}{{model="{model}",reason="queue_full"}}'] for model in ("cats", "flowers", "")] == [0, 1, 0]
    assert (page['web_requests_total{status="200"}'], page["web_request_seconds_count"]) == (2, 4)


def test_a_model_that_nobody_has_set_up_makes_no_series(of_two: WebMetrics) -> None:
    before = set(samples(of_two))
    of_two.answered(took(0.1, model="dogs"), 200)
    assert set(samples(of_two)) - before == {'web_requests_total{status="200"}'}
    assert told(of_two, "classify_requests_total") == {'model="",route="predict",status="200"': 1}


def test_how_answers_were_found_counts_by_image_and_by_model(counts: WebMetrics, of_two: WebMetrics) -> None:
    name = "classify_cache_requests_total"
    assert {key for key in samples(counts) if key.startswith(name)} == {
        f'{name}{{result="{result}"}}' for result in ("hit", "joined", "miss", "bypass")
    }
    for found in (["hit"], ["hit", "joined", "hit"], ["miss"], None):
        request = took(0.1)
        request.cache = found
        counts.answered(request, 200)
    assert told(counts, name) == {'result="hit"': 3, 'result="joined"': 1, 'result="miss"': 1}
    assert samples(counts)["classify_cache_not_stored_total"] == 0
    counts.not_stored("any")
    assert samples(counts)["classify_cache_not_stored_total"] == 1

    request = took(0.1, model="cats")
    request.cache = ["hit"]
    of_two.answered(request, 200)
    of_two.not_stored("flowers")
    assert told(of_two, name) == {'model="cats",result="hit"': 1}
    assert told(of_two, "classify_cache_not_stored_total") == {'model="flowers"': 1}


def test_the_words_for_how_an_answer_was_found_are_those_of_the_one_path() -> None:
    assert {sharing.HIT, sharing.JOINED, sharing.MISS, sharing.BYPASS} == set(CACHE_RESULTS)


def test_the_gauges_of_each_model_stand_side_by_side(of_two: WebMetrics) -> None:
    page = samples(of_two, ["cats", "flowers"])
    for model in ("cats", "flowers"):
        assert page[f'classify_queue_jobs{{lane="people",model="{model}"}}'] == 7
        assert page[f'classify_model_servers{{model="{model}"}}'] == 2
        assert page[f'queue_waiting_jobs{{model="{model}"}}'] == 7
    assert page["classify_redis_up"] == 1
    assert 'model="' not in "".join(samples(WebMetrics(BUILD)))


def labels_of(page: dict[str, float]) -> dict[str, set[str]]:
    """Of each metric on a page, by its name, the labels that its series have."""
    return {name.partition("{")[0]: set(re.findall(r'(\w+)="', name)) for name in page}


def test_every_metric_tells_its_model_but_those_that_the_documents_name(counts: WebMetrics, of_two: WebMetrics) -> None:
    counts.answered(took(0.1), 200)
    of_two.answered(took(0.1, model="cats"), 200)
    alone, of_each = labels_of(samples(counts)), labels_of(samples(of_two, ["cats", "flowers"]))
    assert alone.keys() == of_each.keys()
    of_all = {name for name, labels in of_each.items() if labels == alone[name]}
    assert all(of_each[name] == alone[name] | {"model"} for name in of_each.keys() - of_all)
    (told,) = re.findall(r"Only (.*?) tell of all models", (ROOT / "docs" / "operations.md").read_text(), re.S)
    prefixes = tuple(name.removesuffix("…") for name in re.findall("`(.*?)`", told))
    assert all(name.startswith(prefixes) for name in of_all)
    unused = {prefix for prefix in prefixes if not any(name.startswith(prefix) for name in of_all)}
    assert unused == {"model_"}  # those of the model server's page
