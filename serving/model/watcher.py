"""The model version that is served: the one that was named, or the one that an alias names now.

An alias is looked at every second. Another version takes the place of the one served when it has
been loaded and passed its self-test; one that does not is refused, and the old one stays.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import numpy as np

from pipeline.artifacts.manifests import ModelManifest
from pipeline.artifacts.registry import find_model, resolve_versions
from pipeline.artifacts.storage import Storage
from pipeline.contract import Predictions
from pipeline.errors import ModelRejected
from pipeline.models.predictor import Predictor
from serving.config import AppSettings
from serving.errors import ModelUnknown, NotReady, safe_repr
from serving.model.batcher import Batcher

POLL_S = 1.0

TEST_ROWS = 3


@dataclass(frozen=True)
class LoadedModel:
    """A model version, and the requests batched for it."""

    predictor: Predictor
    batcher: Batcher

    @property
    def model(self) -> ModelManifest:
        return self.predictor.model


@dataclass(frozen=True)
class RejectedVersion:
    """A version that is not served though the alias names it, and why."""

    version: str
    reason: str


class ModelWatcher:
    """Holds what is served. A request takes `served` once, so that all of it is of one version."""

    def __init__(self, settings: AppSettings) -> None:
        """Takes the newest version of the alias's history that can be served.

        Raises what the newest one raises where there is none.
        """
        self._settings = settings
        self._storage = Storage(settings.root)
        self.refused: RejectedVersion | None = None
        newest, *older = resolve_versions(self._storage, settings.model)
        try:
            self.served = self._load(newest)
        except Exception as error:
            self._refuse(newest, error)
            for version in older:
                try:
                    self.served = self._load(version)
                    return
                except Exception as older_error:
                    logging.getLogger(__name__).warning("%s", older_error)
            raise

    def find(self, name: str = "", version: str = "") -> LoadedModel:
        """What is served now, for the whole of a request; ModelUnknown where it names another."""
        model = self.served.model
        if (name or model.name, version or model.version) != (model.name, model.version):
            what = (
                f"version {safe_repr(version)} of {name}" if name == model.name else safe_repr(name)
            )
            raise ModelUnknown(
                f"Model {what} is not served here. Ask for {model.name}, version {model.version}."
            )
        return self.served

    def require_ready(self) -> None:
        """NotReady where what is served fails its self-test."""
        try:
            self_test(self.served.predictor)
        except Exception as error:
            logging.getLogger(__name__).exception("%s is not ready", self.served.model.ref)
            raise NotReady(
                f"Model {self.served.model.ref} fails its self-test. Another replica takes its "
                "place: send the request again in a second."
            ) from error

    async def run(self) -> None:
        """Follows the alias until it is cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.poll_once()

    async def poll_once(self) -> None:
        """Serves what the alias names now, if it can be."""
        version = ""
        try:
            version = (
                await asyncio.to_thread(resolve_versions, self._storage, self._settings.model)
            )[0]
            if version != self.served.model.version:
                self.served = await asyncio.to_thread(self._load, version)
            self.refused = None
        # Whatever is wrong with what was promoted, what is served must go on.
        except Exception as error:
            self._refuse(version, error)

    def _refuse(self, version: str, error: Exception) -> None:
        # Clients read the reason, and need not know where this server keeps its models.
        refused = RejectedVersion(version, str(error).replace(f"{self._storage.name()}/", ""))
        if refused != self.refused:
            logging.getLogger(__name__).error("version %r is refused: %s", version, error)
        self.refused = refused

    def _load(self, version: str) -> LoadedModel:
        name = self._settings.model.partition("/")[0]
        model = find_model(self._storage, f"{name}/{version}")
        served = getattr(self, "served", None)
        if served and model.image != served.model.image:
            raise ModelRejected(
                f"Model {model.ref} is for other images or classes than {served.model.ref}, which "
                "is served. Serve it under a name of its own."
            )
        predictor = Predictor(self._storage, model)
        self_test(predictor)
        batcher = Batcher(
            predictor.predict,
            max_batch_rows=self._settings.max_batch_rows,
            max_queue_rows=self._settings.max_queue_rows,
        )
        return LoadedModel(predictor, batcher)


def self_test(predictor: Predictor) -> None:
    """The self-test: ModelRejected where the model does not answer as the contract says."""
    model = predictor.model
    noise = np.random.default_rng(0).integers(0, 256, (TEST_ROWS, *model.image.shape), np.uint8)
    if not _sound(predictor.predict(noise), model.image.num_classes):
        raise ModelRejected(
            f"Model {model.ref} fails its self-test: its probabilities are not finite, do not sum "
            "to 1, or its predictions are not their largest. Export it again."
        )


def _sound(found: Predictions, num_classes: int) -> bool:
    probabilities = found.probabilities
    return (
        probabilities.shape == (TEST_ROWS, num_classes)
        and bool(np.isfinite(probabilities).all())
        and bool(np.allclose(probabilities.sum(1), 1, atol=1e-3))
        and np.array_equal(found.prediction, probabilities.argmax(1))
    )
