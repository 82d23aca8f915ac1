"""Which build runs: what git, the image and pyproject.toml tell, and nothing that they do not."""

import platform
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from serving.telemetry.build import Build, build_of


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=tests", "-c", "user.email=tests@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "7.8"\n')
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    git(tmp_path, "tag", "-a", "v7.8", "-m", "a tag is no commit")
    return tmp_path


def test_a_clone_tells_its_commit_and_whether_files_have_changed_since(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD").strip()
    assert build_of(repository, "unknown") == Build("7.8", head[:12], platform.python_version())
    assert build_of(repository, "f" * 40).commit == head[:12]  # what git tells counts
    (repository / "notes.txt").write_text("git does not know it")
    assert build_of(repository, "unknown").commit == head[:12]
    (repository / "pyproject.toml").write_text('[project]\nversion = "7.9"\n')
    assert build_of(repository, "unknown") == Build("7.9", f"{head[:12]}-dirty", platform.python_version())


def test_an_image_has_no_git_and_tells_the_commit_that_it_was_built_of(tmp_path: Path) -> None:
    assert build_of(tmp_path, "0123456789abcdef0123456789abcdef01234567").commit.startswith("0123456789ab")
    for nothing in ("unknown", "", "HEAD", "main", "0123456 7", "012345", "0123456\n\x00"):
        assert build_of(tmp_path, nothing) == Build("unknown", "unknown", platform.python_version())


def test_the_commit_of_a_repository_around_the_folder_is_not_its_own(repository: Path) -> None:
    copy = repository / "service"
    copy.mkdir()
    assert build_of(copy, "unknown").commit == "unknown"
    (copy / ".git").mkdir()  # no repository, though it is called so
    assert build_of(copy, "unknown").commit == "unknown"


def test_this_service_knows_its_version(tmp_path: Path) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", build_of(ROOT, "unknown").version)
    (tmp_path / "pyproject.toml").write_text("[project\n")
    assert build_of(tmp_path, "unknown").version == "unknown"
