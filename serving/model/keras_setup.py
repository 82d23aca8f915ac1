"""Imports Keras, which reads its environment at that moment, and knows what it computes on.

Every module of ours that needs Keras has it from here.
"""

import os

from serving.model import noise

# The frameworks read these as they are imported; whoever sets them otherwise has the last word. oneDNN: 107 against 63
# images/s in batches of 32 (TensorFlow, MobileNetV2, two AMD cores), where TensorFlow leaves it off by default.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", noise.tensorflows_level())
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import keras
import numpy as np

__all__ = ["has_gpu", "keras"]


def has_gpu() -> bool:
    """Whether Keras computes on a GPU: asked of a tensor of its own, alike in every framework."""
    device = str(getattr(keras.ops.convert_to_tensor(np.zeros(1, np.float32)), "device", "")).lower()
    return any(kind in device for kind in ("gpu", "cuda", "rocm"))
