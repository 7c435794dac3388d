from __future__ import annotations

import torch
import torch.nn.functional as F

from pipeline.contract import ImageSpec
from pipeline.model import Mlp
from pipeline.worker import flatten, learning_rate

IMAGE = ImageSpec(3, 4, ("a", "b", "c"))


def test_the_vector_holds_the_parameters_and_gathers_their_gradients() -> None:
    images = torch.randint(0, 256, (7, 3, 4), dtype=torch.uint8)
    labels = torch.randint(0, 3, (7,))
    plain, flat = Mlp(IMAGE, (5,), seed=1), Mlp(IMAGE, (5,), seed=1)
    vector = flatten(flat)
    for model in (plain, flat):
        F.cross_entropy(model(images), labels).backward()
    expected = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
    assert vector.grad is not None
    torch.testing.assert_close(vector.grad, expected)
    with torch.no_grad():
        vector.zero_()
    assert not flat(images).any()


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing() -> None:
    rates = [learning_rate(s, steps=100, peak=1.0, schedule="one-cycle") for s in range(101)]
    assert rates[0] == 1 / 25
    assert max(rates) == rates[20] == 1.0
    assert rates[100] < 1e-12
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_a_constant_rate_is_constant() -> None:
    assert {learning_rate(s, steps=9, peak=0.01, schedule="constant") for s in range(9)} == {0.01}
