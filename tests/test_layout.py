"""Who imports whom, wing by wing; one outside library, one wing; the map; no settings below the stories."""

import ast
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

STORIES = [
    "run_web_server.py",
    "web_parts.py",
    "run_model_server.py",
    "model_parts.py",
    "run_service.py",
    "service_parts.py",
    "queue_admin.py",
    "dead_letters.py",
]
SETTINGS = ["settings.py", "models_file.py"]
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "serving").rglob("*.py"))
OURS = {
    "settings",
    "models_file",
    "helpers",
    "serving",
    "client",
    "stress_test",
    *(Path(name).stem for name in STORIES),
}

# What each wing may import besides itself and errors: a wing, or one module of it.
MAY_IMPORT = {
    "web": ["jobs", "images", "telemetry"],
    "batching": ["jobs.job", "jobs.model_queue", "model.runtime", "telemetry"],
    "images": [],
    "jobs": [],
    "model": [],
    "telemetry": [],
    "local": ["jobs", "telemetry.log_relay"],
}
# Outside libraries and the one place (of stories and serving/) that may import each.
ONLY_IN = {
    "PIL": "serving/images/ serving/local/load_images.py",
    "aiohttp": "serving/local/load.py",
    "cykooz_resizer": "serving/images/resize.py",
    "redis": "serving/jobs/redis_client.py serving/jobs/redis_url.py",
    "orjson": "serving/telemetry/logs.py serving/jobs/ "
    "serving/web/infer_request.py serving/web/tensors.py serving/web/model_tensors.py",
    "pybase64": "helpers.py",
    "keras": "serving/model/keras_setup.py",
    "openvino": "serving/model/openvino_store.py",
    "multipart": "serving/web/uploads.py",
    "gunicorn": "serving/web/server.py serving/web/gunicorn_worker.py",
    "gevent": "serving/web/server.py serving/web/gunicorn_worker.py serving/web/arrival.py serving/web/patch.py "
    "serving/web/door.py",
    "flask": "serving/web/ run_web_server.py",
    "flask_cors": "serving/web/access.py",
    "flask_swagger_ui": "serving/web/api_docs.py",
    "prometheus_client": "serving/telemetry/",
    "opentelemetry": "serving/telemetry/traces.py serving/telemetry/otlp.py",
    "dotenv": "settings.py",
    "structlog": "serving/telemetry/logs.py",
    "pydantic": "settings.py",
    "ruamel": "models_file.py",
    "pydantic_settings": "settings.py",
    "rich": "serving/local/",  # what people see on a terminal
}


def imported(name: str) -> set[str]:
    """Every module that a file imports from, wherever it stands: `serving.jobs.job_queue` for both ways to write it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            is_package = (ROOT / node.module.replace(".", "/") / "__init__.py").exists()
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if is_package else {node.module}
    return found


def outside(name: str) -> set[str]:
    return {module.split(".")[0] for module in imported(name)} - set(sys.stdlib_module_names) - OURS


def ours(name: str) -> set[str]:
    """Modules of serving/ that a file imports, as `jobs.job_queue`; of the others (settings, a story) their names."""
    return {
        module.removeprefix("serving.")
        for module in imported(name)
        if module.split(".")[0] in OURS and module != "serving"
    }


@pytest.mark.parametrize("name", ["settings.py", "models_file.py", "helpers.py", "serving/errors.py"])
def test_the_lowest_modules_import_nothing_of_ours(name: str) -> None:
    assert ours(name) == ({"models_file"} if name == "settings.py" else set())


def test_the_client_can_be_copied_alone() -> None:
    assert ours("client.py") == set()
    assert outside("client.py") == {"httpx2", "rich", "PIL"}


def test_the_wings_are_those_that_imports_are_told_of() -> None:
    assert {Path(name).parts[1] for name in MODULES if len(Path(name).parts) == 3} == set(MAY_IMPORT)
    directly = [name for name in MODULES if len(Path(name).parts) == 2]
    assert directly == ["serving/__init__.py", "serving/errors.py"]


@pytest.mark.parametrize("wing", MAY_IMPORT)
def test_imports_between_wings_point_one_way(wing: str) -> None:
    allowed = ["errors", wing, *MAY_IMPORT[wing]]
    for name in (name for name in MODULES if Path(name).parts[1] == wing):
        strangers = {
            module
            for module in ours(name) - {"helpers"}
            if not any(module == place or module.startswith(f"{place}.") for place in allowed)
        }
        assert strangers == set(), name


def test_the_encoding_of_images_is_known_where_a_job_is_made_and_read() -> None:
    assert [name for name in MODULES if "helpers" in ours(name)] == [
        "serving/batching/fetcher.py",
        "serving/web/admin_letters.py",  # thumbnails
        "serving/web/pictures.py",
    ]


def test_no_import_leads_back_to_where_it_began() -> None:
    edges = {name.removeprefix("serving/").removesuffix(".py").replace("/", "."): ours(name) for name in MODULES}

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, " -> ".join([*path, module])
        for target in edges.get(module, ()):
            visit(target, [*path, module])

    for module in edges:
        visit(module, [])


def test_the_map_names_every_module_and_no_other() -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / "serving" / "__init__.py").read_text())) or ""
    named = re.findall(r"^    ([a-z_]+(?:/[a-z_]+)?)  +\S", docstring, re.MULTILINE)
    there = {name.removeprefix("serving/").removesuffix(".py") for name in MODULES if not name.endswith("__init__.py")}
    assert sorted(named) == sorted(there)


@pytest.mark.parametrize("library", ONLY_IN)
def test_one_outside_library_is_known_in_one_place(library: str) -> None:
    users = [name for name in [*SETTINGS, "helpers.py", *STORIES, *MODULES] if library in outside(name)]
    assert users
    for name in users:
        assert any(name.startswith(place) for place in ONLY_IN[library].split()), name


@pytest.mark.parametrize("name", MODULES)
def test_nothing_under_serving_reads_settings_or_the_environment(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text())
    reads = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.getenv", "os.environ.get")
    ]
    assert reads == []


def test_keras_is_imported_only_where_a_model_is_chosen() -> None:
    users = {name for name in [*STORIES, *MODULES] if any("model.keras_" in module for module in ours(name))}
    users = {name for name in users if not Path(name).name.startswith("keras_")}
    assert users == {"serving/model/choose.py", "serving/model/labels.py"}


@pytest.mark.parametrize("name", STORIES)
def test_a_story_draws_its_data_path_and_its_functions_are_short(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text())
    assert "-->" in (ast.get_docstring(tree) or "")
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    long = {function.name: function.end_lineno - function.lineno + 1 for function in functions}  # type: ignore[operator]
    assert {name: lines for name, lines in long.items() if lines > 30} == {}


def test_no_file_is_longer_than_reads_in_one_go() -> None:
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in ["models_file.py", *STORIES, *MODULES]}
    assert {name: count for name, count in lines.items() if count > 250} == {}


def test_every_public_thing_has_a_docstring() -> None:
    bare = []
    for name in [*SETTINGS, "helpers.py", *STORIES, *MODULES]:
        for node in ast.parse((ROOT / name).read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                is_error = name == "serving/errors.py"  # drawn as a tree at the head of the file
                if not is_error and not ast.get_docstring(node):
                    bare.append(f"{name}: {node.name}")
    assert bare == []
