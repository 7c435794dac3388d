"""Hooks into Ray Serve: those for speed may be left out, those that close something never."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster.ray_hooks import warn_once
from pipeline.errors import ResourcesMissing
from serving import ray_hooks


@pytest.fixture(autouse=True)
def hooks_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PIPELINE_RAY_HOOKS", "on")
    warn_once.cache_clear()
    yield
    warn_once.cache_clear()


def environment(folder: Path) -> dict[str, str]:
    return ray_hooks.ingress_environment(
        folder, [1, 2, 3, 4], max_body_bytes=1 << 20, num_replicas=1
    )


def test_this_version_of_ray_knows_every_variable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    variables = environment(tmp_path)
    assert {*ray_hooks.SPEED, *ray_hooks.REQUIRED} <= set(variables)
    assert caplog.records == []


def test_only_hooks_for_speed_can_be_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_RAY_HOOKS", "off")
    variables = set(environment(tmp_path))
    assert not variables & set(ray_hooks.SPEED)
    assert set(ray_hooks.REQUIRED) <= variables


def test_an_unknown_speed_variable_is_left_out_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(ray_hooks.SPEED, "RAY_SERVE_REMOVED_VARIABLE", "1")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert "RAY_SERVE_REMOVED_VARIABLE" not in environment(tmp_path)
    (record,) = caplog.records
    assert "RAY_SERVE_REMOVED_VARIABLE" in record.getMessage()


@pytest.mark.parametrize("hooks", ["on", "off"])
def test_an_unknown_required_variable_stops_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hooks: str
) -> None:
    monkeypatch.setenv("PIPELINE_RAY_HOOKS", hooks)
    monkeypatch.setitem(ray_hooks.REQUIRED, "RAY_SERVE_REMOVED_VARIABLE", "1")
    with pytest.raises(ResourcesMissing, match="does not know RAY_SERVE_REMOVED_VARIABLE"):
        environment(tmp_path)


@pytest.mark.parametrize("configuration", ["", "frontend http_frontend\n    bind *:8000\n"])
def test_another_configuration_of_haproxy_stops_the_server(
    tmp_path: Path, configuration: str
) -> None:
    with pytest.raises(SystemExit, match="times, not once"):
        ray_hooks.patch_config(configuration, tmp_path, max_body="1")
