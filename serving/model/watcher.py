"""The loaded model version: one that was named, or the one that an alias points at now.

The watcher reads an alias every second. A new version replaces the current one after it has been
loaded and has passed its self-test. If it does not, it is rejected and the current one stays. The
version that was replaced still answers requests that name it, for a time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass

import numpy as np

from pipeline.artifacts.manifests import ONNX_FILE, ModelManifest
from pipeline.artifacts.registry import find_model, model_folder, resolve_versions
from pipeline.artifacts.storage import Fingerprint, Storage
from pipeline.contract import ImageSpec, Predictions
from pipeline.errors import ModelRejected, StorageError, UserError
from pipeline.models.predictor import Predictor
from serving.config import AppSettings
from serving.errors import ModelUnknown, NotReady, safe_repr
from serving.model.batcher import Batcher

POLL_S = 1.0

READY_S = 1.0
"""Time for which a self-test that passed counts."""

STALL_S = 30
"""Time without progress after which a replica whose requests wait is not ready."""

RETRY_S = 60
"""Time after which a version is loaded again that failed for another reason than itself."""

TEST_ROWS = 3


@dataclass(frozen=True)
class LoadedModel:
    """A model version in onnxruntime, and the batcher of its requests."""

    predictor: Predictor
    batcher: Batcher

    @property
    def model(self) -> ModelManifest:
        return self.predictor.model


@dataclass(frozen=True)
class RejectedVersion:
    """A version that the alias names but that is not served, and the reason."""

    version: str
    reason: str


class ModelWatcher:
    """Holds the current version, and follows the alias.

    A request must read `current` only once, so that all its rows are predicted by one version.
    """

    def __init__(self, settings: AppSettings, image: ImageSpec | None = None) -> None:
        """Load the newest version of the alias's history that can be served.

        `image` has the size and the classes that clients of the application were promised; by
        default, those of the version that is loaded now. Raise the error of the newest version if
        none can be served.
        """
        self._settings = settings
        self._storage = Storage(settings.root)
        self._image = image
        self._previous: LoadedModel | None = None
        self._previous_until = 0.0
        self._ready: tuple[LoadedModel, float] | None = None
        self._rejected_files: tuple[str, Fingerprint] | None = None
        self._retry_at = math.inf
        self.rejected: RejectedVersion | None = None
        self.storage_failed = False
        newest, *older = resolve_versions(self._storage, settings.model)
        try:
            self.current = self._load(newest)
        except Exception as error:
            self._reject(newest, error)
            for version in older:
                try:
                    self.current = self._load(version)
                    break
                except Exception as older_error:
                    logging.getLogger(__name__).warning("%s", older_error)
            else:
                raise
        self._image = self._image or self.current.model.image

    @property
    def loaded(self) -> list[LoadedModel]:
        """The current version, and for a time after a promotion its predecessor."""
        if self._previous and time.monotonic() < self._previous_until:
            return [self.current, self._previous]
        return [self.current]

    def find(self, name: str = "", version: str = "") -> LoadedModel:
        """Return the version that a request names, or the current one, for the whole request.

        Raise ModelUnknown if it is not loaded.
        """
        for loaded in self.loaded:
            model = loaded.model
            if name in ("", model.name) and version in ("", model.version):
                return loaded
        model = self.current.model
        if name in ("", model.name):
            unknown = f"version {safe_repr(version)} of {model.name}"
        else:
            unknown = safe_repr(name)
        raise ModelUnknown(
            f"Model {unknown} is not served here. Ask for {model.name}, version {model.version}."
        )

    def require_ready(self) -> None:
        """Raise NotReady if the current version fails its self-test, or its queue does not move."""
        loaded, now = self.current, time.monotonic()
        if (stalled_s := loaded.batcher.stalled_s) > STALL_S:
            raise NotReady(
                f"Requests for model {loaded.model.ref} have waited for {stalled_s:.0f} s. Another "
                "replica will replace this one: send the request again in a second."
            )
        if self._ready and self._ready[0] is loaded and now < self._ready[1] + READY_S:
            return
        try:
            # It does not wait in the queue, which may rightly be full.
            self_test(loaded.predictor)
        except Exception as error:
            logging.getLogger(__name__).exception("%s is not ready", loaded.model.ref)
            raise NotReady(
                f"Model {loaded.model.ref} fails its self-test. Another replica will replace this "
                "one: send the request again in a second."
            ) from error
        self._ready = loaded, now

    async def run(self) -> None:
        """Follow the alias until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.poll_once()

    async def poll_once(self) -> None:
        """Serve the version that the alias names now, if it can be served."""
        if self._previous and self._previous not in self.loaded:
            self._previous = None
        try:
            versions = await asyncio.to_thread(
                resolve_versions, self._storage, self._settings.model
            )
            await self._follow(versions[0])
            self.storage_failed = False
        except StorageError as error:
            # The storage, not a version, is at fault: it is asked again at the next poll.
            if not self.storage_failed:
                logging.getLogger(__name__).error("%s", error)
            self.storage_failed = True
        # Any error of an alias must leave the current version running.
        except Exception as error:
            self._reject("", error)

    async def _follow(self, version: str) -> None:
        """Serve a version. Reject it if it cannot be served, until its files change."""
        if version == self.current.model.version:
            self.rejected = self._rejected_files = None
            return
        files = version, await asyncio.to_thread(self._fingerprint, version)
        if files == self._rejected_files and time.monotonic() < self._retry_at:
            return
        try:
            known = {own.model.version: own for own in self.loaded}
            loaded = known.get(version)
            if loaded is None:
                loaded = await asyncio.to_thread(self._load, version)
        except StorageError:
            raise
        except Exception as error:
            self._reject(version, error)
            self._rejected_files = files
            # Another error, such as too little memory, may pass.
            passes = not isinstance(error, UserError)
            self._retry_at = time.monotonic() + RETRY_S if passes else math.inf
            return
        self._previous = self.current
        self._previous_until = time.monotonic() + self._settings.keep_version_s
        self.current = loaded
        self.rejected = self._rejected_files = None

    def _fingerprint(self, version: str) -> Fingerprint:
        folder = model_folder(self._settings.model.partition("/")[0], version)
        files = (ModelManifest.file_name, ONNX_FILE)
        return self._storage.fingerprint(*(f"{folder}/{file}" for file in files))

    def _reject(self, version: str, error: Exception) -> None:
        # Clients read the reason, so hide where this server stores its models.
        reason = str(error).replace(f"{self._storage.display()}/", "")
        rejected = RejectedVersion(version, reason)
        if rejected != self.rejected:
            logging.getLogger(__name__).error("version %r was rejected: %s", version, error)
        self.rejected = rejected

    def _load(self, version: str) -> LoadedModel:
        name = self._settings.model.partition("/")[0]
        model = find_model(self._storage, f"{name}/{version}")
        if self._image and not _same_answers(model.image, self._image):
            raise ModelRejected(
                f"Model {model.ref} has another image size or other classes than what is served. "
                "Serve it under a different name."
            )
        predictor = Predictor(
            self._storage,
            model,
            device=self._settings.device,
            num_threads=self._settings.num_threads,
        )
        self_test(predictor)
        batcher = Batcher(
            predictor.predict,
            max_batch_rows=self._settings.max_batch_rows,
            inline_rows=self._settings.max_inline_rows,
            max_queue_rows=self._settings.max_queue_rows,
        )
        return LoadedModel(predictor, batcher)


def _same_answers(image: ImageSpec, other: ImageSpec) -> bool:
    """Return whether clients of one may be served by the other: preparation is the server's."""
    return (image.shape, image.class_names) == (other.shape, other.class_names)


def self_test(predictor: Predictor) -> None:
    """Predict noise, and raise ModelRejected if the answer breaks the model's contract."""
    model = predictor.model
    noise = np.random.default_rng(0).integers(0, 256, (TEST_ROWS, *model.image.shape), np.uint8)
    if not _fits_contract(predictor.predict(noise), model.image.num_classes):
        raise ModelRejected(
            f"Model {model.ref} fails its self-test: its probabilities are not finite or do not "
            "sum to 1, or a prediction is not the most probable class. Export it again."
        )


def _fits_contract(predictions: Predictions, num_classes: int) -> bool:
    probabilities = predictions.probabilities
    return (
        probabilities.shape == (TEST_ROWS, num_classes)
        and bool(np.isfinite(probabilities).all())
        and bool(np.allclose(probabilities.sum(1), 1, atol=1e-3))
        and np.array_equal(predictions.prediction, probabilities.argmax(1))
    )
