"""The systems that bench.py measures: how each is started, what it is sent, when it is ready."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models import Model

HERE = Path(__file__).parent
ROOT = HERE.parent
RIVALS = HERE / "rivals"
sys.path.insert(0, str(ROOT))

from serving.local import redis_server  # noqa: E402

BOUNDARY = "bench-5d1c"
START_SECONDS = 240  # a model may be compiled
RIVAL_PYTHON = Path(os.environ.get("BENCH_PYTHON", ROOT / ".venv-bench" / "bin" / "python")).absolute()
CPUS = len(os.sched_getaffinity(0))


@dataclass
class System:
    """How a system is started, and spoken to."""

    name: str
    commands: Callable[[int, int], dict[str, list[str]]]  # port, Redis's port -> process name -> command
    path: str
    field: str | None = "image"  # of the multipart form; None: the image is the raw body
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    needs_redis: bool = False
    needs_model: bool = False  # not measured without one
    triton: bool = False


def python(script: Path, interpreter: Path = RIVAL_PYTHON) -> list[str]:
    return [str(interpreter), str(script)]


def rival_packages() -> Path:
    return next(iter(RIVAL_PYTHON.parent.parent.glob("lib/python3.*/site-packages")), Path())


def triton_each_core(port: int, redis_port: int) -> dict[str, list[str]]:
    return triton(port, redis_port, instances=CPUS)


def triton(port: int, _redis_port: int, instances: int = 1) -> dict[str, list[str]]:
    wheel = rival_packages() / "pytriton" / "tritonserver"
    stub = wheel / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = Path(tempfile.mkdtemp(prefix="bench-triton-"))
    models, backends = folder / "models", folder / "backends"
    shutil.copytree(RIVALS / "triton", models)
    config = models / "classify" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", f"count: {instances}"))
    shutil.copytree(wheel / "backends" / "python", backends / "python")
    shutil.copy(stub / "triton_python_backend_stub", backends / "python")
    command = [str(wheel / "bin" / "tritonserver"), f"--model-repository={models}", f"--http-port={port}"]
    command += [f"--backend-directory={backends}", "--allow-grpc=0", "--allow-metrics=0"]
    return {"Triton": [*command, "--http-address=127.0.0.1", f"--http-thread-count={2 * CPUS}", "--log-error=1"]}


def tutorial(port: int, _redis_port: int) -> dict[str, list[str]]:
    gunicorn = [str(RIVAL_PYTHON), "-m", "gunicorn", "--chdir", str(RIVALS), "-b", f"127.0.0.1:{port}"]
    web = [*gunicorn, "-w", str(CPUS), "--threads", "64", "tutorial_web:app"]
    return {"web": web, "model": python(RIVALS / "tutorial_model.py")}


def tutorial_keras(port: int, redis_port: int) -> dict[str, list[str]]:
    return {**tutorial(port, redis_port), "model": python(RIVALS / "tutorial_model.py", Path(sys.executable))}


def ours(
    _port: int, _redis_port: int, servers: int = 1, root: Path = ROOT, model_server: str = "run_model_server.py"
) -> dict[str, list[str]]:
    """This service; that of another checkout, where `root` is one."""
    here = Path(sys.executable)
    models = {f"model{number or ''}": python(root / model_server, here) for number in range(servers)}
    return {"web": python(root / "run_web_server.py", here), **models}


def one(script: str) -> Callable[[int, int], dict[str, list[str]]]:
    return lambda _port, _redis_port: {script.partition("_")[0]: python(RIVALS / script)}


# Its backend is a program of its own, which looks for its libraries, and for Python's packages, by these.
TRITON = {
    "LD_LIBRARY_PATH": f"{rival_packages() / 'nvidia_pytriton.libs'}:{sys.base_prefix}/lib",
    "PYTHONPATH": f"{ROOT}:{rival_packages()}",
}

EACH = {"BENCH_WORKERS": str(CPUS)}  # as many of them that decode and predict as there are cores, a core each


def shared_model(root: Path = ROOT) -> dict[str, str]:
    """The settings by which this service's model server, or another checkout's, runs the model that all systems run."""
    own = {"MODEL_RUNTIME": "shared:for_model_server", "MODEL_LABELS": "numbers"}
    return own | {"PYTHONPATH": f"{root}:{root / 'benchmarks' / 'rivals'}"}


SYSTEMS = [
    System("ours", ours, "/predict", environment=shared_model(), needs_redis=True),
    System("ours, raw body", ours, "/predict", None, shared_model(), needs_redis=True),
    System("Triton", triton, "/v2/models/classify/infer", None, TRITON, triton=True),
    System(
        "Triton, an instance a core", triton_each_core, "/v2/models/classify/infer", None, TRITON | EACH, triton=True
    ),
    System("Mosec", one("mosec_server.py"), "/inference", None),
    System("Mosec, a worker a core", one("mosec_server.py"), "/inference", None, EACH),
    System("LitServe", one("litserve_server.py"), "/predict", "request"),
    System("LitServe, a worker a core", one("litserve_server.py"), "/predict", "request", EACH),
    System("tutorial", tutorial, "/predict", needs_redis=True),
    System(
        "tutorial, model.predict",
        tutorial_keras,
        "/predict",
        environment={"BENCH_KERAS": "1"},
        needs_redis=True,
        needs_model=True,
    ),
]
BY_NAME = {system.name: system for system in SYSTEMS}


def named(names: list[str]) -> list[System]:
    """The systems of those names. Raises SystemExit when there is none of one."""
    if unknown := set(names) - set(BY_NAME):
        raise SystemExit(f"no such system: {', '.join(sorted(unknown))}. There are: {'; '.join(BY_NAME)}.")
    return [BY_NAME[name] for name in names]


def bodies(system: System, photos: list[bytes], folder: Path) -> tuple[list[str], list[str]]:
    """wrk's headers, and the files of the bodies."""
    headers, files = ["application/octet-stream"], []
    for place, photo in enumerate(photos):
        body = photo
        if system.triton:  # KServe's protocol with binary data
            data = len(photo).to_bytes(4, "little") + photo
            parameters = {"binary_data_size": len(data)}
            inputs = [{"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": parameters}]
            head = json.dumps({"inputs": inputs, "outputs": [{"name": "answer"}]}).encode().ljust(300)
            headers, body = ["application/octet-stream", "Inference-Header-Content-Length=300"], head + data
        elif system.field:
            headers = [f"multipart/form-data; boundary={BOUNDARY}"]
            disposition = f'form-data; name="{system.field}"; filename="photo.jpg"'
            head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\nContent-Type: image/jpeg\r\n\r\n"
            body = head.encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
        files.append(str(folder / f"body-{place}"))
        Path(files[-1]).write_bytes(body)
    return headers, files


@contextlib.contextmanager
def running(system: System, model: "Model", folder: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """Start the system with that model and stop it at the end: its address, and its processes by their names."""
    port, redis_port = redis_server.free_port(), redis_server.free_port()
    redis_url = f"redis://127.0.0.1:{redis_port}/0"
    bench = {"BENCH_PORT": str(port), "BENCH_REDIS": redis_url, "BENCH_RIVALS": str(RIVALS)}
    own = {"WEB_PORT": str(port), "REDIS_URL": redis_url, "METRICS_PORT": "0"}
    path = {"PATH": f"{RIVAL_PYTHON.parent}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}"}
    environment = os.environ | bench | own | path | model.environment | system.environment
    commands = system.commands(port, redis_port)
    server = redis_server.find_server()
    if system.needs_redis and server:
        commands = {"Redis": redis_server.command(server, redis_port, str(folder)), **commands}
    log = (folder / "log").open("wb")
    processes = {}
    try:
        for name, command in commands.items():
            processes[name] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder
            )
            time.sleep(0.3 if name == "Redis" else 0)
        yield f"http://127.0.0.1:{port}{system.path}", {name: process.pid for name, process in processes.items()}
    finally:
        for process in processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


def wait_until_it_answers(url: str, headers: list[str], body: bytes, folder: Path) -> None:
    given = {"Content-Type": headers[0], **dict(header.split("=", 1) for header in headers[1:])}
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, given), timeout=30) as response:
                if b"class" in (said := response.read()) or b"label" in said:
                    return
        except OSError:
            pass
        if time.monotonic() > until:
            raise SystemExit(f"{url} does not answer:\n{(folder / 'log').read_text(errors='replace')[-3000:]}")
        time.sleep(0.2)
