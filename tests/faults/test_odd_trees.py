"""Preprocess and score folders of damaged and odd files: a result or one line, and no row lost."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.artifacts.storage import Storage
from pipeline.config import Data, Preprocess, Score
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


def check(tree: OddTree, data: dict[str, Any], on_bad_row: Any, root: Path) -> None:
    source = root / f"source-{next(_numbers)}"
    tree.write(source)
    settings_of_data = Data(
        name="odd", source=str(source), on_bad_row=on_bad_row, rows_per_shard=5, **data
    )
    try:
        dataset = preprocess(Preprocess(root=str(root), data=settings_of_data))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        rejected = sum(
            entry.rows or 0 for entry in dataset.files if entry.path.startswith("rejected/")
        )
        rows = sum(rows.num_rows for rows in open_source(settings_of_data).splits.values())
        assert sum(dataset.rows.values()) + rejected == rows
    output = root / f"scores-{source.name}"
    scoring = Score(
        root=str(root),
        model="stripes/production",
        input=(str(source),),
        output=str(output),
        on_bad_row=on_bad_row,
        rows_per_shard=5,
        num_workers=1,
    )
    try:
        scores = score(scoring)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert sum(entry.rows or 0 for entry in scores.files) == scores.rows


CASES = (odd_trees(), st.sampled_from(OPTIONS), st.sampled_from(["fail", "quarantine"]))

FEW = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
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
