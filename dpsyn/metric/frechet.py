"""Frechet distance between embeddings of the population and of real data (with Inception features: FID)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, bad
from dpsyn.population import Population, take


@dataclass(frozen=True)
class Frechet:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017, equation 6), in float64.

    data: the real data. embedding: where the distance is taken. batch_size: rows embedded at once.
    public: the real data are public; otherwise the distance is private.
    """

    data: Data
    embedding: Embedding
    batch_size: int
    public: bool

    def __post_init__(self) -> None:
        if type(self.batch_size) is not int or self.batch_size < 1:
            raise bad("metric.parts.frechet.batch_size", self.batch_size, "a whole number, 1 or more")
        if type(self.public) is not bool:  # a word such as "no" would count as true, and publish a private number
            raise bad("metric.parts.frechet.public", self.public, "true or false")

    def check(self) -> None:
        """Raises UserError without real data."""
        if self.data is None:
            raise UserError("held_out=null: this metric needs real data. Declare a part of the group data as held_out.")
        self.data.check()

    @property
    def private(self) -> bool:
        return not self.public

    def __call__(self, population: Population) -> Mapping[str, float]:
        """{'frechet': distance, 0 or more}"""
        rows = range(0, len(population), self.batch_size)
        ours = (take(population.samples, np.arange(k, min(k + self.batch_size, len(population)))) for k in rows)
        real = (records.samples for records in self.data.batches(self.batch_size) if len(records.samples))
        return {"frechet": distance(moments(map(self.embedding, ours)), moments(map(self.embedding, real)))}


def moments(batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and covariance [d, d] (n - 1) of the rows of all batches, float64, in one pass (Chan et al. 1983).

    Raises ValueError for fewer than two rows.
    """
    n, mean, scatter = 0, np.zeros(0), np.zeros((0, 0))
    for batch in batches:
        if not len(batch):
            continue
        rows = batch.astype(np.float64)
        m, own = len(rows), rows.mean(0)
        spread = (rows - own).T @ (rows - own)
        if not n:
            n, mean, scatter = m, own, spread
            continue
        gap = own - mean
        scatter = scatter + spread + np.outer(gap, gap) * (n * m / (n + m))
        mean = mean + gap * (m / (n + m))
        n += m
    if n < 2:
        raise ValueError("a covariance needs two rows")
    return mean, scatter / (n - 1)


def distance(one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray]) -> float:
    """tr (C1 C2)^(1/2) = tr (C1^(1/2) C2 C1^(1/2))^(1/2): symmetric, so that singular covariances do no harm."""
    (mean1, cov1), (mean2, cov2) = one, two
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ cov2 @ root)
    gap = mean1 - mean2
    total = gap @ gap + np.trace(cov1) + np.trace(cov2) - 2 * np.sqrt(np.maximum(inner, 0)).sum()
    return max(float(total), 0.0)
