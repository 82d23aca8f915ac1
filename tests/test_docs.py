"""Documentation that is tested moves with the code."""

import re
import subprocess

import pytest
from conftest import ROOT

import settings
from serving import errors
from serving.images import decode

README = (ROOT / "README.md").read_text()
FIELDS = settings.Settings.model_fields


def rows(table_head: str) -> list[list[str]]:
    """The cells of the README's table under a head line."""
    lines = README[README.index(table_head) :].splitlines()[2:]
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


SETTINGS = {
    name: row[1].split(", ")[position] if ", " in row[1] else row[1]
    for row in rows("| name | default | |")
    for position, name in enumerate(re.findall(r"`([A-Z_]+)`", row[0]))
}


def test_every_setting_is_in_the_readme_and_no_other() -> None:
    assert set(SETTINGS) == {name.upper() for name in FIELDS}


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_settings_default_in_the_readme_is_the_codes(name: str) -> None:
    default = FIELDS[name].default
    told = SETTINGS[name.upper()].strip("`")
    if FIELDS[name].default_factory is not None:
        assert told == "one per CPU"
    elif default is None:
        assert told == "unset"
    else:
        assert told == str(default)


def test_every_status_is_in_the_readme() -> None:
    assert {int(row[0]) for row in rows("| status | when | what to do |")} == {200, *errors.statuses()}


def test_every_error_class_is_drawn_in_the_tree() -> None:
    drawn = errors.__doc__ or ""
    for name, value in vars(errors).items():
        if isinstance(value, type):
            assert re.search(rf"\b{name}\b", drawn), name


def test_the_readme_names_every_format() -> None:
    assert all(name.lower() in README.lower() for name in decode.FORMATS)


def test_the_guarantee_is_in_bold() -> None:
    assert "**An accepted job may be computed more than once, is answered at most once, and is never lost" in README


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_what_a_page_links_to_and_names_exists(page: str) -> None:
    folder = (ROOT / page).parent
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (folder / target).exists(), target
    for name in re.findall(r"`((?:serving|tests|docs|benchmarks|deploy)/[\w./]+|run_\w+\.py|stress_test\.py)`", text):
        assert (ROOT / name).exists(), name


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    records = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert re.findall(r"\]\(([^)]+)\)", index) == records


def test_every_make_target_of_the_readme_exists() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^  make (\S+)", listed, flags=re.MULTILINE))
    assert {"run", "test", "lint", "format", "stress", "help"} <= targets
    assert set(re.findall(r"`make (\w+)", README)) | {"run"} <= targets


def test_the_versions_of_requirements_are_pinned() -> None:
    for name in ("requirements.txt", "constraints.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r", "-c")):
                assert re.match(r"[\w\[\],.-]+==[\w.]+(;.*)?( *#.*)?$", line), line
