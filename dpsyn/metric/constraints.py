"""How many synthetic rows break a constraint of the schema: none should."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.data import Data
from dpsyn.errors import UserError
from dpsyn.metric import Metric, check_table
from dpsyn.population import Modality, Population
from dpsyn.tables.schema import Schema


@dataclass(frozen=True)
class Constraints(Metric):
    """The share of rows that break one. It reads the synthetic rows alone, so it is public."""

    schema: Schema

    def __post_init__(self) -> None:
        check_table("metric.parts.constraints.schema", self.schema)

    @property
    def private(self) -> bool:
        return False

    @property
    def judges(self) -> Sequence[Modality]:
        return ("rows", "rows with texts")

    def reads(self) -> Sequence[Data]:
        return ()

    def __call__(self, population: Population) -> Mapping[str, float]:
        """{'broken': 0 to 1}; {} for a schema without constraints. Raises UserError for what are no rows of it."""
        content = population.samples.content
        if content.dtype != self.schema.dtype:
            raise UserError("metric constraints: expected rows of the schema. Leave it out for this kind of data.")
        if not self.schema.constraints or not len(content):
            return {}
        return {"broken": float(np.mean(self.schema.broken(content)))}
