"""Who descends from whom: founders and their shares, and the ancestors of the rows that were voted for most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.population import F64, I64
from dpsyn.report.facts import LOOKED_AT, Lineage, Released, some_of

FOUNDERS, TREES, LINKS = 12, 10, 8


@dataclass(frozen=True)
class Stream:
    """founders: rows of iteration 0 with most descendants in the last iteration, int64 [k]. shares: float64 [k + 1,
    iterations]: of each iteration's rows, how many descend from each; the last row is all others. distinct: founders
    with any descendants, a number an iteration."""

    iterations: tuple[int, ...]
    founders: I64
    shares: F64
    distinct: tuple[int, ...]


@dataclass(frozen=True)
class Link:
    """A row of an iteration, and its noisy votes there; None where it was never voted on."""

    iteration: int
    row: int
    votes: float | None


def unbroken(lineages: Sequence[Lineage]) -> Sequence[Lineage]:
    """From iteration 0 on, as long as every row has a parent in the iteration before. None of tables made of cells."""
    found: list[Lineage] = []
    for t, each in enumerate(lineages):
        inside = t == 0 or (
            len(each.parents) and each.parents.min() >= 0 and each.parents.max() < len(found[-1].labels)
        )
        if each.iteration != t or not inside:
            break
        found.append(each)
    return found


def stream(lineages: Sequence[Lineage]) -> Stream | None:
    """None where there is no descent to show."""
    known = unbroken(lineages)
    if len(known) < 2:
        return None
    ancestors = [np.arange(len(known[0].labels))]
    for each in known[1:]:
        ancestors.append(ancestors[-1][each.parents])
    counts = np.bincount(ancestors[-1], minlength=len(ancestors[0]))
    founders = np.argsort(-counts, kind="stable")[:FOUNDERS]
    founders = founders[counts[founders] > 0]
    shares = np.zeros((len(founders) + 1, len(known)))
    for t, mine in enumerate(ancestors):
        of_each = np.bincount(mine, minlength=len(counts))[founders] / len(mine)
        shares[:-1, t], shares[-1, t] = of_each, max(0.0, 1 - of_each.sum())
    distinct = tuple(len(np.unique(mine)) for mine in ancestors)
    return Stream(tuple(each.iteration for each in known), founders, shares, distinct)


def votes_of(released: Released, iteration: int, row: int) -> float | None:
    """The noisy votes of a row; None where it was not voted on.

    released: what the run released.
    iteration: of the row.
    row: its number.
    """
    receipt = released.votes.get(iteration + 1)
    return None if receipt is None else float(receipt.votes[row]) / receipt.charge.grid


def trees(released: Released) -> list[list[Link]]:
    """Of the rows with the most votes in the last vote, each with its ancestors, from iteration 0 on. A row that stayed
    as it was is named once, where it came about."""
    known = unbroken(released.lineages)
    last = max((t for t in released.votes if 1 <= t <= len(known)), default=0)
    if last == 0:
        return []
    found, seen = [], set[int]()
    for row in np.argsort(-released.votes[last].votes, kind="stable").tolist():
        chain, founder = _chain(released, known[:last], row)
        if founder not in seen:
            seen.add(founder)
            found.append(chain)
        if len(found) == TREES:
            break
    return found


def _chain(released: Released, known: Sequence[Lineage], row: int) -> tuple[list[Link], int]:
    """Up from a row of the last of these, and the row of iteration 0 where it ends."""
    links = []
    for each in reversed(known):
        if not (each.iteration and each.survivors[row]):
            links.append(Link(each.iteration, row, votes_of(released, each.iteration, row)))
        if each.iteration:
            row = int(each.parents[row])
    links.reverse()
    middle = np.unique(np.linspace(0, len(links) - 1, min(LINKS, len(links))).round().astype(int))
    return [links[i] for i in middle], row


def unchanged(released: Released) -> tuple[int, float] | None:
    """The last iteration that has variations, and what share of them are their parents: a variation that got no answer
    of its own is. None where there are no variations.

    released: what the run released.
    """
    known = unbroken(released.lineages)
    for each in reversed(known[1:]):
        varied = np.flatnonzero(~each.survivors)
        if len(varied):
            rows = varied[some_of(len(varied), LOOKED_AT[released.kind])]
            mine = released.run.load(each.iteration, rows=rows).samples.content
            parents = released.run.load(each.iteration - 1, rows=each.parents[rows]).samples.content
            same = sum(np.array_equal(one, other) for one, other in zip(mine, parents, strict=True))
            return each.iteration, same / len(rows)
    return None
