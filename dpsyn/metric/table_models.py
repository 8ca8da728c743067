"""Train on synthetic rows, test on real ones: a label, or a number."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dpsyn.data import Data
from dpsyn.errors import UserError, check_packages, first_line, invalid, one_of
from dpsyn.metric import Metric, check_real, check_settings, check_table, real_samples
from dpsyn.population import Modality, Population
from dpsyn.tables.columns import Column
from dpsyn.tables.schema import Schema
from dpsyn.threads import on_free_threads
from dpsyn.validate import choice

BATCH = 4096
MODELS = ("boosting", "tabicl", "tabpfn")
CATEGORIES = 254  # of a column that scikit-learn's boosting tells apart, with missing


@dataclass(frozen=True)
class TableClassifier(Metric):
    """Accuracy, macro F1 and area under the ROC curve on real rows, of every label column.

    data: the real rows. schema: theirs. public: they are public; otherwise the numbers are private.
    model: 'boosting': scikit-learn's histogram gradient boosting with its defaults, categories as such; 'tabicl',
        'tabpfn': those packages, with the weights that they find or fetch.
    rows: synthetic ones to learn from, at most (the first of a random order); None: all.
    seed: of that order, and of the model.
    """

    data: Data
    schema: Schema
    public: bool
    model: Literal["boosting", "tabicl", "tabpfn"]
    rows: int | None
    seed: int

    def __post_init__(self) -> None:
        _check_settings(self, "table_classifier")

    def check(self) -> None:
        """Raises UserError without real data, or the package of the model."""
        _check(self, "table_classifier")

    @property
    def private(self) -> bool:
        return not self.public

    @property
    def judges(self) -> Sequence[Modality]:
        return ("rows", "rows with texts")

    def reads(self) -> Sequence[Data]:
        return (self.data,)

    def __call__(self, population: Population) -> Mapping[str, float]:
        """{'accuracy_COLUMN', 'f1_COLUMN', 'auc_COLUMN', ...}; {} for a table without labels.

        The other columns that are no labels are what is learnt from. F1 is the mean over the values that real rows have
        or that are guessed. The area is that of the second of two values, of more the mean of one against the rest,
        over the values that real rows have; it is left out where they have only one.
        """
        targets = [column for name in self.schema.label_columns if (column := self.schema.columns[name]).size > 1]
        ours = _synthetic(population, self)
        if not targets or not len(ours):
            return {}
        real = _real(self.data, self.schema)
        found: dict[str, float] = {}
        for target in targets:
            guess = _classifier(self, _matrix(ours, self.schema.features), target.codes_of(ours[target.name]))
            wanted = target.codes_of(real[target.name])
            chances = np.zeros((len(real), target.size))
            with on_free_threads():
                values, share = guess(_matrix(real, self.schema.features))
            chances[:, values] = share
            found |= {f"{kind}_{target.name}": value for kind, value in _judged(wanted, chances).items()}
        return found


@dataclass(frozen=True)
class TableRegressor(Metric):
    """R2 and mean absolute error on real rows of a regressor that predicts one numeric column from all others.

    target: the column, of kind integer or number. Rows without a value in it are left out. All else: as in
    TableClassifier.
    """

    data: Data
    schema: Schema
    target: str | None
    public: bool
    model: Literal["boosting", "tabicl", "tabpfn"]
    rows: int | None
    seed: int

    def __post_init__(self) -> None:
        _check_settings(self, "table_regressor")
        numbers = [column.name for column in self.schema.columns.values() if column.kind in ("integer", "number")]
        if self.target is not None and self.target not in numbers:
            raise invalid(
                "metric.parts.table_regressor.target", self.target, one_of(numbers or ["a column of numbers"])
            )

    def check(self) -> None:
        """Raises UserError without a target, real data, or the package of the model."""
        if self.target is None:
            raise invalid("metric.parts.table_regressor.target", "null", "the column of numbers that is to be told")
        _check(self, "table_regressor")

    @property
    def private(self) -> bool:
        return not self.public

    @property
    def judges(self) -> Sequence[Modality]:
        return ("rows", "rows with texts")

    def reads(self) -> Sequence[Data]:
        return (self.data,)

    def __call__(self, population: Population) -> Mapping[str, float]:
        """{'r2_COLUMN': at most 1, 'mae_COLUMN': in the unit of the column}."""
        ours, target = _synthetic(population, self), self.schema.columns[str(self.target)]
        real = _real(self.data, self.schema)
        ours, real = (rows[~np.isnan(target.numbers(rows[target.name]))] for rows in (ours, real))
        if not len(ours) or not len(real):
            raise UserError(f"metric table_regressor: expected rows with a value of '{target.name}', on both sides.")
        others = [column for column in self.schema.columns.values() if column is not target]
        guess = _regressor(self, _matrix(ours, others), target.numbers(ours[target.name]).astype(np.float64))
        wanted = target.numbers(real[target.name]).astype(np.float64)
        with on_free_threads():
            error = guess(_matrix(real, others)) - wanted
        spread = np.square(wanted - wanted.mean()).sum()
        r2 = 1 - np.square(error).sum() / spread if spread else 0.0
        return {f"r2_{target.name}": float(r2), f"mae_{target.name}": float(np.abs(error).mean())}


Part = TableClassifier | TableRegressor


@dataclass(frozen=True)
class _Matrix:
    """values: float64 [n, d], NaN for a missing one, of a category its place. categories: bool [d], which they are."""

    values: np.ndarray
    categories: np.ndarray


def _check_settings(part: Part, name: str) -> None:
    check_table(f"metric.parts.{name}.schema", part.schema)
    check_settings(part, name, {"seed": 0} | ({} if part.rows is None else {"rows": 1}), part.public)
    choice(f"metric.parts.{name}.model", part.model, MODELS)


def _check(part: Part, name: str) -> None:
    check_real(part.data)
    check_packages(f"metric.parts.{name}.model", part.model, {"boosting": "sklearn"}.get(part.model, part.model))


def _synthetic(population: Population, part: Part) -> np.ndarray:
    content = population.samples.content
    if content.dtype != part.schema.dtype:
        raise UserError("metrics of tables: expected rows of the schema. Leave them out for this kind of data.")
    if part.rows is None or part.rows >= len(content):
        return content
    order = np.random.default_rng(part.seed).permutation(len(content))
    return content[order[: part.rows]]


def _real(data: Data, schema: Schema) -> np.ndarray:
    content = np.concatenate([np.empty(0, schema.dtype), *(rows.content for rows in real_samples(data, BATCH))])
    if not len(content):
        raise UserError("held_out: expected a real row, or more.")
    return content


def _matrix(content: np.ndarray, columns: Sequence[Column]) -> _Matrix:
    values = np.empty((len(content), len(columns)))
    for at, column in enumerate(columns):
        values[:, at] = column.numbers(content[column.name])
    return _Matrix(values, np.array([column.kind == "category" for column in columns], bool))


Classify = Callable[[_Matrix], tuple[np.ndarray, np.ndarray]]


def _classifier(part: TableClassifier, matrix: _Matrix, wanted: np.ndarray) -> Classify:
    """What gives, of a matrix, the values int64 [v] that it can tell, and the chance of each, float64 [n, v]."""
    if len(np.unique(wanted)) == 1:
        return lambda other: (wanted[:1], np.ones((len(other.values), 1)))
    seen = _few(matrix)
    model = _fitted("Classifier", part, seen(matrix), matrix.categories, wanted)
    return lambda other: (model.classes_.astype(np.int64), model.predict_proba(seen(other)))


def _regressor(part: TableRegressor, matrix: _Matrix, wanted: np.ndarray) -> Callable[[_Matrix], np.ndarray]:
    seen = _few(matrix)
    model = _fitted("Regressor", part, seen(matrix), matrix.categories, wanted)
    return lambda other: model.predict(seen(other))


def _few(matrix: _Matrix) -> Callable[[_Matrix], np.ndarray]:
    """Of categories that are too many the most frequent ones stay, and the rest are one. A column without any value is
    0: scikit-learn 1.9 stops at one."""
    kept, empty = {}, np.isnan(matrix.values).all(0)
    for at in np.flatnonzero(matrix.categories).tolist():
        mine = matrix.values[:, at]
        places, counts = np.unique(mine[~np.isnan(mine)], return_counts=True)
        if places.max(initial=0) >= CATEGORIES:
            kept[at] = places[np.argsort(-counts, kind="stable")][: CATEGORIES - 1]

    def seen(other: _Matrix) -> np.ndarray:
        values = other.values.copy()
        for at, places in kept.items():
            order = np.argsort(places)
            found = np.searchsorted(places[order], values[:, at]).clip(0, len(places) - 1)
            rank = np.where(places[order][found] == values[:, at], order[found], len(places))
            values[:, at] = np.where(np.isnan(values[:, at]), np.nan, rank)
        values[:, empty] = 0
        return values

    return seen


def _fitted(what: str, part: Part, values: np.ndarray, categories: np.ndarray, wanted: np.ndarray) -> Any:
    """The model, trained. Raises UserError where a package cannot: it then says why."""
    if part.model == "boosting":
        from sklearn import ensemble

        make = getattr(ensemble, f"HistGradientBoosting{what}")
        marked = categories if categories.any() else None
        # with nothing to hold leaves of few rows back, a rare label drives it apart: accuracy 0.44, not 1, of real rows
        model = make(l2_regularization=1, categorical_features=marked, random_state=part.seed)
        with on_free_threads():
            return model.fit(values, wanted)
    try:
        if part.model == "tabicl":
            import tabicl

            model = getattr(tabicl, f"TabICL{what}")(random_state=part.seed)
        else:
            os.environ["TABPFN_DISABLE_TELEMETRY"] = "1"
            import tabpfn

            columns = np.flatnonzero(categories).tolist()
            model = getattr(tabpfn, f"TabPFN{what}")(categorical_features_indices=columns, random_state=part.seed)
        return model.fit(values, wanted)
    except Exception as error:  # of many kinds; they saw synthetic rows alone
        reason = first_line(error)
    raise UserError(f"metric {part.model}: {reason}. model=boosting needs no weights.")


def _judged(wanted: np.ndarray, chances: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import f1_score, roc_auc_score

    guessed = chances.argmax(1)
    found = {
        "accuracy": float((guessed == wanted).mean()),
        "f1": float(f1_score(wanted, guessed, average="macro", zero_division=0)),
    }
    values = np.unique(wanted)
    if len(values) > 1:
        told = values[1:] if chances.shape[1] == 2 else values
        found["auc"] = float(np.mean([roc_auc_score(wanted == value, chances[:, value]) for value in told]))
    return found
