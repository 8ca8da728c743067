"""What may be asked of private records, and what one of them can move in the answer: a closed set.

A query is made of noisy answers and public facts alone. The electorate tallies it, the ledger compares what it moves
with what is charged for it and adds the noise. A new kind of query is an edit of this file, with its guarantee argued
in the docstring and shown in `tests/privacy/test_stability.py`.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dpsyn.embedding import Sparse
from dpsyn.errors import UserError
from dpsyn.networks.search import Search, cpu_search
from dpsyn.population import F32, F64, I32, I64
from dpsyn.privacy.budget import GRID, SUMS_GRID, Unit
from dpsyn.privacy.marginals import Marginal, counts_of, entries_of
from dpsyn.privacy.nearest import FARTHEST, distinct, flushed, nearest
from dpsyn.privacy.prefixes import Spelled
from dpsyn.privacy.votes import count_by_record, count_by_user

LABELS = "the declared labels"  # what a receipt of their counts is about
CELLS = "cells"  # and what that of counts of cells begins with
SUMS = "sums"  # and of sums of embeddings
HISTOGRAM = "histogram"  # and of histograms of held-out records
PREFIXES = "prefixes"  # and of counts of values by how they begin
COUNT = 0.2  # of a record's vector of length one, what goes into the count


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
    codes: of records that have both, int32 [b, c]; None: others.
    """

    label: int
    vectors: Any
    units: I64
    codes: I32 | None = None


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

    @property
    def signed(self) -> bool:
        """Whether two units may count in opposite directions, so that one that is replaced moves the answer by twice
        what one that is added does, not by the root of 2 of it. The ledger refuses it under replace-one."""
        return False

    def grid(self, unit: Unit) -> int:
        """What is tallied is counted in whole 1/grid."""
        return GRID if unit == "user" else 1

    def check(self, dimension: int) -> None:
        """Raises UserError where records of vectors of this length cannot be asked."""
        return None

    def tally(self, blocks: Iterable[Block]) -> I64:
        """int64 [size], exact: the sum over records, so that shards can be added up."""
        return count_by_record((rows for _, rows in self.choices(blocks)), self.size)

    def tally_by_user(self, blocks: Callable[[], Iterable[Block]]) -> I64:
        """int64 [size], exact, in 1/grid: all that a user's records count for is one vector of norm one at most.

        blocks: all records, as often as it is called.
        """
        return count_by_user(self.choices(blocks()), self.size)

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


@dataclass(frozen=True)
class EmbeddingSums(Query):
    """The sum of the vectors of the records in each cell, and their number, as one vector: entries [cells, d + 1], of
    each cell its d sums and then its count. The cells are the labels; or, of rows of a table, the cells of some of
    their columns, column after column.

    labels: how many are declared.
    centre: float32 [d], and radius: public. Of a record's vector v the d entries from `first` on are taken as
        (v - centre) / radius, cut to length one; one that is NaN or infinite as 0.
    replaceable: the same at half the square of the length, for replace-one.
    columns: of the codes, each with cells of its own; (): the labels are the cells.
    cells: for each of them int64 [codes, labels]: the cell of a record with this code and this label, from 0.
    first: where in a record's vector the entries begin that are summed: each text of a record has its own.

    Guarantee: a record adds one vector to the entries of its cell, and which one depends on the record and on public or
    released facts alone: sqrt(1 - COUNT^2) times what its vector is taken as, beside COUNT. So its length is at most
    one. With k columns it adds that vector at 1/sqrt(k) of its length to k cells, whose entries are k different ones:
    together they are no longer than it. Rounding to whole 1/grid, toward zero, makes nothing longer. So a record that
    is added or removed moves the answer by L2 norm one at most. The records of a user share that: each counts for one
    part in their number, so their sum is no longer than one (the triangle inequality), whatever cells they lie in. Two
    vectors of length one may be 2 apart; two of length sqrt(1/2) are sqrt(2) apart at most, as two votes are, and only
    these are asked under replace-one.
    """

    labels: int
    centre: F32
    radius: float
    replaceable: bool = False
    columns: tuple[int, ...] = ()
    cells: tuple[I64, ...] = ()
    first: int = 0

    def __post_init__(self) -> None:
        if len(self.columns) != len(self.cells):
            raise ValueError("sums: expected cells of each column")
        _check_from_zero(self.cells)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Cells of each column; of the labels, where these are the cells."""
        return tuple(int(cells.max()) + 1 for cells in self.cells) or (self.labels,)

    @property
    def size(self) -> int:
        return sum(self.sizes) * (len(self.centre) + 1)

    @property
    def moves(self) -> int:
        return 1

    @property
    def signed(self) -> bool:
        return not self.replaceable

    @property
    def about(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.centre, "<f4").tobytes())
        digest.update(f"{self.labels} {self.radius!r} {self.replaceable}".encode())
        for column, cells in zip(self.columns, self.cells, strict=True):
            digest.update(f"{column} {cells.shape}".encode() + cells.astype("<i8").tobytes())
        if self.first:
            digest.update(f"from {self.first}".encode())
        return f"{SUMS} {digest.hexdigest()}"

    def grid(self, unit: Unit) -> int:
        return SUMS_GRID

    def check(self, dimension: int) -> None:
        last = self.first + len(self.centre)
        if dimension and (last > dimension or (not self.columns and last != dimension)):
            raise UserError("embedding: candidates and records have vectors of different lengths.")

    def choices(self, blocks: Iterable[Block]) -> Iterator[tuple[I64, I64]]:
        raise RuntimeError("sums: a record chooses none of their entries; nothing was read")

    def tally(self, blocks: Iterable[Block]) -> I64:
        return self._summed((block, np.ones(len(block.units))) for block in blocks)

    def tally_by_user(self, blocks: Callable[[], Iterable[Block]]) -> I64:
        units = np.concatenate([np.empty(0, np.int64), *(np.array(block.units) for block in blocks())])
        users, rows = np.unique(units[units >= 0], return_counts=True)

        def shared() -> Iterator[tuple[Block, F64]]:
            for block in blocks():
                parts, known = np.zeros(len(block.units)), block.units >= 0
                parts[known] = 1 / rows[np.searchsorted(users, block.units[known])]
                yield block, parts

        return self._summed(shared())

    def told(self, answer: Answer) -> tuple[F64, F64, float, float]:
        """What a noisy answer says: sums float64 [cells, d] of what the vectors are taken as, counts float64 [cells],
        and the standard deviations of the noise in each of them."""
        entries = answer.values.reshape(sum(self.sizes), -1) / self._length
        deviation = answer.deviation / self._length
        vector = math.sqrt(1 - COUNT**2)
        return entries[:, :-1] / vector, entries[:, -1] / COUNT, deviation / vector, deviation / COUNT

    @property
    def _length(self) -> float:
        """Of what a record adds to one cell, at most."""
        return math.sqrt((0.5 if self.replaceable else 1.0) / len(self.sizes))

    def _summed(self, parts: Iterable[tuple[Block, F64]]) -> I64:
        d = len(self.centre)
        total = np.zeros((sum(self.sizes), d + 1), np.int64)
        most = self._length * SUMS_GRID
        for block, share in parts:
            vectors = block.vectors.dense() if isinstance(block.vectors, Sparse) else block.vectors
            taken = (vectors[:, self.first : self.first + d].astype(np.float64) - self.centre) / self.radius
            taken[~(np.abs(taken) < FARTHEST).all(1)] = 0
            taken /= np.maximum(np.sqrt(np.einsum("ij,ij->i", taken, taken)), 1)[:, None]
            joint = np.concatenate([math.sqrt(1 - COUNT**2) * taken, np.full((len(taken), 1), COUNT)], 1)
            # a little less than the most, so that what floats round up is still below it
            whole = np.trunc(joint * (share * most * (1 - 1e-9))[:, None]).astype(np.int64)
            assert (np.einsum("ij,ij->i", whole, whole) <= (share * most) ** 2).all(), "a record counts for too much"
            if not self.columns:
                total[block.label] += whole.sum(0)
                continue
            codes, start = _codes_of(block)[0], 0
            for column, cells, size in zip(self.columns, self.cells, self.sizes, strict=True):
                np.add.at(total, start + cells[codes[:, column], block.label], whole)
                start += size
        return total.ravel()


@dataclass(frozen=True)
class Histogram(Query):
    """How many records lie in each bin of some histograms: what a finished data set is measured by on held-out records.

    judge: a digest of what makes the codes of a record, the synthetic data among it.
    columns: of the codes, one a histogram.
    bins: for each of them int64 [codes, labels]: the bin of a record with this code and this label, from 0.

    Guarantee: the codes of a record are a function of the record and of public or released facts alone, and it lies in
    one bin of each histogram. So a record that is added or removed changes as many entries as there are histograms, by
    one each.
    """

    judge: str
    columns: tuple[int, ...]
    bins: tuple[I64, ...]

    def __post_init__(self) -> None:
        _check_from_zero(self.bins)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(int(bins.max()) + 1 for bins in self.bins)

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @property
    def moves(self) -> int:
        return len(self.columns)

    @property
    def about(self) -> str:
        digest = hashlib.sha256(f"{self.judge} {self.columns}".encode())
        for bins in self.bins:
            digest.update(f"{bins.shape}".encode() + bins.astype("<i8").tobytes())
        return f"{HISTOGRAM} {digest.hexdigest()}"

    def choices(self, blocks: Iterable[Block]) -> Iterator[tuple[I64, I64]]:
        starts = np.cumsum([0, *self.sizes[:-1]])
        for block in blocks:
            codes, labels = _codes_of(block)
            found = [
                start + bins[codes[:, column], labels]
                for start, column, bins in zip(starts, self.columns, self.bins, strict=True)
            ]
            yield block.units, np.stack(found, axis=1)


@dataclass(frozen=True)
class PrefixCounts(Query):
    """How many records have a value that begins with each of some prefixes, by how it goes on, or each of some whole
    values; of some columns.

    columns: their values, whose codes do not overlap.

    Guarantee: the prefixes and whole values are public or released, and a record lies in one cell of each column: that
    of its whole value, that of its prefix and of the characters after it, or the one for all else. Which one depends on
    the record and on what is asked alone. So a record that is added or removed changes as many entries as there are
    columns, by one each.
    """

    columns: tuple[Spelled, ...]

    @property
    def size(self) -> int:
        return sum(column.size for column in self.columns)

    @property
    def moves(self) -> int:
        return len(self.columns)

    @property
    def about(self) -> str:
        digest = hashlib.sha256()
        for column in self.columns:
            digest.update(f"{column.first} {column.letters} {column.prefixes.shape} {column.ahead}".encode())
            digest.update(f"{column.values.shape}".encode() + column.prefixes.astype("<i4").tobytes())
            digest.update(column.values.astype("<i4").tobytes())
        return f"{PREFIXES} {digest.hexdigest()}"

    def parts(self, values: F64) -> list[tuple[F64, F64]]:
        """Of each column float64 [prefixes, cells] and [values], without all else. values: of an answer."""
        split = np.split(values, np.cumsum([column.size for column in self.columns])[:-1])
        ends = [len(column.prefixes) * column.cells for column in self.columns]
        return [
            (part[:end].reshape(-1, column.cells), part[end:-1])
            for column, part, end in zip(self.columns, split, ends, strict=True)
        ]

    def choices(self, blocks: Iterable[Block]) -> Iterator[tuple[I64, I64]]:
        starts = np.cumsum([0, *(column.size for column in self.columns)])
        for block in blocks:
            codes, _ = _codes_of(block)
            found = [start + column.entries(codes) for start, column in zip(starts, self.columns, strict=False)]
            yield block.units, np.stack(found, axis=1)


QUERIES = (Nearest, LabelCounts, CellCounts, CellScores, EmbeddingSums, Histogram, PrefixCounts)
"""The closed set: a schedule can ask nothing else."""


def _check_from_zero(cells: Sequence[I64]) -> None:
    """Raises ValueError for a number below 0: it would be an entry of another column, in which a record counts too."""
    if any(each.min() < 0 for each in cells):
        raise ValueError("cells: expected numbers from 0")


def _codes_of(block: Block) -> tuple[np.ndarray, np.ndarray]:
    codes = block.vectors.astype(np.int32, copy=False) if block.codes is None else block.codes
    return codes, np.full(len(codes), block.label)
