"""Hashed n-grams of words and of characters: which words a text has and how they are written, without any model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, invalid
from dpsyn.population import Modality, Samples
from dpsyn.validate import whole

CHARACTERS = 1 << 16  # of the texts hashed at once: four times as fast as 1 << 18 on texts of 100 characters
BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Ngrams(Embedding):
    """Texts -> float32 [n, features], of length 1, or 0 for a text without n-grams.

    word_ngrams: [least, most] words in a row; char_ngrams: [least, most] characters in a row, white space being one
    space, one at each end of the text. None: none of that kind. Case is ignored.

    An n-gram adds 1 or -1 to one feature (Weinberger et al. 2009, 0902.2206), a sum x becomes sign(x) log(1 + |x|), and
    words and characters weigh alike. All hashes are integer arithmetic, the same in any batch, process and machine.
    """

    features: int
    word_ngrams: Sequence[int] | None
    char_ngrams: Sequence[int] | None

    def __post_init__(self) -> None:
        whole("embedding.features", self.features, 1)
        for key in ("word_ngrams", "char_ngrams"):
            value = getattr(self, key)
            pair = isinstance(value, Sequence) and len(value) == 2 and all(type(v) is int for v in value)
            if value is not None and not (pair and 1 <= value[0] <= value[1]):
                raise invalid(f"embedding.{key}", value, "[least, most], such as [1,2], or null")
        if self.word_ngrams is None and self.char_ngrams is None:
            raise invalid("embedding.word_ngrams", "null", "[least, most] where char_ngrams is null, too")

    def fingerprint(self) -> str:
        return ""

    @property
    def fits(self) -> Sequence[Modality]:
        return ("texts",)

    def reads(self) -> Sequence[Data]:
        return ()

    def __call__(self, samples: Samples) -> np.ndarray:
        """Raises UserError for what are no texts."""
        if samples.content.dtype != object:
            raise UserError("embedding ngrams: expected texts. Choose an embedding for this kind of data.")
        texts = [f" {' '.join(text.lower().split())} " for text in samples.content]
        parts = [self._vectors(some) for some in _chunks(texts)]
        return np.concatenate([np.zeros((0, self.features), np.float32), *parts])

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
        rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        characters = _mixed(codes.astype(np.uint64))
        total = np.zeros((len(texts), self.features))
        if self.char_ngrams:
            total += self._family(characters, rows, len(texts), self.char_ngrams)
        if self.word_ngrams:
            words, starts = _words(codes, characters)
            total += self._family(words, rows[starts], len(texts), self.word_ngrams)
        return _of_length_one(total).astype(np.float32)

    def _family(self, items: np.ndarray, rows: np.ndarray, n: int, lengths: Sequence[int]) -> np.ndarray:
        """float64 [n, features], each row of length 1 or 0. items: uint64 [m], of text rows[i] each, in order."""
        sums = np.zeros(n * self.features)
        hashes = np.zeros_like(items)
        for length in range(1, lengths[1] + 1):
            m = max(len(items) - length + 1, 0)
            hashes = hashes[:m] * BASE + items[length - 1 :]
            if length < lengths[0]:
                continue
            whole = rows[:m] == rows[length - 1 :]
            drawn = _mixed(hashes[whole] + np.uint64(length))
            cells = rows[:m][whole] * self.features + ((drawn >> np.uint64(1)) % np.uint64(self.features)).astype(
                np.int64
            )
            sums += np.bincount(cells, np.where(drawn & np.uint64(1), 1.0, -1.0), len(sums))
        return _of_length_one((np.sign(sums) * np.log1p(np.abs(sums))).reshape(n, self.features))


def _words(codes: np.ndarray, characters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A hash, uint64, and the start of every run of letters and digits. codes: a space is the last."""
    known, which = np.unique(codes, return_inverse=True)
    edges = np.flatnonzero(np.diff(np.array([chr(code).isalnum() for code in known], bool)[which], prepend=False))
    if not len(edges):
        return np.zeros(0, np.uint64), edges
    powers = np.cumprod(np.full(np.diff(edges)[::2].max(), BASE))
    place = np.arange(edges[0], len(codes)) - np.repeat(edges, np.diff(edges, append=len(codes)))
    terms = characters[edges[0] :] * powers[np.minimum(place, len(powers) - 1)]
    return _mixed(np.add.reduceat(terms, edges - edges[0])[::2]), edges[::2]


def _mixed(values: np.ndarray) -> np.ndarray:
    """uint64: the finalizer of SplitMix64 (Steele et al. 2014), after which every bit depends on all."""
    values = values + BASE
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


def _of_length_one(rows: np.ndarray) -> np.ndarray:
    lengths = np.sqrt(np.square(rows).sum(1, keepdims=True))
    return rows / np.where(lengths, lengths, 1)


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """All texts, in runs of about CHARACTERS."""
    start = size = 0
    for k, text in enumerate(texts, 1):
        size += len(text)
        if size >= CHARACTERS or k == len(texts):
            yield texts[start:k]
            start, size = k, 0
