"""Loops that a user would write instead, on a GPU: the recipe `tutorial`, and scoring."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.artifacts.commit import load as load_manifest
from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Export
from pipeline.contract import INPUT
from pipeline.data import shards
from pipeline.models.predictor import PROVIDERS, Predictor
from pipeline.stages.export import export
from tests.bench import peers
from tests.bench.peers import BATCH, CLASSES, PIXELS, RATE, UNITS, Arrays
from tests.support.local_artifacts import write_run

Epoch = Callable[[], object]

SCORE_BATCH = 4096
SCORE_ROUNDS = 20


def load(root: str) -> Arrays:
    """Return the images of `train`, float32 (N, 784) in 0..1, and the labels, int64 (N,)."""
    storage = Storage(root)
    (path,) = Path(root, "datasets/mnist").iterdir()
    dataset = load_manifest(storage, f"datasets/mnist/{path.name}", DatasetManifest)
    split = shards.read_split(storage, dataset, "train")
    images = split.images.reshape(len(split.labels), -1).astype(np.float32) / np.float32(255)
    return images, split.labels.astype(np.int64)


def steps(arrays: Arrays) -> int:
    return len(arrays[1]) // BATCH


def eager(arrays: Arrays, device: str) -> Epoch:
    """Return an epoch in plain PyTorch, on images that are on the device."""
    return _torch_epoch(arrays, device, lambda step: step)


def compiled(arrays: Arrays, device: str) -> Epoch:
    """Return an epoch whose forward and backward pass is compiled, with CUDA graphs."""
    mode = "reduce-overhead" if device == "cuda" else "default"
    return _torch_epoch(arrays, device, lambda loss: torch.compile(loss, mode=mode))


def _torch_epoch(arrays: Arrays, device: str, wrap: Callable[[Any], Any]) -> Epoch:
    images, labels = (torch.from_numpy(array).to(device) for array in arrays)
    model = nn.Sequential(nn.Linear(PIXELS, UNITS), nn.ReLU(), nn.Linear(UNITS, CLASSES))
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    loss = wrap(lambda x, y: F.cross_entropy(model(x), y))
    count = steps(arrays) * BATCH

    def run() -> None:
        for x, y in zip(images[:count].split(BATCH), labels[:count].split(BATCH), strict=True):
            optimizer.zero_grad()
            loss(x, y).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def jax_scan(arrays: Arrays) -> Epoch | None:
    """Return an epoch as one scan of JAX, or None if JAX finds no GPU."""
    try:
        import jax

        if jax.default_backend() != "gpu":
            return None
    except (ImportError, RuntimeError):
        return None
    return peers.xla(arrays)[1]


def score_rates(root: str, device: str) -> dict[str, object]:
    """Return images per second of the predictor, and of a loop of onnxruntime in its place."""
    storage = Storage(root)
    (path,) = Path(root, "datasets/mnist").iterdir()
    dataset = load_manifest(storage, f"datasets/mnist/{path.name}", DatasetManifest)
    version = export(Export(root=root, run=write_run(storage, dataset).run))
    ours = Predictor(storage, version, device="cuda" if device == "cuda" else "cpu")
    images = shards.read_split(storage, dataset, "test").images[:SCORE_BATCH]
    data = storage.read(f"models/{version.ref}/{version.onnx.path}")
    provider = PROVIDERS["cuda" if device == "cuda" else "cpu"]
    session = onnxruntime.InferenceSession(data, providers=[provider])
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.predict(images),
        "loop": lambda: session.run(None, {INPUT: images}),
    }
    rates = {name: [_rate(run) for _ in range(5)] for name, run in runs.items()}
    score, loop = median(rates["ours"]), median(rates["loop"])
    return {"score_rows_s": score, "score_vs_onnxruntime_loop": score / loop}


def _rate(run: Callable[[], object]) -> float:
    run()
    started = time.perf_counter()
    for _ in range(SCORE_ROUNDS):
        run()
    return SCORE_ROUNDS * SCORE_BATCH / (time.perf_counter() - started)
