"""The contract of an embedding: where nearest is decided."""

from typing import Protocol

import numpy as np

from dpsyn.population import Samples


class Embedding(Protocol):
    """Keeps no state across rows, and nothing in it (mean, projection, bounds) is fitted on private rows.

    It may have `check(self)`, cheap checks of its settings that raise UserError, and `fingerprint(self) -> str`, a
    digest of what its settings name but do not say: weights in a file, public images that it learned from; and
    `cut_short(self, samples) -> bool [n]`, which samples it sees only the beginning of.
    """

    def __call__(self, samples: Samples) -> np.ndarray:
        """float32 [n, d]; row i depends on sample i alone."""
        ...
