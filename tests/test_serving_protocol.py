from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from pipeline.storage import Storage
from serving import protocol
from tests.models import STRIPES, publish


def test_model_metadata_describes_the_tensors(tmp_path: Path) -> None:
    model = publish(Storage(str(tmp_path)))
    assert protocol.model_metadata(model) == {
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
    assert protocol.SERVER["version"] == version("ray-onnx-pipeline")


def test_the_config_is_tritons(tmp_path: Path) -> None:
    config = protocol.model_config(publish(Storage(str(tmp_path))), max_rows=7)
    assert config["max_batch_size"] == 7
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [4, 6]}]
    assert config["output"] == [
        {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [3]},
        {"name": "prediction", "data_type": "TYPE_INT64", "dims": [1], "reshape": {"shape": []}},
    ]
