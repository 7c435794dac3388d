"""Images -> predictions for any number of rows: what `inputs` reads in, Parquet out.

    python -m pipeline score --input digits.parquet --output scores/

Actors hold a Predictor each, read row ranges, and write a shard of predictions for each.
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
from pipeline.data import partitions
from pipeline.data.partitions import REJECTED, EncodedShard, Partition, ShardWriter
from pipeline.data.readers.rows import RowBatch, Rows
from pipeline.data.scoring_inputs import open_input
from pipeline.data.shards import encode_parquet
from pipeline.errors import DataError, SettingError
from pipeline.models.predictor import Device, Predictor

BATCH_ROWS = 4096


def score(settings: Score) -> ScoresManifest:
    """Scores every row of the input, or finds it scored, and returns the manifest.

    Columns: `id` int64, `prediction` int64, `confidence` float32, and when asked `probabilities`, a
    list of float32, and columns of the input. Raises DataError for input that is not images of the
    model's size, and SettingError where the output holds the scores of something else.
    """
    storage, output = Storage(settings.root), Storage(settings.output)
    model = find_model(storage, settings.model)
    ours = ["id", "prediction", "confidence", *["probabilities"] * settings.probabilities]
    if taken := [name for name in settings.columns if name in ours]:
        raise SettingError(
            f"--columns {taken[0]!r}: scores have a column of that name of their own. Leave it "
            "out, or give that of the input another name."
        )
    rows = open_input(storage, settings.input, model.image)
    asked = ScoresManifest(
        caveat=model.caveat,
        model=model.ref,
        image=model.image,
        probabilities=settings.probabilities,
        columns=settings.columns,
        rows_per_shard=settings.rows_per_shard,
        inputs=rows.files,
        rows=rows.num_rows,
    )
    done = find(output, "", ScoresManifest)
    if done and not settings.force:
        if done.model_copy(update={"files": (), "rejected": 0}) == asked:
            if done.rejected and settings.on_bad_row == "fail":
                raise DataError(
                    f"{done.rejected:,} rows of the scores in {output.display()} were rejected. "
                    "Fix them and give --force, or accept it by --on-bad-row quarantine."
                )
            say(f"scores of {done.rows:,} rows are there already")
            return done
        raise SettingError(
            f"--output {output.display()!r} holds scores of other input, model or settings. "
            "Give another folder, or replace them by --force."
        )
    # What is wrong with the model is better said here than by an actor that does not start.
    Predictor(storage, model, device=settings.device)
    with output.locked(".lock"):
        if find(output, "", ScoresManifest) != done:
            raise SettingError(f"{output.display()} was written meanwhile. Run again.")
        files = _score(settings, storage, output, asked, rows)
        rejected = sum(e.rows or 0 for e in files if e.path.startswith(REJECTED))
        manifest = asked.model_copy(update={"files": files, "rejected": rejected})
        assert sum(entry.rows or 0 for entry in files) == rows.num_rows
        commit(output, "", manifest)
        for old in done.files if done else ():
            if old.path not in {entry.path for entry in files}:
                output.delete(old.path)
    say(f"scored {manifest.rows - rejected:,} of {manifest.rows:,} rows into {output.display()}")
    if rejected:
        warn(f"{rejected:,} rows were not scored; {REJECTED} there says which and why.")
    return manifest


def _score(
    settings: Score, storage: Storage, output: Storage, asked: ScoresManifest, rows: Rows
) -> tuple[FileEntry, ...]:
    # Shards of other input, model or settings have other names, so none can be taken for ours.
    path = f"part-{digest(asked.model_dump(mode='json'), settings.on_bad_row)}-{{:05}}.parquet"
    size = settings.rows_per_shard
    parts = partitions.partition_rows(
        rows, 0, rows.num_rows, split="input", path=path, rows_per_shard=size
    )
    with connection.connected():
        resources.require_shared(output)
        resources.require_visible(rows.local_paths)
        workers = min(settings.num_workers or resources.num_free_cpus(), len(parts))
        gpus = 1 if settings.device == "cuda" else 0
        resources.require(cpus=workers, gpus=gpus * workers)
        return partitions.write_shards(
            parts,
            Scorer,
            "score",
            fn_constructor_kwargs={
                "target": ShardWriter(output, "", settings.force),
                "predictor": (storage, asked.model, settings.device),
                "settings": settings,
            },
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=gpus or None,
        )


class Scorer:
    """An actor of the pool: a Predictor, and where to read and write."""

    def __init__(
        self,
        *,
        target: ShardWriter,
        predictor: tuple[Storage, str, Device],
        settings: Score,
    ) -> None:
        storage, model, device = predictor
        self.target, self.settings = target, settings
        self.predictor = Predictor(storage, find_model(storage, model), device=device)

    def __call__(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        return self.target.write(partitions.unpack(item), self._score)

    def _score(self, piece: Partition) -> EncodedShard:
        block = piece.read(self.settings.columns)
        if block.rejects and self.settings.on_bad_row == "fail":
            examples = "; ".join(f"row {row.id}: {row.reason}" for row in block.rejects[:5])
            raise DataError(
                f"{len(block.rejects):,} of {piece.num_rows:,} rows cannot be scored: {examples}. "
                "Fix them, or set them aside by --on-bad-row quarantine."
            )
        batches = [
            self.predictor.predict(block.images[start : start + BATCH_ROWS])
            for start in range(0, max(len(block.images), 1), BATCH_ROWS)
        ]
        table = _scores_table(
            block, concat_predictions(batches), with_all=self.settings.probabilities
        )
        return EncodedShard(encode_parquet(table), len(block.ids), block.rejects)


def _scores_table(block: RowBatch, found: Predictions, *, with_all: bool) -> pa.Table:
    columns = {
        "id": pa.array(block.ids),
        "prediction": pa.array(found.prediction),
        "confidence": pa.array(found.probabilities.max(axis=1)),
    }
    if with_all:
        flat = pa.array(found.probabilities.ravel())
        size = found.probabilities.shape[1]
        columns["probabilities"] = pa.FixedSizeListArray.from_arrays(flat, size)
    for name in block.columns.column_names:
        columns[name] = block.columns[name]
    return pa.table(columns)
