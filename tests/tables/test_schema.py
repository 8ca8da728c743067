"""Schemas of tables: what a cell means, what a row keeps, codes and back, and one line for every mistake."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dpsyn.compose import config_folder
from dpsyn.errors import UserError
from dpsyn.population import MISSING
from dpsyn.schedule.rows_then_texts import in_words
from dpsyn.tables import codec, draft, schema
from dpsyn.tables.columns import AS_MISSING, AS_OTHER, CLIPPED, CUT, FINE, LONG, NO_UTF8, RULES, SHORTENED
from dpsyn.tables.schema import Schema

CITY = {"kind": "category", "values": ["Rome", "Oslo"]}
WIDE: dict[str, Any] = {
    "age": {"kind": "integer", "bounds": [0, 100], "missing": True},
    "gain": {"kind": "number", "bounds": [0, 1000], "resolution": 0.5, "special": [0], "missing": True, "bins": 8},
    "born": {"kind": "date", "bounds": ["1990-01-01", "1999-12-31"], "missing": True},
    "wed": {"kind": "boolean", "missing": True},
    "size": {"kind": "ordered", "values": ["small", "medium", "large"], "missing": True},
    "city": {**CITY, "missing": True, "missing_values": ["?"]},
    "grade": {"kind": "integer", "bounds": [1, 4]},
}


def of(columns: dict[str, Any], labels: tuple[str, ...] = (), constraints: tuple[str, ...] = (), **more: Any) -> Schema:
    return Schema({"columns": columns, "labels": list(labels), "constraints": list(constraints), **more})


def seeds(n: int, start: int = 0) -> np.ndarray:
    return np.random.default_rng(start).integers(0, 2**64, n, np.uint64)


def random_rows(table: Schema, n: int, start: int = 0) -> np.ndarray:
    """Any values, missing ones too, constraints or not."""
    rng, content = np.random.default_rng(start), np.empty(n, table.dtype)
    for name, column in table.columns.items():
        content[name] = column.values_of(rng.integers(-1 if column.missing else 0, column.size, n))
    return content


def test_cells_become_values_of_the_declared_kind_and_missing_ones_stay_missing() -> None:
    cells = {
        "age": ["39", " 39", "39.0", None],
        "gain": ["1.25", "1e2", "", "0"],
        "born": ["1995-03-01", "1995-03-01 23:59:59", None, ""],
        "wed": ["true", "False", "0", ""],
        "size": ["small", " large ", "", "medium"],
        "city": ["Rome", "?", "", "Oslo"],
        "grade": ["1", "2", "3", "4.0"],
    }
    content, rules = of(WIDE).read(cells)
    assert (rules[:, 2] == [FINE, CUT, FINE, FINE]).all()  # a date has no time of day
    assert not np.delete(rules, 2, 1).any()
    assert content["age"].tolist() == [39, 39, 39, MISSING]
    assert content["gain"].tolist()[:2] == [1.25, 100.0] and np.isnan(content["gain"][2])
    assert content["born"].astype(str).tolist() == ["1995-03-01", "1995-03-01", "NaT", "NaT"]
    assert content["wed"].tolist() == [1, 0, 0, -1]
    assert content["size"].tolist() == ["small", "large", None, "medium"]
    assert content["city"].tolist() == ["Rome", None, None, "Oslo"]
    assert [content[name].dtype.kind for name in WIDE] == list("ifMiOOi")


@pytest.mark.parametrize(
    ("column", "cell", "value", "rule"),
    [
        ({"kind": "integer", "bounds": [17, 90]}, "91", 90, CLIPPED),
        ({"kind": "integer", "bounds": [17, 90]}, "-1e300", 17, CLIPPED),
        ({"kind": "number", "bounds": [0, 1], "outside": "missing", "missing": True}, "2", None, AS_MISSING),
        ({"kind": "number", "bounds": [0, 1], "outside": "missing", "missing": True}, "two", None, AS_MISSING),
        ({"kind": "number", "bounds": [0, 1], "outside": "refuse"}, "2", None, "beyond the declared bounds"),
        ({"kind": "number", "bounds": [0, 1]}, "inf", None, "not a number"),
        ({"kind": "number", "bounds": [0, 1000]}, "1_0", None, "not a number"),
        ({"kind": "integer", "bounds": [0, 9]}, "1.5", None, "not a whole number"),
        ({"kind": "integer", "bounds": [0, 9]}, "", None, "missing, which the schema does not allow"),
        (
            {"kind": "date", "bounds": ["2020-01-01", "2020-12-31"]},
            "2020-13-01",
            None,
            "not a date as declared (2024-01-31, or its format)",
        ),
        ({"kind": "boolean"}, "perhaps", None, "neither true nor false"),
        (CITY, "Paris", None, "not among the declared values"),
        ({**CITY, "outside": "other"}, "Paris", "other", AS_OTHER),
        ({**CITY, "outside": "missing", "missing": True}, "Paris", None, AS_MISSING),
        ({"kind": "ordered", "values": ["a", "b"]}, "B", None, "not among the declared values"),
    ],
)
def test_what_is_outside_the_schema_becomes_what_the_schema_says(
    column: dict[str, Any], cell: str, value: Any, rule: int | str
) -> None:
    content, rules = of({"c": column}).read({"c": [cell]})
    assert (RULES[rules[0, 0]] if isinstance(rule, str) else rules[0, 0]) == rule
    if value is not None:
        assert content["c"][0] == value


def test_how_a_cell_is_read_depends_on_no_other() -> None:
    column = of({"c": {"kind": "integer", "bounds": [0, 50], "missing": True}}).columns["c"]
    cells = [str(number) for number in range(-5, 60)] + ["", "x", "7.0", " 7"]
    together = column.read(cells)
    alone = [column.read([cell]) for cell in cells]
    assert together[0].tolist() == [values[0] for values, _ in alone]
    assert together[1].tolist() == [rules[0] for _, rules in alone]


def test_labels_are_all_combinations_of_declared_values_and_rows_carry_them() -> None:
    table = of({"n": {"kind": "integer", "bounds": [3, 4]}, "b": {"kind": "boolean"}, "c": CITY}, ("c", "n", "b"))
    assert len(table.labels) == 8 and table.labels[1] == {"c": "Rome", "n": "3", "b": "true"}
    content = np.empty(8, table.dtype)
    table.with_labels(content, np.arange(8))
    assert table.labels_of(content).tolist() == list(range(8))
    assert content.tolist()[5] == (3, 1, "Oslo")
    assert table.index([table.labels[k] for k in (7, 0, 7)]).tolist() == [7, 0, 7]
    assert of(WIDE).labels == ({},)


# Codes


def test_codes_and_back_is_the_same_cell_of_the_declared_domain() -> None:
    table = of(WIDE, ("grade",))
    content = random_rows(table, 3000)
    coded = codec.encode(table, content)
    assert coded.dtype == np.int32 and coded.shape == (3000, 6)
    back = codec.decode(table, coded, table.labels_of(content), seeds(3000))
    assert (codec.encode(table, back) == coded).all() and (back["grade"] == content["grade"]).all()
    gains = back["gain"][~np.isnan(back["gain"])]
    assert (gains % 0.5 == 0).all() and gains.min() >= 0 and gains.max() <= 1000
    for facts, column in zip(codec.coded_columns(table), coded.T, strict=True):
        assert column.max() == facts.codes - 1 and facts.missing == facts.codes - 1
    for name in ("wed", "size", "city", "age"):  # as many codes as values
        assert back[name].tolist() == content[name].tolist()


def test_a_special_value_is_a_cell_of_its_own() -> None:
    table = of({"gain": WIDE["gain"]})
    facts = codec.coded_columns(table)[0]
    assert (facts.codes, facts.ordered, facts.missing) == (10, True, 9)  # 8 bins, 0 apart from its own, missing
    back = codec.decode(table, np.zeros((50, 1), int), np.zeros(50, int), seeds(50))["gain"]
    assert (back == 0).all()


@pytest.mark.parametrize(("low", "high", "step"), [(0, 10**7, 1), (-3e4, 1e6, 0.01), (-1e6, -5, 1), (1000, 1e6, 0.5)])
def test_wide_bounds_cost_no_precision_near_zero(low: float, high: float, step: float) -> None:
    column = {"kind": "number", "bounds": [low, high], "resolution": step}
    table, n = of({"n": column, "equal": {**column, "bins": 256}, "day": STAYS["paid"]}), 2000
    content = random_rows(table, n)
    sizes = np.geomspace(step, max(-low, high), n) * np.where(np.arange(n) % 2, 1, -1)
    content["n"] = table.columns["n"].values_of(table.columns["n"].codes_of(sizes.clip(low, high)))
    coded = codec.encode(table, content)
    back = codec.decode(table, coded, np.zeros(n, int), seeds(n))
    assert (codec.encode(table, back) == coded).all()
    width = np.minimum(np.abs(content["n"]) * 0.0222, (high - low) / 256)
    assert (np.abs(back["n"] - content["n"]) <= width + step).all()
    assert [facts.codes for facts in codec.coded_columns(table)][1:] == [
        256,
        279,
    ]  # finer towards the bounds of the date


def test_a_decoded_row_depends_on_its_code_label_and_seed_alone() -> None:
    gain = {**WIDE["gain"], "bounds": [0, 100], "missing": False}  # from a missing one others are counted as elsewhere
    told = {**WIDE, "gain": gain}
    table = of(told, ("grade",), ("gain <= age", "city is null unless wed"))
    coded = codec.encode(table, random_rows(table, 200))
    labels, own = np.arange(200) % 4, seeds(200)
    whole = codec.decode(table, coded, labels, own)
    part = codec.decode(table, coded[150:], labels[150:], own[150:])
    assert repr(whole[150:].tolist()) == repr(part.tolist())
    with pytest.raises(ValueError, match=r"a code of age is not in 0\.\.11\d"):
        codec.decode(table, np.full((1, 6), 999), np.zeros(1, int), own[:1])


STAYS = {
    "came": {"kind": "date", "bounds": ["2020-01-01", "2024-12-31"], "missing": True},
    "left": {"kind": "date", "bounds": ["2020-01-01", "2024-12-31"], "missing": True},
    "paid": {"kind": "date", "bounds": ["2020-01-01", "2025-12-31"]},
    "net": {"kind": "number", "bounds": [0, 500], "resolution": 0.5},
    "gross": {"kind": "number", "bounds": [3, 900], "resolution": 0.25},
}


def test_what_is_never_below_another_column_is_coded_by_what_is_between() -> None:
    table = of(STAYS, (), ("left <= paid", "came <= left", "net <= gross"))
    rng, n = np.random.default_rng(0), 4000
    content = random_rows(table, n)
    content["came"], content["left"] = (np.minimum(content[at], np.datetime64("2024-09-09")) for at in ("came", "left"))
    for low, high in (("came", "left"), ("left", "paid")):
        later = content[low] + rng.geometric(0.2, n)
        content[high] = np.where(np.isnat(later), content[high], later)
    content["left"][rng.random(n) < 0.1] = "NaT"
    content["gross"] = content["net"] + 3 + rng.integers(0, 40, n) / 4
    coded = codec.encode(table, content)
    back = codec.decode(table, coded, np.zeros(n, int), seeds(n))
    assert (codec.encode(table, back) == coded).all()
    assert [name for name in ("came", "left") if (np.isnat(back[name]) != np.isnat(content[name])).any()] == []
    stays, ours = content["left"] - content["came"], back["left"] - back["came"]
    there = ~np.isnat(stays)
    assert there.sum() > 2000 and (ours[there] == stays[there]).all()  # to the day, by cells of a week each
    assert np.allclose(back["gross"] - back["net"], content["gross"] - content["net"], atol=0.51)
    assert not table.broken(back).any()


def test_without_the_column_below_it_a_value_is_coded_by_itself() -> None:
    base = {"kind": "integer", "bounds": [20, 30], "missing": True}
    table = of({"a": base, "b": {"kind": "integer", "bounds": [0, 90]}}, (), ("a <= b",))
    content = np.empty(91, table.dtype)
    content["a"], content["b"] = table.columns["a"].values_of(np.full(91, -1)), np.arange(91)
    coded = codec.encode(table, content)
    back = codec.decode(table, coded, np.zeros(91, int), seeds(91))
    assert np.abs(back["b"] - content["b"]).max() <= 3 and back["b"][:20].tolist() == list(range(20))
    fine = {"kind": "number", "bounds": [0, 9], "resolution": 0.01}
    far = of({"a": {**base, "kind": "number", "bounds": [-1e15, 9], "resolution": 1}, "b": fine}, (), ("a <= b",))
    rows = random_rows(far, 500)  # more steps between than floats can count: each by itself
    own = codec.decode(far, codec.encode(far, rows), np.zeros(500, int), seeds(500))
    assert np.abs(own["b"] - rows["b"]).max() < 9 / 250


def test_whoever_breaks_a_constraint_in_the_private_rows_is_coded_as_if_equal() -> None:
    table = of(STAYS, (), ("came <= left",))
    content = random_rows(table, 2)
    content["came"], content["left"] = ["2021-05-05", "2021-05-05"], ["2021-05-05", "2020-02-02"]
    assert len(set(codec.encode(table, content)[:, 1].tolist())) == 1


# Constraints


CHAINS = {
    "low": {"kind": "integer", "bounds": [0, 20], "missing": True},
    "middle": {"kind": "number", "bounds": [-5, 30], "resolution": 0.25, "missing": True},
    "high": {"kind": "integer", "bounds": [3, 40], "resolution": 3},
    "cap": {"kind": "integer", "bounds": [15, 22]},
    "from": {"kind": "date", "bounds": ["2020-01-01", "2020-12-31"]},
    "until": {"kind": "date", "bounds": ["2020-06-01", "2021-06-30"], "missing": True},
    "least": {"kind": "ordered", "values": ["a", "b", "c"]},
    "most": {"kind": "ordered", "values": ["a", "b", "c"]},
    "wed": {"kind": "boolean", "missing": True},
    "spouse": {**CITY, "missing": True},
    "child": {"kind": "integer", "bounds": [0, 9], "missing": True},
}
KEPT = (
    "low <= middle",
    "middle < high",
    "cap >= middle",
    "from < until",
    "least <= most",
    "spouse is null unless wed",
    "child is null unless spouse == 'Rome'",
)


def test_repaired_rows_break_no_constraint_leave_no_domain_and_keep_their_labels() -> None:
    table = of(CHAINS, ("cap",), KEPT)
    before, own = random_rows(table, 5000), seeds(5000)
    copy = before.copy()
    broken = table.broken(before)
    after = table.repaired(before, own)
    assert 0.5 < broken.mean() < 1 and not table.broken(after).any()
    assert repr(before.tolist()) == repr(copy.tolist())
    assert repr(after[~broken].tolist()) == repr(before[~broken].tolist())
    assert (after["cap"] == before["cap"]).all()
    assert repr(table.repaired(after, seeds(5000, 1)).tolist()) == repr(after.tolist())
    for name, column in table.columns.items():
        places = column.codes_of(after[name])
        assert places.max() < column.size and (places.min() >= 0 or column.missing)
        assert repr(column.values_of(places).tolist()) == repr(after[name].tolist())  # on the grid of its resolution
    part = table.repaired(before[4000:], own[4000:])
    assert repr(part.tolist()) == repr(after[4000:].tolist())


def test_of_a_comparison_that_fails_either_side_gives_way_by_as_much_as_it_failed() -> None:
    table = of({name: {"kind": "integer", "bounds": [0, 9]} for name in "ab"}, (), ("a <= b",))
    rows = np.array([(7, 2)] * 400, table.dtype)
    after = table.repaired(rows, seeds(400))
    assert {tuple(row) for row in after.tolist()} == {(7, 8), (1, 2)}
    assert 140 < (after["a"] == 7).sum() < 260


def test_a_value_that_may_only_stand_beside_another_goes_with_it_along_a_chain() -> None:
    names = "abcd"
    columns = {name: {"kind": "integer", "bounds": [0, 9], "missing": True} for name in names}
    table = of(columns, (), ("d is null unless c", "c is null unless b", "b is null unless a == 3"))
    rows = np.array([(3, 1, 1, 1), (4, 1, 1, 1), (MISSING, 1, 1, 1), (3, MISSING, 5, 5)], table.dtype)
    after = table.repaired(rows, seeds(4))
    none = MISSING
    assert after.tolist() == [(3, 1, 1, 1), (4, none, none, none), (none,) * 4, (3, none, none, none)]


# Mistakes: one clear line each

A = {"kind": "integer", "bounds": [0, 9]}


@pytest.mark.parametrize(
    ("file", "line"),
    [
        (None, "data.schema.file=null: expected a schema, columns: .*"),
        ({"columns": {"a": A}, "label": []}, "schema.label=...: expected columns, labels.*Did you mean labels?"),
        ({"columns": {}}, "schema.columns={}: expected columns by name, .*"),
        ({"columns": {"a": 3}}, "schema.columns.a=3: expected a mapping, .*"),
        ({"columns": {"row.label": A}}, "schema.columns='row.label': expected a name, and none that begins .*"),
        ({"columns": {"a": {"kind": "interger"}}}, "schema.columns.a.kind=interger: .*Did you mean integer?"),
        ({"columns": {"a": {**A, "bound": 1}}}, "schema.columns.a.bound=1: .*Did you mean bounds?"),
        ({"columns": {"a": {**A, "values": ["1"]}}}, "schema.columns.a.values=.*for a column of kind integer.*"),
        (
            {"columns": {"a": {**A, "bounds": [9, 0]}}},
            r"schema.columns.a.bounds=\[9, 0\]: expected the lower one first.",
        ),
        ({"columns": {"a": {"kind": "number"}}}, r"schema.columns.a.bounds=null: expected two of them, .*"),
        (
            {"columns": {"a": {**A, "bounds": [0, 1.5]}}},
            "schema.columns.a.bounds=1.5: expected whole numbers of 64 bits.",
        ),
        ({"columns": {"a": {**A, "resolution": 0}}}, "schema.columns.a.resolution=0: expected a number over 0.*"),
        ({"columns": {"a": {**A, "resolution": 0.5}}}, "schema.columns.a.resolution=0.5: expected a whole number."),
        ({"columns": {"a": {**A, "special": [10]}}}, r"schema.columns.a.special=\[10\]: .*within the bounds."),
        ({"columns": {"a": {**A, "bins": 0}}}, "schema.columns.a.bins=0: expected a whole number, 1 to 65536."),
        ({"columns": {"a": {**A, "outside": "other"}}}, "schema.columns.a.outside=other: expected clip or refuse, .*"),
        ({"columns": {"a": {**A, "outside": "missing"}}}, ".*only with missing: true.*"),
        ({"columns": {"a": {**A, "missing": "no"}}}, "schema.columns.a.missing=no: expected true or false."),
        ({"columns": {"a": {**A, "weight": -1}}}, "schema.columns.a.weight=-1: expected a number, 0 or more."),
        ({"columns": {"a": {"kind": "category"}}}, "schema.columns.a.values=null: expected a list of texts.*"),
        ({"columns": {"a": {"kind": "category", "values": []}}}, r"schema.columns.a.values=\[\]: .*at least one."),
        ({"columns": {"a": {"kind": "category", "values": ["x", "x"]}}}, "schema.columns.a.values='x': .*once."),
        ({"columns": {"a": {"kind": "category", "values": [True]}}}, "schema.columns.a.values=True: .*in quotes."),
        ({"columns": {"a": {**CITY, "missing_values": ["Rome"]}}}, "schema.columns.a.missing_values=Rome: .*"),
        ({"columns": {"age": A}, "labels": ["agee"]}, "schema.labels=agee: .*Did you mean age?"),
        ({"columns": {"a": A}, "labels": "a"}, "schema.labels=a: expected a list of columns.*"),
        ({"columns": {"a": {**A, "missing": True}}, "labels": ["a"]}, "schema.columns.a.missing=true: .*"),
        ({"columns": {"a": {**A, "kind": "number"}}, "labels": ["a"]}, "schema.labels=a: .*This one is a number."),
        ({"columns": {"a": {**A, "bounds": [0, 10**6]}}, "labels": ["a"]}, "schema.labels=.*these are 1000001."),
        ({"columns": {"a": A}, "unit": "a"}, "schema.unit=a: expected a column that is not declared .*synthetic rows."),
        ({"columns": {"a": A}, "unit": ["p"]}, r"schema.unit=\['p'\]: expected the name of a column."),
        ({"columns": {"a": A}, "extra": "drop"}, "schema.extra=drop: expected refuse or ignore."),
        ({"columns": {"a": A}, "constraints": ["a != a"]}, "schema.constraints='a != a': expected 'a <= b' .*"),
        ({"columns": {"a": A}, "constraints": ["a <= b"]}, "schema.constraints='a <= b': .*'b' is none."),
        ({"columns": {"a": A, "c": CITY}, "constraints": ["a <= c"]}, "schema.constraints='a <= c': expected two .*"),
        ({"columns": {"a": A, "b": A}, "constraints": ["a < b", "b < a"]}, ".*do not go round in a circle."),
        (
            {"columns": {"a": {**A, "bounds": [5, 9]}, "b": {**A, "bounds": [0, 4]}}, "constraints": ["a <= b"]},
            "schema.constraints='a <= b': expected something that rows can keep within the declared bounds.",
        ),
        (
            {"columns": {"a": {**A, "bounds": [5, 9]}, "b": A}, "constraints": ["a <= b"], "labels": ["b"]},
            ".*rows of every label can keep.*",
        ),
        (
            {"columns": {"a": A, "c": CITY}, "constraints": ["c is null unless a"]},
            ".*missing: true for the column 'c'.*",
        ),
        (
            {"columns": {"a": {**A, "missing": True}, "c": CITY}, "constraints": ["a is null unless c == 'Bonn'"]},
            ".*a value that the column 'c' can have: Rome or Oslo.",
        ),
    ],
)
def test_a_mistake_in_a_schema_is_one_line_that_says_what_to_mend(file: Any, line: str) -> None:
    with pytest.raises(UserError, match=f"^{line.replace('{', '[{]').replace('?', '[?]')}$") as error:
        Schema(file)
    assert "\n" not in str(error.value)


def test_a_schema_file_is_found_by_name_or_path_and_holds_nothing_but_plain_values(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("columns: {d: {kind: date, bounds: [2020-01-01, 2020-02-01]}}")
    content = schema.read("mine", tmp_path)
    assert content == {"columns": {"d": {"kind": "date", "bounds": ["2020-01-01", "2020-02-01"]}}}
    assert schema.read(str(tmp_path / "mine.yaml")) == content
    for name, line in [
        ("mien", "Did you mean mine?"),
        ("no/such.yaml", "a yaml file that is there"),
        (" ", "the name"),
    ]:
        with pytest.raises(UserError, match=line.replace("?", "[?]")):
            schema.read(name, tmp_path)
    for text in ("columns: {a: {kind: boolean}, a: {kind: boolean}}", "columns: [", "\xff", "7"):
        (tmp_path / "bad.yaml").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=r"^data\.schema\.file=bad: expected [^\n]*$"):
            schema.read("bad", tmp_path)


def test_numbers_of_a_schema_file_are_those_a_person_reads_there(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(
        "columns:\n"
        "  income: {kind: number, bounds: [-1e3, 1e+06], resolution: 1e-2}\n"
        "  county: {kind: category, values: [001, 010, 12, 1E5, 08:30, 12:30, 0x1F, 1_0]}\n"
    )
    columns = Schema(schema.read(str(path))).columns
    assert (columns["income"].low, columns["income"].high, columns["income"].step) == (-1000, 1_000_000, 0.01)
    assert columns["county"].values == ("001", "010", "12", "1E5", "08:30", "12:30", "0x1F", "1_0")


@pytest.mark.parametrize("path", sorted((config_folder() / "schemas").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_schemas_that_ship_are_whole(path: Path) -> None:
    table = Schema(schema.read(path.stem, path.parent))
    assert all(table.columns[name].outside == "refuse" for name in table.label_columns)
    assert path.read_text().startswith("# ")  # it says where its bounds come from


# Drafts


def test_a_draft_from_a_public_sample_warns_and_reads_that_sample(tmp_path: Path) -> None:
    sample = tmp_path / "sample.csv"
    lines = ["id,age,height,city,wed,born,zip,void"]
    lines += [
        f"k{i},{i % 50},{1.5 + i % 7 / 20:.2f},{'Rome' if i % 3 else '?'},true,2001-05-06,{i % 2}0501,NA"
        for i in range(99)
    ]
    sample.write_text("\n".join(lines))
    text = draft.draft(str(sample))
    assert "never from the private data" in text.replace("\n# ", " ") and text.startswith("# ")
    columns = yaml.safe_load(text)["columns"]
    assert columns == {
        "age": {"kind": "integer", "bounds": [0, 50]},
        "height": {"kind": "number", "bounds": [1.5, 1.8], "resolution": 0.01},
        "city": {"kind": "category", "values": ["Rome"], "missing": True, "missing_values": ["?"]},
        "wed": {"kind": "boolean", "values": ["false", "true"]},
        "born": {"kind": "date", "bounds": [columns["born"]["bounds"][0], columns["born"]["bounds"][1]]},
        "zip": {"kind": "category", "values": ["00501", "10501"]},
    }
    assert '# "id": every row has its own: a key; left out' in text and '# "void": every cell is missing' in text
    (tmp_path / "draft.yaml").write_text(text)
    table = Schema(schema.read(str(tmp_path / "draft.yaml")))
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    _, rules = table.read({name: [row[name] for row in rows] for name in table.columns})
    assert (rules == FINE).all()


@pytest.mark.parametrize(
    ("cells", "bounds", "resolution"),
    [
        (["1000", "999999.25"], [0, 1_000_000], 0.01),
        (["2.5e6", "12.125", "7e6"], [0, 7_000_000], 0.01),
        (["0.00000125", "0.0000025"], [0.000001, 0.000003], 0.00000001),
        (["-0.3", "0.3"], [-0.3, 0.3], 0.1),
        (["1000000.1", "1000000.3"], [1000000.1, 1000000.3], 0.1),
        (["1.23456789012", "60000.5"], [0, 70_000], 0.0001),
    ],
)
def test_a_drafted_number_can_be_read_and_holds_the_sample(
    tmp_path: Path, cells: list[str], bounds: list[float], resolution: float
) -> None:
    (tmp_path / "sample.csv").write_text("\n".join(["x", *cells]))
    (tmp_path / "draft.yaml").write_text(draft.draft(str(tmp_path / "sample.csv")))
    column = Schema(schema.read(str(tmp_path / "draft.yaml"))).columns["x"]
    assert [column.low, column.high, column.step] == pytest.approx([*bounds, resolution])
    assert all(column.low <= float(cell) <= column.high for cell in cells)


def test_a_draft_from_a_codebook_says_what_the_codebook_says(tmp_path: Path) -> None:
    book = tmp_path / "book.csv"
    book.write_text("name,kind,values,low,high,missing\nage,integer,,17,90,\njob,category,clerk | farmer,,,?|\n")
    made = yaml.safe_load(draft.draft(str(book)))["columns"]
    assert made == {
        "age": {"kind": "integer", "bounds": [17, 90]},
        "job": {"kind": "category", "values": ["clerk", "farmer"], "missing": True, "missing_values": ["?"]},
    }
    book.write_text("name,kind\nage,integer\n")
    with pytest.raises(UserError, match="no low and high of 'age'"):
        draft.draft(str(book))


@pytest.mark.parametrize("known", [0, 3, 10**6])
def test_cells_that_were_read_before_are_read_alike(known, monkeypatch):
    monkeypatch.setattr("dpsyn.tables.schema.KNOWN", known)
    some = Schema(
        {
            "columns": {
                "age": {"kind": "integer", "bounds": [0, 9], "missing": True},
                "job": {"kind": "category", "values": ["smith", "clerk"], "outside": "other"},
            }
        }
    )
    parts = [
        {"age": ["3", "x", "", "99"] * 40, "job": ["smith", "lord", "clerk", "clerk "] * 40},
        {"age": ["3", None], "job": ["clerk", "lord"]},
    ]
    kept = some.cells_read()
    for part in parts:
        for one, two in zip(some.read(part, kept), some.read(part), strict=True):
            np.testing.assert_array_equal(one, two)


def test_rows_are_decoded_alike_in_blocks(monkeypatch):
    some = Schema(
        {"columns": {"age": {"kind": "number", "bounds": [0, 9], "missing": True}, "well": {"kind": "boolean"}}}
    )
    codes = np.stack([np.random.default_rng(0).integers(0, c.codes, 50) for c in codec.coded_columns(some)], 1)
    seeds = np.arange(50, dtype=np.uint64)
    whole = codec.decode(some, codes, np.zeros(50, np.int64), seeds)
    monkeypatch.setattr(codec, "BLOCK", 7)
    assert codec.decode(some, codes, np.zeros(50, np.int64), seeds).tobytes() == whole.tobytes()


def test_texts_of_a_table_are_cut_or_refused_by_what_is_declared_and_have_no_codes() -> None:
    columns: dict[str, Any] = {"age": {"kind": "integer", "bounds": [0, 9]}, "said": {"kind": "text", "words": 3}}
    schema = Schema({"columns": columns})
    cells = [" one  two ", "one two three four", "", None, "a\0b", "\udcff"]
    content, rules = schema.read({"age": ["1"] * 6, "said": cells})
    assert content["said"][[0, 1, 4]].tolist() == ["one  two", "one two three", "ab"]
    words = [RULES[rule] for rule in rules[:, 1]]
    assert words == ["", RULES[SHORTENED], "no text", "no text", "", RULES[NO_UTF8]]
    refusing = Schema({"columns": {**columns, "said": {**columns["said"], "outside": "refuse"}}})
    assert refusing.read({"age": ["1"], "said": ["one two three four"]})[1][0, 1] == LONG
    assert [column.name for column in schema.features] == ["age"] and list(schema.texts) == ["said"]
    assert schema.dtype.names == ("age", "said")


def test_a_prompt_is_told_of_a_row_in_words() -> None:
    columns = {
        "born": {"kind": "date", "bounds": ["1900-01-01", "2020-01-01"], "missing": True},
        "paid": {"kind": "boolean", "values": ["nein", "ja"], "missing": True},
        "price": {"kind": "number", "bounds": [0, 10], "resolution": 0.01, "missing": True},
        "said": {"kind": "text", "about": "a note", "language": "German"},
    }
    schema = Schema({"columns": columns})
    cells = {"born": ["1999-02-03", ""], "paid": ["ja", ""], "price": ["2.50", ""], "said": ["x", "y"]}
    content, _ = schema.read(cells)
    said = {"about": "a note", "language": "German"}
    assert in_words(schema, content, "said") == [
        {"born": "1999-02-03", "paid": "ja", "price": "2.5", **said},
        {"born": "unknown", "paid": "unknown", "price": "unknown", **said},
    ]


@pytest.mark.parametrize(
    ("column", "line"),
    [
        ({"words": 0}, "schema.columns.said.words=0: expected null, or how many words"),
        ({"outside": "clip"}, "schema.columns.said.outside=clip: expected "),
        ({"missing": True}, "schema.columns.said.missing=True: expected "),
        ({"about": 3}, "schema.columns.said.about=3: expected "),
        (
            {"about": "a note"},
            "schema.columns.said.about=a note: expected null, or the column 'about' called otherwise",
        ),
    ],
)
def test_a_mistake_in_a_column_of_texts_is_one_line(column: dict[str, Any], line: str) -> None:
    others = {"about": {"kind": "boolean"}} if column.get("about") == "a note" else {"age": {"kind": "boolean"}}
    with pytest.raises(UserError) as refused:
        Schema({"columns": {**others, "said": {"kind": "text", **column}}})
    assert str(refused.value).startswith(line)
