"""The settings of each stage.

The command line is built from these classes: a field is a flag, and the text under it is its help.
Values are validated on construction, so code that receives settings may trust them.
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
"""Name of the dataset that is built from the built-in sample of MNIST, and so of its model."""

OnBadRow: TypeAlias = Literal["fail", "quarantine"]


class Data(Settings):
    flag_prefix = "data."

    name: str = "mnist"
    """Dataset: mnist, fashion-mnist, kmnist, emnist-SPLIT, or any name for your own files."""
    source: str | None = None
    """Folder, file or URL of the images and labels (default: the mirrors of NAME): IDX or NumPy
    arrays; Parquet, Arrow, CSV or tar files named after their splits; SPLIT/CLASS/*.png."""
    on_unreachable: Literal["fail", "sample"] = "fail"
    """If no mirror answers: fail, or continue with a built-in sample of 5,000 MNIST digits."""
    cache: str = "~/.cache/ray-onnx-pipeline"
    """Folder for downloads. On a cluster of several nodes, every node must see it."""
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Height and width of the dataset's images (default: that of the source, which is then one)."""
    fit: Literal["stretch", "pad", "mass"] | None = None
    """Images of another size are stretched (default), padded, or centred by their ink's mass."""
    invert: Literal["never", "always", "auto"] = "never"
    """Invert images; `auto` inverts image files whose border is light."""
    grey: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Convert colour images to grey; otherwise they are refused."""
    split_by: str | None = None
    """Column that holds the split of each row, or file in the source that lists PATH,SPLIT (.csv,
    .txt)."""
    num_val: int | None = Field(default=None, ge=1)
    """Images in `val`, for a source that has none (default: a sixth of `train`, at most 50,000)."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw of `val`, and of the order of rows."""
    rows_per_shard: int = Field(default=10_000, ge=1)
    """Images per Parquet shard."""
    on_bad_row: OnBadRow = "fail"
    """If rows are invalid: fail and list them, or write them to a side file (quarantine)."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            raise ValueError("use lower-case letters, digits, '.', '_' and '-'")
        return name


class Stage(Settings):
    """The base class of the settings of a stage. To add one: see the docstring of `pipeline`."""

    root: str = Field(default_factory=lambda: os.environ.get("PIPELINE_ROOT", "artifacts"))
    """Storage root: a folder, or a URI such as s3://bucket/path (env: PIPELINE_ROOT)."""
    metrics_dir: str | None = None
    """Folder for the figures of the stage in Prometheus' text format, as node_exporter reads it."""
    metrics_push: str | None = Field(default=None, pattern=r"^https?://[^@\s]+$")
    """Address of a Prometheus Pushgateway for the figures of the stage: http://HOST:9091."""
    metrics_job: str = Field(default="pipeline", pattern=r"^[A-Za-z0-9_.-]+$")
    """Name that tells these figures from those of other pipelines."""


class ForcedStage(Stage):
    """The base class of the settings of a stage that skips an artifact that exists."""

    force: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Build the artifact even if it already exists."""


class RayStage(ForcedStage):
    """The base class of the settings of a stage that runs on Ray."""

    wait: float = Field(default=20, ge=0)
    """Seconds to wait for CPUs, GPUs and nodes that a cluster lacks. An autoscaler is asked for
    them."""


class Preprocess(RayStage):
    """Validate images and labels, and write them as a dataset of Parquet shards, with Ray Data.
    Print the name of the dataset."""

    data: Data = Data()


class Train(RayStage):
    """Train a model on a dataset, data-parallel, with Ray Train. Print the name of the run."""

    dataset: str
    """Dataset, as `preprocess` printed it: NAME/VERSION."""
    train: Recipe = RECIPES["fast"]


class Export(ForcedStage):
    """Export a run to ONNX, and publish it only if it predicts as torch does. Print the name of
    the model version."""

    run: str
    """Run, as `train` printed it."""
    uint8: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Quantize the first layer of `mlp` to uint8 and multiply integers, as a separate version."""


class Evaluate(ForcedStage):
    """Measure a model version on `val` and `test`. Write the metrics, report.html and
    model_card.md."""

    model: str = "mnist/production"
    """Model: NAME/VERSION or NAME/ALIAS."""


class Promote(Stage):
    """Point an alias such as `production` at a model version. To roll back, promote the previous
    version."""

    model: str
    """Model version to promote: NAME/VERSION."""
    alias: str = "production"
    """Alias to point at it."""
    server: str | None = None
    """Address of a server that follows the alias, such as http://127.0.0.1:8000: wait until it
    answers by this version. Its API key is read from PIPELINE_API_KEY."""


class Score(RayStage):
    """Predict any number of images with Ray Data, and write the scores as Parquet shards."""

    input: tuple[str, ...] = Field(min_length=1)
    """Parquet, Arrow, IDX, NumPy, CSV, tar or image files; globs or folders of them; or
    NAME/VERSION/SPLIT."""
    output: str
    """Folder or URI for the shards of scores and their manifest."""
    model: str = "mnist/production"
    """Model: NAME/VERSION or NAME/ALIAS."""
    probabilities: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write the probability of every class, not only that of the predicted class."""
    columns: tuple[str, ...] = ()
    """Columns of the input to copy into the scores; folders of image files have `path`."""
    on_bad_row: OnBadRow = "fail"
    """If rows cannot be scored: fail, or write them and the reasons to a side file."""
    rows_per_shard: int = Field(default=25_000, ge=1)
    """Rows per Parquet shard of scores."""
    num_workers: int | None = Field(default=None, ge=1)
    """Predictors that run in parallel (default: one per free CPU of the cluster, on `cuda` one per
    free GPU)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the predictors. Scoring fails if the cluster does not have it."""


class Show(Stage):
    """Print the layers of a model as a table and as a Mermaid graph, and one digit with its
    prediction."""

    model: str = "mnist/production"
    """Model: NAME/VERSION or NAME/ALIAS."""
    index: int = Field(default=0, ge=0)
    """Index in `test` of the digit to draw."""
    save: str | None = None
    """Also save the digit as this PNG file, to post to a server."""


class Run(RayStage):
    """Run all stages, skipping those whose artifact exists. Promote the model to `production`,
    unless always answering the commonest class of `val` is as accurate."""

    data: Data = Data()
    train: Recipe = RECIPES["fast"]
    check_serving: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """At the end, start the server, request one prediction over HTTP, and stop the server."""
