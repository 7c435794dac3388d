"""Pictures of handwritten digits as people take them, drawn from digits of 28 x 28 pixels.

Pen, ink, paper, its lines, light, shadow, size, angle, blur, noise and JPEG vary at random; the
same seed gives the same photos.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipeline.arrays import Int64Array, UInt8Array

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

FINE = 8
"""Pixels of a skeleton for a pixel of the digit."""

INKS = ((20, 20, 25), (25, 40, 130), (60, 60, 65), (170, 25, 35), (20, 90, 50), (95, 95, 98))
"""Black, blue, dark grey, red, green, pencil."""

PAPERS = ((255, 255, 255), (250, 240, 215), (235, 225, 200), (255, 245, 150), (225, 235, 250))
"""White, cream, brown-grey, yellow note, bluish."""

BOARDS = ((25, 25, 28), (25, 60, 45), (40, 45, 80))

CHALKS = ((245, 245, 240), (255, 240, 150), (200, 225, 255))


LOOPS = {0: 1, 6: 1, 8: 2, 9: 1}
"""The loops of those digits that are another digit without them."""


def photographs(digits: UInt8Array, labels: Int64Array, seed: int) -> Iterator[bytes]:
    """Yield a photo of each digit, uint8 (N, 28, 28) with light ink."""
    for number, (digit, label) in enumerate(zip(digits, labels, strict=True)):
        yield photograph(digit, int(label), np.random.default_rng([seed, number]))


def photograph(digit: UInt8Array, label: int, random: np.random.Generator) -> bytes:
    """Return a photo of the digit, a PNG or JPEG of 64 to 2,000 pixels on its longer side."""
    longer = int(np.exp(random.uniform(np.log(64), np.log(2000))))
    width, height = longer, int(longer * random.uniform(0.6, 1))
    if random.random() < 0.5:
        width, height = height, width
    share = random.uniform(0.2, 0.9)
    size = max(share * min(width, height), min(24.0, 0.9 * min(width, height)))
    ink, stroke = _write(digit, label, (height, width), size, random)
    photo = _paint(ink, random)
    photo *= _light((height, width), random)[..., None]
    return _expose(photo, stroke, random)


def _write(
    digit: UInt8Array,
    label: int,
    shape: tuple[int, int],
    size: float,
    random: np.random.Generator,
) -> tuple[FloatArray, float]:
    """Return how much ink covers each pixel, 0 to 1, and the width of the stroke in pixels."""
    angle = np.deg2rad(random.uniform(-15, 15))
    stroke = max(1.3, size * float(np.exp(random.uniform(np.log(0.02), np.log(0.13)))))
    mask = _enlarge(digit) > 110
    skeleton = _skeleton(mask)
    # Strokes whose loops ran full of ink would lose them to a thin pen.
    natural = random.random() < 0.3 or _loops(skeleton) < LOOPS.get(label, 0)
    points = np.argwhere(mask if natural else skeleton).astype(np.float64)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = (points - points.mean(0)) @ turn.T
    turned *= size / np.ptp(turned, axis=0).max()
    low, high = turned.min(0) - stroke / 2, turned.max(0) + stroke / 2
    room = np.maximum(0, np.array(shape) - (high - low) - 2)
    turned += random.uniform(0, 1, 2) * room + 1 - low
    if natural:
        stroke = 0.12 * size
        return _fill(turned, shape, size / (20 * FINE)), stroke
    return _stroke(points, turned, shape, stroke), stroke


def _enlarge(digit: UInt8Array) -> UInt8Array:
    side = 28 * FINE
    large = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(large.filter(ImageFilter.GaussianBlur(FINE / 3)))


def _skeleton(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Thin to lines of one pixel (Zhang and Suen, 1984)."""
    mask = np.pad(mask, 1)
    changed = True
    while changed:
        changed = False
        for step in (0, 1):
            p = [
                np.roll(mask, (dy, dx), (0, 1))
                for dy, dx in (
                    (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1),
                )
            ]  # fmt: skip
            count = sum(q.astype(np.uint8) for q in p)
            turns = sum((~a & b).astype(np.uint8) for a, b in zip(p, p[1:] + p[:1], strict=True))
            n, e, s, w = p[0], p[2], p[4], p[6]
            sides = ~(n & e & s) & ~(e & s & w) if step == 0 else ~(n & e & w) & ~(n & s & w)
            gone = mask & (count >= 2) & (count <= 6) & (turns == 1) & sides
            if gone.any():
                mask, changed = mask & ~gone, True
    return mask[1:-1, 1:-1]


def _loops(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
    """Return the number of holes of a connected shape, by its Euler number (Gray, 1971)."""
    m = np.pad(mask, 1).astype(np.int64)
    a, b, c, d = m[:-1, :-1], m[:-1, 1:], m[1:, :-1], m[1:, 1:]
    total = a + b + c + d
    diagonal = (total == 2) & (a == d)
    euler = ((total == 1).sum() - (total == 3).sum() - 2 * diagonal.sum()) // 4
    return 1 - int(euler)


def _fill(points: Any, shape: tuple[int, int], step: float) -> FloatArray:
    """Return the ink of squares of this side around the points."""
    canvas = Image.new("L", (shape[1], shape[0]))
    draw = ImageDraw.Draw(canvas)
    half = max(0.5, 0.8 * step)
    for y, x in points:
        draw.ellipse((x - half, y - half, x + half, y + half), fill=255)
    covered = canvas.filter(ImageFilter.GaussianBlur(0.6 + step / 2))
    return np.asarray(covered, np.float32) / np.float32(255)


def _stroke(cells: Any, points: Any, shape: tuple[int, int], width: float) -> FloatArray:
    """Return the ink of a round pen along the skeleton, whose neighbouring cells are joined."""
    zoom = 4 if max(shape) < 500 else 1
    canvas = Image.new("L", (shape[1] * zoom, shape[0] * zoom))
    draw = ImageDraw.Draw(canvas)
    places = {tuple(cell): point * zoom for cell, point in zip(cells, points, strict=True)}
    radius = width * zoom / 2
    for (row, column), (y, x) in places.items():
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        for step in ((0, 1), (1, -1), (1, 0), (1, 1)):
            other = places.get((row + step[0], column + step[1]))
            if other is not None:
                draw.line((x, y, other[1], other[0]), fill=255, width=max(1, round(2 * radius)))
    small = canvas.resize((shape[1], shape[0]), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / np.float32(255)


def _paint(ink: FloatArray, random: np.random.Generator) -> FloatArray:
    """Return the colours of paper or board with its lines and this ink, 0 to 1."""
    board = random.random() < 0.15
    grounds, inks = (BOARDS, CHALKS) if board else (PAPERS, INKS)
    ground = np.array(grounds[random.integers(len(grounds))], np.float32) / 255
    colour = np.array(inks[random.integers(len(inks))], np.float32) / 255
    photo = np.broadcast_to(ground, (*ink.shape, 3)).copy()
    photo *= 1 + 0.05 * _cloud(ink.shape, random.uniform(5, 40), random)[..., None]
    if random.random() < 0.3:
        lines = _lines(ink.shape, squared=random.random() < 0.5, random=random)
        line_colour = ground + (colour - ground) * random.uniform(0.1, 0.45)
        photo += lines[..., None] * (line_colour - photo)
    opacity = random.uniform(0.8, 1) * (1 - 0.15 * np.abs(_cloud(ink.shape, 60, random)))
    cover = (ink * opacity)[..., None]
    return (photo * (1 - cover) + colour * cover).astype(np.float32)


def _lines(shape: tuple[int, ...], *, squared: bool, random: np.random.Generator) -> FloatArray:
    """Return the lines of ruled or squared paper, turned a little."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = np.deg2rad(random.uniform(-4, 4))
    pitch = max(6.0, random.uniform(0.05, 0.2) * min(height, width))
    thick = max(1.0, 0.04 * pitch)
    lines = np.zeros(shape, np.float32)
    for turned in (y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)):
        away = np.abs((turned + random.uniform(0, pitch)) % pitch - pitch / 2)
        lines = np.maximum(lines, np.clip(thick / 2 + 0.5 - away, 0, 1))
        if not squared:
            break
    return lines


def _light(shape: tuple[int, int], random: np.random.Generator) -> FloatArray:
    """Return the light on each pixel: a gradient, darker corners, and often a soft shadow."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = y / height - 0.5, x / width - 0.5
    angle = random.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    light = 1 - random.uniform(0, 0.5) * (along + 0.7) / 1.4
    light *= 1 - random.uniform(0, 0.5) * (x * x + y * y)
    if random.random() < 0.4:
        angle = random.uniform(0, 2 * np.pi)
        across = x * np.cos(angle) + y * np.sin(angle) + random.uniform(-0.4, 0.4)
        soft = random.uniform(0.01, 0.15)
        light *= 1 - random.uniform(0.2, 0.55) / (1 + np.exp(-across / soft))
    return np.asarray(light * random.uniform(0.65, 1), np.float32)


def _expose(photo: FloatArray, stroke: float, random: np.random.Generator) -> bytes:
    """Return the photo with blur, noise and, mostly, JPEG's artefacts."""
    image = Image.fromarray((photo.clip(0, 1) * 255).astype(np.uint8))
    blur = random.uniform(0, 0.35) * stroke
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), np.float32)
    grain = random.uniform(0, 10)
    pixels = pixels + random.normal(0, 1, pixels.shape).astype(np.float32) * grain
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    if random.random() < 0.2:
        image.save(file, "PNG", compress_level=1)
    else:
        image.save(file, "JPEG", quality=int(random.integers(30, 96)))
    return file.getvalue()


def _cloud(shape: tuple[int, ...], cells: float, random: np.random.Generator) -> FloatArray:
    """Return smooth noise, about -1 to 1, with so many cells on the longer side."""
    height, width = shape
    scale = cells / max(shape)
    small = random.normal(0, 0.4, (max(2, round(height * scale)), max(2, round(width * scale))))
    large = Image.fromarray(small.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    return np.asarray(large, np.float32)
