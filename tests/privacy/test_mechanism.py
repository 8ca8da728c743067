import math

import numpy as np
import pytest
from scipy import stats

from dpsyn.privacy import mechanism
from dpsyn.privacy.mechanism import discrete_gaussian


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.7])
def test_the_noise_has_the_probabilities_of_the_discrete_gaussian(sigma):
    drawn = discrete_gaussian(np.zeros(40_000, np.int64), sigma)
    reach = math.ceil(3 * sigma)
    values = np.arange(-8 * reach, 8 * reach + 1)
    chances = np.exp(-(values**2) / (2 * sigma**2))
    chances /= chances.sum()
    inside = np.abs(values) <= reach
    expected = np.append(chances[inside], chances[~inside].sum()) * len(drawn)
    seen = np.append([(drawn == value).sum() for value in values[inside]], (np.abs(drawn) > reach).sum())
    keep = expected > 5
    expected = np.append(expected[keep], expected[~keep].sum() + 1e-9)
    seen = np.append(seen[keep], seen[~keep].sum())
    statistic = ((seen - expected) ** 2 / expected)[expected > 1].sum()
    assert stats.chi2.sf(statistic, (expected > 1).sum() - 1) > 1e-6


def test_two_draws_differ_whatever_the_seed():
    zeros = np.zeros(50, np.int64)
    np.random.seed(0)
    first = discrete_gaussian(zeros, 5.0)
    np.random.seed(0)
    assert (discrete_gaussian(zeros, 5.0) != first).any()


def test_parts_of_a_long_vector_have_independent_noise(monkeypatch):
    monkeypatch.setattr(mechanism, "free_threads", lambda: 4)
    counts = np.arange(8000) * 1000
    noise = (discrete_gaussian(counts, 50.0) - counts).reshape(4, 2000)
    assert np.abs(noise).max() < 50 * 8  # every entry has its own count
    assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.12  # 5 standard deviations
    assert noise.std(1) == pytest.approx([50] * 4, rel=0.1)


def test_large_counts_do_not_saturate():
    counts = np.array([2**40, -(2**40), 0])
    assert np.abs(discrete_gaussian(counts, 1024.0) - counts).max() < 10 * 1024


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 0.29])
def test_a_scale_that_would_return_the_exact_counts_is_refused(scale):
    with pytest.raises(ValueError, match="scale"):
        discrete_gaussian(np.arange(5), scale)
