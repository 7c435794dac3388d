from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.lanes import MAX_LANES, Lanes, ranges

SHARDS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(SHARDS, st.integers(1, MAX_LANES), st.integers(1, 50))
def test_every_batch_takes_of_each_lane_its_share(
    rows: list[int], count: int, batch_size: int
) -> None:
    lanes = Lanes(np.array(rows), min(count, len(rows)))
    total = sum(rows)
    places = np.append(np.arange(0, total, batch_size), total)
    taken = lanes.taken(places)
    assert taken.sum(1).tolist() == places.tolist()
    assert (np.diff(taken, axis=0) >= 0).all()
    assert taken[-1].tolist() == lanes.sizes.tolist()
    share = lanes.sizes * places[:, None] / total
    assert (taken - share > -1).all()
    assert (taken - share <= 1 + lanes.sizes * len(lanes.sizes) / total).all()


@given(SHARDS, st.integers(1, MAX_LANES))
def test_the_place_of_a_row_is_the_number_of_rows_before_it(rows: list[int], count: int) -> None:
    lanes = Lanes(np.array(rows), min(count, len(rows)))
    taken = lanes.taken(np.arange(sum(rows) + 1))
    for lane, size in enumerate(lanes.sizes):
        (places,) = np.nonzero(np.diff(taken[:, lane]))
        assert lanes.places(lane, np.arange(size)).tolist() == places.tolist()


@given(SHARDS, st.integers(1, MAX_LANES))
def test_every_shard_is_used_once_in_lanes_of_like_sizes(rows: list[int], count: int) -> None:
    lanes = Lanes(np.array(rows), min(count, len(rows)))
    assert lanes.sizes.max() - lanes.sizes.min() <= max(rows)
    uses = lanes.uses(range(len(lanes.sizes)))
    assert sorted(use.shard for use in uses) == list(range(len(rows)))
    numbers = [use.row + row for use in uses for row in range(rows[use.shard])]
    assert sorted(numbers) == list(range(sum(rows)))
    assert [use.begin for use in uses] == sorted(use.begin for use in uses)
    assert all(use.end - use.begin >= rows[use.shard] for use in uses)


def test_the_order_of_rows_changes_only_on_purpose() -> None:
    """If this fails, batches of streamed splits have other rows: raise TRAINING_FORMAT."""
    lanes = Lanes(np.array([5, 3, 4, 4, 2]), 2)
    assert lanes.sizes.tolist() == [9, 9]
    assert lanes.taken(np.array([0, 1, 2, 7])).tolist() == [[0, 0], [1, 0], [1, 1], [4, 3]]


def test_ranges_are_joined() -> None:
    assert ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
