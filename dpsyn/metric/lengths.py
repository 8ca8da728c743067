"""How long the texts are, against real ones: in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dpsyn.data import Data
from dpsyn.errors import UserError
from dpsyn.metric import Metric, check_real, check_settings, real_samples, texts_of
from dpsyn.population import Modality, Population

BATCH = 1024


@dataclass(frozen=True)
class Lengths(Metric):
    """Wasserstein distance between the numbers of words of synthetic and real texts, and what they are like.

    Words are what white space parts. data: the real data, read once. public: the real data are public; otherwise the
    numbers are private.
    """

    data: Data
    public: bool

    def __post_init__(self) -> None:
        check_settings(self, "lengths", {}, self.public)

    def check(self) -> None:
        """Raises UserError without real data."""
        check_real(self.data)

    @property
    def private(self) -> bool:
        return not self.public

    @property
    def judges(self) -> Sequence[Modality]:
        return ("texts",)

    def reads(self) -> Sequence[Data]:
        return (self.data,)

    def __call__(self, population: Population) -> Mapping[str, float]:
        """In words: {'lengths_wasserstein', and '..._mean', '..._std', '..._median', '..._p90' (90 % have no more) of
        the synthetic texts and, with '_real' after them, of the real ones}. Raises UserError for what are no texts.
        """
        from scipy.stats import wasserstein_distance

        ours = counted(texts_of(population.samples, "lengths"))
        if not len(ours) or not len(self.real_lengths):
            raise UserError("metric lengths: expected a synthetic and a real text, or more.")
        return {
            "lengths_wasserstein": float(wasserstein_distance(ours, self.real_lengths)),
            **_like("", ours),
            **_like("_real", self.real_lengths),
        }

    @cached_property
    def real_lengths(self) -> np.ndarray:
        parts = [counted(texts_of(samples, "lengths")) for samples in real_samples(self.data, BATCH)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def __getstate__(self) -> dict[str, object]:
        """Pickles the settings only, never statistics of real data."""
        return {key: value for key, value in vars(self).items() if key != "real_lengths"}


def counted(texts: Iterable[str]) -> np.ndarray:
    """Words, int64 [n]."""
    return np.array([len(text.split()) for text in texts], np.int64)


def _like(side: str, counts: np.ndarray) -> dict[str, float]:
    numbers = {"mean": counts.mean(), "std": counts.std(), "median": np.median(counts), "p90": np.quantile(counts, 0.9)}
    return {f"lengths_{name}{side}": float(number) for name, number in numbers.items()}
