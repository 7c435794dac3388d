from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.manifests import ModelManifest
from pipeline.artifacts.registry import promote
from pipeline.artifacts.storage import Storage
from pipeline.contract import ImageSpec
from pipeline.errors import ArtifactDamaged, ModelRejected
from serving.config import AppSettings
from serving.model.watcher import ModelWatcher
from tests.support.stripes_model import STRIPES, publish, stripe

OTHERS = ImageSpec(STRIPES.height, STRIPES.width, ("a", "b", "c"))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def follow(storage: Storage, ref: str = "stripes/production") -> ModelWatcher:
    return ModelWatcher(AppSettings(root=storage.root, model=ref))


def look(watcher: ModelWatcher) -> None:
    asyncio.run(watcher.poll_once())


def damage(storage: Storage, model: ModelManifest) -> None:
    storage.write(f"models/{model.ref}/model.onnx", b"not a model")


def test_what_is_promoted_is_served_and_so_is_a_rollback(storage: Storage) -> None:
    first = publish(storage)
    watcher = follow(storage)
    second = publish(storage, scale=2.0)
    assert watcher.served.model == first
    look(watcher)
    assert watcher.served.model == second
    promote(storage, first.ref, "production")
    look(watcher)
    assert watcher.served.model == first


def test_a_version_that_was_named_stays(storage: Storage) -> None:
    first = publish(storage)
    watcher = follow(storage, first.ref)
    publish(storage, scale=2.0)
    look(watcher)
    assert watcher.served.model == first


def test_a_request_is_all_of_one_version(storage: Storage) -> None:
    """Begun before a swap and ended after it."""

    async def swap() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        served = watcher.served
        publish(storage, scale=2.0)
        await watcher.poll_once()
        assert watcher.served is not served
        return (await served.batcher.predict(stripe(0)[None])).probabilities

    publish(storage)
    watcher = follow(storage)
    expected = watcher.served.predictor.predict(stripe(0)[None]).probabilities
    np.testing.assert_array_equal(asyncio.run(swap()), expected)


def bad_file(storage: Storage) -> None:
    damage(storage, publish(storage, scale=2.0))


def other_classes(storage: Storage) -> None:
    publish(storage, image=OTHERS)


def not_finite(storage: Storage) -> None:
    publish(storage, scale=float("nan"))


def bad_alias(storage: Storage) -> None:
    storage.write("models/stripes/aliases/production.json", b"{")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (bad_file, "its manifest says"),
        (other_classes, "other images or classes"),
        (not_finite, "fails its self-test"),
        (bad_alias, "is not an alias"),
    ],
)
def test_what_cannot_be_served_is_refused_with_a_reason(
    storage: Storage, spoil: Callable[[Storage], None], reason: str
) -> None:
    first = publish(storage)
    watcher = follow(storage)
    spoil(storage)
    for _ in range(2):
        look(watcher)
        assert watcher.served.model == first
        assert watcher.refused is not None
        assert reason in watcher.refused.reason
        assert storage.root not in watcher.refused.reason
    publish(storage, scale=3.0)
    look(watcher)
    assert watcher.served.model.version != first.version
    assert watcher.refused is None


def test_a_replica_that_starts_takes_the_newest_that_can_be_served(storage: Storage) -> None:
    first = publish(storage)
    damage(storage, publish(storage, scale=2.0))
    watcher = follow(storage)
    assert watcher.served.model == first
    assert watcher.refused is not None


@pytest.mark.parametrize("error", [ArtifactDamaged, ModelRejected])
def test_where_none_can_be_served_the_newest_says_why(
    storage: Storage, error: type[Exception]
) -> None:
    if error is ArtifactDamaged:
        damage(storage, publish(storage))
    else:
        not_finite(storage)
    with pytest.raises(error):
        follow(storage)
