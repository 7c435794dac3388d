"""Random deformations of images of handwriting: affine, then elastic, made in batches.

After Simard, Steinkraus and Platt 2003 and Ciresan et al. 2010. A few neighbours in a batch share
one field of displacements, as channels of one image: interpolation then costs a fraction, and
batches still hold many fields.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.training.batch_loader import RankSlice

IMAGES_PER_FIELD = 50
"""Images that share a field."""

ROTATION = math.radians(15)

SCALE = 0.15

SHEAR = 0.15

SHIFT = 1.5 / 28
"""Bounds of the uniform affine part at strength 1; the shift is a part of the image's side."""

ELASTIC = 0.5 / 28
"""Deviation of the elastic displacements at strength 1, as a part of the image's side."""

SMOOTH = 4 / 28
"""Deviation of the Gaussian that smooths them, as a part of the image's side."""


class Augment:
    """Deforms the rows of a batch alike on any number of workers.

    Its random numbers follow the seed and the epoch, and are drawn for whole global batches.
    """

    def __init__(self, height: int, width: int, strength: float, device: torch.device) -> None:
        self._strength, self._random = strength, torch.Generator(device)
        self._shape = height, width
        self._grid = torch.stack(
            torch.meshgrid(_centers(width, device), _centers(height, device), indexing="xy"), -1
        )
        self._smooth = _gaussian(height, device), _gaussian(width, device)

    def start_epoch(self, seed: int, epoch: int) -> None:
        self._random.manual_seed(seed * 1_000_003 + epoch)

    def __call__(self, images: Tensor, part: RankSlice) -> Tensor:
        """Raw pixels float32 (rows, height * width), deformed, of uint8 ones: a part of a batch.

        To be called once for each batch of an epoch, by every worker.
        """
        fields = self._fields(-(-part.total // IMAGES_PER_FIELD))
        first, lead = divmod(part.start, IMAGES_PER_FIELD)
        count = max(1, -(-(lead + part.rows) // IMAGES_PER_FIELD))
        padded = F.pad(images.float(), (0, 0, lead, count * IMAGES_PER_FIELD - lead - part.rows))
        deformed = F.grid_sample(
            padded.view(count, IMAGES_PER_FIELD, *self._shape),
            fields[first : first + count],
            align_corners=False,
        )
        rows: Tensor = deformed.view(-1, images.shape[1])
        return rows[lead : lead + part.rows]

    def _fields(self, count: int) -> Tensor:
        """float32 (count, height, width, 2): where each pixel comes from, x and y in -1..1."""
        height, width = self._shape
        angle = self._uniform(count) * ROTATION
        scale_x, scale_y = 1 + self._uniform(count) * SCALE, 1 + self._uniform(count) * SCALE
        shear = self._uniform(count) * SHEAR
        cos, sin = angle.cos(), angle.sin()
        x = torch.stack([scale_x * cos, shear * cos - scale_y * sin], -1)
        y = torch.stack([scale_x * sin, shear * sin + scale_y * cos], -1)
        matrix = torch.stack([x, y], -2)
        shift = self._uniform(count, 1, 1, 2) * 2 * SHIFT
        noise = torch.randn(
            count, 2, height, width, generator=self._random, device=self._grid.device
        )
        rows, columns = self._smooth
        elastic = (rows @ noise @ columns.T).permute(0, 2, 3, 1) * (2 * ELASTIC * self._strength)
        affine = (self._grid.view(1, -1, 2) @ matrix.mT).view(count, height, width, 2)
        return affine + shift + elastic

    def _uniform(self, *shape: int) -> Tensor:
        values = torch.rand(shape, generator=self._random, device=self._grid.device)
        return (2 * values - 1) * self._strength


def _centers(pixels: int, device: torch.device) -> Tensor:
    """Centers of the pixels of a side, from -1 to 1 at its ends."""
    return (torch.arange(pixels, device=device) * 2 + 1) / pixels - 1


def _gaussian(pixels: int, device: torch.device) -> Tensor:
    """Rows that smooth white noise along a side, and leave its deviation as it is."""
    at = torch.arange(pixels, device=device) / pixels
    weights = torch.exp(-((at[:, None] - at) ** 2) / (2 * SMOOTH**2))
    norms: Tensor = weights.norm(dim=1, keepdim=True)
    return weights / norms
