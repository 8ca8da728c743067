"""Epsilon by exact convolution: a second opinion on the accountant, without an FFT and without its library.

The noise of a release is a sum of discrete Gaussians on the integers, so the sum of the noise in all entries that one
unit moves is one again: its probabilities are convolved directly, or, where two widths make the difference smaller than
a float can hold, written down. Privacy losses of different widths are put on one grid by splitting each between its two
neighbours so that both hypotheses keep their mass: the trade-off is then never better than the true one (Doroshenko et
al. 2022, "connect the dots"), and by less than 1e-5 of epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

STEPS = 300  # of the grid, in a standard deviation of the loss
REACH = 13.0  # standard deviations beyond which no mass above 1e-37 lies
SMOOTH = 2.0  # from this width on, sums of discrete Gaussians are discrete Gaussians to 1e-17 (Poisson summation)
DENSE = 2_000_000  # integers; a wider sum is as good as continuous (relative error below 1e-10)

Losses = tuple[int, np.ndarray]
"""The first place on the grid, and float64 masses from there on, under the hypothesis that draws them."""


def epsilon(gaussians: Mapping[tuple[float, bool], int], delta: float) -> float:
    """Epsilon at delta of Gaussian mechanisms of sensitivity one.

    gaussians: (standard deviation, whether its noise is whole numbers) -> how often it is composed.
    delta: of the statement, above 0.
    """
    return _at(delta, *_composed(gaussians)) if gaussians else 0.0


def hit_rates(gaussians: Mapping[tuple[float, bool], int], false_alarms: np.ndarray) -> np.ndarray:
    """The largest hit rate that any test of one unit's presence has at these rates of false alarms, float64 [n]: by the
    lemma of Neyman and Pearson, which tests on the privacy loss.

    gaussians: as in `epsilon`.
    false_alarms: float64 [n], between 0 and 1.
    """
    if not gaussians:
        return np.array(false_alarms, np.float64)
    first, masses, step = _composed(gaussians)
    there = masses > 0
    losses = (first + np.flatnonzero(there)) * step
    hits = masses[there][::-1]
    alarms = np.exp(np.log(hits) - losses[::-1])  # the same mass under the other hypothesis
    known = np.minimum(np.cumsum([0.0, *alarms]), 1.0), np.minimum(np.cumsum([0.0, *hits]), 1.0)
    return np.maximum(np.interp(false_alarms, *known), false_alarms)


def _composed(gaussians: Mapping[tuple[float, bool], int]) -> tuple[int, np.ndarray, float]:
    """The losses of all mechanisms together, and the step of their grid."""
    mu = math.sqrt(sum(times / deviation**2 for (deviation, _), times in gaussians.items()))
    step = mu / STEPS
    if len(gaussians) == 1:
        ((deviation, whole),) = gaussians
        step = 0.5 / deviation**2 if whole and not _is_dense(deviation, gaussians[deviation, whole]) else step
    parts = []
    continuous = 0.0
    for (deviation, whole), times in gaussians.items():
        if not whole or _is_dense(deviation, times):
            continuous += times / deviation**2
        else:
            parts.append(_discrete(deviation, times, step))
    if continuous:
        parts.append(_continuous(math.sqrt(continuous), step))
    parts.sort(key=lambda part: len(part[1]))
    first, masses = parts[0]
    for other, more in parts[1:]:
        first, masses = first + other, np.convolve(masses, more)
    return first, masses, step


def _is_dense(deviation: float, times: int) -> bool:
    return deviation * math.sqrt(times) * REACH > DENSE


def _discrete(deviation: float, times: int, step: float) -> Losses:
    """Of the sum of `times` discrete Gaussians, each moved by one."""
    width = deviation * math.sqrt(times)
    half = math.ceil(REACH * width) + 2
    if deviation >= SMOOTH or times == 1:
        masses = np.exp(-0.5 * (np.arange(-half, half + 1) / width) ** 2)
        masses /= masses.sum()
    else:
        masses = _powered(deviation, times, half)
    half = len(masses) // 2
    losses = (times - 2.0 * np.arange(-half, half + 1)) / (2 * deviation**2)
    return _on_grid(losses, masses, step)


def _powered(deviation: float, times: int, half: int) -> np.ndarray:
    """The masses of the sum on -half..half, by squaring."""
    single = np.exp(-0.5 * (np.arange(-half, half + 1) / deviation) ** 2)
    single /= single.sum()
    total: np.ndarray | None = None
    while times:
        if times & 1:
            total = single if total is None else _middle(np.convolve(total, single), half)
        times >>= 1
        if times:
            single = _middle(np.convolve(single, single), half)
    assert total is not None
    return total


def _middle(masses: np.ndarray, half: int) -> np.ndarray:
    centre = len(masses) // 2
    return masses[centre - half : centre + half + 1]


def _on_grid(losses: np.ndarray, masses: np.ndarray, step: float) -> Losses:
    below = np.floor(losses / step + 1e-9).astype(np.int64)  # what lies on the grid stays there
    gap = np.maximum(losses - below * step, 0.0)
    # p = down + up and p e^-l = down e^-g + up e^-(g + step), g the place below
    up = masses * np.expm1(-gap) / math.expm1(-step)
    first = int(below.min())
    size = int(below.max()) - first + 2
    return first, np.bincount(below - first, masses - up, size) + np.bincount(below - first + 1, up, size)


def _continuous(mu: float, step: float) -> Losses:
    """Of a Gaussian mechanism whose loss has variance mu^2 and mean mu^2 / 2."""
    from scipy.special import ndtr

    first = math.floor((mu * mu / 2 - REACH * mu) / step)
    last = math.ceil((mu * mu / 2 + REACH * mu) / step)
    edges = np.arange(first, last + 1) * step
    centred = edges / mu
    mass, other = (_between(ndtr, centred + sign * mu / 2) for sign in (-1, 1))  # of both hypotheses
    left, right = np.exp(edges[:-1]), edges[1:] - edges[:-1]
    up = (mass - other * left) / -np.expm1(-right)
    up = np.clip(up, 0, mass)
    size = len(edges)
    places = np.arange(size - 1)
    return first, np.bincount(places, mass - up, size) + np.bincount(places + 1, up, size)


def _between(ndtr, edges: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Mass of a standard Gaussian between neighbouring edges, without cancelling in the upper tail."""
    upper = edges[:-1] > 0
    return np.where(upper, ndtr(-edges[:-1]) - ndtr(-edges[1:]), ndtr(edges[1:]) - ndtr(edges[:-1]))


def _at(delta: float, first: int, masses: np.ndarray, step: float) -> float:
    """The least epsilon, 0 or more, at which the sum of masses (1 - e^(epsilon - loss)) over larger losses is delta."""
    from scipy.signal import lfilter

    above = np.cumsum(masses[::-1])[::-1]
    scaled = lfilter([1.0], [1.0, -math.exp(-step)], masses[::-1])[::-1]  # sums of mass e^(this loss - its own)
    place = int(np.argmax(above - scaled <= delta))  # delta at epsilon = loss, falling
    if place == 0:
        return 0.0
    return max(0.0, (first + place) * step + math.log((above[place] - delta) / scaled[place]))
