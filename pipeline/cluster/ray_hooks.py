"""Everything that the pipeline uses of Ray beyond its public interface.

All of it is for speed: without it training starts and ends later, and does nothing else otherwise.
`PIPELINE_RAY_HOOKS=off` takes Ray's public way, and so does each hook by itself, with a warning,
when Ray is not as the hook expects. Nothing here imports Ray before a function is called, as the
server must set its environment first. What a hook buys was measured by tests/bench/fit.py on two
cores; docs/how-it-works.md has the table.
"""

from __future__ import annotations

import inspect
import logging
import os
from functools import cache
from importlib.metadata import version
from typing import Any

from pipeline.errors import SettingError

VARIABLE = "PIPELINE_RAY_HOOKS"


def enabled() -> bool:
    """Return whether hooks for speed are used.

    Raise SettingError if the variable is neither on nor off.
    """
    value = os.environ.get(VARIABLE, "on")
    if value not in ("on", "off"):
        raise SettingError(f"{VARIABLE} is {value!r}, but it must be on or off.")
    return value == "on"


@cache
def warn_once(hook: str, reason: str) -> None:
    """Log that a hook is left out, once in this process."""
    logging.getLogger(__name__).warning(
        "Ray %s is not as the hook %r expects (%s). Ray's public way is taken, which is slower; "
        "%s=off does the same without this warning.",
        version("ray"),
        hook,
        reason,
        VARIABLE,
    )


def quiet_authentication() -> None:
    """Silence the lines in which Ray tells of the token that it was given."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)


def faster_trainer(trainer: type[Any]) -> type[Any]:
    """Return Ray Train's `trainer` class, made to start and end sooner if that is possible.

    The controller takes a process that Ray holds ready: Ray gives it a runtime environment, for
    which a process must be started. And no actor watches over placement groups for a driver that
    outlives its controller, as ours ends with it: such an actor takes a second or more to stop.
    """
    if not enabled():
        return trainer
    import ray

    try:
        from ray.train.v2._internal.callbacks.placement_group_callback import (
            PlacementGroupCleanerCallback,
        )
        from ray.train.v2._internal.constants import get_env_vars_to_propagate
        from ray.train.v2._internal.execution.controller import TrainController

        _require_method(trainer, "_create_default_callbacks", ["self"])
        _require_method(
            trainer, "_initialize_and_run_controller", ["self", "controller_init_kwargs"]
        )
    except (ImportError, AttributeError, TypeError) as error:
        warn_once("faster_trainer", str(error))
        return trainer

    class FasterTrainer(trainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]

        def _initialize_and_run_controller(self, **controller_init_kwargs: Any) -> Any:
            if get_env_vars_to_propagate():
                # Only a runtime environment brings a user's own settings of Ray Train there.
                return super()._initialize_and_run_controller(**controller_init_kwargs)
            here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
            actor = ray.remote(num_cpus=0, label_selector=here)(TrainController)
            controller: Any = actor.remote(**controller_init_kwargs)
            ray.get(controller.run.remote())
            return ray.get(controller.get_result.remote())

    return FasterTrainer


def _require_method(owner: type[Any], name: str, parameters: list[str]) -> None:
    """Raise TypeError or AttributeError if a method is missing or takes other parameters."""
    actual = list(inspect.signature(getattr(owner, name)).parameters)
    if actual != parameters:
        raise TypeError(f"{owner.__name__}.{name} takes {actual}, not {parameters}")
