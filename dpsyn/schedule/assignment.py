"""Which text fits which row: by noisy sums of the texts of every cell of every column, then by one assignment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpsyn.population import F32, F64, I64, Array
from dpsyn.privacy.nearest import distinct
from dpsyn.privacy.query import Answer, EmbeddingSums
from dpsyn.schedule import gibbs
from dpsyn.schedule.start import discriminants, taken_as, turned
from dpsyn.tables.schema import Schema

CELLS = 12  # of a column, for each of which texts are summed up
TRUST = 1.0  # in a model that was asked for a text of this cell: as much as one that is e times as likely of it
PAIRS = 2 * 10**7  # of row and candidate that are weighed at once, at most
AT_ONCE = 1000  # rows that are given their texts together


def cells_of(
    schema: Schema, state: gibbs.State, codes: Array, labels: I64, count: int
) -> tuple[list[tuple[int, I64]], list[I64]]:
    """For each column of codes, and for the labels, (column, cells int64 [codes, labels]), and the cell of each row,
    int64 [n].

    schema: of the rows.
    state: what is known of them by noisy counts.
    codes: int32 [n, columns], of the rows.
    labels: int64 [n].
    count: how many labels are declared.
    """
    found, of_rows = [], []
    for j, nested in enumerate(state.bins):
        cells = nested[min(CELLS, len(nested)) - 1]
        if cells.max() > 0:
            found.append((j, np.repeat(cells[:, None], count, axis=1).astype(np.int64)))
            of_rows.append(cells[codes[:, j]])
    for name in schema.label_columns:
        values = schema.columns[name].codes_of(_label_values(schema, name, count))
        found.append((0, np.repeat(values[None, :], len(state.bins[0][-1]), axis=0)))
        of_rows.append(values[labels])
    if not found:  # all records are alike
        return [(0, np.zeros((len(state.bins[0][-1]), count), np.int64))], [np.zeros(len(codes), np.int64)]
    return found, of_rows


def _label_values(schema: Schema, name: str, count: int) -> Array:
    """The value of a label column in each label."""
    content = np.empty(count, schema.dtype)
    schema.with_labels(content, np.arange(count))
    return content[name]


def fits_of(scores: Sequence[F64], of_rows: Sequence[I64]) -> list[F64]:
    """For each column the log of the chance that a candidate's texts are of each cell, float64 [n, cells].

    Cells of many rows are likelier (measured, yelp at epsilon 1, three seeds: category .68 to .71, see docs/log.md).
    scores: of each column how well they fit each cell, float64 [n, cells].
    of_rows: of each column the cell of each row, int64 [rows].
    """
    found = []
    for each, cell in zip(scores, of_rows, strict=True):
        likely = each + np.log1p(np.bincount(cell, minlength=each.shape[1]))
        likely -= likely.max(1, keepdims=True)
        found.append(likely - np.log(np.exp(likely).sum(1, keepdims=True)))
    return found


def scores_of(vectors: F32, query: EmbeddingSums, answer: Answer) -> list[F64]:
    """For each column how well each candidate fits each cell, by one column of texts, float64 [n, cells].

    vectors: float32 [n, d], of the candidates.
    query: that was asked about the records' vectors.
    answer: to it.
    """
    if len(distinct(vectors)) < 2:  # of several columns of texts one may be the same for all: it fits every cell alike
        return [np.zeros((len(vectors), size)) for size in query.sizes]
    sums, counts, *noise = query.told(answer)
    candidates, found, start = turned(taken_as(vectors, query)), list[F64](), 0
    for size in query.sizes:
        mine = slice(start, start + size)
        found.append(discriminants(*candidates, sums[mine], counts[mine], *noise))
        start += size
    return found


def assigned(fits: Sequence[F64], of_rows: Sequence[I64], own: I64 | None, rng: np.random.Generator) -> I64:
    """int64 [n]: a candidate for each row, each as seldom as can be, so that together they fit best.

    fits: of each column, float64 [m, cells].
    of_rows: of each column the cell of each row, int64 [n].
    own: int64 [m], the row that each candidate was made for; None: for none.
    rng: the order in which rows are given theirs.
    """
    from scipy.optimize import linear_sum_assignment

    n, m = len(of_rows[0]), len(fits[0])
    chosen, left = np.empty(n, np.int64), np.arange(m)
    order, step = rng.permutation(n), min(AT_ONCE, max(1, PAIRS // m))
    while len(order):
        rows, order = np.split(order, [min(step, len(left))])
        total = np.zeros((len(rows), len(left)))
        for fit, cell in zip(fits, of_rows, strict=True):
            total += fit[left][:, cell[rows]].T
            if own is not None:
                total += TRUST * (cell[own[left]] == cell[rows][:, None])
        at, which = linear_sum_assignment(total, maximize=True)
        chosen[rows[at]] = left[which]
        left = np.delete(left, which) if len(which) < len(left) else np.arange(m)
    return chosen
