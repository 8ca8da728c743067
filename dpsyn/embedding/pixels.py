"""Pixels as an embedding: resized, blurred, in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.errors import UserError, bad
from dpsyn.population import Samples


@dataclass(frozen=True)
class Pixels:
    """Images uint8 [n, h, w, c] -> float32 [n, size * c].

    size: [height, width] px, by averaging areas; None: as they are.
    blur: standard deviation of a Gaussian, px of the resized image; beyond the border there is nothing. 0: none.

    Both are linear and separable, one matrix an axis. Every image is multiplied on its own, so that it has the same
    numbers in any batch.
    """

    size: Sequence[int] | None
    blur: float

    def __post_init__(self) -> None:
        whole = self.size is None or (len(self.size) == 2 and all(isinstance(v, int) and v > 0 for v in self.size))
        if not whole:
            raise bad("embedding.size", self.size, "[height, width] px, or null")
        if not isinstance(self.blur, int | float) or not 0 <= self.blur < float("inf"):
            raise bad("embedding.blur", self.blur, "px, 0 or more")

    def __call__(self, samples: Samples) -> np.ndarray:
        """Raises UserError for what are no images."""
        images = samples.content
        if images.ndim != 4:
            raise UserError("embedding pixels: expected images. Choose an embedding for this kind of data.")
        n, h, w, c = images.shape
        to_h, to_w = self.size or (h, w)
        rows, columns = self._axis(h, to_h), self._axis(w, to_w)
        planes = np.moveaxis(images, 3, 1).astype(np.float32)  # [n, c, h, w]
        return np.matmul(np.matmul(rows, planes), columns.T).reshape(n, c * to_h * to_w)

    def _axis(self, n: int, to: int) -> np.ndarray:
        """float32 [to, n], row sums 1/255 where the blur stays inside."""
        edges = np.linspace(0, n, to + 1)
        pixels = np.arange(n)
        overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        areas = np.clip(overlap, 0, None) / (n / to)
        if self.blur:
            places = np.arange(to)
            bell = np.exp(-((places[:, None] - places) ** 2) / (2 * self.blur**2))
            reach = np.arange(-4 * int(np.ceil(self.blur)), 4 * int(np.ceil(self.blur)) + 1)
            areas = bell @ areas / np.exp(-(reach**2) / (2 * self.blur**2)).sum()
        return (areas / 255).astype(np.float32)
