"""`auto` beside a GPU that the framework does not see: the fastest runtime that is there, and a warning that says why.

Here are no GPUs: files stand for their devices, and Keras sees none.
"""

import re
from pathlib import Path

import pytest
import redis
from conftest import ROOT, Processes, output
from test_openvino_runtime import answer_of

from serving.model import gpus, openvino_store

pytestmark = pytest.mark.skipif(not openvino_store.is_installed(), reason="OpenVINO is not installed")

# The whole model server, whose devices are those of a folder.
WITH_DEVICES = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import run_model_server
from serving.model import gpus
gpus.DEVICES = Path(__file__).parent / "devices"
sys.exit(run_model_server.main())
"""
ON_JAX = {"KERAS_BACKEND": "jax", "MODEL_RUNTIME": "keras"}
WARNS = re.compile(
    r" WARNING serving\.model\.choose: this machine has a GPU, but Keras does not see it: (.+)$", re.MULTILINE
)


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "devices").mkdir()
    path = tmp_path / "model_server.py"
    path.write_text(WITH_DEVICES.format(root=str(ROOT)))
    return str(path)


@pytest.mark.parametrize(
    ("device", "settings", "loaded"),
    [
        ("nvidia0", {}, "on the CPU by OpenVINO"),
        pytest.param("dxg", ON_JAX, "on the CPU by Keras", marks=pytest.mark.slow),
        pytest.param("nvidia0", {"MODEL_RUNTIME": "keras"}, "on the CPU by Keras", marks=pytest.mark.slow),
    ],
)
def test_the_cpu_does_the_work_and_a_warning_says_why_and_what_to_do(
    processes: Processes,
    raw: redis.Redis,
    tiny_model: dict[str, str],
    script: str,
    device: str,
    settings: dict[str, str],
    loaded: str,
) -> None:
    Path(script).with_name("devices").joinpath(device).touch()
    process = processes.start(script, **tiny_model, **settings)
    assert answer_of(raw) == "green"
    (says,) = WARNS.findall(output(process))
    # TensorFlow's own words, or where it has none what Keras computes on.
    assert re.match("jax computes on the CPU|Could not find cuda drivers on your machine, GPU will not be used", says)
    assert says.endswith(f"The model runs on the CPU. {gpus.HOW_TO_USE}")
    assert loaded in output(process)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "runtime"), [("nvidiactl", "auto"), pytest.param("nvidia0", "openvino", marks=pytest.mark.slow)]
)
def test_nothing_is_said_where_no_gpu_is_wanted(
    processes: Processes, raw: redis.Redis, tiny_model: dict[str, str], script: str, device: str, runtime: str
) -> None:
    """The second start, of a model that is kept, does without Keras."""
    Path(script).with_name("devices").joinpath(device).touch()
    for _ in range(2):
        process = processes.start(script, "--redis-is-known", **tiny_model, MODEL_RUNTIME=runtime)
        assert answer_of(raw) == "green"
        assert "WARNING" not in output(process)
        assert "on the CPU by OpenVINO" in output(process)
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
        process.terminate()
        process.wait(timeout=30)
    assert "libtensorflow" not in mapped


def test_a_gpu_that_keras_sees_is_used(
    monkeypatch: pytest.MonkeyPatch, tiny_model: dict[str, str], tmp_path: Path
) -> None:
    from conftest import tiny_spec

    from serving.model import choose, keras_runtime

    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    assert not choose._has_gpu(tiny_spec(tiny_model["MODEL"]))
    monkeypatch.setattr(keras_runtime, "has_gpu", lambda: True)  # no machine with one is at hand
    assert choose._has_gpu(tiny_spec(tiny_model["MODEL"]))
