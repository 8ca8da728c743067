"""What may be asked of private records, and what one of them can move in the answer: a closed set.

A query is made of noisy answers and public facts alone. The electorate tallies it, the ledger compares what it moves
with what is charged for it and adds the noise. A new kind of query is an edit of this file, with its guarantee argued
in the docstring and shown in `tests/privacy/test_stability.py`.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dpsyn.errors import UserError
from dpsyn.networks.search import Search, cpu_search
from dpsyn.population import F32, F64, I64
from dpsyn.privacy.marginals import Marginal, counts_of, entries_of
from dpsyn.privacy.nearest import distinct, flushed, nearest
from dpsyn.privacy.votes import count_by_record

LABELS = "the declared labels"  # what a receipt of their counts is about
CELLS = "cells"  # and what that of counts of cells begins with


@dataclass(frozen=True)
class Answer:
    """A noisy answer, in records.

    values: float64 [entries]. deviation: the standard deviation of the noise in each.
    """

    values: F64
    deviation: float


@dataclass(frozen=True)
class Block:
    """Some private records of one label, of b rows.

    vectors: float32 [b, d] or Sparse; for counts of cells codes, int32 [b, d].
    units: int64 [b], the user of each; -1 for none.
    """

    label: int
    vectors: Any
    units: I64


class Query(Protocol):
    @property
    @abstractmethod
    def size(self) -> int:
        """Entries of what is tallied."""
        ...

    @property
    @abstractmethod
    def moves(self) -> int:
        """Entries of the answer that a record which is added or removed changes, by at most one each."""
        ...

    @property
    @abstractmethod
    def about(self) -> str:
        """A digest of all that is asked, for the receipt."""
        ...

    @abstractmethod
    def choices(self, blocks: Iterable[Block]) -> Iterator[tuple[I64, I64]]:
        """(units int64 [b], the entries that each record counts in, int64 [b, m]), block by block."""
        ...

    @property
    def additive(self) -> bool:
        """Whether the answer is a sum over records. Where it is not, one unit may move an entry by more than one: a
        record that is replaced, a user of many rows. The ledger refuses it for them."""
        return True

    def check(self, dimension: int) -> None:
        """Raises UserError where records of vectors of this length cannot be asked."""
        return None

    def tally(self, blocks: Iterable[Block]) -> I64:
        """int64 [size], exact: the sum over records, so that shards can be added up."""
        return count_by_record((rows for _, rows in self.choices(blocks)), self.size)

    def answer(self, total: I64) -> I64:
        """int64, exact: what is noised, of the sum of all tallies."""
        return total


@dataclass(frozen=True)
class Nearest(Query):
    """Every record votes for its k nearest candidates of its own label; for all there are, where they are fewer.

    vectors: float32 [n, d], of the candidates.
    labels: int64 [n], of the candidates. Records of a label without candidates cast no vote.
    k: votes of a record.
    population: the digest of the candidates' file. The run sets it: a schedule does not know the file.
    search: candidates -> a shortlist search. The run sets it to what its device is fastest with.

    Guarantee: the votes of a record are a function of the record and the candidates alone (`dpsyn.privacy.nearest`
    settles every tie and every rounding by an order of its own), and are one each for at most k distinct candidates.
    So a record that is added or removed changes at most k entries by one, and no other.
    """

    vectors: F32
    labels: I64
    k: int
    population: str = ""
    search: Callable[[np.ndarray], Search] = cpu_search

    @property
    def about(self) -> str:
        return self.population

    @property
    def size(self) -> int:
        return len(self.vectors)

    @property
    def moves(self) -> int:
        return self.k

    def check(self, dimension: int) -> None:
        if not len(distinct(self.vectors)):
            raise UserError(
                "embedding: every candidate's vector is NaN or infinite. The embedding does not fit the data."
            )
        if dimension and self.vectors.shape[1] != dimension:
            raise UserError(
                "embedding: candidates and records have vectors of different lengths. Images must have the same size "
                "and channels: set embedding.size, or data.size, data.mode, api.image_size alike."
            )

    def choices(self, blocks: Iterable[Block]) -> Iterator[tuple[I64, I64]]:
        vectors = flushed(self.vectors)
        label, mine, candidates = -1, np.empty(0, np.int64), vectors[:0]
        shortlist: Any = None
        for block in blocks:
            if block.label != label:
                label = block.label
                mine = np.flatnonzero(self.labels == label)
                mine = mine[distinct(vectors[mine])]
                candidates = np.ascontiguousarray(vectors[mine])
                shortlist = self.search(candidates) if len(mine) else None
            if len(mine):
                yield block.units, mine[nearest(block.vectors, candidates, min(self.k, len(mine)), shortlist)]


@dataclass(frozen=True)
class LabelCounts(Query):
    """How many records each declared label has. labels: how many are declared.

    Guarantee: a record has one label, so one that is added or removed changes one entry by one.
    """

    labels: int

    @property
    def size(self) -> int:
        return self.labels

    @property
    def moves(self) -> int:
        return 1

    @property
    def about(self) -> str:
        return LABELS

    def choices(self, blocks: Iterable[Block]) -> Iterator[tuple[I64, I64]]:
        return ((block.units, np.full((len(block.units), 1), block.label)) for block in blocks)


@dataclass(frozen=True)
class CellCounts(Query):
    """How many records lie in each cell of some marginals. kind: of the release, for the digest.

    Guarantee: a record lies in one cell of each marginal, and which one depends on the record and the marginal alone.
    So one that is added or removed changes as many entries as there are marginals, by one each.
    """

    kind: str
    marginals: tuple[Marginal, ...]

    @property
    def size(self) -> int:
        return sum(marginal.size for marginal in self.marginals)

    @property
    def moves(self) -> int:
        return len(self.marginals)

    @property
    def about(self) -> str:
        digest = hashlib.sha256(self.kind.encode())
        for marginal in self.marginals:
            digest.update(f"{marginal.columns} {marginal.shape}".encode())
            for of_code in marginal.cells:
                digest.update(of_code.astype("<i8").tobytes())
        for expected in self._expected:
            digest.update(expected.astype("<i8").tobytes())
        return f"{CELLS} {digest.hexdigest()}"

    def choices(self, blocks: Iterable[Block]) -> Iterator[tuple[I64, I64]]:
        for block in blocks:
            codes, labels = _codes_of(block)
            yield block.units, entries_of(self.marginals, codes, labels)

    def tally(self, blocks: Iterable[Block]) -> I64:
        return counts_of(self.marginals, map(_codes_of, blocks))

    @property
    def _expected(self) -> tuple[I64, ...]:
        return ()


@dataclass(frozen=True)
class CellScores(CellCounts):
    """The L1 distance of each marginal's counts from those that are expected.

    expected: int64 of each marginal's shape, public.

    Guarantee: a record that is added or removed changes one count of each marginal by one, and so, by the triangle
    inequality, each distance by at most one: as many entries as there are marginals, by at most one each. A record that
    is replaced, or a user of many rows, moves a distance by more, so these are refused.
    """

    expected: tuple[I64, ...]

    def __post_init__(self) -> None:
        if [counts.shape for counts in self.expected] != [marginal.shape for marginal in self.marginals]:
            raise ValueError("cells: expected counts of each marginal's shape")

    @property
    def additive(self) -> bool:
        return False

    def choices(self, blocks: Iterable[Block]) -> Iterator[tuple[I64, I64]]:
        raise RuntimeError("cells: scores are asked of records alone; nothing was read")

    def answer(self, total: I64) -> I64:
        parts = np.split(total, np.cumsum([counts.size for counts in self.expected])[:-1])
        gaps = [np.abs(part - counts.ravel()).sum() for part, counts in zip(parts, self.expected, strict=True)]
        return np.array(gaps, np.int64)

    @property
    def _expected(self) -> tuple[I64, ...]:
        return self.expected


QUERIES = (Nearest, LabelCounts, CellCounts, CellScores)
"""The closed set: a schedule can ask nothing else."""


def _codes_of(block: Block) -> tuple[np.ndarray, np.ndarray]:
    codes = block.vectors.astype(np.int32, copy=False)
    return codes, np.full(len(codes), block.label)
