"""Hashes of images: 64 bits each, by which equal images are found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from math import prod

import numpy as np

from pipeline.arrays import BoolArray, UInt8Array, UInt64Array

NO_HASHES: UInt64Array = np.zeros(0, np.uint64)

MAX_TABLE_BITS = 24
"""A table of 16 MiB at most."""

BLOCK = 1 << 20
"""Hashes that are put into the table at once."""


def hash_images(images: UInt8Array) -> UInt64Array:
    """Hash each image to 64 bits.

    An image is a vector of 32-bit words, and its hash the dot product with a fixed random vector,
    modulo 2^64 (multilinear hashing; Lemire and Kaser, "Strongly universal string hashing is fast",
    2014). Two different images collide with probability 2^-33 at worst (only the top bit of a word
    differs) and 2^-64 at best.
    """
    flat = images.reshape(len(images), prod(images.shape[1:]))
    # Four pixels make a word. Pad the last one with zeros.
    padding = -flat.shape[1] % 4
    if padding:
        flat = np.pad(flat, ((0, 0), (0, padding)))
    words = np.ascontiguousarray(flat).view(np.uint32)
    hashes: UInt64Array = np.einsum("ij,j->i", words, _hash_factors(words.shape[1]))
    return hashes


@cache
def _hash_factors(count: int) -> UInt64Array:
    return np.frombuffer(np.random.default_rng(0).bytes(8 * count), dtype=np.uint64)


@dataclass(frozen=True)
class HashSet:
    """A set of hashes, which are sorted."""

    hashes: UInt64Array

    def contains(self, hashes: UInt64Array) -> BoolArray:
        """Return which of these hashes are in the set."""
        # Few pass the table, which is faster than a search.
        result: BoolArray = self._table[hashes >> np.uint64(64 - self._table_bits)]
        (rows,) = np.nonzero(result)
        positions = np.searchsorted(self.hashes, hashes[rows])
        result[rows] = self.hashes[positions.clip(max=len(self.hashes) - 1)] == hashes[rows]
        return result

    @property
    def _table_bits(self) -> int:
        return min(MAX_TABLE_BITS, len(self.hashes).bit_length() + 4)

    @cached_property
    def _table(self) -> BoolArray:
        """Whether a hash of the set begins with these bits."""
        table = np.zeros(1 << self._table_bits, bool)
        # In blocks: the hashes may be gigabytes, which all processes of a node share.
        for start in range(0, len(self.hashes), BLOCK):
            table[self.hashes[start : start + BLOCK] >> np.uint64(64 - self._table_bits)] = True
        return table
