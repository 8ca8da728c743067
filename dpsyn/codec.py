"""Rows of a table as small whole numbers and back, for votes in cells: one code a cell, from public bounds alone.

The places of a category are its codes. The places of a numeric column are cut into `bins` runs of about equal length,
and each special value is a run of its own. The last code is that of a missing value, where there may be one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from dpsyn.columns import Column
from dpsyn.schema import Schema
from dpsyn.seeds import uniform

STREAM = 2**21  # of a row's seed, from here on one a column


@dataclass(frozen=True)
class Coded:
    """A column as codes: how many, whether neighbouring codes are neighbouring values (but for the missing one), and
    the code of a missing value, or None where there can be none."""

    name: str
    codes: int
    ordered: bool
    missing: int | None


def coded(schema: Schema) -> tuple[Coded, ...]:
    """Of every column that is no label, in order."""
    return tuple(_coded(column) for column in schema.features)


def codes(schema: Schema, content: np.ndarray) -> np.ndarray:
    """int32 [n, columns that are no labels], each 0 or more and below its number of codes."""
    table = np.empty((len(content), len(schema.features)), np.int32)
    for at, column in enumerate(schema.features):
        places = column.places(content[column.name])
        starts = _starts(column)
        found = np.searchsorted(starts, places, side="right") - 1
        table[:, at] = np.where(places < 0, len(starts), found)
    return table


def decoded(schema: Schema, table: np.ndarray, labels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Content [n] of codes, int [n, columns that are no labels], and labels, int64 [n]; none breaks a constraint.

    A number is uniform over the places of its cell, by its row's own seed, uint64 [n]. Raises ValueError for a code
    that a column does not have.
    """
    content = np.empty(len(table), schema.dtype)
    schema.with_labels(content, labels)
    for at, column in enumerate(schema.features):
        facts, mine = _coded(column), table[:, at].astype(np.int64)
        if len(mine) and not 0 <= mine.min() <= mine.max() < facts.codes:
            raise ValueError(f"a code of {column.name} is not in 0..{facts.codes - 1}")
        starts = np.append(_starts(column), column.size)
        none = mine == facts.missing if facts.missing is not None else np.zeros(len(mine), bool)
        mine[none] = 0
        width = starts[mine + 1] - starts[mine]
        places = starts[mine] + (uniform(seeds, STREAM + at) * width).astype(np.int64)
        content[column.name] = column.typed(np.where(none, -1, places))
    return schema.repaired(content, seeds)


def _coded(column: Column) -> Coded:
    count = len(_starts(column))
    ordered = column.numeric or column.kind == "ordered"
    return Coded(column.name, count + column.missing, ordered, count if column.missing else None)


@functools.lru_cache(maxsize=1024)
def _starts(column: Column) -> np.ndarray:
    """int64 [codes without the missing one], rising: the first place of each."""
    if not column.numeric:
        return np.arange(column.size)
    bins = min(column.bins, column.size)
    starts = np.array([place * column.size // bins for place in range(bins)], np.int64)
    special = np.array(column.special, np.int64)
    starts = np.unique(np.concatenate([starts, special, special + 1]))
    return starts[starts < column.size]
