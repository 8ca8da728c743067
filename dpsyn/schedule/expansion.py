"""More rows from the final population, by varying it a little: post-processing, the guarantee stays as it is."""

from __future__ import annotations

import numpy as np

from dpsyn.api import Degree
from dpsyn.population import Population, concatenate, take
from dpsyn.randomness import row_seeds
from dpsyn.schedule import Keep, PublicSide

PART = 4096  # rows of a part, the unit that is kept when the work is interrupted


def expand(public: PublicSide, final: Population, rows: int, degree: Degree, keep: Keep) -> Population:
    """Rows of the synthetic data: the final ones, each once, the rest variations of them; parents are rows of the final
    population.

    A row that was chosen m times has m shares of the variations. Row s is the same however many there are, so a longer
    expansion starts with a shorter one.

    public: what is not private.
    final: the last population.
    rows: of the result.
    degree: of the variations.
    keep: keeps parts that took long.
    """
    order = _by_turns(final.labels)
    parts = []
    for start in range(0, rows, PART):
        places = np.arange(start, min(start + PART, rows))
        name = f"{places[0]}-{places[-1]}"
        parts.append(keep(name, lambda places=places: _part(public, final, order, places, degree)))  # type: ignore[misc]
    return Population(
        final.iteration,
        concatenate([part.samples for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.parents for part in parts]),
        np.concatenate([part.survivors for part in parts]),
    )


def _part(public: PublicSide, final: Population, order: np.ndarray, places: np.ndarray, degree: Degree) -> Population:
    parents = order[places % len(order)]
    drawn = row_seeds(public.seed, final.iteration, "expand", int(places[-1]) + 1)[places]
    varied = public.api.vary(take(final.samples, parents), public.named(final.labels[parents]), degree, drawn)
    itself = (places < len(order)) & _first_of_its_kind(final)[parents]
    both = concatenate([varied, take(final.samples, parents)])
    samples = take(both, np.arange(len(places)) + np.where(itself, len(places), 0))
    return Population(final.iteration, samples, final.labels[parents], parents, final.survivors[parents] & itself)


def _first_of_its_kind(final: Population) -> np.ndarray:
    """bool [n]: False for a survivor that stands there again."""
    first = np.ones(len(final), bool)
    again = np.flatnonzero(final.survivors)
    first[again] = False
    first[again[np.unique(final.parents[again], return_index=True)[1]]] = True
    return first


def _by_turns(labels: np.ndarray) -> np.ndarray:
    """Row numbers, the labels in turn, so that any first part of them has every label's share."""
    rank = np.empty(len(labels), np.float64)
    for label in np.unique(labels):
        mine = labels == label
        rank[mine] = (np.arange(mine.sum()) + 0.5) / mine.sum()
    return np.lexsort((labels, rank))
