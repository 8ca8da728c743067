"""A run by votes in subspaces: releases of counts, and the rows that evolve to agree with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dpsyn import cell_evolution, cells
from dpsyn.codec import coded, decoded, width
from dpsyn.evolution import generator, seeds
from dpsyn.ladders import CLEAR, MANY
from dpsyn.population import Population, Samples
from dpsyn.privacy.budget import Charge, Part, Settings, multiplier
from dpsyn.schedule import Cells
from dpsyn.schema import Schema

ENOUGH = 20_000  # rows: of fewer, learners gain a point by more (measured on Artificial Characters: 0.530 to 0.543)
SHOWN = 2000  # rows of a checkpoint before the last

Ask = Callable[[int, cells.Question], tuple[np.ndarray, float]]
"""(release, question) -> noisy answer float64 [entries] and the deviation of its noise, in records"""


@dataclass(frozen=True)
class CellPlan:
    """What is settled before the first release, by public facts alone. size: rows of the synthetic table."""

    schema: Schema
    labels: int
    records: int
    size: int
    releases: tuple[cells.Release, ...]

    @property
    def parts(self) -> list[Part]:
        """For the budget."""
        return [Part(release_name(t, r), r.moves, r.share) for t, r in enumerate(self.releases, 1)]

    @property
    def columns(self) -> list[cells.Column]:
        return _columns(self.schema)


def _columns(schema: Schema) -> list[cells.Column]:
    return [cells.Column(column.codes, column.ordered, column.missing, column.expected) for column in coded(schema)]


def release_name(t: int, release: cells.Release) -> str:
    """'counts 3 (tables)'"""
    return f"counts {t} ({release.kind.replace('_', ' ')})"


def records_in_a_vote(charge: Charge, subspaces: int) -> float:
    """Under the user unit a user with one row is spread over all subspaces of a release, by a vote of norm one."""
    return 1.0 if charge.grid == 1 else math.sqrt(subspaces)


def cell_plan(schedule: Cells, schema: Schema, labels: int, records: int, privacy: Settings) -> CellPlan:
    """records: as declared."""
    columns = _columns(schema)
    # a user's rows, and a record that is replaced, move a score by more than one
    scores = schedule.scores and privacy.unit == "record" and privacy.neighbours == "add_remove"
    releases = cells.plan(columns, labels, records, multiplier(privacy), scores)
    if not scores and any(release.kind == "scores" for release in releases):
        raise RuntimeError("cells: scores were planned where one unit moves them by more than is charged")
    return CellPlan(schema, labels, records, schedule.size or max(records, ENOUGH), releases)


def evolve_cells(plan: CellPlan, ask: Ask, seed: int, done: int = 0) -> Iterator[Population]:
    """After each release a population of some rows, after the last the synthetic table; the first `done` are left out.

    All but the answers is a function of the plan and the seed, so what a run had learned is learned again from its
    receipts.
    """
    state = cell_evolution.start(plan.columns, plan.labels, plan.records)
    for t, release in enumerate(plan.releases, 1):
        question = cell_evolution.ask(state, release)
        if len(question.subspaces) > release.moves:
            raise RuntimeError(f"{release_name(t, release)}: asks for more than it is charged for; nothing was read")
        noisy, sigma = ask(t, question)
        state = cell_evolution.learn(state, question, noisy, sigma, generator(seed, t, "cells"))
        last = t == len(plan.releases)
        if t > done:
            size = plan.size if last else min(plan.size, SHOWN)
            codes, labels = cell_evolution.draw(state, size, generator(seed, t, "generate"), settle=last)
            content = decoded(plan.schema, codes, labels, seeds(seed, t, "vary", size))
            everyone = np.arange(size)
            yield Population(t, Samples(content, forms=plan.schema.forms), labels, np.full(size, -1), everyone >= 0)


def minds(plan: CellPlan, noise: float) -> Iterator[str]:
    """What public facts alone say that rows will not show, a line each. noise: of the first release, in records."""
    for column in plan.schema.features:
        if column.kind == "category" and column.size > MANY and plan.records / column.size < CLEAR * noise:
            yield (
                f"column '{column.name}': of {column.size:,} values those with fewer than about {CLEAR * noise:,.0f} "
                "records look like those that do not occur; declare fewer, and outside: other"
            )
        if column.kind == "datetime" and (hours := width(column) * column.step / 3600) > 1:
            yield (
                f"column '{column.name}': within these bounds times are told to {hours:.3g} hours; closer bounds or "
                "more bins tell more, as does a column of kind time for the time of day"
            )
        if column.kind == "number" and max(-column.low, column.high) / column.finest > 2**53 and not column.graded:
            yield (
                f"column '{column.name}': beyond {2**53 * column.step:.3g} a resolution of {column.step:g} is finer "
                "than a number of 64 bits is"
            )
