from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.artifacts.commit import commit
from pipeline.artifacts.manifests import ModelManifest
from pipeline.artifacts.registry import find_alias, find_model, model_folder, promote
from pipeline.artifacts.storage import Storage
from pipeline.contract import ImageSpec
from pipeline.errors import ArtifactDamaged, ArtifactMissing, SettingError

ONE, TWO = "1" * 12, "2" * 12


@pytest.fixture
def models(storage: Storage) -> Storage:
    """Return a root with two versions of the model `bars`."""
    for version in (ONE, TWO):
        publish(storage, version)
    return storage


def publish(storage: Storage, version: str) -> None:
    manifest = ModelManifest(
        name="bars",
        version=version,
        run="fast-000000000000",
        dataset="bars/000000000000",
        image=ImageSpec(1, 1, ("a",)),
        inputs=(),
        outputs=(),
        parity_max_difference=0.0,
        training={},
    )
    commit(storage, model_folder("bars", version), manifest)


def test_an_alias_names_the_version_promoted_last(models: Storage) -> None:
    promote(models, f"bars/{ONE}", "production")
    promote(models, f"bars/{TWO}", "production")
    assert find_model(models, "bars/production").version == TWO
    assert find_model(models, f"bars/{ONE}").version == ONE


def test_a_roll_back_promotes_the_previous_version(models: Storage) -> None:
    for version in (ONE, TWO, TWO):
        promote(models, f"bars/{version}", "production")
    alias = find_alias(models, "bars", "production")
    assert alias is not None
    assert alias.history == (ONE,)
    promote(models, f"bars/{alias.history[0]}", "production")
    assert find_model(models, "bars/production").version == ONE


def test_an_alias_may_be_promoted_to_another(models: Storage) -> None:
    promote(models, f"bars/{ONE}", "staging")
    promote(models, "bars/staging", "production")
    assert find_model(models, "bars/production").version == ONE


def test_the_error_of_an_unknown_alias_says_how_to_create_it(models: Storage) -> None:
    with pytest.raises(ArtifactMissing, match="no alias 'production'.*pipeline promote"):
        find_model(models, "bars/production")


def test_a_missing_version_is_never_promoted(models: Storage) -> None:
    with pytest.raises(ArtifactMissing, match="pipeline export"):
        promote(models, "bars/333333333333", "production")
    assert find_alias(models, "bars", "production") is None


@pytest.mark.parametrize("ref", ["bars", "bars/", "/x", "bars/a/b", "../x/y", "bars/.."])
def test_a_name_of_another_form_is_refused(models: Storage, ref: str) -> None:
    with pytest.raises(SettingError, match="not of the form NAME/VERSION or NAME/ALIAS"):
        find_model(models, ref)


@pytest.mark.parametrize("alias", [ONE, "../x", "a/b", ""])
def test_an_alias_that_could_be_a_version_or_a_path_is_refused(models: Storage, alias: str) -> None:
    with pytest.raises(SettingError, match="is not a word"):
        promote(models, f"bars/{ONE}", alias)


def test_a_damaged_alias_is_an_error(models: Storage) -> None:
    models.write("models/bars/aliases/production.json", b"{")
    with pytest.raises(ArtifactDamaged, match="is not an alias"):
        find_model(models, "bars/production")


def test_promoting_again_repairs_a_damaged_alias(models: Storage) -> None:
    models.write("models/bars/aliases/production.json", b"{")
    promote(models, f"bars/{ONE}", "production")
    assert find_model(models, "bars/production").version == ONE


def test_promotions_at_the_same_time_all_stay_in_the_history(storage: Storage) -> None:
    versions = [f"{number:012}" for number in range(8)]
    for version in versions:
        publish(storage, version)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda v: promote(storage, f"bars/{v}", "production"), versions))
    alias = find_alias(storage, "bars", "production")
    assert alias is not None
    assert sorted([alias.version, *alias.history]) == versions


def test_an_alias_that_a_later_version_of_the_project_wrote_is_followed(models: Storage) -> None:
    models.write(
        "models/bars/aliases/production.json", b'{"version": "%b", "new": 1}' % ONE.encode()
    )
    assert find_model(models, "bars/production").version == ONE


@pytest.mark.parametrize("version", ["../../x", "1", "1" * 13, ""])
def test_an_alias_never_leads_to_another_folder(models: Storage, version: str) -> None:
    content = b'{"version": "%b"}' % version.encode()
    models.write("models/bars/aliases/production.json", content)
    with pytest.raises(ArtifactDamaged, match="is not an alias"):
        find_model(models, "bars/production")
