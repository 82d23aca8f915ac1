"""Mosec: as many processes that decode as there are CPUs, one that predicts batches; the image is the raw body.

BENCH_PREDICTORS=n: n that predict, on one GPU. BENCH_WORKERS=n: n processes that decode and predict, with a share of
the CPUs each.
"""

import os
import sys

import numpy as np
import shared
from mosec import Server, Worker

WORKERS = int(os.environ.get("BENCH_WORKERS", "0"))
PREDICTORS = int(os.environ.get("BENCH_PREDICTORS", "1"))
sys.argv += ["--port", str(shared.PORT), "--address", "127.0.0.1", "--timeout", "30000", "--capacity", "4096"]


class Decode(Worker):
    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> np.ndarray:
        return shared.decode(data)


class Predict(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.model = shared.load()

    def forward(self, data: list[np.ndarray]) -> list[bytes]:
        return [shared.answer(one) for one in self.model.predict(np.stack(data))]

    def serialize(self, data: bytes) -> bytes:
        return data


class Both(Predict):
    def __init__(self) -> None:
        Worker.__init__(self)
        self.model = shared.load(max(1, shared.CPUS // WORKERS))

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        return super().forward([shared.decode(one) for one in data])


if __name__ == "__main__":
    server = Server()
    if WORKERS:
        server.append_worker(Both, num=WORKERS, max_batch_size=shared.BATCH_SIZE, max_wait_time=1)
    else:
        server.append_worker(Decode, num=shared.CPUS)
        server.append_worker(Predict, num=PREDICTORS, max_batch_size=shared.BATCH_SIZE, max_wait_time=1)
    server.run()
