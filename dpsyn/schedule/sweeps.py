"""Gibbs sampling of coded rows: every column of every row is drawn again, given the row's other columns.

What a row becomes depends on the row, the tables and its own random numbers, never on blocks or threads. In a block
weights lie as [atoms, rows], so that each step along the atoms is one operation on many rows: numpy has no fast
maximum, sum or search along a short last axis. (Row by row the same arithmetic takes 4 to 5 times as long.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.population import F32, I64
from dpsyn.threads import in_threads

BLOCK = 8192  # rows at a time, whose weights stay in cache
JOINT = 16  # terms become one where it has this many times fewer cells than there are rows
MOST_JOINT = 4096  # and no more than these, so that it stays in cache
MANY = 16384  # of fewer rows to look up the terms takes less time than to make them one


@dataclass(frozen=True)
class Term:
    """What some columns say about another one.

    cells: by column int64 [codes], the cell of every code, from 0. weights: float32 [their cells ..., atoms].
    """

    cells: Mapping[int, I64]
    weights: F32


@dataclass(frozen=True)
class _Lookup:
    """A term as it is looked up. index: by column, int64 [codes]; their sum is the row of table, float32 [cells, n]."""

    index: Sequence[tuple[int, I64]]
    table: F32

    def __call__(self, rows: np.ndarray) -> F32:
        """float32 [b, n]. rows: [d, b]."""
        at = np.zeros(rows.shape[1], np.int64)
        for j, of_code in self.index:
            at += of_code.take(rows[j])
        return self.table.take(at, 0)


@dataclass(frozen=True)
class Redraw:
    """How one column is drawn. terms: their sum is the log of the weight of every atom; or, where it is one alone,
    cumulative weights.
    """

    column: int
    terms: Sequence[_Lookup]


def redraw(column: int, terms: Sequence[Term], rows: int) -> Redraw:
    """How a column is drawn, given the others.

    column: which one.
    terms: one or more, which are added up in this order.
    rows: how many will be drawn.
    """
    first, *others = terms
    while others and rows >= MANY and (both := _joined(first, others[0], min(rows // JOINT, MOST_JOINT))) is not None:
        first, others = both, others[1:]
    if not others:
        shape = first.weights.shape
        sums = np.ascontiguousarray(_cumulative(first.weights.reshape(-1, shape[-1])).T)
        return Redraw(column, [_lookup(Term(first.cells, sums.reshape(shape)))])
    return Redraw(column, [_lookup(term) for term in (first, *others)])


def sweep(
    redraws: Sequence[Redraw],
    rows: np.ndarray,
    rng: np.random.Generator,
    times: int = 1,
    part: tuple[int, int] | None = None,
) -> None:
    """Draws all columns of rows, whole numbers [n, d], one after the other, and that so many times. Changes rows.

    redraws: of all columns, in this order.
    rows: whole numbers [n, d]; they change.
    rng: of PCG64. It is left where it would be after a float32 for every row of every column, in this order.
    times: how often all columns are drawn.
    part: the first of the rows that change, a multiple of BLOCK, and the one after the last: they become what they
        become of all rows. None: all.
    """
    n = len(rows)
    first, end = part or (0, n)
    begin = rng.bit_generator.state

    def block(start: int) -> None:
        some = rows[start : min(start + BLOCK, end)]
        mine = np.ascontiguousarray(some.T)
        own = np.random.Generator(np.random.PCG64())
        own.bit_generator.state = begin
        skip(own, start)
        for _ in range(times):
            for each in redraws:
                chances: F32 = own.random((mine.shape[1],), dtype=np.float32)
                skip(own, n - mine.shape[1])
                mine[each.column] = _drawn(each, mine, chances)
        some[:] = mine.T

    in_threads(block, range(first, end, BLOCK))
    skip(rng, n * len(redraws) * times)


def skip(rng: np.random.Generator, floats: int) -> None:
    """As if some float32 were drawn: two of each 64 bits.

    rng: of PCG64; it changes.
    floats: how many.
    """
    state = dict(rng.bit_generator.state)
    if floats and state["has_uint32"]:
        rng.bit_generator.state = state | {"has_uint32": 0}
        floats -= 1
    if floats:
        rng.bit_generator.advance(floats // 2)  # type: ignore[attr-defined]
        rng.random(floats % 2, dtype=np.float32)


def _drawn(redraw: Redraw, rows: np.ndarray, chances: F32) -> np.ndarray:
    """An atom for every row, uint8 [b]. chances: float32 [b] in [0, 1)."""
    first, *others = redraw.terms
    weights = first(rows)
    for term in others:
        weights += term(rows)
    sums = _cumulative(weights) if others else np.ascontiguousarray(weights.T)
    below = sums[:-1] <= chances * sums[-1]
    return np.add.reduce(below.view(np.uint8), axis=0, dtype=np.uint8)


def _cumulative(weights: F32) -> F32:
    """float32 [atoms, n], of logs of weights, [n, atoms]."""
    sums = np.array(weights.T, order="C")
    sums -= sums.max(0)
    np.exp(sums, out=sums)
    for at in range(1, len(sums)):  # np.cumsum adds row by row, which takes ten times as long
        sums[at] += sums[at - 1]
    return sums


def _lookup(term: Term) -> _Lookup:
    *shape, n = term.weights.shape
    steps = [math.prod(shape[at + 1 :]) for at in range(len(shape))]
    index = [(j, cells * step) for (j, cells), step in zip(term.cells.items(), steps, strict=True)]
    return _Lookup(index, np.ascontiguousarray(term.weights.reshape(-1, n)))


def _joined(one: Term, two: Term, most: int) -> Term | None:
    """Their sum as a term of all their columns; None where that has more cells than `most`."""
    sizes = [dict(zip(term.cells, term.weights.shape, strict=False)) for term in (one, two)]
    columns = list(sizes[0] | sizes[1])
    if math.prod(max(of.get(j, 1) for of in sizes) for j in columns) > most:
        return None
    cells, of_one, of_two = dict[int, I64](), list[I64](), list[I64]()
    for j in columns:
        a, b = (term.cells.get(j, np.zeros(1, np.int64)) for term in (one, two))
        size = sizes[1].get(j, 1)
        both = np.bincount(a * size + b) > 0
        cells[j] = (np.cumsum(both) - 1)[a * size + b]
        pairs = np.flatnonzero(both)
        of_one.append(pairs // size)
        of_two.append(pairs % size)
        if math.prod(map(len, of_one)) > most:
            return None
    return Term(cells, _spread(one, cells, of_one) + _spread(two, cells, of_two))


def _spread(term: Term, cells: Mapping[int, I64], of_cell: Sequence[I64]) -> F32:
    """The term's weights by the cells of more columns. of_cell: for each of them, which cell of the term a cell is."""
    order = [list(term.cells).index(j) for j in cells if j in term.cells]
    weights = term.weights.transpose(*order, len(order))
    for at, j in enumerate(cells):
        if j not in term.cells:
            weights = np.expand_dims(weights, at)
    return weights[np.ix_(*of_cell)]
