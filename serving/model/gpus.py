"""Which GPUs this machine has, told by their devices: no framework is loaded, which would take seconds."""

import sys
from pathlib import Path

# What an NVIDIA GPU needs besides its driver; requirements.txt brings no CUDA (decision 024).
JAX = "jax[cuda13]==0.10.2"
HOW_TO_USE = (
    f'An NVIDIA GPU needs `{sys.executable} -m pip install "{JAX}"` once, and KERAS_BACKEND=jax at each start; '
    "docs/operations.md says more."
)
DEVICES = Path("/dev")
GPU_DEVICES = ("nvidia[0-9]*", "kfd", "dxg")  # NVIDIA's, AMD's, Windows's below WSL
CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


def is_there_any() -> bool:
    """Whether this machine seems to have a GPU that Keras could use."""
    return any(any(DEVICES.glob(device)) for device in GPU_DEVICES)


def nvidia(chosen: str | None) -> list[str]:
    """The NVIDIA GPUs, each as CUDA_VISIBLE_DEVICES names it; what that variable says, `chosen`, limits them."""
    found = sum(1 for _ in DEVICES.glob("nvidia[0-9]*"))
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()] if found else []
    # CUDA counts what it sees from 0, whatever the devices are called: in a container the only one may be nvidia1.
    return [str(number) for number in range(found)]


def pinned(servers: int, chosen: str | None) -> list[dict[str, str]]:
    """The environment of each of so many model servers: a GPU each, in turns; nothing where there is none to choose."""
    gpus = nvidia(chosen)
    return [{CUDA_VISIBLE_DEVICES: gpus[server % len(gpus)]} if len(gpus) > 1 else {} for server in range(servers)]
