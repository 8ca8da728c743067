"""Precision and recall, density and coverage: how real the population looks, and how much of real data it reaches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, check_packages, invalid
from dpsyn.metric import Metric, check_comparable, check_real, check_settings, sampled_sides
from dpsyn.networks.runtime import Runtime, take_free_threads, torch_device
from dpsyn.population import Modality, Population

BLOCK_BYTES = 1 << 27  # of distances held at once
ROUNDING = 1e-12  # of squared distances taken in float64, relative to squared norms


@dataclass(frozen=True)
class PrecisionRecall(Metric):
    """Improved precision and recall (Kynkaanniemi et al. 2019, 1904.06991, section 3), density and coverage (Naeem et
    al. 2020, 2002.09797, section 3), of as many synthetic rows as real ones.

    data: the real data, embedded once. embedding: where distances are taken. neighbours: a ball around a row reaches to
    its k-th nearest of its own side, for precision and recall; coverage_neighbours: for density and coverage (around
    real rows alone). rows: of each side, at most, a uniform sample drawn from seed. batch_size: rows read at once.
    public: the real data are public; otherwise the numbers are private.
    """

    data: Data
    embedding: Embedding
    neighbours: int
    coverage_neighbours: int
    rows: int
    seed: int
    batch_size: int
    public: bool
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        least = {"neighbours": 1, "coverage_neighbours": 1, "rows": 1, "seed": 0, "batch_size": 1}
        check_settings(self, "precision_recall", least, self.public)
        if self.rows <= (most := max(self.neighbours, self.coverage_neighbours)):
            raise invalid("metric.parts.precision_recall.rows", self.rows, f"more than {most}, the neighbours of a row")

    def check(self) -> None:
        """Raises UserError without real data."""
        check_packages("metric.parts", "precision_recall", "torch")
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
        """{'precision', 'recall', 'density', 'coverage'}, between 0 and 1 but for the density, which is 0 or more.

        Raises UserError where a side has no more rows than neighbours, or vectors of another length than the other.
        """
        ours, real = sampled_sides(population.samples, self.data, self.embedding, self.batch_size, self.rows, self.seed)
        rows = min(len(ours), len(real))
        if rows <= (most := max(self.neighbours, self.coverage_neighbours)):
            raise UserError(f"metric precision_recall: expected more than {most} synthetic and as many real rows.")
        check_comparable(ours, real)
        numbers = manifolds(
            ours[:rows], real[:rows], self.neighbours, self.coverage_neighbours, torch_device(self.runtime)
        )
        return dict(zip(("precision", "recall", "density", "coverage"), numbers, strict=True))


def manifolds(
    ours: np.ndarray, real: np.ndarray, k: int, coverage_k: int, device: str = "cpu"
) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage.

    Balls are closed. Distances are taken in float64 and in blocks; those that differ by less than rounding count as
    equal, so that rows which are there more than once lie on the border of each other's balls, of radius 0 even.

    ours: [m, d], of synthetic samples.
    real: [n, d], of real ones.
    k: neighbours of a ball of precision, recall and density, less than m and n.
    coverage_k: neighbours of a ball of coverage, less than n.
    device: of torch.
    """
    import torch

    take_free_threads()
    with torch.no_grad():
        # about their common mean, where rounding is least
        x, y = (torch.from_numpy(np.ascontiguousarray(v)).to(device, torch.float64) for v in (ours, real))
        mean = (x.sum(0) + y.sum(0)) / (len(x) + len(y))
        x, y = x - mean, y - mean
        (own,), (theirs, wide) = _radii(x, k), _radii(y, k, coverage_k)
        precise = dense = 0
        recalled = torch.zeros(len(y), dtype=torch.bool, device=y.device)
        nearest = torch.full((len(y),), torch.inf, dtype=torch.float64, device=y.device)
        for rows, squares in _blocks(x, y):
            precise += int((squares <= theirs).any(1).sum())
            dense += int((squares <= wide).sum())
            recalled |= (squares <= own[rows, None]).any(0)
            nearest = torch.minimum(nearest, squares.amin(0))
        covered = float((nearest <= wide).double().mean())
        return precise / len(x), float(recalled.double().mean()), dense / (coverage_k * len(x)), covered


def _radii(x: Any, *ks: int) -> list[Any]:
    """Squared distance float64 [n] of every row to its k-th nearest other row, for each k, and what rounding can do."""
    import torch

    nearest = torch.cat([torch.topk(squares, max(ks) + 1, largest=False).values for _, squares in _blocks(x, x)])
    norms = (x * x).sum(1)
    return [nearest[:, k] + ROUNDING * (nearest[:, k] + norms) for k in ks]


def _blocks(x: Any, y: Any) -> Iterator[tuple[slice, Any]]:
    """(rows, squared distances float64 [rows, len(y)]), over all rows of x."""
    import torch

    norms, size = (y * y).sum(1), max(1, BLOCK_BYTES // (8 * len(y)))
    for start in range(0, len(x), size):
        part = x[start : start + size]
        squares = torch.addmm(norms.expand(len(part), -1), part, y.T, alpha=-2)
        yield slice(start, start + len(part)), squares.add_((part * part).sum(1)[:, None])
