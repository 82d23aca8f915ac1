"""What run_service.py starts on this machine: which model servers, how many, and with which GPUs. The second page of
its story; like a story, it reads settings.

    settings, the GPUs of this machine --> service_parts --> run_service.Service
"""

import os
import sys
from pathlib import Path

import settings
from serving.jobs.job_queue import JobQueue
from serving.local.lease_keeper import LeaseKeeper
from serving.local.model_group import ModelGroup
from serving.local.supervisor import Child
from serving.local.terminal import Output, tell
from serving.model import gpu_packages, gpus
from serving.model.spec import name_of

HERE = Path(__file__).parent
# A user who presses Ctrl-C should not wait long for a Redis that hangs.
REDIS_TIMEOUT_SECONDS = 3.0


def model_groups(config: settings.Settings, redis_url: str, output: Output, servers: int | None) -> list[ModelGroup]:
    """The model servers of each model, not started yet; of each `servers`, with None as many as the settings say.

    Each has a port of its own for its metrics, and where there are several GPUs one of them, in turns.
    """
    models = config.models()
    counts = [servers or how_many_model_servers(model) for model in models]
    places = enumerate(gpus.pinned(sum(counts), os.environ.get(gpus.CUDA_VISIBLE_DEVICES)))
    groups = []
    for model, count in zip(models, counts, strict=True):
        name = model.name if config.models_file is not None and model.name else ""
        children = []
        for number in range(count):
            place, gpu = next(places)
            environment = common_environment(config, redis_url) | gpu
            environment["METRICS_PORT"] = str(config.metrics_port + place if config.metrics_port else 0)
            called = f"{name} model".strip() + (str(number + 1) if count > 1 else "")
            which = [f"--model={name}"] if name else []  # with =, a name may begin with a hyphen
            children.append(python(called, "run_model_server.py", environment, output, *which))
        queue = JobQueue(redis_url, model.queue, timeout_seconds=REDIS_TIMEOUT_SECONDS)
        groups.append(ModelGroup(name, children, LeaseKeeper(queue, config.lease_seconds)))
    return groups


def common_environment(config: settings.Settings, redis_url: str) -> dict[str, str]:
    """What all servers of the service get: where Redis is, and by what name the only model goes."""
    common = {"REDIS_URL": redis_url, "PYTHONUNBUFFERED": "1"}
    if config.models_file is not None:  # which has the names
        return common
    return common | {"MODEL_NAME": config.model_name or name_of(config.model)}


def python(name: str, script: str, environment: dict[str, str], output: Output, *arguments: str) -> Child:
    """A child that runs one of our scripts; not started yet."""
    command = [sys.executable, str(HERE / script), "--redis-is-known", *arguments]
    return Child(name, command, environment, output)


def how_many_model_servers(model: settings.ModelSettings) -> int:
    """As many as the settings say; else one for each GPU that the model can use, else one."""
    on_cpu = model.runtime == "openvino" or lacks_gpu_packages(model)
    found = [] if on_cpu else gpus.nvidia(os.environ.get(gpus.CUDA_VISIBLE_DEVICES))
    return model.servers or max(1, len(found))


def lacks_gpu_packages(model: settings.ModelSettings) -> bool:
    """Whether there are NVIDIA GPUs that Keras would use, if it had the packages to see them."""
    framework = gpu_packages.backend(os.environ.get("KERAS_BACKEND"), settings.model_store())
    found = gpus.nvidia(os.environ.get(gpus.CUDA_VISIBLE_DEVICES)) if model.runtime in ("auto", "keras") else []
    return bool(found) and not gpu_packages.are_there(framework)


def tell_of_gpus(config: settings.Settings) -> None:
    """Tell the command that brings what the GPUs of this machine need, if it is missing."""
    if any(map(lacks_gpu_packages, config.models())):
        tell(f"The model cannot use the GPU of this machine, and runs on the CPU. {gpus.HOW_TO_USE}", "bold yellow")
