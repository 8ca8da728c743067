"""Noisy votes -> the rows that survive, for the candidates of one label. Post-processing: no private data here.

All take (votes int64 [m], size, generator) and return rows int64 [size] in [0, m). Where no candidate has a positive
weight they choose uniformly: the votes say nothing, the budget is spent, and the run goes on.
"""

import numpy as np

BLOCK = 1024  # candidates whose distances to all others are held at once
FARTHEST = 1e15  # of an entry: the square of a larger one, summed, leaves float32


def proportional(votes: np.ndarray, size: int, rng: np.random.Generator, threshold: float = 0.0) -> np.ndarray:
    """PE (arXiv 2305.15560, algorithm 2): subtract the threshold, clip at zero, draw with replacement.

    votes: noisy, [n].
    size: rows that survive.
    rng: draws them.
    threshold: votes that are taken off each candidate.
    """
    weights = np.maximum(votes - max(threshold, 0.0), 0.0)
    return rng.choice(len(votes), size, p=_shares(weights))


def top(votes: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Aug-PE (2403.01749, 'rank'): the candidates with most votes, ties to the lowest row.

    With fewer candidates than rows the ranking is gone through again from its head.

    votes: noisy, [n].
    size: rows that survive.
    rng: not used.
    """
    ranking = np.argsort(-votes, kind="stable")
    return np.resize(ranking, size).astype(np.int64)


def balanced(votes: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """The noisy counts projected on the simplex of their own sum, then systematic resampling.

    The projection (Euclidean) is the non-negative vector nearest to the noisy one that keeps its mass, so noise on the
    many candidates without votes cancels instead of surviving as mass. Systematic resampling gives every candidate its
    share of the rows, up or down to the next whole number.

    votes: noisy, [n].
    size: rows that survive.
    rng: draws where the points begin.
    """
    shares = shares_of(votes.astype(np.float64))
    points = (np.arange(size) + rng.random()) / size
    return np.minimum(np.searchsorted(np.cumsum(shares), points, side="right"), len(votes) - 1)


def smoothed(votes: np.ndarray, vectors: np.ndarray, neighbours: int) -> np.ndarray:
    """Every candidate's noisy votes shared out among its nearest ones, itself first; float64 [m], the sum is kept.
    Where records are few, a candidate's own votes are lost in the noise, but those of a neighbourhood are not: noise
    averages out, and near candidates deserve alike. Two candidates are neighbours as often as either counts the other
    among its nearest: 0, 1 or 2 times. One whose vector is NaN, infinite or beyond 1e15 is nobody's neighbour.

    votes: int64 [m].
    vectors: float32 [m, d].
    neighbours: how many, itself among them; 1 or less: none but itself.
    """
    m, k = len(votes), min(neighbours, len(votes))
    if k <= 1:
        return votes.astype(np.float64)
    known = (np.abs(vectors) < FARTHEST).all(1)  # the others get no votes, so what they hold is noise
    if not known.all():
        shared = votes.astype(np.float64)
        shared[known] = smoothed(votes[known], vectors[known], neighbours)
        return shared
    squares = (vectors.astype(np.float64) ** 2).sum(1)
    near = np.empty((m, k), np.int64)
    for start in range(0, m, BLOCK):
        rows = slice(start, start + BLOCK)
        distances = squares - 2.0 * (vectors[rows] @ vectors.T)
        distances[np.arange(len(distances)), np.arange(m)[rows]] = -np.inf
        near[rows] = np.argpartition(distances, k - 1, axis=1)[:, :k]
    ties = k + np.bincount(near.ravel(), minlength=m)  # of each candidate with all, itself among them
    part = votes / ties
    return part[near].sum(1) + np.bincount(near.ravel(), np.repeat(part, k), minlength=m)


def shares_of(noisy: np.ndarray) -> np.ndarray:
    """Noisy counts, projected on the simplex of their own sum, as shares of it; float64 [m], sums to 1."""
    return _shares(project_on_simplex(noisy, float(noisy.sum())))


def project_on_simplex(values: np.ndarray, mass: float) -> np.ndarray:
    """The nearest point (L2) with non-negative entries that sum to a mass; all zeros for a mass of 0 or less. float64
    [m].

    values: float64 [m].
    mass: the sum of the result.
    """
    if mass <= 0:
        return np.zeros_like(values)
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - mass) / np.arange(1, len(values) + 1)
    level = excess[np.flatnonzero(falling > excess)[-1]]
    return np.maximum(values - level, 0.0)


def _shares(weights: np.ndarray) -> np.ndarray:
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1 / len(weights))
