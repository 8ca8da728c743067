"""How well texts fit the columns of their rows: train on synthetic rows, test on real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError
from dpsyn.metric import (
    Metric,
    check_comparable,
    check_real,
    check_settings,
    check_table,
    real_vectors,
    synthetic_vectors,
)
from dpsyn.networks.logistic import logistic
from dpsyn.population import I64, Array, Modality, Population, concatenate
from dpsyn.tables.columns import Column
from dpsyn.tables.schema import Schema

PER_BATCH = 1024  # texts embedded at once
MOST = 100  # values of a column that is guessed; of numbers PARTS of their range are
PARTS = 3
ROUNDS = 1000  # of the solver, at most


@dataclass(frozen=True)
class TextLinks(Metric):
    """Logistic regression guesses each column of a row from the vector of its text. It learns from the synthetic rows,
    and once more from these with their texts shuffled among them: what that one reaches, no text has told.

    data: real rows of the schema.
    schema: of the rows, with columns of texts, all of which are looked at. Of numbers and times it is guessed in which
        of PARTS parts that hold as many real rows they lie.
    embedding: of such rows, by their texts.
    public: the real data are public; otherwise the numbers are private.
    """

    data: Data
    schema: Schema
    embedding: Embedding
    public: bool

    def __post_init__(self) -> None:
        check_table("metric.parts.text_links.schema", self.schema)
        check_settings(self, "text_links", {}, self.public)

    def check(self) -> None:
        """Raises UserError without real data."""
        check_real(self.data)
        self.embedding.check()

    @property
    def private(self) -> bool:
        return not self.public

    @property
    def judges(self) -> Sequence[Modality]:
        return ("rows with texts",)

    def reads(self) -> Sequence[Data]:
        return (self.data,)

    def __call__(self, population: Population) -> Mapping[str, float]:
        """{'accuracy_COLUMN', 'shuffled_COLUMN', ..., 'accuracy', 'shuffled'}: the last two are means over the columns.
        Raises UserError for rows of another schema."""
        if population.samples.content.dtype != self.schema.dtype:
            raise UserError("metric text_links: expected rows of its schema. Leave it out for this kind of data.")
        vectors = np.asarray(synthetic_vectors(population.samples, self.embedding, PER_BATCH))
        real = np.asarray(real_vectors(self.data, self.embedding, PER_BATCH))
        check_comparable(vectors, real)
        rows = concatenate([records.samples for records in self.data.batches(PER_BATCH)]).content
        mean = vectors.mean(0)
        scale = float(np.sqrt(np.square(vectors - mean).sum(1).mean())) or 1.0
        ours, theirs = (vectors - mean) / scale, (real - mean) / scale
        found: dict[str, float] = {}
        order = np.random.default_rng(0).permutation(len(ours))
        for column in self.schema.columns.values():
            wanted, actual = _parts(column, population.samples.content, rows)
            if wanted is None or actual is None:
                continue
            found[f"accuracy_{column.name}"] = _accuracy(ours, wanted, theirs, actual)
            found[f"shuffled_{column.name}"] = _accuracy(ours, wanted[order], theirs, actual)
        for kind in ("accuracy", "shuffled"):
            if of_kind := [value for name, value in found.items() if name.startswith(f"{kind}_")]:
                found[kind] = float(np.mean(of_kind))
        return found


def _parts(column: Column, ours: Array, real: Array) -> tuple[I64, I64] | tuple[None, None]:
    """What is guessed of each row, int64 [n] and [m]; None where there is nothing to guess."""
    if column.numeric:
        mine, theirs = (column.numbers(rows[column.name]) for rows in (ours, real))
        known = theirs[~np.isnan(theirs)]
        ends = np.unique(np.quantile(known, np.arange(1, PARTS) / PARTS)) if len(known) else np.zeros(0)
        found = [np.where(np.isnan(values), -1, np.searchsorted(ends, values)) for values in (mine, theirs)]
    else:
        found = [column.codes_of(rows[column.name]) for rows in (ours, real)]
    one, two = found
    return (one, two) if len(np.unique(two)) > 1 and column.size > 1 and len(np.unique(two)) <= MOST else (None, None)


def _accuracy(ours: Array, wanted: I64, theirs: Array, actual: I64) -> float:
    if len(np.unique(wanted)) == 1:
        return float((actual == wanted[0]).mean())
    guess = logistic(ours, wanted, ROUNDS, seed=0).predict(theirs)
    return float((guess == actual).mean())
