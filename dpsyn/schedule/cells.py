"""Votes in cells, as a schedule: releases of counts, and the rows that evolve to agree with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.embedding import Coder, Embedding
from dpsyn.errors import UserError, invalid
from dpsyn.population import I64, Population, Samples, take
from dpsyn.privacy.budget import Release, multiplier
from dpsyn.randomness import generator, row_seeds
from dpsyn.schedule import Ask, Facts, Keep, PublicSide, Schedule, gibbs
from dpsyn.schedule.binning import CLEAR, MANY, run_length, variance_of
from dpsyn.schedule.subspaces import CellRelease, plan
from dpsyn.tables.codec import coded_columns, decode, encode, width
from dpsyn.tables.schema import Schema
from dpsyn.validate import flag, whole

ENOUGH = 20_000  # rows: of fewer, learners gain a point by more (measured on Artificial Characters: 0.530 to 0.543)
MANY_ROWS = (
    500_000  # more of them are drawn from the same counts; `rows=N` and `dpsyn expand` give them to who wants them
)
SIXTEENTHS = 16
SHOWN = 2000  # rows of a checkpoint before the last
MOST_DRAWN = 50  # times the rows that are wanted, for those of a rare label


@dataclass(frozen=True)
class Codes:
    """Table rows as codes: which cell of its column each value lies in."""

    schema: Schema

    def fingerprint(self) -> str:
        return "codes"

    def __call__(self, samples: Samples) -> np.ndarray:
        """int32 [n, columns that are no labels]. Raises UserError for rows of another schema."""
        if samples.content.dtype != self.schema.dtype:
            raise UserError("schedule=cells: expected rows of data.schema; these have other columns.")
        return encode(self.schema, samples.content)


@dataclass(frozen=True)
class Cells(Schedule):
    """How many releases, which columns together and how coarse follows from the schema, data.records and the budget.

    size: rows of the synthetic table; None: as many as data.records declares, but 20,000 at least and 500,000 at most.
    scores: choose pairs of columns by noisy scores, where there are too many to ask them all. Never so for users and
        under replace-one, where one unit moves a score by more than one: all pairs are asked then, or none.
    """

    size: int | None
    scores: bool

    def __post_init__(self) -> None:
        whole("schedule.size", self.size, 1, optional=True)
        flag("schedule.scores", self.scores)

    @property
    def uses_api(self) -> bool:
        return False

    def check(self, facts: Facts, api: Api) -> None:
        check_facts(facts, "cells")
        if facts.schema is not None and facts.schema.texts:
            name = next(iter(facts.schema.texts))
            raise invalid("schedule", "cells", f"rows_then_texts for a schema with texts ('{name}')")

    def releases(self, facts: Facts) -> Sequence[Release]:
        return releases_of(self._plan(facts))

    def api_rows(self, facts: Facts) -> Sequence[tuple[int, int]]:
        return [(0, 0)] * (1 + len(self._plan(facts)))

    def final_size(self, facts: Facts) -> int:
        return self.size or min(max(facts.records or 0, ENOUGH), MANY_ROWS)

    def coder(self, facts: Facts, embed: Embedding) -> Coder | None:
        return None if facts.schema is None else Codes(facts.schema)

    def run(self, public: PublicSide, ask: Ask, last: Population | None) -> Iterator[Population]:
        """After each release a population of some rows, after the last one the synthetic table; none is iteration 0.

        All but the answers is a function of public facts and the seed, so an interrupted run learns again from its
        receipts.
        """
        facts, releases = public.facts, self._plan(public.facts)
        done = 0 if last is None else last.iteration
        if done == len(releases):
            return
        for t, state in enumerate(learnt(public, ask, releases), 1):
            if t > done:
                final = t == len(releases)
                rows = self.final_size(facts) if final else min(self.final_size(facts), SHOWN)
                yield drawn(public, state, rows, t, settle=final)

    def signal(self, facts: Facts, deviations: Sequence[float]) -> float | None:
        return signal_of(facts, deviations[0]) if deviations else None

    def warnings(self, facts: Facts, deviations: Sequence[float]) -> Iterable[str]:
        assert facts.schema is not None and facts.records is not None
        yield from warnings_of(facts.schema, facts.records, deviations[0], self._plan(facts))

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
        """Another number of rows, drawn again from the answers; of chosen labels the first of more rows that have them.

        Raises UserError where too few rows have one.
        """
        *_, state = learnt(public, ask, self._plan(public.facts))
        return drawn_of_sizes(public, state, rows, final.iteration, sizes)

    def _plan(self, facts: Facts) -> tuple[CellRelease, ...]:
        return planned(facts, self.scores)


def check_facts(facts: Facts, schedule: str) -> None:
    """Raises UserError for facts that votes in cells cannot be planned by.

    facts: public ones about the data and the settings.
    schedule: its name, for messages.
    """
    schema, privacy = facts.schema, facts.privacy
    if schema is None:
        raise invalid("schedule", schedule, "a table with a schema", "Name it with data=tables.")
    if not schema.features:
        raise invalid("schema.columns", list(schema.columns), "a column that is no label, or more")
    if facts.records is None:
        raise invalid("data.records", "null", f"a declared number of rows with schedule={schedule}")
    if privacy.noise_multiplier is not None:
        what = f"null with schedule={schedule}"
        raise invalid("privacy.noise_multiplier", privacy.noise_multiplier, what, "Give epsilon.")
    if privacy.votes_per_record != 1 or privacy.budget_split is not None or np.ptp(facts.shares) > 1e-12:
        ours = "privacy.votes_per_record=1, privacy.budget_split=null and label_shares=uniform"
        do = "It has shares of its own, and counts the labels itself."
        raise invalid("schedule", schedule, f"{ours} with it", do)


def planned(facts: Facts, scores: bool, part: float = 1.0) -> tuple[CellRelease, ...]:
    """The releases of votes in cells, their shares of what they spend.

    facts: public ones about the data and the settings.
    scores: as of `Cells`.
    part: of the budget that they spend.
    """
    privacy = facts.privacy
    assert facts.schema is not None and facts.records is not None
    # a user's rows, and a record that is replaced, move a score by more than one
    scores = scores and privacy.unit == "record" and privacy.adjacency == "add_remove"
    columns = coded_columns(facts.schema)
    return plan(columns, len(facts.shares), facts.records, multiplier(privacy) / math.sqrt(part), scores)


def releases_of(planned: Sequence[CellRelease], part: float = 1.0) -> list[Release]:
    """The same for the budget.

    planned: as above.
    part: of the budget that they spend.
    """
    return [
        Release(
            f"counts {t} ({release.kind.replace('_', ' ')})",
            release.moves,
            release.share * part,
            {
                "marginals of cells": str(release.moves)
                + (f" of {release.cells:,.0f}" if release.cells < math.inf else "")
            },
        )
        for t, release in enumerate(planned, 1)
    ]


def learnt(public: PublicSide, ask: Ask, planned: Sequence[CellRelease]) -> Iterator[gibbs.State]:
    """What is known after each release, from 1 on.

    public: what is not private.
    ask: the only way to private records.
    planned: the releases.
    """
    facts = public.facts
    assert facts.schema is not None and facts.records is not None
    state = gibbs.start(coded_columns(facts.schema), len(public.labels), facts.records)
    for t, release in enumerate(planned, 1):
        query = gibbs.next_query(state, release)
        state = gibbs.update(state, release, query, ask(t, query), generator(public.seed, t, "cells"))
        yield state


def drawn(public: PublicSide, state: gibbs.State, rows: int, t: int, settle: bool = True) -> Population:
    """Rows of the table; a text is None.

    public: what is not private.
    state: what is known.
    rows: how many.
    t: iteration.
    settle: whether the population that learns is moved on before.
    """
    schema = public.facts.schema
    assert schema is not None
    codes, labels = gibbs.sample(state, rows, generator(public.seed, t, "generate"), settle)
    content = decode(schema, codes, labels, row_seeds(public.seed, t, "vary", rows))
    return Population(t, Samples(content, forms=schema.forms), labels, np.full(rows, -1), np.ones(rows, bool))


def drawn_of_sizes(public: PublicSide, state: gibbs.State, rows: int, t: int, sizes: I64 | None) -> Population:
    """The same, of chosen labels the first of more rows that have them. Raises UserError where too few rows have one.

    public: what is not private.
    state: what is known.
    rows: how many.
    t: iteration.
    sizes: rows of each label, int64 [l], which sum to `rows`; None: as they come.
    """
    more = drawn(public, state, rows, t)
    wanted = rows
    while sizes is not None:
        found = np.bincount(more.labels, minlength=len(sizes))
        if (found >= sizes).all():
            taken = [np.flatnonzero(more.labels == label)[:size] for label, size in enumerate(sizes.tolist())]
            at = np.sort(np.concatenate(taken))
            return Population(
                more.iteration, take(more.samples, at), more.labels[at], more.parents[at], more.survivors[at]
            )
        lacks = int(np.argmax(sizes - found))
        if wanted >= MOST_DRAWN * rows:
            name = " | ".join(map(str, public.labels[lacks].values()))
            raise UserError(f"--labels {name}: expected labels of which there are more rows: it is too rare.")
        wanted = min(MOST_DRAWN * rows, max(2 * wanted, int(1.1 * wanted * sizes[lacks] / max(1, found[lacks]))))
        more = drawn(public, state, wanted, t)
    return more


def signal_of(facts: Facts, deviation: float) -> float | None:
    """How many records a value has, or a sixteenth of a range, in deviations of the noise there: were all alike, in the
    column in the middle.

    facts: public ones.
    deviation: of the first release, in records.
    """
    if facts.schema is None or facts.records is None:
        return None
    found = []
    for column in coded_columns(facts.schema):
        cells = min(column.codes, SIXTEENTHS)
        spread = deviation * math.sqrt(float(variance_of(np.array([column.codes / cells]), run_length(column))[0]))
        found.append(facts.records / cells / spread if spread else math.inf)
    return float(np.median(found))


def warnings_of(schema: Schema, records: int, noise: float, planned: Sequence[CellRelease]) -> Iterator[str]:
    """What public facts alone say of columns in cells, a line each.

    schema: of the table.
    records: the declared number of them.
    noise: of the first release, in records.
    planned: the releases.
    """
    if len(schema.features) > 1 and not any(release.kind == "tables" for release in planned):
        but = " but through the labels" if len(schema.labels) > 1 else ""
        yield (
            f"no pair of columns is asked at this epsilon: how they depend on each other is not learned{but}; "
            "a larger epsilon, more records or fewer columns let pairs be asked"
        )
    for column in schema.features:
        name = f"column '{column.name}'"
        if column.kind == "category" and column.size > MANY and records / column.size < CLEAR * noise:
            yield (
                f"{name}: of {column.size:,} values those with fewer than about {CLEAR * noise:,.0f} "
                "records look like those that do not occur; declare fewer, and outside: other"
            )
        if column.kind == "datetime" and (hours := width(column) * column.step / 3600) > 1:
            yield (
                f"{name}: within these bounds times are told to {hours:.3g} hours; closer bounds or "
                "more bins tell more, as does a column of kind time for the time of day"
            )
        if column.kind == "number" and max(-column.low, column.high) / column.finest > 2**53 and not column.graded:
            yield (
                f"{name}: beyond {2**53 * column.step:.3g} a resolution of {column.step:g} is finer "
                "than a number of 64 bits is"
            )
