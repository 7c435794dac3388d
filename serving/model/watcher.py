"""The loaded model version: one that was named, or the one that an alias points at now.

The watcher reads an alias every second. A new version replaces the current one after it has been
loaded and has passed its self-test. If it does not, it is rejected and the current one stays.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import numpy as np

from pipeline.artifacts.manifests import ModelManifest
from pipeline.artifacts.registry import find_model, resolve_versions
from pipeline.artifacts.storage import Storage
from pipeline.contract import ImageSpec, Predictions
from pipeline.errors import ModelRejected
from pipeline.models.predictor import Predictor
from serving.config import AppSettings
from serving.errors import ModelUnknown, NotReady, safe_repr
from serving.model.batcher import Batcher

POLL_S = 1.0

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

    def __init__(self, settings: AppSettings) -> None:
        """Load the newest version of the alias's history that can be served.

        Raise the error of the newest version if none can be served.
        """
        self._settings = settings
        self._storage = Storage(settings.root)
        self.rejected: RejectedVersion | None = None
        newest, *older = resolve_versions(self._storage, settings.model)
        try:
            self.current = self._load(newest)
        except Exception as error:
            self._reject(newest, error)
            for version in older:
                try:
                    self.current = self._load(version)
                    return
                except Exception as older_error:
                    logging.getLogger(__name__).warning("%s", older_error)
            raise

    def find(self, name: str = "", version: str = "") -> LoadedModel:
        """Return the current version, for the whole of a request.

        Raise ModelUnknown if the request names another model or version.
        """
        model = self.current.model
        if (name or model.name, version or model.version) != (model.name, model.version):
            if name == model.name:
                unknown = f"version {safe_repr(version)} of {name}"
            else:
                unknown = safe_repr(name)
            raise ModelUnknown(
                f"Model {unknown} is not served here. Ask for {model.name}, version "
                f"{model.version}."
            )
        return self.current

    def require_ready(self) -> None:
        """Raise NotReady if the current version fails its self-test."""
        try:
            self_test(self.current.predictor)
        except Exception as error:
            logging.getLogger(__name__).exception("%s is not ready", self.current.model.ref)
            raise NotReady(
                f"Model {self.current.model.ref} fails its self-test. Another replica will replace "
                "this one: send the request again in a second."
            ) from error

    async def run(self) -> None:
        """Follow the alias until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.poll_once()

    async def poll_once(self) -> None:
        """Serve the version that the alias names now, if it can be served."""
        version = ""
        try:
            versions = await asyncio.to_thread(
                resolve_versions, self._storage, self._settings.model
            )
            version = versions[0]
            if version != self.current.model.version:
                self.current = await asyncio.to_thread(self._load, version)
            self.rejected = None
        # Any error in a promoted version must leave the current one running.
        except Exception as error:
            self._reject(version, error)

    def _reject(self, version: str, error: Exception) -> None:
        # Clients read the reason, so hide where this server stores its models.
        reason = str(error).replace(f"{self._storage.display()}/", "")
        rejected = RejectedVersion(version, reason)
        # Each poll loads and rejects the same version again: log it once.
        if rejected != self.rejected:
            logging.getLogger(__name__).error("version %r was rejected: %s", version, error)
        self.rejected = rejected

    def _load(self, version: str) -> LoadedModel:
        name = self._settings.model.partition("/")[0]
        model = find_model(self._storage, f"{name}/{version}")
        current = getattr(self, "current", None)
        if current and not _same_answers(model.image, current.model.image):
            raise ModelRejected(
                f"Model {model.ref} has another image size or other classes than "
                f"{current.model.ref}, which is served. Serve it under a different name."
            )
        predictor = Predictor(self._storage, model)
        self_test(predictor)
        batcher = Batcher(
            predictor.predict,
            max_batch_rows=self._settings.max_batch_rows,
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
