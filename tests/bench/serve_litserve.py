"""The model in LitServe: python serve_litserve.py MODEL_FILE PORT PATH, in its own venv."""

import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime as ort


class Api(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(sys.argv[1], options)

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        image = request["inputs"][0]
        return np.frombuffer(bytes(image["data"]), np.uint8).reshape(image["shape"])

    def predict(self, images: Any) -> Any:
        return self._session.run(["probabilities", "prediction"], {"image": images})

    def encode_response(self, output: Any) -> dict[str, Any]:
        probabilities, prediction = output
        return {
            "outputs": [
                {"name": "probabilities", "data": probabilities.ravel().tolist()},
                {"name": "prediction", "data": prediction.tolist()},
            ]
        }


if __name__ == "__main__":
    server = litserve.LitServer(Api(api_path=sys.argv[3]), accelerator="cpu")
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False
    )
