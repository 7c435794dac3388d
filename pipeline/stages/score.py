"""The stage `score`: images -> scores, Parquet shards with a prediction for every row.

    python -m pipeline score --input digits.parquet --output scores/

Each actor of a pool holds a predictor. It reads a range of rows of the input, and writes its shard.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import ray.data

from pipeline.artifacts.commit import commit, digest, find
from pipeline.artifacts.manifests import FileEntry, ScoresManifest
from pipeline.artifacts.registry import find_model
from pipeline.artifacts.storage import Storage
from pipeline.cluster import connection, resources
from pipeline.config import Score
from pipeline.console import say, warn
from pipeline.contract import Predictions, concat_predictions
from pipeline.data.partitions import (
    REJECTED,
    EncodedShards,
    ShardWriter,
    find_existing,
    write_shards,
)
from pipeline.data.plan import Plan
from pipeline.data.readers.rows import RowBatch, Rows
from pipeline.data.scoring_inputs import open_input
from pipeline.data.shards import encode_parquet
from pipeline.errors import DataError, SettingError
from pipeline.models.predictor import Device, Predictor

BATCH_ROWS = 4096


def score(settings: Score) -> ScoresManifest:
    """Score every row of the input, unless that was done before; return the scores' manifest.

    Columns: `id` int64, `prediction` int64, `confidence` float32, `probabilities` (a list of
    float32, if the settings ask for it), and the columns of the input that the settings name.

    Raise DataError if the input is not images of the model's size, SettingError if the output
    holds other scores.
    """
    storage, output = Storage(settings.root), Storage(settings.output)
    model = find_model(storage, settings.model)
    _check_columns(settings)
    rows = open_input(storage, settings.input, model.image)
    expected = ScoresManifest(
        caveat=model.caveat,
        model=model.ref,
        image=model.image,
        probabilities=settings.probabilities,
        columns=settings.columns,
        rows_per_shard=settings.rows_per_shard,
        inputs=rows.files,
        rows=rows.num_rows,
    )
    existing = find(output, "", ScoresManifest)
    if existing and not settings.force:
        _check_existing(settings, output, existing, expected)
        say(f"scores of {existing.rows:,} rows already exist")
        return existing
    # Open the model here too: its error is clearer than that of an actor that does not start.
    Predictor(storage, model, device=settings.device)
    with output.locked(".lock"):
        if find(output, "", ScoresManifest) != existing:
            raise SettingError(
                f"Another process wrote scores to {output.display()} in the meantime. Run again."
            )
        files = _write_scores(settings, storage, output, expected, rows)
        num_rejected = sum(e.rows or 0 for e in files if e.path.startswith(REJECTED))
        manifest = expected.model_copy(update={"files": files, "rejected": num_rejected})
        assert sum(entry.rows or 0 for entry in files) == rows.num_rows
        commit(output, "", manifest)
        if existing:
            _delete_replaced(output, existing, manifest)
    num_scored = manifest.rows - num_rejected
    say(f"scored {num_scored:,} of {manifest.rows:,} rows into {output.display()}")
    if num_rejected:
        warn(
            f"{num_rejected:,} rows were not scored. The files in {REJECTED} next to the scores "
            "list their ids and the reasons."
        )
    return manifest


def _check_columns(settings: Score) -> None:
    """Raise SettingError if a column of the input has the name of a column of scores."""
    own = {"id", "prediction", "confidence"}
    if settings.probabilities:
        own.add("probabilities")
    for name in settings.columns:
        if name in own:
            raise SettingError(
                f"--columns {name!r}: scores already have a column of this name. Leave it out, or "
                "rename the column of the input."
            )


def _check_existing(
    settings: Score, output: Storage, existing: ScoresManifest, expected: ScoresManifest
) -> None:
    """Raise SettingError for other scores, DataError if rows were rejected that must not be."""
    if existing.model_copy(update={"files": (), "rejected": 0}) != expected:
        raise SettingError(
            f"--output {output.display()!r} holds scores of other input, model or settings. "
            "Give another folder, or replace them with --force."
        )
    if existing.rejected and settings.on_bad_row == "fail":
        raise DataError(
            f"{existing.rejected:,} rows of the scores in {output.display()} were rejected. "
            "Fix them and give --force, or accept that with --on-bad-row quarantine."
        )


def _delete_replaced(output: Storage, existing: ScoresManifest, manifest: ScoresManifest) -> None:
    """Delete the files of the scores that this manifest replaced."""
    kept = {entry.path for entry in manifest.files}
    for entry in existing.files:
        if entry.path not in kept:
            output.delete(entry.path)


def _write_scores(
    settings: Score, storage: Storage, output: Storage, expected: ScoresManifest, rows: Rows
) -> tuple[FileEntry, ...]:
    """Write the shards; return their entries and those of the rejects."""
    # The digest is in the names, so shards of other input, model or settings are never reused.
    name = digest(expected.model_dump(mode="json"), settings.on_bad_row)
    plan = Plan(rows, 0, rows.num_rows, settings.rows_per_shard)
    plan.require_bounded()
    stems = (f"part-{name}", f"{REJECTED}part-{name}")
    existing = {} if settings.force else find_existing(output, "", stems)
    with connection.connected():
        resources.require_shared(output)
        resources.require_visible(rows.local_paths)
        workers = min(settings.num_workers or resources.num_free_cpus(), plan.num_shards)
        gpus = 1 if settings.device == "cuda" else 0
        resources.require(cpus=workers, gpus=gpus * workers)
        results = write_shards(
            plan,
            Scorer,
            "score",
            fn_constructor_kwargs={
                "writer": ShardWriter(output, "", plan, stems, existing),
                "predictor": (storage, expected.model, settings.device),
                "settings": settings,
            },
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=gpus or None,
        )
        entries = [entry for own, _, _ in results for entry in own]
        return tuple(sorted(entries, key=lambda entry: entry.path))


class Scorer:
    """An actor of the pool: it scores the shards of its tasks with one predictor."""

    def __init__(
        self,
        *,
        writer: ShardWriter,
        predictor: tuple[Storage, str, Device],
        settings: Score,
    ) -> None:
        storage, model, device = predictor
        self.writer, self.settings = writer, settings
        self.predictor = Predictor(storage, find_model(storage, model), device=device)

    def __call__(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        return self.writer.write([int(number) for number in item["numbers"]], self._score)

    def _score(self, number: int) -> EncodedShards:
        plan = self.writer.plan
        rows = plan.read(number, self.settings.columns)
        if rows.rejects and self.settings.on_bad_row == "fail":
            examples = "; ".join(f"row {row.id}: {row.reason}" for row in rows.rejects[:5])
            raise DataError(
                f"{len(rows.rejects):,} of {plan.shard_rows(number):,} rows cannot be scored: "
                f"{examples}. Fix them, or set them aside with --on-bad-row quarantine."
            )
        # If all rows were rejected, one empty batch gives the columns their types.
        starts = range(0, max(len(rows.images), 1), BATCH_ROWS)
        predictions = concat_predictions(
            [self.predictor.predict(rows.images[start : start + BATCH_ROWS]) for start in starts]
        )
        table = _scores_table(rows, predictions, probabilities=self.settings.probabilities)
        return EncodedShards(
            {self.writer.stems[0]: (encode_parquet(table), len(table))}, rows.rejects
        )


def _scores_table(rows: RowBatch, predictions: Predictions, *, probabilities: bool) -> pa.Table:
    columns = {
        "id": pa.array(rows.ids),
        "prediction": pa.array(predictions.prediction),
        "confidence": pa.array(predictions.probabilities.max(axis=1)),
    }
    if probabilities:
        flat = pa.array(predictions.probabilities.ravel())
        num_classes = predictions.probabilities.shape[1]
        columns["probabilities"] = pa.FixedSizeListArray.from_arrays(flat, num_classes)
    for name in rows.columns.column_names:
        columns[name] = rows.columns[name]
    return pa.table(columns)
