"""How values of a column may begin, and which of these cells a record lies in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpsyn.population import I32, I64

END = 255  # codes of a character, at most: more do not fit in a byte, and the last stands for what is none


@dataclass(frozen=True)
class Spelled:
    """A value's characters among the codes of a record, and what is asked of them.

    first: the code of its first character; the others follow.
    letters: codes of a character: 0 is the end of the value, and all that follows it.
    prefixes: int32 [p, t], different ones, of codes from 1 on: how values may begin. They are released facts.
    ahead: characters after a prefix that are told apart.
    values: int32 [v, longest], different ones: whole values. They are released facts.
    """

    first: int
    letters: int
    prefixes: I32
    ahead: int
    values: I32

    def __post_init__(self) -> None:
        if not 2 <= self.letters <= END:
            raise ValueError(f"prefixes: expected 2 to {END} codes of a character")
        for least, each in ((1, self.prefixes), (0, self.values)):
            if (each < least).any() or (each >= self.letters).any():
                raise ValueError("prefixes: expected codes of characters")
            if len(np.unique(_packed(each))) < len(each):
                raise ValueError("prefixes: expected each once")

    @property
    def cells(self) -> int:
        """After a prefix: one for each way in which a value may go on."""
        return int(self.letters**self.ahead)

    @property
    def size(self) -> int:
        """Cells of all prefixes, one for each whole value, and one for all else."""
        return len(self.prefixes) * self.cells + len(self.values) + 1

    def entries(self, codes: np.ndarray) -> I64:
        """The cell of each record, int64 [n]. codes: int32 [n, d]."""
        known, mine = self.prefixes.shape[1], codes[:, self.first : self.first + self.values.shape[1]]
        whole, prefix = _place(self.values, mine), _place(self.prefixes, mine[:, :known])
        after = mine[:, known : known + self.ahead].astype(np.int64)
        fits = (prefix >= 0) & ((after >= 0) & (after < self.letters)).all(1)
        cell = np.zeros(len(codes), np.int64)
        for each in after.T:
            cell = cell * self.letters + each
        found = np.where(fits, prefix * self.cells + cell, self.size - 1)
        return np.where(whole >= 0, len(self.prefixes) * self.cells + whole, found)


def _packed(codes: np.ndarray) -> np.ndarray:
    """Rows of codes as texts of bytes, [n], which are equal where the rows are, but for zeros at their ends: a prefix
    has none. codes: int [n, t]."""
    n, length = codes.shape
    if not length:
        return np.zeros(n, "S1")
    narrow = np.where((codes < 0) | (codes >= END), END, codes).astype(np.uint8)
    return np.ascontiguousarray(narrow).view(f"S{length}")[:, 0]


def _place(known: I32, codes: np.ndarray) -> I64:
    """Which of the known rows each row is, int64 [n]; -1 for none of them. codes: int [n, t]."""
    if not len(known):
        return np.full(len(codes), -1, np.int64)
    packed, mine = _packed(known), _packed(codes)
    order = np.argsort(packed)
    place = order[np.searchsorted(packed[order], mine).clip(0, len(known) - 1)]
    return np.where(packed[place] == mine, place, -1)
