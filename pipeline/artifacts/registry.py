"""Model versions and their aliases: find, promote, roll back.

A model is named `<name>/<version>` or `<name>/<alias>`: `mnist/0f3c9a1b2d4e`, `mnist/production`.
A version is 12 hex digits and never changes; an alias is a word, and promoting moves it.
"""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.artifacts.commit import load
from pipeline.artifacts.manifests import NAME, VERSION_DIGITS, ModelManifest, Version
from pipeline.artifacts.storage import Storage
from pipeline.errors import ArtifactDamaged, ArtifactMissing, SettingError


class Alias(BaseModel):
    """The version that an alias names now, and those that it named before, newest first."""

    # A later version of this project may add fields, and servers of this one must still follow it.
    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Version
    history: tuple[Version, ...] = ()


def model_folder(name: str, version: str) -> str:
    """Return the folder of a model version, relative to the storage root."""
    return f"models/{name}/{version}"


def find_model(storage: Storage, ref: str) -> ModelManifest:
    """Return the manifest of the model version that `ref` names, directly or by an alias."""
    name, _ = _split(ref)
    return load(storage, model_folder(name, resolve_versions(storage, ref)[0]), ModelManifest)


def resolve_versions(storage: Storage, ref: str) -> tuple[str, ...]:
    """Return the version that `ref` names; for an alias, its earlier versions follow, newest first.

    Raise ArtifactMissing if there is no such alias.
    """
    name, which = _split(ref)
    if re.fullmatch(VERSION_DIGITS, which):
        return (which,)
    alias = find_alias(storage, name, which)
    if alias is None:
        raise ArtifactMissing(
            f"Model {name!r} has no alias {which!r} under {storage.display()}. Create it: "
            f"python -m pipeline promote --model {name}/VERSION --alias {which}"
        )
    return alias.version, *alias.history


def find_alias(storage: Storage, name: str, alias: str) -> Alias | None:
    """Return an alias, or None if nothing was promoted to it.

    Raise ArtifactDamaged if its file is not an alias.
    """
    path = _alias_path(name, alias)
    try:
        return Alias.model_validate_json(storage.read(path))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise ArtifactDamaged(
            f"{storage.display(path)} is not an alias. Promote a model version to it again."
        ) from None


def promote(storage: Storage, ref: str, alias: str) -> Alias:
    """Point `alias` at the model version `ref` and return it.

    Raise ArtifactMissing if there is no such version. Of several calls at once, each stays in the
    history.
    """
    if re.fullmatch(VERSION_DIGITS, alias) or not re.fullmatch(NAME, alias):
        raise SettingError(
            f"Alias {alias!r} is not a word, or could be a version. Use one such as production."
        )
    model = find_model(storage, ref)
    promoted = Alias(version=model.version)

    def change(content: bytes | None) -> bytes | None:
        nonlocal promoted
        try:
            previous = Alias.model_validate_json(content) if content is not None else None
        except ValidationError:
            previous = None
        if previous and previous.version == model.version:
            promoted = previous
            return None
        history = (previous.version, *previous.history) if previous else ()
        promoted = Alias(version=model.version, history=history)
        return (promoted.model_dump_json(indent=2) + "\n").encode()

    storage.update(_alias_path(model.name, alias), change)
    return promoted


def _alias_path(name: str, alias: str) -> str:
    return f"models/{name}/aliases/{alias}.json"


def _split(ref: str) -> tuple[str, str]:
    name, slash, which = ref.partition("/")
    if not slash or not re.fullmatch(NAME, name) or not re.fullmatch(NAME, which):
        raise SettingError(
            f"Model {ref!r} is not of the form NAME/VERSION or NAME/ALIAS. "
            "Give one such as mnist/production."
        )
    return name, which
