"""Held-out units: who votes and who is held out follows from the unit alone, and what that costs."""

import numpy as np
import pytest
from harness import digits
from privacy.test_stability import EMBED, ODD, ROWS, candidates, data_of
from scipy.stats import beta

from dpsyn.evaluation import NORMAL, share
from dpsyn.population import Samples
from dpsyn.privacy.account import Entry, joint_epsilon
from dpsyn.privacy.budget import (
    GRID,
    Charge,
    Release,
    Settings,
    borne,
    calibrated,
    epsilon_of,
    exact_epsilon,
    with_evaluation,
)
from dpsyn.privacy.electorate import open_electorate
from dpsyn.privacy.holdout import Side
from dpsyn.privacy.ledger import Ledger
from dpsyn.privacy.mechanism import discrete_gaussian
from dpsyn.privacy.query import Histogram, Nearest
from dpsyn.privacy.votes import unseal

BINS = (np.tile(np.arange(8)[:, None], 10), (np.arange(8)[:, None] + np.arange(10)[None]) % 3)
ASKED = Histogram("a judge", (0, 1), BINS)


class Coded:
    """Codes of a record, from its own pixels."""

    def fingerprint(self):
        return "coded"

    def __call__(self, samples):
        first = samples.content.reshape(len(samples), -1).astype(np.int64)
        return np.stack([first.sum(1) % 8, first[:, ::3].sum(1) % 8], 1).astype(np.int32)


def told(folder, rows, unit="record", side=None, query=ASKED):
    folder.mkdir(exist_ok=True)
    coder = EMBED if isinstance(query, Nearest) else Coded()
    made = open_electorate(data_of(folder, rows, unit), coder, {}, unit, folder / "cache", side=side)
    return unseal(made.tallied(query))


def test_one_record_more_moves_one_bin_of_each_histogram_by_one(tmp_path):
    difference = told(tmp_path / "b", [ODD, *ROWS]) - told(tmp_path / "a", ROWS)
    assert sorted(difference[difference != 0].tolist()) == [1, 1] and ASKED.moves == 2
    assert difference[:8].sum() == difference[8:].sum() == 1


def test_a_record_replaced_moves_at_most_two_bins_of_each_histogram(tmp_path):
    difference = told(tmp_path / "b", [ODD, *ROWS[1:]]) - told(tmp_path / "a", ROWS)
    assert np.abs(difference[:8]).sum() <= 2 and np.abs(difference[8:]).sum() <= 2


def test_one_user_more_moves_histograms_by_a_vector_of_norm_one_at_most(tmp_path):
    everywhere = [{**row, "user": "new"} for row in digits(80, seed=9)]
    moved = told(tmp_path / "b", [*everywhere, *ROWS], "user") - told(tmp_path / "a", ROWS, "user")
    assert 0.95 * GRID < np.linalg.norm(moved) <= GRID


@pytest.mark.parametrize("unit", ["record", "user"])
def test_every_unit_is_on_one_side_and_another_one_moves_nobody(tmp_path, unit):
    sides = [Side(0.4, True), Side(0.4, False)]
    before = [told(tmp_path / f"a{side.is_held}", ROWS, unit, side) for side in sides]
    if unit == "record":
        assert (sum(before) == told(tmp_path / "all", ROWS, unit)).all()
        assert 0.25 < before[0][:8].sum() / len(ROWS) < 0.55
    after = [told(tmp_path / f"b{side.is_held}", [ODD, *ROWS], unit, side) for side in sides]
    moved = [np.abs(one - two).sum() for one, two in zip(after, before, strict=True)]
    assert min(moved) == 0 < max(moved)


def test_a_user_is_on_one_side_with_all_records(tmp_path):
    rows = [{**row, "user": "one"} for row in digits(40, seed=9)]
    sums = [told(tmp_path / str(held), rows, "user", Side(0.5, held)).sum() for held in (True, False)]
    assert min(sums) == 0 < max(sums)


def test_a_record_that_votes_is_not_held_out_and_the_other_way_round(tmp_path):
    """The two sides together: a neighbouring data set moves the votes, or the histogram, and never both."""
    vectors, labels = candidates()
    votes = Nearest(vectors, labels, 1)
    for number, more in enumerate(digits(12, seed=77)):
        rows = [more, *ROWS]
        moved = [
            np.abs(told(tmp_path / f"{number}{held}", rows, "record", Side(0.5, held), query)
                   - told(tmp_path / f"0_{held}", ROWS, "record", Side(0.5, held), query)).sum()
            for held, query in ((False, votes), (True, ASKED))
        ]  # fmt: skip
        assert sorted(moved) in ([0, 1], [0, 2])


RUN = (Charge("votes 1", 4.0, of="voters"), Charge("votes 2", 4.0, of="voters"))
HELD = (Charge("evaluation: a", 3.0, of="held_out"),)


def test_a_unit_that_is_added_bears_one_side_one_that_is_replaced_both():
    run, held = (exact_epsilon(side, 1e-5, "add_remove") for side in (RUN, HELD))
    assert borne((*RUN, *HELD), "add_remove") == [RUN, HELD]
    assert exact_epsilon((*RUN, *HELD), 1e-5, "add_remove") == max(run, held)
    assert epsilon_of((*RUN, *HELD), 1e-5, "add_remove") >= max(run, held)
    assert borne((*RUN, *HELD), "replace") == [(*RUN, *HELD)]
    assert exact_epsilon((*RUN, *HELD), 1e-5, "replace") > max(
        exact_epsilon(side, 1e-5, "replace") for side in (RUN, HELD)
    )
    voted = (Charge("votes 1", 4.0), Charge("evaluation: a", 3.0))  # of records that voted
    assert exact_epsilon(voted, 1e-5, "add_remove") > exact_epsilon(voted[1:], 1e-5, "add_remove")


def test_across_runs_everybody_is_taken_to_bear_everything():
    entries = [Entry("d", str(at), "x", "record", "add_remove", 1e-5, (*RUN, *HELD)) for at in range(2)]
    alone, both = joint_epsilon(entries[:1], 1e-5), joint_epsilon(entries, 1e-5)
    assert alone == epsilon_of((*RUN, *HELD), 1e-5, "add_remove")
    assert both > epsilon_of([*RUN, *RUN], 1e-5, "add_remove")


def test_the_budget_of_an_evaluation_is_its_own():
    settings = Settings(epsilon=2.0, delta=1e-5)
    run = calibrated(settings, [Release("votes 1", 1, 1.0, of="voters")])
    planned = [Release("evaluation: a", 1, 0.5, of="held_out"), Release("evaluation: b", 4, 0.5, of="held_out")]
    whole = with_evaluation(run, settings, planned, 1.0)
    assert whole.epsilon == 2.0 and whole.sigma == run.sigma
    assert 0.98 < exact_epsilon(whole.charges[1:], 1e-5, "add_remove") <= 1.0
    assert with_evaluation(run, settings, planned, 3.0).epsilon > 2.9


def test_the_ledger_refuses_histograms_that_move_more_than_is_charged(tmp_path):
    settings = Settings(epsilon=2.0, delta=1e-5)
    budget = with_evaluation(calibrated(settings, []), settings, [Release("evaluation: a", 1, 1.0)], 1.0)
    ledger = Ledger(tmp_path / "private", tmp_path / "votes", "run", settings, budget)
    with pytest.raises(RuntimeError, match="it moves more than it is charged for"):
        ledger.release(1, ASKED, object())
    assert not list(tmp_path.glob("private/intents/*"))


def test_an_interval_holds_the_true_share_in_95_of_100_cases():
    rng = np.random.default_rng(0)
    for counts, deviation in (((90, 10), 5.0), ((5, 1, 4), 4.0), ((700, 20, 5, 275), 8.0), ((0, 30), 6.0)):
        counts, mine = np.array(counts), np.arange(len(counts)) == 0
        true, held = counts[0] / counts.sum(), 0
        for _ in range(400):
            low, high = share(counts + rng.normal(0, deviation, len(counts)), mine, deviation).by_noise
            held += low <= true <= high
        assert held >= 372, (counts, held)  # of 380 expected, less two of its deviations


def test_with_sampling_it_holds_the_share_of_records_like_these():
    rng, held = np.random.default_rng(1), 0
    for _ in range(300):
        hits = rng.binomial(1000, 0.9)
        found = share(np.array([hits, 1000 - hits]) + rng.normal(0, 4.67, 2), np.array([True, False]), 4.67)
        held += found.interval[0] <= 0.9 <= found.interval[1]
    assert held >= 276
    assert (found.by_noise[1] - found.by_noise[0]) / 2 == pytest.approx(NORMAL * 4.67 * 0.906 / 1000, abs=0.0015)


def test_an_attacker_finds_no_more_than_is_promised_and_not_much_less():
    """An audit: the likeliest attack on both releases of a run and its evaluation, on a record that is one side's. Its
    lower bound (Clopper-Pearson at 99.9 %) is below the epsilon of the larger side."""
    run, held = Charge("votes 1", 2.0, of="voters"), Charge("evaluation: a", 1.5, of="held_out")
    delta, n = 1e-3, 60_000
    promised = epsilon_of((run, held), delta, "add_remove")
    bounds = []
    for moves in ((1, 0), (0, 1)):  # a voter more, or a held-out record more
        scores = []
        for there in (0, 1):
            votes = discrete_gaussian(np.full(n, there * moves[0]), run.sigma)
            bins = discrete_gaussian(np.full(n, there * moves[1]), held.sigma)
            scores.append(votes * moves[0] / run.sigma**2 + bins * moves[1] / held.sigma**2)
        best = 0.0
        for cut in np.quantile(scores[0], np.linspace(0.9, 0.999, 40)):
            alarms, hits = (int((score > cut).sum()) for score in scores)
            false = beta.ppf(1 - 0.0005, alarms + 1, n - alarms)
            true = beta.ppf(0.0005, hits, n - hits + 1)
            if true > delta:
                best = max(best, float(np.log((true - delta) / false)))
        bounds.append(best)
    assert 0.3 * promised < max(bounds) < promised
    assert np.argmax(bounds) == 1


def test_a_side_tells_nothing_of_rows_that_cannot_be_hashed_apart():
    from dpsyn.data import Records

    table = np.array([("x", 1.5), (None, np.nan)], [("a", "O"), ("b", "f8")])
    keeps = Side(0.5, True).filter()
    assert keeps(Records(Samples(table), np.array([0, 1]))).dtype == bool
    texts = np.array(["one", "one", "two"], object)
    same = keeps(Records(Samples(texts), np.array([0, 0, 0])))
    assert same[0] == same[1]  # one record twice is one unit's content: both are on one side
