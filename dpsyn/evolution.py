"""Private Evolution (arXiv 2305.15560, algorithm 1; with kept survivors 2403.01749, algorithm 1).

The loop logs, saves and shows nothing: who iterates over it does. It meets private data in `release` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dpsyn.api import Degree
from dpsyn.population import Label, Population, Samples, concatenate, take
from dpsyn.schedule import Step
from dpsyn.selection import smoothed

Release = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""(iteration, candidates' vectors float32 [n, d], their labels int64 [n]) -> noisy votes int64 [n]"""

LOOKAHEAD_ROWS = 8192  # variations that are alive at once while candidates are embedded by them


class Maker(Protocol):
    """What is asked for candidates: an api, or one that is asked in batches."""

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples: ...

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples: ...


@dataclass(frozen=True)
class Makers:
    """api and embedding, the declared labels, the share of each label (float64 [l], sums to 1), the seed of all that
    is drawn outside the noise."""

    api: Maker
    embed: Callable[[Samples], np.ndarray]
    labels: Sequence[Label]
    shares: np.ndarray
    seed: int

    def named(self, labels: np.ndarray) -> list[Label]:
        return [self.labels[i] for i in labels]


def begin(makers: Makers, size: int) -> Population:
    """Iteration 0: `size` fresh samples, as many a label as its share."""
    sizes = split(size, makers.shares)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    samples = makers.api.generate(makers.named(labels), seeds(makers.seed, 0, "generate", len(labels)))
    return Population(0, samples, labels, np.full(len(labels), -1), np.zeros(len(labels), bool))


def evolve(makers: Makers, release: Release, schedule: Sequence[Step], population: Population) -> Iterator[Population]:
    """From `population`, the state after its iteration, one Population for each step that is left."""
    known = np.empty((0, 0), np.float32)
    for t in range(population.iteration + 1, len(schedule) + 1):
        step = schedule[t - 1]
        vectors = candidate_vectors(makers, step, population, t, known)
        votes = release(t, vectors, population.labels)
        chosen = survivors(votes, vectors, population.labels, makers, step, t)
        population = offspring(makers, step, population, chosen, t)
        kept = population.parents[population.survivors]
        known = vectors[kept] if not step.lookahead else known[:0]
        yield population


def candidate_vectors(makers: Makers, step: Step, population: Population, t: int, known: np.ndarray) -> np.ndarray:
    """float32 [n, d]: what the records compare themselves with. known: vectors of the first rows that are known."""
    n = len(population)
    if not step.lookahead:
        rest = makers.embed(take(population.samples, np.arange(len(known), n)))
        return np.concatenate([known, rest]) if len(known) else rest
    drawn = seeds(makers.seed, t, "lookahead", n * step.lookahead).reshape(n, step.lookahead)
    means = []
    block = max(1, LOOKAHEAD_ROWS // step.lookahead)
    for start in range(0, n, block):
        rows = np.repeat(np.arange(start, min(start + block, n)), step.lookahead)
        named = makers.named(population.labels[rows])
        varied = makers.api.vary(
            take(population.samples, rows), named, step.degree, drawn[start : start + block].reshape(-1)
        )
        vectors = makers.embed(varied)
        means.append(vectors.reshape(-1, step.lookahead, vectors.shape[1]).mean(1, dtype=np.float64))
    return np.concatenate(means).astype(np.float32)


def survivors(
    votes: np.ndarray, vectors: np.ndarray, labels: np.ndarray, makers: Makers, step: Step, t: int
) -> np.ndarray:
    """Rows of the population that survive, int64 [step.size], label by label; a row may stand there several times."""
    chosen = []
    for label, size in enumerate(split(step.size, makers.shares)):
        mine = np.flatnonzero(labels == label)
        rng = np.random.default_rng(_sequence(makers.seed, t, "select", label))
        if size:
            chosen.append(mine[step.select(smoothed(votes[mine], vectors[mine], step.smooth), int(size), rng)])
    return np.concatenate(chosen)


def offspring(makers: Makers, step: Step, population: Population, chosen: np.ndarray, t: int) -> Population:
    """With `keep` the survivors, then `folds` variations of each.

    Survivors that stay beside variations of theirs stay once; without variations they stay as often as they were
    chosen, so that the rows stand for the votes.
    """
    kept = (np.unique(chosen) if step.folds else chosen) if step.keep else chosen[:0]
    parents = np.tile(chosen, step.folds)
    parts: list[Samples] = [take(population.samples, kept)] if len(kept) or not len(parents) else []
    if len(parents):
        drawn = seeds(makers.seed, t, "vary", len(parents))
        named = makers.named(population.labels[parents])
        parts.append(makers.api.vary(take(population.samples, parents), named, step.degree, drawn))
    rows = np.concatenate([kept, parents])
    return Population(t, concatenate(parts), population.labels[rows], rows, np.arange(len(rows)) < len(kept))


def split(size: int, shares: np.ndarray) -> np.ndarray:
    """`size` in whole parts by share, the largest remainders first; int64 [l], sums to `size`."""
    exact = size * shares
    parts = np.floor(exact + 1e-9).astype(np.int64)
    rest = np.argsort(-(exact - parts), kind="stable")[: size - parts.sum()]
    parts[rest] += 1
    return parts


def seeds(seed: int, t: int, use: str, n: int) -> np.ndarray:
    """One seed a row, uint64 [n]: a longer request starts with the seeds of a shorter one."""
    return _sequence(seed, t, use).generate_state(n, np.uint64)


def generator(seed: int, t: int, use: str) -> np.random.Generator:
    return np.random.default_rng(_sequence(seed, t, use))


def _sequence(seed: int, t: int, use: str, part: int = 0) -> np.random.SeedSequence:
    uses = ("generate", "vary", "lookahead", "select", "expand", "cells")
    return np.random.SeedSequence(seed, spawn_key=(t, uses.index(use), part))
