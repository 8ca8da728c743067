"""Votes per privacy unit, and the seal on exact counts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NoReturn

import numpy as np

from dpsyn.population import I64
from dpsyn.privacy.budget import GRID

MANY = 2**21  # votes of one user for one candidate: the square of more of them, times GRID^2, leaves 64 bits


class Votes:
    """Exact counts, sealed: they cannot be printed, copied, compared, pickled or turned into an array by accident.

    Only the ledger opens them, and only to add noise, once it has compared what one unit can move with what is charged.

    moves: entries that a record which is added or removed changes, by at most one each; 1 where all votes of a user
        have a joint L2 norm of at most one.
    grid: they are counted in whole 1/grid.

    >>> votes = Votes(np.array([41, 0, 7]), moves=1, grid=1)
    >>> votes
    Votes(sealed)
    >>> list(votes)
    Traceback (most recent call last):
    TypeError: votes are sealed: exact counts leave only through the ledger, with noise
    """

    __slots__ = ("__counts", "grid", "moves")

    def __init__(self, counts: I64, moves: int, grid: int) -> None:
        self.__counts = counts
        self.moves, self.grid = moves, grid

    def __repr__(self) -> str:
        return "Votes(sealed)"

    def __sealed(self, *_: object) -> NoReturn:
        raise TypeError("votes are sealed: exact counts leave only through the ledger, with noise")

    __array__ = __iter__ = __len__ = __getitem__ = __reduce_ex__ = __reduce__ = __sealed
    __copy__ = __deepcopy__ = __eq__ = __bool__ = __sealed
    __hash__ = None  # type: ignore[assignment]


def unseal(votes: Votes) -> I64:
    """The exact counts, int64 [n]. Called by `privacy/ledger.py` alone; a test watches."""
    counts: I64 = votes._Votes__counts  # type: ignore[attr-defined]
    return counts


def count_by_record(choices: Iterable[I64], n: int) -> I64:
    """int64 [n], exact: one vote for each chosen candidate.

    choices: int64 [b, k] a block of records, rows in [0, n).
    n: candidates.
    """
    counts, cast = np.zeros(n, np.int64), 0
    for rows in choices:
        counts += np.bincount(rows.ravel(), minlength=n)
        cast += rows.size
    assert counts.sum() == cast, "votes were lost or counted twice"
    return counts


def count_by_user(choices: Iterable[tuple[I64, I64]], n: int) -> I64:
    """int64 [n], exact, in 1/GRID: each user's votes over *all* labels are one vector, scaled to an L2 norm of at most
    one.

    choices: (units int64 [b], rows int64 [b, k]); a unit of -1 has no id and casts no vote. Integers throughout:
        floor(GRID * c / |c|) = isqrt(GRID^2 c^2 // |c|^2).
    n: candidates.
    """
    pairs = [
        np.stack([np.repeat(units[known], rows.shape[1]), rows[known].ravel()])
        for units, rows in choices
        for known in [units >= 0]
    ]
    counts = np.zeros(n, np.int64)
    if not pairs or not sum(part.shape[1] for part in pairs):
        return counts
    (users, rows), times = np.unique(np.concatenate(pairs, axis=1), axis=1, return_counts=True)
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    sizes = np.diff(np.append(starts, len(users)))
    square_norms = np.repeat(np.add.reduceat(times**2, starts), sizes)
    squares = np.arange(GRID + 1, dtype=np.int64) ** 2
    with np.errstate(over="ignore"):
        scaled = np.searchsorted(squares, GRID**2 * times**2 // square_norms, side="right") - 1
    for at in np.flatnonzero(times > MANY):
        scaled[at] = math.isqrt(GRID**2 * int(times[at]) ** 2 // int(square_norms[at]))
    assert (np.add.reduceat(scaled**2, starts) <= GRID**2).all(), "a user has more than one vote"
    np.add.at(counts, rows, scaled)
    return counts
