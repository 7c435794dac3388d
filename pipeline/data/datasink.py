"""A `Datasink` for Datasets of Ray: `DatasetSink`."""

from __future__ import annotations

from collections.abc import Iterable

from ray.data import Datasink
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import WriteResult

from pipeline.artifacts.commit import digest
from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.contract import ImageSpec
from pipeline.data.blocks import OWN, SPLIT
from pipeline.data.dataset_writer import DatasetWriter, Output, commit_dataset
from pipeline.data.splits import SplitRule
from pipeline.errors import DataError

MAX_SHARDS = 100_000
"""Numbers of shards have so many digits."""


class DatasetSink(Datasink[Output]):
    """A writer of blocks as `read_images` returns them, as a dataset that training reads.

    `image` tells the size of images and the names of classes. `inputs` is a JSON value that says
    what the dataset is made of, such as the source and the functions between: the version is its
    digest. The dataset is committed after all blocks were written; `manifest` is then its manifest.
    Invalid rows are listed in its folder `rejected`. Images that stand in two splits are not found.
    """

    def __init__(self, root: str, name: str, image: ImageSpec, *, inputs: object) -> None:
        self.storage = Storage(root)
        self.manifest = DatasetManifest(
            name=name, version=digest(inputs), image=image, rows={}, source={}
        )

    def write(self, blocks: Iterable[Block], ctx: object) -> Output:
        """Write the shards of blocks. Raise DataError if columns are missing."""
        folder, image = f"datasets/{self.manifest.ref}", self.manifest.image
        rule = SplitRule("train", column=SPLIT)
        writer = DatasetWriter(self.storage, folder, image, rule, MAX_SHARDS)
        written = Output()
        for block in blocks:
            rows = BlockAccessor.for_block(block).to_arrow()
            missing = {"id", "image", "label", *OWN} - set(rows.column_names)
            if missing:
                raise DataError(
                    f"Blocks lack the columns {', '.join(sorted(missing))}, which `read_images` "
                    "returned. Keep them in your own functions."
                )
            written.merge(writer.write_shards(rows))
        return written

    def on_write_complete(self, write_result: WriteResult[Output]) -> None:
        """Commit the dataset. Raise DataError if it has no row of `train`."""
        written = Output()
        for output in write_result.write_returns:
            written.merge(output)
        if "train" not in written.stats or not written.stats["train"].rows:
            raise DataError("No valid row is of the split 'train'. Write rows with that `_split`.")
        self.manifest = commit_dataset(self.storage, self.manifest, written)
