"""Columns of a table as vectors, between which rows have a distance: numbers by their declared bounds, categories
one-hot (Tab-PE, arXiv 2606.08259)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.population import F32, I32, Array
from dpsyn.tables.columns import Column


@dataclass(frozen=True)
class Weights:
    """number: of the place of a number, a date or an ordered value between its bounds, 0 to 1 (0 in a column with one
    value). category: at the value of a category or a boolean, of which missing is one. missing: in an entry of its own,
    where a number is missing, which lies halfway between the bounds. All times the weight in the schema.
    """

    number: float
    category: float
    missing: float


def starts_of(columns: Sequence[Column]) -> list[int]:
    """Where each column's entries begin, and the length of a vector."""
    widths = [(1 if column.has_order else column.size) + column.missing for column in columns]
    return [0, *np.cumsum(widths).tolist()]


def entries(columns: Sequence[Column], content: Array, weights: Weights) -> tuple[I32, F32]:
    """Of each row the places of its entries and what stands there, int32 and float32 [n, e]: one a column, and one more
    for a number that may be missing. The others are 0.

    columns: that have a part in the distance.
    content: table rows [n].
    weights: of their kinds.
    """
    places, values = [], []
    for start, column in zip(starts_of(columns)[:-1], columns, strict=True):
        cells = content[column.name]
        if column.has_order:
            scaled = column.scaled(cells)
            none = np.isnan(scaled)
            places.append(np.full(len(cells), start))
            values.append(np.where(none, 0.5, scaled) * (weights.number * column.weight))
            if column.missing:
                places.append(np.full(len(cells), start + 1))
                values.append(none * (weights.missing * column.weight))
        else:
            found = column.codes_of(cells)
            places.append(start + np.where(found < 0, column.size, found))
            values.append(np.full(len(cells), weights.category * column.weight))
    return np.stack(places, 1).astype(np.int32), np.stack(values, 1).astype(np.float32)
