"""The predictor: a model version in onnxruntime, with numpy arrays in and out.

Scoring, serving and evaluation all predict with it. It needs neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnxruntime as ort

from pipeline.arrays import UInt8Array
from pipeline.artifacts.commit import read_file
from pipeline.artifacts.manifests import ModelManifest, TensorSpec
from pipeline.artifacts.registry import model_folder
from pipeline.artifacts.storage import Storage
from pipeline.contract import INPUT, PREDICTION, PROBABILITIES, ImageSpec, Predictions
from pipeline.errors import ModelRejected, ResourcesMissing

Kind = Literal["inputs", "outputs"]

Device = Literal["cpu", "cuda"]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# By default, CUDA rounds the factors of products to TF32, which has 10 bits after the point.
PROVIDER_OPTIONS: dict[Device, dict[str, str]] = {"cpu": {}, "cuda": {"use_tf32": "0"}}

MAX_BATCH_ROWS = 4096

MAX_BATCH_PIXELS = 2**22
"""Pixels of one call. As float32 they take 16 MiB, once for each channel of a convolution."""

DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(int64)": "int64"}


class Predictor:
    """A model version on one device. Several threads may call `predict` at once.

    Raise ArtifactDamaged if the file is not the published one, ModelRejected if its tensors are not
    those of its manifest or the device lacks a node, ResourcesMissing if the device is missing.
    """

    def __init__(
        self,
        storage: Storage,
        model: ModelManifest,
        *,
        device: Device = "cpu",
        num_threads: int = 1,
    ) -> None:
        self.model, self._device = model, device
        data = read_file(storage, model_folder(model.name, model.version), model.onnx)
        self._session = open_session(data, device=device, num_threads=num_threads)
        checks: tuple[tuple[Kind, tuple[TensorSpec, ...]], ...] = (
            ("inputs", model.inputs),
            ("outputs", model.outputs),
        )
        for kind, expected in checks:
            actual = session_tensors(self._session, kind)
            if actual != expected:
                raise ModelRejected(
                    f"Model {model.ref} has the {kind} {actual}, but its manifest says {expected}. "
                    "Export it again."
                )

    @property
    def provider(self) -> str:
        """Return the name of onnxruntime's execution provider in use."""
        return str(self._session.get_providers()[0])

    def predict(self, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Predictions:
        """Return the predictions for images, raw pixels uint8 (N, height, width), in order."""
        if self._device == "cpu":
            return run_session(self._session, images)
        return run_session_bound(self._session, images, self._device)


def open_session(
    data: bytes, *, device: Device = "cpu", num_threads: int = 1
) -> ort.InferenceSession:
    """Open a session on exactly this device, with exactly this number of threads.

    Nothing falls back to another device: raise ResourcesMissing if onnxruntime cannot use this one,
    ModelRejected if it would run nodes elsewhere.
    """
    provider = PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise ResourcesMissing(
            f"This onnxruntime has no {provider}, only {', '.join(ort.get_available_providers())}. "
            "Use --device cpu, or install onnxruntime-gpu."
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Threads that spin between two calls take CPU time from the other replicas of the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if device == "cuda":
        ort.preload_dlls()
    session = ort.InferenceSession(
        data, options, providers=[(provider, PROVIDER_OPTIONS[device])], enable_fallback=0
    )
    used = session.get_providers()[0]
    if used != provider:
        raise ResourcesMissing(
            f"{provider} did not load, and onnxruntime chose {used} instead. "
            "Check the GPU, its driver and the CUDA libraries (pip install '.[cuda]'), or use "
            "--device cpu."
        )
    require_all_nodes(session, provider)
    return session


def require_all_nodes(session: ort.InferenceSession, provider: str) -> None:
    """Raise ModelRejected if a node of the graph runs on another execution provider.

    The session must record where its nodes run. onnxruntime's own `disable_cpu_ep_fallback` does
    not name the nodes.
    """
    elsewhere = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
    }
    if elsewhere:
        raise ModelRejected(
            f"{provider} cannot run these nodes of the model: {', '.join(sorted(elsewhere))}. "
            "Use --device cpu, or a version that was exported without --uint8."
        )


def run_session(
    session: ort.InferenceSession, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> Predictions:
    """Predict with one call of the session."""
    probabilities, prediction = session.run([PROBABILITIES, PREDICTION], {INPUT: images})
    return Predictions(probabilities, prediction)


def batches(images: UInt8Array, rows: int = MAX_BATCH_ROWS) -> Iterator[UInt8Array]:
    """Yield images, uint8 (N, height, width), in batches that one call should predict.

    Each has `rows` images, or fewer if they are so large that memory might not hold the call.
    """
    rows = max(1, min(rows, MAX_BATCH_PIXELS * len(images) // max(1, images.size)))
    for start in range(0, len(images), rows):
        yield images[start : start + rows]


def run_session_bound(
    session: ort.InferenceSession,
    images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    device: Device,
) -> Predictions:
    """Predict as `run_session` does, in the device's memory: each tensor is copied once."""
    binding = session.io_binding()
    device_images = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(images), device)
    binding.bind_ortvalue_input(INPUT, device_images)
    for name in (PROBABILITIES, PREDICTION):
        binding.bind_output(name, device)
    session.run_with_iobinding(binding)
    probabilities, prediction = (value.numpy() for value in binding.get_outputs())
    return Predictions(probabilities, prediction)


def session_tensors(session: ort.InferenceSession, kind: Kind) -> tuple[TensorSpec, ...]:
    """Return names, dtypes and shapes of a session's inputs or outputs; -1 is a free axis."""
    nodes = session.get_inputs() if kind == "inputs" else session.get_outputs()
    return tuple(
        TensorSpec(
            name=node.name,
            dtype=DTYPES.get(node.type, node.type),
            shape=tuple(size if isinstance(size, int) else -1 for size in node.shape),
        )
        for node in nodes
    )


def expected_tensors(image: ImageSpec) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs that a model for such images must have."""
    return (
        (TensorSpec(name=INPUT, dtype="uint8", shape=(-1, image.height, image.width)),),
        (
            TensorSpec(name=PROBABILITIES, dtype="float32", shape=(-1, image.num_classes)),
            TensorSpec(name=PREDICTION, dtype="int64", shape=(-1,)),
        ),
    )
