"""The names and types that requests and answers of the Open Inference Protocol share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from pipeline.arrays import UInt8Array

DATATYPES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64"}
"""The protocol's names of numpy's dtypes."""

JSON_LENGTH = "inference-header-content-length"
"""The header of a body in which binary tensors follow so many bytes of JSON."""

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Output:
    """An output to send: as binary, or the `num_classes` best classes of each row in its place."""

    name: str
    binary: bool = False
    num_classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A checked request: images uint8 (N, height, width), N >= 1, and the outputs to send."""

    images: UInt8Array
    outputs: tuple[Output, ...]
    id: str | None = None
