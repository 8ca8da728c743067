"""Table rows as vectors: numbers scaled by their declared bounds, categories one-hot (Tab-PE, arXiv 2606.08259)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding, Sparse
from dpsyn.errors import UserError, invalid
from dpsyn.population import Samples
from dpsyn.tables.schema import Schema, check_schema
from dpsyn.validate import number


@dataclass(frozen=True)
class Table(Embedding):
    """float32 [n, d]. Label columns are left out: votes are cast within a label.

    A number, a date or an ordered value is number_weight times its place between the bounds, 0 to 1 (0 in a column with
    one value). A category or a boolean is category_weight at its value, of which missing is one. A missing number lies
    halfway between the bounds, with missing_weight in an entry of its own. All times the weight in the schema.
    """

    schema: Schema
    number_weight: float
    category_weight: float
    missing_weight: float

    def __post_init__(self) -> None:
        check_schema("embedding.schema", self.schema)
        for key in ("number_weight", "category_weight", "missing_weight"):
            value = getattr(self, key)
            number(f"embedding.{key}", value, "a number, 0 or more", least=0)
        if not self.schema.features:
            raise invalid("schema.columns", list(self.schema.columns), "a column that is no label, or more")

    def fingerprint(self) -> str:
        return ""

    def reads(self) -> Sequence[Data]:
        return ()

    def __call__(self, samples: Samples) -> np.ndarray:
        """Raises UserError for rows of another schema."""
        return self.sparse(samples).dense()

    def sparse(self, samples: Samples) -> Sparse:
        """An entry a column, and one more for a number that may be missing. Raises as above."""
        if samples.content.dtype != self.schema.dtype:
            raise UserError("embedding table: expected rows of its schema, ${data.schema}; these have other columns.")
        places, values = [], []
        for start, column in zip(self._starts[:-1], self.schema.features, strict=True):
            cells = samples.content[column.name]
            if column.has_order:
                scaled = column.scaled(cells)
                none = np.isnan(scaled)
                places.append(np.full(len(cells), start))
                values.append(np.where(none, 0.5, scaled) * (self.number_weight * column.weight))
                if column.missing:
                    places.append(np.full(len(cells), start + 1))
                    values.append(none * (self.missing_weight * column.weight))
            else:
                found = column.codes_of(cells)
                places.append(start + np.where(found < 0, column.size, found))
                values.append(np.full(len(cells), self.category_weight * column.weight))
        return Sparse(np.stack(places, 1).astype(np.int32), np.stack(values, 1).astype(np.float32), self._starts[-1])

    @functools.cached_property
    def _starts(self) -> list[int]:
        """Where each column's entries begin, and the length of a vector."""
        widths = [(1 if column.has_order else column.size) + column.missing for column in self.schema.features]
        return [0, *np.cumsum(widths).tolist()]
