"""Array types: numpy arrays of one dtype, with any number of axes."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

UInt8Array: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
"""Images (N, height, width) of raw pixels, or labels (N,)."""

Int8Array: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.int8]]
"""Indices of splits (N,)."""

Int64Array: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
"""Ids or labels (N,)."""

Float32Array: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
"""Probabilities (N, classes), or the weights of a layer."""

BoolArray: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
"""Which rows (N,) are meant."""

UInt64Array: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]
"""Hashes of images (N,)."""
