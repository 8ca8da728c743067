"""The first population: fresh samples; or chosen among them by noisy sums of embeddings, one release before the votes.

A vote says which candidate is nearest to a record, and where a label has few records it is lost in the noise. The sum
of a label's vectors is one vector at the noise of one vote: it says where the label lies. Measured: yelp's 50 labels
of 3 to 1,327 reviews, epsilon 1, a pool of 5,000 texts, see docs/log.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.embedding import Coder
from dpsyn.errors import UserError, invalid
from dpsyn.population import F32, F64, I64, Population, take
from dpsyn.privacy.budget import SUMS_GRID, Release
from dpsyn.privacy.nearest import distinct
from dpsyn.privacy.query import Answer, EmbeddingSums
from dpsyn.randomness import row_seeds
from dpsyn.schedule import Ask, Facts, Keep, PublicSide, Schedule

FEWEST = 5.0  # deviations of its noise, below which a label's count is not believed: what divides its sum
ROUNDS = 50  # of the estimate of how far labels lie apart


def begin(public: PublicSide, size: int) -> Population:
    """Iteration 0: `size` fresh samples, as many a label as its share."""
    sizes = split(size, public.facts.shares)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    samples = public.api.generate(public.named(labels), row_seeds(public.seed, 0, "generate", len(labels)))
    return Population(0, samples, labels, np.full(len(labels), -1), np.zeros(len(labels), bool))


def split(size: int, shares: np.ndarray) -> np.ndarray:
    """`size` in whole parts by share, the largest remainders first; int64 [l], sums to `size`."""
    exact = size * shares
    parts = np.floor(exact + 1e-9).astype(np.int64)
    rest = np.argsort(-(exact - parts), kind="stable")[: size - parts.sum()]
    parts[rest] += 1
    return parts


@dataclass(frozen=True)
class InformedStart(Schedule):
    """Another schedule, whose first population is chosen among `candidates` fresh rows.

    Its release is the last by its number, so that release t is that of iteration t, and the first in time. Where the
    other schedule has none, it spends the whole budget.
    """

    inner: Schedule
    candidates: int

    def releases(self, facts: Facts) -> Sequence[Release]:
        others = self.inner.releases(facts)
        part = facts.privacy.sums_budget
        share = sum(release.share for release in others) * part / (1 - part) if others else 1.0
        return [*others, Release("embedding sums", 1, share, grid=SUMS_GRID)]

    def api_rows(self, facts: Facts) -> Sequence[tuple[int, int]]:
        return [(self.candidates, 0), *self.inner.api_rows(facts)[1:]]

    def final_size(self, facts: Facts) -> int:
        return self.inner.final_size(facts)

    def least_size(self) -> int | None:
        return self.inner.least_size()

    def check(self, facts: Facts, api: Api) -> None:
        rows = self.inner.first_size()
        if rows is None or self.inner.coder(facts) is not None:
            raise invalid("schedule.candidates", self.candidates, "null with a schedule that has no first population")
        if self.candidates < rows:
            raise invalid("schedule.candidates", self.candidates, f"at least the rows of the first population ({rows})")
        self.inner.check(facts, api)

    def coder(self, facts: Facts) -> Coder | None:
        return self.inner.coder(facts)

    def warnings(self, facts: Facts, deviations: Sequence[float]) -> Iterable[str]:
        return self.inner.warnings(facts, deviations)

    def varies(self, facts: Facts) -> bool:
        return bool(self.inner.releases(facts))

    def degree(self, declared: Degree | None) -> Degree | None:
        return self.inner.degree(declared)

    def run(self, public: PublicSide, ask: Ask, last: Population | None) -> Iterator[Population]:
        if last is None:
            rows = self.inner.first_size()
            assert rows is not None
            last = self._chosen(public, ask, rows)
            yield last
        yield from self.inner.run(public, ask, last)

    def expand(
        self, public: PublicSide, ask: Ask, final: Population, rows: int, degree: Degree | None, keep: Keep
    ) -> Population:
        if degree is not None or self.inner.releases(public.facts):
            return self.inner.expand(public, ask, final, rows, degree, keep)
        if rows > self.candidates:
            raise invalid(
                "expand.rows", rows, f"at most schedule.candidates={self.candidates}, of which they are chosen"
            )
        return self._chosen(public, ask, rows)

    def _chosen(self, public: PublicSide, ask: Ask, rows: int) -> Population:
        """So many of the candidates: those that fit their labels best."""
        fresh = begin(public, self.candidates)
        vectors = public.embed(fresh.samples)
        known = distinct(vectors)
        own = fresh.labels[known] if public.labelled else None
        asked = split(rows, public.facts.shares)
        if len(known) < 2 or (own is not None and not np.isin(np.flatnonzero(asked), own).all()):
            expected = "candidates of every label whose vectors are finite and not all the same"
            raise UserError(f"embedding: expected {expected}. The embedding does not fit the data.")
        query = sums_about(vectors[known], len(public.labels), public.facts.privacy.adjacency == "replace")
        answer = ask(len(self.releases(public.facts)), query)
        scores = scores_of(vectors[known], query, answer)
        chosen, labels = nearest_to_label(scores, asked, own)
        samples = take(fresh.samples, known[chosen])
        return Population(0, samples, labels, np.full(len(labels), -1), np.zeros(len(labels), bool))


def sums_about(vectors: F32, labels: int, replaceable: bool) -> EmbeddingSums:
    """The query for candidates float32 [n, d]: from their mean, in units of their median distance from it."""
    centre = vectors.mean(0, dtype=np.float64)
    radius = float(np.median(np.linalg.norm(vectors - centre, axis=1)))
    return EmbeddingSums(labels, centre.astype(np.float32), radius or 1.0, replaceable)


def scores_of(vectors: F32, query: EmbeddingSums, answer: Answer) -> F64:
    """float64 [n, labels]: how well each candidate fits each label, by a linear discriminant with the candidates' own
    covariance and the means that the noisy sums tell.

    A noisy mean is drawn to 0 by what is known of it: labels lie around the middle of the candidates as these do, in
    each direction of their covariance some share of its variance apart, and the noise is known.
    """
    taken = (vectors.astype(np.float64) - query.centre) / query.radius
    taken /= np.maximum(np.linalg.norm(taken, axis=1), 1)[:, None]
    sums, counts, noise, noise_of_count = query.told(answer)
    counts = np.maximum(counts, max(1.0, FEWEST * noise_of_count))
    variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(taken.T)))
    variances = np.maximum(variances, 1e-9 * variances.max())
    seen, blur = (sums / counts[:, None]) @ directions, (noise / counts)[:, None] ** 2
    share = 0.5  # of the variance of candidates that lies between labels: by expectation and maximisation
    for _ in range(ROUNDS):
        shrunk = share * variances / (share * variances + blur)
        share = float((((seen * shrunk) ** 2 + shrunk * blur) / variances).mean())
    means = seen * shrunk
    weights = means / (variances + variances.mean())  # of nearly no variance in a direction, as much as of the mean
    return (taken @ directions) @ weights.T - (means * weights).sum(1) / 2


def nearest_to_label(scores: F64, sizes: I64, own: I64 | None) -> tuple[I64, I64]:
    """Rows of candidates, and their labels: as many a label as its size, those first that fit it most above the others.

    own: the label of each candidate, where it can be of no other; a label with too few goes through them again.
    """
    rows, labels = [], []
    for label, size in enumerate(sizes.tolist()):
        if not size:
            continue
        others = np.delete(scores, label, axis=1)
        margin = scores[:, label] - (others.max(1) if others.shape[1] else 0)
        mine = np.arange(len(scores)) if own is None else np.flatnonzero(own == label)
        ranking = mine[np.argsort(-margin[mine], kind="stable")]
        rows.append(np.resize(ranking[:size], size))
        labels.append(np.full(size, label))
    return np.concatenate(rows), np.concatenate(labels)
