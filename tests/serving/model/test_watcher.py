from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.manifests import ModelManifest
from pipeline.artifacts.registry import promote
from pipeline.artifacts.storage import Storage
from pipeline.contract import AS_IS, ImageSpec
from pipeline.errors import ArtifactDamaged, ModelRejected
from serving.config import AppSettings
from serving.model.watcher import ModelWatcher
from tests.support.stripes_model import STRIPES, publish, stripe

OTHER_CLASSES = ImageSpec(STRIPES.height, STRIPES.width, ("a", "b", "c"))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def follow(storage: Storage, ref: str = "stripes/production") -> ModelWatcher:
    return ModelWatcher(AppSettings(root=storage.root, model=ref))


def poll(watcher: ModelWatcher) -> None:
    asyncio.run(watcher.poll_once())


def damage(storage: Storage, model: ModelManifest) -> None:
    storage.write(f"models/{model.ref}/model.onnx", b"not a model")


def test_a_promotion_and_a_rollback_change_the_served_version(storage: Storage) -> None:
    first = publish(storage)
    watcher = follow(storage)
    second = publish(storage, scale=2.0)
    assert watcher.current.model == first
    poll(watcher)
    assert watcher.current.model == second
    promote(storage, first.ref, "production")
    poll(watcher)
    assert watcher.current.model == first


def test_a_named_version_stays_after_a_promotion(storage: Storage) -> None:
    first = publish(storage)
    watcher = follow(storage, first.ref)
    publish(storage, scale=2.0)
    poll(watcher)
    assert watcher.current.model == first


def test_a_request_is_answered_by_one_version(storage: Storage) -> None:
    """Start a request before a swap of versions, and finish it afterwards."""

    async def swap() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        loaded = watcher.current
        publish(storage, scale=2.0)
        await watcher.poll_once()
        assert watcher.current is not loaded
        return (await loaded.batcher.predict(stripe(0)[None])).probabilities

    publish(storage)
    watcher = follow(storage)
    expected = watcher.current.predictor.predict(stripe(0)[None]).probabilities
    np.testing.assert_array_equal(asyncio.run(swap()), expected)


def publish_damaged_file(storage: Storage) -> None:
    damage(storage, publish(storage, scale=2.0))


def publish_other_classes(storage: Storage) -> None:
    publish(storage, image=OTHER_CLASSES)


def publish_not_finite(storage: Storage) -> None:
    publish(storage, scale=float("nan"))


def write_damaged_alias(storage: Storage) -> None:
    storage.write("models/stripes/aliases/production.json", b"{")


@pytest.mark.parametrize(
    ("publish_invalid", "reason"),
    [
        (publish_damaged_file, "its manifest says"),
        (publish_other_classes, "another image size or other classes"),
        (publish_not_finite, "fails its self-test"),
        (write_damaged_alias, "is not an alias"),
    ],
)
def test_an_invalid_version_is_rejected_with_a_reason(
    storage: Storage, publish_invalid: Callable[[Storage], None], reason: str
) -> None:
    first = publish(storage)
    watcher = follow(storage)
    publish_invalid(storage)
    for _ in range(2):
        poll(watcher)
        assert watcher.current.model == first
        assert watcher.rejected is not None
        assert reason in watcher.rejected.reason
        assert storage.root not in watcher.rejected.reason
    publish(storage, scale=3.0)
    poll(watcher)
    assert watcher.current.model.version != first.version
    assert watcher.rejected is None


def test_a_new_replica_serves_the_newest_valid_version(storage: Storage) -> None:
    first = publish(storage)
    damage(storage, publish(storage, scale=2.0))
    watcher = follow(storage)
    assert watcher.current.model == first
    assert watcher.rejected is not None


@pytest.mark.parametrize("error", [ArtifactDamaged, ModelRejected])
def test_the_error_of_the_newest_version_is_raised_if_none_is_valid(
    storage: Storage, error: type[Exception]
) -> None:
    if error is ArtifactDamaged:
        damage(storage, publish(storage))
    else:
        publish_not_finite(storage)
    with pytest.raises(error):
        follow(storage)


def test_a_version_whose_images_are_prepared_otherwise_is_served(storage: Storage) -> None:
    publish(storage)
    watcher = follow(storage)
    as_is = publish(storage, scale=2.0, image=replace(STRIPES, preparation=AS_IS))
    poll(watcher)
    assert watcher.current.model == as_is
