"""Everything that the pipeline uses of Ray beyond its public interface.

All hooks are for speed. Without `faster_datasets` CPUs are idle between the tasks of a stage,
without `faster_trainer` training starts and ends later, without `bound_answers` a stage waits for
minutes for a node that was cut off, without `own_process_group` some interrupted commands end
later, and without `refuses_token` a wrong token is told later. They are left out if
`PIPELINE_RAY_HOOKS` is off, and, with a warning, if Ray is not as they expect; but Ray ignores a
variable that it does not know. What they buy is in docs/how-it-works.md. This module imports Ray
only within functions, because the server must set Ray's environment first.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import version
from subprocess import Popen
from typing import Any

from pipeline.errors import SettingError

VARIABLE = "PIPELINE_RAY_HOOKS"

POLL_S = 0.2
"""Time from one look of Ray Train's controller at its workers to the next."""

ANSWER_TIMEOUT_S = 30
"""Time for the other end of a connection to acknowledge what was sent to it."""

ANSWER_VARIABLE = "RAY_grpc_client_keepalive_timeout_ms"

TASK_POLL_S = 0.05
"""Time from one look of Ray Data at its tasks to the next."""

LIMITS_POLL_S = 0.1
"""Time from one look of Ray Data at the resources that it may use to the next."""


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
        "Ray %s is not as the hook %r expects (%s). Ray's public interface is used instead, which "
        "is slower. %s=off does the same without this warning.",
        version("ray"),
        hook,
        reason,
        VARIABLE,
    )


def bound_answers() -> None:
    """Let Ray, which is imported after this, close a connection whose other end does not answer.

    Ray itself waits for the kernel, which may take minutes, before it asks another node to run a
    task that it sent to a node that was cut off. A value that the environment has already is kept.
    """
    if enabled():
        milliseconds = 1000 * ANSWER_TIMEOUT_S
        os.environ.setdefault(ANSWER_VARIABLE, str(milliseconds))


def refuses_token(address: str) -> bool:
    """Return whether the cluster whose GCS is at HOST:PORT answers that it refuses our token.

    Ray itself asks for 20 s, and says then that it could not connect.
    """
    if not enabled():
        return False
    try:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.exceptions import AuthenticationError, RayError
    except ImportError as error:
        warn_once("refuses_token", str(error))
        return False
    try:
        GcsClient(address=address).internal_kv_get(b"token", namespace=b"pipeline", timeout=5)
    except AuthenticationError:
        return True
    except RayError:
        # Ray says why it does not connect.
        return False
    except (AttributeError, TypeError) as error:
        warn_once("refuses_token", str(error))
    return False


def quiet_authentication() -> None:
    """Silence Ray's log lines about the token that it was given."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)


@contextmanager
def own_process_group() -> Iterator[None]:
    """Let the processes of a Ray that starts in the block have a process group of their own.

    A signal to the command's whole group, from a terminal, `timeout` or a service manager, then
    reaches the command alone, which ends Ray in order. Otherwise the command waits for processes
    that are gone, until `pipeline.process.signals` ends it.
    """
    if not enabled():
        yield
        return
    try:
        import ray._private.services

        services: Any = ray._private.services
        popen = services.ConsolePopen
        if not issubclass(popen, Popen):
            raise TypeError("services.ConsolePopen is not a Popen")
    except (ImportError, AttributeError, TypeError) as error:
        warn_once("own_process_group", str(error))
        yield
        return
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def faster_datasets() -> None:
    """Let Datasets use all CPUs from their start, and give an idle one work sooner.

    Ray Data asks which resources it may use, and looks for the answer one second later; until then,
    it runs one task at a time. Unless all of its tasks have ended, it looks for ended ones every
    0.1 s.
    """
    if not enabled():
        return
    try:
        from ray.data._internal.execution import resource_manager, streaming_executor_state
    except ImportError as error:
        warn_once("faster_datasets", str(error))
        return
    for owner, name, seconds in (
        (streaming_executor_state, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S", TASK_POLL_S),
        (resource_manager.ResourceManager, "GLOBAL_LIMITS_UPDATE_INTERVAL_S", LIMITS_POLL_S),
    ):
        if hasattr(owner, name):
            setattr(owner, name, seconds)
        else:
            warn_once("faster_datasets", f"it has no {name}")


def faster_trainer(trainer: type[Any]) -> type[Any]:
    """Return Ray Train's `trainer` class, changed to start and end sooner if that is possible.

    Start: the controller runs in a process that Ray holds ready. Ray Train gives it a runtime
    environment, for which Ray would start a new process (2.1 s).

    Reports and end: the controller looks at its workers every POLL_S, and not every two seconds.
    Until it looks, a worker waits with its next report, and a finished run goes on.

    End: the actor that removes placement groups after a controller has died is left out. Its stop
    takes 0.8 s. Here the driver ends with its controller, and Ray removes them then.
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
                # Only a runtime environment passes on the user's Ray Train variables.
                return super()._initialize_and_run_controller(**controller_init_kwargs)

            class FasterController(TrainController):
                def __init__(self, **arguments: Any) -> None:
                    super().__init__(**arguments)
                    self._health_check_interval_s = POLL_S

            here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
            actor = ray.remote(num_cpus=0, label_selector=here)(FasterController)
            controller: Any = actor.remote(**controller_init_kwargs)
            ray.get(controller.run.remote())
            return ray.get(controller.get_result.remote())

    return FasterTrainer


def _require_method(owner: type[Any], name: str, parameters: list[str]) -> None:
    """Raise TypeError or AttributeError if a method is missing or takes other parameters."""
    actual = list(inspect.signature(getattr(owner, name)).parameters)
    if actual != parameters:
        raise TypeError(f"{owner.__name__}.{name} takes {actual}, not {parameters}")
