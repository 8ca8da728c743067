"""Rows whose counts are those that are expected of a model: each takes one of its last states.

Rows that are drawn by themselves have sampling noise besides that of the answers: of 20,000 rows in 400 cells a total
variation of 0.05. What the model expects is known better, as the mean over several sweeps; so each row takes that of
its states with which the counts of all together come nearest to it. (Four tables, epsilon 1: the total variation of two
columns is 0.97 of what it was, as of five times as many rows; of one column 0.95. Epsilon 4, two tables: 0.94, 0.88.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from dpsyn.population import F32, I64

PASSES = 3  # through all rows; the first settles most
BATCHES = 256  # of the rows, those of which choose at once: more and smaller ones make no difference
MOST = 120  # pairs of columns that are looked at; of more, some by chance
BLOCK = 2**15  # rows that are chosen together, so that memory does not grow with their number


def thinned(states: Sequence[np.ndarray], cells: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Of each row one of its states, [n, d], so that the counts of every column and of pairs come near their means over
    all states.

    states: whole numbers [n, d] each.
    cells: of each column, above its largest number.
    rng: draws where the choice begins, and the order.
    """
    # a pair of more cells than rows says nothing
    pairs = [(a, b) for a, b in combinations(range(len(cells)), 2) if cells[a] * cells[b] <= BLOCK]
    if len(pairs) > MOST:
        pairs = [pairs[at] for at in np.sort(rng.choice(len(pairs), MOST, replace=False))]
    tables = [*((j,) for j in range(len(cells))), *pairs]
    found = states[0].copy()
    for start in range(0, len(found), BLOCK):
        part = np.stack([state[start : start + BLOCK] for state in states])
        order = rng.permutation(part.shape[1])
        chosen = _chosen(part[:, order], tables, cells, rng)
        found[start + order] = part[chosen, order]
    return found


def _chosen(
    states: np.ndarray, tables: Sequence[tuple[int, ...]], cells: Sequence[int], rng: np.random.Generator
) -> I64:
    """int64 [n]: which state each row takes. states: [k, n, d]."""
    k, n, _ = states.shape
    sizes = [int(np.prod([cells[j] for j in table])) for table in tables]
    starts = np.cumsum([0, *sizes])
    batches = []
    for batch in np.array_split(np.arange(n), min(n, BATCHES)):
        columns = np.ascontiguousarray(states[:, batch].transpose(2, 0, 1), np.int32)
        at = np.empty((k, len(batch), len(tables)), np.int32)
        for number, (table, start) in enumerate(zip(tables, starts.tolist(), strict=False)):
            first, *other = table
            mine = columns[first] if not other else columns[first] * cells[other[0]] + columns[other[0]]
            at[:, :, number] = mine + start
        batches.append((batch, at))
    counts = np.zeros(starts[-1])
    for _, at in batches:
        counts += np.bincount(at.ravel(), minlength=len(counts))
    mean = counts / k
    chosen: I64 = np.asarray(rng.integers(k, size=n), np.int64)
    # what one row more in a cell would add to the sum of squares, over what is expected there
    weights: F32 = (0.5 / np.sqrt(mean + 1)).astype(np.float32)
    cost: F32 = ((0.5 - mean) * 2 * weights).astype(np.float32)
    for batch, at in batches:
        np.add.at(cost, _own(at, chosen[batch]), 2 * weights[_own(at, chosen[batch])])
    for _ in range(PASSES):
        for batch, at in batches:
            own = _own(at, chosen[batch])
            np.subtract.at(cost, own, 2 * weights[own])
            chosen[batch] = cost[at].sum(2).argmin(0)
            own = _own(at, chosen[batch])
            np.add.at(cost, own, 2 * weights[own])
    return chosen


def _own(at: np.ndarray, chosen: I64) -> np.ndarray:
    """The cells of the states that were chosen, int32 [b * tables]. at: of all states, int32 [k, b, tables]."""
    own: np.ndarray = at[chosen, np.arange(at.shape[1])].ravel()
    return own
