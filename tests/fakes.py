"""Parts made up for tests, where a real one is beside the point."""

from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from dpsyn.api import Api
from dpsyn.data import Records
from dpsyn.embedding import Embedding
from dpsyn.population import Population, Samples


class Seeing(Embedding):
    """An embedding for tests, which learns from nothing; they say what it sees."""

    def fingerprint(self):
        return ""

    def reads(self):
        return ()


class Making(Api):
    """An api for tests, which reads nothing."""

    row_bytes = 1

    def generate(self, labels, seeds):
        raise NotImplementedError

    def reads(self):
        return ()


@dataclass
class Given:
    """Real rows as they are given, without labels; how often they were read is counted."""

    rows: np.ndarray = field(compare=False)  # the fingerprint tells
    read: int = field(default=0, compare=False)

    def check(self):
        pass

    def fingerprint(self):
        return sha256(self.rows.tobytes()).hexdigest()

    def batches(self, size):
        self.read += 1
        for start in range(0, len(self.rows), size):
            rows = self.rows[start : start + size]
            yield Records(Samples(rows), np.zeros(len(rows), np.int64))


class AsItIs(Seeing):
    """Rows of numbers are their own vectors."""

    def __call__(self, samples):
        return samples.content.astype(np.float32)


def unlabelled(rows):
    """A population of fresh rows, all kept."""
    n = len(rows)
    return Population(1, Samples(rows), np.zeros(n, np.int64), np.full(n, -1), np.ones(n, bool))
