"""The stage `score`: images -> scores, Parquet shards with a prediction for every row.

    python -m pipeline score --input digits.parquet --output scores/

Each actor of a pool holds a predictor. Its tasks read some shards of the input, predict, and write
the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import pyarrow as pa
import ray.data

from pipeline.artifacts.commit import digest, find
from pipeline.artifacts.manifests import FileEntry, ScoresManifest
from pipeline.artifacts.registry import find_model
from pipeline.artifacts.replacement import Replacement
from pipeline.artifacts.storage import Storage
from pipeline.cluster import connection, resources
from pipeline.cluster.workers import require_workers
from pipeline.config import Score
from pipeline.console import say, warn
from pipeline.contract import Predictions, concat_predictions
from pipeline.data import blocks
from pipeline.data.datasource import plan_tasks, read_tasks, reserved
from pipeline.data.plan import Plan
from pipeline.data.readers.image_folder import digest_of
from pipeline.data.readers.rows import Rows
from pipeline.data.resume import restore_shards
from pipeline.data.scoring_inputs import open_input
from pipeline.data.shard_writer import REJECTED, Shard, ShardWriter
from pipeline.data.shards import encode_parquet
from pipeline.data.streaming import result_block, stream
from pipeline.errors import DataError, SettingError
from pipeline.models.predictor import Predictor, batches
from pipeline.stages import figures
from pipeline.stages.figures import measured

INPUT = "input"
"""The name of all rows of the input in blocks, in place of a split's."""

SCORES_FORMAT = 1
"""Part of the version of scores: raise it if the same input and model give other scores."""


@measured
def score(settings: Score) -> ScoresManifest:
    """Score every row of the input, unless that was done before; return the scores' manifest.

    Columns: `id` int64, `prediction` int64, `confidence` float32, `probabilities` (a list of
    float32, if the settings ask for it), and the columns of the input that the settings name.

    Raise DataError if the input is not images of the model's size, SettingError if the output
    holds other scores, StorageError if another process wrote some meanwhile.
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
    expected = expected.model_copy(update={"version": _version(settings, expected)})
    replacement = Replacement(output, "", ScoresManifest)
    existing = None if settings.force else find(output, "", ScoresManifest)
    if existing:
        _check_existing(settings, output, existing, expected)
        say(f"scores of {existing.rows:,} rows already exist")
        return existing
    # Open the model here too: its error is clearer than that of an actor that does not start. The
    # driver may have no GPU.
    Predictor(storage, model)
    with output.locked(".lock"):
        files = _write_scores(settings, storage, output, expected, rows)
        num_rejected = sum(e.rows or 0 for e in files if e.path.startswith(REJECTED))
        manifest = expected.model_copy(update={"files": files, "rejected": num_rejected})
        assert sum(entry.rows or 0 for entry in files) == rows.num_rows
        manifest = replacement.commit(manifest)
    num_scored = manifest.rows - num_rejected
    say(f"scored {num_scored:,} of {manifest.rows:,} rows into {output.display()}")
    if num_rejected:
        warn(
            f"{num_rejected:,} rows were not scored. The files in {REJECTED} next to the scores "
            "list their ids and the reasons."
        )
    return manifest


def _version(settings: Score, expected: ScoresManifest) -> str:
    fields = expected.model_dump(mode="json", exclude={"inputs"})
    return digest(SCORES_FORMAT, settings.device, fields, digest_of(expected.inputs))


def _check_columns(settings: Score) -> None:
    """Raise SettingError if a column of the input has a name that scores or blocks use."""
    own = {"id", "image", "prediction", "confidence", *blocks.OWN}
    if settings.probabilities:
        own.add("probabilities")
    for name in settings.columns:
        if name in own:
            raise SettingError(
                f"--columns {name!r}: this name is used for a column of scores. Leave it out, or "
                "rename the column of the input."
            )


def _check_existing(
    settings: Score, output: Storage, existing: ScoresManifest, expected: ScoresManifest
) -> None:
    """Raise SettingError for other scores, DataError if rows were rejected that must not be."""
    if existing.model_copy(update={"files": (), "tables": {}, "rejected": 0}) != expected:
        raise SettingError(
            f"--output {output.display()!r} holds scores of other input, model or settings, or of "
            "an older version. Give another folder, or replace them with --force."
        )
    if existing.rejected and settings.on_bad_row == "fail":
        raise DataError(
            f"{existing.rejected:,} rows of the scores in {output.display()} were rejected. "
            "Fix them and give --force, or accept that with --on-bad-row quarantine."
        )


def _write_scores(
    settings: Score, storage: Storage, output: Storage, expected: ScoresManifest, rows: Rows
) -> tuple[FileEntry, ...]:
    """Write the shards; return their entries and those of the rejects."""
    # The digest is in the names, so shards of another version are never reused.
    name = digest(expected.version, settings.on_bad_row)
    plan = Plan(rows, 0, rows.num_rows, settings.rows_per_shard)
    plan.require_bounded()
    writer = ScoresWriter(output, "", {INPUT: f"part-{name}"}, f"part-{name}", plan.num_shards)
    with connection.connected():
        resources.require_shared(output)
        figures.begin(output, "", rows=rows.num_rows, nodes=resources.num_nodes())
        resources.require_visible(rows.local_paths)
        existing = {} if settings.force else dict(restore_shards(writer, plan))
        if existing:
            say(f"{len(existing)} of {plan.num_shards} shards already exist")
        entries = [entry for own in existing.values() for entry in own]
        missing = [number for number in range(plan.num_shards) if number not in existing]
        if missing:
            entries += _score_shards(settings, storage, expected.model, writer, plan, missing)
    return tuple(sorted(entries, key=lambda entry: entry.path))


def _score_shards(
    settings: Score,
    storage: Storage,
    model: str,
    writer: ScoresWriter,
    plan: Plan,
    numbers: Sequence[int],
) -> list[FileEntry]:
    """Score the shards with these numbers by a pool of actors; return the entries of their files.

    Reading is fused into the actors, and they write: images and scores do not leave their task.
    """
    tasks = plan_tasks(plan, INPUT, columns=settings.columns, numbers=numbers)
    gpus = 1 if settings.device == "cuda" else 0
    available = resources.num_free_cpus()
    if gpus:
        available = min(available, resources.num_free_gpus())
    workers = min(settings.num_workers or available, len(tasks))
    require_workers(workers, gpus=gpus, wait_s=settings.wait)
    images = read_tasks(tasks, num_gpus=gpus)
    # The shards of a task stay in one block; Ray would cut it at 128 MiB.
    images.context.target_max_block_size = None
    # On GPUs, `map_batches` takes batches of so many rows only, and not the shards of a task.
    scored = images.map_batches_internal(
        Scorer,
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_kwargs={
            "storage": storage,
            "model": model,
            "writer": writer,
            "settings": settings,
        },
        compute=ray.data.ActorPoolStrategy(size=workers),
        **reserved(tasks) | {"num_gpus": gpus},
    )
    num_rows = sum(task.num_rows for task in tasks)
    return [entry for own in stream(scored, "score", num_rows) for entry in own]


class ScoresWriter(ShardWriter):
    """A writer of shards of scores."""

    keep_empty = True

    def encode(self, rows: pa.Table) -> pa.Buffer:
        return encode_parquet(rows)


class Scorer:
    """An actor of the pool: it scores the blocks of its tasks with one predictor."""

    def __init__(
        self, *, storage: Storage, model: str, writer: ScoresWriter, settings: Score
    ) -> None:
        self.storage, self.model, self.writer, self.settings = storage, model, writer, settings

    # Not in `__init__`: the driver would see a UserError raised there only as text.
    @cached_property
    def predictor(self) -> Predictor:
        model = find_model(self.storage, self.model)
        return Predictor(self.storage, model, device=self.settings.device)

    def __call__(self, block: pa.Table) -> pa.Table:
        entries = self.writer.write(self._iter_shards(block))
        return result_block(len(block), entries)

    def _iter_shards(self, block: pa.Table) -> Iterator[Shard]:
        for number, rows in blocks.iter_shards(block):
            rejects = blocks.rejected_rows(rows)
            if rejects and self.settings.on_bad_row == "fail":
                examples = "; ".join(f"row {row.id}: {row.reason}" for row in rejects[:5])
                raise DataError(
                    f"{len(rejects):,} of {len(rows):,} rows cannot be scored: "
                    f"{examples}. Fix them, or set them aside with --on-bad-row quarantine."
                )
            yield Shard(number, {INPUT: self._score(blocks.valid_rows(rows))}, rejects)

    def _score(self, rows: pa.Table) -> pa.Table:
        """Return rows with scores in place of images."""
        images = blocks.images(rows)
        # If there are no rows, one empty batch gives the columns their types.
        predictions = concat_predictions(
            [self.predictor.predict(batch) for batch in list(batches(images)) or [images]]
        )
        scores = _score_columns(predictions, probabilities=self.settings.probabilities)
        others = {name: rows[name] for name in self.settings.columns}
        return pa.table({"id": rows["id"], **scores, **others})


def _score_columns(predictions: Predictions, *, probabilities: bool) -> dict[str, pa.Array]:
    columns = {
        "prediction": pa.array(predictions.prediction),
        "confidence": pa.array(predictions.probabilities.max(axis=1)),
    }
    if probabilities:
        flat = pa.array(predictions.probabilities.ravel())
        num_classes = predictions.probabilities.shape[1]
        columns["probabilities"] = pa.FixedSizeListArray.from_arrays(flat, num_classes)
    return columns
