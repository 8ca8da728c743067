"""Votes in cells: which marginals are released, with which share of the budget, and how fine their cells are.

Nearest-neighbour votes in the whole row space spread N votes thinly. Here a record votes for the cell it lies in, in
each of the marginals that a release asks for: of one column, one column with the label, two columns with the label.
Between releases rows vary for free, until their own counts agree (`dpsyn/schedule/gibbs.py`). It is Private Evolution
with cells as candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dpsyn.schedule.binning import runs_of
from dpsyn.tables.codec import CodedColumn

# One setting for all tables. Adult and Artificial Characters at epsilon 1, three seeds or more: with MARGINALS from
# 0.06 to 0.2, BY_LABEL 0.15 to 0.35, SCORES 0.03 to 0.1 and MASS 1 to 2 the results stay within a few thousandths of
# AUC and of total variation, and a hundredth of accuracy.
MARGINALS, BY_LABEL, SCORES = 0.12, 0.25, 0.05  # shares of the budget; tables get the rest
MASS = 1.5  # expected count of a cell, in standard deviations of its noise
FEW = 10  # tables that are all asked; of more pairs, half or four a column, whichever is less
# Where noise is low, up to MORE times as many: those that leave each AMPLE cells in a label. At epsilon 4 the total
# variation of two columns became 0.78 of what it was on diamonds, 0.86 on California; of correlations, 0.58 and 0.69.
MORE, AMPLE = 2.5, 400
MANY = 1000  # triples that are looked at, at most
ROUND = 0.6  # of the tables are chosen first; the others after these were learnt

Kind = Literal["marginals", "by_label", "scores", "tables"]


@dataclass(frozen=True)
class CellRelease:
    """One release of counts of cells, fixed before the first is made.

    moves: a record that is added or removed changes this many entries, by at most one each.
    share: of the budget: sigma = multiplier * sqrt(moves / share).
    cells: target number of cells of a marginal, as many as the noise allows.
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


def plan(
    columns: Sequence[CodedColumn], labels: int, records: int, multiplier: float, scores: bool = True
) -> tuple[CellRelease, ...]:
    """The releases, from public numbers alone.

    columns: of the table, in codes.
    labels: how many, 1 for none.
    records: the declared number of them.
    multiplier: the noise, in votes, of a single release of one vote that spends the whole budget.
    scores: False where a unit can move a score by more than one (a user with many rows): all pairs are asked, or none.
    """
    d, pairs = len(columns), math.comb(len(columns), 2)
    marginals, by_label = (MARGINALS, BY_LABEL) if labels > 1 else (2 * MARGINALS, 0.0)
    tables = 1 - marginals - by_label - SCORES
    room = records / (MASS * multiplier)

    triples = math.comb(d, 3) if scores and math.comb(d, 3) <= MANY else 0
    if _noise_of_scores(multiplier, pairs * (1 + (labels > 1)) + triples) > records / 20:
        triples = 0
    everything = pairs + triples * (labels == 1)
    limit = everything if everything <= FEW else min(max(FEW, pairs // 2), 4 * d)
    # the noise of that many tables leaves room for four cells in each label, or four in all
    with_label, without = (tables * (room / n) ** 2 for n in (4 * labels, 4))
    labelled = labels > 1 and with_label >= (min(limit, d) if scores else pairs)
    count = int(min(limit, with_label if labelled else without))
    candidates = pairs * (1 + labelled)
    scored = scores and count < everything and _noise_of_scores(multiplier, candidates) <= records / 4
    if not scored:
        candidates = pairs
        if count < everything:
            count = pairs if not scores and pairs <= (with_label if labelled else without) else 0
    if scored:
        ample = tables * (room / AMPLE) ** 2 / labels
        count = max(count, min(int(ample), int(MORE * limit), pairs + triples))
    if not count:
        marginals, by_label = marginals / (marginals + by_label), by_label / (marginals + by_label)

    releases = [CellRelease("marginals", d + (labels > 1) + sum(runs_of(c) is not None for c in columns), marginals)]
    if labels > 1:
        releases.append(CellRelease("by_label", d, by_label, room / math.sqrt(d / by_label), True))
    first = min(pairs, math.ceil(ROUND * count) if scored else count)
    columns_in_one = 2
    for n in filter(None, (first, count - first)):
        chosen = n < candidates
        share = tables * n / count + (0.0 if chosen else SCORES / 2)
        cells = room / math.sqrt(count / tables)
        if chosen:
            releases.append(CellRelease("scores", candidates, SCORES / 2, cells, labelled, columns_in_one, n))
        releases.append(CellRelease("tables", n, share, cells, labelled, columns_in_one))
        candidates, columns_in_one = candidates - n + triples, 3 if triples else 2
    rest = sum(release.share for release in releases)
    return tuple(replace(release, share=release.share / rest) for release in releases)


def _noise_of_scores(multiplier: float, candidates: int) -> float:
    return multiplier * math.sqrt(candidates * 2 / SCORES)
