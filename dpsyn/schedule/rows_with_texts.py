"""Rows with texts as vectors: those of their texts, and beside them those of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Coded, Embedding, Networked, Sparse, Truncating, together
from dpsyn.errors import UserError
from dpsyn.networks.runtime import Runtime
from dpsyn.population import F32, Array, Bool, Modality, Samples, of_texts
from dpsyn.tables.codec import encode
from dpsyn.tables.schema import Schema
from dpsyn.tables.vectors import Weights, entries, starts_of

# Beside a text's vector of length one: rows that differ in one category are as far apart as texts that differ a little.
WEIGHTS = Weights(number=0.4, category=0.3, missing=0.2)


@dataclass(frozen=True)
class RowsWithTexts(Embedding):
    """float32 [n, d]: the vectors of a row's texts, and beside them those of its columns that are no labels.

    schema: of the rows, with columns of texts.
    text: embeds texts.
    """

    schema: Schema
    text: Embedding = field(compare=False)  # the run's, by whose settings what is kept is named anyway

    def fingerprint(self) -> str:
        return self.text.fingerprint()

    @property
    def fits(self) -> Sequence[Modality]:
        return ("rows with texts",)

    def reads(self) -> Sequence[Data]:
        return self.text.reads()

    def __call__(self, samples: Samples) -> F32:
        """Raises UserError for rows of another schema."""
        return beside(self.schema, samples.content, together([self.text(texts) for texts in self._texts(samples)]))

    def coded(self, samples: Samples) -> Coded:
        """The same, with the codes of the columns. Raises as above."""
        return Coded(encode(self.schema, samples.content), self(samples))

    def truncated(self, samples: Samples) -> Bool:
        """bool [n]: of which rows the embedding sees a text only in part."""
        found = np.zeros(len(samples), bool)
        if isinstance(self.text, Truncating):
            for texts in self._texts(samples):
                found |= self.text.truncated(texts)
        return found

    def _texts(self, samples: Samples) -> list[Samples]:
        """Of each column."""
        if samples.content.dtype != self.schema.dtype:
            raise UserError("schedule=rows_then_texts: expected rows of data.schema; these have other columns.")
        return [of_texts(self.schema.texts_of(samples.content, name)) for name in self.schema.texts]


@dataclass(frozen=True)
class RowsWithTextsOfNetwork(RowsWithTexts):
    """The same where a network embeds the texts, which uses all processors itself."""

    @property
    def runtime(self) -> Runtime:
        assert isinstance(self.text, Networked)
        return self.text.runtime


def beside(schema: Schema, content: Array, vectors: F32) -> F32:
    """float32 [n, d]: vectors of texts, and beside them those of the columns that are no labels.

    schema: of the rows.
    content: table rows [n].
    vectors: float32 [n, e], of their texts.
    """
    return np.concatenate([vectors, columns_of(schema, content)], axis=1)


def columns_of(schema: Schema, content: Array) -> F32:
    """float32 [n, w]: the columns that are no labels.

    schema: of the rows.
    content: table rows [n].
    """
    return Sparse(*entries(schema.features, content, WEIGHTS), starts_of(schema.features)[-1]).dense()
