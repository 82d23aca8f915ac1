"""What run_service.py starts on this machine: how many model servers, and with which GPUs. The second page of its
story; like a story, it reads settings.

    settings, the GPUs of this machine --> service_parts --> run_service.Service
"""

import os

import settings
from serving.local.terminal import tell
from serving.model import gpu_packages, gpus


def how_many_model_servers(config: settings.Settings) -> int:
    """As many as MODEL_SERVERS says; else one for each GPU that the model can use, else one."""
    on_cpu = config.model_runtime == "openvino" or lacks_gpu_packages(config)
    found = [] if on_cpu else gpus.nvidia(os.environ.get(gpus.CUDA_VISIBLE_DEVICES))
    return config.model_servers or max(1, len(found))


def lacks_gpu_packages(config: settings.Settings) -> bool:
    """Whether there are NVIDIA GPUs that Keras would use, if it had the packages to see them."""
    framework = gpu_packages.backend(os.environ.get("KERAS_BACKEND"), settings.model_store())
    found = gpus.nvidia(os.environ.get(gpus.CUDA_VISIBLE_DEVICES)) if config.model_runtime in ("auto", "keras") else []
    return bool(found) and not gpu_packages.are_there(framework)


def tell_of_gpus(config: settings.Settings) -> None:
    """Tell the command that brings what the GPUs of this machine need, if it is missing."""
    if lacks_gpu_packages(config):
        tell(f"The model cannot use the GPU of this machine, and runs on the CPU. {gpus.HOW_TO_USE}", "bold yellow")
