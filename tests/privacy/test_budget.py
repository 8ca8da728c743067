import math

import pytest
from harness import vote_budget
from hypothesis import given
from hypothesis import settings as budgeted
from hypothesis import strategies as st

from dpsyn.errors import UserError
from dpsyn.privacy.budget import GRID, Budget, Charge, Settings, closed_form, epsilon_of, format_epsilon


def votes(sigma, releases, moves=1, grid=1):
    return [Charge("votes", sigma, grid, moves)] * releases


GOLDEN = [
    # sigma, releases, delta, closed form, accountant
    (7.0711, 20, 1e-5, 2.594, 2.594),
    (1, 5, 1e-5, 11.480, 11.429),
    (2, 10, 1e-5, 7.511, 7.495),
    (4, 20, 1e-6, 5.551, 5.551),
    (10, 10, 1e-5, 1.1994, 1.1993),
]


@pytest.mark.parametrize(("sigma", "releases", "delta", "closed", "accounted"), GOLDEN)
def test_epsilon_agrees_with_the_golden_numbers(sigma, releases, delta, closed, accounted):
    assert closed_form(votes(sigma, releases), delta, "add_remove") == pytest.approx(closed, rel=3e-4)
    assert epsilon_of(votes(sigma, releases), delta, "add_remove") == pytest.approx(accounted, rel=4e-4)


def test_a_large_epsilon_is_not_capped():
    assert closed_form(votes(0.1, 20), 1e-5, "add_remove") == pytest.approx(1189.8, abs=0.1)


def test_replacing_a_record_is_two_moves():
    assert epsilon_of(votes(10, 10), 1e-5, "replace") == pytest.approx(1.760, abs=1e-3)
    assert closed_form(votes(4, 20), 1e-6, "replace") == pytest.approx(8.30623, abs=1e-5)  # by mpmath
    assert epsilon_of(votes(10, 10), 1e-5, "replace") == epsilon_of(votes(10, 10, moves=2), 1e-5, "add_remove")


def test_a_record_with_four_votes_is_four_moves():
    assert epsilon_of(votes(2, 5, moves=4), 1e-5, "add_remove") == pytest.approx(11.475, abs=1e-3)


def test_a_users_grid_costs_a_little_more_than_the_continuous_gaussian():
    fine, exact = epsilon_of(votes(3, 4, grid=GRID), 1e-5, "add_remove"), closed_form(votes(3, 4), 1e-5, "add_remove")
    assert exact <= fine <= exact * 1.001
    replaced = epsilon_of(votes(3 * math.sqrt(2), 4, grid=GRID), 1e-5, "replace")
    assert replaced == pytest.approx(fine, rel=1e-4)


def test_charges_of_different_noise_compose():
    mixed = [*votes(3, 2), *votes(6, 4), *votes(5, 3, grid=GRID)]
    assert epsilon_of(mixed, 1e-5, "add_remove") == pytest.approx(closed_form(mixed, 1e-5, "add_remove"), rel=2e-3)
    assert epsilon_of(mixed, 1e-5, "add_remove") > epsilon_of(mixed[:-1], 1e-5, "add_remove")


def test_a_schedule_made_longer_with_the_same_noise_is_not_the_epsilon_it_was():
    two = vote_budget(Settings(epsilon=1.0, delta=1e-5), 2)
    assert epsilon_of(votes(two.sigma, 20), 1e-5, "add_remove") > 3
    with pytest.raises(UserError, match=r"over the 1\.0 that is stated"):
        vote_budget(Settings(epsilon=1.0, delta=1e-5), 20, sigma=two.sigma)


@budgeted(max_examples=25, deadline=None)
@given(
    epsilon=st.floats(0.05, 9),
    delta=st.floats(1e-9, 1e-3),
    releases=st.integers(1, 30),
    nearest=st.integers(1, 4),
    unit=st.sampled_from(["record", "user"]),
    neighbours=st.sampled_from(["add_remove", "replace"]),
)
def test_the_calibrated_noise_never_spends_more_than_was_promised(epsilon, delta, releases, nearest, unit, neighbours):
    settings = Settings(epsilon=epsilon, delta=delta, votes_per_record=nearest, unit=unit, adjacency=neighbours)
    budget = vote_budget(settings, releases)
    spent = epsilon_of(budget.charges, delta, neighbours)
    assert spent <= epsilon
    assert round(budget.sigma, 4) == budget.sigma
    if budget.sigma > 1:  # and wastes little
        assert spent > 0.95 * epsilon


@pytest.mark.parametrize("nearest", [1, 4])
@pytest.mark.parametrize("part", [0.02, 0.1, 0.9])
def test_noisy_label_shares_spend_their_part_of_the_budget_and_no_more(part, nearest):
    settings = Settings(
        epsilon=1.0, delta=1e-5, label_shares_budget=part, budget_split=[1, 2, 5], votes_per_record=nearest
    )
    budget = vote_budget(settings, 3, label_shares=True)
    *votes, labels = [charge.moves / charge.sigma**2 for charge in budget.charges]
    assert [charge.moves for charge in budget.charges] == [nearest, nearest, nearest, 1]
    assert labels / (labels + sum(votes)) == pytest.approx(part, rel=1e-3)
    assert [vote / votes[0] for vote in votes] == pytest.approx([1, 2, 5], rel=1e-3)
    assert 0.99 < epsilon_of(budget.charges, 1e-5, "add_remove") <= 1.0
    assert vote_budget(settings, 3, budget.sigma, label_shares=True) == budget


def test_ordinary_requests_are_calibrated():
    for epsilon, delta, releases in ((1, 1e-3, 1), (1, 1e-12, 1), (0.01, 1e-6, 40), (10, 1e-5, 4)):
        assert (
            epsilon_of(vote_budget(Settings(epsilon=epsilon, delta=delta), releases).charges, delta, "add_remove")
            <= epsilon
        )


def test_the_epsilon_of_a_given_noise_is_stated():
    budget = vote_budget(Settings(noise_multiplier=1.06442, delta=1 / (60000 * math.log(60000))), 4)
    assert budget.epsilon == pytest.approx(10, rel=0.02)


def test_a_budget_that_spends_more_than_it_states_cannot_be_made():
    with pytest.raises(UserError, match=r"over the 1\.0 that is stated"):
        Budget(tuple(votes(5, 20)), 1.0, 1e-5, "add_remove")


def test_what_is_shown_is_never_less_than_what_was_spent():
    assert format_epsilon(1.00001) == "1.0001"
    assert format_epsilon(0.5) == "0.5"
    assert format_epsilon(math.inf) == "inf"


BAD = [
    ({"delta": 1e-5}, "privacy.epsilon=null"),
    ({"epsilon": -1, "delta": 1e-5}, "privacy.epsilon=-1: expected a number over 0, or inf with privacy=none"),
    ({"epsilon": 0, "delta": 1e-5}, "privacy.epsilon=0"),
    ({"epsilon": "one", "delta": 1e-5}, "privacy.epsilon=one: expected a number"),
    ({"epsilon": math.nan, "delta": 1e-5}, "privacy.epsilon=nan"),
    ({"epsilon": True, "delta": 1e-5}, "privacy.epsilon=True"),
    ({"epsilon": math.inf, "delta": 1e-5}, "privacy.epsilon=inf"),
    ({"epsilon": 1}, "privacy.delta=null"),
    ({"epsilon": 1, "delta": 0.5}, "privacy.delta=0.5: expected a number between"),
    ({"epsilon": 1, "delta": 1e-13}, "privacy.delta=1e-13"),
    ({"epsilon": 1, "delta": 1e-5, "noise_multiplier": 2}, "privacy.noise_multiplier=2"),
    ({"noise_multiplier": 0.0, "delta": 1e-5}, "privacy.noise_multiplier=0.0"),
    ({"epsilon": 1, "delta": 1e-5, "unit": "person"}, "privacy.unit=person: expected record or user"),
    ({"epsilon": 1, "delta": 1e-5, "votes_per_record": 0}, "privacy.votes_per_record=0"),
    ({"epsilon": 1, "delta": 1e-5, "accept_lost_draws": -1}, "privacy.accept_lost_draws=-1"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_a_promise_that_cannot_be_is_refused_in_one_line(given, message):
    with pytest.raises(UserError) as caught:
        Settings(**given)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
