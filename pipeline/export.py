"""Run -> model version: ONNX with the scaling in the graph, published only if it predicts as torch.

python -m pipeline export --run RUN
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch

from pipeline import predictor, registry, shards
from pipeline.checkpoints import load_model
from pipeline.config import Export
from pipeline.console import say
from pipeline.contract import INPUT, PREDICTION, PROBABILITIES, ModelRejected
from pipeline.idx import Array
from pipeline.manifest import (
    DatasetManifest,
    ModelManifest,
    RunManifest,
    TensorSpec,
    commit,
    digest,
    find,
    load,
    write_file,
)
from pipeline.model import Classifier
from pipeline.quantize import quantize
from pipeline.shards import Split
from pipeline.storage import Storage

OPSET = 20
PARITY_BATCH_SIZES = (1, 2, 61, 4096)
TRITON_MAX_BATCH_SIZE = 4096
MAX_LOSS = 0.0005
"""Of accuracy on `val`, by rounded weights."""


class Bound(NamedTuple):
    """What may differ from torch: a probability by so much, and this share of predictions."""

    difference: float
    changed: float


EXACT, ROUNDED = Bound(1e-5, 0.0), Bound(0.1, 0.002)


def export(settings: Export) -> ModelManifest:
    """Exports the network of a run, or finds it exported, and returns the manifest of the version.

    Raises ModelRejected where onnxruntime does not predict what torch predicts.
    """
    storage = Storage(settings.root)
    run = load(storage, f"runs/{settings.run}", RunManifest)
    dataset = load(storage, f"datasets/{run.dataset}", DatasetManifest)
    weights = run.file(run.checkpoint).sha256
    made_by = (OPSET, torch.__version__, onnx.__version__, *(["uint8"] if settings.uint8 else []))
    version = digest(run.run, weights, dataset.ref, *made_by)
    folder = registry.folder(dataset.name, version)
    if not settings.force and (done := find(storage, folder, ModelManifest)):
        say(f"model {done.ref} is there already")
        return done
    classifier = Classifier(load_model(storage, run)).eval()
    model = to_onnx(classifier, run)
    bound = EXACT
    if settings.uint8:
        model, bound = quantize(model), ROUNDED
    session = predictor.open_session(model)
    images = shards.read_split(storage, dataset, "test").images
    difference = check_parity(session, classifier, images, bound)
    if settings.uint8:
        check_accuracy(session, classifier, shards.read_split(storage, dataset, "val"))
    inputs, outputs = predictor.contract(run.image)
    check_contract(session, inputs, outputs)
    manifest = ModelManifest(
        caveat=dataset.caveat,
        name=dataset.name,
        version=version,
        run=run.run,
        dataset=dataset.ref,
        image=run.image,
        inputs=inputs,
        outputs=outputs,
        parity_max_difference=difference,
        training=run.training,
        files=(
            write_file(storage, folder, "model.onnx", model),
            write_file(
                storage, folder, "config.pbtxt", triton_config(dataset.name, inputs, outputs)
            ),
        ),
    )
    commit(storage, folder, manifest)
    return manifest


def to_onnx(classifier: Classifier, run: RunManifest) -> bytes:
    """One self-contained ONNX file; the same weights give the same bytes.

    The exporter's notes of where each node came from hold paths of this machine, so they go.
    """
    example = torch.zeros(2, *run.image.shape, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=FutureWarning)
        warnings.simplefilter("ignore", category=DeprecationWarning)
        program = torch.onnx.export(
            classifier,
            (example,),
            input_names=[INPUT],
            output_names=[PROBABILITIES, PREDICTION],
            dynamic_shapes={"image": {0: "N"}},
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    for tensor in model.graph.initializer:
        tensor.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    model.ClearField("metadata_props")
    properties = {
        "dataset": run.dataset,
        "run": run.run,
        "classes": json.dumps(run.image.class_names),
    }
    onnx.helper.set_model_props(model, properties | ({"caveat": run.caveat} if run.caveat else {}))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def check_parity(
    session: ort.InferenceSession, classifier: Classifier, images: Array, bound: Bound = EXACT
) -> float:
    """The largest difference of a probability between onnxruntime and torch, over all images.

    Both predict them in batches of several sizes. Raises ModelRejected where that, or the share of
    predictions that change, is over its bound.
    """
    worst = 0.0
    for size in PARITY_BATCH_SIZES:
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        found = [predictor.run(session, batch) for batch in batches]
        probabilities, prediction = _by_torch(classifier, batches)
        difference = np.concatenate([batch.probabilities for batch in found]) - probabilities
        changed = int((np.concatenate([batch.prediction for batch in found]) != prediction).sum())
        worst = max(float(np.abs(difference).max()), worst)
        allowed = int(bound.changed * len(images))
        # A comparison with NaN is false, so NaN does not pass.
        if not worst <= bound.difference or changed > allowed:
            raise ModelRejected(
                f"In batches of {size}, onnxruntime changes {changed} predictions of torch and a "
                f"probability by {worst:.1e} (allowed: {allowed} and {bound.difference:.0e}). "
                "The model was not published."
            )
    return worst


def check_accuracy(session: ort.InferenceSession, classifier: Classifier, val: Split) -> None:
    """ModelRejected where onnxruntime is right less often than torch, by more than MAX_LOSS."""
    _, expected = _by_torch(classifier, [val.images])
    found = predictor.run(session, val.images).prediction
    lost = int((expected == val.labels).sum() - (found == val.labels).sum())
    if lost > (allowed := MAX_LOSS * len(val.labels)):
        raise ModelRejected(
            f"Of {len(val.labels)} images of val, weights as uint8 lose {lost} that were right "
            f"(allowed: {allowed:.0f}). Export without --uint8."
        )


def _by_torch(classifier: Classifier, batches: Sequence[Array]) -> tuple[Any, Any]:
    """Probabilities and predictions of all batches."""
    with torch.inference_mode():
        outputs = [classifier(torch.from_numpy(batch)) for batch in batches]
    probabilities, prediction = (torch.cat(part).numpy() for part in zip(*outputs, strict=True))
    return probabilities, prediction


def check_contract(
    session: ort.InferenceSession, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """ModelRejected where the tensors of an exported model are not those of the contract."""
    found = predictor.tensors(session, "inputs"), predictor.tensors(session, "outputs")
    if found != (inputs, outputs):
        raise ModelRejected(f"The exported model has the tensors {found}, not {(inputs, outputs)}.")


def triton_config(name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    """config.pbtxt, with which Triton serves the version folder as its model.

    Triton's axes leave out the batch. Fields: triton-inference-server/common, model_config.proto.
    """
    types = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "int64": "TYPE_INT64"}

    def block(tensor: TensorSpec) -> str:
        dims = ", ".join(map(str, tensor.shape[1:])) or "1"
        reshape = "" if len(tensor.shape) > 1 else " reshape { shape: [ ] }"
        kind = types[tensor.dtype]
        return f'  {{ name: "{tensor.name}" data_type: {kind} dims: [ {dims} ]{reshape} }}'

    def blocks(tensors: Sequence[TensorSpec]) -> str:
        return ",\n".join(block(tensor) for tensor in tensors)

    text = (
        f'name: "{name}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: {TRITON_MAX_BATCH_SIZE}\n'
        f"input [\n{blocks(inputs)}\n]\noutput [\n{blocks(outputs)}\n]\n"
        "dynamic_batching { }\n"
    )
    return text.encode()
