"""The settings of each stage, and the recipes `seed`, `fast`, `best` and `large`.

The command line is built from these classes: a field is a flag, the text under it is its help.
Values are checked when they are made, so what takes settings may trust them.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal, TypeAlias

import tyro
from pydantic import Field, ValidationInfo, field_validator

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


class Training(Settings):
    flag_prefix = "train."

    recipe: tyro.conf.Suppress[str] = "fast"
    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (128,)
    """Units of each hidden layer."""
    epochs: int = Field(default=4, ge=1)
    """Passes over `train`."""
    batch_size: int = Field(default=256, ge=1)
    """Examples a step, over all workers together."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """SGD without momentum, or AdamW."""
    learning_rate: float = Field(default=0.016, gt=0)
    """Step size; the peak where the schedule moves it."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW, per unit of learning rate."""
    schedule: Literal["constant", "one-cycle"] = "one-cycle"
    """Learning rate over the run: constant, or up in the first fifth and down to 0 by cosine."""
    shuffle: bool = True
    """Shuffle each epoch (seeded), or take batches in file order."""
    deform: float = Field(default=0.0, ge=0)
    """Strength of random affine and elastic deformations: 0 is none, 1 suits handwriting."""
    seed: int = Field(default=0, ge=0)
    """Of the first weights, the shuffling and the deformations."""
    memory_mib: int = Field(default=1024, ge=1)
    """For the images of a split in each worker; one that does not fit is streamed by windows of
    half of it, and shuffled by shards, then within each window."""
    checkpoint_every: int = Field(default=5, ge=1)
    """Epochs from one checkpoint to the next: what a crash costs at most."""
    num_workers: int = Field(default=1, ge=1)
    """Data-parallel workers; on `cuda` each has one GPU."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPUs, and so threads, of each worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes GPUs where the cluster has one for each worker."""

    @field_validator("weight_decay")
    @classmethod
    def _check_weight_decay(cls, weight_decay: float, info: ValidationInfo) -> float:
        if weight_decay and info.data.get("optimizer") == "sgd":
            raise ValueError("needs --train.optimizer adamw")
        return weight_decay


RECIPES = {
    "seed": Training(
        recipe="seed",
        epochs=100,
        batch_size=64,
        optimizer="sgd",
        learning_rate=0.01,
        schedule="constant",
        shuffle=False,
    ),
    "fast": Training(),
    "best": Training(recipe="best", epochs=1000, batch_size=500, learning_rate=0.005, deform=1.0),
    "large": Training(
        recipe="large",
        hidden_sizes=(2500, 2000, 1500, 1000, 500),
        epochs=200,
        batch_size=500,
        learning_rate=0.0005,
        deform=1.0,
        device="cuda",
    ),
}

Recipe: TypeAlias = tyro.extras.subcommand_type_from_defaults(  # type: ignore[valid-type]
    RECIPES,
    {
        "seed": "The tutorial, exactly: SGD at 0.01, batches of 64 in file order, 100 epochs.",
        "fast": "Least wall time to 0.9755 on `val` and past it (the default).",
        "best": "The lowest error of the same network: 1,000 epochs of deformed digits.",
        "large": "784-2500-2000-1500-1000-500-10 on deformed digits, for a GPU.",
    },
    prefix_names=False,
)


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
