from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts.manifests import ModelManifest
from pipeline.artifacts.registry import promote
from pipeline.artifacts.storage import Storage
from pipeline.contract import AS_IS, ImageSpec
from pipeline.errors import ArtifactDamaged, ModelRejected, StorageError
from pipeline.models.predictor import Predictor
from serving.config import AppSettings
from serving.errors import ModelUnknown, NotReady
from serving.model.watcher import STALL_S, ModelWatcher
from tests.support.stripes_model import STRIPES, publish, stripe

OTHER_CLASSES = ImageSpec(STRIPES.height, STRIPES.width, ("a", "b", "c"))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def follow(
    storage: Storage,
    ref: str = "stripes/production",
    image: ImageSpec | None = None,
    **settings: Any,
) -> ModelWatcher:
    return ModelWatcher(AppSettings(root=storage.root, model=ref, **settings), image)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the versions that a watcher loads from now on, as it loads them."""
    versions = list[str]()

    class Recorded(Predictor):
        def __init__(self, storage: Storage, model: ModelManifest, **options: Any) -> None:
            versions.append(model.version)
            super().__init__(storage, model, **options)

    monkeypatch.setattr("serving.model.watcher.Predictor", Recorded)
    return versions


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


def test_a_client_that_names_a_version_keeps_its_answers_after_a_promotion(
    storage: Storage,
) -> None:
    first = publish(storage)
    watcher = follow(storage)
    second = publish(storage, scale=2.0)
    poll(watcher)
    assert watcher.find().model == second
    assert watcher.find("stripes", first.version).model == first
    assert [loaded.model for loaded in watcher.loaded] == [second, first]
    third = publish(storage, scale=3.0)
    poll(watcher)
    assert [loaded.model for loaded in watcher.loaded] == [third, second]
    with pytest.raises(ModelUnknown, match=f"version '{first.version}' of stripes"):
        watcher.find("stripes", first.version)


def test_the_version_before_is_unloaded_after_the_stated_time(storage: Storage) -> None:
    first = publish(storage)
    watcher = follow(storage, keep_version_s=0)
    publish(storage, scale=2.0)
    poll(watcher)
    with pytest.raises(ModelUnknown):
        watcher.find("stripes", first.version)


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


def test_a_rejected_version_is_not_loaded_again_until_its_files_change(
    storage: Storage, loads: list[str]
) -> None:
    publish(storage)
    watcher = follow(storage)
    second = publish(storage, scale=2.0)
    content = storage.read(f"models/{second.ref}/model.onnx")
    damage(storage, second)
    for _ in range(5):
        poll(watcher)
    assert loads.count(second.version) == 1
    storage.write(f"models/{second.ref}/model.onnx", content)
    poll(watcher)
    assert watcher.current.model == second
    assert watcher.rejected is None


def test_storage_that_fails_is_no_rejected_version(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("no route to host")

    first = publish(storage)
    watcher = follow(storage)
    second = publish(storage, scale=2.0)
    for method in ("read", "fingerprint"):
        with monkeypatch.context() as broken:
            broken.setattr(Storage, method, fail)
            poll(watcher)
        assert (watcher.current.model, watcher.rejected, watcher.storage_failed) == (
            first,
            None,
            True,
        )
    poll(watcher)
    assert (watcher.current.model, watcher.storage_failed) == (second, False)


def test_a_new_replica_refuses_what_a_running_one_refuses(storage: Storage) -> None:
    first = publish(storage)
    running = follow(storage, image=first.image)
    publish_other_classes(storage)
    poll(running)
    restarted = follow(storage, image=first.image)
    for watcher in (running, restarted):
        assert watcher.current.model == first
        assert watcher.rejected is not None
        assert "other classes" in watcher.rejected.reason


def test_a_replica_whose_queue_does_not_move_is_not_ready(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(storage)
    watcher = follow(storage)
    watcher.require_ready()
    monkeypatch.setattr(type(watcher.current.batcher), "stalled_s", STALL_S + 1)
    with pytest.raises(NotReady, match="have waited for 31 s"):
        watcher.require_ready()


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
