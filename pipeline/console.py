"""Messages for a person, on stderr; stdout is reserved for the names of artifacts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

SECONDS_BETWEEN_LINES = 2
"""Time between two lines of progress if there is no terminal."""

# A path may hold brackets or colons, which are markup or emoji to rich.
console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def say(text: str) -> None:
    """Print a line about a result."""
    console.print(text)


def warn(text: str) -> None:
    """Print a line that must not be overlooked."""
    console.print(f"WARNING: {text}", style="bold yellow")


@contextmanager
def progress(title: str, *, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar until the block ends, or print lines if there is no terminal.

    Yields the function that updates it: update(completed, detail).
    """
    if not console.is_terminal:
        last_line = 0.0

        def print_update(completed: int, detail: str) -> None:
            nonlocal last_line
            if time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                say(f"{title} {completed:,}/{total:,} {detail}")

        yield print_update
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total, detail="")

        def update(completed: int, detail: str) -> None:
            bar.update(task, completed=completed, detail=detail)

        yield update
