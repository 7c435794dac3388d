"""A small ONNX model whose answers follow by hand.

Images are 4 by 6. The logit of class k is `scale` times the summed brightness (0 to 1) of the k-th
third of the columns: the image with a white first third has the logits (8, 0, 0) times `scale`.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.artifacts.commit import commit, digest, write_file
from pipeline.artifacts.manifests import ModelManifest
from pipeline.artifacts.registry import model_folder, promote
from pipeline.artifacts.storage import Storage
from pipeline.contract import INPUT, PIXEL_MAX, PREDICTION, PROBABILITIES, ImageSpec
from pipeline.models.predictor import expected_tensors

STRIPES = ImageSpec(height=4, width=6, class_names=("left", "middle", "right"))


def publish(
    storage: Storage,
    *,
    name: str = "stripes",
    scale: float = 1.0,
    caveat: str = "",
    alias: str = "production",
    image: ImageSpec = STRIPES,
) -> ModelManifest:
    """Publish a version of the model and promote it to `alias`. Each scale is another version."""
    version = digest(name, scale, caveat, image.class_names)
    file = write_file(storage, model_folder(name, version), "model.onnx", build(scale))
    inputs, outputs = expected_tensors(image)
    model = ModelManifest(
        name=name,
        version=version,
        run="by-hand",
        dataset=f"{name}/{'0' * 12}",
        image=image,
        inputs=inputs,
        outputs=outputs,
        parity_max_difference=0.0,
        training={},
        caveat=caveat,
        files=(file,),
    )
    commit(storage, model_folder(name, version), model)
    promote(storage, model.ref, alias)
    return model


def stripe(k: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return an image, uint8 (4, 6), with a white k-th stripe; the model predicts k."""
    image = np.zeros(STRIPES.shape, np.uint8)
    image[:, 2 * k : 2 * k + 2] = PIXEL_MAX
    return image


def build(scale: float = 1.0) -> bytes:
    """Return the bytes of the ONNX file."""
    columns = np.arange(STRIPES.num_pixels) % STRIPES.width
    weight = (columns[:, None] // 2 == np.arange(STRIPES.num_classes)) * np.float32(scale)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", [INPUT], ["flat"]),
            helper.make_node("Cast", ["flat"], ["raw"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["raw", "pixel_max"], ["pixels"]),
            helper.make_node("MatMul", ["pixels", "weight"], ["logits"]),
            helper.make_node("Softmax", ["logits"], [PROBABILITIES], axis=1),
            helper.make_node("ArgMax", ["logits"], [PREDICTION], axis=1, keepdims=0),
        ],
        "stripes",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", *STRIPES.shape])],
        [
            helper.make_tensor_value_info(
                PROBABILITIES, TensorProto.FLOAT, ["N", STRIPES.num_classes]
            ),
            helper.make_tensor_value_info(PREDICTION, TensorProto.INT64, ["N"]),
        ],
        [
            numpy_helper.from_array(np.array(PIXEL_MAX, np.float32), "pixel_max"),
            numpy_helper.from_array(weight.astype(np.float32), "weight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
