"""Data of many forms and odd sizes, all the way: from files to the page that shows its classes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.arrays import UInt8Array
from pipeline.artifacts import registry
from pipeline.artifacts.storage import Storage
from pipeline.data.catalog import PROFILES, ROLES
from pipeline.data.readers import idx_format
from tests.support.browser import CHROMIUM, opened
from tests.support.processes import pipeline
from tests.support.servers import serving

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 20, 24
SPLITS = {"train": 1040, "test": 104}


def stripes(split: str, classes: int) -> tuple[UInt8Array, UInt8Array]:
    """images uint8 (N, 20, 24): noise, and a bright block at a place of the label's own."""
    random = np.random.default_rng(len(split))
    labels = np.arange(SPLITS[split], dtype=np.uint8) % classes
    images = random.integers(0, 60, (len(labels), HEIGHT, WIDTH), np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 6)
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 150
    return images, labels


def png(image: UInt8Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def idx_files(folder: Path) -> None:
    for split in SPLITS:
        images, labels = stripes(split, 12)
        (folder / ROLES[f"{split}_images"]).write_bytes(idx_format.encode(images))
        (folder / ROLES[f"{split}_labels"]).write_bytes(idx_format.encode(labels))


def emnist(folder: Path) -> None:
    """On their sides, and labels from 1."""
    names = PROFILES["emnist-letters"].files
    for split in SPLITS:
        images, labels = stripes(split, 26)
        lying = np.ascontiguousarray(images.transpose(0, 2, 1))
        (folder / names[f"{split}_images"]).write_bytes(idx_format.encode(lying))
        (folder / names[f"{split}_labels"]).write_bytes(idx_format.encode(labels + 1))


def pictures(folder: Path) -> None:
    for split in SPLITS:
        for number, (image, label) in enumerate(zip(*stripes(split, 3), strict=True)):
            path = folder / split / ("ant", "bee", "cat")[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(image))


def parquet(folder: Path) -> None:
    """As Hugging Face writes it."""
    for split in SPLITS:
        images, labels = stripes(split, 5)
        column = [{"bytes": png(image), "path": None} for image in images]
        table = pa.table({"image": column, "label": labels.astype(np.int64)})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=100)


@pytest.mark.parametrize(
    ("name", "write", "classes"),
    [
        ("odd", idx_files, [str(label) for label in range(12)]),
        ("emnist-letters", emnist, list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")),
        ("insects", pictures, ["ant", "bee", "cat"]),
        ("fives", parquet, [str(label) for label in range(5)]),
    ],
)
def test_it_becomes_a_model_that_is_served(
    name: str, write: Callable[[Path], None], classes: list[str], tmp_path: Path
) -> None:
    source, root = tmp_path / "source", tmp_path / "root"
    source.mkdir()
    write(source)
    flags = ("--root", root, "--data.name", name, "--data.source", source, "--train.epochs", 20)
    done = pipeline("run", "fast", *flags).run()
    assert done.returncode == 0, done.stderr
    model = registry.find_model(Storage(str(root)), done.stdout.strip())
    assert model.image.shape == (HEIGHT, WIDTH)
    assert list(model.image.class_names) == classes
    folder = root / registry.model_folder(model.name, model.version)
    report = (folder / "report.html").read_text()
    assert all(f">{of}<" in report for of in classes)
    (scores,) = (root / "scores" / model.ref).glob("*.parquet")
    found = pq.read_table(scores)["prediction"].to_numpy()
    if write is not pictures:
        # Those lie in the order of their classes.
        assert (found == stripes("test", len(classes))[1]).mean() > 0.9
    if not CHROMIUM:
        pytest.skip("no chromium on this machine")
    command = serving("--root", root, "--model", f"{name}/production", "--port", 0)
    with command.started() as process:
        assert process.stdout
        with opened(process.stdout.readline().split()[3] + "/", classes=len(classes)) as page:
            assert page.locator(".bars li").first.locator("span").first.text_content() == classes[0]
