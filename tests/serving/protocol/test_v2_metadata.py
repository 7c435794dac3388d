from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from pipeline.artifacts.storage import Storage
from serving.protocol import v2_metadata
from tests.support.stripes_model import STRIPES, publish


def test_model_metadata_describes_the_tensors(tmp_path: Path) -> None:
    model = publish(Storage(str(tmp_path)))
    assert v2_metadata.model_metadata(model, [model]) == {
        "name": "stripes",
        "versions": [model.version],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, *STRIPES.shape]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "prediction", "datatype": "INT64", "shape": [-1]},
        ],
    }


def test_server_metadata_has_the_version_of_the_package() -> None:
    assert v2_metadata.SERVER["version"] == version("ray-onnx-pipeline")


def test_the_model_config_has_the_fields_of_triton(tmp_path: Path) -> None:
    config = v2_metadata.model_config(publish(Storage(str(tmp_path))), max_rows=7)
    assert config["max_batch_size"] == 7
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [4, 6]}]
    assert config["output"] == [
        {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [3]},
        {"name": "prediction", "data_type": "TYPE_INT64", "dims": [1], "reshape": {"shape": []}},
    ]
