"""The first population: fresh samples; or chosen among them by noisy sums of embeddings, one release before the votes.

A vote says which candidate is nearest to a record, and where a label has few records it is lost in the noise. The sum
of a label's vectors is one vector at the noise of one vote: it says where the label lies. Measured: yelp's 50 labels
of 3 to 1,327 reviews, epsilon 1, a pool of 5,000 texts, see docs/log.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from dpsyn.errors import UserError, invalid
from dpsyn.population import F32, F64, I64, Population, take
from dpsyn.privacy.budget import SUMS_GRID, Release
from dpsyn.privacy.nearest import distinct
from dpsyn.privacy.query import Answer, EmbeddingSums
from dpsyn.randomness import row_seeds
from dpsyn.schedule import Ask, Facts, PublicSide

TOLD = 0.5  # of its noise: a signal below tells little
FEWEST = 5.0  # deviations of its noise, below which a label's count is not believed: what divides its sum
ROUNDS = 50  # of the estimate of how far labels lie apart
LENGTH = 0.3  # of a label's mean vector, about, as sums take it: yelp 0.33, WordNet's glosses 0.32, CIFAR-10 0.36
ALIKE = 16  # directions on either side, next larger and smaller in variance, that labels lie about as far apart in


def begin(public: PublicSide, size: int) -> Population:
    """Iteration 0: fresh samples, as many a label as its share.

    public: what is not private.
    size: rows.
    """
    sizes = split(size, public.facts.shares)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    samples = public.api.generate(public.named(labels), row_seeds(public.seed, 0, "generate", len(labels)))
    return Population(0, samples, labels, np.full(len(labels), -1), np.zeros(len(labels), bool))


def split(size: int, shares: np.ndarray) -> np.ndarray:
    """A number in whole parts by share, the largest remainders first; int64 [l], which sums to it.

    size: rows.
    shares: float64 [l], sum to 1.
    """
    exact = size * shares
    parts = np.floor(exact + 1e-9).astype(np.int64)
    rest = np.argsort(-(exact - parts), kind="stable")[: size - parts.sum()]
    parts[rest] += 1
    return parts


def sums_release(facts: Facts, others: Sequence[Release]) -> Release:
    """The release of `chosen_by_sums`.

    facts: public ones about the settings.
    others: releases of the votes that follow; without any it spends the whole budget.
    """
    part = facts.privacy.sums_budget
    share = sum(release.share for release in others) * part / (1 - part) if others else 1.0
    return Release("embedding sums", 1, share, grid=SUMS_GRID)


def signal_of_sums(facts: Facts, deviation: float) -> float | None:
    """About how far a label's sum stands above its noise, by public numbers alone; None where they are not declared.

    facts: public ones about the data.
    deviation: standard deviation of the noise of the release, in records.
    """
    if facts.records is None:
        return None
    return LENGTH * facts.records / int((facts.shares > 0).sum()) / deviation if deviation else math.inf


def warnings_of_sums(facts: Facts, deviation: float) -> Iterable[str]:
    """What `plan` says of a release of sums that will tell little.

    facts: public ones about the data.
    deviation: standard deviation of its noise, in records.
    """
    signal = signal_of_sums(facts, deviation)
    if signal is not None and signal < TOLD:
        yield (
            f"noisy sums of embeddings will be mostly noise (signal to noise about {signal:.2f} for a label of mean "
            "size): fewer labels, a larger epsilon"
        )


def check_candidates(candidates: int | None, rows: int) -> None:
    """Raises UserError where there are fewer candidates than rows to choose.

    candidates: `schedule.candidates`; None: the first population is not chosen.
    rows: of the first population.
    """
    if candidates is not None and candidates < rows:
        raise invalid("schedule.candidates", candidates, f"at least the rows of the first population ({rows})")


def chosen_by_sums(public: PublicSide, ask: Ask, release: int, candidates: int, rows: int) -> Population:
    """Iteration 0: of fresh samples those that fit their labels best, by noisy sums of embeddings.

    public: what is not private.
    ask: the only way to private records.
    release: its number.
    candidates: fresh samples.
    rows: of the population.

    Raises UserError where the embedding does not tell the candidates apart.
    """
    fresh = begin(public, candidates)
    vectors = public.embed(fresh.samples)
    known = distinct(vectors)
    own = fresh.labels[known] if public.labelled else None
    sizes = split(rows, public.facts.shares)
    if len(known) < 2 or (own is not None and not np.isin(np.flatnonzero(sizes), own).all()):
        expected = "candidates of every label whose vectors are finite and not all the same"
        raise UserError(f"embedding: expected {expected}. The embedding does not fit the data.")
    query = sums_about(vectors[known], len(public.labels), public.facts.privacy.adjacency == "replace")
    scores = scores_of(vectors[known], query, ask(release, query))
    taken, labels = nearest_to_label(scores + prior(sizes), sizes, own)
    samples = take(fresh.samples, known[taken])
    return Population(0, samples, labels, np.full(len(labels), -1), np.zeros(len(labels), bool))


def sums_about(vectors: F32, labels: int, replaceable: bool) -> EmbeddingSums:
    """The query for some candidates: from their mean, in units of their median distance from it.

    vectors: float32 [n, d], of the candidates.
    labels: how many.
    replaceable: whether neighbours differ by a record that is replaced.
    """
    centre = vectors.mean(0, dtype=np.float64)
    radius = float(np.median(np.linalg.norm(vectors - centre, axis=1)))
    return EmbeddingSums(labels, centre.astype(np.float32), radius or 1.0, replaceable)


def scores_of(vectors: F32, query: EmbeddingSums, answer: Answer) -> F64:
    """float64 [n, labels]: how well each candidate fits each label, by a linear discriminant with the candidates' own
    covariance and the means that the noisy sums tell.

    A noisy mean is drawn to 0 by what is known of it: labels lie around the middle of the candidates as these do, in
    each direction of their covariance some share of its variance apart, about the same as in directions of nearly that
    variance, and the noise is known.

    vectors: float32 [n, d], of the candidates.
    query: that was asked.
    answer: to it.
    """
    candidates, variances, directions = turned(taken_as(vectors, query))
    return discriminants(candidates, variances, directions, *query.told(answer))


def taken_as(vectors: F32, query: EmbeddingSums) -> F64:
    """float64 [n, d]: what the sums take vectors as.

    vectors: float32 [n, d].
    query: that sums them.
    """
    taken = (vectors.astype(np.float64) - query.centre) / query.radius
    taken /= np.maximum(np.linalg.norm(taken, axis=1), 1)[:, None]
    return taken


def turned(taken: F64) -> tuple[F64, F64, F64]:
    """Vectors along the directions of their own covariance, float64 [n, d]; the variance in each, float64 [d]; and the
    directions, float64 [d, d], a column each.

    taken: float64 [n, d].
    """
    variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(taken.T)))
    return taken @ directions, np.maximum(variances, 1e-9 * variances.max()), directions


def discriminants(
    candidates: F64, variances: F64, directions: F64, sums: F64, counts: F64, noise: float, noise_of_count: float
) -> F64:
    """float64 [n, cells]: how well each candidate fits each cell, see `scores_of`.

    candidates: float64 [n, d], along the directions, see `turned`.
    variances: float64 [d], in each direction.
    directions: float64 [d, d], a column each.
    sums: float64 [cells, d], noisy.
    counts: float64 [cells], noisy.
    noise: its standard deviation in a sum.
    noise_of_count: and in a count.
    """
    counts = np.maximum(counts, max(1.0, FEWEST * noise_of_count))
    seen, blur = (sums / counts[:, None]) @ directions, (noise / counts)[:, None] ** 2
    share = np.full(len(variances), 0.5)  # of each variance, between labels: by expectation and maximisation
    for _ in range(ROUNDS):
        shrunk = share * variances / (share * variances + blur)
        share = np.maximum(_smooth((((seen * shrunk) ** 2 + shrunk * blur) / variances).mean(0)), 1e-9)
    means = seen * shrunk
    weights = means / (variances + variances.mean())  # of nearly no variance in a direction, as much as of the mean
    return candidates @ weights.T - (means * weights).sum(1) / 2


def prior(sizes: I64) -> F64:
    """float64 [labels]: what is added to scores, since a candidate is more likely of a label that has many rows.

    sizes: int64 [labels], rows of each; one more is counted, so that a label without any stays possible.
    """
    return np.asarray(np.log(sizes + 1))


def _smooth(values: F64) -> F64:
    """The mean of each value and those next to it, `ALIKE` on either side, fewer at the ends; float64 [d]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, beyond = np.maximum(places - ALIKE, 0), np.minimum(places + ALIKE + 1, len(values))
    return np.asarray((sums[beyond] - sums[first]) / (beyond - first))


def nearest_to_label(scores: F64, sizes: I64, own: I64 | None) -> tuple[I64, I64]:
    """Rows of candidates, and their labels: as many a label as its size, those first that fit it most above the others.

    A candidate stands once, in the label that it fits most above the others, as long as there are enough of them.

    scores: float64 [n, labels].
    sizes: int64 [labels], rows of each.
    own: int64 [n], the label of each candidate, where it can be of no other; None: it may be of any.
    """
    labels = scores.shape[1]
    margins = scores.copy()
    if labels > 1:
        second, first = np.partition(scores, -2, axis=1)[:, -2:].T
        margins -= np.where(scores == first[:, None], second[:, None], first[:, None])
    fits = np.broadcast_to(sizes > 0, scores.shape)
    if own is not None:
        fits = fits & (own[:, None] == np.arange(labels))
    pairs = np.flatnonzero(fits)
    pairs = pairs[np.argsort(-margins.ravel()[pairs], kind="stable")].tolist()
    left, rows, taken = sizes.tolist(), list[int](), list[int]()
    while any(left):
        free = [True] * len(scores)
        for pair in pairs:
            row, label = divmod(pair, labels)
            if left[label] and free[row]:
                free[row] = False
                left[label] -= 1
                rows.append(row)
                taken.append(label)
    order = np.argsort(taken, kind="stable")
    return np.array(rows, np.int64)[order], np.array(taken, np.int64)[order]
