"""A plain PyTorch script that does what the recipe `tutorial` does with MNIST's files.

    python tests/bench/script.py FOLDER

It prints the seconds of its loop, which validates after each epoch as ours does, and the accuracy.
"""

from __future__ import annotations

import gzip
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def read(name: str, header: int) -> Tensor:
    path = Path(sys.argv[1], name)
    data = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=header).copy())


torch.manual_seed(0)
images = read("train-images-idx3-ubyte", 16).view(-1, 784).float() / 255
labels = read("train-labels-idx1-ubyte", 8).long()
train_images, val_images = images.split([50_000, 10_000])
train_labels, val_labels = labels.split([50_000, 10_000])

model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
started = time.perf_counter()
for epoch in range(100):
    for x, y in zip(train_images.split(64), train_labels.split(64), strict=True):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (model(val_images).argmax(1) == val_labels).float().mean().item()
    print(f"epoch {epoch + 1}  loss {loss.item():.4f}  val {accuracy:.4f}", file=sys.stderr)
print(time.perf_counter() - started, accuracy)
