"""Training loops that a user would write instead: the `tutorial` recipe on given arrays.

Each takes images float32 (N, 784) in 0..1 and labels int64 (N,), already in memory, and returns a
function that runs one epoch and waits for its result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

BATCH, RATE = 64, 0.01
PIXELS, UNITS, CLASSES = 784, 128, 10

Epoch = Callable[[], object]
Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def eager(arrays: Arrays) -> Epoch:
    """Return an epoch in plain PyTorch: autograd and torch.optim.SGD."""
    images, labels = map(torch.from_numpy, arrays)
    model = nn.Sequential(nn.Linear(PIXELS, UNITS), nn.ReLU(), nn.Linear(UNITS, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def run() -> None:
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    return run


def products(arrays: Arrays) -> Epoch:
    """Return the lower bound: only the five matrix products per step, in torch's best layout."""
    x = torch.from_numpy(arrays[0][:BATCH].copy())
    first, second = torch.randn(PIXELS, UNITS), torch.randn(UNITS, CLASSES)
    hidden, logits, error = torch.rand(BATCH, UNITS), torch.rand(BATCH, CLASSES), torch.rand(64, 10)
    out, back = torch.empty(BATCH, UNITS), torch.rand(BATCH, UNITS)
    first_gradient, second_gradient = torch.empty_like(first), torch.empty_like(second)
    steps = -(-len(arrays[1]) // BATCH)

    def run() -> None:
        for _ in range(steps):
            torch.mm(x, first, out=out)
            torch.mm(hidden, second, out=logits)
            torch.mm(error, second.t(), out=out)
            torch.mm(hidden.t(), error, out=second_gradient)
            torch.mm(x.t(), back, out=first_gradient)

    return run


def xla(arrays: Arrays) -> tuple[Epoch, Epoch]:
    """Return epochs in JAX, weights donated: one jitted call per step, and one scan per epoch."""
    import jax
    import jax.numpy as jnp

    def loss(weights: Any, x: Any, y: Any) -> Any:
        (w1, b1), (w2, b2) = weights
        logits = jax.nn.relu(x @ w1 + b1) @ w2 + b2
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

    def step(weights: Any, x: Any, y: Any) -> Any:
        gradients = jax.grad(loss)(weights, x, y)
        return jax.tree.map(lambda w, g: w - RATE * g, weights, gradients)

    def scan(weights: Any, xs: Any, ys: Any) -> Any:
        return jax.lax.scan(lambda w, xy: (step(w, *xy), None), weights, (xs, ys))[0]

    steps = len(arrays[1]) // BATCH
    xs = jnp.asarray(arrays[0][: steps * BATCH].reshape(steps, BATCH, PIXELS))
    ys = jnp.asarray(arrays[1][: steps * BATCH].reshape(steps, BATCH).astype(np.int32))
    batches = [(jax.device_put(x), jax.device_put(y)) for x, y in zip(xs, ys, strict=True)]
    keys = jax.random.split(jax.random.key(0))
    call, scanned = jax.jit(step, donate_argnums=0), jax.jit(scan, donate_argnums=0)

    def initial_weights() -> Any:
        draw = jax.nn.initializers.glorot_uniform()
        return (
            (draw(keys[0], (PIXELS, UNITS)), jnp.zeros(UNITS)),
            (draw(keys[1], (UNITS, CLASSES)), jnp.zeros(CLASSES)),
        )

    state = {"call": initial_weights(), "scan": initial_weights()}
    wait: Any = jax.block_until_ready

    def run_calls() -> None:
        weights = state["call"]
        for x, y in batches:
            weights = call(weights, x, y)
        state["call"] = wait(weights)

    def run_scan() -> None:
        state["scan"] = wait(scanned(state["scan"], xs, ys))

    return run_calls, run_scan


def sklearn(arrays: Arrays) -> Epoch:
    """Return an epoch of scikit-learn's MLPClassifier."""
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    model = MLPClassifier(
        (UNITS,),
        solver="sgd",
        alpha=0,
        batch_size=BATCH,
        learning_rate_init=RATE,
        momentum=0,
        shuffle=False,
        max_iter=1,
        warm_start=True,
    )

    def run() -> None:
        with threadpool_limits(1), warnings.catch_warnings(action="ignore"):
            model.fit(*arrays)

    return run
