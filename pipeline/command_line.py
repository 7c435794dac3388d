"""The command line: one subcommand per stage, with flags built from the settings classes.

stdout carries the name of the finished artifact, for the next command; everything else is on
stderr.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any, Union

import tyro

from pipeline import config
from pipeline.contract import VERSION

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
"""The settings class of each subcommand. To add one: see the docstring of `pipeline`."""


def run_stage() -> None:
    """Run the stage that the command line names, and print the name of its artifact."""
    if sys.argv[1:] == ["--version"]:
        print(VERSION)
        return
    settings = parse()
    verb = type(settings).__name__.lower()
    # Only the module of this stage is imported: some need torch or Ray, which load slowly.
    stage = getattr(importlib.import_module(f"pipeline.stages.{verb}"), verb)
    result = stage(settings)
    artifact = result if isinstance(result, str) else getattr(result, "ref", None)
    if artifact:
        print(artifact)


def parse(args: list[str] | None = None) -> config.Stage:
    """Return the settings of the stage that the command line names."""
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
