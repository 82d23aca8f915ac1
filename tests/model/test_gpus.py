"""GPUs told by their devices, and who gets which. Here there are none: files stand for them."""

from pathlib import Path

import pytest
from conftest import ROOT, model_of

import service_parts
import settings
from serving.model import gpu_packages, gpus
from serving.model.gpus import CUDA_VISIBLE_DEVICES


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.delenv(CUDA_VISIBLE_DEVICES, raising=False)
    (tmp_path / "nvidiactl").touch()  # the driver's, and none of a GPU
    return tmp_path


def has(devices: Path, *numbers: int) -> None:
    for number in numbers:
        (devices / f"nvidia{number}").touch()


def test_a_gpu_is_seen_whatever_its_number(devices: Path) -> None:
    assert not gpus.is_there_any()
    assert gpus.nvidia(None) == []
    has(devices, 1)
    assert gpus.is_there_any()
    assert gpus.nvidia(None) == ["0"]  # as CUDA calls the only one that it sees


@pytest.mark.parametrize("device", ["kfd", "dxg"])
def test_amds_gpus_and_those_below_windows_are_seen(devices: Path, device: str) -> None:
    (devices / device).touch()
    assert gpus.is_there_any()
    assert gpus.nvidia(None) == []


def test_what_the_environment_chooses_limits_them(devices: Path) -> None:
    has(devices, 0, 1, 2)
    assert gpus.nvidia("2, GPU-8f1c") == ["2", "GPU-8f1c"]
    assert gpus.nvidia("") == []


def test_each_model_server_gets_a_gpu_in_turns(devices: Path) -> None:
    has(devices, 0, 1)
    assert gpus.pinned(3, None) == [
        {CUDA_VISIBLE_DEVICES: "0"},
        {CUDA_VISIBLE_DEVICES: "1"},
        {CUDA_VISIBLE_DEVICES: "0"},
    ]
    assert gpus.pinned(2, "5,7") == [{CUDA_VISIBLE_DEVICES: "5"}, {CUDA_VISIBLE_DEVICES: "7"}]


def test_where_there_is_nothing_to_choose_nothing_is_said(devices: Path) -> None:
    assert gpus.pinned(2, None) == [{}, {}]
    has(devices, 0)
    assert gpus.pinned(2, None) == [{}, {}]


def test_one_model_server_for_each_gpu_unless_told_otherwise(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_packages, "are_there", lambda framework: True)
    assert service_parts.how_many_model_servers(model_of(settings.Settings())) == 1
    has(devices, 0, 1, 2)
    assert service_parts.how_many_model_servers(model_of(settings.Settings())) == 3
    assert service_parts.how_many_model_servers(model_of(settings.Settings(model_runtime="openvino"))) == 1
    assert service_parts.how_many_model_servers(model_of(settings.Settings(model_servers=2))) == 2
    monkeypatch.setenv(CUDA_VISIBLE_DEVICES, "1")
    assert service_parts.how_many_model_servers(model_of(settings.Settings())) == 1


def test_the_command_that_brings_what_a_gpu_needs_installs_the_jax_that_the_tests_run_on() -> None:
    pinned = gpus.JAX.replace("[cuda13]", "")
    assert pinned in (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert f'-m pip install "{gpus.JAX}"' in gpus.HOW_TO_USE
    assert "KERAS_BACKEND=jax" in gpus.HOW_TO_USE
    assert f'pip install "{gpus.JAX}"' in (ROOT / "docs" / "operations.md").read_text()
