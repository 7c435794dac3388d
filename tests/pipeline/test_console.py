from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from pipeline.console import console, progress, say, warn


@pytest.mark.parametrize("print_line", [say, warn])
@pytest.mark.parametrize("path", ["/data/[run1]/scores", "/data/[/y]", "/:smile:/x"])
def test_a_path_with_brackets_is_printed_as_it_is(
    print_line: Callable[[str], None], path: str
) -> None:
    with console.capture() as printed:
        print_line(f"scored into {path}")
    assert printed.get().endswith(f"scored into {path}\n")


def test_a_progress_bar_prints_a_path_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, markup=False, emoji=False)
    monkeypatch.setattr("pipeline.console.console", terminal)
    with progress("/data/[run1]/[/y]", total=2):
        pass
    assert isinstance(terminal.file, io.StringIO)
    assert "/data/[run1]/[/y]" in terminal.file.getvalue()
