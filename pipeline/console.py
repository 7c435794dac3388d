"""What a person sees of a stage, on stderr; stdout is for the names of artifacts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line about what was done."""
    console.print(text)


def warn(text: str) -> None:
    """A loud line about what must not be overlooked."""
    console.print(f"WARNING: {text}", style="bold yellow", markup=False)


@contextmanager
def progress(title: str, *, total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar that goes away when done; yields `update(completed, detail)`."""
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
