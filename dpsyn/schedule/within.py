"""Where in its cell each value of a row lies, given the row's other values: ranks that go together as the cells do.

Rows are learnt in a few dozen cells of each column. What is drawn within a cell by itself is independent of all other
columns there: of two columns whose largest values go together nothing goes together among the largest (one cell of 32
holds the highest three percent, and Pearson's correlation is made of them). So columns of an order are taken for a
Gaussian copula: normal scores of the cells give its correlations, and each value's score is drawn given those of its
row's other columns, within its cell. Of what a cell holds nothing changes: values are placed by the order of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from dpsyn.population import F64, I64

SWEEPS = 4
RIDGE = 0.02  # of the correlations' identity
FAR = 4.0  # standard deviations beyond a cell; of a mean farther away the value is at that end
LOWEST = 1e-6  # rank


@dataclass(frozen=True)
class Scored:
    """A column of an order. mass: float64 [atoms], the shares, in order. missing: the atom that is none; or -1."""

    mass: F64
    missing: int


def places(atoms: Sequence[np.ndarray], columns: Sequence[Scored | None], rng: np.random.Generator) -> list[F64]:
    """Of each value its place in its cell, float64 [n], 0 to 1: evenly spaced in each cell.

    atoms: of each column, whole numbers [n].
    columns: of the table; None for one without an order.
    rng: draws the order of what nothing tells apart.
    """
    n = len(atoms[0])
    scored = [j for j, column in enumerate(columns) if column is not None]
    scores = {j: rng.random(n) for j in range(len(columns))}
    if len(scored) > 1:
        lows, highs, known, at = [], [], [], []
        for j in scored:
            column = columns[j]
            assert column is not None
            mass = column.mass.copy()
            if column.missing >= 0:
                mass[column.missing] = 0
            ends = np.clip(np.cumsum(mass) / max(mass.sum(), 1e-12), LOWEST, 1 - LOWEST)
            starts = np.concatenate([[LOWEST], ends[:-1]])
            lows.append(ndtri(starts)[atoms[j]])
            highs.append(ndtri(ends)[atoms[j]])
            known.append(atoms[j] != column.missing)
            at.append(np.where(known[-1], ndtri(starts + (ends - starts) / 2)[atoms[j]], 0.0))
        values = np.array(at)
        z = values / np.maximum(np.sqrt((values**2).mean(1, keepdims=True)), 1e-9)
        correlation = (1 - RIDGE) * (z @ z.T) / n + RIDGE * np.eye(len(scored))
        precision = np.linalg.inv(correlation)
        for _ in range(SWEEPS):
            for i in range(len(scored)):
                deviation = precision[i, i] ** -0.5
                others = precision[i].copy()
                others[i] = 0
                mean = -(others @ values) / precision[i, i]
                mean = np.clip(mean, lows[i] - FAR * deviation, highs[i] + FAR * deviation)
                low, high = ndtr((lows[i] - mean) / deviation), ndtr((highs[i] - mean) / deviation)
                drawn = mean + deviation * ndtri(np.clip(low + rng.random(n) * (high - low), 1e-12, 1 - 1e-12))
                values[i] = np.where(known[i], np.clip(drawn, lows[i], highs[i]), 0.0)
        for i, j in enumerate(scored):
            scores[j] = np.where(known[i], values[i], scores[j])
    return [_evenly(atoms[j], scores[j], rng) for j in range(len(columns))]


def _evenly(atoms: np.ndarray, scores: F64, rng: np.random.Generator) -> F64:
    order = np.lexsort((scores, atoms))
    counts = np.bincount(atoms)
    starts = np.cumsum(counts) - counts
    rank: I64 = np.empty(len(atoms), np.int64)
    rank[order] = np.arange(len(atoms))
    own = atoms.astype(np.int64)
    found: F64 = (rank - starts[own] + rng.random(int(own.max()) + 1)[own]) / counts[own]
    return found
