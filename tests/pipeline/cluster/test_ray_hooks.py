"""Hooks into Ray: used, switched off, or left out if Ray is not as they expect."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from ray._private import services
from ray.data._internal.execution import streaming_executor_state
from ray.data._internal.execution.resource_manager import ResourceManager
from ray.train.torch import TorchTrainer

from pipeline.cluster import ray_hooks
from pipeline.errors import SettingError


@pytest.fixture(autouse=True)
def hooks_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PIPELINE_RAY_HOOKS", "on")
    ray_hooks.warn_once.cache_clear()
    yield
    ray_hooks.warn_once.cache_clear()


class RenamedMethods:
    """A trainer of another version of Ray: it lacks the methods that the hook overrides."""


class OtherParameters:
    """A trainer of another version of Ray: a method takes other parameters."""

    def _create_default_callbacks(self, run: Any) -> None: ...

    def _initialize_and_run_controller(self, **controller_init_kwargs: Any) -> None: ...


def test_this_version_of_ray_is_as_the_hook_expects(caplog: pytest.LogCaptureFixture) -> None:
    faster = ray_hooks.faster_trainer(TorchTrainer)
    assert faster is not TorchTrainer
    assert issubclass(faster, TorchTrainer)
    assert caplog.records == []


def test_hooks_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_RAY_HOOKS", "off")
    assert ray_hooks.faster_trainer(TorchTrainer) is TorchTrainer


@pytest.mark.parametrize("trainer", [RenamedMethods, OtherParameters])
def test_another_version_of_ray_is_used_in_its_public_way_with_one_warning(
    trainer: type, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert ray_hooks.faster_trainer(trainer) is trainer
    (record,) = caplog.records
    assert "is not as the hook 'faster_trainer' expects" in record.getMessage()


def test_a_value_other_than_on_and_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_RAY_HOOKS", "no")
    with pytest.raises(SettingError, match="PIPELINE_RAY_HOOKS is 'no', but it must be on or off"):
        ray_hooks.faster_trainer(TorchTrainer)


def test_the_processes_of_ray_get_a_group_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    original = services.ConsolePopen
    with ray_hooks.own_process_group():
        process = services.ConsolePopen(["sleep", "60"])
        assert os.getpgid(process.pid) == process.pid
        process.kill()
        process.wait()
    assert services.ConsolePopen is original
    assert caplog.records == []


def test_another_version_of_ray_starts_its_processes_in_its_own_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(services, "ConsolePopen")
    with caplog.at_level(logging.WARNING), ray_hooks.own_process_group():
        assert not hasattr(services, "ConsolePopen")
    (record,) = caplog.records
    assert "is not as the hook 'own_process_group' expects" in record.getMessage()


@pytest.fixture
def dataset_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the constants that the hook changes Ray's values, and restore them afterwards."""
    monkeypatch.setattr(streaming_executor_state, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S", 0.1)
    monkeypatch.setattr(ResourceManager, "GLOBAL_LIMITS_UPDATE_INTERVAL_S", 1)


def read_constants() -> tuple[float, float]:
    return (
        streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S,
        ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S,
    )


@pytest.mark.usefixtures("dataset_constants")
def test_datasets_look_for_tasks_and_resources_more_often(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PIPELINE_RAY_HOOKS", "off")
    ray_hooks.faster_datasets()
    assert read_constants() == (0.1, 1)
    monkeypatch.setenv("PIPELINE_RAY_HOOKS", "on")
    ray_hooks.faster_datasets()
    assert read_constants() == (ray_hooks.TASK_POLL_S, ray_hooks.LIMITS_POLL_S)
    assert caplog.records == []


@pytest.mark.usefixtures("dataset_constants")
def test_datasets_of_another_version_of_ray_run_in_its_own_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(ResourceManager, "GLOBAL_LIMITS_UPDATE_INTERVAL_S")
    with caplog.at_level(logging.WARNING):
        ray_hooks.faster_datasets()
    assert not hasattr(ResourceManager, "GLOBAL_LIMITS_UPDATE_INTERVAL_S")
    (record,) = caplog.records
    assert "is not as the hook 'faster_datasets' expects" in record.getMessage()


@pytest.mark.parametrize(
    ("hooks", "before", "after"),
    [("on", None, "30000"), ("on", "7000", "7000"), ("off", None, None)],
)
def test_ray_is_told_how_long_to_wait_for_an_answer(
    monkeypatch: pytest.MonkeyPatch, hooks: str, before: str | None, after: str | None
) -> None:
    monkeypatch.setenv("PIPELINE_RAY_HOOKS", hooks)
    monkeypatch.setenv(ray_hooks.ANSWER_VARIABLE, before or "")
    if before is None:
        monkeypatch.delenv(ray_hooks.ANSWER_VARIABLE)
    ray_hooks.bound_answers()
    assert os.environ.get(ray_hooks.ANSWER_VARIABLE) == after


def test_ray_reads_how_long_to_wait_for_an_answer() -> None:
    code = "from ray._raylet import Config; print(Config.grpc_client_keepalive_timeout_ms())"
    env = {**os.environ, ray_hooks.ANSWER_VARIABLE: "7000"}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "7000"
