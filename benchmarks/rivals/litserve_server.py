"""LitServe: one worker that decodes and predicts batches as they come; the image is the form's field `request`."""

import os

import litserve
import numpy as np
import shared
from fastapi import Response, UploadFile

WORKERS = int(os.environ.get("BENCH_WORKERS", "1"))


class Classify(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002
        self.model = shared.load(max(1, shared.CPUS // WORKERS))

    def decode_request(self, request: UploadFile) -> np.ndarray:
        return shared.decode(request.file.read())

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, pixels: np.ndarray) -> list[list[dict[str, object]]]:
        return self.model.predict(pixels)

    def unbatch(self, output: list[list[dict[str, object]]]) -> list[list[dict[str, object]]]:
        return output

    def encode_response(self, output: list[dict[str, object]]) -> Response:
        return Response(shared.answer(output), media_type="application/json")


if __name__ == "__main__":
    api = Classify(max_batch_size=shared.BATCH_SIZE, batch_timeout=float(os.environ.get("BENCH_WAIT", "0.005")))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, fast_queue=True, timeout=60)
    server.run(
        host="127.0.0.1",
        port=shared.PORT,
        generate_client_file=False,
        log_level="warning",
        num_api_servers=int(os.environ.get("BENCH_API_SERVERS", "1")),
    )
