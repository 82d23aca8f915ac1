"""Documentation that is tested moves with the code."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import settings
from serving import errors
from serving.model.choose import load_classifier
from serving.model.spec import ModelSpec

DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
FIELDS = settings.Settings.model_fields
RECORDS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
LISTED = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
# What git tracks; without git, as in an unpacked archive, what lies where documents do.
PAGES = [name for name in LISTED.split("\0") if name] or [
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"))
]


def rows(page: Path, table_head: str) -> list[list[str]]:
    """The cells of a page's table under a head line."""
    text = page.read_text()
    lines = text[text.index(table_head) :].splitlines()[2:]
    table = lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def links(text: str) -> list[str]:
    """What a page links to and shows, on this side of the network."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.append(anchor if anchor not in found else f"{anchor}-{found.count(anchor)}")
    return set(found)


def status_of(record: Path) -> str:
    """What stands behind `**Status:**`, right under a decision's title, on one line."""
    status = re.match(r"# .*\n\n\*\*Status:\*\* (.*?)\n\n", record.read_text(), flags=re.DOTALL)
    assert status, f"{record.name} has no status under its title"
    return " ".join(status[1].split())


def records_after(words: str, status: str) -> set[str]:
    """The file names of the decisions that a status names right after some words."""
    named = re.search(rf"{words} ((?:(?:, |and |parts of |a part of )*\[\d+\]\([^)]*\))+)", status)
    return set(links(named[1])) if named else set()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    for target in links((ROOT / page).read_text()):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in DOCS.glob("*.md"))])
def test_every_file_that_a_page_names_exists(page: str) -> None:
    scripts = r"run_\w+\.py|(?:stress_test|queue_admin|dead_letters|client)\.py"
    pattern = rf"`((?:serving|tests|docs|benchmarks|deploy)/[\w./]+|{scripts})`"
    for name in re.findall(pattern, (ROOT / page).read_text()):
        assert (ROOT / name).exists(), name


def test_the_table_of_the_settings_is_what_the_settings_say() -> None:
    assert f"\n{settings.as_table()}\n" in (DOCS / "settings.md").read_text(), "python settings.py prints the table"


def test_the_example_of_a_runtime_of_your_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(
        r"^```python\n(.*?)^```", (DOCS / "settings.md").read_text(), flags=re.MULTILINE | re.DOTALL
    )
    (tmp_path / "grey.py").write_text(example)
    (tmp_path / "labels.txt").write_text("dark\nbright\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MODEL_RUNTIME", "grey:Grey")
    runtime = settings.Settings().model_runtime
    model = load_classifier(ModelSpec("ResNet50", "imagenet", str(tmp_path / "labels.txt"), 8, 8, runtime=runtime))
    answer = model.answer(model.probabilities(np.full((3, 8, 8, 3), 255, np.uint8))[0])
    assert json.loads(answer)[0] == {"label": "bright", "probability": 1.0}


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_setting_has_a_row_with_its_default(name: str) -> None:
    told = {row[0].strip("`"): row[1].strip("`") for row in rows(DOCS / "settings.md", "| name | default |")}
    assert set(told) == {name.upper() for name in FIELDS}
    default = FIELDS[name].default
    if FIELDS[name].default_factory is not None:
        assert told[name.upper()] == "one for each CPU"
    elif default is None:
        assert told[name.upper()] == "unset"
    else:
        assert told[name.upper()] == str(default)


def test_every_error_class_is_drawn_in_the_tree() -> None:
    drawn = errors.__doc__ or ""
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert re.search(rf"\b{name}\b", drawn), name


def test_the_guarantee_is_in_bold() -> None:
    assert "**An accepted job may be computed more than once, is answered at most once, and is never lost" in README


def test_the_first_pages_are_short() -> None:
    assert len(README.splitlines()) <= 90
    assert len((DOCS / "performance.md").read_text().splitlines()) <= 60


def test_every_measurement_has_its_date_and_is_in_the_index() -> None:
    pages = {path.name for path in (DOCS / "measurements").glob("*.md")} - {"README.md"}
    assert all(re.match(r"20\d\d-\d\d-\d\d-", page) for page in pages)
    assert set(links((DOCS / "measurements" / "README.md").read_text())) == pages | {"../performance.md"}


def test_every_line_of_a_log_and_of_a_refusal_that_operations_quotes_is_in_the_code() -> None:
    files = *(ROOT / "serving").rglob("*.py"), *ROOT.glob("run_*.py"), *ROOT.glob("*_parts.py")
    sources = "\n".join(path.read_text() for path in files)
    page = DOCS / "operations.md"
    for row in rows(page, "| line | from | what it means |") + rows(page, "| sentence | limit |"):
        for quoted in re.findall(r"`([^`]+)`", row[0]):
            for words in re.split(r"\s*…[.:]?\s*|^POST /predict", quoted):
                assert words.strip(" :") in sources, words


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_decision_holds_or_names_what_replaced_it(record: Path) -> None:
    status = status_of(record)
    assert re.match(r"holds\b|replaced by \[", status), status
    replaced_by = records_after("replaced by", status)
    assert replaced_by <= {path.name for path in RECORDS}
    assert ("replaced by" in status) == bool(replaced_by)
    for name in replaced_by:
        assert record.name in records_after("replaces", status_of(record.parent / name)), name


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_what_a_decision_replaces_says_so(record: Path) -> None:
    replaced = records_after("replaces", status_of(record))
    assert bool(replaced) == ("replaces" in status_of(record))
    for name in replaced:
        assert record.name in records_after("replaced by", status_of(record.parent / name)), name


def test_the_index_of_the_decisions_has_each_with_its_status() -> None:
    told = {links(row[0])[0]: row[2] for row in rows(DOCS / "decisions" / "README.md", "| | | status |")}
    assert list(told) == [path.name for path in RECORDS]
    for record in RECORDS:
        status, by = status_of(record), records_after("replaced by", status_of(record))
        assert told[record.name].split()[0].strip(",") == re.split(r"[ ,;.]", status)[0], record.name
        assert set(links(told[record.name])) == by, record.name


def test_every_make_target_of_the_readme_exists() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^  make (\S+)", listed, flags=re.MULTILINE))
    assert {"run", "test", "lint", "format", "stress", "help"} <= targets
    named = {name for page in PAGES if "/measurements/" not in page for name in commands((ROOT / page).read_text())}
    assert named | {"run"} <= targets


def commands(text: str) -> list[str]:
    """The targets of make that a page names as code."""
    return re.findall(r"(?:`|^)make ([\w-]+)", text, flags=re.MULTILINE)


def test_the_versions_of_requirements_are_pinned() -> None:
    ours = [path.name for path in ROOT.glob("requirements*.txt")]
    assert "requirements-otel.txt" in ours
    for name in (*ours, "constraints.txt", "tests/requirements-torch.txt", "tests/requirements-triton.txt"):
        for line in (ROOT / name).read_text().replace("\\\n", "").splitlines():
            if line and not line.startswith(("#", "-r", "-c")):
                assert re.match(r"[\w\[\],.-]+==[\w.]+(;.*)?( *#.*)?$", line), line
                # A server program, made by few people: what was tried is what is installed.
                assert ("--hash=sha256:" in line) == (name == "requirements-redis.txt"), line


def test_the_frameworks_that_the_settings_name_are_those_of_the_tests() -> None:
    told = re.findall(r"\b(?:jax|torch)==[\d.]+\d", (DOCS / "settings.md").read_text())
    pinned = [ROOT / "requirements-dev.txt", ROOT / "tests" / "requirements-torch.txt"]
    lines = [line for path in pinned for line in path.read_text().splitlines()]
    assert told == [line for line in lines if line.startswith(("jax==", "torch=="))]
