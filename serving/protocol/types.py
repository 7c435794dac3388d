"""Names and types that requests and replies of the Open Inference Protocol share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from pipeline.arrays import UInt8Array

DATATYPES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64"}
"""The protocol's names of numpy's dtypes."""

JSON_LENGTH = "inference-header-content-length"
"""The header that gives the length in bytes of the JSON; binary tensors follow the JSON."""

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Output:
    """An output to send. If `num_classes` is not 0, send each row's best classes instead."""

    name: str
    binary: bool = False
    num_classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A validated request: images uint8 (N, height, width), N >= 1, and the outputs to send."""

    images: UInt8Array
    outputs: tuple[Output, ...]
    id: str | None = None
