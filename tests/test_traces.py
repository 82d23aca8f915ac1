"""Traces of real processes, as a collector hears of them: from a request through the queue to its batch."""

import base64
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import (
    ROOT,
    Processes,
    RedisServer,
    as_bytes,
    clean_environment,
    free_port,
    http,
    is_up,
    output,
    some_photo,
    upload,
    wait_for,
)
from otlp_receiver import ReceivedSpan, Receiver, tree

from serving.telemetry import otlp

PHOTO = as_bytes(some_photo(), "JPEG")
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"
SECRETS = ("the-key-of-the-service", "the-key-of-the-collector", "photo.jpg", "top=")


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    stand_in = Receiver()
    yield stand_in
    stand_in.stop()


@pytest.fixture(scope="module")
def url(redis_server: RedisServer, receiver: Receiver, light_model: dict[str, str]) -> Iterator[str]:
    redis_server.client.flushall()
    port = str(free_port())
    started = Processes(
        {
            "REDIS_URL": redis_server.url,
            "METRICS_PORT": "0",
            "API_KEY": SECRETS[0],
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={SECRETS[1]}",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "MODEL_NAME": "colours",
            "IMAGE_QUEUE": "pictures",
            **light_model,
        }
    )
    started.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="2")
    started.start("run_model_server.py")
    wait_for(lambda: is_up(f"http://127.0.0.1:{port}/readyz"))
    yield f"http://127.0.0.1:{port}"
    started.end()


def post(url: str, path: str = "/predict", **headers: str) -> str:
    """The id of a request that brings a photo and was answered."""
    answer = upload(url + path, PHOTO, Authorization=f"Bearer {SECRETS[0]}", **headers)
    assert answer.status in (200, 202), answer.body
    return answer.headers["X-Request-ID"]


def of_request(spans: list[ReceivedSpan], request_id: str) -> list[ReceivedSpan]:
    """The spans of the trace of a request, the oldest first."""
    roots = [span for span in spans if span.attributes.get("http.response.header.x-request-id") == [request_id]]
    return sorted((span for span in spans if span.trace_id == roots[0].trace_id), key=lambda span: span.start)


def named(spans: list[ReceivedSpan], name: str) -> ReceivedSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


def trace_of(receiver: Receiver, request_id: str) -> list[ReceivedSpan]:
    """The trace of a request with one image, once both processes have sent their part, and then its batch's spans."""
    spans = receiver.wait_for(
        lambda spans: any(span.attributes.get("http.response.header.x-request-id") == [request_id] for span in spans)
    )
    trace_id = of_request(spans, request_id)[0].trace_id
    spans = receiver.wait_for(
        lambda spans: any(span.trace_id == trace_id and span.name == "process job" for span in spans)
    )
    ((batch_trace, _),) = named(of_request(spans, request_id), "process job").links
    spans = receiver.wait_for(
        lambda spans: any(span.trace_id == batch_trace and span.name == "process pictures" for span in spans)
    )
    return of_request(spans, request_id) + [span for span in spans if span.trace_id == batch_trace]


def test_a_trace_leads_from_a_request_through_the_queue_to_its_batch(url: str, receiver: Receiver) -> None:
    spans = trace_of(receiver, post(url, "/predict?top=2"))
    request, send, job = (named(spans, name) for name in ("POST /predict", "send pictures", "process job"))
    batch, predict = named(spans, "process pictures"), named(spans, "predict")
    assert [span.kind for span in (request, send, job, batch)] == ["SERVER", "PRODUCER", "CONSUMER", "CONSUMER"]
    assert {span.service for span in (request, send)} == {"classification-web"}
    assert {span.service for span in (job, batch, predict)} == {"classification-model"}
    assert request.instance == send.instance != job.instance

    family = {name: named(spans, name).parent_id for name in ("read", "decode", "send pictures")}
    assert family == dict.fromkeys(family, request.span_id)
    assert (request.parent_id, job.parent_id, batch.parent_id) == ("", send.span_id, "")
    assert (job.trace_id, batch.trace_id != job.trace_id) == (request.trace_id, True)
    assert batch.links == [(send.trace_id, send.span_id)]
    assert job.links == [(batch.trace_id, batch.span_id)]
    assert (predict.parent_id, named(spans, "settle pictures").parent_id) == (batch.span_id, batch.span_id)

    assert all(span.start <= span.end for span in spans)
    for child in (named(spans, name) for name in family):
        assert request.start <= child.start <= child.end <= request.end
    assert [name for name, _ in job.events] == ["predict", "predicted"]
    assert not any(span.is_error for span in spans)
    assert "process job  [CONSUMER, classification-model]  links: process pictures" in tree(spans)


def test_spans_say_what_the_conventions_ask(url: str, receiver: Receiver) -> None:
    request_id = post(url, "/predict?top=2")
    spans = trace_of(receiver, request_id)
    assert named(spans, "POST /predict").attributes == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "url.path": "/predict",
        "http.response.status_code": 200,
        "http.response.header.x-request-id": [request_id],
    }
    queue = {"messaging.system": "redis", "messaging.destination.name": "pictures"}
    told = {
        span.name: {name.removeprefix("messaging."): value for name, value in (span.attributes.items() - queue.items())}
        for span in spans
        if "messaging.system" in span.attributes
    }
    message_id = told["send pictures"].pop("message.id")
    assert told == {
        "send pictures": {"operation.name": "send", "operation.type": "send"},
        "process job": {"operation.name": "process", "operation.type": "process", "message.id": message_id},
        "process pictures": {"operation.name": "process", "operation.type": "process", "batch.message_count": 1},
        "settle pictures": {"operation.name": "settle", "operation.type": "settle", "batch.message_count": 1},
    }


def test_a_request_goes_on_in_the_trace_of_its_client_if_that_one_is_kept(url: str, receiver: Receiver) -> None:
    spans = trace_of(receiver, post(url, traceparent=SAMPLED))
    assert (spans[0].trace_id, spans[0].parent_id) == (TRACE, CALLER)
    assert named(spans, "process job").trace_id == TRACE

    before = len(receiver.spans)
    post(url, traceparent=NOT_SAMPLED)
    spans = trace_of(receiver, post(url, traceparent="00-garbage"))  # a trace of its own
    assert spans[0].parent_id == ""
    assert {span.trace_id for span in receiver.spans[before:]} <= {span.trace_id for span in spans}


def test_an_asynchronous_job_and_the_open_inference_protocol_are_traced_as_well(url: str, receiver: Receiver) -> None:
    spans = trace_of(receiver, post(url, Prefer="respond-async"))
    assert spans[0].attributes["http.response.status_code"] == 202
    assert named(spans, "process job").parent_id == named(spans, "send pictures").span_id

    key = {"Authorization": f"Bearer {SECRETS[0]}"}
    encoded = base64.b64encode(PHOTO).decode()
    body = f'{{"inputs": [{{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["{encoded}"]}}]}}'
    answer = http("POST", f"{url}/v2/models/colours/infer", body.encode(), Content_Type="application/json", **key)
    assert answer.status == 200, answer.body
    spans = trace_of(receiver, answer.headers["X-Request-ID"])
    assert spans[0].name == "POST /v2/models/<name>/infer"


def test_a_refused_image_is_traced_and_is_no_error_of_the_service(url: str, receiver: Receiver) -> None:
    answer = upload(f"{url}/predict", b"no image", Authorization=f"Bearer {SECRETS[0]}")
    request_id = answer.headers["X-Request-ID"]
    receiver.wait_for(lambda spans: any(span.attributes.get("http.response.status_code") == 415 for span in spans))
    spans = of_request(list(receiver.spans), request_id)
    assert [(span.name, span.is_error) for span in spans] == [("POST /predict", False), ("read", False)]


def test_no_key_no_file_name_no_query_and_no_image_leaves_the_service(url: str, receiver: Receiver) -> None:
    trace_of(receiver, post(url, "/predict?top=2"))
    assert [secret for secret in SECRETS if secret.encode() in receiver.raw] == []
    assert PHOTO[100:140] not in receiver.raw
    assert max(len(str(value)) for span in receiver.spans for value in span.attributes.values()) < 100


def test_the_variables_of_opentelemetry_work(url: str, receiver: Receiver) -> None:
    trace_of(receiver, post(url))
    assert {headers["api-key"] for headers in receiver.headers} == {SECRETS[1]}
    assert {resource["deployment.environment.name"] for resource in receiver.resources} == {"test"}


def test_what_is_not_sent_yet_is_sent_as_the_processes_stop(
    processes: Processes, receiver: Receiver, light_model: dict[str, str]
) -> None:
    url, servers = start_both(processes, light_model, receiver.url)
    request_id = upload(f"{url}/predict", PHOTO).headers["X-Request-ID"]
    for server in servers:
        server.send_signal(signal.SIGTERM)
    assert [server.wait(timeout=30) for server in servers] == [0, 0]
    spans = of_request(list(receiver.spans), request_id)
    assert {span.name for span in spans} >= {"POST /predict", "send image_queue", "process job"}


def test_an_endpoint_that_never_answers_holds_up_no_request_and_no_stop(
    processes: Processes, light_model: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system takes connections, and nobody reads them
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        url, servers = start_both(processes, light_model, endpoint, OTEL_BSP_SCHEDULE_DELAY="10")
        assert [upload(f"{url}/predict", PHOTO).status for _ in range(20)] == [200] * 20
        for server in servers:
            server.send_signal(signal.SIGTERM)
        assert [server.wait(timeout=30) for server in servers] == [0, 0]
        assert not any("Traceback" in output(server) for server in servers)


def test_a_collector_that_is_away_is_told_of_in_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    monkeypatch.setattr(otlp._seldom, "_told", -otlp.TELL_AGAIN_SECONDS)
    sender = otlp.SpanSender("a-test")
    for _ in range(3):  # each is sent by itself
        sender.tracer.start_span("lost").end()
    sender.close()
    (line,) = [record.getMessage() for record in caplog.records if "not sent" in record.getMessage()]
    assert line.startswith("traces are not sent: ")
    assert not any("exporting spans batch" in text or "export spans batch" in text for text in caplog.messages[1:])


def start_both(processes: Processes, model: dict[str, str], endpoint: str, **changes: str) -> tuple[str, list]:
    """A web server and a model server, which send what they have every minute; the web server's address."""
    port = str(free_port())
    common = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "60000"} | model | changes
    servers = [
        processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1", **common),
        processes.start("run_model_server.py", **common),
    ]
    wait_for(lambda: is_up(f"http://127.0.0.1:{port}/readyz"))
    return f"http://127.0.0.1:{port}", servers


def test_without_an_endpoint_nothing_that_traces_is_even_imported() -> None:
    # redis-py imports opentelemetry.sdk.metrics where that is installed.
    ours = "[name for name in sys.modules if 'opentelemetry.exporter' in name or 'opentelemetry.sdk.trace' in name]"
    says = f"import sys, run_web_server, run_model_server; print({ours})"
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", says], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("script", ["run_web_server.py", "run_model_server.py", "run_service.py"])
def test_a_process_that_cannot_send_traces_says_what_to_install_and_does_not_start(
    script: str, processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").touch()  # hides the real one
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "PYTHONPATH": str(tmp_path)}
    process = processes.start(script, WEB_PORT=str(free_port()), **settings)
    assert process.wait(timeout=30) == 2
    said = output(process)
    assert f"-m pip install -r {ROOT / 'requirements-otel.txt'}" in " ".join(said.split())
    assert "Traceback" not in said
