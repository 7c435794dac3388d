"""Every case of JSONTestSuite (Seriot 2016): set JSON_TEST_SUITE to the folder of its 318 files.

None of them is an infer request, so the server refuses each: as invalid JSON, or for its fields.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving.http.routes import build_routes
from serving.model.watcher import ModelWatcher
from tests.serving.http.helpers import Client, error_message, publish_and_watch, settings

REPEATED_KEYS = {"y_object_duplicated_key.json", "y_object_duplicated_key_and_value.json"}
"""Valid JSON, but refused: a reader cannot know which of two values of a key is meant."""

ACCEPTED_PREFIXES = ("y_", "i_number_", "i_structure_UTF-8_BOM")
"""Valid JSON, and what RFC 8259 leaves open: numbers beyond the range of a double, and a byte order
mark."""


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> ModelWatcher:
    return publish_and_watch(str(tmp_path_factory.mktemp("root")))


@pytest.fixture(scope="module")
def cases() -> list[Path]:
    folder = os.environ.get("JSON_TEST_SUITE")
    if not folder:
        pytest.skip("JSON_TEST_SUITE is not set: give the folder of its files")
    return sorted(Path(folder).glob("*.json"))


def test_each_case_is_accepted_or_refused_as_in_rfc_8259(
    cases: list[Path], watcher: ModelWatcher
) -> None:
    client = Client(build_routes(watcher, settings("unused")))
    assert len(cases) == 318
    accepted = set()
    for case in cases:
        response = client.post("/v2/models/stripes/infer", content=case.read_bytes())
        if not error_message(response, 400).startswith("The body is not JSON"):
            accepted.add(case.name)
        assert client.get("/v2/health/live").status_code == 200
    valid = {case.name for case in cases if case.name.startswith(ACCEPTED_PREFIXES)}
    assert accepted == valid - REPEATED_KEYS
