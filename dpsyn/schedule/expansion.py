"""More rows from the final population, by varying it a little: post-processing, the guarantee stays as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from dpsyn.api import Degree
from dpsyn.errors import UserError
from dpsyn.population import I64, Bool, Population, concatenate, take
from dpsyn.randomness import row_seeds
from dpsyn.schedule import Keep, PublicSide

PART = 4096  # rows of a part, the unit that is kept when the work is interrupted


def expand(
    public: PublicSide, final: Population, rows: int, degree: Degree, keep: Keep, sizes: I64 | None = None
) -> Population:
    """Rows of the synthetic data: the final ones, each once, the rest variations of them; parents are rows of the final
    population.

    A row that was chosen m times has m shares of the variations. Without `sizes` row s is the same however many there
    are, so a longer expansion starts with a shorter one.

    public: what is not private.
    final: the last population.
    rows: of the result.
    degree: of the variations.
    keep: keeps parts that took long.
    sizes: rows of each label, int64 [l], which sum to `rows`; None: by the shares of the final population.

    Raises UserError for a label of which the final population has no row.
    """
    if sizes is None:
        parents, itself = np.resize(_by_turns(final.labels), rows), np.arange(rows) < len(final)
        which = ""
    else:
        parents, itself = _of_sizes(public, final, sizes)
        which = f" of sizes {hashlib.sha256(sizes.astype('<i8').tobytes()).hexdigest()[:16]}"
    parts = []
    for start in range(0, rows, PART):
        places = np.arange(start, min(start + PART, rows))
        name = f"{places[0]}-{places[-1]}{which}"
        parts.append(keep(name, lambda places=places: _part(public, final, parents, itself, places, degree)))  # type: ignore[misc]
    return joined(parts)


def joined(parts: Sequence[Population]) -> Population:
    """The rows of all parts of one iteration, in order.

    parts: one, or more.
    """
    return Population(
        parts[0].iteration,
        concatenate([part.samples for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.parents for part in parts]),
        np.concatenate([part.survivors for part in parts]),
    )


def _of_sizes(public: PublicSide, final: Population, sizes: I64) -> tuple[I64, Bool]:
    """The parents of `sizes[l]` rows of each label l, the labels in turn, and which of these rows are the parents
    themselves: each once, those that stand there for the first time before their copies."""
    first = _first_of_its_kind(final)
    parents, itself = [], []
    for label in np.flatnonzero(sizes).tolist():
        mine = np.flatnonzero(final.labels == label)
        if not len(mine):
            name = " | ".join(map(str, public.labels[label].values()))
            raise UserError(f"--labels {name}: expected labels of which the final population has rows. It has none.")
        mine = mine[np.argsort(~first[mine], kind="stable")]
        parents.append(np.resize(mine, sizes[label]))
        itself.append(np.arange(sizes[label]) < len(mine))
    order = _by_turns(np.repeat(np.flatnonzero(sizes), sizes[sizes > 0]))
    return np.concatenate(parents)[order], np.concatenate(itself)[order]


def _part(
    public: PublicSide, final: Population, parent_of: I64, is_itself: Bool, places: I64, degree: Degree
) -> Population:
    parents = parent_of[places]
    drawn = row_seeds(public.seed, final.iteration, "expand", int(places[-1]) + 1)[places]
    varied = public.api.vary(take(final.samples, parents), public.named(final.labels[parents]), degree, drawn)
    itself = is_itself[places] & _first_of_its_kind(final)[parents]
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
