"""Who imports whom: stories -> serving.* -> serving.errors; one outside library, one module; no settings below."""

import ast
import sys
from pathlib import Path

import pytest
from conftest import ROOT

STORIES = ["run_web_server.py", "run_model_server.py", "run_service.py", "dead_letters.py"]
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "serving").glob("*.py"))
OURS = {"settings", "helpers", "serving", *(Path(name).stem for name in STORIES)}

# Outside libraries and the one module (of stories and serving/) that may import each.
ONLY_IN = {
    "PIL": "serving/images.py",
    "cykooz_resizer": "serving/resampling.py",
    "redis": "serving/redis_connection.py serving/redis_wire.py",
    "hiredis": "serving/redis_wire.py",
    "orjson": "serving/job_queue.py serving/queue_client.py",
    "pybase64": "helpers.py",
    "keras": "serving/model.py",
    "openvino": "serving/openvino_runtime.py",
    "multipart": "serving/uploads.py",
    "gunicorn": "serving/gunicorn_server.py serving/gunicorn_worker.py",
    "flask_cors": "serving/headers.py",
    "prometheus_client": "serving/metrics.py",
    "pydantic": "settings.py",
    "pydantic_settings": "settings.py",
    "rich": "run_service.py dead_letters.py",  # what people see on a terminal
}
# Modules of serving/ that each may import, besides errors. What is not here imports none.
MAY_IMPORT = {
    "images": {"resampling"},
    "redis_connection": {"redis_wire"},
    "job_queue": {"redis_connection"},
    "pending": {"job_queue"},
    "queue_client": {"admission", "combining", "job_queue", "pending"},
    "queue_worker": {"job_queue"},
    "predicting": {"queue_worker", "staging"},
    "batching": {"predicting", "queue_worker", "staging"},
    "dead_letters": {"job_queue"},
    "metrics": {"queue_worker"},
    "model": {"classifier"},
    "openvino_runtime": {"classifier"},
    "gunicorn_server": {"gunicorn_worker"},
    "http": {"job_queue", "metrics", "openapi"},
}


def imported(name: str) -> set[str]:
    """Every module that a file names in an import, wherever it stands: `serving.errors` for both ways to write it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "serving" else {node.module}
            )
    return found


def outside(name: str) -> set[str]:
    return {module.split(".")[0] for module in imported(name)} - set(sys.stdlib_module_names) - OURS


@pytest.mark.parametrize("name", ["settings.py", "helpers.py", "serving/errors.py"])
def test_the_lowest_modules_import_nothing_of_ours(name: str) -> None:
    assert {module.split(".")[0] for module in imported(name)} & OURS == set()


@pytest.mark.parametrize("name", MODULES)
def test_imports_under_serving_point_down_only(name: str) -> None:
    ours = {module for module in imported(name) if module.split(".")[0] in OURS}
    allowed = {"errors"} | MAY_IMPORT.get(Path(name).stem, set())
    assert ours <= {f"serving.{module}" for module in allowed}


def test_images_queue_and_model_do_not_know_each_other() -> None:
    for name in ("images", "job_queue", "model"):
        assert (
            imported(f"serving/{name}.py") & {f"serving.{other}" for other in ("images", "job_queue", "model")} == set()
        )


@pytest.mark.parametrize("library", ONLY_IN)
def test_one_outside_library_is_known_by_one_module(library: str) -> None:
    users = [name for name in ["settings.py", "helpers.py", *STORIES, *MODULES] if library in outside(name)]
    assert users == ONLY_IN[library].split()


@pytest.mark.parametrize("name", MODULES)
def test_nothing_under_serving_reads_settings_or_the_environment(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text())
    reads = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.getenv", "os.environ.get")
    ]
    # The Prometheus library's own switch between one process and several.
    assert [read for read in reads if "PROMETHEUS_MULTIPROC_DIR" not in read] == []


def test_only_run_model_server_imports_the_model() -> None:
    users = [name for name in [*STORIES, *MODULES] if "serving.model" in imported(name)]
    assert users == ["run_model_server.py"]


@pytest.mark.parametrize("name", STORIES)
def test_a_story_draws_its_data_path_and_its_functions_are_short(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text())
    assert "-->" in (ast.get_docstring(tree) or "")
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    long = {function.name: function.end_lineno - function.lineno + 1 for function in functions}  # type: ignore[operator]
    assert {name: lines for name, lines in long.items() if lines > 30} == {}


def test_no_file_is_longer_than_reads_in_one_go() -> None:
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in [*STORIES, *MODULES]}
    assert {name: count for name, count in lines.items() if count > 300} == {}


def test_every_public_thing_has_a_docstring() -> None:
    bare = []
    for name in ["settings.py", "helpers.py", *STORIES, *MODULES]:
        for node in ast.parse((ROOT / name).read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                is_error = name == "serving/errors.py"  # drawn as a tree at the head of the file
                if not is_error and not ast.get_docstring(node):
                    bare.append(f"{name}: {node.name}")
    assert bare == []
