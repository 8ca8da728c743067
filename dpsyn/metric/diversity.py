"""How much the synthetic texts repeat themselves and each other. No private data is read."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.data import Data
from dpsyn.metric import Metric, Words, check_settings, texts_of, words
from dpsyn.population import Modality, Population
from dpsyn.validate import number

SHINGLE = 3  # words
REPEATED = 4  # words
PAIRS = 200  # others that a text is compared with, about, at most


@dataclass(frozen=True)
class Diversity(Metric):
    """Distinct n-grams of words, exact and near duplicates, self-repetition: of the population alone.

    near: two texts are near duplicates where the sets of their runs of 3 words have a Jaccard similarity of so much.
    """

    near: float

    def __post_init__(self) -> None:
        check_settings(self, "diversity", {}, False)
        number("metric.parts.diversity.near", self.near, "above 0, 1 at most", above=0, most=1)

    @property
    def private(self) -> bool:
        return False

    @property
    def judges(self) -> Sequence[Modality]:
        return ("texts",)

    def reads(self) -> Sequence[Data]:
        return ()

    def __call__(self, population: Population) -> Mapping[str, float]:
        """{'vocabulary': distinct words;
        'distinct_1', 'distinct_2', 'distinct_3': distinct n-grams over all of them (Li et al. 2016, 1510.03055): less,
            the more texts there are, so compare equal numbers;
        'repeated_4': share of the 4-grams that another text has, too (after Salkar et al. 2022, 2210.06945);
        'duplicates': share of texts that equal one before them, but for white space; 'near_duplicates': share of texts
            that have a near duplicate}. Raises UserError for what are no texts.
        """
        texts = texts_of(population.samples, "diversity")
        whole = words(texts)
        return {
            "vocabulary": float(len(np.unique(whole.hashes))),
            **{f"distinct_{n}": distinct(whole, n) for n in (1, 2, 3)},
            f"repeated_{REPEATED}": repeated(whole, REPEATED),
            "duplicates": 1 - len({" ".join(text.split()) for text in texts}) / max(len(texts), 1),
            "near_duplicates": float(near_duplicates(whole, len(texts), self.near).mean()) if len(texts) else 0.0,
        }


def distinct(whole: Words, n: int) -> float:
    """Distinct n-grams over all n-grams; 0 without any.

    whole: the words of all texts.
    n: words of an n-gram.
    """
    hashes, _ = whole.ngrams(n)
    return len(np.unique(hashes)) / max(len(hashes), 1)


def repeated(whole: Words, n: int) -> float:
    """Share of all n-grams that are in more than one text; 0 without any.

    whole: the words of all texts.
    n: words of an n-gram.
    """
    hashes, starts = whole.ngrams(n)
    order = np.argsort(hashes, kind="stable")
    hashes, texts = hashes[order], whole.texts[starts][order]
    first = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]))
    counts = np.diff(first, append=len(hashes))
    return float(counts[texts[first] != texts[first + counts - 1]].sum() / max(len(hashes), 1))


def near_duplicates(whole: Words, n: int, near: float) -> np.ndarray:
    """bool [n]: whether another of the n texts has shingles of a Jaccard similarity of at least that much.

    Two such sets have one in common among the size - ceil(near * size) + 1 rarest of each (Chaudhuri et al. 2006), so
    few pairs are compared: all of those, but where more than PAIRS texts share a shingle.

    whole: the words of all texts.
    n: words of a shingle.
    near: the similarity, above 0 and up to 1.
    """
    values, rarity, bounds = _shingles(whole, n)
    sets = [values[a:b] for a, b in itertools.pairwise(bounds)]
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, one in enumerate(sets):
        groups[one.tobytes()].append(row)
    found = {rows[0]: len(rows) > 1 for rows in groups.values()}
    met: dict[int, list[int]] = defaultdict(list)
    for row in sorted(found, key=lambda row: len(sets[row])):
        mine, candidates = sets[row], set[int]()
        prefix = len(mine) - math.ceil(near * len(mine) - 1e-9) + 1
        shared = rarity[bounds[row] : bounds[row + 1]][:prefix] > 1
        for shingle in mine[:prefix][shared].tolist():
            if len(candidates) < PAIRS:
                candidates.update(k for k in met[shingle] if len(sets[k]) >= near * len(mine) - 1e-9)
            if len(met[shingle]) < PAIRS:
                met[shingle].append(row)
        for other in candidates:
            if not (found[row] and found[other]) and jaccard(mine, sets[other]) >= near - 1e-9:
                found[row] = found[other] = True
    flags = np.zeros(n, bool)
    for rows in groups.values():
        flags[rows] = found[rows[0]]
    return flags


def _shingles(whole: Words, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every text the distinct runs of SHINGLE words, or all its words where it has fewer, the rarest first: hashes
    uint64 [k], in how many texts each is, int64 [k], and where each text begins, int64 [n + 1]."""
    lengths, parts = np.bincount(whole.texts, minlength=n), []
    for length in range(1, SHINGLE + 1):
        hashes, starts = whole.ngrams(length)
        rows = whole.texts[starts]
        belong = lengths[rows] == length if length < SHINGLE else np.ones(len(rows), bool)
        parts.append((hashes[belong], rows[belong]))
    hashes, rows = (np.concatenate(side) for side in zip(*parts, strict=True))
    order = np.lexsort((hashes, rows))
    hashes, rows = hashes[order], rows[order]
    fresh = (np.diff(hashes, prepend=~hashes[:1]) != 0) | (np.diff(rows, prepend=-1) != 0)
    hashes, rows = hashes[fresh], rows[fresh]
    _, which, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    order = np.lexsort((hashes, counts[which], rows))
    return hashes[order], counts[which][order], np.searchsorted(rows[order], np.arange(n + 1))


def jaccard(one: np.ndarray, two: np.ndarray) -> float:
    """The share of what two sets have in common, not both of them empty.

    one: distinct values, rising.
    two: distinct values, rising.
    """
    common = len(np.intersect1d(one, two, assume_unique=True))
    return common / (len(one) + len(two) - common)
