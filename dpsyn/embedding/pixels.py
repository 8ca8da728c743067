"""Pixels as an embedding: resized, blurred, and if wanted the strength of their edges by direction."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError
from dpsyn.population import Modality, Samples
from dpsyn.validate import number, side_lengths, whole

LEAST = 2.0**-24  # of a Gaussian's height: what is below it is lost beside the middle, in float32


@dataclass(frozen=True)
class Pixels(Embedding):
    """Images uint8 [n, h, w, c] -> float32 [n, d], from values in [0, 1].

    size: [height, width] px, by averaging areas; None: as they are.
    blur: standard deviation of a Gaussian, px of the resized image; beyond the border there is nothing. 0: none.
    directions: 0: the pixels themselves. k: for each of k directions, how much brighter it gets that way (0 where it
        gets darker), as in histograms of oriented gradients (Dalal and Triggs 2005): shapes count, not ink.
    pool: edges are averaged over squares of this many px.

    All but a maximum with 0 is linear and separable, one matrix an axis. Every image is multiplied on its own, so that
    it has the same numbers in any batch.
    """

    size: Sequence[int] | None
    blur: float
    directions: int
    pool: int

    def __post_init__(self) -> None:
        side_lengths("embedding.size", self.size, optional=True)
        number("embedding.blur", self.blur, "px, 0 or more", least=0)
        whole("embedding.directions", self.directions, 0)
        whole("embedding.pool", self.pool, 1)

    def fingerprint(self) -> str:
        return ""

    @property
    def fits(self) -> Sequence[Modality]:
        return ("images",)

    def reads(self) -> Sequence[Data]:
        return ()

    def __call__(self, samples: Samples) -> np.ndarray:
        """Raises UserError for what are no images."""
        images = samples.content
        if images.ndim != 4 or images.dtype != np.uint8:
            raise UserError("embedding pixels: expected images. Choose an embedding for this kind of data.")
        n, h, w, c = images.shape
        to_h, to_w = self.size or (h, w)
        rows, columns = self._axis(h, to_h), self._axis(w, to_w)
        # [n, c, h, w], always in one order in memory: matmul's last bits depend on it
        planes = np.ascontiguousarray(np.moveaxis(images, 3, 1)) / np.float32(255)
        if not self.directions:
            return _between(rows, planes, columns).reshape(n, c * to_h * to_w)
        down = _between((_slope(to_h) @ rows).astype(np.float32), planes, columns)
        right = _between(rows, planes, (_slope(to_w) @ columns).astype(np.float32))
        angles = np.arange(self.directions) * (2 * np.pi / self.directions)
        edges = [np.maximum(right * np.float32(np.cos(a)) + down * np.float32(np.sin(a)), 0) for a in angles]
        pooled = np.concatenate([_pooled(edge, self.pool) for edge in edges], 1)
        return pooled.reshape(n, math.prod(pooled.shape[1:]))

    def _axis(self, n: int, to: int) -> np.ndarray:
        """float32 [to, n], row sums 1 where the blur stays inside."""
        areas = _areas(n, to).astype(np.float64)
        if self.blur:
            places = np.arange(to)
            bell = np.exp(-((places[:, None] - places) ** 2) / (2 * self.blur**2))
            bell[bell < LEAST] = 0
            reach = 4 * int(np.ceil(self.blur))
            areas = bell @ areas / np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * self.blur**2)).sum()
        return areas.astype(np.float32)


def _areas(n: int, to: int) -> np.ndarray:
    """float32 [to, n]: the mean over equal parts of n px."""
    edges = np.linspace(0, n, to + 1)
    pixels = np.arange(n)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(overlap, 0, None) / (n / to)).astype(np.float32)


def _slope(n: int) -> np.ndarray:
    """float64 [n, n]: central differences, with nothing beyond the border."""
    return (np.eye(n, k=1) - np.eye(n, k=-1)) / 2


def _pooled(planes: np.ndarray, pool: int) -> np.ndarray:
    """Means of squares of `pool` px (the last ones reach over the border), added up in one fixed order."""
    planes = np.pad(planes, ((0, 0), (0, 0), (0, -planes.shape[2] % pool), (0, -planes.shape[3] % pool)))
    lines = functools.reduce(np.add, [planes[:, :, i::pool] for i in range(pool)])
    return functools.reduce(np.add, [lines[..., i::pool] for i in range(pool)]) / np.float32(pool * pool)


def _between(rows: np.ndarray, planes: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.matmul(np.matmul(rows, planes), columns.T)
