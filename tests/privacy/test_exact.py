"""Epsilon by exact convolution, held against sums over all outcomes and against the accountant."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import vote_budget
from scipy.stats import norm

from dpsyn.errors import UserError
from dpsyn.privacy import budget, exact
from dpsyn.privacy.budget import GRID, SMALLEST_SIGMA, Budget, Charge, Settings, epsilon_of, exact_epsilon


def charges(sigma, releases=1, moves=1, grid=1):
    return [Charge("votes", sigma, grid, moves)] * releases


def delta_by_enumeration(sigmas, epsilon):
    """Sum over all outcomes of max(0, p - e^epsilon q), each entry moved by one."""
    p = q = np.ones(())
    for sigma in sigmas:
        x = np.arange(-math.ceil(9 * sigma) - 1, math.ceil(9 * sigma) + 2)
        at, shifted = (np.exp(-0.5 * ((x - move) / sigma) ** 2) for move in (0, 1))
        p, q = np.multiply.outer(p, at / at.sum()), np.multiply.outer(q, shifted / at.sum())
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())


@pytest.mark.parametrize("sigmas", [[0.3], [0.5, 0.5], [0.7, 0.7, 0.7], [1.0, 2.5], [2.0, 2.0], [0.4, 1.3, 3.0]])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_it_is_the_sum_over_all_outcomes(sigmas, delta):
    said = exact_epsilon([Charge("", sigma) for sigma in sigmas], delta, "add_remove")
    assert delta_by_enumeration(sigmas, said * (1 + 2e-5)) <= delta
    assert delta_by_enumeration(sigmas, said * (1 - 2e-5)) >= delta


SHARED = [Charge("a", 30, 1, 14), Charge("b", 60, 1, 90), Charge("c", 45, 1, 20), Charge("d", 55, 1, 3)]


@pytest.mark.parametrize(
    "spent",
    [charges(7.0711, 20), charges(1, 5), charges(0.3, 20), charges(1.3, 100), charges(3, 4, grid=GRID), SHARED,
     [*charges(3, 2), *charges(5, 3, grid=GRID)], charges(2000, moves=90_000), charges(1e7, 3)],
)  # fmt: skip
@pytest.mark.parametrize(("delta", "neighbours"), [(1e-5, "add_remove"), (1e-9, "replace")])
def test_it_agrees_with_the_accountant(spent, delta, neighbours):
    assert exact_epsilon(spent, delta, neighbours) == pytest.approx(epsilon_of(spent, delta, neighbours), rel=1e-4)


def test_the_second_opinion_uses_neither_the_accountant_nor_a_fourier_transform():
    code = "import sys; from dpsyn.privacy import exact; exact.epsilon({(1.0, True): 3, (4.0, False): 2}, 1e-5)\n"
    code += "print([m for m in sys.modules if m.startswith(('dp_accounting', 'numpy.fft', 'scipy.fft'))])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "dp_accounting" not in out
    assert "fft" not in Path(exact.__file__).read_text()


def test_a_budget_whose_accountant_is_wrong_is_refused(monkeypatch):
    monkeypatch.setattr(budget, "accounted", lambda gaussians, delta: 0.94)
    with pytest.raises(UserError, match="do not release"):
        Budget(tuple(charges(10, 10)), 1.0, 1e-5, "add_remove")


@pytest.mark.parametrize("shares", [[1, 1, 1, 20], [1, 100], [1, 1e-3, 1e-3]])
@pytest.mark.parametrize("epsilon", [0.5, 4.0, 30.0])
def test_honest_budgets_with_unequal_shares_are_allowed(shares, epsilon):
    made = vote_budget(Settings(epsilon=epsilon, delta=1e-5, budget_split=shares), len(shares))
    spent = epsilon_of(made.charges, 1e-5, "add_remove")
    assert spent <= epsilon and (spent > epsilon * 0.97 or made.sigma == SMALLEST_SIGMA)


@pytest.mark.parametrize(("epsilon", "delta"), [(1e-4, 1e-6), (1e-4, 1e-9), (2e-4, 1e-5), (1e-3, 1e-12), (1e-6, 1e-6)])
def test_small_epsilons_are_planned(epsilon, delta):
    made = vote_budget(Settings(epsilon=epsilon, delta=delta), 2)
    assert 0.9 * epsilon < exact_epsilon(made.charges, delta, "add_remove") <= epsilon * 1.0001 or made.sigma < 1e6


def test_an_epsilon_below_what_noise_can_do_says_which_is_the_least():
    with pytest.raises(UserError, match=r"^privacy\.epsilon=1e-10: expected at least \d.* at this delta"):
        vote_budget(Settings(epsilon=1e-10, delta=1e-12), 2)


@pytest.mark.parametrize("sigma", [1e4, 1e7, 1e9])
def test_huge_noise_is_accounted_at_once(sigma):
    made = vote_budget(Settings(noise_multiplier=sigma, delta=1e-5), 3)
    assert made.epsilon < 1e-3


def test_more_noise_than_64_bits_hold_is_refused():
    with pytest.raises(
        UserError, match=r"^privacy\.noise_multiplier=10000000000.0: expected a number between 0\.3 and 1e\+09"
    ):
        Settings(noise_multiplier=1e10, delta=1e-5)


def test_hit_rates_are_those_of_the_best_test_of_one_discrete_gaussian():
    """By Neyman and Pearson, on the masses themselves, a random share of the outcome at the threshold."""
    for sigma in (0.5, 1.3, 4.0):
        x = np.arange(-80, 82)
        out, there = (np.exp(-0.5 * ((x - mean) / sigma) ** 2) for mean in (0, 1))
        out, there = out / out.sum(), there / there.sum()
        alarms = np.array([0.0, 0.001, 0.05, 0.3, 0.9, 1.0])
        best = np.interp(alarms, np.cumsum([0, *out[::-1]]), np.cumsum([0, *there[::-1]]))
        np.testing.assert_allclose(exact.hit_rates({(sigma, True): 1}, alarms), best, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("gaussians", [{(3.0, True): 8}, {(150.0, False): 900, (40.0, True): 20}, {(0.7, True): 3}])
def test_hit_rates_keep_to_every_epsilon_and_delta(gaussians):
    alarms = np.linspace(0, 1, 101)
    hits = exact.hit_rates(gaussians, alarms)
    assert (np.diff(hits) >= 0).all() and (hits >= alarms).all() and hits[-1] <= 1
    for delta in (1e-8, 1e-3, 0.1):
        assert (hits <= np.exp(exact.epsilon(gaussians, delta)) * alarms + delta + 1e-6).all()
    mu = np.sqrt(sum(times / sigma**2 for (sigma, _), times in gaussians.items()))
    if min(sigma for sigma, _ in gaussians) >= 3:  # then nearly the curve of one Gaussian
        np.testing.assert_allclose(hits[1:-1], norm.cdf(norm.ppf(alarms[1:-1]) + mu), atol=2e-3)


def test_without_a_release_nobody_does_better_than_by_guessing():
    assert exact.hit_rates({}, np.array([0.05, 0.5])).tolist() == [0.05, 0.5]
