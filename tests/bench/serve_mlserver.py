"""The model in MLServer: `mlserver start FOLDER`, in its own venv.

The folder holds a `model-settings.json` that names `Model` and the path of the model's file.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Model(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = NumpyCodec.decode_input(payload.inputs[0]).astype(np.uint8, copy=False)
        arrays = self._session.run(["probabilities", "prediction"], {"image": images})
        names = ("probabilities", "prediction")
        outputs = [NumpyCodec.encode_output(n, v) for n, v in zip(names, arrays, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
