"""Chooses what runs a model, and brings it to where it can serve.

    ModelSpec --> a runtime of your own | OpenVINO | Keras --> Classifier -- warm_up --> ready, checked, timed

Keras runs a model on the GPU that it sees. Where it sees none OpenVINO does, if its answers are Keras's, else Keras.
"""

import functools
import hashlib
import importlib
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.errors import ModelUnavailable, RuntimeUnsuitable
from serving.model import gpus, noise, openvino_store, own_network
from serving.model.classifier import Classifier
from serving.model.content import digest
from serving.model.failures import model_unavailable, shortened, why
from serving.model.labels import load_labels
from serving.model.openvino_runtime import OpenVinoRuntime
from serving.model.runtime import Runtime
from serving.model.spec import Identity, ModelSpec, is_saved_model

DEFAULT_SIDE = 224  # pixels, of the input of a runtime of one's own, where nothing is set

log = logging.getLogger(__name__)


def load_classifier(spec: ModelSpec) -> Classifier:
    """Load the model of `spec` on the runtime that suits this machine, warm it up, check it.

    Raises:
        ModelUnavailable: the model cannot be set up; the message says what to set.
        WeightsDownloadFailed: the ImageNet weights cannot be fetched.
    """
    with model_unavailable(f"{_named(spec)} cannot be served", "LOG_LEVEL=debug shows the whole error."):
        if ":" in spec.runtime:
            classifier = _by_own_runtime(spec)
        else:
            own_network.check(spec)
            on_a_gpu = spec.runtime != "openvino" and _has_gpu(spec)
            classifier = (_by_openvino(spec) if _wants_openvino(spec, on_a_gpu) else None) or _by_keras(spec)
        _load_keras.cache_clear()
        classifier.warm_up()
    return classifier


def identity(spec: ModelSpec, runtime: Runtime) -> Identity:
    """Who answers, when this runtime runs the model of `spec`."""
    return Identity(
        name=spec.called,
        version=str(getattr(runtime, "version", "") or _version_of_own(spec)),
        precision=str(getattr(runtime, "precision", "unknown")),
        runtime=str(getattr(runtime, "name", spec.runtime)),
    )


def _version_of_own(spec: ModelSpec) -> str:
    """A digest of what a runtime of one's own may run, which says nothing of its weights itself."""
    files = [spec.architecture, spec.weights]
    parts = [digest(Path(file)) if Path(file).is_file() or is_saved_model(Path(file)) else file for file in files]
    return hashlib.sha256(json.dumps([spec.runtime, *parts]).encode()).hexdigest()[:12]


def fetch(spec: ModelSpec) -> None:
    """Fetch weights and labels into KERAS_HOME, so that a later start needs no internet.

    For a runtime of your own there is nothing that this service could fetch.

    Raises:
        ModelUnavailable, WeightsDownloadFailed: as `load_classifier` does.
    """
    if ":" not in spec.runtime:
        own_network.check(spec)
        with model_unavailable(f"{_named(spec)} cannot be fetched", "LOG_LEVEL=debug shows the whole error."):
            _load_keras(spec)


def _named(spec: ModelSpec) -> str:
    """Name a model by its settings."""
    weights = "" if spec.is_own_network else f" with MODEL_WEIGHTS={spec.weights}"
    return f"MODEL={spec.architecture}{weights}"


def _classifier(spec: ModelSpec, runtime: Runtime, labels: list[str]) -> Classifier:
    is_random = spec.has_random_weights
    return Classifier(runtime, labels, top=spec.top, batch_size=spec.batch_size, is_random=is_random)


def _by_own_runtime(spec: ModelSpec) -> Classifier:
    module, _, name = spec.runtime.partition(":")
    try:
        runtime_class = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does
        raise ModelUnavailable(
            f"MODEL_RUNTIME={spec.runtime} cannot be imported: {why(error)}. Set it to package.module:Class, and "
            "PYTHONPATH to the folder of the package."
        ) from error
    try:
        width, height = spec.width or DEFAULT_SIDE, spec.height or DEFAULT_SIDE
        runtime: Runtime = runtime_class(replace(spec, width=width, height=height))
        classifier = _classifier(spec, runtime, load_labels(spec.labels, runtime.classes))
    except ModelUnavailable:
        raise
    except Exception as error:
        log.exception("MODEL_RUNTIME=%s failed", spec.runtime)  # whoever writes a runtime needs the traceback
        raise ModelUnavailable(f"MODEL_RUNTIME={spec.runtime} does not start: {why(error)}.") from error
    log.info("loaded %s by %s", spec.called, spec.runtime)
    return classifier


def _has_gpu(spec: ModelSpec) -> bool:
    """Whether Keras sees a GPU. Where this machine has none it is not asked, and need not be imported."""
    if not gpus.is_there_any():
        return False
    with noise.kept_back() as lines:
        keras_runtime = _keras_runtime(spec)
        if keras_runtime.has_gpu():
            return True
    says = noise.about_gpus(lines) or f"{keras_runtime.keras.backend.backend()} computes on the CPU."
    log.warning(
        "this machine has a GPU, but Keras does not see it: %s The model runs on the CPU. %s",
        shortened(says),
        gpus.HOW_TO_USE,
    )
    return False


def _wants_openvino(spec: ModelSpec, on_a_gpu: bool) -> bool:
    """Whether OpenVINO is to run the model. Raises ModelUnavailable when it cannot although it is asked for."""
    if spec.runtime == "openvino":
        if not openvino_store.is_installed():
            raise ModelUnavailable("MODEL_RUNTIME=openvino: it is not installed. Try pip install openvino.")
        if spec.precision == "float16":
            raise ModelUnavailable("MODEL_PRECISION=float16 is for GPUs. Set MODEL_RUNTIME to keras, or auto.")
        return True
    is_for_gpus = on_a_gpu or spec.precision == "float16"
    return spec.runtime == "auto" and openvino_store.is_installed() and not is_for_gpus


def _by_openvino(spec: ModelSpec) -> Classifier | None:
    """The classifier on OpenVINO; None, with a warning, where its answers would not be Keras's."""
    folder = openvino_store.folder_of(spec)
    try:
        with openvino_store.exclusive(folder):
            # What the module of a network of one's own makes of it, no digest tells.
            runtime = _kept_runtime(spec, folder) if folder.is_dir() and spec.code_module is None else None
            if runtime is None:
                _convert(spec, folder)
                runtime = _open_runtime(spec, folder)
            classifier = _classifier(spec, runtime, runtime.labels)
    except RuntimeUnsuitable as error:
        log.warning("not on OpenVINO: %s. Keras runs the model", why(error))
        return None
    log.info("loaded %s, on the CPU by OpenVINO, %s", _named(spec), runtime.precision)
    return classifier


def _convert(spec: ModelSpec, folder: Path) -> None:
    with noise.kept_back():
        framework = _keras_runtime(spec).keras.backend.backend()
    if framework != "tensorflow":
        raise RuntimeUnsuitable(f"OpenVINO converts what Keras runs on TensorFlow, and KERAS_BACKEND is {framework}")
    # OpenVINO's answers are compared with Keras's in float32; a network of one's own has a precision already.
    network, labels = _load_keras(replace(spec, precision="auto" if spec.is_own_network else "float32"))
    from serving.model import keras_runtime

    version = network.version or keras_runtime.version_of(network.model)
    openvino_store.convert_and_store(network.model, version, labels, folder, independent=network.independent)


def _open_runtime(spec: ModelSpec, folder: Path) -> OpenVinoRuntime:
    return OpenVinoRuntime(folder, precision=spec.precision, threads=spec.threads)


def _kept_runtime(spec: ModelSpec, folder: Path) -> OpenVinoRuntime | None:
    """The model that is kept in `folder`, or None if it has to be converted again."""
    try:
        return _open_runtime(spec, folder)
    except RuntimeUnsuitable as error:
        log.warning("%s; converting it again", error)
        return None


def _by_keras(spec: ModelSpec) -> Classifier:
    network, labels = _load_keras(spec)
    keras_runtime = _keras_runtime(spec)
    where = "a GPU" if keras_runtime.has_gpu() else "the CPU"
    log.info("loaded %s, on %s by Keras", _named(spec), where)
    runtime = keras_runtime.KerasRuntime(network.model, network.version, independent=network.independent)
    if spec.is_own_network and spec.precision not in ("auto", runtime.precision):
        raise ModelUnavailable(
            f"MODEL_PRECISION={spec.precision}: Keras runs a network of your own in the precision that was saved with "
            f"it, {runtime.precision}. Leave MODEL_PRECISION unset."
        )
    return _classifier(spec, runtime, labels)


@functools.cache  # OpenVINO converts the model, and Keras runs the same one where OpenVINO does not do
def _load_keras(spec: ModelSpec) -> tuple[Any, list[str]]:
    """The Keras model, a keras_models.Network, and its labels. Raises ModelUnavailable, WeightsDownloadFailed."""
    with noise.kept_back():
        _keras_runtime(spec)  # which says what to do where Keras cannot be imported
        from serving.model import keras_models

        network = keras_models.load_network(spec)
    return network, load_labels(spec.labels, network.model.output_shape[-1])


def _keras_runtime(spec: ModelSpec) -> Any:
    """The module that runs Keras models. Raises ModelUnavailable: Keras cannot be imported."""
    # JAX reads this as it is imported: the next start finds what this one compiles.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(spec.store / "jax"))
    # Imported late: Keras takes seconds, which a wrong setting, or a model kept for OpenVINO, need not cost.
    with model_unavailable("Keras cannot be imported", "Install what KERAS_BACKEND names: tensorflow, jax or torch."):
        from serving.model import keras_runtime
    return keras_runtime
