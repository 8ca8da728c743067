"""Embedding contract: samples to vectors. A record votes for the candidate with the nearest vector."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from dpsyn.data import Data
from dpsyn.networks.runtime import Runtime
from dpsyn.population import F32, I32, MODALITIES, Array, Bool, Modality, Samples


class Coder(Protocol):
    """What turns samples into what votes are about: vectors, or codes of table rows."""

    @abstractmethod
    def __call__(self, samples: Samples) -> Array:
        """float32 [n, d], or codes int32 [n, d]; row i depends on sample i alone."""
        ...

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of what its settings name but do not say: weights in a file, images that it learned from; '' where
        there is no such thing."""
        ...


@runtime_checkable
class Embedding(Coder, Protocol):
    """Keeps no state across rows, and nothing in it (mean, projection, bounds) is fitted on private rows.

    A part subclasses this contract. It may have what `Truncating` and `SparseEmbedding` ask, besides.
    """

    @abstractmethod
    def __call__(self, samples: Samples) -> F32:
        """float32 [n, d]; row i depends on sample i alone."""
        ...

    @abstractmethod
    def reads(self) -> Sequence[Data]:
        """Every data set that it learns from; () for none. It is a promise: the private data must not be among them."""
        ...

    @property
    def fits(self) -> Sequence[Modality]:
        """What it embeds; others it refuses when it is called."""
        return MODALITIES

    def check(self) -> None:
        """Cheap checks of its settings. Raises UserError."""
        return None


@dataclass(frozen=True)
class Unasked(Embedding):
    """Stands where a schedule uses no embedding."""

    def __call__(self, samples: Samples) -> np.ndarray:
        raise RuntimeError("a schedule that uses no embedding asked one")

    def fingerprint(self) -> str:
        return ""

    def reads(self) -> Sequence[Data]:
        return ()


@runtime_checkable
class Truncating(Protocol):
    """An embedding that may see only the beginning of a sample."""

    def truncated(self, samples: Samples) -> Bool:
        """bool [n]: of which."""
        ...


@runtime_checkable
class Networked(Protocol):
    """An embedding that runs a network, which uses all processors itself."""

    @property
    def runtime(self) -> Runtime: ...


@runtime_checkable
class SparseEmbedding(Protocol):
    """An embedding whose vectors are mostly 0: private records are kept and compared in this form."""

    def sparse(self, samples: Samples) -> Sparse:
        """The same vectors."""
        ...


@runtime_checkable
class CodedEmbedding(Protocol):
    """An embedding of table rows that are counted in cells, too: private records are kept with their codes."""

    def coded(self, samples: Samples) -> Coded:
        """The same vectors, beside the codes of the columns."""
        ...


@dataclass(frozen=True)
class Coded:
    """Vectors of rows, beside the codes of their columns.

    codes: int32 [n, c]. vectors: float32 [n, d].
    """

    codes: I32
    vectors: F32

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: np.ndarray | slice) -> Coded:
        return Coded(self.codes[rows], self.vectors[rows])


@dataclass(frozen=True)
class Sparse:
    """Vectors of `dimension` entries, of which a row tells the same few; the others are 0.

    indices: int32 [n, e], a row's all different. values: float32 [n, e].
    """

    indices: I32
    values: F32
    dimension: int

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: np.ndarray | slice) -> Sparse:
        return Sparse(self.indices[rows], self.values[rows], self.dimension)

    def dense(self) -> F32:
        """float32 [n, dimension]"""
        vectors = np.zeros((len(self), self.dimension), np.float32)
        np.put_along_axis(vectors, self.indices, self.values, axis=1)
        return vectors


def together(vectors: Sequence[F32]) -> F32:
    """float32 [n, d]: the vectors of a row's texts, one after the other, all of them as long as one alone.

    vectors: float32 [n, e], of each column of texts.
    """
    if len(vectors) == 1:
        return vectors[0]
    return np.concatenate(vectors, axis=1) * np.float32(1 / math.sqrt(len(vectors)))
