"""Marginals of coded rows: a grid of cells over some columns, and how many rows lie in each cell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.population import I64

LABEL = -1  # the label, where a marginal names its columns
BLOCK = 65536  # rows at a time, private or not


@dataclass(frozen=True)
class Marginal:
    """A grid over some columns.

    columns: their numbers; LABEL for the label.
    cells: for each of them, int64 [codes]: the cell of every code, from 0.
    """

    columns: tuple[int, ...]
    cells: tuple[I64, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(cells.max()) + 1 for cells in self.cells)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def count(marginal: Marginal, rows: np.ndarray) -> I64:
    """How many rows lie in each cell, int64 of the marginal's shape.

    rows: codes (or atoms) int [n, d + 1], the label last.
    """
    return np.bincount(cell_of(marginal, rows), minlength=marginal.size).reshape(marginal.shape)


def cell_of(marginal: Marginal, rows: np.ndarray) -> I64:
    """The cell of every row, int64 [n], row-major. rows: as in `count`."""
    index = np.zeros(len(rows), np.int64)
    for j, cells, size in zip(marginal.columns, marginal.cells, marginal.shape, strict=True):
        index = index * size + cells[rows[:, j]]
    return index


def counts_of(marginals: Sequence[Marginal], blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> I64:
    """The counts of all cells of all marginals, one after the other: int64 [entries].

    blocks: (codes int [b, d], labels int64 [b]); memory does not depend on their number.
    """
    counts = [np.zeros(m.shape, np.int64) for m in marginals]
    for codes, labels in blocks:
        for start in range(0, len(codes), BLOCK):
            part = slice(start, start + BLOCK)
            rows = np.concatenate([codes[part], labels[part, None]], axis=1, dtype=np.int32).T.copy().T
            for marginal, into in zip(marginals, counts, strict=True):
                into += count(marginal, rows)
    return np.concatenate([c.ravel() for c in counts]) if counts else np.zeros(0, np.int64)


def entries_of(marginals: Sequence[Marginal], codes: np.ndarray, labels: np.ndarray) -> I64:
    """The entries of `counts_of` that a row counts in, one of each marginal: int64 [n, marginals]."""
    rows = np.concatenate([codes, labels[:, None]], axis=1, dtype=np.int32)
    starts = np.cumsum([0, *(marginal.size for marginal in marginals)])
    found = [start + cell_of(marginal, rows) for start, marginal in zip(starts, marginals, strict=False)]
    return np.stack(found, axis=1)
