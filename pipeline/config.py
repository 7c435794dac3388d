"""The settings of each stage, and the recipes `seed`, `fast`, `best` and `large`.

The command line is built from these classes: a field is a flag, the text under it is its help.
Values are checked when they are made, so what takes settings may trust them.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal, TypeAlias

import tyro
from pydantic import Field, field_validator

from pipeline.recipes import RECIPES, Recipe
from pipeline.settings import Settings

SAMPLE = "mnist-sample"
"""Name of the data set, and so of the model, that the built-in sample of MNIST makes."""

OnBadRow: TypeAlias = Literal["fail", "quarantine"]


class Data(Settings):
    flag_prefix = "data."

    name: str = "mnist"
    """Data set: mnist, fashion-mnist, kmnist, emnist-SPLIT, or any name for files of your own."""
    source: str | None = None
    """Folder or URL of the four IDX files, gzipped or not (default: the mirrors of NAME); or a
    folder of pictures as SPLIT/CLASS/*.png, or of Parquet files by split."""
    on_unreachable: Literal["fail", "sample"] = "fail"
    """Where no mirror answers: fail, or go on with a built-in sample of 5,000 MNIST digits."""
    cache: str = "~/.cache/ray-onnx-pipeline"
    """Folder for downloads; on a cluster of several nodes, one that all of them see."""
    num_val: int | None = Field(default=None, ge=1)
    """Images of `val`: the last of the training files (default: a sixth of them)."""
    rows_per_shard: int = Field(default=10_000, ge=1)
    """Images a Parquet shard."""
    on_bad_row: OnBadRow = "fail"
    """Images that are of no use: fail and list them, or quarantine them in a side file."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            raise ValueError("use lower-case letters, digits, '.', '_' and '-'")
        return name


class Stage(Settings):
    root: str = Field(default_factory=lambda: os.environ.get("PIPELINE_ROOT", "artifacts"))
    """Storage root: a folder, or a URI such as s3://bucket/path (env: PIPELINE_ROOT)."""


class ForcedStage(Stage):
    force: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Make the artifact again, though it is there already."""


class Preprocess(ForcedStage):
    """Images and labels -> dataset: checked Parquet shards, with Ray Data. Prints the dataset."""

    data: Data = Data()


class Train(ForcedStage):
    """Dataset -> run: data-parallel training with Ray Train. Prints the run."""

    dataset: str
    """The dataset, as `preprocess` printed it: NAME/VERSION."""
    train: Recipe = RECIPES["fast"]


class Export(ForcedStage):
    """Run -> model version: ONNX, published only if it predicts as torch does. Prints it."""

    run: str
    """The run, as `train` printed it."""
    uint8: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The first layer's weights as uint8, for a product in integers: a model version of its own."""


class Evaluate(ForcedStage):
    """Model version -> metrics over `val` and `test`, report.html, model_card.md."""

    model: str = "mnist/production"
    """Model: NAME/VERSION or NAME/ALIAS."""


class Promote(Stage):
    """Make an alias such as `production` name a model version; to roll back, the one before."""

    model: str
    """Model version to promote: NAME/VERSION."""
    alias: str = "production"
    """The alias."""


class Score(ForcedStage):
    """Images -> Parquet: predictions for any number of rows, with Ray Data."""

    input: tuple[str, ...] = Field(min_length=1)
    """Parquet and IDX files, globs, folders of Parquet or of pictures, NAME/VERSION/SPLIT."""
    output: str
    """Folder or URI for the shards of predictions and their manifest."""
    model: str = "mnist/production"
    """Model: NAME/VERSION or NAME/ALIAS."""
    probabilities: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write the probability of every class, not that of the predicted one alone."""
    columns: tuple[str, ...] = ()
    """Columns of the input to write beside the predictions; pictures have `path`."""
    on_bad_row: OnBadRow = "fail"
    """Rows that cannot be scored: fail, or write them with the reason to a side file."""
    rows_per_shard: int = Field(default=25_000, ge=1)
    """Predictions a Parquet shard."""
    num_workers: int | None = Field(default=None, ge=1)
    """Predictors side by side (default: one for each free CPU of the cluster)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the predictors; one that is not there is an error."""


class Show(Stage):
    """The table of a model, its graph as Mermaid, and a digit with its prediction."""

    model: str = "mnist/production"
    """Model: NAME/VERSION or NAME/ALIAS."""
    index: int = Field(default=0, ge=0)
    """Position in `test` of the digit to draw."""
    save: str | None = None
    """Also save that digit as this PNG file, to post to a server."""


class Run(ForcedStage):
    """All stages, each skipped where its artifact is there; ends by promoting to `production`."""

    data: Data = Data()
    train: Recipe = RECIPES["fast"]
    check_serving: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Then start the server, ask it for one prediction over HTTP, and stop it."""
