"""Marginals by hand, what is told from synthetic rows about real ones, broken constraints."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpsyn.compose import config_folder
from dpsyn.data.breast_cancer import BreastCancer
from dpsyn.data.tables import Tables
from dpsyn.errors import UserError
from dpsyn.metric.constraints import Constraints
from dpsyn.metric.marginals import Marginals
from dpsyn.metric.table_models import TableClassifier, TableRegressor
from dpsyn.population import Population, Samples
from dpsyn.tables import schema
from dpsyn.tables.schema import Schema

FEW = Schema(
    {
        "columns": {
            "x": {"kind": "integer", "bounds": [0, 20], "missing": True},
            "c": {"kind": "category", "values": ["u", "v"]},
            "y": {"kind": "category", "values": ["no", "yes"]},
        },
        "labels": ["y"],
    }
)
CODES = [f"k{k}" for k in range(400)]
MANY = Schema(
    {
        "columns": {
            "x": {"kind": "number", "bounds": [0, 1], "missing": True},
            "w": {"kind": "number", "bounds": [0, 1], "missing": True},
            "code": {"kind": "category", "values": CODES, "missing": True},
            "on": {"kind": "boolean"},
            "grade": {"kind": "integer", "bounds": [1, 3]},
            "pay": {"kind": "number", "bounds": [-10, 10], "resolution": 0.001, "missing": True},
        },
        "labels": ["on", "grade"],
    }
)


def population(table: Schema, cells: dict[str, list[str]]) -> Population:
    content, rules = table.read(cells)
    assert not rules.any()
    n = len(content)
    return Population(1, Samples(content), table.labels_of(content), np.full(n, -1), np.ones(n, bool))


def file(path: Path, cells: dict[str, list[str]]) -> str:
    lines = [list(cells), *zip(*cells.values(), strict=True)]
    path.write_text("\n".join(map(",".join, lines)) + "\n")
    return str(path)


def marginals(data: Any, table: Schema, **settings: Any) -> Marginals:
    return Marginals(**{"data": data, "schema": table, "public": False, "ways": [1, 2, 3], "bins": 20} | settings)


def test_marginals_are_what_a_hand_counts(tmp_path: Path) -> None:
    real = {"x": ["0", "1", "20", ""], "c": ["u", "u", "v", "v"], "y": ["no", "no", "yes", "yes"]}
    data = Tables(file(tmp_path / "r.csv", real), FEW)
    part = marginals(data, FEW, combinations=9, seed=0)
    assert part.private and not marginals(data, FEW, combinations=9, seed=0, public=True).private
    found = part(population(FEW, real))
    assert {key: found[key] for key in ("tv_1", "tv_2", "tv_3", "wasserstein")} == dict.fromkeys(
        ("tv_1", "tv_2", "tv_3", "wasserstein"), 0
    )
    assert "correlation_difference" not in found  # one number has none
    ours = {"x": ["0", "0", "20", "20"], "c": ["u", "v", "u", "v"], "y": ["no", "no", "yes", "yes"]}
    found = part(population(FEW, ours))
    # x: 0 twice for 0 and 1, which lie in the first two of 20 bins; 20 twice for 20 and none
    assert found["tv_1"] == pytest.approx((0.5 + 0 + 0) / 3)
    # (x, c): of ours only (20, v) and (0, u) are real, a quarter each; (x, y): half; (c, y): half
    assert found["tv_2"] == pytest.approx((0.5 + 0.5 + 0.5) / 3)
    assert found["tv_3"] == pytest.approx(0.5)
    assert found["wasserstein"] == pytest.approx(1 / 6)  # 0, 0, 20, 20 against 0, 1, 20, in parts of 20


def test_marginals_of_many_columns_are_a_fixed_sample_and_those_of_many_values_are_counted_sparsely(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    cells = {name: [CODES[k] for k in rng.integers(0, 400, 200)] for name in "abcd"}
    table = Schema({"columns": {name: {"kind": "category", "values": CODES} for name in "abcd"}})
    data = Tables(file(tmp_path / "r.csv", cells), table)
    assert marginals(data, table, combinations=9, seed=0)(population(table, cells)) == {"tv_1": 0, "tv_2": 0, "tv_3": 0}
    other = population(table, {name: cells[name][::-1] if name == "a" else cells[name] for name in "abcd"})
    whole = marginals(data, table, ways=[2, 3], combinations=99, seed=0)(other)
    # a is reversed: of 6 pairs the 3 with a differ, of 4 triples the 3 with it, nearly everywhere
    assert 0.48 < whole["tv_2"] < 0.5 and 0.74 < whole["tv_3"] < 0.75
    some = [marginals(data, table, ways=[2], combinations=2, seed=seed)(other)["tv_2"] for seed in (3, 3, 4, 5, 6)]
    assert some[0] == some[1] and len(set(some)) > 1


def test_what_marginals_know_of_real_rows_stays_in_the_process(tmp_path: Path) -> None:
    cells = {"x": ["3"], "c": ["u"], "y": ["no"]}
    part = marginals(Tables(file(tmp_path / "r.csv", cells), FEW), FEW, combinations=9, seed=0)
    before = len(pickle.dumps(part))
    part(population(FEW, cells))
    assert (
        "real_cells" in vars(part)
        and "real_cells" not in vars(copy.copy(part))
        and len(pickle.dumps(part)) < before + 2000
    )


def test_correlations_are_compared_over_rows_that_have_both_and_constants_have_none(tmp_path: Path) -> None:
    columns = {name: {"kind": "number", "bounds": [0, 10], "missing": True} for name in "abc"}
    table = Schema({"columns": columns})
    real = {"a": ["0", "5", "10", ""], "b": ["0", "5", "10", "3"], "c": ["1", "1", "1", "1"]}
    ours = {"a": ["0", "5", "10", "7"], "b": ["10", "5", "0", ""], "c": ["1", "1", "1", "1"]}
    found = marginals(Tables(file(tmp_path / "r.csv", real), table), table, combinations=9, seed=0)(
        population(table, ours)
    )
    assert found["correlation_difference"] == pytest.approx(2 / 3)  # 1 against -1, and nothing with c


def learnable(n: int, start: int) -> dict[str, list[str]]:
    """`on` and `pay` follow x, `grade` follows the code; some cells are missing."""
    rng = np.random.default_rng(start)
    x, code = rng.random(n), rng.integers(0, 400, n)
    return {
        "x": [f"{v:.3f}" if k % 10 else "" for k, v in enumerate(x)],
        "w": [""] * n,
        "code": [CODES[v] if k % 9 else "" for k, v in enumerate(np.where(rng.random(n) < 0.8, code % 3, code))],
        "on": ["true" if v > 0.5 else "false" for v in x],
        "grade": [str(1 + v % 3) for v in code],
        "pay": [f"{10 * v - 5:.3f}" if k % 7 else "" for k, v in enumerate(x)],
    }


SETTINGS: dict[str, Any] = {"public": False, "model": "boosting", "rows": None, "seed": 0}


def test_labels_of_real_rows_are_told_by_what_was_trained_on_synthetic_ones(tmp_path: Path) -> None:
    data = Tables(file(tmp_path / "r.csv", learnable(300, 1)), MANY)
    part = TableClassifier(data, MANY, **SETTINGS)
    part.check()
    found = part(population(MANY, learnable(600, 0)))
    assert set(found) == {f"{kind}_{name}" for kind in ("accuracy", "f1", "auc") for name in ("on", "grade")}
    assert found["accuracy_on"] > 0.9 and found["auc_on"] > 0.95 and found["f1_on"] > 0.9
    assert found["accuracy_grade"] > 0.6 and found["auc_grade"] > 0.75
    fewer = TableClassifier(data, MANY, **{**SETTINGS, "rows": 40})(population(MANY, learnable(600, 0)))
    assert fewer["auc_on"] < found["auc_on"]
    noise = learnable(600, 0)
    noise["on"] = list(np.random.default_rng(5).permutation(noise["on"]))
    noise["pay"] = list(np.random.default_rng(6).permutation(noise["pay"]))
    assert TableClassifier(data, MANY, **SETTINGS)(population(MANY, noise))["auc_on"] < 0.7


def test_synthetic_rows_of_one_label_tell_nothing_and_break_nothing(tmp_path: Path) -> None:
    data = Tables(file(tmp_path / "r.csv", learnable(100, 1)), MANY)
    ours = learnable(100, 0) | {"on": ["true"] * 100, "grade": ["2"] * 100}
    found = TableClassifier(data, MANY, **SETTINGS)(population(MANY, ours))
    real = learnable(100, 1)
    assert found["accuracy_on"] == pytest.approx(real["on"].count("true") / 100)
    assert found["auc_on"] == 0.5 and found["auc_grade"] == 0.5
    free = Schema({"columns": {"x": {"kind": "integer", "bounds": [0, 9]}}})
    assert TableClassifier(data, free, **SETTINGS)(population(free, {"x": ["1"]})) == {}


def test_a_rare_label_does_not_drive_the_classifier_apart(tmp_path: Path) -> None:
    """scikit-learn's own settings tell 34 % of these."""
    rng = np.random.default_rng(0)
    shares = np.array([0.25, 0.3, 0.26, 0.14, 0.03, 0.006, 0.001])
    grades = rng.choice(7, 4000, p=shares / shares.sum())
    numbers = {"rate": {"kind": "integer", "bounds": [0, 41]}} | {
        name: {"kind": "number", "bounds": [0, 1]} for name in "abc"
    }
    table = Schema({"columns": {**numbers, "grade": {"kind": "integer", "bounds": [0, 6]}}, "labels": ["grade"]})
    cells = {"rate": list(map(str, grades * 6 + rng.integers(0, 6, 4000)))}
    cells |= {name: list(map(str, rng.random(4000))) for name in "abc"} | {"grade": list(map(str, grades))}
    data = Tables(file(tmp_path / "r.csv", cells), table)
    assert TableClassifier(data, table, **SETTINGS)(population(table, cells))["accuracy_grade"] > 0.99


def test_a_number_of_real_rows_is_told_by_what_was_trained_on_synthetic_ones(tmp_path: Path) -> None:
    data = Tables(file(tmp_path / "r.csv", learnable(300, 1)), MANY)
    part = TableRegressor(data, MANY, "pay", **SETTINGS)
    part.check()
    found = part(population(MANY, learnable(600, 0)))
    assert set(found) == {"r2_pay", "mae_pay"} and found["r2_pay"] > 0.9 and found["mae_pay"] < 0.7
    with pytest.raises(UserError, match="with a value of 'pay', on both sides"):
        part(population(MANY, learnable(5, 0) | {"pay": [""] * 5}))


def test_real_rows_of_a_table_that_ships_tell_their_own_label() -> None:
    table = Schema(schema.read("breast_cancer", config_folder() / "schemas"))
    (train,) = BreastCancer(table).batches(1000)
    n = len(train.labels)
    ours = Population(1, train.samples, train.labels, np.full(n, -1), np.ones(n, bool))
    found = TableClassifier(BreastCancer(table, "test"), table, **SETTINGS)(ours)
    assert found["accuracy_diagnosis"] > 0.92 and found["auc_diagnosis"] > 0.97
    assert marginals(BreastCancer(table), table, ways=[1, 2], combinations=20, seed=0)(ours) == {
        "tv_1": 0,
        "tv_2": 0,
        "wasserstein": 0,
        "correlation_difference": 0,
    }


def test_the_share_of_broken_rows_is_public_and_counts_rows() -> None:
    columns = {name: {"kind": "integer", "bounds": [0, 9]} for name in "ab"}
    table = Schema({"columns": columns, "constraints": ["a <= b", "a < b"]})
    part = Constraints(table)
    assert not part.private
    assert part(population(table, {"a": ["1", "2", "3", "4"], "b": ["2", "2", "2", "9"]})) == {"broken": 0.5}
    assert Constraints(FEW)(population(FEW, {"x": ["1"], "c": ["u"], "y": ["no"]})) == {}


def test_wrong_settings_and_rows_are_one_line(tmp_path: Path) -> None:
    rows = population(FEW, {"x": ["1"], "c": ["u"], "y": ["no"]})
    data = Tables(str(tmp_path / "none.csv"), MANY)
    texts = Population(1, Samples(np.array(["a"], object)), np.zeros(1, int), np.full(1, -1), np.ones(1, bool))
    for population_ in (rows, texts):
        for part in (
            marginals(data, MANY, combinations=1, seed=0),
            TableClassifier(data, MANY, **SETTINGS),
            TableRegressor(data, MANY, "pay", **SETTINGS),
            Constraints(MANY),
        ):
            with pytest.raises(UserError, match="expected rows of the schema"):
                part(population_)
    wrong: list[tuple[Any, str]] = [
        (lambda: marginals(data, MANY, ways=[0], combinations=1, seed=0), r"metric\.parts\.marginals\.ways=\[0\]"),
        (lambda: marginals(data, MANY, bins=1, combinations=1, seed=0), r"metric\.parts\.marginals\.bins=1"),
        (
            lambda: TableClassifier(data, MANY, **{**SETTINGS, "public": "no"}),
            r"metric\.parts\.table_classifier\.public=no",
        ),
        (
            lambda: TableClassifier(data, MANY, **{**SETTINGS, "model": "svm"}),
            r"metric\.parts\.table_classifier\.model=svm",
        ),
        (lambda: TableClassifier(data, MANY, **{**SETTINGS, "rows": 0}), r"metric\.parts\.table_classifier\.rows=0"),
        (
            lambda: TableRegressor(data, MANY, "code", **SETTINGS),
            r"metric\.parts\.table_regressor\.target=code: .*x, w",
        ),
        (lambda: Constraints(None), r"metric\.parts\.constraints\.schema=null"),  # type: ignore[arg-type]
        (TableRegressor(data, MANY, None, **SETTINGS).check, r"metric\.parts\.table_regressor\.target=null"),
        (TableClassifier(None, MANY, **SETTINGS).check, r"held_out=null"),  # type: ignore[arg-type]
        (marginals(data, MANY, combinations=1, seed=0).check, r"held_out\.path=.*none\.csv: expected an existing file"),
    ]
    for call, line in wrong:
        with pytest.raises(UserError, match=f"^{line}"):
            call()


@pytest.mark.parametrize("package", ["tabicl", "tabpfn"])
def test_a_model_whose_package_is_not_here_says_so_before_a_run(package: str, tmp_path: Path) -> None:
    from importlib.util import find_spec

    if find_spec(package):
        pytest.skip("it is here")
    part = TableClassifier(
        Tables(file(tmp_path / "r.csv", learnable(3, 1)), MANY), MANY, **{**SETTINGS, "model": package}
    )
    with pytest.raises(UserError, match=rf"model={package}: expected the package {package}\. Install it"):
        part.check()
