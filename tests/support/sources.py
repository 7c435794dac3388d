"""Small sources of every form, with images that code can tell apart."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.arrays import UInt8Array
from pipeline.data.readers import idx_format

SIDE = 6


def noise(count: int, seed: int = 0, shape: tuple[int, ...] = (SIDE, SIDE)) -> UInt8Array:
    """Return random images, uint8 (count, *shape), no two of which are equal."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def encode_png(image: UInt8Array) -> bytes:
    """Return an image as a PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_pngs(
    folder: Path, classes: Mapping[str, int] | Sequence[str], count: int = 6, seed: int = 0
) -> Path:
    """Write `count` PNG files, or the given number, into a folder per class; return the folder."""
    numbers = classes if isinstance(classes, Mapping) else dict.fromkeys(classes, count)
    images = iter(noise(sum(numbers.values()), seed))
    for name, number in numbers.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            (folder / name / f"{index}.png").write_bytes(encode_png(next(images)))
    return folder


def write_idx(
    folder: Path,
    images: str = "train-images-idx3-ubyte",
    labels: str = "train-labels-idx1-ubyte",
    count: int = 12,
    seed: int = 0,
) -> Path:
    """Write a pair of IDX files of images of the classes 0 and 1; return the folder."""
    arrays = {images: noise(count, seed), labels: np.arange(count, dtype=np.uint8) % 2}
    for name, array in arrays.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(idx_format.encode(array))
    return folder


def table(count: int = 12, seed: int = 0, metadata: Any = None, **columns: Any) -> pa.Table:
    """Return a table of raw pixels, and of the labels 0 and 1 unless others are given."""
    pixels = [image.tobytes() for image in noise(count, seed)]
    data = {"image": pa.array(pixels, pa.binary(SIDE * SIDE)), "label": np.arange(count) % 2}
    encoded = {name: json.dumps(value) for name, value in (metadata or {}).items()}
    return pa.table({**data, **columns}).replace_schema_metadata(encoded or None)


def write_parquet(path: Path, count: int = 12, seed: int = 0, **columns: Any) -> Path:
    """Write such a table as Parquet; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(count, seed, **columns), path)
    return path


def csv_lines(count: int = 12, seed: int = 0, *, labels: bool = True) -> list[str]:
    """Return the lines of a CSV file as Kaggle has it: a header, then a row per image."""
    names = [f"pixel{number}" for number in range(SIDE * SIDE)]
    lines = [",".join(["label", *names] if labels else names)]
    for row, image in enumerate(noise(count, seed)):
        values = [row % 2, *image.ravel()] if labels else image.ravel()
        lines.append(",".join(map(str, values)))
    return lines


def write_csv(path: Path, lines: Sequence[str] | None = None, **options: Any) -> Path:
    """Write a CSV file of these lines, or those of `csv_lines`; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(csv_lines(**options) if lines is None else lines) + "\n")
    return path


def webdataset(count: int = 12, seed: int = 0) -> list[tuple[str, bytes]]:
    """Return the members of a tar file as WebDataset has it, of the classes 0 and 1."""
    members = []
    for row, image in enumerate(noise(count, seed)):
        members += [(f"{row:05}.png", encode_png(image)), (f"{row:05}.cls", b"%d" % (row % 2))]
    return members


def write_tar(
    path: Path, members: Sequence[tuple[str | tarfile.TarInfo, bytes]] | None = None, **options: Any
) -> Path:
    """Write a tar file of these members, or those of `webdataset`; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in webdataset(**options) if members is None else members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
