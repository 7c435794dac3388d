from __future__ import annotations

import pytest
import torch

from pipeline.training.kernels.optimizers import AdamW, Sgd


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimizer_computes_what_torch_computes_also_after_a_restart(kind: str) -> None:
    parameters, gradient = torch.linspace(-1, 1, 50), torch.empty(50)
    expected = torch.nn.Parameter(parameters.clone())
    reference: torch.optim.Optimizer
    if kind == "adamw":
        reference = torch.optim.AdamW([expected], weight_decay=0.1)
    else:
        reference = torch.optim.SGD([expected])
    states = list[dict[str, torch.Tensor]]()
    for number in range(6):
        optimizer = (
            AdamW(parameters, gradient, weight_decay=0.1)
            if kind == "adamw"
            else Sgd(parameters, gradient)
        )
        optimizer.steps.fill_(number)
        for name, tensor in optimizer.state().items():
            if states:
                tensor.copy_(states[-1][name])
        gradient.copy_(torch.sin(torch.arange(50) + number))
        expected.grad = gradient.clone()
        reference.param_groups[0]["lr"] = 0.01 * (number + 1)
        reference.step()
        optimizer.step(0.01 * (number + 1))
        states.append({name: tensor.clone() for name, tensor in optimizer.state().items()})
        torch.testing.assert_close(parameters, expected.detach())
