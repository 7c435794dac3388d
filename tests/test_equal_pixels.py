"""The pixels that training, scoring and the server see of the same image are equal, in each form.

Training reads a source, scoring one of its files; the server gets the image file, or the pixels of
the array through V1.
"""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.arrays import UInt8Array
from pipeline.artifacts.manifests import ModelManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Data
from pipeline.contract import AS_IS, ImageSpec
from pipeline.data.readers import idx_format
from pipeline.data.scoring_inputs import open_input
from pipeline.data.sources import open_source
from pipeline.errors import DataError
from pipeline.models.predictor import expected_tensors
from serving.errors import ImageInvalid
from serving.protocol.image_input import read_image
from serving.protocol.v1 import parse_instances

COUNT = 6

SIZE = (20, 24)
"""Height and width of the images that people bring."""

PREPARATIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "inverted": {"invert": "always"},
    "inverted if light": {"invert": "auto"},
    "stretched": {"size": (28, 28)},
    "padded": {"size": (30, 26), "fit": "pad", "invert": "auto", "grey": True},
    "by mass": {"size": (28, 28), "fit": "mass"},
    "as MNIST": {"size": (28, 28), "fit": "mass", "invert": "auto", "grey": True},
    "by mass, inverted": {"size": (28, 28), "fit": "mass", "invert": "always"},
    "by mass, of this size": {"size": SIZE, "fit": "mass", "invert": "auto"},
}


def images(ground: int) -> UInt8Array:
    """Return noise with a bar whose place is the label, uint8 (N, 20, 24)."""
    random = np.random.default_rng(ground)
    pixels = random.integers(0, 12, (COUNT, *SIZE), np.uint8)
    for number, image in enumerate(pixels):
        left = 4 + 8 * (number % 2)
        image[3 + number % 3 : 16, left : left + 4] = 200 + number
    return 255 - pixels if ground else pixels


LABELS = np.arange(COUNT) % 2


def encode(image: UInt8Array, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def add_folder(kind: str) -> Callable[[Path, UInt8Array], list[bytes]]:
    def write(folder: Path, pixels: UInt8Array) -> list[bytes]:
        files = {}
        for split in ("train", "test"):
            for number, (image, label) in enumerate(zip(pixels, LABELS, strict=True)):
                path = folder / split / str(label) / f"{number:02d}.{kind.lower()}"
                path.parent.mkdir(parents=True, exist_ok=True)
                files[path] = encode(image, kind)
                path.write_bytes(files[path])
        return [files[path] for path in sorted(files) if "train" in path.parts]

    return write


def add_idx(folder: Path, pixels: UInt8Array) -> UInt8Array:
    for split in ("train", "t10k"):
        for kind, array in (("images-idx3", pixels), ("labels-idx1", LABELS.astype(np.uint8))):
            (folder / f"{split}-{kind}-ubyte").write_bytes(idx_format.encode(array))
    return pixels


def add_npy(folder: Path, pixels: UInt8Array) -> UInt8Array:
    for split in ("train", "test"):
        np.save(folder / f"{split}_images.npy", pixels)
        np.save(folder / f"{split}_labels.npy", LABELS)
    return pixels


def add_npz(folder: Path, pixels: UInt8Array) -> UInt8Array:
    for split in ("train", "test"):
        np.savez(folder / f"{split}_images.npz", pixels)
        np.savez(folder / f"{split}_labels.npz", LABELS)
    return pixels


def add_csv(folder: Path, pixels: UInt8Array) -> UInt8Array:
    # Flat rows are square, so these images are.
    square = pixels[:, :20, :20]
    header = "label," + ",".join(f"pixel{i}" for i in range(400))
    rows = [
        ",".join(map(str, [label, *image.ravel()]))
        for label, image in zip(LABELS, square, strict=True)
    ]
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text("\n".join([header, *rows]) + "\n")
    return square


def add_tar(folder: Path, pixels: UInt8Array) -> list[bytes]:
    files = [encode(image, "PNG") for image in pixels]
    for split in ("train", "test"):
        with tarfile.open(folder / f"{split}-000.tar", "w") as archive:
            for number, (content, label) in enumerate(zip(files, LABELS, strict=True)):
                for suffix, data in (("png", content), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{number:02d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return files


def write_tables(folder: Path, column: pa.Array, *, arrow: bool = False) -> None:
    height, width = SIZE
    table = pa.table({"image": column, "label": LABELS})
    table = table.replace_schema_metadata({"height": str(height), "width": str(width)})
    for split in ("train", "test"):
        if arrow:
            with pa.ipc.new_file(folder / f"{split}.arrow", table.schema) as writer:
                writer.write_table(table)
        else:
            pq.write_table(table, folder / f"{split}.parquet")


def add_embedded_png(folder: Path, pixels: UInt8Array) -> list[bytes]:
    files = [encode(image, "PNG") for image in pixels]
    write_tables(folder, pa.array(files))
    return files


def add_fixed_size_binary(folder: Path, pixels: UInt8Array) -> UInt8Array:
    binary = pa.binary(SIZE[0] * SIZE[1])
    write_tables(folder, pa.array([image.tobytes() for image in pixels], binary))
    return pixels


def add_lists(folder: Path, pixels: UInt8Array) -> UInt8Array:
    write_tables(folder, pa.array(pixels.tolist()))
    return pixels


def add_arrow(folder: Path, pixels: UInt8Array) -> UInt8Array:
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    write_tables(folder, tensor, arrow=True)
    return pixels


FORMS: dict[str, Callable[[Path, UInt8Array], UInt8Array | list[bytes]]] = {
    "idx": add_idx,
    "npy": add_npy,
    "npz": add_npz,
    "csv": add_csv,
    "png": add_folder("PNG"),
    "jpeg": add_folder("JPEG"),
    "tar": add_tar,
    "parquet-png": add_embedded_png,
    "parquet-binary": add_fixed_size_binary,
    "parquet-lists": add_lists,
    "arrow": add_arrow,
}

INPUTS = {
    "idx": "train-images-idx3-ubyte",
    "npy": "train_images.npy",
    "npz": "train_images.npz",
    "csv": "train.csv",
    "png": "train",
    "jpeg": "train",
    "tar": "train-000.tar",
    "arrow": "train.arrow",
}
"""The file or folder of each form that is scored; otherwise train.parquet."""


def seen_by_the_server(brought: UInt8Array | list[bytes], spec: ImageSpec) -> Iterable[UInt8Array]:
    if isinstance(brought, np.ndarray):
        instances = brought.tolist()
    else:
        instances = [{"b64": base64.b64encode(content).decode()} for content in brought]
        for content in brought:
            yield read_image(content, spec).pixels
    body = json.dumps({"instances": instances}).encode()
    yield from parse_instances(body, model_of(spec), max_rows=COUNT, max_pixels=1 << 24)


def model_of(spec: ImageSpec) -> ModelManifest:
    inputs, outputs = expected_tensors(spec)
    return ModelManifest(
        name="own",
        version="0" * 12,
        run="own",
        dataset="own/000000000000",
        image=spec,
        inputs=inputs,
        outputs=outputs,
        parity_max_difference=0.0,
        training={},
    )


def assert_all_see_the_same(
    source: Path, scored: str, brought: UInt8Array | list[bytes], settings: dict[str, Any]
) -> UInt8Array:
    opened = open_source(Data(name="own", source=str(source), **settings))
    rows = opened.splits["train"]
    trained = rows.read(0, rows.num_rows).images
    spec = ImageSpec(*opened.shape, opened.class_names, opened.preparation)
    inputs = open_input(Storage(str(source)), [str(source / scored)], spec)
    np.testing.assert_array_equal(inputs.read(0, inputs.num_rows).images, trained)
    server = np.stack(list(seen_by_the_server(brought, spec)))
    np.testing.assert_array_equal(server, np.concatenate([trained] * (len(server) // COUNT)))
    return trained


def test_a_dark_drawing_on_light_is_seen_as_it_is(tmp_path: Path) -> None:
    """The server does not invert for a data set that was not inverted."""
    brought = FORMS["png"](tmp_path, images(255))
    trained = assert_all_see_the_same(tmp_path, "train", brought, {})
    assert np.median(trained) > 200


@pytest.mark.parametrize("preparation", PREPARATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_all_see_the_same_pixels(form: str, preparation: str, tmp_path: Path) -> None:
    settings = PREPARATIONS[preparation]
    for ground in (0, 255):
        source = tmp_path / str(ground)
        source.mkdir()
        brought = FORMS[form](source, images(ground))
        scored = INPUTS.get(form, "train.parquet")
        trained = assert_all_see_the_same(source, scored, brought, settings)
        if preparation == "as it is" and form == "idx":
            np.testing.assert_array_equal(trained, images(ground))


def test_all_refuse_16_bits_of_which_12_are_used(tmp_path: Path) -> None:
    add_folder("PNG")(tmp_path, images(0))
    file = io.BytesIO()
    Image.fromarray(images(0)[0].astype(np.uint16) * 16).save(file, "PNG")
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(file.getvalue())
    as_is, fitted = ImageSpec(*SIZE, ("0", "1"), AS_IS), ImageSpec(28, 28, ("0", "1"))
    storage, scores = Storage(str(tmp_path)), [str(tmp_path / "train")]
    with pytest.raises(DataError, match="only the lower 12"):
        open_source(Data(name="own", source=str(tmp_path)))
    with pytest.raises(DataError, match="only the lower 12"):
        open_input(storage, scores, as_is)
    scored = open_input(storage, scores, fitted)
    rejects = scored.read(0, scored.num_rows).rejects
    assert len(rejects) == COUNT
    assert all("only the lower 12" in row.reason for row in rejects)
    for spec in (as_is, fitted):
        with pytest.raises(ImageInvalid, match="only the lower 12"):
            read_image(file.getvalue(), spec)
