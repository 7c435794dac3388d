"""The learning rate over a run, as a function of the step number."""

from __future__ import annotations

import math


def learning_rate(step: int, *, steps: int, peak: float, schedule: str) -> float:
    """The learning rate of a step, a pure function of its number, so that resuming needs no state.

    `one-cycle`: by cosine from peak/25 to peak over the first fifth of the steps, then to 0
    (after Smith and Topin 2018).
    """
    if schedule == "constant":
        return peak
    warmup = max(1, steps // 5)
    if step < warmup:
        low, high, part = peak / 25, peak, step / warmup
    else:
        low, high, part = peak, 0.0, (step - warmup) / max(1, steps - warmup)
    return low + (high - low) * (1 - math.cos(math.pi * part)) / 2
