"""A poor environment is put right, or is an error that names the variable."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path

import pytest

from pipeline.errors import ResourcesMissing, SettingError
from pipeline.process import environment


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test change the variables: they are as before after it."""
    for name in ("no_proxy", "NO_PROXY", "TMPDIR", "RAY_TMPDIR", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("no_proxy", "", "localhost,127.0.0.1,::1"),
        ("NO_PROXY", "host, 127.0.0.1", "host,127.0.0.1,localhost,::1"),
        ("no_proxy", "*", "*"),
    ],
)
def test_loopback_is_named_in_no_proxy(
    variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    environment.prepare()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == expected


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize(
    ("folder", "problem"),
    [
        ("/tmp/" + "x" * 95, "has 100 bytes"),
        ("/proc/nowhere", "cannot be written"),
        ("/etc/passwd", "cannot be written"),
        ("relative", "is not an absolute path"),
    ],
)
def test_a_folder_that_ray_cannot_use_is_replaced_with_a_warning(
    variable: str,
    folder: str,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(variable, folder)
    with caplog.at_level(logging.WARNING):
        environment.prepare()
    assert variable not in os.environ
    (record,) = caplog.records
    assert f"{variable} is {folder!r}, which {problem}" in record.getMessage()


def test_a_folder_that_does_not_exist_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("/tmp", f"environment-{os.getpid()}", "new")
    monkeypatch.setenv("TMPDIR", str(folder))
    environment.prepare()
    assert os.environ["TMPDIR"] == str(folder)
    assert list(folder.iterdir()) == []
    folder.rmdir()
    folder.parent.rmdir()


def test_folders_are_not_checked_for_a_cluster_that_others_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setenv("TMPDIR", "/proc/nowhere")
    environment.prepare()
    assert os.environ["TMPDIR"] == "/proc/nowhere"


def test_a_user_without_a_home_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_home() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", without_home)
    with pytest.raises(SettingError, match="HOME is not set"):
        environment.prepare()


def test_a_low_hard_limit_of_open_files_is_an_error() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(ResourcesMissing, match=f"may open {hard} files .* but {hard + 1} are"):
        environment.prepare(min_files=hard + 1)
