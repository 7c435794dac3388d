"""What a person sees of a stage, on stderr; stdout is for the names of artifacts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

SECONDS_BETWEEN_LINES = 2

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line about what was done."""
    console.print(text)


def warn(text: str) -> None:
    """A loud line about what must not be overlooked."""
    console.print(f"WARNING: {text}", style="bold yellow", markup=False)


@contextmanager
def progress(title: str, *, total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar that goes away when done, or lines where there is no terminal; yields its update."""
    if not console.is_terminal:
        said = 0.0

        def say_now_and_then(completed: int, detail: str) -> None:
            nonlocal said
            if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                say(f"{title} {completed:,}/{total:,} {detail}")

        yield say_now_and_then
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total, detail="")

        def update(completed: int, detail: str) -> None:
            bar.update(task, completed=completed, detail=detail)

        yield update
