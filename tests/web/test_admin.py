"""/admin over HTTP: the application on a real Redis, with members that stand for model servers."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
import redis
from conftest import new_job, push, some_photo, version_of
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.test import TestResponse

import helpers
from run_web_server import create_app
from serving.jobs import operator
from serving.jobs.job import Job, Outcome
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.jobs.overview import overview
from serving.jobs.served import Served
from serving.telemetry.build import Build
from serving.telemetry.web_metrics import WebMetrics
from serving.web import page_files
from settings import Settings
from web_parts import describe

KEYS = {"admin_api_key": "ada:sesame, open", "api_key": "clients"}
ADA, SECOND, CLIENT, WRONG = ({"Authorization": f"Bearer {key}"} for key in ("sesame", "open", "clients", "sesam"))
SERVED = Served("ResNet50", "0123", "float32", "openvino", 224, 224, 3, "x")
PIXELS = np.asarray(some_photo(48, 32))
IMAGE = {"image": helpers.encode_image(PIXELS, "uint8"), "dtype": "uint8", "shape": PIXELS.shape}
# Everything that changes something: method, path, body.
ACTS = [
    ("POST", "/admin/queue", '{"paused": true}'),
    ("POST", "/admin/servers/x", '{"quiet": true}'),
    ("POST", "/admin/dead-letters/x/requeue", None),
    ("DELETE", "/admin/dead-letters/x", None),
]
LOOKS = ["/admin/stats", "/admin/dead-letters", "/admin/dead-letters/x/thumbnail"]
FILES = ["/admin", *(f"/admin/page/{name}" for name in page_files.ADMIN_NAMES)]

NewMember = Callable[..., Membership]


@pytest.fixture
def new_client(queue: JobQueue, request: pytest.FixtureRequest) -> Iterator[Callable[..., FlaskClient]]:
    """Makes a client of the application with the settings that a test names."""
    url = request.getfixturevalue("redis_server").url
    with ThreadPool(1) as pool:

        def make(**settings: object) -> FlaskClient:
            config = Settings(redis_url=url, **settings)  # type: ignore[arg-type]
            return create_app(config, pool, WebMetrics(Build())).test_client()

        yield make


@pytest.fixture
def client(new_client: Callable[..., FlaskClient]) -> FlaskClient:
    return new_client(**KEYS)


def error_of(answer: TestResponse) -> str:
    told = answer.get_json()
    assert told["success"] is False
    return told["error"]


def give_up(raw: redis.Redis, member: Membership, *texts: bytes | str, reason: str = "it failed") -> None:
    """Make dead letters of jobs, as a model server does."""
    for text in texts:
        raw.rpush("image_queue", text)
        (taken,) = member.take(1).jobs
        job_id = json.loads(taken)["id"] if taken.startswith(b"{") else None
        member.answer([Outcome(taken, job_id, failure=reason)])


# Who may come in


def test_without_a_key_in_the_settings_there_is_no_such_page(new_client: Callable[..., FlaskClient]) -> None:
    client = new_client(api_key="clients")
    for path in (*FILES, *LOOKS, "/admin/", "/admin/nowhere"):
        assert client.get(path, headers=CLIENT).status_code == 404, path
    for method, path, body in ACTS:
        assert client.open(path, method=method, data=body, headers=CLIENT).status_code == 404, path
    assert not [path for path in describe(Settings())["paths"] if path.startswith("/admin")]


def test_the_pages_files_are_open_and_its_policy_allows_nothing_inline(client: FlaskClient) -> None:
    for path, name in zip(FILES, [page_files.ADMIN_INDEX, *page_files.ADMIN_NAMES], strict=True):
        answer = client.get(path)
        assert (answer.status_code, answer.data) == (200, (page_files.FOLDER / name).read_bytes())
    policy = client.get("/admin").headers["Content-Security-Policy"]
    sources = {source for rule in policy.split(";") for source in rule.split()[1:]}
    assert sources == {"'none'", "'self'", "blob:"}
    assert client.get("/admin").headers["Cache-Control"] == "no-store"
    assert client.get("/admin/page/page.js").status_code == 404
    slash = client.get("/admin/")
    assert (slash.status_code, slash.headers["Location"]) == (308, "../admin")


@pytest.mark.parametrize("headers", [{}, WRONG, CLIENT, {"Cookie": "key=sesame"}, {"Authorization": "Basic sesame"}])
def test_data_and_acts_want_the_operators_own_key_and_a_try_without_it_leaves_a_line(
    client: FlaskClient, raw: redis.Redis, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    for method, path, body in [*ACTS, *(("GET", path, None) for path in LOOKS)]:
        caplog.clear()
        answer = client.open(path, method=method, data=body, headers=headers)
        assert answer.status_code == 401, path
        assert "ADMIN_API_KEY" in error_of(answer)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(f"{method} {path.replace('/x', '/<name>')}: 401: ")
        assert not any(secret in line for secret in ("sesam", "clients"))
    assert raw.keys("*") == []


def test_the_operators_key_does_not_open_what_clients_ask(client: FlaskClient) -> None:
    assert client.post("/predict", headers=ADA).status_code == 401
    assert client.post("/predict", headers=CLIENT).status_code == 400


def test_nothing_is_changed_by_get_and_every_path_is_known_here(client: FlaskClient) -> None:
    rules = client.application.url_map.iter_rules()
    methods = {rule.rule: (rule.methods or set()) - {"HEAD", "OPTIONS"} for rule in rules if "/admin" in rule.rule}
    assert methods == {
        "/admin": {"GET"},
        "/admin/": {"GET"},
        "/admin/page/<name>": {"GET"},
        "/admin/stats": {"GET"},
        "/admin/queue": {"POST"},
        "/admin/servers/<name>": {"POST"},
        "/admin/dead-letters": {"GET"},
        "/admin/dead-letters/<name>": {"DELETE"},
        "/admin/dead-letters/<name>/thumbnail": {"GET"},
        "/admin/dead-letters/<name>/requeue": {"POST"},
    }
    for _, path, _ in ACTS:
        assert client.get(path, headers=ADA).status_code == 405


def test_no_page_of_another_origin_may_use_it(new_client: Callable[..., FlaskClient]) -> None:
    client = new_client(**KEYS, cors_origins="*")
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    answers = [client.options(path, headers=asks) for _, path, _ in ACTS]
    answers += [client.get(path, headers=ADA | {"Origin": "https://a.example"}) for path in (*FILES, *LOOKS)]
    for answer in answers:
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]
    assert client.get("/admin/stats", headers=ADA).headers["Cache-Control"] == "no-store"


def test_a_read_only_desk_shows_all_and_changes_nothing(
    new_client: Callable[..., FlaskClient],
    raw: redis.Redis,
    new_member: NewMember,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = new_client(**KEYS, admin_read_only=True)
    give_up(raw, new_member(), new_job(**IMAGE).to_text())
    before = {key: raw.dump(key) for key in raw.keys("*")}
    (letter,) = client.get("/admin/dead-letters", headers=ADA).get_json()["dead_letters"]
    assert client.get("/admin/stats", headers=ADA).get_json()["read_only"] is True
    assert client.get(f"/admin/dead-letters/{letter['name']}/thumbnail", headers=ADA).status_code == 200
    for method, path, body in ACTS:
        caplog.clear()
        answer = client.open(
            path.replace("letters/x", f"letters/{letter['name']}"), method=method, data=body, headers=ADA
        )
        assert answer.status_code == 403
        assert "ADMIN_READ_ONLY" in error_of(answer)
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(f"{method} {path.replace('/x', '/<name>')} by ada: 403: ")
        assert client.open(path, method=method, data=body).status_code == 401  # whoever has no key is not told
    assert {key: raw.dump(key) for key in raw.keys("*")} == before


# What it shows


def test_the_stats_tell_both_lanes_the_model_servers_and_redis(
    client: FlaskClient, queue: JobQueue, raw: redis.Redis, new_member: NewMember
) -> None:
    first = new_member(served=SERVED, labels=["a"])
    new_member(served=SERVED, labels=["a"])
    other = new_member(served=Served("ResNet50", "4567", "float32", "openvino", 224, 224, 3, "x"), labels=["a"])
    push(raw, 3, submitted_at=queue.now() - 5)
    first.take(2)
    raw.rpush("{image_queue}:bulk", new_job(submitted_at=queue.now() - 60).to_text())
    told = client.get("/admin/stats", headers=SECOND).get_json()
    assert (told["operator"], told["read_only"], told["paused"], told["draining"]) == ("key-2", False, False, False)
    assert (told["people"]["waiting"], told["people"]["in_flight"]) == (1, 2)
    assert 5 <= told["people"]["oldest_waiting_seconds"] < 30
    assert (told["bulk"]["waiting"], told["bulk"]["in_flight"]) == (1, 0)
    assert 60 <= told["bulk"]["oldest_waiting_seconds"] < 90
    servers = {server["name"]: server for server in told["model_servers"]}
    assert servers[first.name]["in_hand"] == 2
    assert 0 < servers[first.name]["lease_seconds_left"] <= 10
    assert servers[first.name]["differs"] == ""
    assert servers[other.name]["differs"] == "version 4567 instead of 0123"
    assert servers[first.name]["process_id"] > 0
    assert told["redis"]["version"] == version_of(raw)
    assert told["redis"]["used_bytes"] > 100_000


def test_a_look_costs_redis_one_script(client: FlaskClient, raw: redis.Redis) -> None:
    client.get("/admin/stats", headers=ADA)  # asks INFO as well, once in ten seconds

    def calls() -> dict[str, int]:
        ours = ("cmdstat_eval", "cmdstat_info")
        return {name: told["calls"] for name, told in raw.info("commandstats").items() if name in ours}

    before = calls()
    client.get("/admin/stats", headers=ADA)
    after = calls()
    assert after["cmdstat_eval"] - before["cmdstat_eval"] == 1
    assert after["cmdstat_info"] - before["cmdstat_info"] == 1  # that of `calls`


def test_dead_letters_are_listed_newest_first_and_so_many_as_are_asked_for(
    client: FlaskClient, raw: redis.Redis, new_member: NewMember
) -> None:
    jobs = [new_job() for _ in range(3)]
    give_up(raw, new_member(), *(job.to_text() for job in jobs), b"\xff garbage")
    told = client.get("/admin/dead-letters", headers=ADA).get_json()
    assert told["total"] == 4
    assert [letter["name"] for letter in told["dead_letters"][1:]] == [job.id for job in reversed(jobs)]
    assert [letter["place"] for letter in told["dead_letters"]] == [3, 2, 1, 0]
    assert {letter["reason"] for letter in told["dead_letters"]} == {"it failed"}
    few = client.get("/admin/dead-letters?limit=2", headers=ADA).get_json()
    assert (few["total"], few["dead_letters"]) == (4, told["dead_letters"][:2])
    for wrong in ("0", "201", "-1", "1e1", "x", "", "²"):
        answer = client.get("/admin/dead-letters", query_string={"limit": wrong}, headers=ADA)
        assert (answer.status_code, error_of(answer)) == (400, "?limit= is a whole number from 1 to 200.")


@pytest.mark.parametrize(
    "said", [b"\xff", b"\\ud800", b"\xed\xa0\x80"], ids=["no UTF-8", "half a character", "its bytes"]
)
def test_a_letter_of_others_whose_reason_is_no_text_hides_no_other_letter(
    client: FlaskClient, raw: redis.Redis, new_member: NewMember, said: bytes
) -> None:
    give_up(raw, new_member(), new_job().to_text())
    raw.rpush("{image_queue}:dead", b'{"id": "x", "at": 1, "attempts": 1, "reason": "so: %s", "job": "{}"}' % said)
    told = client.get("/admin/dead-letters", headers=ADA).get_json()
    assert [letter["reason"].rstrip("?") for letter in told["dead_letters"]] == ["so: ", "it failed"]


def test_two_letters_of_one_job_have_two_names_each_of_which_leads_to_its_own(
    client: FlaskClient, raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    job, member = new_job(), new_member()
    give_up(raw, member, job.to_text(), reason="first")
    give_up(raw, member, job.to_text(), reason="second")
    second, first = client.get("/admin/dead-letters", headers=ADA).get_json()["dead_letters"]
    assert (second["name"], second["reason"]) == (job.id, "second")
    assert first["name"] != job.id
    assert client.delete(f"/admin/dead-letters/{first['name']}", headers=ADA).status_code == 200
    (left,) = operator.read_letters(queue)
    assert left.reason == "second"


@pytest.mark.parametrize("size", [(48, 32), (300, 200), (1, 40)])
def test_a_letters_picture_is_shown_small(
    client: FlaskClient, raw: redis.Redis, new_member: NewMember, size: tuple[int, int]
) -> None:
    pixels = np.asarray(some_photo(*size))
    job = new_job(image=helpers.encode_image(pixels, "float32"), dtype="float32", shape=pixels.shape)
    give_up(raw, new_member(), job.to_text())
    answer = client.get(f"/admin/dead-letters/{job.id}/thumbnail?place=0", headers=ADA)
    assert (answer.status_code, answer.mimetype) == (200, "image/png")
    image = Image.open(io.BytesIO(answer.data))
    assert max(image.size) == 128
    assert answer.headers["Cache-Control"] == "no-store"
    # The gradients lie as in the photo: red to the right, green downwards.
    corner = np.asarray(image).astype(int)
    assert corner[-1, -1, 1] > corner[0, 0, 1] + 100
    assert size[0] == 1 or corner[0, -1, 0] > corner[0, 0, 0] + 100


def test_the_picture_of_a_job_that_tells_no_shape_has_the_models(
    client: FlaskClient, raw: redis.Redis, new_member: NewMember
) -> None:
    pixels = np.asarray(some_photo(224, 224))
    job = new_job(image=helpers.encode_image(pixels, "float32"))  # as the tutorial's
    give_up(raw, new_member(served=SERVED, labels=["a"]), job.to_text())
    assert client.get(f"/admin/dead-letters/{job.id}/thumbnail", headers=ADA).status_code == 200


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"\xff garbage", "not JSON"),
        (new_job(shape=(7, 7, 3)).to_text().encode(), "3 bytes"),
        (new_job(shape=(7, 7)).to_text().encode(), "its shape is (7, 7)"),
        (new_job(image="?").to_text().encode(), "not base64"),
        (new_job(**IMAGE | {"dtype": "int9"}).to_text().encode(), "int9"),
    ],
    ids=["garbage", "too short", "no shape of an image", "no base64", "unknown dtype"],
)
def test_a_letter_without_a_picture_says_why(
    client: FlaskClient, raw: redis.Redis, new_member: NewMember, text: bytes, says: str
) -> None:
    give_up(raw, new_member(), text)
    (letter,) = client.get("/admin/dead-letters", headers=ADA).get_json()["dead_letters"]
    answer = client.get(f"/admin/dead-letters/{letter['name']}/thumbnail", headers=ADA)
    assert answer.status_code == 422
    assert says in error_of(answer)
    assert error_of(answer).startswith("There is no image to see in this letter: ")


# What it does


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "operator"]


def test_the_queue_is_paused_drained_and_resumed_with_a_line_for_each_act(
    client: FlaskClient, queue: JobQueue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    states = []
    for name, value in (
        *(("paused", True), ("paused", True), ("draining", True)),
        *(("draining", False), ("paused", True), ("paused", False)),
    ):
        answer = client.post("/admin/queue", json={name: value}, headers=ADA)
        assert answer.status_code == 200
        seen = overview(queue)
        states.append((answer.get_json()["changed"], seen.is_paused, seen.is_draining))
    assert states == [
        *((True, True, False), (False, True, False), (True, False, True)),
        *((True, False, False), (True, True, False), (True, False, False)),
    ]
    said = [("pause", 1), ("pause", 0), ("drain", 1), ("resume", 1), ("pause", 1), ("resume", 1)]
    assert lines_of(caplog) == [f"{verb} image_queue: {count} changed, asked by ada" for verb, count in said]


def test_one_model_server_is_quiet_and_wakes(
    client: FlaskClient, queue: JobQueue, new_member: NewMember, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    name, other = new_member().name, new_member().name
    for is_quiet in (True, False):
        answer = client.post(f"/admin/servers/{name}", json={"quiet": is_quiet}, headers=ADA)
        assert answer.get_json() == {"success": True, "changed": True}
        assert {server.name: server.is_quiet for server in overview(queue).servers} == {name: is_quiet, other: False}
    assert lines_of(caplog) == [f"{verb} {name}: 1 changed, asked by ada" for verb in ("quiet", "wake")]
    unknown = client.post("/admin/servers/nobody%0A:1", json={"quiet": True}, headers=ADA)
    assert unknown.status_code == 404
    assert 'no model server "nobody?:1"' in error_of(unknown)


def test_a_letter_is_requeued_as_a_new_job_and_another_dropped(
    client: FlaskClient, raw: redis.Redis, queue: JobQueue, new_member: NewMember, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept, again, gone = (new_job(**IMAGE) for _ in range(3))
    member = new_member()
    give_up(raw, member, kept.to_text(), again.to_text(), gone.to_text())
    assert client.post(f"/admin/dead-letters/{again.id}/requeue?place=1", headers=ADA).status_code == 200
    assert client.delete(f"/admin/dead-letters/{gone.id}?place=2", headers=ADA).status_code == 200  # it has sunk to 1
    assert [letter.id for letter in operator.read_letters(queue)] == [kept.id]
    assert [Job.from_text(text) for text in member.take(8).jobs] == [again]
    assert lines_of(caplog) == [
        f"requeue dead letter {again.id}: 1 changed, asked by ada",
        f"drop dead letter {gone.id}: 1 changed, asked by ada",
    ]
    for answer in (
        client.delete(f"/admin/dead-letters/{gone.id}?place=2", headers=ADA),
        client.post(f"/admin/dead-letters/{gone.id}/requeue", headers=ADA),
        client.get(f"/admin/dead-letters/{gone.id}/thumbnail", headers=ADA),
    ):
        assert answer.status_code == 404
        assert error_of(answer).startswith(f'There is no dead letter "{gone.id}"')
    assert len(lines_of(caplog)) == 2


def test_a_letter_that_holds_no_job_is_not_requeued_and_stays(
    client: FlaskClient, raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    give_up(raw, new_member(), b"\xff garbage")
    (letter,) = operator.read_letters(queue)
    answer = client.post(f"/admin/dead-letters/{letter.name}/requeue", headers=ADA)
    assert answer.status_code == 422
    assert error_of(answer).endswith("Drop it.")
    assert operator.read_letters(queue) == [letter]
    assert client.delete(f"/admin/dead-letters/{letter.name}", headers=ADA).status_code == 200
    assert operator.read_letters(queue) == []


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"x", b"[]", b"null", b"{}", b"\xff", b'{"paused": 1}', b'{"paused": "true"}', b'{"quiet": true}'),
        *(b'{"paused": true, "draining": true}', b'{"paused": true}' + b" " * 2000, b"[" * 900),
    ],
)
def test_a_body_that_makes_no_sense_is_refused_and_changes_nothing(
    client: FlaskClient, raw: redis.Redis, body: bytes
) -> None:
    answer = client.post("/admin/queue", data=body, headers=ADA)
    assert answer.status_code == 400
    assert error_of(answer) == 'The body must be JSON, {"paused": true} or {"draining": true}, or the same with false.'
    assert raw.keys("*") == []


def test_while_redis_is_away_it_says_so(new_client: Callable[..., FlaskClient]) -> None:
    client = new_client(**KEYS)
    client.application.extensions["models"].default.queue.redis = JobQueue("redis://127.0.0.1:1/0", "image_queue").redis
    for answer in (
        client.get("/admin/stats", headers=ADA),
        client.get("/admin/dead-letters", headers=ADA),
        client.post("/admin/queue", json={"paused": True}, headers=ADA),
    ):
        assert answer.status_code == 503
        assert "queue cannot be reached" in error_of(answer)
