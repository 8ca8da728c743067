"""Kernel distance between embeddings of the population and of real data (with Inception features: KID)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError
from dpsyn.metric import Metric, check_comparable, check_real, check_settings, sampled_sides
from dpsyn.population import Modality, Population


@dataclass(frozen=True)
class Kid(Metric):
    """Squared maximum mean discrepancy under the kernel (x . y / d + 1)^3, without bias (Binkowski et al. 2018,
    1801.01401), over subsets of both sides.

    data: the real data, embedded once. embedding: where the distance is taken. subsets: how many; subset_size: rows of
    each side in one, or as many as there are. rows: of each side at most, a uniform sample from which the subsets are
    drawn. seed: of that and of the subsets. batch_size: rows read at once.
    public: the real data are public; otherwise the distance is private.
    """

    data: Data
    embedding: Embedding
    subsets: int
    subset_size: int
    rows: int
    seed: int
    batch_size: int
    public: bool

    def __post_init__(self) -> None:
        check_settings(
            self, "kid", {"subsets": 1, "subset_size": 2, "rows": 2, "seed": 0, "batch_size": 1}, self.public
        )

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
        """{'kid': mean over the subsets, about 0 where both sides are alike (below, too), 'kid_std': their spread}.

        Raises UserError where a side has fewer than two rows, or vectors of another length than the other.
        """
        ours, real = sampled_sides(population.samples, self.data, self.embedding, self.batch_size, self.rows, self.seed)
        size = min(len(ours), len(real), self.subset_size)
        if size < 2:
            raise UserError("metric kid: expected two synthetic and two real rows, or more.")
        check_comparable(ours, real)
        rng = np.random.default_rng(self.seed)
        found = [
            discrepancy(*(side[rng.choice(len(side), size, replace=False)] for side in (ours, real)))
            for _ in range(self.subsets)
        ]
        return {"kid": float(np.mean(found)), "kid_std": float(np.std(found))}


def discrepancy(one: np.ndarray, two: np.ndarray) -> float:
    """The unbiased estimate (Gretton et al. 2012, lemma 6), in float64.

    one: rows [m, d].
    two: rows [n, d].
    """
    x, y = one.astype(np.float64), two.astype(np.float64)

    def within(rows: np.ndarray) -> float:
        kernel = _kernel(rows, rows)
        return float(kernel.sum() - np.trace(kernel)) / (len(rows) * (len(rows) - 1))

    return within(x) + within(y) - 2 * float(_kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    inner = x @ y.T / x.shape[1] + 1
    return inner * inner * inner
