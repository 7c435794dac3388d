"""Images and labels -> dataset: `train`, `val` and `test` as Parquet shards, written by Ray Data.

    python -m pipeline preprocess --data.source FOLDER

All rows are looked at before one is written.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline import checks, cluster, contact, pieces, shards
from pipeline.checks import Findings, Hashes
from pipeline.config import Data, Preprocess
from pipeline.console import progress, say, warn
from pipeline.contract import DataError, ImageSpec, SettingError
from pipeline.manifest import DatasetManifest, FileEntry, commit, digest, find, write_file
from pipeline.pieces import REJECTED, Made, Piece, Target
from pipeline.rows import Rows
from pipeline.sources import Source, open_source
from pipeline.storage import Storage


class Split(NamedTuple):
    """Rows `start` to `stop` of these become a split."""

    rows: Rows
    start: int
    stop: int


def preprocess(settings: Preprocess) -> DatasetManifest:
    """Makes the dataset that the settings describe, or finds it, and returns its manifest.

    Raises what `open_source` does, and DataError for rows that are of no use.
    """
    storage, data = Storage(settings.root), settings.data
    source = open_source(data)
    if (count := len(source.class_names or ())) > checks.MAX_CLASSES:
        raise DataError(
            f"{source.name!r} has {count} classes, but labels are uint8: {checks.MAX_CLASSES} at "
            "most. Join some of them."
        )
    splits = _splits(source, data.num_val)
    version = _version(source, splits, data)
    folder = f"datasets/{source.name}/{version}"
    if not settings.force and (done := find(storage, folder, DatasetManifest)):
        say(f"dataset {done.ref} is there already")
        return done
    with cluster.connected():
        for rows in source.splits.values():
            cluster.require_seen(rows.local_paths)
        cluster.require(cpus=1)
        found, later = _inspect(source, splits, data.rows_per_shard)
        image = ImageSpec(*source.shape, _class_names(source, found["train"]))
        quarantine = data.on_bad_row == "quarantine"
        # The classes may be known only now.
        for of in found.values():
            of.refuse_labels(image.num_classes)
        checks.require_sound(found, image.class_names, quarantine=quarantine)
        with storage.locked(f"{folder}/.lock"):
            cluster.require_shared(storage, folder)
            files = pieces.make(
                _cut(splits, data.rows_per_shard),
                _write_shards,
                "preprocess",
                fn_kwargs={
                    "target": Target(storage, folder, settings.force),
                    "image": image,
                    "later": later if any(of.bad for of in found.values()) else None,
                },
            )
            manifest = DatasetManifest(
                name=source.name,
                version=version,
                caveat=source.caveat,
                image=image,
                rows={split: _num_rows(files, split) for split in splits},
                source=dict(source.digests),
                files=files,
            )
            manifest = _describe(storage, folder, manifest, found)
            commit(storage, folder, manifest)
    say(f"dataset {manifest.ref}: {', '.join(f'{n:,} {s}' for s, n in manifest.rows.items())}")
    if left_out := _num_rows(manifest.files, REJECTED.rstrip("/")):
        warn(f"{left_out:,} rows were left out; {REJECTED} beside the shards says which and why.")
    return manifest


def _num_rows(files: Sequence[FileEntry], folder: str) -> int:
    return sum(entry.rows or 0 for entry in files if entry.path.startswith(f"{folder}/"))


def _splits(source: Source, num_val: int | None) -> dict[str, Split]:
    """The rows of each split; `val` is the last of `train` where it has no files of its own."""
    whole = {name: Split(rows, 0, rows.num_rows) for name, rows in source.splits.items()}
    if "val" in whole:
        return {name: whole[name] for name in ("train", "val", "test")}
    rows = source.splits["train"]
    num_val = num_val or source.num_val or max(1, rows.num_rows // 6)
    if num_val >= rows.num_rows:
        raise SettingError(
            f"--data.num-val is {num_val}, but there are only {rows.num_rows} training images. "
            "Leave some to train on."
        )
    at = rows.num_rows - num_val
    return {
        "train": Split(rows, 0, at),
        "val": Split(rows, at, rows.num_rows),
        "test": whole["test"],
    }


def _version(source: Source, splits: dict[str, Split], data: Data) -> str:
    num_val = splits["val"].stop - splits["val"].start
    made_by = [source.name, dict(source.digests), source.class_names, num_val, data.rows_per_shard]
    policy = [] if data.on_bad_row == "fail" else [data.on_bad_row]
    return digest(*made_by, source.caveat, *policy)


def _cut(splits: dict[str, Split], rows_per_shard: int) -> list[Piece]:
    return [
        piece
        for name, split in splits.items()
        for piece in pieces.cut(
            *split, split=name, path=f"{name}/part-{{:05}}.parquet", rows_per_shard=rows_per_shard
        )
    ]


def _inspect(
    source: Source, splits: dict[str, Split], rows_per_piece: int
) -> tuple[dict[str, Findings], dict[str, Hashes]]:
    """What is found of each split, over all its rows, and the hashes of the splits after it.

    Hashes are compared here, the last split first. Pieces with an image of a later split are looked
    at again, to find which of their rows it is.
    """
    found, later = {name: Findings() for name in splits}, dict[str, Hashes]()
    parts, again = _cut(dict(reversed(splits.items())), rows_per_piece), list[Piece]()
    none: Hashes = np.zeros(0, np.uint64)
    known, mine = none, list[Hashes]()
    with progress("check", total=sum(piece.num_rows for piece in parts)) as show:
        done = 0
        looks = _look(parts, source, dict.fromkeys(splits, none))
        for piece, (looked, hashes) in zip(parts, looks, strict=True):
            if piece.split not in later:
                known, mine = np.sort(np.concatenate([known, *mine])), []
                later[piece.split] = known
            if len(checks.common(hashes, known)):
                again.append(piece)
            else:
                found[piece.split].add(looked)
            if piece.split != "train":
                mine.append(hashes)
            done += piece.num_rows
            show(done, "rows")
    with progress("check again", total=sum(piece.num_rows for piece in again)) as show:
        done = 0
        for piece, (looked, _) in zip(again, _look(again, source, later), strict=True):
            found[piece.split].add(looked)
            done += piece.num_rows
            show(done, "rows")
    return found, later


def _look(
    parts: Sequence[Piece], source: Source, later: Mapping[str, Hashes]
) -> Iterator[tuple[Findings, Hashes]]:
    """What `checks.inspect` finds of each piece."""
    options = {"class_names": source.class_names, "later": later}
    for result in pieces.over(parts, _inspect_pieces, fn_kwargs=options):
        yield pickle.loads(result["looked"])


def _inspect_pieces(
    item: dict[str, Any], *, class_names: tuple[str, ...] | None, later: Mapping[str, Hashes]
) -> list[dict[str, Any]]:
    results = []
    for piece in pieces.unpacked(item):
        _, found, hashes = checks.inspect(piece.read(), class_names, later[piece.split])
        results.append({"looked": pickle.dumps((found, hashes))})
    return results


def _class_names(source: Source, train: Findings) -> tuple[str, ...]:
    """Those the source knows, else one for each label of `train`."""
    return source.class_names or tuple(str(label) for label in range(max(train.highest + 1, 2)))


def _write_shards(
    item: dict[str, Any], *, target: Target, image: ImageSpec, later: dict[str, Hashes] | None
) -> list[dict[str, Any]]:
    """`later` are the hashes of the splits after each; None where no row is bad."""

    def make(piece: Piece) -> Made:
        block = piece.read()
        if later is not None:
            block, _, _ = checks.inspect(block, image.class_names, later[piece.split])
        assert block.labels is not None
        rows = shards.Split(block.ids, block.images, block.labels.astype(np.uint8))
        return Made(shards.encode(rows, image), len(block.ids), block.bad)

    return target.write(pieces.unpacked(item), make)


def _describe(
    storage: Storage, folder: str, manifest: DatasetManifest, found: dict[str, Findings]
) -> DatasetManifest:
    """Writes the summary and the contact sheet beside the shards."""
    image = manifest.image
    summary = {name: of.summary(image.class_names, image.num_pixels) for name, of in found.items()}
    first = shards.read(storage, manifest, manifest.shards("train")[:1])
    more = (
        write_file(
            storage, folder, "summary.json", (json.dumps(summary, indent=2) + "\n").encode()
        ),
        write_file(storage, folder, "contact.png", contact.sheet(first, image)),
    )
    return manifest.model_copy(update={"files": (*manifest.files, *more)})
