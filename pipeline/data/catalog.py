"""The catalog of named data sets: their mirrors, checksums, class names and quirks.

MNIST: LeCun, Cortes, Burges, "MNIST handwritten digit database", 2010. Fashion-MNIST: Xiao, Rasul,
Vollgraf, 2017 (MIT). KMNIST: "KMNIST Dataset" (created by CODH), adapted from "Kuzushiji Dataset"
(created by NIJL and others), doi:10.20676/00000341 (CC BY-SA 4.0). EMNIST: Cohen, Afshar, Tapson,
van Schaik, 2017. No data is part of this package: it is downloaded and verified.

To add a data set in the IDX format: add its `Profile` to `PROFILES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import ascii_lowercase, ascii_uppercase, digits

from pipeline.contract import Preparation

ROLES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
"""The four files of a data set, with the names of MNIST's."""


@dataclass(frozen=True)
class Profile:
    """A named data set.

    `sha256_gz` verifies the downloaded files, by role; it is required unless `archive` is given.
    `sha256` verifies their content without gzip, also if it comes from a folder. `archive`, if
    given, is a zip file that holds the four files. `transposed`: the files hold each image column
    by column. `first_label`: the lowest label in the files. `preparation`: what is done to image
    files for its models. `num_last_val`: the rows are in random order, and that many at the end of
    the training files are `val`.
    """

    mirrors: tuple[str, ...]
    class_names: tuple[str, ...]
    sha256_gz: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=lambda: ROLES)
    archive: str = ""
    archive_sha256: str = ""
    transposed: bool = False
    first_label: int = 0
    preparation: Preparation = Preparation()
    num_last_val: int | None = None


def _emnist(split: str, class_names: str, first_label: int = 0) -> Profile:
    """Return the profile of a split of EMNIST, whose images are transposed."""
    return Profile(
        mirrors=(
            "https://biometrics.nist.gov/cs_links/EMNIST",
            "https://www.itl.nist.gov/iaui/vip/cs_links/EMNIST",
        ),
        class_names=tuple(class_names),
        files={
            f"{subset}_{kind}": f"emnist-{split}-{subset}-{kind}-idx{rank}-ubyte"
            for subset in ("train", "test")
            for kind, rank in (("images", 3), ("labels", 1))
        },
        archive="gzip.zip",
        archive_sha256="fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e",
        transposed=True,
        first_label=first_label,
    )


MERGED = digits + ascii_uppercase + "abdefghnqrt"
"""Classes in which letters whose two cases look alike are merged into the upper case."""

PROFILES = {
    "mnist": Profile(
        mirrors=(
            "https://storage.googleapis.com/cvdf-datasets/mnist",
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "http://yann.lecun.com/exdb/mnist",
        ),
        class_names=tuple("0123456789"),
        num_last_val=10_000,
        sha256_gz={
            "train_images": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train_labels": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "test_images": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "test_labels": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        sha256={
            "train_images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train_labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "test_images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "test_labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion-mnist": Profile(
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
        ),
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        preparation=Preparation(fit="pad"),
        sha256_gz={
            "train_images": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train_labels": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "test_images": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "test_labels": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "kmnist": Profile(
        mirrors=("http://codh.rois.ac.jp/kmnist/dataset/kmnist",),
        class_names=tuple("おきすつなはまやれを"),
        sha256_gz={
            "train_images": "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "train_labels": "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "test_images": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "test_labels": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        },
    ),
    "emnist-byclass": _emnist("byclass", digits + ascii_uppercase + ascii_lowercase),
    "emnist-bymerge": _emnist("bymerge", MERGED),
    "emnist-balanced": _emnist("balanced", MERGED),
    "emnist-letters": _emnist("letters", ascii_uppercase, first_label=1),
    "emnist-digits": _emnist("digits", digits),
    "emnist-mnist": _emnist("mnist", digits),
}
