from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.console import console, say, warn


@pytest.mark.parametrize("print_line", [say, warn])
@pytest.mark.parametrize("path", ["/data/[run1]/scores", "/data/[/y]"])
def test_a_path_with_brackets_is_printed_as_it_is(
    print_line: Callable[[str], None], path: str
) -> None:
    with console.capture() as printed:
        print_line(f"scored into {path}")
    assert printed.get().endswith(f"scored into {path}\n")
