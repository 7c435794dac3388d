"""The model in BentoML: MODEL_FILE=... bentoml serve serve_bentoml:Service, in its own venv."""

import os
from typing import Any

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Service:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(os.environ["MODEL_FILE"], options)

    @bentoml.api(route="/v2/models/mnist/infer")  # type: ignore[untyped-decorator]
    async def infer(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        images = np.frombuffer(bytes(inputs[0]["data"]), np.uint8).reshape(inputs[0]["shape"])
        names = ["probabilities", "prediction"]
        probabilities, prediction = self._session.run(names, {"image": images})
        return {
            "outputs": [
                {"name": "probabilities", "data": probabilities.ravel().tolist()},
                {"name": "prediction", "data": prediction.tolist()},
            ]
        }
