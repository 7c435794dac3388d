"""One watcher of the stripes model, and a client of it, for a whole module."""

from __future__ import annotations

import pytest

from pipeline.models.predictor import Predictor
from serving.http.routes import build_routes
from serving.model.watcher import ModelWatcher
from tests.serving.http.helpers import Client, publish_and_watch, settings


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> ModelWatcher:
    return publish_and_watch(str(tmp_path_factory.mktemp("root")))


@pytest.fixture(scope="module")
def predictor(watcher: ModelWatcher) -> Predictor:
    return watcher.current.predictor


@pytest.fixture(scope="module")
def client(watcher: ModelWatcher) -> Client:
    return Client(build_routes(watcher, settings("unused")))
