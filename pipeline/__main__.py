"""The command line: a subcommand a stage, its flags built from the settings classes.

stdout carries the name of the artifact that was made, for the next command; all else is on stderr.
Exit code 0: done; 2: something a user can mend, in one line; 1: a bug, with its trace;
130: interrupted.
"""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Annotated, Any, Union

import tyro

from pipeline import config
from pipeline.console import console
from pipeline.errors import UserError

STAGES = (
    config.Run,
    config.Preprocess,
    config.Train,
    config.Export,
    config.Evaluate,
    config.Promote,
    config.Score,
    config.Show,
)


def main() -> int:
    """Parses, runs one stage, and returns the exit code."""
    # SIGINT too: a shell without job control starts background commands with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        settings = parse()
        name = type(settings).__name__.lower()
        stage = getattr(importlib.import_module(f"pipeline.stages.{name}"), name)
        result = stage(settings)
    except UserError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; run the same command again to go on")
        return 130
    if artifact := getattr(result, "ref", result if isinstance(result, str) else None):
        print(artifact)
    return 0


def parse(args: list[str] | None = None) -> config.Stage:
    """The settings of the stage that the command line names."""
    command: Any = Union[  # noqa: UP007
        tuple(
            Annotated[stage, tyro.conf.subcommand(stage.__name__.lower(), prefix_name=False)]
            for stage in STAGES
        )
    ]
    settings: config.Stage = tyro.cli(
        command,
        args=args,
        prog="python -m pipeline",
        description="Raw digit images in; a trained, checked, served and batch-scored model out.",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    return settings


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
