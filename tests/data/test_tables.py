"""Rows of tables: typed alike from every format, refused row by row, counted in private; the data sets that ship."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dpsyn.compose import config_folder
from dpsyn.data import Data, Records
from dpsyn.data.breast_cancer import BreastCancer
from dpsyn.data.tables import Tables
from dpsyn.errors import UserError
from dpsyn.population import MISSING, Population
from dpsyn.runs.storage import from_parquet, to_parquet
from dpsyn.tables import schema
from dpsyn.tables.columns import FINE, declared
from dpsyn.tables.schema import Schema

CANARY = "CANARY-4711"
COLUMNS: dict[str, Any] = {
    "age": {"kind": "integer", "bounds": [17, 90], "missing": True},
    "pay": {"kind": "number", "bounds": [0, 100], "missing": True},
    "born": {"kind": "date", "bounds": ["1990-01-01", "2009-12-31"], "missing": True},
    "wed": {"kind": "boolean", "missing": True},
    "job": {"kind": "category", "values": ["clerk", "cook"], "missing": True, "outside": "other"},
    "rich": {"kind": "category", "values": ["no", "yes"]},
}
PEOPLE = Schema({"columns": COLUMNS, "labels": ["rich"]})
ROWS: list[dict[str, Any]] = [
    {"age": 39, "pay": 1.5, "born": "1995-03-01", "wed": True, "job": "cook", "rich": "yes"},
    {"age": 95, "pay": None, "born": None, "wed": None, "job": "spy", "rich": "no"},
    {"age": None, "pay": 250.0, "born": "2000-01-01", "wed": False, "job": None, "rich": "no"},
]


def written(path: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    """As csv, jsonl or parquet, by the name of the file."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [list(rows[0]), *[["" if cell is None else str(cell) for cell in row.values()] for row in rows]]
        path.write_text("\n".join(map(",".join, lines)) + "\n")
    return str(path)


def everything(data: Data, size: int = 1000) -> Records:
    parts = list(data.batches(size))
    counts: dict[str, int] = {}
    for part in parts:
        for name, count in part.adjusted.items():
            counts[name] = counts.get(name, 0) + count
    content = np.concatenate([part.samples.content for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    units = None if parts[0].units is None else np.concatenate([part.units for part in parts if part.units is not None])
    refused = tuple(refusal for part in parts for refusal in part.refused)
    return Records(type(parts[0].samples)(content), labels, units, refused, counts)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_rows_are_typed_alike_from_every_format_and_adjusted_cells_are_counted(form: str, tmp_path: Path) -> None:
    data = Tables(written(tmp_path / f"people.{form}"), PEOPLE)
    data.check()
    found = everything(data)
    assert found.samples.content.dtype == PEOPLE.dtype
    assert repr(found.samples.content.tolist()) == repr(
        [
            (39, 1.5, np.datetime64("1995-03-01").item(), 1, "cook", "yes"),
            (90, float("nan"), None, -1, "other", "no"),
            (MISSING, 100.0, np.datetime64("2000-01-01").item(), 0, None, "no"),
        ]
    )
    assert found.labels.tolist() == [1, 0, 0] and not found.refused
    assert found.adjusted == {
        "age: beyond the bounds, clipped to them": 1,
        "pay: beyond the bounds, clipped to them": 1,
        "job: not among the declared values, read as other": 1,
    }


def test_how_a_row_is_read_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    rows = [{**ROWS[i % 3], "age": i, "rich": ["no", "yes", "?"][i % 3]} for i in range(17, 60)]
    data = Tables(written(tmp_path / "a.csv", rows), PEOPLE, on_error="skip")
    one, many = everything(data, 4), everything(data, 1000)
    assert repr(one.samples.content.tolist()) == repr(many.samples.content.tolist())
    assert one.labels.tolist() == many.labels.tolist() and one.refused == many.refused and len(one.refused) == 15


def test_what_a_run_writes_is_the_same_rows_with_the_columns_and_kinds_of_the_source(tmp_path: Path) -> None:
    found = everything(Tables(written(tmp_path / "a.csv"), PEOPLE))
    n = len(found.labels)
    population = Population(3, found.samples, found.labels, np.full(n, -1), np.ones(n, bool))
    whole = to_parquet(population, PEOPLE.labels)
    back = from_parquet(whole, "here")
    assert repr(back.samples.content.tolist()) == repr(found.samples.content.tolist())
    table = pq.read_table(io.BytesIO(whole))
    assert table.column_names[:6] == list(COLUMNS)
    assert [str(kind) for kind in table.schema.types[:6]] == [
        "int64",
        "double",
        "date32[day]",
        "bool",
        "string",
        "string",
    ]
    assert table["age"].to_pylist() == [39, 90, None] and table["wed"].to_pylist() == [True, None, False]


def test_rows_that_the_schema_refuses_are_named_by_column_and_rule_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "age,pay,born,wed,job,rich\n39,1,,,cook,yes\n"
        f"{CANARY},1,,,cook,yes\n39,1,,,cook,{CANARY}\n39,1,,,cook\n39,1,{CANARY},,,\n40,1,,,,no\n"
    )
    found = everything(Tables(str(path), PEOPLE, on_error="skip"))
    assert found.samples.content["age"].tolist() == [39, 40]
    assert [(refusal.row, refusal.column, refusal.rule) for refusal in found.refused] == [
        (1, "age", "not a number"),
        (2, "rich", "not among the declared values"),
        (3, "(line)", "more or fewer cells than the first line has names"),
        (4, "born", "not a date as declared (2024-01-31, or its format)"),
    ]
    assert [refusal.value for refusal in found.refused][:2] == [CANARY, CANARY]


def test_users_are_numbered_by_a_column_that_no_row_keeps(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "who": who} for who in ["ann", "bob", "", "ann"]]
    data = Tables(written(tmp_path / "a.csv", rows), PEOPLE, unit_column="who")
    data.check()
    found = everything(data, 2)
    assert found.units is not None and found.units.tolist() == [0, 1, -1, 0]
    assert "who" not in found.samples.content.dtype.names
    with pytest.raises(UserError, match=r"^data\.unit_column=age: expected a column that the schema does not name"):
        Tables("a.csv", PEOPLE, unit_column="age")
    with pytest.raises(UserError, match=r"^data\.unit_column=whom: expected a column of the file"):
        Tables(str(tmp_path / "a.csv"), PEOPLE, unit_column="whom").check()


def test_the_schema_names_the_users_and_public_rows_may_have_none(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "who": who} for who in ["ann", "", "ann"]]
    people = Schema({**PEOPLE.file, "unit": "who"})
    data = Tables(written(tmp_path / "a.csv", rows), people)
    data.check()
    assert data.unit_column == "who" and everything(data, 9).units.tolist() == [0, -1, 0]  # type: ignore[union-attr]
    public = Tables(written(tmp_path / "b.csv", ROWS[:1]), people)
    public.check()
    assert everything(public, 9).units is None


def test_a_file_without_a_head_is_read_by_names_that_are_given(tmp_path: Path) -> None:
    path = tmp_path / "people.data"
    path.write_text("39, 1.5, , True, cook, yes\n\n17, 0, , False, clerk, no\n")
    data = Tables(str(path), PEOPLE, builder="csv", header=list(COLUMNS))
    data.check()
    found = everything(data)
    assert found.samples.content["age"].tolist() == [39, 17] and found.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("head", "line"),
    [
        (
            f"{CANARY},1.5,,True,cook,yes",
            "data.path=.*: expected csv whose first line names the columns of the schema.",
        ),
        ("age,pay,born,wed,jobs,rich", "data.schema.columns=job: expected columns of the file. Did you mean jobs?"),
        ("age,pay,born,wed,rich", "data.schema.columns=job: .*The file has age, pay, born, wed, rich."),
        ("age,pay,born,wed,job,rich,zip", "data.schema.columns=...: expected every column of the file; 'zip' is not.*"),
        ("age,age,born,wed,job,rich", "data.path=.*: expected csv whose first line gives every column a name.*"),
    ],
)
def test_where_schema_and_file_disagree_is_one_line_that_quotes_no_row(tmp_path: Path, head: str, line: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{head}\n{','.join([CANARY] * head.count(','))},x\n")
    with pytest.raises(UserError, match=f"^{line.replace('?', '[?]')}") as error:
        Tables(str(path), PEOPLE).check()
    assert CANARY not in str(error.value) and "\n" not in str(error.value)


def test_columns_that_the_schema_does_not_name_may_be_ignored(tmp_path: Path) -> None:
    some = Schema({"columns": {"age": COLUMNS["age"]}, "extra": "ignore"})
    data = Tables(written(tmp_path / "a.parquet"), some)
    data.check()
    found = everything(data)
    assert found.samples.content["age"].tolist() == [39, 90, MISSING] and found.labels.tolist() == [0, 0, 0]


def test_a_column_of_missing_values_alone_is_read_where_the_schema_allows_it(tmp_path: Path) -> None:
    rows = [{"age": None, "pay": 3.0}] * 3
    allowed = Schema({"columns": {"age": COLUMNS["age"], "pay": COLUMNS["pay"]}})
    found = everything(Tables(written(tmp_path / "a.parquet", rows), allowed))
    assert found.samples.content["age"].tolist() == [MISSING] * 3
    strict = Schema({"columns": {"age": {"kind": "integer", "bounds": [0, 9]}, "pay": COLUMNS["pay"]}})
    found = everything(Tables(str(tmp_path / "a.parquet"), strict))
    assert {refusal.rule for refusal in found.refused} == {"missing, which the schema does not allow"}
    assert len(found.refused) == 3 and not len(found.samples)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"schema": "adult"}, r"data\.schema=adult: expected the schema of a table"),
        ({"header": False}, r"data\.header=False: expected true, or the names"),
        ({"header": ["a", "a"]}, r"data\.header=.*a name of its own"),
        ({"builder": "xlsx"}, r"data\.builder=xlsx: expected null, csv, jsonl or parquet"),
        ({"records": 0}, r"data\.records=0: expected a whole number"),
    ],
)
def test_a_wrong_setting_is_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}"):
        Tables(**{"path": "a.csv", "schema": PEOPLE, **settings})


# What ships


@pytest.mark.parametrize("name", ["adult", "artificial_characters", "person_activity", "california_housing"])
def test_the_data_sets_that_ship_read_what_their_schema_says(name: str, tmp_path: Path) -> None:
    plain = yaml.safe_load((config_folder() / f"data/{name}.yaml").read_text())
    assert plain.pop("_target_") == "dpsyn.data.tables.Tables" and plain["schema"]["file"] == name
    table = Schema(schema.read(name, config_folder() / "schemas"))
    middle = {column.name: column.values_of(np.array([column.size // 2]))[0] for column in table.columns.values()}
    path = tmp_path / "train.csv"
    names = list(middle) if plain["header"] is True else plain["header"]
    cells = ",".join(str(middle.get(column, "x")) for column in names)
    path.write_text(f"{','.join(names)}\n{cells}\n" if plain["header"] is True else f"{cells}\n")
    data = Tables(**{**plain, "path": str(path), "schema": table})
    data.check()
    found = everything(data)
    assert list(found.samples.content[0]) == list(middle.values()) and not found.adjusted and not found.refused


def test_the_tumours_that_ship_with_scikit_learn_fit_their_schema_to_the_last_row() -> None:
    table = Schema(schema.read("breast_cancer", config_folder() / "schemas"))
    parts = {split: everything(BreastCancer(table, split)) for split in ("train", "test", "all")}
    assert [len(parts[split].labels) for split in ("train", "test", "all")] == [460, 109, 569]
    assert np.bincount(parts["all"].labels).tolist() == [212, 357]  # malignant, benign, as documented
    content = parts["all"].samples.content
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, column in table.columns.items():
            if column.numeric:
                assert column.low <= content[name].min() and content[name].max() <= column.high
    data = BreastCancer(table)
    data.check()
    assert data.fingerprint() == BreastCancer(table).fingerprint() != BreastCancer(table, "test").fingerprint()
    with pytest.raises(UserError, match=r"^data\.schema\.file=.*the columns of the schema breast_cancer"):
        BreastCancer(PEOPLE).check()


@pytest.mark.parametrize(
    ("kind", "missing", "cell"),
    [
        ("kind: integer, bounds: [0, 50]", "99", "99.0"), ("kind: number, bounds: [0, 50]", "-9.5", "-9.50"),
        ("kind: number, bounds: [0, 50]", "1000", "1e3"), ("kind: category, values: [a]", "caf\u00e9", "cafe\u0301"),
        ("kind: category, values: [a]", "9", " 9.0 "), ("kind: date, bounds: [2000-01-01, 2030-01-01]", "1900-01-01",
        "1900-01-01 00:00:00"), ("kind: boolean", "8", "8.0"),
    ],
)  # fmt: skip
def test_a_code_of_a_missing_value_is_one_however_it_is_spelled(kind: str, missing: str, cell: str) -> None:
    said = yaml.safe_load(f"{{{kind}, missing: true, missing_values: ['{missing}']}}")
    column = declared("columns.x", "x", said, False)
    found = column.read([cell, missing, ""])
    assert (found[1] == FINE).all() and column.codes_of(found[0]).tolist() == [-1, -1, -1]


def test_a_code_of_a_missing_value_may_be_no_value_however_it_is_spelled() -> None:
    with pytest.raises(UserError, match="no text that is a value"):
        declared("x", "x", {"kind": "category", "values": ["1.0", "2"], "missing_values": ["1"]}, False)
    with pytest.raises(UserError, match="no text that is a value"):
        declared("x", "x", {"kind": "boolean", "values": ["0", "1"], "missing_values": ["1.0"]}, False)
