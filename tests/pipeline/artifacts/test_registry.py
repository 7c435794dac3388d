from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.artifacts.commit import commit
from pipeline.artifacts.registry import find_alias, find_model, model_folder, promote
from pipeline.artifacts.storage import Storage
from pipeline.errors import ArtifactDamaged, ArtifactMissing, SettingError
from tests.conftest import Artifacts

ONE, TWO = "1" * 12, "2" * 12


@pytest.fixture
def storage(artifacts: Artifacts, tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path))
    for version in (ONE, TWO):
        manifest = artifacts.model.model_copy(update={"version": version})
        commit(storage, model_folder("bars", version), manifest)
    return storage


def test_an_alias_names_the_version_promoted_last(storage: Storage) -> None:
    promote(storage, f"bars/{ONE}", "production")
    promote(storage, f"bars/{TWO}", "production")
    assert find_model(storage, "bars/production").version == TWO
    assert find_model(storage, f"bars/{ONE}").version == ONE


def test_a_roll_back_promotes_the_previous_version(storage: Storage) -> None:
    for version in (ONE, TWO, TWO):
        promote(storage, f"bars/{version}", "production")
    alias = find_alias(storage, "bars", "production")
    assert alias is not None
    assert alias.history == (ONE,)
    promote(storage, f"bars/{alias.history[0]}", "production")
    assert find_model(storage, "bars/production").version == ONE


def test_an_alias_may_be_promoted_to_another(storage: Storage) -> None:
    promote(storage, f"bars/{ONE}", "staging")
    promote(storage, "bars/staging", "production")
    assert find_model(storage, "bars/production").version == ONE


def test_the_error_of_an_unknown_alias_says_how_to_create_it(storage: Storage) -> None:
    with pytest.raises(ArtifactMissing, match="no alias 'production'.*pipeline promote"):
        find_model(storage, "bars/production")


def test_a_missing_version_is_never_promoted(storage: Storage) -> None:
    with pytest.raises(ArtifactMissing, match="pipeline export"):
        promote(storage, "bars/333333333333", "production")
    assert find_alias(storage, "bars", "production") is None


@pytest.mark.parametrize("ref", ["bars", "bars/", "/x", "bars/a/b", "../x/y", "bars/.."])
def test_a_name_of_another_form_is_refused(storage: Storage, ref: str) -> None:
    with pytest.raises(SettingError, match="not of the form NAME/VERSION or NAME/ALIAS"):
        find_model(storage, ref)


@pytest.mark.parametrize("alias", [ONE, "../x", "a/b", ""])
def test_an_alias_that_could_be_a_version_or_a_path_is_refused(
    storage: Storage, alias: str
) -> None:
    with pytest.raises(SettingError, match="is not a word"):
        promote(storage, f"bars/{ONE}", alias)


def test_a_damaged_alias_is_an_error(storage: Storage) -> None:
    storage.write("models/bars/aliases/production.json", b"{")
    with pytest.raises(ArtifactDamaged, match="is not an alias"):
        find_model(storage, "bars/production")


def test_promoting_again_repairs_a_damaged_alias(storage: Storage) -> None:
    storage.write("models/bars/aliases/production.json", b"{")
    promote(storage, f"bars/{ONE}", "production")
    assert find_model(storage, "bars/production").version == ONE


def test_promotions_at_the_same_time_all_stay_in_the_history(
    storage: Storage, artifacts: Artifacts
) -> None:
    versions = {f"{number:012}" for number in range(16)}
    for version in versions:
        manifest = artifacts.model.model_copy(update={"version": version})
        commit(storage, model_folder("bars", version), manifest)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda v: promote(storage, f"bars/{v}", "production"), versions))
    alias = find_alias(storage, "bars", "production")
    assert alias is not None
    assert {alias.version, *alias.history} == versions
