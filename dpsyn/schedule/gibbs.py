"""What noisy counts of cells teach: which to ask next, and rows that evolve until their own counts agree.

All of it is post-processing. The evolution is Gibbs sampling of an exponential family over cells (as private-pgm's
mirror descent, McKenna et al. 2019, but with all pairs, which no junction tree holds): potentials rise where the noisy
count exceeds the population's and fall where it is below, each by a damped Newton step of a Gaussian likelihood with
the noise that is known and a Gaussian prior, so what noise explains moves nothing. The choice of pairs is AIM's
(McKenna et al. 2022), with all scores released at once.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, repeat

import numpy as np

from dpsyn.privacy.marginals import LABEL, Counter, Marginal
from dpsyn.privacy.query import Answer, CellCounts, CellScores
from dpsyn.schedule.binning import (
    ATOMS,
    atoms_for,
    codes_within,
    denoised,
    inverse,
    is_shrunk,
    nested_bins,
    run_length,
    runs_of,
    variance_of,
    with_runs,
)
from dpsyn.schedule.potentials import Measurement, blocks_of, pulled
from dpsyn.schedule.raking import raked
from dpsyn.schedule.subspaces import CellRelease
from dpsyn.schedule.sweeps import Redraw, Term, redraw, skip, sweep
from dpsyn.schedule.thinning import BLOCK as THINNED
from dpsyn.schedule.thinning import thinned
from dpsyn.schedule.within import Scores, copula, places, scores
from dpsyn.tables.codec import CodedColumn

SWEEPS = 12  # after each release; the last takes twice as many
RAKED = 4  # rows are raked after so many sweeps, but not right before the last ones
LEFT = 2
STATES = 4  # of each row, of which it takes one in the end; no more than RAKED, as raking makes other rows of them
BLOCK = 2**21  # values whose places are drawn at once
WORK = 1e8  # cells looked at in a sweep: bounds the population that learns


@dataclass(frozen=True)
class State:
    """All that is known after some releases: a function of their noisy answers and of the generator.

    labels: how many; 1 for a table without.
    total: estimated number of records.
    one_way: denoised counts of every code of every column, float64 [codes], and of the labels at the end.
    bins: per column, cells int64 [codes] for 1, 2, ... cells, each nested in the next; the last are its atoms.
    rows: int32 [r, d + 1], the population: an atom per column, and the label.
    asked: columns of the tables so far. chosen: of the next.
    """

    columns: tuple[CodedColumn, ...]
    labels: int
    records: int
    total: float = 0.0
    one_way: tuple[np.ndarray, ...] = ()
    bins: tuple[tuple[np.ndarray, ...], ...] = ()
    measurements: tuple[Measurement, ...] = ()
    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.int32))
    asked: frozenset[tuple[int, ...]] = frozenset()
    chosen: tuple[tuple[int, ...], ...] = ()

    @functools.cached_property
    def every_label(self) -> np.ndarray:
        """int64 [labels]: a cell each."""
        return np.arange(self.labels)


def start(columns: Sequence[CodedColumn], labels: int, records: int) -> State:
    """Nothing is known yet.

    columns: of the table, in codes.
    labels: how many, 1 for none.
    records: as declared.
    """
    return State(tuple(columns), labels, records)


def next_query(state: State, release: CellRelease) -> CellCounts:
    """What a release asks, from noisy answers alone.

    state: what is known.
    release: that is to be made.
    """
    d = len(state.columns)
    if release.kind == "marginals":
        every = [Marginal((j,), (np.arange(column.codes),)) for j, column in enumerate(state.columns)]
        if state.labels > 1:
            every.append(Marginal((LABEL,), (np.arange(state.labels),)))
        every += [Marginal((j,), (runs,)) for j, runs in _runs(state)]
        return CellCounts(release.kind, tuple(every))
    names: Iterable[tuple[int, ...]]
    if release.kind == "by_label":
        names = ((j, LABEL) for j in range(d))
    elif release.kind == "tables" and state.chosen:
        names = state.chosen
    else:
        groups = [group for k in range(2, release.columns + 1) for group in combinations(range(d), k)]
        with_label = [(*group, LABEL) for group in groups] if release.labelled else []
        if release.labelled:  # of three columns only with the label: what they say about it is what pairs cannot
            groups = [group for group in groups if len(group) == 2]
        asked = with_label if release.labelled and release.kind == "tables" else groups + with_label
        names = (name for name in asked if name not in state.asked)
    marginals = tuple(_grid(state, name, release.cells) for name in names)
    if release.kind != "scores":
        return CellCounts(release.kind, marginals)
    scale = state.total / len(state.rows)
    held = _counts(Counter(_on_atoms(state, marginals)), state.rows)
    return CellScores(release.kind, marginals, tuple(np.rint(counts * scale).astype(np.int64) for counts in held))


def update(state: State, release: CellRelease, query: CellCounts, answer: Answer, rng: np.random.Generator) -> State:
    """What is known after the answer to the query of a release.

    state: what was known.
    release: that was made.
    query: that was asked.
    answer: to it, in records.
    rng: draws the population.
    """
    noisy, sigma = np.asarray(answer.values, np.float64), answer.deviation
    if isinstance(query, CellScores):
        return replace(state, chosen=_best(state, release, query, noisy, sigma))
    ends = np.cumsum([m.size for m in query.marginals])[:-1]
    tables = [counts.reshape(m.shape) for m, counts in zip(query.marginals, np.split(noisy, ends), strict=True)]
    if release.kind == "marginals":
        return _begin(state, tables, sigma, rng)
    new = []
    for m, asked, counts in zip(_on_atoms(state, query.marginals), query.marginals, tables, strict=True):
        spread = np.full(m.shape, max(sigma, 1e-3))
        new.append(Measurement(m, counts, spread, blocks=blocks_of(asked, m, state.bins, counts, spread)))
    state = replace(state, measurements=(*state.measurements, *new), chosen=())
    if release.kind == "by_label":
        state = _populate(_share_labels(state), rng)
    else:
        state = _within_work(replace(state, asked=state.asked | {m.columns for m in query.marginals}))
    return _evolve(state, [1.0] * SWEEPS, rng)


def sample(state: State, rows: int, rng: np.random.Generator, settle: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The population settles, and synthetic rows are made of it. codes uint [rows, d], of as few bytes as
    hold them, labels int64 [rows], shuffled.

    More rows than the population has are its copies, moved on by themselves for some sweeps.

    state: what is known.
    rows: of the table.
    rng: draws them.
    settle: whether the population is moved on before.
    """
    last = deque(_sweeps(state, np.linspace(1, 0.1, SWEEPS).tolist(), rng) if settle else [state], maxlen=STATES)
    state = last[-1]
    order = np.argsort(state.rows[:, LABEL], kind="stable")  # evenly spaced rows of it: shares of the labels stay
    picks = ((np.arange(rows) + rng.random()) * (len(order) / max(rows, 1))).astype(np.int64)
    picks = order[np.minimum(picks, len(order) - 1)]
    narrow = np.min_scalar_type(max(*ATOMS, state.labels))
    held = state.rows.astype(narrow)
    blocks: Iterable[Sequence[np.ndarray]]
    if rows <= len(held):
        parts = np.split(picks, range(THINNED, rows, THINNED))
        blocks = ([each.rows[part].astype(narrow) for each in last] for part in parts)
    else:
        blocks = _copies(redraws(state, state.measurements, rows), held[picks], rng)
    if settle:
        cells = [*(int(steps[-1].max()) + 1 for steps in state.bins), state.labels]
        blocks = ([block] for block in thinned(blocks, cells, rng))
    copies, start = np.empty((rows, held.shape[1]), narrow), 0
    for *_, block in blocks:
        copies[start : start + len(block)] = block
        start += len(block)
    del picks, blocks
    copies = copies[rng.permutation(rows)]
    codes = np.empty((rows, len(state.columns)), np.min_scalar_type(max(column.codes for column in state.columns)))
    fitted = copula(held, [_scores(state, j) for j in range(len(state.columns))])
    size = max(4096, BLOCK // max(1, len(state.columns)))
    for start in range(0, rows, size):
        part = slice(start, start + size)
        for j, where in enumerate(places(fitted, copies[part], rng)):
            codes[part, j] = codes_within(state.bins[j][-1], state.one_way[j], copies[part, j], where)
    return codes, copies[:, LABEL].astype(np.int64)


def _copies(again: Sequence[Redraw], rows: np.ndarray, rng: np.random.Generator) -> Iterator[Sequence[np.ndarray]]:
    """States of the rows, block by block, as if all were drawn again before the first is drawn again once more.

    again: how columns are drawn.
    rows: whole numbers [n, d]; they change.
    rng: of PCG64; it is left where it would be after all of that.
    """
    own = np.random.Generator(np.random.PCG64())
    begin = rng.bit_generator.state
    skip(rng, len(rows) * len(again) * (STATES - 1))

    def states() -> Iterator[Sequence[np.ndarray]]:
        for start in range(0, len(rows), THINNED):
            end = min(start + THINNED, len(rows))
            found = [rows[start:end].copy()]
            own.bit_generator.state = begin
            while len(found) < STATES:
                sweep(again, rows, own, part=(start, end))
                found.append(rows[start:end].copy())
            yield found

    return states()


def _scores(state: State, j: int) -> Scores | None:
    column, atoms = state.columns[j], state.bins[j][-1]
    if not column.ordered:
        return None
    missing = None if column.missing is None else int(atoms[column.missing])
    alone = missing is not None and (atoms == missing).sum() == 1
    return scores(np.bincount(atoms, state.one_way[j]).astype(np.float64), missing if alone else None)


def _runs(state: State) -> list[tuple[int, np.ndarray]]:
    """The columns whose runs are counted too, and in which of them each code is."""
    return [(j, runs) for j, column in enumerate(state.columns) if (runs := runs_of(column)) is not None]


def _begin(state: State, tables: list[np.ndarray], sigma: float, rng: np.random.Generator) -> State:
    # every marginal estimates the number of records; the declared one counts as a guess good to a tenth
    weights = np.array([1 / (h.size * max(sigma, 1e-3) ** 2) for h in tables] + [1 / (0.1 * state.records) ** 2])
    total = max(1.0, float(np.average([h.sum() for h in tables] + [state.records], weights=weights)))
    d = len(state.columns)
    of_runs = dict(zip((j for j, _ in _runs(state)), tables[d + (state.labels > 1) :], strict=True))
    one_way, bins, measurements = [], [], []
    for j, (column, noisy) in enumerate(zip(state.columns, tables[:d], strict=True)):
        runs, run = runs_of(column), run_length(column)
        noisy = noisy if runs is None else with_runs(noisy, of_runs[j], runs)
        one_way.append(denoised(noisy, column, sigma, total, run))
        bins.append(nested_bins(one_way[j], column, atoms_for(state.records, sigma)))
        atoms = bins[j][-1]
        spread = np.maximum(sigma, 1e-3) * np.sqrt(variance_of(np.bincount(atoms), run))
        finest = Marginal((j,), (np.arange(len(spread)),))
        # atoms of many values were chosen by their noise, which would count twice
        told = one_way[j] if is_shrunk(column) else noisy
        measurements.append(Measurement(finest, np.bincount(atoms, told).astype(np.float64), spread))
    if state.labels > 1:
        of_labels = Marginal((LABEL,), (np.arange(state.labels),))
        measurements.append(Measurement(of_labels, tables[d], np.full(state.labels, max(sigma, 1e-3))))
    everyone = CodedColumn(state.labels, ordered=False)
    one_way.append(denoised(tables[d], everyone, sigma, total) if state.labels > 1 else np.array([total]))
    known = replace(
        state,
        total=total,
        one_way=tuple(one_way),
        bins=tuple(bins),
        measurements=tuple(measurements),
    )
    return _populate(known, rng)


def _share_labels(state: State) -> State:
    """The labels' counts, averaged over all answers that have them, by the inverse of their variances."""
    sums, weights = np.zeros(state.labels), 0.0
    for m in state.measurements:
        if m.marginal.columns[-1] == LABEL:
            others = tuple(range(len(m.marginal.columns) - 1))
            weight = 1 / float((m.sigma**2).sum(others).flat[0])
            sums, weights = sums + weight * m.noisy.sum(others), weights + weight
    labels = denoised(sums / weights, CodedColumn(state.labels, ordered=False), weights**-0.5, state.total)
    return replace(state, one_way=(*state.one_way[:-1], labels))


def _populate(state: State, rng: np.random.Generator) -> State:
    """Rows with the marginals' shares in every column, independent of each other."""
    size = int(np.clip(state.records, 16384, 32768))
    masses = [np.bincount(steps[-1], mass) for steps, mass in zip(state.bins, state.one_way[:-1], strict=True)]
    rows = np.empty((size, len(state.columns) + 1), np.int32)
    for j, mass in enumerate([*masses, state.one_way[-1]]):
        points = (np.arange(size) + rng.random()) / size
        rows[:, j] = rng.permutation(inverse(np.cumsum(mass), points * mass.sum()))
    return replace(state, rows=rows)


def _within_work(state: State) -> State:
    """Fewer rows, evenly spaced, where many tables would make a sweep slow."""
    cells = sum(len(state.bins[j]) for m in state.measurements for j in _without_label(m.marginal.columns))
    size = max(2048, int(WORK / max(cells, 1)))
    if size >= len(state.rows):
        return state
    order = np.argsort(state.rows[:, LABEL], kind="stable")
    return replace(state, rows=state.rows[order[np.linspace(0, len(order) - 1, size).astype(np.int64)]])


def _evolve(state: State, steps: Iterable[float], rng: np.random.Generator) -> State:
    for swept in _sweeps(state, steps, rng):
        state = swept
    return state


def _sweeps(state: State, steps: Iterable[float], rng: np.random.Generator) -> Iterator[State]:
    """Potentials rise where the noisy count exceeds the population's, then every column is drawn again."""
    rows = state.rows.copy(order="F")
    scale = len(rows) / state.total
    tables = np.zeros(len(state.columns) + 1)
    for m in state.measurements:
        if len(m.marginal.columns) > 1:
            tables[list(m.marginal.columns)] += 1
    tables[LABEL] = 0  # labels are not drawn again, so theirs never overshoot
    measurements = state.measurements
    counter = Counter([m.marginal for m in measurements])
    steps = list(steps)
    for turn, step in enumerate(steps, 1):
        # all tables of a column move at once: each by its part, or they overshoot together
        parts = [step * _part(tables[list(m.marginal.columns)].max()) for m in measurements]
        held = _counts(counter, rows)
        measurements = tuple(map(pulled, measurements, held, repeat(scale), parts))
        sweep(redraws(state, measurements, len(rows)), rows, rng)
        if turn % RAKED == 0 and turn + LEFT <= len(steps):
            rows = raked(measurements, rows, scale, rng)
        yield replace(state, rows=rows.copy(order="F"), measurements=measurements)


def _part(tables: float) -> float:
    """Of Newton's step, where the busiest column is in so many tables. Of 20 a twentieth each does not settle in time:
    flights at epsilon 4 had an R2 of 0.72, and 0.75 by a tenth."""
    tables = max(1.0, tables)
    return min(0.4, max(1 / tables, min(0.1, 2 / tables)))


def _counts(counter: Counter, rows: np.ndarray) -> list[np.ndarray]:
    """How many rows of a population lie in each cell, int64 of each marginal's shape."""
    counts = counter([(rows[:, :LABEL], rows[:, LABEL])])
    parts = np.split(counts, np.cumsum([m.size for m in counter.marginals])[:-1])
    return [part.reshape(m.shape) for part, m in zip(parts, counter.marginals, strict=True)]


def redraws(state: State, measurements: Sequence[Measurement], rows: int) -> list[Redraw]:
    """How each column is drawn, given the others.

    state: what is known.
    measurements: that count.
    rows: how many will be drawn.
    """
    about = [list[tuple[Measurement, np.ndarray]]() for _ in state.columns]
    for m in measurements:
        force = m.force
        for j in _without_label(m.marginal.columns):
            about[j].append((m, force))
    found = []
    for j, steps in enumerate(state.bins):
        mass = np.bincount(steps[-1], state.one_way[j])
        base, terms = np.log(mass / mass.sum() + 1e-5).astype(np.float32), list[Term]()
        if len(base) == 1:
            continue
        for m, force in about[j]:
            axis = m.marginal.columns.index(j)
            weights = np.moveaxis(force.take(m.marginal.cells[axis], axis), axis, -1).astype(np.float32)
            cells = {i: of for i, of in zip(m.marginal.columns, m.marginal.cells, strict=True) if i != j}
            if cells:
                terms.append(Term(cells, weights))
            else:
                base = base + weights
        first, *others = terms or [Term({}, np.zeros(len(base), np.float32))]
        found.append(redraw(j, [replace(first, weights=base + first.weights), *others], rows))
    return found


def _best(
    state: State, release: CellRelease, query: CellScores, scores: np.ndarray, sigma: float
) -> tuple[tuple[int, ...], ...]:
    """The tables with the highest scores, less what a population that fits would score by chance; and of three columns
    less the noise too, since the largest of so many are large by noise."""
    spread = 2 / math.pi * (1 + state.total / len(state.rows))
    chance = [
        np.minimum(np.sqrt(spread * e), 2 * e).sum() + sigma * (len(_without_label(m.columns)) > 2)
        for m, e in zip(query.marginals, query.expected, strict=True)
    ]
    best: dict[tuple[int, ...], tuple[int, ...]] = {}
    for at in np.argsort(-(scores - chance), kind="stable"):
        columns = query.marginals[at].columns
        best.setdefault(_without_label(columns), columns)  # with the label or without: the better of the two
    return tuple(best.values())[: release.choose]


def _without_label(columns: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(j for j in columns if j != LABEL)


def _grid(state: State, columns: tuple[int, ...], cells: float) -> Marginal:
    """About `cells` cells: every label, and as many cells of each column as it has atoms for, two or more."""
    free = sorted(_without_label(columns), key=lambda j: (len(state.bins[j]), j))
    left, chosen = cells / (state.labels if LABEL in columns else 1), {LABEL: state.every_label}
    for at, j in enumerate(free):
        even = round(max(1.0, left) ** (1 / (len(free) - at)))
        size = min(len(state.bins[j]), max(2, even))
        chosen[j], left = state.bins[j][size - 1], left / size
    return Marginal(columns, tuple(chosen[j] for j in columns))


def _on_atoms(state: State, marginals: Sequence[Marginal]) -> list[Marginal]:
    """The same grids, by atom instead of code."""
    known = dict[tuple[int, int], np.ndarray]()  # by column and array: cells of many marginals are the same
    for m in marginals:
        for j, of_code in zip(m.columns, m.cells, strict=True):
            if (j, id(of_code)) not in known:
                atoms = np.arange(state.labels) if j == LABEL else state.bins[j][-1]
                of_atom = known[j, id(of_code)] = np.zeros(int(atoms.max()) + 1, np.int64)
                of_atom[atoms] = of_code
    return [
        Marginal(m.columns, tuple(known[j, id(of_code)] for j, of_code in zip(m.columns, m.cells, strict=True)))
        for m in marginals
    ]
