"""Check that a device can do what the settings ask for; choose the step. Needs no torch."""

from __future__ import annotations

from pipeline.errors import SettingError
from pipeline.recipes import Training


class GraphRefused(Exception):
    """A network does not allow a CUDA graph. The argument is the reason."""


def require_possible(training: Training, device: str) -> None:
    """Raise SettingError if these settings ask the device for what it cannot do."""
    missing = _missing_for_fast(training, device)
    if training.step == "fast" and missing:
        raise SettingError(
            f"--train.step is 'fast', which needs {missing} on CPUs. Use --train.step textbook, or "
            "leave it out."
        )
    if training.precision == "tf32" and device != "cuda":
        raise SettingError(
            f"--train.precision is 'tf32', which only GPUs have, but the device is {device}. "
            "Use fp32 or bf16."
        )


def step_name(training: Training, device: str) -> str:
    """Return `textbook` or `fast`: with `auto`, the fast one for all that it can do."""
    if training.step == "textbook" or _missing_for_fast(training, device):
        return "textbook"
    return "fast"


def _missing_for_fast(training: Training, device: str) -> str:
    """Return what the fast step needs and these settings do not have, or nothing."""
    if device == "cuda":
        return ""
    needs = {
        f"--train.model mlp, and not {training.model}": training.model == "mlp",
        f"--train.precision fp32, and not {training.precision}": training.precision == "fp32",
    }
    return next((need for need, is_met in needs.items() if not is_met), "")
