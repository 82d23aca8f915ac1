"""Triton, its native Python backend: each of BENCH_WORKERS instances decodes and predicts, on its share of the CPUs."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import triton_python_backend_utils as triton

sys.path.insert(0, os.environ["BENCH_RIVALS"])

import shared


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002
        threads = max(1, shared.CPUS // int(os.environ.get("BENCH_WORKERS", "1")))
        self.model = shared.load(threads)
        self.pool = ThreadPoolExecutor(threads)

    def execute(self, requests: list) -> list:
        uploads = [one for request in requests for one in self.images(request)]
        pixels = np.stack(list(self.pool.map(shared.decode, uploads)))
        answers = iter([shared.answer(one) for one in self.model.predict(pixels)])
        return [self.response([next(answers) for _ in self.images(request)]) for request in requests]

    def images(self, request: object) -> list[bytes]:
        return list(triton.get_input_tensor_by_name(request, "image").as_numpy().ravel())

    def response(self, answers: list[bytes]) -> object:
        array = np.array(answers, dtype=np.object_).reshape(-1, 1)
        return triton.InferenceResponse([triton.Tensor("answer", array)])
