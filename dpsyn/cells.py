"""Votes in subspaces: a record votes for the cell it lies in, in each of the subspaces that a release asks for.

Nearest-neighbour votes in the whole row space spread N votes thinly. Here a release asks for the counts of cells in
one column, one column with the label, two columns with the label; between releases rows vary for free, until their own
counts agree (dpsyn/cell_evolution.py). It is Private Evolution with cells as candidates.

    state = start(columns, labels, records)                    # start, ask, learn and draw: cell_evolution.py
    for release in plan(columns, labels, records, multiplier):
        question = ask(state, release)                         # public: made from noisy answers alone
        exact = counts_of(question, blocks)                    # the only look at private rows
        state = learn(state, question, noisy, sigma, rng)      # free, as all below
    codes, labels = draw(state, rows, rng)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

LABEL = -1  # the label, where a subspace names its columns

# One setting for all tables. Adult and Artificial Characters at epsilon 1, three seeds or more: with MARGINALS from
# 0.06 to 0.2, BY_LABEL 0.15 to 0.35, SCORES 0.03 to 0.1 and MASS 1 to 2 the results stay within a few thousandths of
# AUC and of total variation, and a hundredth of accuracy.
MARGINALS, BY_LABEL, SCORES = 0.12, 0.25, 0.05  # shares of the budget; tables get the rest
MASS = 1.5  # a cell of a table expects this many times its noise
FEW = 10  # tables that are all asked; of more pairs, half or four a column, whichever is less
MANY = 1000  # triples that are looked at, at most
ROUND = 0.6  # of the tables are chosen first; the others after these were learnt
BLOCK = 65536  # rows at a time, private or not

Kind = Literal["marginals", "by_label", "scores", "tables"]


@dataclass(frozen=True)
class Column:
    """What is public about a column of codes in [0, codes).

    ordered: neighbouring codes are alike (bins of a number), so that cells are runs of them.
    missing: the code of a missing value, outside the order.
    expected: float64 [codes without it], the share of each before anything is known, where there is an order; None: all
        alike.
    """

    codes: int
    ordered: bool
    missing: int | None = None
    expected: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Subspace:
    """A grid over some columns. cells: for each of them, int64 [codes]: the cell of every code, from 0."""

    columns: tuple[int, ...]
    cells: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(cells.max()) + 1 for cells in self.cells)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Release:
    """One look at private rows, settled before the first.

    moves: a record that is added or removed changes this many entries, by at most one each.
    share: of the budget: sigma = multiplier * sqrt(moves / share).
    cells: how many a subspace has, about: it is what the noise of the tables leaves room for.
    labelled: tables may be asked with the label; they are, where no score decides.
    columns: a table has at most this many, without the label.
    choose: how many of the scored tables are asked next.
    """

    kind: Kind
    moves: int
    share: float
    cells: float = math.inf
    labelled: bool = False
    columns: int = 2
    choose: int = 0


@dataclass(frozen=True)
class Question:
    """What a release asks. expected: for scores, the population's counts, int64 of each subspace's shape."""

    release: Release
    subspaces: tuple[Subspace, ...]
    expected: tuple[np.ndarray, ...] | None = None


def plan(
    columns: Sequence[Column], labels: int, records: int, multiplier: float, scores: bool = True
) -> tuple[Release, ...]:
    """The releases, from public numbers alone.

    records: the declared number of them.
    multiplier: the noise, in votes, of a single release of one vote that spends the whole budget.
    scores: False where a unit can move a score by more than one (a user with many rows): all pairs are asked, or none.
    """
    d, pairs = len(columns), math.comb(len(columns), 2)
    marginals, by_label = (MARGINALS, BY_LABEL) if labels > 1 else (2 * MARGINALS, 0.0)
    tables = 1 - marginals - by_label - SCORES
    room = records / (MASS * multiplier)

    triples = math.comb(d, 3) if labels == 1 and scores and math.comb(d, 3) <= MANY else 0
    if _noise_of_scores(multiplier, pairs + triples) > records / 20:
        triples = 0
    everything = pairs + triples
    limit = everything if everything <= FEW else min(max(FEW, pairs // 2), 4 * d)
    # the noise of so many tables leaves room for four cells in each label, or four in all
    with_label, without = (tables * (room / n) ** 2 for n in (4 * labels, 4))
    labelled = labels > 1 and with_label >= (min(limit, d) if scores else pairs)
    count = int(min(limit, with_label if labelled else without))
    candidates = pairs * (1 + labelled)
    scored = scores and count < everything and _noise_of_scores(multiplier, candidates) <= records / 4
    if not scored:
        candidates = pairs
        if count < everything:
            count = pairs if not scores and pairs <= (with_label if labelled else without) else 0
    if not count:
        marginals, by_label = marginals / (marginals + by_label), by_label / (marginals + by_label)

    releases = [Release("marginals", d + (labels > 1), marginals)]
    if labels > 1:
        releases.append(Release("by_label", d, by_label, room / math.sqrt(d / by_label), True))
    first = math.ceil(ROUND * count) if scored else min(pairs, count)
    columns_in_one = 2
    for n in filter(None, (first, count - first)):
        chosen = n < candidates
        share = tables * n / count + (0.0 if chosen else SCORES / 2)
        cells = room / math.sqrt(count / tables)
        if chosen:
            releases.append(Release("scores", candidates, SCORES / 2, cells, labelled, columns_in_one, n))
        releases.append(Release("tables", n, share, cells, labelled, columns_in_one))
        candidates, columns_in_one = candidates - n + triples, 3 if triples else 2
    rest = sum(release.share for release in releases)
    return tuple(replace(release, share=release.share / rest) for release in releases)


def counts_of(question: Question, blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The exact counts of all cells of all subspaces, to be sealed at once: int64 [entries].

    blocks: (codes int [b, d], labels int64 [b]) of private rows; memory does not depend on their number.
    """
    counts = [np.zeros(s.shape, np.int64) for s in question.subspaces]
    for codes, labels in blocks:
        for at in range(0, len(codes), BLOCK):
            part = slice(at, at + BLOCK)
            rows = np.concatenate([codes[part], labels[part, None]], axis=1, dtype=np.int32).T.copy().T
            for subspace, into in zip(question.subspaces, counts, strict=True):
                into += count(subspace, rows)
    return np.concatenate([c.ravel() for c in counts]) if counts else np.zeros(0, np.int64)


def places(question: Question, codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The entries of the answer that a row counts in, one of each subspace: int64 [n, subspaces]. Not for scores."""
    rows = np.concatenate([codes, labels[:, None]], axis=1, dtype=np.int32)
    starts = np.cumsum([0, *(subspace.size for subspace in question.subspaces)])
    found = [start + cell_of(subspace, rows) for start, subspace in zip(starts, question.subspaces, strict=False)]
    return np.stack(found, axis=1)


def cell_of(subspace: Subspace, rows: np.ndarray) -> np.ndarray:
    """The cell of every row, int64 [n], row-major. rows: codes (or atoms) int [n, d + 1], the label last."""
    index = np.zeros(len(rows), np.int64)
    for j, cells, size in zip(subspace.columns, subspace.cells, subspace.shape, strict=True):
        index = index * size + cells[rows[:, j]]
    return index


def count(subspace: Subspace, rows: np.ndarray) -> np.ndarray:
    """How many rows lie in each cell, int64 of the subspace's shape."""
    return np.bincount(cell_of(subspace, rows), minlength=subspace.size).reshape(subspace.shape)


def _noise_of_scores(multiplier: float, candidates: int) -> float:
    return multiplier * math.sqrt(candidates * 2 / SCORES)
