from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.contract import ImageSpec
from pipeline.models.mlp import Mlp
from pipeline.training.kernels.manual_step import ManualStep
from pipeline.training.kernels.vectors import flatten

IMAGE = ImageSpec(3, 4, ("a", "b", "c"))
HIDDEN = [(), (5,), (7, 5), (6, 6, 6)]


def make_batch(rows: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(rows)
    images = torch.randint(0, 256, (rows, 3, 4), dtype=torch.uint8, generator=random)
    return images, torch.randint(0, 3, (rows,), generator=random)


def make_step(
    hidden: tuple[int, ...], *, in_place: bool = False
) -> tuple[Mlp, Tensor, Tensor, ManualStep]:
    model = Mlp(IMAGE, hidden, seed=1)
    parameters = flatten(model)
    gradient = parameters if in_place else torch.full_like(parameters, torch.nan)
    return model, parameters, gradient, ManualStep((12, *hidden, 3), parameters, gradient)


def autograd(model: Mlp, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits, and the gradient of the summed loss in the layout of `flatten`."""
    logits = model(images)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return logits.detach(), torch.cat([g.t().flatten() for g in gradients])


def test_a_flattened_model_predicts_the_same_and_follows_the_vector() -> None:
    images, _ = make_batch(7)
    model = Mlp(IMAGE, (5,), seed=1)
    before = model(images)
    vector = flatten(model)
    torch.testing.assert_close(model(images), before)
    assert vector.numel() == 12 * 5 + 5 + 5 * 3 + 3
    vector.zero_()
    assert not model(images).any()


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_step_computes_the_gradient_of_autograd(hidden: tuple[int, ...]) -> None:
    model, _, gradient, step = make_step(hidden)
    for rows in (64, 1, 7, 64):
        images, labels = make_batch(rows)
        logits = torch.full((3, rows), torch.nan)
        step(images.flatten(1), F.one_hot(labels, 3).float().t(), logits, 1 / rows)
        expected_logits, expected = autograd(model, images, labels)
        torch.testing.assert_close(logits.t(), expected_logits)
        torch.testing.assert_close(gradient, expected / rows)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_step_in_place_is_plain_sgd(hidden: tuple[int, ...]) -> None:
    images, labels = make_batch(9)
    _, parameters, _, step = make_step(hidden, in_place=True)
    expected = parameters.clone()
    for _ in range(3):
        model = Mlp(IMAGE, hidden)
        flatten(model).copy_(expected)
        vector = flatten(model)
        expected = vector - 0.3 / 9 * autograd(model, images, labels)[1]
        step(images.flatten(1), F.one_hot(labels, 3).float().t(), torch.empty(3, 9), -0.3 / 9)
    torch.testing.assert_close(parameters, expected)


def test_a_step_on_no_rows_gives_a_gradient_of_0() -> None:
    _, _, gradient, step = make_step((5,))
    step(torch.empty(0, 12, dtype=torch.uint8), torch.empty(3, 0), torch.empty(3, 0), 1.0)
    assert not gradient.any()
