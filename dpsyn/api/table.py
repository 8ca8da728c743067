"""Rows of tables, drawn from a declared schema and changed cell by cell (Tab-PE, arXiv 2606.08259). No model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.data import Data
from dpsyn.errors import invalid
from dpsyn.population import Label, Samples
from dpsyn.randomness import uniform
from dpsyn.tables.columns import Column
from dpsyn.tables.schema import Schema, check_schema
from dpsyn.validate import number

NUMBERS = 3  # of a row's seed, a column: its value, whether it goes missing, whether it is drawn anew


@dataclass(frozen=True)
class Table(Api):
    """Random rows, and variations of rows, typed as the schema declares them; label columns are those of the label.

    A fresh cell is uniform over the values that its column may have, of which missing is one for categories and
    booleans. missing: the probability that a fresh number, date or ordered value that may be missing is.
    The degree r, 0 to 1, varies every cell by itself: a number x becomes x + U(-r, r) * (its upper - its lower bound),
    ends at the bounds, and is rounded to its resolution; so does the place of an ordered value. A category is drawn
    anew with probability r, and so is whether a number is missing. Rows that break a constraint are then repaired.
    """

    schema: Schema
    missing_rate: float

    def __post_init__(self) -> None:
        check_schema("api.schema", self.schema)
        if self.schema.texts:
            do = "Rows with texts are made by schedule=rows_then_texts, which asks another api for them."
            raise invalid("api.schema", "...", "a schema without texts", do)
        number("api.missing_rate", self.missing_rate, "a probability, 0 to 1", least=0, most=1)

    @property
    def row_bytes(self) -> int:
        return self.schema.row_bytes

    def check_degree(self, degree: Degree) -> None:
        """Raises UserError for what is no rate."""
        if isinstance(degree, bool) or not isinstance(degree, int | float) or not 0 <= degree <= 1:
            what = (
                "a number from 0 (the parent itself) to 1: of the range of a number, and the chance of a new category"
            )
            raise invalid("schedule.degree", degree, what)

    def reads(self) -> Sequence[Data]:
        return ()

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Rows, structured [n]. labels [n]; seeds uint64 [n]. Raises UserError for labels of another schema."""
        return self._rows({column.name: self._fresh(column, at, seeds) for at, column in self._columns}, labels, seeds)

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        """One variation a row."""
        self.check_degree(degree)
        rate = float(degree)  # type: ignore[arg-type]
        if samples.content.dtype != self.schema.dtype:
            raise invalid("api.schema", "...", "the schema of the rows that are varied: other columns, or other types")
        cells = {}
        for at, column in self._columns:
            codes = column.codes_of(samples.content[column.name])
            cells[column.name] = self._moved(column, at, codes, rate, seeds)
        return self._rows(cells, labels, seeds)

    @property
    def _columns(self) -> list[tuple[int, Column]]:
        return list(enumerate(self.schema.features))

    def _rows(self, codes: dict[str, np.ndarray], labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        content = np.empty(len(seeds), self.schema.dtype)
        self.schema.with_labels(content, self.schema.index(labels))
        for column in self.schema.features:
            content[column.name] = column.values_of(codes[column.name])
        return Samples(self.schema.repaired(content, seeds), forms=self.schema.forms)

    def _fresh(self, column: Column, at: int, seeds: np.ndarray) -> np.ndarray:
        """Places, int64 [n], -1 for a missing one."""
        value = uniform(seeds, "table.column", NUMBERS * at)
        if not column.has_order:
            return np.floor(value * (column.size + column.missing)).astype(np.int64) - column.missing
        if column.graded:
            codes = column.codes_of(column.low + value * (column.high - column.low))
        else:
            codes = _scaled(value, column.size - 1)
        return np.where(self._goes_missing(column, at, seeds), -1, codes)

    def _moved(self, column: Column, at: int, codes: np.ndarray, rate: float, seeds: np.ndarray) -> np.ndarray:
        anew = uniform(seeds, "table.column", NUMBERS * at + 2) < rate
        fresh = self._fresh(column, at, seeds)
        if not column.has_order:
            return np.where(anew, fresh, codes)
        shift = (2 * uniform(seeds, "table.column", NUMBERS * at) - 1) * rate
        if column.graded:
            moved = column.codes_of(np.nan_to_num(column.numbers_of(codes)) + shift * (column.high - column.low))
        else:  # in whole steps, as floats lose those of wide bounds
            span = (column.high - column.low) / column.step if column.numeric else column.size - 1
            steps = np.rint(np.abs(shift) * span).clip(0, 2.0**62).astype(np.int64)
            moved = np.where(
                shift < 0, codes - np.minimum(steps, codes), codes + np.minimum(steps, column.size - 1 - codes)
            )
        moved = np.where(codes < 0, codes, moved)
        if not column.missing:
            return moved
        return np.where(anew & ((fresh < 0) | (codes < 0)), fresh, moved)

    def _goes_missing(self, column: Column, at: int, seeds: np.ndarray) -> np.ndarray:
        return (uniform(seeds, "table.column", NUMBERS * at + 1) < self.missing_rate) & column.missing


def _scaled(value: np.ndarray, last: int) -> np.ndarray:
    """int64 [n]: 0 to last, of numbers in [0, 1)."""
    return np.minimum(np.floor(value * (last + 1)).clip(0, 2.0**63 - 1024).astype(np.int64), last)
