"""How much of a private text stands in a synthetic one, word for word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.data import Data
from dpsyn.metric import Metric, check_settings, real_samples, texts_of, words
from dpsyn.population import Modality, Population

SHORTEST = 4  # words: nearly any two texts have shorter n-grams in common
SHARES = 10, 20, 50


@dataclass(frozen=True)
class Overlap(Metric):
    """For every synthetic text the longest n-gram of words that any private text has, too: exact, over all of them.

    data: the private data, streamed anew at every call, in batches of batch_size texts. Memory is bounded by the
    synthetic texts and one batch. The numbers are always private.
    """

    data: Data
    batch_size: int

    def __post_init__(self) -> None:
        check_settings(self, "overlap", {"batch_size": 1}, False)

    def check(self) -> None:
        """Raises UserError for what the data can tell to be wrong without reading a row."""
        self.data.check()

    @property
    def private(self) -> bool:
        return True

    @property
    def judges(self) -> Sequence[Modality]:
        return ("texts",)

    def reads(self) -> Sequence[Data]:
        return (self.data,)

    def __call__(self, population: Population) -> Mapping[str, float]:
        """{'overlap_mean', 'overlap_max': words; 'overlap_10', 'overlap_20', 'overlap_50': share of the synthetic texts
        with so many words or more}. Fewer than 4 count as 0. Raises UserError for what are no texts.
        """
        ours = texts_of(population.samples, "overlap")
        theirs = (texts_of(samples, "overlap") for samples in real_samples(self.data, self.batch_size))
        longest = longest_common(ours, theirs)
        return {
            "overlap_mean": float(longest.mean()),
            "overlap_max": float(longest.max()),
            **{f"overlap_{n}": float((longest >= n).mean()) for n in SHARES},
        }


def longest_common(texts: np.ndarray, others: Iterable[np.ndarray]) -> np.ndarray:
    """int64 [n]: of every text the words of the longest n-gram that is in any of the others, 0 for less than SHORTEST.

    texts: object of str [n].
    others: object of str, in batches.
    """
    ours, longest = words(texts), np.zeros(len(texts), np.int64)
    hashes, starts = ours.ngrams(SHORTEST)
    order = np.argsort(hashes, kind="stable")
    hashes, starts = hashes[order], starts[order]
    for batch in others:
        theirs = words(batch)
        known, there = theirs.ngrams(SHORTEST)
        met = _among(known, hashes)
        known, there = known[met], there[met]
        distinct = np.unique(known)
        first, last = np.searchsorted(hashes, distinct), np.searchsorted(hashes, distinct, "right")
        counts = last - first
        which = np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        found, here, n = hashes[which], starts[which], SHORTEST
        while len(here):
            rows = ours.texts[here]
            longest[rows] = np.maximum(longest[rows], n)
            found, here = ours.longer(found, here, n)
            known, there = theirs.longer(known, there, n)
            met = np.isin(found, known)
            found, here = found[met], here[met]
            met = np.isin(known, found)
            known, there = known[met], there[met]
            n += 1
    return longest


def _among(values: np.ndarray, sorted_ones: np.ndarray) -> np.ndarray:
    if not len(sorted_ones):
        return np.zeros(len(values), bool)
    return sorted_ones[np.minimum(np.searchsorted(sorted_ones, values), len(sorted_ones) - 1)] == values
