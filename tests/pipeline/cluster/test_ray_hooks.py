"""Hooks into Ray: used, switched off, or left out if Ray is not as they expect."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
from ray._private import services
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


def test_datasets_look_for_resources_more_often(caplog: pytest.LogCaptureFixture) -> None:
    before = ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S
    with ray_hooks.faster_datasets():
        assert before > ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S
    assert before == ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S
    assert caplog.records == []


def test_datasets_of_another_version_of_ray_run_in_its_own_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(ResourceManager, "GLOBAL_LIMITS_UPDATE_INTERVAL_S")
    with caplog.at_level(logging.WARNING), ray_hooks.faster_datasets():
        assert not hasattr(ResourceManager, "GLOBAL_LIMITS_UPDATE_INTERVAL_S")
    (record,) = caplog.records
    assert "is not as the hook 'faster_datasets' expects" in record.getMessage()
