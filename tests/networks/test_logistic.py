import warnings

import numpy as np
from sklearn.linear_model import LogisticRegression

from dpsyn.networks.logistic import logistic


def test_too_few_rounds_are_not_told_and_change_nothing():
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(90, 4)) * [1, 50, 1, 900], rng.integers(3, size=90)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = logistic(vectors, labels, 2, penalty=10.0, seed=0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        expected = LogisticRegression(C=10.0, max_iter=2, random_state=0).fit(vectors, labels)
    assert [each.category.__name__ for each in told] == ["ConvergenceWarning"]
    np.testing.assert_array_equal(found.coef_, expected.coef_)
