"""Marginals of coded rows: a grid of cells over some columns, and how many rows lie in each cell."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.population import I64
from dpsyn.threads import in_threads

LABEL = -1  # the label, where a marginal names its columns
BLOCK = 65536  # rows at a time, private or not
KEPT = 2**24  # cells of columns that are kept of them
PARTS = 64  # of the tables, among threads
NO_LABEL = np.zeros(1, np.int64)  # the cell of every label, where a marginal has none


@dataclass(frozen=True)
class Marginal:
    """A grid over some columns.

    columns: their numbers; LABEL for the label.
    cells: for each of them, int64 [codes]: the cell of every code, from 0.
    """

    columns: tuple[int, ...]
    cells: tuple[I64, ...]

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(cells.max()) + 1 for cells in self.cells)

    @functools.cached_property
    def size(self) -> int:
        return math.prod(self.shape)


def cell_of(marginal: Marginal, rows: np.ndarray) -> I64:
    """The cell of every row, int64 [n], row-major.

    marginal: d columns and how their codes fall into cells.
    rows: int32 [n, columns and a label], as in `count`.
    """
    index = np.zeros(len(rows), np.int64)
    for j, cells, size in zip(marginal.columns, marginal.cells, marginal.shape, strict=True):
        index = index * size + cells[rows[:, j]]
    return index


@dataclass(frozen=True)
class Counter:
    """Counts rows in the cells of many marginals at once.

    Those of the same columns, with the label and without, are one table: each row is counted once, in cells that are
    parts of theirs. The codes of a column become cells once for all tables that cut it alike.
    """

    marginals: Sequence[Marginal]

    @functools.cached_property
    def _tables(self) -> Sequence[_Table]:
        groups = dict[tuple[int, ...], list[int]]()
        for at, marginal in enumerate(self.marginals):
            groups.setdefault(tuple(j for j in marginal.columns if j != LABEL), []).append(at)
        cuts = _Cuts()
        return [_table([(at, self.marginals[at]) for at in mine], cuts) for mine in groups.values()]

    def __call__(self, blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> I64:
        """The counts of all cells of all marginals, one after the other: int64 [entries].

        blocks: (codes int [b, d], labels int64 [b]); memory does not depend on their number.
        """
        counts = [np.zeros((table.size, table.labels), np.int64) for table in self._tables]
        cuts = list({id(cut): cut for table in self._tables for cut in table.cuts}.values())
        most = max(4096, min(BLOCK, KEPT // max(1, len(cuts))))
        for codes, labels in blocks:
            for start in range(0, len(codes), most):
                part = slice(start, start + most)
                self._add(cuts, np.ascontiguousarray(codes[part].T), labels[part], counts)
        starts = np.cumsum([0, *(marginal.size for marginal in self.marginals)])
        found = np.zeros(starts[-1], np.int64)
        for table, of_table in zip(self._tables, counts, strict=True):
            for at, cells in table.of.items():
                mine = of_table.ravel()
                if cells is not None:
                    mine = np.bincount(cells, mine, self.marginals[at].size)  # float64, exact below 2^53
                found[starts[at] : starts[at + 1]] = mine
        return found

    def _add(self, cuts: Sequence[_Cut], codes: np.ndarray, labels: np.ndarray, counts: Sequence[I64]) -> None:
        """Adds a block of rows to the counts. codes: [d, b]."""
        same = labels[0] if (labels == labels[0]).all() else None  # as in a block of private records

        def cells(cut: _Cut) -> np.ndarray:
            return cut.cells.astype(_narrow(cut.size)).take(codes[cut.column])

        of_cut = dict(zip(map(id, cuts), in_threads(cells, cuts), strict=True))

        def add(tables: range) -> None:
            for at in tables:
                table, into = self._tables[at], counts[at]
                narrow = _narrow(into.size)
                index: np.ndarray = np.zeros(len(labels), narrow)
                for number, cut in enumerate(table.cuts):
                    mine: np.ndarray = of_cut[id(cut)].astype(narrow, copy=False)
                    index = index * narrow(cut.size) + mine if number else mine
                if same is None and table.labels > 1:
                    of_label: np.ndarray = table.of_label.astype(narrow)
                    index = index * narrow(table.labels) + of_label[labels]
                    into += np.bincount(index, minlength=into.size).reshape(into.shape)
                else:
                    into[:, table.of_label[same] if table.labels > 1 else 0] += np.bincount(index, minlength=table.size)

        in_threads(add, [range(start, len(counts), PARTS) for start in range(min(PARTS, len(counts)))])


@dataclass(frozen=True)
class _Cut:
    """How a column is cut into cells. cells: int64 [codes], from 0."""

    column: int
    cells: I64
    size: int


@dataclass(frozen=True)
class _Table:
    """What is counted for some marginals of the same columns, int64 [size, labels].

    cuts: of the columns that are no label. of_label: int64 [labels], the cell of each; labels: how many cells.
    of: by the number of each marginal its cell of every cell, int64 [size * labels]; None where they are the same.
    """

    cuts: Sequence[_Cut]
    size: int
    of_label: I64
    labels: int
    of: Mapping[int, I64 | None]


class _Cuts:
    """Cuts that are known, so that those of the same cells are one; and how they lie in each other."""

    def __init__(self) -> None:
        self._cuts = dict[tuple[int, int], _Cut]()
        self._finer = dict[tuple[int, int, int], I64]()
        self._inside = dict[tuple[int, int], I64]()
        self._summed = dict[tuple[int, int], I64]()

    def cut(self, column: int, cells: I64) -> _Cut:
        key = (column, id(cells))
        if key not in self._cuts:
            self._cuts[key] = _Cut(column, cells, int(cells.max()) + 1)
        return self._cuts[key]

    def finer(self, column: int, one: I64, two: I64) -> I64:
        """The cells of codes that differ in one or the other."""
        key = (column, id(one), id(two))
        if one is two:
            return one
        if key not in self._finer:
            both = np.unique(one * (two.max() + 1) + two, return_inverse=True)[1]
            # where one lies within the other it is taken itself: what it counts needs no second look. Some of its
            # numbers may be those of no code, so they are counted
            same = (each for each in (one, two) if len(np.unique(each)) == both.max() + 1)
            self._finer[key] = next(same, both)
        return self._finer[key]

    def summed(self, size: int, labels: int) -> I64:
        """The cell of every cell of a table without its labels, int64 [size * labels]."""
        if (size, labels) not in self._summed:
            self._summed[size, labels] = np.arange(size).repeat(labels)
        return self._summed[size, labels]

    def inside(self, finer: _Cut, cells: I64) -> I64:
        """Which of these cells each cell of a finer cut lies in."""
        key = (id(finer), id(cells))
        if key not in self._inside:
            self._inside[key] = np.zeros(finer.size, np.int64)
            self._inside[key][finer.cells] = cells
        return self._inside[key]


def _table(of: Sequence[tuple[int, Marginal]], cuts: _Cuts) -> _Table:
    cells = dict[int, I64]()
    for _, marginal in of:
        for j, mine in zip(marginal.columns, marginal.cells, strict=True):
            cells[j] = cuts.finer(j, cells[j], mine) if j in cells else mine
    label = cuts.cut(LABEL, cells.pop(LABEL, NO_LABEL))
    found = [cuts.cut(j, mine) for j, mine in cells.items()]
    size = math.prod(cut.size for cut in found)
    inside = dict[int, I64 | None]()
    for at, marginal in of:
        own = dict(zip(marginal.columns, marginal.cells, strict=True))
        alike = LABEL not in marginal.columns[:-1] and all(cut.cells is own[cut.column] for cut in found)
        if alike and own.get(LABEL, NO_LABEL) is label.cells:
            inside[at] = None
        elif alike and LABEL not in own:
            inside[at] = cuts.summed(size, label.size)
        else:
            inside[at] = _cells_in(marginal, [*found, label], cuts)
    return _Table(found, size, label.cells, label.size, inside)


def _cells_in(marginal: Marginal, finer: Sequence[_Cut], cuts: _Cuts) -> I64:
    """The marginal's cell of every cell of a table that is cut like this, int64 [cells]."""
    steps, step = dict[int, int](), 1
    for j, size in zip(reversed(marginal.columns), reversed(marginal.shape), strict=True):
        steps[j], step = step, step * size
    own = dict(zip(marginal.columns, marginal.cells, strict=True))
    found = np.zeros(1, np.int64)
    for cut in finer:
        if cut.column in own:
            found = np.add.outer(found, cuts.inside(cut, own[cut.column]) * steps[cut.column]).ravel()
        else:
            found = found.repeat(cut.size)
    return found


def _narrow(size: int) -> type[np.int16] | type[np.int64]:
    """What holds the numbers of so many cells."""
    return np.int16 if size < 2**15 else np.int64


def counts_of(marginals: Sequence[Marginal], blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> I64:
    """As `Counter` counts them, once.

    marginals: each is counted by itself.
    blocks: (codes int32 [b, d], labels int64 [b]) of the records.
    """
    return Counter(marginals)(blocks)


def entries_of(marginals: Sequence[Marginal], codes: np.ndarray, labels: np.ndarray) -> I64:
    """The entries of `counts_of` that a row counts in, one of each marginal: int64 [n, marginals].

    marginals: as given to `counts_of`.
    codes: int32 [n, d].
    labels: int64 [n].
    """
    rows = np.concatenate([codes, labels[:, None]], axis=1, dtype=np.int32)
    starts = np.cumsum([0, *(marginal.size for marginal in marginals)])
    found = [start + cell_of(marginal, rows) for start, marginal in zip(starts, marginals, strict=False)]
    return np.stack(found, axis=1)
