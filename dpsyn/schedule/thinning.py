"""Rows whose counts are those that are expected of a model: each takes one of its last states.

Rows that are drawn by themselves have sampling noise besides that of the answers: of 20,000 rows in 400 cells a total
variation of 0.05. What the model expects is known better, as the mean over several sweeps; so each row takes that of
its states with which the counts of all together come nearest to it. (Four tables, epsilon 1: the total variation of two
columns is 0.97 of what it was, as of five times as many rows; of one column 0.95. Epsilon 4, two tables: 0.94, 0.88.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np

from dpsyn.population import F32, I64

PASSES = 3  # through all rows; the first settles most
BATCHES = 256  # of the rows, those of which choose at once: more and smaller ones make no difference
MOST = 120  # pairs of columns that are looked at; of more, some by chance
BLOCK = 2**15  # rows that are chosen together, so that memory does not grow with their number


def thinned(
    blocks: Iterable[Sequence[np.ndarray]], cells: Sequence[int], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Of each row one of its states, [b, d] of each block, so that the counts of every column and of pairs in it come
    near their means over all states.

    blocks: the states of some rows, up to BLOCK, whole numbers [b, d] each. They are drawn one after the other.
    cells: of each column, above its largest number.
    rng: draws where the choice begins, and the order.
    """
    # a pair of more cells than rows says nothing
    pairs = [(a, b) for a, b in combinations(range(len(cells)), 2) if cells[a] * cells[b] <= BLOCK]
    if len(pairs) > MOST:
        pairs = [pairs[at] for at in np.sort(rng.choice(len(pairs), MOST, replace=False))]
    tables = [*((j,) for j in range(len(cells))), *pairs]
    for states in blocks:
        part = np.stack(states, 1)
        order = rng.permutation(len(part))
        chosen = _chosen(part[order], tables, cells, rng)
        found = np.empty_like(states[0])
        found[order] = part[order, chosen]
        yield found


def _chosen(
    states: np.ndarray, tables: Sequence[tuple[int, ...]], cells: Sequence[int], rng: np.random.Generator
) -> I64:
    """int64 [n]: which state each row takes. states: [n, k, d]."""
    n, k, _ = states.shape
    sizes = [math.prod(cells[j] for j in table) for table in tables]
    starts = np.cumsum([0, *sizes])
    parts = max(1, min(n, BATCHES))
    ends = [part * (n // parts) + min(part, n % parts) for part in range(parts + 1)]
    batches = list(map(slice, ends, ends[1:]))
    # few bytes of each; numpy looks things up by 8, which lie in one place that stays in cache
    held = np.empty((n, k, len(tables)), np.min_scalar_type(max(sizes)))
    room, counts = np.empty((ends[1], k, len(tables)), np.int64), np.zeros(starts[-1], np.int64)
    for batch in batches:
        at = _cells_of(states[batch], tables, cells)
        held[batch] = at
        at += starts[:-1]
        counts += np.bincount(at.ravel(), minlength=len(counts))
    mean = counts / k
    chosen: I64 = np.asarray(rng.integers(k, size=n), np.int64)
    # what one row more in a cell would add to the sum of squares, over what is expected there
    weights: F32 = (0.5 / np.sqrt(mean + 1)).astype(np.float32)
    cost: F32 = ((0.5 - mean) * 2 * weights).astype(np.float32)
    moved: F32 = 2 * weights
    for turn in range(PASSES + 1):
        for batch in batches:
            at = np.add(held[batch], starts[:-1], out=room[: batch.stop - batch.start])
            if turn:
                own = _own(at, chosen[batch])
                np.subtract.at(cost, own, _of(moved, own))
                chosen[batch] = _of(cost, at).sum(2).argmin(1)
            own = _own(at, chosen[batch])
            np.add.at(cost, own, _of(moved, own))
    return chosen


def _cells_of(states: np.ndarray, tables: Sequence[tuple[int, ...]], cells: Sequence[int]) -> I64:
    """Which cell of each table each state lies in, int64 [b, k, tables]. states: [b, k, d], its columns the first
    tables."""
    columns = states.astype(np.int64)
    one, two = (np.array([table[at] for table in tables[len(cells) :]], np.int64) for at in (0, 1))
    pairs = columns.take(one, 2, mode="clip") * np.array(cells)[two] + columns.take(two, 2, mode="clip")
    return np.concatenate([columns, pairs], 2)


def _own(at: I64, chosen: I64) -> I64:
    """The cells of the states that were chosen, int64 [b * tables]. at: of all states, int64 [b, k, tables]."""
    own: I64 = at[np.arange(len(at)), chosen].ravel()
    return own


def _of(values: F32, at: I64) -> F32:
    """values[at], in 0.3 of the time: all of the places exist, so that numpy need not look for others first."""
    found: F32 = np.take(values, at, out=np.empty(at.shape, np.float32), mode="clip")
    return found
