"""Frechet distance between embeddings of the population and of real data (with Inception features: FID)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.metric import Metric, blocks, check_comparable, check_real, check_settings, real_vectors, synthetic_vectors
from dpsyn.population import Modality, Population


@dataclass(frozen=True)
class Frechet(Metric):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017, equation 6), in float64.

    data: the real data, embedded once. embedding: where the distance is taken. batch_size: rows embedded at once.
    public: the real data are public; otherwise the distance is private.
    """

    data: Data
    embedding: Embedding
    batch_size: int
    public: bool

    def __post_init__(self) -> None:
        check_settings(self, "frechet", {"batch_size": 1}, self.public)

    def check(self) -> None:
        """Raises UserError without real data."""
        check_real(self.data)
        self.embedding.check()

    @property
    def private(self) -> bool:
        return not self.public

    @property
    def judges(self) -> Sequence[Modality]:
        return self.embedding.fits

    def reads(self) -> Sequence[Data]:
        return (self.data,)

    def __call__(self, population: Population) -> Mapping[str, float]:
        """{'frechet': distance, 0 or more}. Raises UserError where real samples have vectors of another length."""
        ours = synthetic_vectors(population.samples, self.embedding, self.batch_size)
        real = real_vectors(self.data, self.embedding, self.batch_size)
        check_comparable(ours, real)
        return {"frechet": distance(*(moments(blocks(side, self.batch_size)) for side in (ours, real)))}


def moments(batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and covariance [d, d] (n - 1) of the rows of all batches, float64, in one pass (Chan et al. 1983).

    Raises ValueError for fewer than two rows.
    """
    n, mean, scatter = 0, np.zeros(1), np.zeros((1, 1))
    for batch in batches:
        if not (m := len(batch)):
            continue
        rows = np.concatenate([batch, batch[:1]], dtype=np.float64)  # the last row: how far the means are apart
        own = rows[:m].mean(0)
        rows[:m] -= own
        rows[m] = (own - mean) * np.sqrt(n * m / (n + m))
        spread = rows.T @ rows  # of one array with itself: half the work (BLAS syrk)
        scatter = np.add(scatter, spread, out=spread)
        mean = mean + (own - mean) * (m / (n + m))
        n += m
    if n < 2:
        raise ValueError("a covariance needs two rows")
    return mean, scatter / (n - 1)


def distance(one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray]) -> float:
    """With C1 = A A^T, tr (C1 C2)^(1/2) = tr (A^T C2 A)^(1/2): symmetric, so that singular covariances do no harm.

    one: mean [d] and covariance [d, d] of one side.
    two: the same of the other.
    """
    (mean1, cov1), (mean2, cov2) = one, two
    values, vectors = np.linalg.eigh(cov1)
    half = vectors * np.sqrt(np.maximum(values, 0))
    inner = np.linalg.eigvalsh(half.T @ cov2 @ half)
    gap = mean1 - mean2
    total = gap @ gap + np.trace(cov1) + np.trace(cov2) - 2 * np.sqrt(np.maximum(inner, 0)).sum()
    return max(float(total), 0.0)
