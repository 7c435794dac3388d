"""Preprocess and score folders of damaged and odd files: a result or one line, and no row lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.artifacts.storage import Storage
from pipeline.config import Data, Preprocess, Score
from pipeline.data.scoring_inputs import open_input
from pipeline.data.sources import open_source
from pipeline.errors import UserError
from pipeline.stages.preprocess import preprocess
from pipeline.stages.score import score
from tests.support import stripes_model
from tests.support.odd_trees import SHAPE, OddTree, odd_trees

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"size": SHAPE},
    {"size": (9, 9), "fit": "pad", "grey": True},
    {"size": (5, 5), "fit": "mass"},
    {"invert": "auto", "split_by": "label"},
)

_numbers = itertools.count()


@pytest.fixture
def root(ray_session: None, tmp_path: Path) -> Path:
    stripes_model.publish(Storage(str(tmp_path)))
    return tmp_path


S = TypeVar("S")
M = TypeVar("M")


def result_of(stage: Callable[[S], M], stage_settings: S) -> M | None:
    """Run a stage; return None if it is refused in one line. Any other exception fails the test."""
    try:
        return stage(stage_settings)
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    return None


def check(tree: OddTree, data: dict[str, Any], on_bad_row: Any, root: Path) -> None:
    source = root / f"source-{next(_numbers)}"
    tree.write(source)
    common = {"on_bad_row": on_bad_row, "rows_per_shard": 5}
    own_data = Data(name="odd", source=str(source), **common, **data)
    dataset = result_of(preprocess, Preprocess(root=str(root), data=own_data))
    if dataset:
        files = [file for file in dataset.files if file.path.startswith("rejected/")]
        rejected = sum(file.rows or 0 for file in files)
        rows_in = sum(rows.num_rows for rows in open_source(own_data).splits.values())
        assert sum(dataset.rows.values()) + rejected == rows_in
    scoring = Score(
        root=str(root),
        model="stripes/production",
        input=(str(source),),
        output=str(root / f"scores-{source.name}"),
        num_workers=1,
        **common,
    )
    scores = result_of(score, scoring)
    if scores:
        rows = open_input(Storage(str(root)), scoring.input, scores.image)
        assert sum(file.rows or 0 for file in scores.files) == scores.rows == rows.num_rows


CASES = (odd_trees(), st.sampled_from(OPTIONS), st.sampled_from(["fail", "quarantine"]))

FEW = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@FEW
@given(*CASES)
def test_an_odd_tree_is_read_or_refused_in_one_line(
    root: Path, tree: OddTree, data: dict[str, Any], on_bad_row: Any
) -> None:
    check(tree, data, on_bad_row, root)


@pytest.mark.slow
@settings(FEW, max_examples=500)
@given(*CASES)
def test_500_odd_trees_are_read_or_refused_in_one_line(
    root: Path, tree: OddTree, data: dict[str, Any], on_bad_row: Any
) -> None:
    check(tree, data, on_bad_row, root)
