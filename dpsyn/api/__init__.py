"""The contract of a candidate maker: a foundation model or a simulator that is asked, never trained."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dpsyn.population import Label, Samples

Degree = float | Mapping[str, Any]
"""How far a variation goes: a number, or several by name. The api says what its degrees mean."""


class Api(Protocol):
    """Row-aligned: row i of the answer is for row i of the request, always as many rows as asked for, in order.

    Row i depends on its label, its seed (uint64) and, when varied, its parent and the degree, and on nothing else:
    not on the other rows, the batch size, or the number of workers. A row that cannot be made comes back as its
    parent. An api never sees private data.

    An api may have, besides:

    * `check(self)`, cheap checks of its settings, and `check_degree(self, degree)`, of a step's degree; both raise
      UserError before anything is written or spent.
    * `adopt(self, samples, labels, seeds) -> Samples`: samples that another api made, with the traits added that this
      one needs to vary them; content as it is.
    * `embedding`, the embedding it has looked at its samples with, and `vectors(self, samples) -> float32 [n, d]`, what
      that embedding says of samples it made, looked up.

    It is picklable until it is first asked: with `runtime.devices` each process has a copy.

    row_bytes: about what a row takes on disk, for `dpsyn plan`.
    """

    @property
    def row_bytes(self) -> int: ...

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """One fresh sample a label. labels [n]; seeds uint64 [n]."""
        ...

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        """One variation a row. samples [n], labels [n], seeds uint64 [n]."""
        ...
