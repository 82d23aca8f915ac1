"""deploy/monitoring: a real Prometheus reads its files, tests its alerts, and asks both real processes and Redis.

Prometheus, promtool and redis_exporter are Debian's; a test that needs one of them is skipped where it is missing.
"""

import json
import re
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    ROOT,
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    http,
    is_up,
    some_photo,
    upload,
    wait_for,
)
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML
from test_docs import anchors

import settings

HERE = ROOT / "deploy" / "monitoring"
OPERATIONS = ROOT / "docs" / "operations.md"
KEY = "a-key-that-prometheus-has-not"
DASHBOARD: dict[str, Any] = json.loads((HERE / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
# What Prometheus itself makes.
OF_PROMETHEUS = {"up", "ALERTS"}


def yaml(name: str) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load((HERE / name).read_text())  # type: ignore[no-any-return]


ALERTS: list[dict[str, Any]] = yaml("alerts.yml")["groups"][0]["rules"]
TESTS: list[dict[str, Any]] = yaml("alerts.test.yml")["tests"]
NAMES = [alert["alert"] for alert in ALERTS]


def program(*names: str) -> str:
    """The path of a program under one of these names; without it the test is skipped."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"{names[0]} is not installed: apt-get install prometheus prometheus-redis-exporter")
    return found


def expressions() -> list[str]:
    """Every query of the dashboard and of the alerts, as Prometheus gets them."""
    asked = [target["expr"] for panel in PANELS for target in panel["targets"]]
    asked += [note["expr"] for note in DASHBOARD["annotations"]["list"]] + [alert["expr"] for alert in ALERTS]
    return [filled(query) for query in asked]


def filled(query: str) -> str:
    """A query of the dashboard as Grafana sends it while all models are chosen."""
    return query.replace("$__rate_interval", "1m").replace("$model", ".*")


def metrics_in(query: str) -> set[str]:
    """The metrics that a query names."""
    query = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]', "", query)
    query = re.sub(r"\b(?:by|without) \([^)]*\)", "", query)
    words = set(re.findall(r"\b[a-zA-Z_][\w:]*\b(?!\s*\()", query))
    return words - {"or", "and", "unless", "by", "without", "offset", "bool", "le"}


def test_what_a_query_names_is_found() -> None:
    query = 'histogram_quantile(0.99, sum by (le) (rate(a_bucket{route=~"x|y"}[5m]))) / (b > 0) or absent(up{job="c"})'
    assert metrics_in(query) == {"a_bucket", "b", "up"}


# --- Prometheus's files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "alerts.test.yml")])
def test_promtool_takes_the_configuration_and_the_alerts_pass_their_tests(arguments: tuple[str, ...]) -> None:
    run = subprocess.run([program("promtool"), *arguments], cwd=HERE, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_an_alert_says_how_bad_it_is_what_happened_and_where_its_remedy_stands(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    summary, description = alert["annotations"]["summary"], alert["annotations"]["description"]
    assert summary
    page, anchor = re.search(r"What to do: (docs/[\w.]+)#(\w+)$", description).groups()  # type: ignore[union-attr]
    assert anchor == alert["alert"].lower()
    assert anchor in anchors(ROOT / page)
    for panel in re.findall(r'panel "([^"]+)"', description):
        assert panel in [one["title"] for one in PANELS]


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_is_tested_to_fire_and_not_to_fire(name: str) -> None:
    cases = [case for test in TESTS for case in test["alert_rule_test"] if case["alertname"] == name]
    assert {bool(case.get("exp_alerts")) for case in cases} == {True, False}
    quiet = [test for test in TESTS if not any(case.get("exp_alerts") for case in test["alert_rule_test"])]
    assert name in {case["alertname"] for test in quiet for case in test["alert_rule_test"]}


def test_no_alert_is_told_of_that_is_not_there() -> None:
    assert {case["alertname"] for test in TESTS for case in test["alert_rule_test"]} == set(NAMES)
    told = re.findall(r"^#### (\w+)$", OPERATIONS.read_text(), flags=re.MULTILINE)
    assert told == NAMES


def test_a_job_is_too_old_at_half_of_the_time_that_its_request_has() -> None:
    (alert,) = (alert for alert in ALERTS if alert["alert"] == "OldestJobTooOld")
    (bound,) = re.findall(r"> (\d+)$", alert["expr"])
    assert float(bound) == settings.Settings.model_fields["request_timeout_seconds"].default / 2


# --- Compose's network -------------------------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text())
    return YAML(typ="safe", pure=True).load(text)["services"]  # type: ignore[no-any-return]


def test_prometheus_asks_the_services_of_compose_where_they_answer() -> None:
    services, jobs = compose(), {job["job_name"]: job for job in yaml("prometheus.yml")["scrape_configs"]}
    assert jobs.keys() == {"web", "model", "redis"}
    for name in ("web", "model"):  # by DNS, so that each of several containers is asked
        (asked,) = jobs[name]["dns_sd_configs"]
        assert (asked["names"], asked["type"]) == ([name], "A")
        assert name in services
    web = services["web"]["environment"]["WEB_METRICS_PORT"]
    assert jobs["web"]["dns_sd_configs"][0]["port"] == int(web)
    assert jobs["model"]["dns_sd_configs"][0]["port"] == settings.Settings.model_fields["metrics_port"].default
    ((target,),) = (config["targets"] for config in jobs["redis"]["static_configs"])
    assert target == "redis-exporter:9121"
    assert services["redis-exporter"]["environment"]["REDIS_ADDR"] == "redis://redis:6379"


def test_the_profile_brings_pinned_images_whose_files_are_there() -> None:
    services = compose()
    brought = {name: service for name, service in services.items() if service.get("profiles")}
    assert {name: service["profiles"] for name, service in brought.items()} == {
        name: ["monitoring"] for name in ("prometheus", "grafana", "redis-exporter")
    }
    for name, service in brought.items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), name
        for volume in service.get("volumes", []):
            source, _, options = volume.partition(":")
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
                assert options.endswith(":ro")
        for needed, how in service["depends_on"].items():
            assert needed in services
            assert how["condition"] == "service_started" or "healthcheck" in services[needed]


def test_grafana_finds_its_data_source_and_the_dashboard() -> None:
    provisioning = HERE / "grafana" / "provisioning"
    (source,) = yaml("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml("grafana/provisioning/dashboards/classification.yml")["providers"]
    mounted = dict(volume.split(":")[:2] for volume in compose()["grafana"]["volumes"])
    assert mounted[f"./{provisioning.relative_to(ROOT)}"] == "/etc/grafana/provisioning"
    shown = mounted[f"./{(HERE / 'dashboard.json').relative_to(ROOT)}"]
    assert Path(shown).parent == Path(provider["options"]["path"])
    assert compose()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == shown


# --- the dashboard -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_no_panel_lies_on_another_and_each_has_its_own_name() -> None:
    places = [panel["gridPos"] for panel in PANELS]
    taken = [
        (x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(taken) == len(set(taken))
    assert all(0 <= x < 24 for x, _ in taken)
    assert len({panel["title"] for panel in PANELS}) == len({panel["id"] for panel in PANELS}) == len(PANELS)
    source, model = DASHBOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert (model["name"], model["type"]) == ("model", "query")
    assert (model["query"], model["allValue"]) == ("label_values(classify_model_servers, model)", ".*")


def test_every_query_of_a_model_asks_for_the_chosen_ones() -> None:
    of_all = {"classify_redis_up", "classify_build_info"}
    for panel in PANELS:
        for target in panel["targets"]:
            for name, labels in re.findall(r"\b(classify_\w+)(\{[^}]*\})?", target["expr"]):
                assert name in of_all or 'model=~"$model"' in labels, (panel["title"], name)


# --- a real Prometheus -------------------------------------------------------------------------------------------


class Monitored:
    """A service with an API key, its Redis, and a Prometheus that has no key and asks all of them.

    Its models are those of MODELS_FILE in `settings`; else there is one, whose name is told by no label.
    """

    def __init__(self, processes: Processes, redis_url: str, settings: dict[str, str], folder: Path) -> None:
        self.labels_left_out = set() if "MODELS_FILE" in settings else {"model"}
        self.web, self.web_metrics, self.model, self.exporter, port = (free_port() for _ in range(5))
        self.url = f"http://127.0.0.1:{self.web}"
        self.prometheus = f"http://127.0.0.1:{port}"
        common = settings | {"API_KEY": KEY, "LEASE_SECONDS": "30"}
        processes.start("run_model_server.py", **common, METRICS_PORT=str(self.model))
        ports = {"WEB_PORT": str(self.web), "WEB_METRICS_PORT": str(self.web_metrics)}
        processes.start("run_web_server.py", **common, **ports, WEB_WORKERS="2")
        exporter = [program("redis_exporter", "prometheus-redis-exporter"), "-redis.addr", redis_url]
        address = f"127.0.0.1:{self.exporter}"
        self.others = [self.start([*exporter, "-web.listen-address", address], folder / "exporter.log")]
        (folder / "prometheus.json").write_text(json.dumps(self.config()))
        command = [program("prometheus"), f"--config.file={folder / 'prometheus.json'}"]
        command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
        self.others.append(self.start(command, folder / "prometheus.log"))

    def config(self) -> dict[str, Any]:
        """The file of deploy/monitoring, each second, with the addresses of this machine."""
        config, ports = yaml("prometheus.yml"), {"web": self.web_metrics, "model": self.model, "redis": self.exporter}
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(HERE / name) for name in config["rule_files"]]
        for job in config["scrape_configs"]:
            job.pop("dns_sd_configs", None)
            job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[job['job_name']]}"]}]
        return config

    def start(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """What Prometheus answers to a query, at this moment."""
        answer = http("GET", f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}")
        assert answer.status == 200, f"{query}: {answer.body.decode()}"
        return answer.json["data"]["result"]  # type: ignore[no-any-return]

    def value(self, query: str) -> float:
        """The one value of a query; NaN where there is none."""
        found = self.ask(query)
        return float(found[0]["value"][1]) if found else float("nan")

    def end(self) -> None:
        for process in self.others:
            process.kill()
            process.wait()


@pytest.fixture(scope="module", params=["one model", pytest.param("two models", marks=pytest.mark.slow)])
def monitored(
    redis_server: RedisServer,
    light_model: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Monitored]:
    folder, is_one = tmp_path_factory.mktemp("prometheus"), request.param == "one model"
    program("prometheus")
    program("redis_exporter", "prometheus-redis-exporter")
    redis_server.client.flushall()
    processes = Processes({"REDIS_URL": redis_server.url})
    service = Monitored(processes, redis_server.url, light_model if is_one else two_of(light_model, folder), folder)
    try:
        wait_for(lambda: is_up(f"{service.url}/v2/health/ready"))  # all models
        wait_for(lambda: is_up(f"{service.prometheus}/-/ready"))
        wait_for(lambda: service.value("count(up == 1)") == 3)
        for path in ("predict", "predict", "predict" if is_one else "predict/two"):
            assert upload(f"{service.url}/{path}", PHOTO, Authorization=f"Bearer {KEY}").status == 200
        before = service.value("count_over_time(up{job='web'}[1h])")
        wait_for(lambda: service.value("count_over_time(up{job='web'}[1h])") > before + 2)  # enough for a rate
        yield service
    finally:
        service.end()
        processes.end()


def two_of(light_model: dict[str, str], folder: Path) -> dict[str, str]:
    """Settings of a service of two models, `one` and `two`, both of which are `light_model`."""
    names = ("model", "runtime", "labels", "width", "height", "batch_size")
    settings = ("MODEL", "MODEL_RUNTIME", "MODEL_LABELS", "IMAGE_WIDTH", "IMAGE_HEIGHT", "BATCH_SIZE")
    model = {name: light_model[setting] for name, setting in zip(names, settings, strict=True)}
    (folder / "models.yaml").write_text(json.dumps({"models": {"one": model, "two": model}}))
    kept = {name: value for name, value in light_model.items() if name not in settings}
    return kept | {"MODELS_FILE": str(folder / "models.yaml")}


PHOTO = as_bytes(some_photo(), "JPEG")


def exposed(port: int) -> set[str]:
    """The names of the samples on a page for Prometheus."""
    page = http("GET", f"http://127.0.0.1:{port}/metrics").body.decode()
    return {sample.name for family in text_string_to_metric_families(page) for sample in family.samples}


def test_prometheus_reads_both_processes_without_the_services_key(monitored: Monitored) -> None:
    assert http("GET", f"{monitored.url}/metrics").status == 401
    assert monitored.value('sum(classify_requests_total{route="predict", status="200"})') == 3
    assert monitored.value('sum(classify_jobs_total{outcome="answered"})') == 3
    assert {one["value"][1] for one in monitored.ask("classify_model_servers")} == {"1"}
    assert monitored.value("redis_memory_used_bytes") > 0


def test_every_metric_of_the_dashboard_and_of_the_alerts_is_on_a_page(monitored: Monitored) -> None:
    there = exposed(monitored.web_metrics) | exposed(monitored.model) | exposed(monitored.exporter) | OF_PROMETHEUS
    named = set().union(*map(metrics_in, expressions()))
    assert named - there == set()
    ours = {name for name in there if name.startswith("classify_")}
    shown = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in named}
    missing = {name for name in ours if re.sub(r"_(bucket|sum|count)$", "", name) not in shown}
    assert missing == set(), "the dashboard does not show these"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_prometheus_answers_what_a_panel_asks(monitored: Monitored, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        found = monitored.ask(filled(target["expr"]))
        assert any(one["value"][1] != "NaN" for one in found), target["expr"]
        for name in {*re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])} - monitored.labels_left_out:
            assert all(name in one["metric"] for one in found), name


def test_the_dashboard_is_drawn_without_grafana(monitored: Monitored, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "draw_dashboard.py"), "--prometheus", monitored.prometheus]
    subprocess.run([*command, "--minutes", "1", "--to", str(tmp_path / "drawn.png")], check=True, capture_output=True)
    with Image.open(tmp_path / "drawn.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24)) > 50  # type: ignore[arg-type]


def test_while_all_is_well_no_alert_fires(monitored: Monitored) -> None:
    told = http("GET", f"{monitored.prometheus}/api/v1/rules").json["data"]["groups"]
    rules = {rule["name"]: rule for group in told for rule in group["rules"]}
    assert list(rules) == NAMES
    assert {name: rule["health"] for name, rule in rules.items()} == dict.fromkeys(NAMES, "ok")
    assert monitored.ask("ALERTS") == []
