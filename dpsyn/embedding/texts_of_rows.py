"""The texts of table rows as vectors, for metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding, together
from dpsyn.errors import UserError, invalid
from dpsyn.population import Modality, Samples, of_texts
from dpsyn.tables.schema import Schema, check_schema


@dataclass(frozen=True)
class TextsOfRows(Embedding):
    """float32 [n, d]: what another embedding makes of the texts of each row, one after the other, all as long as one.

    schema: of the rows, with columns of texts.
    embedding: of texts.
    """

    schema: Schema
    embedding: Embedding

    def check(self) -> None:
        """Raises UserError for a schema without one."""
        check_schema("embedding.schema", self.schema)
        if not self.schema.texts:
            raise invalid("embedding.schema", "...", "a schema with a column of kind text, or more")
        self.embedding.check()

    def fingerprint(self) -> str:
        return self.embedding.fingerprint()

    @property
    def fits(self) -> Sequence[Modality]:
        return ("rows with texts",)

    def reads(self) -> Sequence[Data]:
        return self.embedding.reads()

    def __call__(self, samples: Samples) -> np.ndarray:
        """Raises UserError for rows of another schema."""
        if samples.content.dtype != self.schema.dtype:
            raise UserError("embedding of texts: expected rows of data.schema; these have other columns.")
        names = list(self.schema.texts)
        found = [self.embedding(of_texts(self.schema.texts_of(samples.content, name))) for name in names]
        return together(found)
