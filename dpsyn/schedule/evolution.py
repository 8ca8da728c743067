"""Private Evolution (arXiv 2305.15560, algorithm 1; with kept survivors 2403.01749, algorithm 1).

The loop logs, saves and shows nothing: who iterates over it does. It learns of private data by `ask` alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.embedding import Coder, Embedding, Unasked
from dpsyn.errors import invalid
from dpsyn.population import I64, Label, Population, Samples, concatenate, take
from dpsyn.privacy.budget import Release
from dpsyn.privacy.query import LabelCounts, Nearest
from dpsyn.randomness import row_seeds, seed_sequence
from dpsyn.schedule import Ask, Facts, Keep, PublicSide, Schedule
from dpsyn.schedule.expansion import expand
from dpsyn.schedule.selection import shares_of, smoothed
from dpsyn.schedule.start import (
    TOLD,
    begin,
    check_candidates,
    chosen_by_sums,
    signal_of_sums,
    split,
    sums_release,
    warnings_of_sums,
)
from dpsyn.schedule.steps import Select, Step, steps, tab_pe_steps
from dpsyn.validate import whole

# Votes of a label go to about so many candidates, however many there are (digits, 100 and 400 candidates a label: 5);
# below so much of the noise as TOLD they tell little. That is what a plan can say from public numbers alone.
VOTED_FOR = 10
LOOKAHEAD_ROWS = 8192  # variations that are alive at once while candidates are embedded by them


@dataclass(frozen=True)
class Evolution(Schedule):
    """Votes for the nearest candidate, survivors, variations: one release a step.

    candidates: fresh rows among which noisy sums of embeddings choose the first population. Their release is the last
        by its number, so that release t is that of iteration t, and the first in time. None: it is not chosen.
    """

    steps: tuple[Step, ...]
    candidates: int | None = None

    def releases(self, facts: Facts) -> Sequence[Release]:
        n = len(self.steps)
        shares = facts.privacy.budget_split or [1.0] * n
        if len(shares) != n:
            raise invalid("privacy.budget_split", list(shares), f"null, or one number a release ({n})")
        k = facts.privacy.votes_per_record
        votes = [
            Release(f"votes {t}", k, share, {"survivors": f"{step.size:,}"})
            for t, (step, share) in enumerate(zip(self.steps, shares, strict=True), 1)
        ]
        return votes if self.candidates is None else [*votes, sums_release(facts, votes)]

    def api_rows(self, facts: Facts) -> Sequence[tuple[int, int]]:
        rows = self.steps[0].rows
        found = [(self.candidates or rows, 0)]
        for step in self.steps:
            found.append((0, step.size * step.variations + rows * step.lookahead))
            rows = step.rows
        return found

    def final_size(self, facts: Facts) -> int:
        return self.steps[-1].rows

    def least_size(self) -> int | None:
        return min(step.size for step in self.steps)

    def check(self, facts: Facts, api: Api) -> None:
        check_candidates(self.candidates, self.steps[0].rows)
        for step in self.steps:
            _check_size(step.size, facts)
            api.check_degree(step.degree)

    def warnings(self, facts: Facts, deviations: Sequence[float]) -> Iterable[str]:
        found = self._signals(facts, deviations)
        if not found:
            return
        signal, rows, deviation = min(found)
        labels, records = int((facts.shares > 0).sum()), facts.records or 0
        if signal < TOLD:
            fewer = max(labels, int(rows * signal**2))
            yield (
                f"votes will be mostly noise: {records / labels:,.0f} records a label, {rows / labels:,.0f} "
                f"candidates, noise {deviation:,.1f} on each (signal to noise about {signal:.2f}); of {fewer:,} "
                "candidates in all it would be about 1: a smaller schedule.size, fewer releases, a larger epsilon"
            )
            sums = signal_of_sums(facts, _alone(deviations[: len(self.steps)]))
            if self.candidates is None and sums is not None and sums > max(1.0, 2 * signal):
                yield (
                    f"noisy sums of embeddings would tell more (signal to noise about {sums:.1f} for a label of mean "
                    "size): schedule.candidates, and schedule=none beside it to spend all on them"
                )
        if self.candidates is not None and len(deviations) > len(self.steps):
            yield from warnings_of_sums(facts, deviations[len(self.steps)])

    def signal(self, facts: Facts, deviations: Sequence[float]) -> float | None:
        return min((signal for signal, _, _ in self._signals(facts, deviations)), default=None)

    def _signals(self, facts: Facts, deviations: Sequence[float]) -> list[tuple[float, int, float]]:
        """Of each step: signal to noise, candidates, deviation of the noise; none where records are not declared."""
        if facts.records is None:
            return []
        rows, labels, k = self.steps[0].rows, int((facts.shares > 0).sum()), facts.privacy.votes_per_record
        found = []
        for step, deviation in zip(self.steps, deviations, strict=False):
            spread = facts.records * k / labels / math.sqrt(VOTED_FOR * max(1.0, rows / labels))
            found.append((spread / deviation if deviation else math.inf, rows, deviation))
            rows = step.rows
        return found

    def degree(self, declared: Degree | None) -> Degree | None:
        return self.steps[-1].degree if declared is None else declared

    def run(self, public: PublicSide, ask: Ask, last: Population | None) -> Iterator[Population]:
        if last is None:
            rows = self.steps[0].rows
            if self.candidates is None:
                last = begin(public, rows)
            else:
                last = chosen_by_sums(public, ask, len(self.steps) + 1, self.candidates, rows)
            yield last
        known = np.empty((0, 0), np.float32)
        for t in range(last.iteration + 1, len(self.steps) + 1):
            step = self.steps[t - 1]
            vectors = candidate_vectors(public, step, last, t, known)
            answer = ask(t, Nearest(vectors, last.labels, public.facts.privacy.votes_per_record))
            chosen = survivors(answer.values, vectors, last.labels, public, step, t)
            last = offspring(public, step, last, chosen, t)
            kept = last.parents[last.survivors]
            known = vectors[kept] if not step.lookahead else known[:0]
            yield last

    def expand(
        self,
        public: PublicSide,
        ask: Ask,
        final: Population,
        rows: int,
        degree: Degree | None,
        keep: Keep,
        sizes: I64 | None = None,
    ) -> Population:
        assert degree is not None
        return expand(public, final, rows, degree, keep, sizes)


@dataclass(frozen=True)
class NoVotes(Schedule):
    """Fresh candidates and no vote.

    candidates: fresh rows among which noisy sums of embeddings choose, in the only release. None: there is no release
        and no private row is read, for comparison.
    """

    rows: int
    candidates: int | None = None

    def releases(self, facts: Facts) -> Sequence[Release]:
        return () if self.candidates is None else (sums_release(facts, ()),)

    def api_rows(self, facts: Facts) -> Sequence[tuple[int, int]]:
        return ((self.candidates or self.rows, 0),)

    def final_size(self, facts: Facts) -> int:
        return self.rows

    def varies(self) -> bool:
        return self.candidates is None

    def warnings(self, facts: Facts, deviations: Sequence[float]) -> Iterable[str]:
        return () if self.candidates is None or not deviations else warnings_of_sums(facts, deviations[0])

    def check(self, facts: Facts, api: Api) -> None:
        check_candidates(self.candidates, self.rows)
        _check_size(self.rows, facts)

    def run(self, public: PublicSide, ask: Ask, last: Population | None) -> Iterator[Population]:
        if last is None:
            yield self._made(public, ask, self.rows)

    def expand(
        self,
        public: PublicSide,
        ask: Ask,
        final: Population,
        rows: int,
        degree: Degree | None,
        keep: Keep,
        sizes: I64 | None = None,
    ) -> Population:
        """Without votes there is nothing to vary: all are fresh, or chosen, unless a degree is given."""
        if degree is not None:
            return expand(public, final, rows, degree, keep, sizes)
        if sizes is not None:
            public = replace(public, facts=replace(public.facts, shares=sizes / sizes.sum()))
        if self.candidates is not None and rows > self.candidates:
            most = f"at most schedule.candidates={self.candidates}, of which they are chosen"
            raise invalid("expand.rows", rows, most)
        return self._made(public, ask, rows)

    def _made(self, public: PublicSide, ask: Ask, rows: int) -> Population:
        return begin(public, rows) if self.candidates is None else chosen_by_sums(public, ask, 1, self.candidates, rows)


@dataclass(frozen=True)
class WithLabelShares(Schedule):
    """Another schedule, with the label shares of a noisy release of their counts.

    It is the last by its number, so that release t is that of iteration t, and the first in time.
    """

    inner: Schedule

    def releases(self, facts: Facts) -> Sequence[Release]:
        others = self.inner.releases(facts)
        if not others:
            return ()
        part = facts.privacy.label_shares_budget
        whole = sum(release.share for release in others) * part / (1 - part)
        return [*others, Release("label shares", 1, whole)]

    def api_rows(self, facts: Facts) -> Sequence[tuple[int, int]]:
        return self.inner.api_rows(facts)

    def final_size(self, facts: Facts) -> int:
        return self.inner.final_size(facts)

    def least_size(self) -> int | None:
        return self.inner.least_size()

    def check(self, facts: Facts, api: Api) -> None:
        if self.inner.coder(facts, Unasked()) is not None:
            raise invalid("label_shares", "noisy", "'uniform' with a schedule that counts the labels itself")
        self.inner.check(facts, api)

    @property
    def finds_values(self) -> bool:
        return self.inner.finds_values

    def files(self, public: PublicSide, ask: Ask) -> Mapping[str, bytes]:
        return self.inner.files(self._with_shares(public, ask), ask)

    def coder(self, facts: Facts, embed: Embedding) -> Coder | None:
        return self.inner.coder(facts, embed)

    def asked_labels(self, facts: Facts, labels: Sequence[Label]) -> Sequence[Label]:
        return self.inner.asked_labels(facts, labels)

    def warnings(self, facts: Facts, deviations: Sequence[float]) -> Iterable[str]:
        return self.inner.warnings(facts, deviations)

    def signal(self, facts: Facts, deviations: Sequence[float]) -> float | None:
        return self.inner.signal(facts, deviations)

    def varies(self) -> bool:
        return self.inner.varies()

    def degree(self, declared: Degree | None) -> Degree | None:
        return self.inner.degree(declared)

    def run(self, public: PublicSide, ask: Ask, last: Population | None) -> Iterator[Population]:
        return self.inner.run(self._with_shares(public, ask), ask, last)

    def expand(
        self,
        public: PublicSide,
        ask: Ask,
        final: Population,
        rows: int,
        degree: Degree | None,
        keep: Keep,
        sizes: I64 | None = None,
    ) -> Population:
        return self.inner.expand(self._with_shares(public, ask), ask, final, rows, degree, keep, sizes)

    def _with_shares(self, public: PublicSide, ask: Ask) -> PublicSide:
        releases = len(self.releases(public.facts))
        if not releases:
            return public
        counts = ask(releases, LabelCounts(len(public.labels))).values
        shares = _large_enough(shares_of(counts), self.least_size())
        return replace(public, facts=replace(public.facts, shares=shares))


def private_evolution(
    releases: int,
    size: int | Sequence[int],
    degree: Degree | Sequence[Degree],
    select: Select | Sequence[Select],
    variations: int | Sequence[int] = 1,
    keep_survivors: bool | Sequence[bool] = True,
    lookahead: int | Sequence[int] = 0,
    smooth: int | Sequence[int] = 1,
    candidates: int | None = None,
) -> Evolution:
    """The paper's loop. Every argument but the first and the last, see `Step`, is one value for all steps, or a list
    with a value a release. Raises UserError for a list of another length.

    releases: steps.
    size: rows that survive.
    degree: of the variations.
    select: which candidates survive.
    variations: of each survivor.
    keep_survivors: whether they stay beside their variations.
    lookahead: variations whose mean embedding stands for a candidate; 0: its own.
    smooth: nearest candidates among which votes are shared; 1: none.
    candidates: fresh rows among which noisy sums of embeddings choose the first population, a release of its own; None:
        it is not chosen.
    """
    made = steps(releases, size, degree, select, variations, keep_survivors, lookahead, smooth)
    whole("schedule.candidates", candidates, 1, optional=True)
    return Evolution(made, candidates)


def tab_pe(
    releases: int, size: int, degrees: Sequence[float], power: float, sampled_releases: int, variations: int
) -> Evolution:
    """Tab-PE (arXiv 2606.08259, algorithm 2); see `dpsyn.schedule.steps.tab_pe_steps`.

    releases: votes.
    size: rows that survive.
    degrees: the first and the last.
    power: how the degree falls.
    sampled_releases: the first ones, whose survivors are sampled.
    variations: of each survivor of a later one.
    """
    return Evolution(tab_pe_steps(releases, size, degrees, power, sampled_releases, variations))


def no_votes(
    releases: int,
    size: int | Sequence[int],
    degree: Degree | Sequence[Degree],
    select: Select | Sequence[Select],
    variations: int | Sequence[int] = 1,
    keep_survivors: bool | Sequence[bool] = True,
    lookahead: int | Sequence[int] = 0,
    smooth: int | Sequence[int] = 1,
    candidates: int | None = None,
) -> NoVotes:
    """As many fresh rows as `private_evolution` with these arguments would end with.

    releases: as of `private_evolution`, like all arguments: the rows that its last one would end with are made.
    size: rows that survive.
    degree: of the variations.
    select: which candidates survive.
    variations: of each survivor.
    keep_survivors: whether they stay beside their variations.
    lookahead: variations whose mean embedding stands for a candidate.
    smooth: nearest candidates among which votes are shared.
    candidates: fresh rows among which noisy sums of embeddings choose them, in the only release; None: no private row
        is read.
    """
    made = steps(releases, size, degree, select, variations, keep_survivors, lookahead, smooth)
    whole("schedule.candidates", candidates, 1, optional=True)
    return NoVotes(made[-1].rows, candidates)


def candidate_vectors(public: PublicSide, step: Step, population: Population, t: int, known: np.ndarray) -> np.ndarray:
    """float32 [n, d]: what the records compare themselves with.

    public: what is not private.
    step: of this release.
    population: n candidates.
    t: iteration, from 1 on.
    known: float32 [m, d], vectors of the first m rows.
    """
    n = len(population)
    if not step.lookahead:
        rest = public.embed(take(population.samples, np.arange(len(known), n)))
        return np.concatenate([known, rest]) if len(known) else rest
    drawn = row_seeds(public.seed, t, "lookahead", n * step.lookahead).reshape(n, step.lookahead)
    means = []
    block = max(1, LOOKAHEAD_ROWS // step.lookahead)
    for start in range(0, n, block):
        rows = np.repeat(np.arange(start, min(start + block, n)), step.lookahead)
        named = public.named(population.labels[rows])
        varied = public.api.vary(
            take(population.samples, rows), named, step.degree, drawn[start : start + block].reshape(-1)
        )
        vectors = public.embed(varied)
        means.append(vectors.reshape(-1, step.lookahead, vectors.shape[1]).mean(1, dtype=np.float64))
    return np.concatenate(means).astype(np.float32)


def survivors(
    votes: np.ndarray, vectors: np.ndarray, labels: np.ndarray, public: PublicSide, step: Step, t: int
) -> np.ndarray:
    """Rows of the population that survive, int64 [step.size], label by label; a row may stand there several times.

    votes: noisy, [n].
    vectors: float32 [n, d], of the candidates.
    labels: int64 [n].
    public: what is not private.
    step: of this release.
    t: iteration, from 1 on.
    """
    chosen = []
    for label, size in enumerate(split(step.size, public.facts.shares)):
        mine = np.flatnonzero(labels == label)
        rng = np.random.default_rng(seed_sequence(public.seed, t, "select", label))
        if size:
            chosen.append(mine[step.select(smoothed(votes[mine], vectors[mine], step.smooth), int(size), rng)])
    return np.concatenate(chosen)


def offspring(public: PublicSide, step: Step, population: Population, chosen: np.ndarray, t: int) -> Population:
    """With `keep_survivors` the survivors, then the variations of each.

    Survivors that stay beside variations of theirs stay once; without variations they stay as often as they were
    chosen, so that the rows stand for the votes.

    public: what is not private.
    step: of this release.
    population: the candidates.
    chosen: int64 [step.size], rows that survive.
    t: iteration, from 1 on.
    """
    kept = (np.unique(chosen) if step.variations else chosen) if step.keep_survivors else chosen[:0]
    parents = np.tile(chosen, step.variations)
    parts: list[Samples] = [take(population.samples, kept)] if len(kept) or not len(parents) else []
    if len(parents):
        drawn = row_seeds(public.seed, t, "vary", len(parents))
        named = public.named(population.labels[parents])
        parts.append(public.api.vary(take(population.samples, parents), named, step.degree, drawn))
    rows = np.concatenate([kept, parents])
    return Population(t, concatenate(parts), population.labels[rows], rows, np.arange(len(rows)) < len(kept))


def _alone(deviations: Sequence[float]) -> float:
    """The standard deviation of noise that one release would have, which spends the budget of all of these."""
    return sum(deviation**-2 for deviation in deviations) ** -0.5 if all(deviations) else 0.0


def _check_size(size: int, facts: Facts) -> None:
    if not split(size, facts.shares)[facts.shares > 0].all():
        raise invalid("schedule.size", size, f"enough for every one of the {len(facts.shares)} labels")


def _large_enough(shares: np.ndarray, size: int | None) -> np.ndarray:
    """The shares without those of labels that would not get one of `size` rows."""
    while size is not None and not split(size, shares)[shares > 0].all():
        shares = shares_of(np.where(split(size, shares) > 0, shares, 0.0))
    return shares
