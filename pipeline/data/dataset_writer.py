"""The shards of a dataset, written from a source by tasks of Ray Data.

A task reads some shards of the source, applies the rule of splits, and writes the files, all in one
fused operation. Only entries, statistics and hashes come back to the driver.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa

from pipeline.arrays import UInt64Array
from pipeline.artifacts.manifests import DatasetManifest, FileEntry
from pipeline.artifacts.replacement import Replacement
from pipeline.artifacts.storage import Storage
from pipeline.console import say
from pipeline.contract import ImageSpec
from pipeline.data import blocks, shards, validation
from pipeline.data.contact_sheet import contact_sheet
from pipeline.data.datasource import plan_tasks, read_tasks
from pipeline.data.image_hashes import hash_images
from pipeline.data.layout import SPLITS
from pipeline.data.readers.rows import RejectedRow
from pipeline.data.resume import restore_shards
from pipeline.data.shard_writer import ExistingShard, Shard, ShardWriter
from pipeline.data.shards import LabeledImages
from pipeline.data.splits import HASH, Pool, SplitRule
from pipeline.data.streaming import result_block, stream
from pipeline.data.validation import SplitStats


@dataclass
class Output:
    """The entries of files that tasks wrote, and statistics and hashes of images by split.

    Hashes of `train` are left out: nothing is compared with them, as no split comes before it.
    """

    entries: list[FileEntry] = field(default_factory=list)
    stats: dict[str, SplitStats] = field(default_factory=lambda: defaultdict(SplitStats))
    hashes: dict[str, list[UInt64Array]] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """The number of rows that were written or rejected."""
        return sum(s.rows + s.rejects.total() for s in self.stats.values())

    def add_rows(self, split: str, rows: LabeledImages, hashes: UInt64Array) -> None:
        """Add valid rows of a split; `hashes` are those of their images."""
        stats = validation.measure(rows.images, rows.labels.astype(np.int64))
        self.stats[split].add(stats)
        if split != "train":
            self.hashes.setdefault(split, []).append(hashes)

    def add_rejects(self, split: str, rejects: Sequence[RejectedRow]) -> None:
        """Add rejected rows; `split` is that of their files."""
        self.stats[split].add(validation.measure_rejects(rejects))

    def merge(self, other: Output) -> None:
        """Add what another task wrote."""
        self.entries += other.entries
        for split, stats in other.stats.items():
            self.stats[split].add(stats)
        for split, hashes in other.hashes.items():
            self.hashes.setdefault(split, []).extend(hashes)


class DatasetWriter(ShardWriter):
    """A writer of shards of a dataset, whose rows are of the splits of a rule."""

    def __init__(
        self, storage: Storage, folder: str, image: ImageSpec, rule: SplitRule, num_shards: int
    ) -> None:
        stems = {split: f"{split}/part" for split in rule.splits}
        super().__init__(storage, folder, stems, f"{rule.split}-part", num_shards)
        self.image, self.rule = image, rule

    def encode(self, rows: pa.Table) -> pa.Buffer:
        return shards.encode(_to_labeled(rows), self.image)

    def write_task(self, parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Write the shards of a task's blocks; yield the `Output` of all as a result."""
        output = self.write_blocks(parts)
        yield result_block(output.num_rows, output)

    def write_blocks(self, parts: Iterable[pa.Table]) -> Output:
        """Write the shards of blocks as they were read."""
        output = Output()
        output.entries = self.write(self._iter_shards(parts, output))
        return output

    def _iter_shards(self, parts: Iterable[pa.Table], output: Output) -> Iterator[Shard]:
        """Yield the shards of blocks after the rule of splits, and add them to the output."""
        for number, rows in chain.from_iterable(map(blocks.iter_shards, parts)):
            rows = self.rule.apply(rows)
            shard = Shard(
                number,
                blocks.group_by_split(blocks.valid_rows(rows), self.rule.splits),
                blocks.rejected_rows(rows),
            )
            for split, own in shard.rows.items():
                output.add_rows(split, _to_labeled(own), own[HASH].to_numpy())
            output.add_rejects(self.rule.split, shard.rejects)
            yield shard

    def describe(self, existing: ExistingShard) -> Output:
        output = Output(list(existing.entries))
        for split, content in existing.contents.items():
            rows = shards.decode(content, self.image)
            output.add_rows(split, rows, hash_images(rows.images))
        output.add_rejects(self.rule.split, existing.rejects)
        return output


def write_pool(pool: Pool, writer: DatasetWriter, *, keep: bool) -> Iterator[tuple[Output, bool]]:
    """Write the shards of a pool; yield what tasks wrote, and whether it was written now.

    With `keep`, shards that an earlier attempt wrote are verified and kept.
    """
    split, plan = pool.rule.split, pool.plan
    kept = set[int]()
    if keep:
        for number, output in restore_shards(writer, plan):
            kept.add(number)
            yield output, False
    if kept:
        say(f"{len(kept)} of {plan.num_shards} shards of {split} already exist")
    missing = [number for number in range(plan.num_shards) if number not in kept]
    if missing:
        column = pool.rule.column
        columns = [column] if column else []
        tasks = plan_tasks(
            plan,
            split,
            columns=columns,
            numbers=missing,
            function=writer.write_task,
            returns_images=False,
        )
        written = read_tasks(tasks)
        for output in stream(written, f"write {split}", sum(task.num_rows for task in tasks)):
            yield output, True


def commit_dataset(
    storage: Storage,
    manifest: DatasetManifest,
    written: Output,
    replacement: Replacement[DatasetManifest],
) -> DatasetManifest:
    """Write the summary and the contact sheet of a dataset, and commit it with its files."""
    image = manifest.image
    files = sorted(written.entries, key=lambda entry: entry.path)
    rows = {split: written.stats[split].rows for split in SPLITS if split in written.stats}
    manifest = manifest.model_copy(update={"files": tuple(files), "rows": rows})
    summary = {
        split: written.stats[split].summary(image.class_names, image.num_pixels) for split in rows
    }
    summary_json = json.dumps(summary, indent=2) + "\n"
    first_shard = shards.read(storage, manifest, manifest.shards("train")[:1])
    others = (
        replacement.write("summary.json", summary_json.encode()),
        replacement.write("contact.png", contact_sheet(first_shard, image)),
    )
    manifest = manifest.model_copy(update={"files": (*files, *others)})
    return replacement.commit(manifest)


def _to_labeled(rows: pa.Table) -> LabeledImages:
    labels = rows["label"].to_numpy().astype(np.uint8)
    return LabeledImages(rows["id"].to_numpy(), blocks.images(rows), labels)
