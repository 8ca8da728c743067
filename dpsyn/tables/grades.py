"""The numbers that a column without a declared resolution may have: seven digits, whatever the bounds.

Equal steps lose the cents of prices near 1 as soon as the bounds are a million. Here a step is a ten-millionth of the
number's own power of ten, as long as that is finer than a millionth of the range (of its power of ten).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

DIGITS = 6  # behind the first
DECADES = 24  # below the coarsest grade
FINEST = -300  # what floats tell from zero
ALL = 10**DIGITS


@dataclass(frozen=True)
class Grades:
    """Numbers from low to high, numbered from 0: an integer number of steps 10^(e - 6) in each decade 10^e."""

    low: float
    high: float

    @functools.cached_property
    def top(self) -> int:
        """The decade from which on steps are equal."""
        if self.high == self.low:
            return math.floor(math.log10(abs(self.high) or 1.0))
        apart = math.floor(math.log10(self.high - self.low))
        largest = math.floor(math.log10(max(abs(self.low), abs(self.high))))
        return max(apart, largest - 15 + DIGITS, FINEST + DECADES)  # no step is below what floats tell apart there

    @property
    def bottom(self) -> int:
        """The decade below which steps are equal again, down to zero."""
        return self.top - DECADES

    @property
    def coarsest(self) -> float:
        return float(f"1e{self.top - DIGITS}")

    @property
    def finest(self) -> float:
        return float(f"1e{self.bottom - DIGITS}")

    @functools.cached_property
    def first(self) -> int:
        return int(self._ranks(np.array([self.low]))[0])

    @property
    def size(self) -> int:
        return int(self._ranks(np.array([self.high]))[0]) - self.first + 1

    def codes_of(self, numbers: np.ndarray) -> np.ndarray:
        """float64 [n], none NaN -> int64 [n]"""
        return self._ranks(numbers) - self.first

    def numbers(self, codes: np.ndarray) -> np.ndarray:
        """int64 [n] -> float64 [n], within low and high"""
        ranks = codes + self.first
        steps = np.abs(ranks)
        decades = np.clip((steps - ALL) // (9 * ALL), 0, DECADES)
        steps = steps - decades * 9 * ALL
        found = np.empty(len(codes))
        for decade in np.unique(decades).tolist():  # by a power of ten that is exact, so that 0.3 is 0.3
            here, power = decades == decade, self.bottom + decade - DIGITS
            if abs(power) <= 22:
                found[here] = steps[here] / 10.0**-power if power < 0 else steps[here] * 10.0**power
            else:
                found[here] = [float(f"{step}e{power}") for step in steps[here].tolist()]
        return (np.sign(ranks) * found).clip(self.low, self.high)

    def _ranks(self, numbers: np.ndarray) -> np.ndarray:
        """int64 [n]: in order, 0 of zero."""
        sizes = np.abs(numbers)
        with np.errstate(divide="ignore"):
            decades = np.floor(np.log10(sizes)).clip(self.bottom, self.top).astype(np.int64)
        steps = np.rint(sizes / self._steps[decades - self.bottom]).astype(np.int64)
        ranks: np.ndarray = np.where(numbers < 0, -1, 1) * (steps + (decades - self.bottom) * 9 * ALL)
        return ranks

    @functools.cached_property
    def _steps(self) -> np.ndarray:
        return np.array([float(f"1e{decade - DIGITS}") for decade in range(self.bottom, self.top + 1)])
