"""Table rows as codes: which cell of its column each value lies in. For votes in subspaces, not for distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn import codec
from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, bad
from dpsyn.population import Samples
from dpsyn.schema import Schema, check_schema


@dataclass(frozen=True)
class Cells(Embedding):
    """float32 [n, columns that are no labels], whole numbers, exact: see `dpsyn.codec.codes`."""

    schema: Schema

    def __post_init__(self) -> None:
        check_schema("embedding.schema", self.schema)
        if not self.schema.features:
            raise bad("schema.columns", list(self.schema.columns), "a column that is no label, or more")
        for column in codec.coded(self.schema):
            if column.codes > 2**24:  # beyond which a float32 skips numbers
                raise bad(f"schema.columns.{column.name}.values", f"({column.codes})", "at most 2^24 of them")

    def fingerprint(self) -> str:
        return ""

    def reads(self) -> Sequence[Data]:
        return ()

    def __call__(self, samples: Samples) -> np.ndarray:
        """Raises UserError for rows of another schema."""
        if samples.content.dtype != self.schema.dtype:
            raise UserError("embedding cells: expected rows of its schema, ${data.schema}; these have other columns.")
        return codec.codes(self.schema, samples.content).astype(np.float32)
