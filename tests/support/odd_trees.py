"""Folders of damaged and odd files, made by hypothesis: a sound source, and what is done to it."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

from pipeline.arrays import UInt8Array
from pipeline.data.readers import idx_format

SHAPE = (4, 6)
"""Height and width of the images: those of `stripes_model`."""

Tree = dict[str, bytes]
"""The content of each file by path."""

FOLDERS = ("train", "test", "Val", "training", "0", "cat", "ünï", "a b", "_x", ".git", "[x]", "😀")

STEMS = ("0", "train", "test", "x_train", "train-labels", "sample_submission", "ü", ".", "*")

SUFFIXES = (
    *(".png", ".JPG", ".parquet", ".arrow", ".csv", ".tar", ".npz", ".npy", ".gz", ".txt", ""),
    *("-images-idx3-ubyte", "-labels-idx1-ubyte", ".tar.gz"),
)


def images(count: int, seed: int) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def png(image: UInt8Array, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def npy(array: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def table(count: int, seed: int) -> pa.Table:
    column = [{"bytes": png(image), "path": None} for image in images(count, seed)]
    return pa.table({"image": column, "label": np.arange(count) % 2})


def parquet(count: int, seed: int) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table(count, seed), sink, row_group_size=3)
    return bytes(sink.getvalue())


def arrow(count: int, seed: int) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.feather.write_feather(table(count, seed), sink, "uncompressed", chunksize=3)
    return bytes(sink.getvalue())


def csv(count: int, seed: int) -> bytes:
    pixels = images(count, seed).reshape(count, -1)
    lines = [",".join(map(str, [row % 2, *values])) for row, values in enumerate(pixels)]
    header = ",".join(["label", *(f"pixel{i}" for i in range(pixels.shape[1]))])
    return "\n".join([header, *lines, ""]).encode()


def tar(count: int, seed: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for row, image in enumerate(images(count, seed)):
            for suffix, content in (("png", png(image)), ("cls", b"%d" % (row % 2))):
                info = tarfile.TarInfo(f"{row:04}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def npz(seed: int) -> bytes:
    file = io.BytesIO()
    labels = np.arange(8, dtype=np.uint8) % 2
    np.savez_compressed(
        file,
        x_train=images(8, seed),
        y_train=labels,
        x_test=images(8, seed + 1),
        y_test=labels,
    )
    return file.getvalue()


def pictures_tree() -> Tree:
    return {
        f"{split}/{name}/{row}.{kind.lower()}": png(image, kind)
        for seed, split in enumerate(("train", "test"))
        for name, kind in (("cat", "PNG"), ("dog", "JPEG"))
        for row, image in enumerate(images(4, seed + 10 * len(kind)))
    }


def files_tree(suffix: str, encode: Callable[[int, int], bytes]) -> Tree:
    return {f"{split}{suffix}": encode(8, seed) for seed, split in enumerate(("train", "test"))}


def arrays_tree(encode: Callable[[UInt8Array], bytes], images_name: str, labels_name: str) -> Tree:
    labels = np.arange(8, dtype=np.uint8) % 2
    tree = {}
    for seed, split in enumerate(("train", "test")):
        tree[images_name.format(split)] = encode(images(8, seed))
        tree[labels_name.format(split)] = encode(labels)
    return tree


SOUND: dict[str, Callable[[], Tree]] = {
    "image files": pictures_tree,
    "parquet": lambda: files_tree(".parquet", parquet),
    "arrow": lambda: files_tree(".arrow", arrow),
    "csv": lambda: files_tree(".csv", csv),
    "tar": lambda: files_tree(".tar", tar),
    "idx": lambda: arrays_tree(idx_format.encode, "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"),
    "idx.gz": lambda: arrays_tree(
        lambda array: gzip.compress(idx_format.encode(array)),
        "{}-images-idx3-ubyte.gz",
        "{}-labels-idx1-ubyte.gz",
    ),
    "npy": lambda: arrays_tree(npy, "x_{}.npy", "y_{}.npy"),
    "npz": lambda: {"all.npz": npz(0)},
}

HUGE = (
    struct.pack(">2x2B3I", 8, 3, 2**32 - 1, 2**16, 2**16),
    b"\x93NUMPY\1\0"
    + struct.pack("<H", 60)
    + b"{'descr':'|u1','fortran_order':False,'shape':(9**9,)}".ljust(60),
    b"\x93NUMPY\2\0\xff\xff\xff\xff",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">2I", 2**31 - 1, 2**31 - 1) + bytes(9),
    b"PAR1\x15\x04\x15" + b"\xff" * 20 + b"\xff\xff\xff\x7fPAR1",
    b"ARROW1\0\0" + b"\xff" * 40 + b"ARROW1",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"x" * 100 + bytes(24) + b"77777777777\0" + bytes(376),
    b"label," + b"9" * 5000 + b"\n" * 9,
)
"""Files whose headers say that they hold far more than they do."""


@dataclass
class OddTree:
    """The files of a folder, links with their targets, and paths that nobody may read."""

    files: Tree
    links: dict[str, str] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write the tree; a path that another one takes as a folder is left out."""
        folder.mkdir(parents=True)
        for path, content in self.files.items():
            target = folder / path
            if self._make_room(target):
                target.write_bytes(content)
        for path, destination in self.links.items():
            if self._make_room(folder / path):
                (folder / path).symlink_to(destination)
        for path in self.unreadable:
            if (folder / path).is_file():
                os.chmod(folder / path, 0)

    def _make_room(self, target: Path) -> bool:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            return False
        return not target.exists() and not target.is_symlink()


@st.composite
def odd_trees(draw: st.DrawFn) -> OddTree:
    """Draw a sound source, and damage it."""
    tree = OddTree(dict(SOUND[draw(st.sampled_from(sorted(SOUND)))]()))
    for change in draw(st.lists(st.sampled_from(CHANGES), max_size=4)):
        change(draw, tree)
    return tree


def _any_path(draw: st.DrawFn) -> str:
    folders = draw(st.lists(st.sampled_from(FOLDERS), max_size=3))
    name = draw(st.sampled_from(STEMS)) + draw(st.sampled_from(SUFFIXES))
    return "/".join([*folders, name if name.strip(".") else "x"])


def _own_path(draw: st.DrawFn, tree: OddTree) -> str:
    return draw(st.sampled_from(sorted(tree.files) or ["x"]))


def _damage(draw: st.DrawFn, tree: OddTree) -> None:
    path = _own_path(draw, tree)
    content = bytearray(tree.files.get(path, b""))
    kind = draw(st.sampled_from(("cut", "flip", "append", "empty", "zeros", "twice")))
    position = draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "cut":
        del content[position:]
    elif kind == "flip" and content:
        content[position] ^= draw(st.integers(1, 255))
    elif kind == "append":
        content += draw(st.binary(min_size=1, max_size=9))
    elif kind == "empty":
        content.clear()
    elif kind == "zeros":
        content[position:] = bytes(len(content) - position)
    elif kind == "twice":
        content *= 2
    tree.files[path] = bytes(content)


def _rename(draw: st.DrawFn, tree: OddTree) -> None:
    path = _own_path(draw, tree)
    tree.files[_any_path(draw)] = tree.files.pop(path, b"")


def _wrap(draw: st.DrawFn, tree: OddTree) -> None:
    folder = draw(st.sampled_from(FOLDERS))
    tree.files = {f"{folder}/{path}": content for path, content in tree.files.items()}


def _remove(draw: st.DrawFn, tree: OddTree) -> None:
    tree.files.pop(_own_path(draw, tree), None)


def _add_other_form(draw: st.DrawFn, tree: OddTree) -> None:
    tree.files |= SOUND[draw(st.sampled_from(sorted(SOUND)))]()


def _add_file(draw: st.DrawFn, tree: OddTree) -> None:
    sound = [content for make in SOUND.values() for content in make().values()]
    contents = st.one_of(st.binary(max_size=64), st.sampled_from(HUGE), st.sampled_from(sound))
    tree.files[_any_path(draw)] = draw(contents)


def _add_link(draw: st.DrawFn, tree: OddTree) -> None:
    targets = (".", "..", "nowhere", "/dev/null", "/dev/zero", *sorted(tree.files)[:3])
    tree.links[_any_path(draw)] = draw(st.sampled_from(targets))


def _make_unreadable(draw: st.DrawFn, tree: OddTree) -> None:
    tree.unreadable.append(_own_path(draw, tree))


CHANGES = (
    *(_damage, _damage, _damage, _rename, _wrap, _remove),
    *(_add_other_form, _add_file, _add_file, _add_link, _make_unreadable),
)
