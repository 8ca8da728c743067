"""Table rows as vectors: numbers scaled by their declared bounds, categories one-hot (Tab-PE, arXiv 2606.08259)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding, Sparse
from dpsyn.errors import UserError, invalid
from dpsyn.population import Modality, Samples
from dpsyn.tables.schema import Schema, check_schema
from dpsyn.tables.vectors import Weights, entries, starts_of
from dpsyn.validate import number


@dataclass(frozen=True)
class Table(Embedding):
    """float32 [n, d]. Label columns are left out: votes are cast within a label.

    number_weight, category_weight, missing_weight: see `dpsyn.tables.vectors.Weights`.
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

    @property
    def fits(self) -> Sequence[Modality]:
        return ("rows", "rows with texts")

    def reads(self) -> Sequence[Data]:
        return ()

    def __call__(self, samples: Samples) -> np.ndarray:
        """Raises UserError for rows of another schema."""
        return self.sparse(samples).dense()

    def sparse(self, samples: Samples) -> Sparse:
        """An entry a column, and one more for a number that may be missing. Raises as above."""
        if samples.content.dtype != self.schema.dtype:
            raise UserError("embedding table: expected rows of its schema, ${data.schema}; these have other columns.")
        weights = Weights(self.number_weight, self.category_weight, self.missing_weight)
        return Sparse(*entries(self.schema.features, samples.content, weights), starts_of(self.schema.features)[-1])
