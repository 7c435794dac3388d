"""Every case of JSONTestSuite (Seriot 2016): set JSON_TEST_SUITE to the folder of its 318 files.

None of them is an infer request, so each is refused: those that are not JSON as such, the others
for what they lack.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving.http.routes import build_routes
from serving.model.watcher import ModelWatcher
from tests.serving.http.test_routes import Client, error, serve, settings

REPEATED_KEYS = {"y_object_duplicated_key.json", "y_object_duplicated_key_and_value.json"}
"""JSON, but of two values for a key no reader knows which is meant."""

READ = ("y_", "i_number_")
"""What is read: JSON, and of what RFC 8259 leaves open the numbers beyond a double's range."""


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> ModelWatcher:
    return serve(str(tmp_path_factory.mktemp("root")))


@pytest.fixture(scope="module")
def cases() -> list[Path]:
    folder = os.environ.get("JSON_TEST_SUITE")
    if not folder:
        pytest.skip("JSON_TEST_SUITE is not set: give the folder of its files")
    return sorted(Path(folder).glob("*.json"))


def test_each_case_is_read_or_refused_as_rfc_8259_has_it(
    cases: list[Path], watcher: ModelWatcher
) -> None:
    client = Client(build_routes(watcher, settings("unused")))
    assert len(cases) == 318
    read = set()
    for case in cases:
        response = client.post("/v2/models/stripes/infer", content=case.read_bytes())
        if not error(response, 400).startswith("The body is not JSON"):
            read.add(case.name)
        assert client.get("/v2/health/live").status_code == 200
    assert read == {case.name for case in cases if case.name.startswith(READ)} - REPEATED_KEYS
