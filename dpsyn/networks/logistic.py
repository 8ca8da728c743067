"""Logistic regression, as scikit-learn fits it: the judge that needs no network."""

from __future__ import annotations

import warnings
from typing import Any

from dpsyn.population import F32, F64, I64
from dpsyn.threads import on_free_threads


def logistic(vectors: F32 | F64, labels: I64, rounds: int, penalty: float = 1.0, seed: int | None = None) -> Any:
    """A fitted sklearn LogisticRegression. Where `rounds` are not enough it is as good as they made it, and nothing is
    said: how often it goes over the data is a setting of the judge, and scikit-learn would warn on every run.

    vectors: [n, d].
    labels: int64 [n], of two kinds or more.
    rounds: of the solver, at most.
    penalty: the inverse of the weight of the penalty, scikit-learn's C.
    seed: as scikit-learn's random_state.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=penalty, max_iter=rounds, random_state=seed)
    with on_free_threads(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(vectors, labels)
