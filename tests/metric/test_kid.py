"""The kernel distance: against the sums written out, without bias, over subsets."""

import pickle

import numpy as np
import pytest
from fakes import AsItIs, Given, unlabelled

from dpsyn.errors import UserError
from dpsyn.metric.kid import Kid, discrepancy


def metric(real, **changed):
    settings = {"subsets": 20, "subset_size": 50, "rows": 1000, "seed": 0, "batch_size": 64, "public": False}
    return Kid(Given(real), AsItIs(), **{**settings, **changed})


def plainly(x, y):
    """One pair at a time (Gretton et al. 2012, lemma 6)."""

    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    m, n = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(kernel(a, b) for a in x for b in y) / (m * n)


@pytest.mark.parametrize("m, n, d", [(20, 20, 6), (2, 9, 3), (15, 7, 40)])
def test_a_discrepancy_is_the_sum_over_pairs(m, n, d):
    rng = np.random.default_rng(d)
    x, y = rng.normal(0, 1, (m, d)).astype(np.float32), rng.normal(0.5, 2, (n, d)).astype(np.float32)
    assert discrepancy(x, y) == pytest.approx(plainly(x.astype(np.float64), y.astype(np.float64)), rel=1e-10)
    assert discrepancy(x, y) == pytest.approx(discrepancy(y, x), rel=1e-10)


def test_samples_of_one_distribution_are_0_apart_on_average_however_few():
    rng = np.random.default_rng(0)
    found = np.array([discrepancy(rng.normal(1, 1, (8, 4)), rng.normal(1, 1, (12, 4))) for _ in range(3000)])
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean()) < 4 * error
    assert (found < 0).any()
    # what the bias would be without leaving out the diagonal is far beyond that
    assert 4 * error < 0.2 * np.mean([((x @ x / 4 + 1) ** 3) / 8 for x in rng.normal(1, 1, (500, 4))])


def test_distributions_apart_are_apart_by_what_their_moments_say():
    rng = np.random.default_rng(0)
    shift = 0.7  # one dimension: E (xy + 1)^3 over independent x ~ N(a, 1), y ~ N(b, 1), from their moments

    def expected(a, b):
        first, second, third = (lambda c: c), (lambda c: c * c + 1), (lambda c: c**3 + 3 * c)
        return third(a) * third(b) + 3 * second(a) * second(b) + 3 * first(a) * first(b) + 1

    squared = expected(0, 0) + expected(shift, shift) - 2 * expected(0, shift)
    found = [discrepancy(rng.normal(0, 1, (60, 1)), rng.normal(shift, 1, (60, 1))) for _ in range(1500)]
    assert np.mean(found) == pytest.approx(squared, abs=4 * np.std(found) / np.sqrt(1500))


def test_the_metric_is_the_mean_and_the_spread_over_subsets():
    rng = np.random.default_rng(0)
    real, ours = rng.normal(0, 1, (300, 6)).astype(np.float32), rng.normal(0.4, 1, (200, 6)).astype(np.float32)
    numbers = metric(real)(unlabelled(ours))
    assert set(numbers) == {"kid", "kid_std"}
    assert all(type(value) is float for value in numbers.values())
    whole = metric(real, subsets=1, subset_size=200)(unlabelled(ours))
    assert whole["kid_std"] == 0
    assert numbers["kid_std"] > 0
    assert numbers["kid"] == pytest.approx(whole["kid"], abs=4 * numbers["kid_std"] / np.sqrt(20))
    more = metric(real, subsets=3, subset_size=10_000)(unlabelled(ours))  # as many rows as the smaller side has
    assert more["kid"] == pytest.approx(whole["kid"], abs=4 * (more["kid_std"] + 0.02))
    alone = metric(real[:200], subsets=1, subset_size=200)(unlabelled(ours))["kid"]
    assert alone == pytest.approx(discrepancy(ours, real[:200]), rel=1e-9)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_metric_does_not_depend_on_the_batch_and_has_one_answer_a_seed(batch_size):
    rng = np.random.default_rng(0)
    real, made = rng.normal(0, 1, (300, 6)), unlabelled(rng.normal(0, 1, (200, 6)))
    assert metric(real, batch_size=batch_size, rows=120)(made) == metric(real, rows=120)(made)
    assert metric(real, rows=120, seed=1)(made) != metric(real, rows=120)(made)


def test_real_rows_are_read_once_and_do_not_travel_with_the_part():
    rows = np.random.default_rng(0).normal(0, 1, (50, 4))
    part = metric(rows)
    assert part(unlabelled(rows)) == part(unlabelled(rows))
    assert part.data.read == 1
    assert vars(pickle.loads(pickle.dumps(part))).keys() == vars(metric(rows)).keys()


def test_what_cannot_be_compared_is_one_line_without_a_count_of_real_rows():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="vectors of another length") as caught:
        metric(rng.normal(0, 1, (37, 4)))(unlabelled(rng.normal(0, 1, (20, 5))))
    assert "37" not in str(caught.value)
    for real, ours in ((1, 37), (0, 37), (37, 1), (37, 0)):
        with pytest.raises(UserError, match="expected two synthetic and two real rows") as caught:
            metric(rng.normal(0, 1, (real, 4)))(unlabelled(rng.normal(0, 1, (ours, 4))))
        assert "37" not in str(caught.value)
    with pytest.raises(UserError, match="held_out=null"):
        Kid(None, None, 1, 2, 2, 0, 1, False).check()


@pytest.mark.parametrize(
    "key, wrong",
    [
        ("subsets", 0),
        ("subset_size", 1),
        ("subset_size", 2.0),
        ("rows", 1),
        ("rows", True),
        ("seed", -1),
        ("batch_size", 0),
        ("public", 1),
    ],
)
def test_a_wrong_setting_is_one_line(key, wrong):
    with pytest.raises(UserError, match=rf"^metric\.parts\.kid\.{key}=.*expected"):
        metric(None, **{key: wrong})
