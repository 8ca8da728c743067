"""How far the marginals of synthetic rows are from those of real ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb

import numpy as np

from dpsyn.data import Data
from dpsyn.errors import UserError, invalid
from dpsyn.metric import Metric, check_real, check_settings, check_table, real_samples
from dpsyn.population import Modality, Population
from dpsyn.tables.columns import Column
from dpsyn.tables.schema import Schema

BATCH = 4096
DENSE = 2**20  # cells of a marginal that are counted one by one; of more, those that a row lies in


@dataclass(frozen=True)
class Marginals(Metric):
    """Total variation of k-way marginals, Wasserstein distances and correlations, of all columns, labels too.

    data: the real rows, read once. schema: theirs. public: the real data are public; otherwise the numbers are private.
    ways: which k. bins: of equal width, between the declared bounds, that numbers and dates are put into; a missing
        value is one more. combinations: of columns, at most; of more, so many that `seed` chooses.
    """

    data: Data
    schema: Schema
    public: bool
    ways: Sequence[int]
    bins: int
    combinations: int
    seed: int

    def __post_init__(self) -> None:
        check_table("metric.parts.marginals.schema", self.schema)
        check_settings(self, "marginals", {"bins": 2, "combinations": 1, "seed": 0}, self.public)
        if isinstance(self.ways, str) or not all(type(k) is int and 1 <= k <= 5 for k in self.ways):
            raise invalid("metric.parts.marginals.ways", self.ways, "a list of whole numbers from 1 to 5")

    def check(self) -> None:
        """Raises UserError without real data."""
        check_real(self.data)

    @property
    def private(self) -> bool:
        return not self.public

    @property
    def judges(self) -> Sequence[Modality]:
        return ("rows", "rows with texts")

    def reads(self) -> Sequence[Data]:
        return (self.data,)

    def __call__(self, population: Population) -> Mapping[str, float]:
        """{'tv_1', 'tv_2', ...}: the mean over combinations of k columns, 0 to 1. 'wasserstein': the mean over numbers,
        dates and ordered columns, in parts of the declared range, of the values that are not missing.
        'correlation_difference': the mean over pairs of them and of booleans, of Pearson's (0 where one is constant).
        What a table has no columns for is left out. Raises UserError for what are no rows of the schema.
        """
        ours = measured(_content(population.samples.content, self.schema), self.schema, self.bins)
        if not len(ours[0]) or not len(self.real_cells[0]):
            raise UserError("metric marginals: expected a synthetic and a real row, or more.")
        found = {
            f"tv_{k}": self._variation(ours[0], self.real_cells[0], k)
            for k in self.ways
            if k <= len(self.schema.columns)
        }
        return {**found, **distances(self.schema, ours[1], self.real_cells[1])}

    def _variation(self, ours: np.ndarray, real: np.ndarray, k: int) -> float:
        sizes = [_cells(column, self.bins) for column in self.schema.columns.values()]
        chosen = _chosen(len(sizes), k, self.combinations, self.seed)
        return float(np.mean([_total_variation(ours, real, columns, sizes) for columns in chosen]))

    @cached_property
    def real_cells(self) -> tuple[np.ndarray, np.ndarray]:
        parts = [
            measured(_content(samples.content, self.schema), self.schema, self.bins)
            for samples in real_samples(self.data, BATCH)
        ]
        empty = measured(np.empty(0, self.schema.dtype), self.schema, self.bins)
        cells, numbers = zip(empty, *parts, strict=True)
        return np.concatenate(cells), np.concatenate(numbers)

    def __getstate__(self) -> dict[str, object]:
        """Pickles the settings only, never statistics of real data."""
        return {key: value for key, value in vars(self).items() if key != "real_cells"}


def _content(content: np.ndarray, schema: Schema) -> np.ndarray:
    if content.dtype != schema.dtype:
        raise UserError("metric marginals: expected rows of the schema. Leave it out for this kind of data.")
    return content


def measured(content: np.ndarray, schema: Schema, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The cell of each value, int32 [n, columns]; and float32 [n, columns that have an order], 0 to 1 or NaN.

    content: table rows [n].
    schema: theirs.
    bins: cells of a column that has an order.
    """
    cells = np.empty((len(content), len(schema.columns)), np.int32)
    ordered = _ordered(schema)
    numbers = np.empty((len(content), len(ordered)), np.float32)
    for at, column in enumerate(schema.columns.values()):
        values = content[column.name]
        if column.numeric:
            scaled = column.scaled(values)
            none = np.isnan(scaled)
            place = np.floor(np.where(none, 0, scaled) * bins + 1e-9).clip(0, bins - 1)
            cells[:, at] = np.where(none, bins, place)
        else:
            places = column.codes_of(values)
            cells[:, at] = np.where(places < 0, column.size, places)
        if column.name in ordered:
            numbers[:, ordered.index(column.name)] = (
                column.numbers(values) if column.kind == "boolean" else column.scaled(values)
            )
    return cells, numbers


def _ordered(schema: Schema) -> list[str]:
    return [column.name for column in schema.columns.values() if column.kind != "category"]


def _cells(column: Column, bins: int) -> int:
    return (bins if column.numeric else column.size) + column.missing


def _chosen(columns: int, k: int, most: int, seed: int) -> list[tuple[int, ...]]:
    count = comb(columns, k)
    if count <= most:
        return list(itertools.combinations(range(columns), k))
    rng = np.random.default_rng([seed, k])
    found: dict[tuple[int, ...], None] = {}
    while len(found) < most:
        found[tuple(sorted(rng.choice(columns, k, replace=False).tolist()))] = None
    return list(found)


def _total_variation(ours: np.ndarray, real: np.ndarray, columns: Sequence[int], sizes: Sequence[int]) -> float:
    keys = [np.zeros(len(side), np.int64) for side in (ours, real)]
    total = 1
    for at in columns:
        total *= sizes[at]
        keys = [key * sizes[at] + side[:, at] for key, side in zip(keys, (ours, real), strict=True)]
    if total > DENSE:
        present, index = np.unique(np.concatenate(keys), return_inverse=True)
        keys, total = [index[: len(ours)], index[len(ours) :]], len(present)
    p, q = (np.bincount(key, minlength=total) / len(key) for key in keys)
    return float(np.abs(p - q).sum() / 2)


def distances(schema: Schema, ours: np.ndarray, real: np.ndarray) -> dict[str, float]:
    from scipy.stats import wasserstein_distance

    found = {}
    apart = []
    for at, name in enumerate(_ordered(schema)):
        a, b = (side[:, at][~np.isnan(side[:, at])] for side in (ours, real))
        if schema.columns[name].kind != "boolean" and len(a) and len(b):
            apart.append(wasserstein_distance(a, b))
    if apart:
        found["wasserstein"] = float(np.mean(apart))
    pairs = list(itertools.combinations(range(ours.shape[1]), 2))
    if pairs:
        gaps = [abs(_correlation(ours[:, a], ours[:, b]) - _correlation(real[:, a], real[:, b])) for a, b in pairs]
        found["correlation_difference"] = float(np.mean(gaps))
    return found


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's over rows that have both; 0 where one is constant."""
    both = ~(np.isnan(a) | np.isnan(b))
    a, b = a[both].astype(np.float64), b[both].astype(np.float64)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
