"""Images -> predictions for any number of rows: Parquet or IDX in, Parquet out, with Ray Data.

    python -m pipeline score --input digits.parquet --output scores/

As in preprocessing, Ray Data carries row ranges. An actor holds a Predictor, reads a range, and
writes its shard of predictions whole or not at all, under a name that the range alone decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from pipeline import cluster
from pipeline.config import Score
from pipeline.console import progress, say
from pipeline.contract import Predictions, SettingError
from pipeline.inputs import Input, open_input
from pipeline.manifest import FileEntry, ScoresManifest, commit, digest, find, write_file
from pipeline.predictor import Device, Predictor
from pipeline.registry import find_model
from pipeline.shards import to_parquet
from pipeline.storage import Storage

BATCH = 4096


def score(settings: Score) -> ScoresManifest:
    """Scores every row of the input, or finds it scored, and returns the manifest.

    Columns: `id` int64, `prediction` int64, `confidence` float32, and `probabilities`, a list of
    float32, when asked. Raises DataError for input that is not images of the model's size, and
    SettingError where the output holds the scores of something else.
    """
    storage, output = Storage(settings.root), Storage(settings.output)
    model = find_model(storage, settings.model)
    rows = open_input(storage, settings.input, model.image)
    asked = ScoresManifest(
        caveat=model.caveat,
        model=model.ref,
        image=model.image,
        probabilities=settings.probabilities,
        rows_per_shard=settings.rows_per_shard,
        inputs=rows.files,
        rows=rows.num_rows,
    )
    done = find(output, "", ScoresManifest)
    if done and not settings.force:
        if done.model_copy(update={"files": ()}) == asked:
            say(f"scores of {done.rows:,} rows are there already")
            return done
        raise SettingError(
            f"--output {settings.output!r} holds scores of other input, model or settings. "
            "Give another folder, or replace them by --force."
        )
    # What is wrong with the model is better said here than by an actor that does not start.
    Predictor(storage, model, device=settings.device)
    with output.locked(".lock"):
        entries = _score(settings, storage, output, asked, rows)
        manifest = asked.model_copy(update={"files": tuple(sorted(entries, key=lambda e: e.path))})
        assert sum(entry.rows or 0 for entry in entries) == rows.num_rows
        commit(output, "", manifest)
        for old in done.files if done else ():
            if old.path not in {entry.path for entry in entries}:
                output.delete(old.path)
    say(f"scored {manifest.rows:,} rows into {output.name()}")
    return manifest


def _score(
    settings: Score, storage: Storage, output: Storage, asked: ScoresManifest, rows: Input
) -> list[FileEntry]:
    # Shards of other input, model or settings have other names, so none can be taken for ours.
    name = f"part-{digest(asked.model_dump(mode='json'))}"
    pieces = list(_pieces(name, rows.num_rows, settings.rows_per_shard))
    with cluster.connected():
        cluster.require_shared(output)
        for file in rows.files:
            cluster.require_seen(rows.storage, rows.path(file))
        workers = min(settings.num_workers or cluster.num_free_cpus(), len(pieces))
        gpus = 1 if settings.device == "cuda" else 0
        cluster.require(cpus=workers, gpus=gpus * workers)
        work = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map(
            Scorer,  # type: ignore[arg-type]
            fn_constructor_kwargs={
                "rows": rows,
                "output": output,
                "predictor": (storage, asked.model, settings.device),
                "probabilities": settings.probabilities,
            },
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=gpus or None,
        )
        entries: list[FileEntry] = []
        with progress("score", total=rows.num_rows) as show:
            for entry in cluster.results(work):
                entries.append(FileEntry(**entry))
                show(sum(entry.rows or 0 for entry in entries), "rows")
    return entries


class Scorer:
    """An actor of the pool: a Predictor, and where to read and write."""

    def __init__(
        self,
        *,
        rows: Input,
        output: Storage,
        predictor: tuple[Storage, str, Device],
        probabilities: bool,
    ) -> None:
        storage, model, device = predictor
        self.rows, self.output, self.probabilities = rows, output, probabilities
        self.predictor = Predictor(storage, find_model(storage, model), device=device)

    def __call__(self, piece: dict[str, Any]) -> dict[str, Any]:
        """Scores a row range and returns the entry of its shard."""
        ids, images = self.rows.read(piece["start"], piece["stop"])
        batches = [
            self.predictor.predict(images[start : start + BATCH])
            for start in range(0, len(images), BATCH)
        ]
        data = to_parquet(_table(ids, batches, self.probabilities))
        entry = write_file(self.output, "", piece["path"], data, rows=len(ids))
        return entry.model_dump()


def _table(ids: Any, batches: list[Predictions], with_all: bool) -> pa.Table:
    probabilities = np.concatenate([batch.probabilities for batch in batches])
    columns = {
        "id": pa.array(ids),
        "prediction": pa.array(np.concatenate([batch.prediction for batch in batches])),
        "confidence": pa.array(probabilities.max(axis=1)),
    }
    if with_all:
        flat = pa.array(probabilities.ravel())
        columns["probabilities"] = pa.FixedSizeListArray.from_arrays(flat, probabilities.shape[1])
    return pa.table(columns)


def _pieces(name: str, num_rows: int, rows_per_shard: int) -> Iterator[dict[str, Any]]:
    for number, start in enumerate(range(0, num_rows, rows_per_shard)):
        stop = min(start + rows_per_shard, num_rows)
        yield {"path": f"{name}-{number:05}.parquet", "start": start, "stop": stop}
