"""Augment images of handwriting with random affine and elastic deformations.

After Simard, Steinkraus and Platt 2003 and Ciresan et al. 2010. IMAGES_PER_FIELD neighbours in a
batch share one displacement field, as channels of one image: this makes interpolation several times
as fast, and a batch still has many fields.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.training.batch_loader import AUGMENT, RankSlice, stream_seed

IMAGES_PER_FIELD = 50

# Bounds of the uniform affine parameters at strength 1. The shift is a fraction of the image's
# side.
ROTATION = math.radians(15)

SCALE = 0.15

SHEAR = 0.15

SHIFT = 1.5 / 28

ELASTIC = 0.5 / 28
"""Standard deviation of elastic displacements at strength 1, as a fraction of the image's side."""

SMOOTH = 4 / 28
"""Standard deviation of the Gaussian that smooths them, as a fraction of the image's side."""


class Noise(NamedTuple):
    """The random numbers of a batch's displacement fields, at strength 1."""

    affine: Tensor
    """Uniform in -1..1, float32 (fields, 6): angle, scales of x and y, shear, shifts."""
    elastic: Tensor
    """Normal, float32 (fields, 2, height, width)."""


class Augment:
    """Augments the rows of a batch, the same on any number of workers.

    Random numbers follow from the seed and the step, and are drawn for whole global batches.
    """

    def __init__(
        self, height: int, width: int, strength: float, seed: int, device: torch.device
    ) -> None:
        self._strength, self._seed = strength, seed
        self._random = torch.Generator(device)
        self._shape = height, width
        self._grid = torch.stack(
            torch.meshgrid(_centers(width, device), _centers(height, device), indexing="xy"), -1
        )
        self._smooth = _gaussian(height, device), _gaussian(width, device)

    def fields(self, batch_size: int) -> int:
        """Return the number of displacement fields of a global batch."""
        return -(-batch_size // IMAGES_PER_FIELD)

    def draw(self, step: int, batch_size: int) -> Noise:
        """Return the noise of a global batch; `step` counts from the start of training."""
        self._random.manual_seed(stream_seed(self._seed, step, AUGMENT))
        fields, device = self.fields(batch_size), self._grid.device
        # The order of the draws decides the bits: a change changes every augmented run.
        affine = torch.rand(fields, 6, generator=self._random, device=device) * 2 - 1
        shape = (fields, 2, *self._shape)
        return Noise(affine, torch.randn(shape, generator=self._random, device=device))

    def __call__(self, images: Tensor, rank_slice: RankSlice, noise: Noise) -> Tensor:
        """Return a rank's rows of a batch, augmented: raw pixels, float32 in the images' shape.

        `images` are uint8 (rows, height, width) or (rows, height * width).
        """
        if rank_slice.rows == 0:
            return images.float()
        # The rank's rows may begin and end inside a field's images: pad them to whole fields.
        first, lead = divmod(rank_slice.start, IMAGES_PER_FIELD)
        num_fields = -(-(lead + rank_slice.rows) // IMAGES_PER_FIELD)
        trail = num_fields * IMAGES_PER_FIELD - lead - rank_slice.rows
        padded = F.pad(images.flatten(1).float(), (0, 0, lead, trail))
        fields = slice(first, first + num_fields)
        augmented = F.grid_sample(
            padded.view(num_fields, IMAGES_PER_FIELD, *self._shape),
            self._fields(Noise(noise.affine[fields], noise.elastic[fields])),
            align_corners=False,
        )
        rows = augmented.view(-1, *images.shape[1:])
        return rows[lead : lead + rank_slice.rows]

    def _fields(self, noise: Noise) -> Tensor:
        """Return fields, float32 (fields, height, width, 2): the source x and y of each pixel.

        Coordinates are from -1 to 1, as `grid_sample` takes them.
        """
        count, (height, width) = len(noise.affine), self._shape
        angle, scale_x, scale_y, shear, *_ = (noise.affine * self._strength).unbind(1)
        angle, shear = angle * ROTATION, shear * SHEAR
        scale_x, scale_y = 1 + scale_x * SCALE, 1 + scale_y * SCALE
        cos, sin = angle.cos(), angle.sin()
        x = torch.stack([scale_x * cos, shear * cos - scale_y * sin], -1)
        y = torch.stack([scale_x * sin, shear * sin + scale_y * cos], -1)
        matrix = torch.stack([x, y], -2)
        shift = noise.affine[:, 4:].view(count, 1, 1, 2) * (2 * SHIFT * self._strength)
        rows, columns = self._smooth
        elastic = (rows @ noise.elastic @ columns.T).permute(0, 2, 3, 1)
        affine = (self._grid.view(1, -1, 2) @ matrix.mT).view(count, height, width, 2)
        return affine + shift + elastic * (2 * ELASTIC * self._strength)


def _centers(pixels: int, device: torch.device) -> Tensor:
    """Return the centers of a side's pixels, if the side goes from -1 to 1."""
    return (torch.arange(pixels, device=device) * 2 + 1) / pixels - 1


def _gaussian(pixels: int, device: torch.device) -> Tensor:
    """Return rows of weights that smooth white noise along a side.

    They have norm 1, so the standard deviation of the noise stays.
    """
    x = torch.arange(pixels, device=device) / pixels
    weights = torch.exp(-((x[:, None] - x) ** 2) / (2 * SMOOTH**2))
    norms: Tensor = weights.norm(dim=1, keepdim=True)
    return weights / norms
