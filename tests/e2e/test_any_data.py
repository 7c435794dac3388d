"""Sources of every format and of odd sizes, from their files to the drawing page of the model."""

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
from tests.support.browser import CHROMIUM, open_page
from tests.support.processes import pipeline
from tests.support.servers import serving

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 20, 24
SPLITS = {"train": 1040, "test": 104}


def make_split(split: str, classes: int) -> tuple[UInt8Array, UInt8Array]:
    """Return images uint8 (N, 20, 24), noise with a bright square per class, and labels."""
    random = np.random.default_rng(len(split))
    labels = np.arange(SPLITS[split], dtype=np.uint8) % classes
    images = random.integers(0, 60, (len(labels), HEIGHT, WIDTH), np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 6)
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 150
    return images, labels


def encode_png(image: UInt8Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_idx_files(folder: Path) -> None:
    for split in SPLITS:
        images, labels = make_split(split, 12)
        (folder / ROLES[f"{split}_images"]).write_bytes(idx_format.encode(images))
        (folder / ROLES[f"{split}_labels"]).write_bytes(idx_format.encode(labels))


def write_emnist_letters(folder: Path) -> None:
    """Write transposed images and labels from 1, as EMNIST has them."""
    names = PROFILES["emnist-letters"].files
    for split in SPLITS:
        images, labels = make_split(split, 26)
        transposed = np.ascontiguousarray(images.transpose(0, 2, 1))
        (folder / names[f"{split}_images"]).write_bytes(idx_format.encode(transposed))
        (folder / names[f"{split}_labels"]).write_bytes(idx_format.encode(labels + 1))


def write_image_folder(folder: Path) -> None:
    for split in SPLITS:
        for number, (image, label) in enumerate(zip(*make_split(split, 3), strict=True)):
            path = folder / split / ("ant", "bee", "cat")[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(image))


def write_parquet(folder: Path) -> None:
    """Write Parquet files as Hugging Face does."""
    for split in SPLITS:
        images, labels = make_split(split, 5)
        column = [{"bytes": encode_png(image), "path": None} for image in images]
        table = pa.table({"image": column, "label": labels.astype(np.int64)})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=100)


@pytest.mark.parametrize(
    ("name", "write_source", "classes"),
    [
        ("odd", write_idx_files, [str(label) for label in range(12)]),
        ("emnist-letters", write_emnist_letters, list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")),
        ("insects", write_image_folder, ["ant", "bee", "cat"]),
        ("fives", write_parquet, [str(label) for label in range(5)]),
    ],
)
def test_a_source_becomes_a_served_model(
    name: str, write_source: Callable[[Path], None], classes: list[str], tmp_path: Path
) -> None:
    source, root = tmp_path / "source", tmp_path / "root"
    source.mkdir()
    write_source(source)
    flags = ("--root", root, "--data.name", name, "--data.source", source, "--train.epochs", 20)
    completed = pipeline("run", "fast", *flags).run()
    assert completed.returncode == 0, completed.stderr
    model = registry.find_model(Storage(str(root)), completed.stdout.strip())
    assert model.image.shape == (HEIGHT, WIDTH)
    assert list(model.image.class_names) == classes
    folder = root / registry.model_folder(model.name, model.version)
    report = (folder / "report.html").read_text()
    assert all(f">{name}<" in report for name in classes)
    (scores,) = (root / "scores" / model.ref).glob("*.parquet")
    table = pq.read_table(scores)
    # Rows are mixed, and an id is the position in the source: `test` comes after `train`. Rows of
    # an image folder are in order of paths, so of classes, and not of `make_split`.
    labels = make_split("test", len(classes))[1]
    if write_source is write_image_folder:
        labels = np.sort(labels)
    expected = labels[table["id"].to_numpy() - SPLITS["train"]]
    assert (table["prediction"].to_numpy() == expected).mean() > 0.9
    if not CHROMIUM:
        pytest.skip("no chromium on this machine")
    command = serving("--root", root, "--model", f"{name}/production", "--port", 0)
    with command.started() as process:
        assert process.stdout
        with open_page(process.stdout.readline().split()[3] + "/", classes=len(classes)) as page:
            assert page.locator(".bars li").first.locator("span").first.text_content() == classes[0]
