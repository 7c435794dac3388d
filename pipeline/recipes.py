"""The settings of training, and the named recipes: complete sets of them.

To add a recipe: add it to RECIPES, and its help to DESCRIPTIONS.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import tyro
from pydantic import Field, ValidationInfo, field_validator

from pipeline.settings import Settings


class Training(Settings):
    flag_prefix = "train."

    recipe: tyro.conf.Suppress[str] = "fast"
    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (128,)
    """Number of units in each hidden layer."""
    epochs: int = Field(default=4, ge=1)
    """Number of passes over `train`."""
    batch_size: int = Field(default=256, ge=1)
    """Number of images per step, over all workers together."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """SGD without momentum, or AdamW."""
    learning_rate: float = Field(default=0.016, gt=0)
    """Learning rate; with the one-cycle schedule, its peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW, per unit of learning rate."""
    schedule: Literal["constant", "one-cycle"] = "one-cycle"
    """Learning rate over the run: constant, or a cosine up in the first fifth and down to 0."""
    shuffle: bool = True
    """Shuffle each epoch by the seed; otherwise take batches in file order."""
    deform: float = Field(default=0.0, ge=0)
    """Strength of random affine and elastic deformations: 0 disables them, 1 suits handwriting."""
    seed: int = Field(default=0, ge=0)
    """Random seed for initial weights, shuffling and augmentation."""
    memory_mib: int = Field(default=1024, ge=1)
    """Memory per worker for the images of a split (MiB). Larger splits are streamed: each worker
    reads its part of the shards, and every batch mixes up to 64 of them."""
    checkpoint_every: int = Field(default=5, ge=1)
    """Epochs from one checkpoint to the next: the most that a crash costs."""
    num_workers: int = Field(default=1, ge=1)
    """Number of data-parallel workers; on `cuda` each has one GPU."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPUs, and so threads, per worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the workers: `auto` uses GPUs if the cluster has one for each worker."""

    @field_validator("weight_decay")
    @classmethod
    def _check_weight_decay(cls, weight_decay: float, info: ValidationInfo) -> float:
        if weight_decay and info.data.get("optimizer") == "sgd":
            raise ValueError("needs --train.optimizer adamw")
        return weight_decay


RECIPES = {
    "tutorial": Training(
        recipe="tutorial",
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

DESCRIPTIONS = {
    "tutorial": "Exactly the tutorial: SGD at 0.01, batches of 64 in file order, 100 epochs.",
    "fast": "The shortest wall time to an accuracy of 0.9755 on `val` (the default).",
    "best": "The lowest error of the same network: 1,000 epochs with augmentation.",
    "large": "784-2500-2000-1500-1000-500-10 with augmentation, for a GPU.",
    "seed": "Former name of `tutorial`.",
}

Recipe: TypeAlias = tyro.extras.subcommand_type_from_defaults(  # type: ignore[valid-type]
    {**RECIPES, "seed": RECIPES["tutorial"]}, DESCRIPTIONS, prefix_names=False
)
"""A recipe, chosen on the command line by its name; flags override single settings of it."""
