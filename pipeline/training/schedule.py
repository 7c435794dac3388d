"""The learning rate over a run, as a pure function of the step: resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial


def constant(step: int, *, steps: int, peak: float) -> float:
    """Return `peak` for every step."""
    return peak


def one_cycle(step: int, *, steps: int, peak: float) -> float:
    """Rise by cosine from peak / 25 to the peak in the first fifth of the steps, then fall to 0.

    After Smith and Topin 2018.
    """
    warmup = max(1, steps // 5)
    if step < warmup:
        start, end, progress = peak / 25, peak, step / warmup
    else:
        start, end, progress = peak, 0.0, (step - warmup) / max(1, steps - warmup)
    return start + (end - start) * (1 - math.cos(math.pi * progress)) / 2


SCHEDULES = {"constant": constant, "one-cycle": one_cycle}
"""Schedules by name. To add one: add it here, and its name to `Training.schedule`."""


Rate = Callable[[int], float]
"""The learning rate of a step, counted from the start of training."""


def learning_rate(schedule: str, *, steps: int, peak: float) -> Rate:
    """Return the learning rate of each of `steps` steps by the schedule of this name."""
    return partial(SCHEDULES[schedule], steps=steps, peak=peak)
