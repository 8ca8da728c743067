"""The values of open columns, found by votes for how they begin: what is found, what it moves, and whole runs."""

import csv
import io
import math
import os

import numpy as np
import pytest
import yaml
from harness import at_moment, files, same_noise
from rich.console import Console

from dpsyn import cli, compose
from dpsyn.build import build
from dpsyn.errors import UserError
from dpsyn.execution import carry_out
from dpsyn.planning import facts as facts_of
from dpsyn.planning import planned
from dpsyn.population import Samples
from dpsyn.privacy import account
from dpsyn.privacy.budget import Settings
from dpsyn.privacy.prefixes import Spelled
from dpsyn.privacy.query import Answer, Block, PrefixCounts
from dpsyn.runs.directory import open_run
from dpsyn.runs.verification import verified
from dpsyn.schedule import Facts, PublicSide
from dpsyn.schedule.discover import Asked, Characters, Discover, half_found, nothing, schema_yaml, shared_out, updated
from dpsyn.show import Screen
from dpsyn.tables.columns import REFUSED
from dpsyn.tables.open import SETS
from dpsyn.tables.schema import Schema, read

TOWN = {"kind": "category", "values": "open", "longest": 6, "characters": ["lower", " -"]}
CODE = {"kind": "category", "values": "open", "longest": 3, "characters": "digits", "missing": True}
COLUMNS = {
    "age": {"kind": "integer", "bounds": [0, 99]},
    "town": {**TOWN, "longest": 4},
    "code": CODE,
    "well": {"kind": "boolean"},
}
SCHEMA = {"columns": COLUMNS, "labels": ["well"], "unit": "user"}
TOWNS = ["york", "bath", "hull", "bat", "ely"]


def rows(n=600):
    """Towns with 30, 25, 20, 15, 10 % of the rows; and two that one row each has."""
    rng = np.random.default_rng(0)
    towns = rng.choice(TOWNS, n, p=[0.3, 0.25, 0.2, 0.15, 0.1]).tolist()
    codes = rng.choice(["007", "1", "12", ""], n).tolist()
    towns[3], towns[4] = "oslo", "far too long"
    return [
        [f"u{i % 200}", str(i % 90), town, code, "true" if i % 3 else "false"]
        for i, (town, code) in enumerate(zip(towns, codes, strict=True))
    ]


def schema_of(**columns):
    return Schema({"columns": {"age": COLUMNS["age"], **columns}})


def content(schema, cells):
    """Rows as they are read. cells: a list of each open column."""
    return schema.read({name: list(given) for name, given in cells.items()})[0]


# what is found


def asked_of(schema, cells, noise, seed=0):
    """An ask of values in cells, with noise."""
    rng, codes = np.random.default_rng(seed), Characters(schema)(Samples(content(schema, cells)))

    def ask(t, query):
        exact = query.tally([Block(0, codes, np.full(len(codes), -1))])
        return Answer(exact + rng.normal(0, noise, len(exact)), noise)

    return ask


def public_of(schema, records=None, **settings):
    privacy = Settings(**{"epsilon": 1.0, "delta": 1e-5, **settings})
    return PublicSide(None, None, schema.labels, Facts(np.ones(1), records, schema, privacy), seed=0)


def found(schema, cells, noise, stride=1, false_values=0.1):
    schedule = Discover(stride, false_values, size=50)
    written = schedule.files(public_of(schema), asked_of(schema, cells, noise))["schema.yaml"]
    return yaml.safe_load(written)["columns"]


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_values_that_many_have_are_found_and_those_of_a_few_are_not(stride):
    schema = schema_of(town=TOWN, code=CODE)
    cells = {
        "town": ["york"] * 300 + ["yo"] * 200 + ["leeds"] * 90 + ["london"] * 90 + ["oslo"] * 3 + ["Ely", None][:1],
        "code": ["007"] * 300 + ["12"] * 200 + [None] * 90 + ["9"] * 94,
    }
    columns = found(schema, cells, noise=5, stride=stride)
    assert columns["town"]["values"] == ["leeds", "london", "yo", "york"]
    assert columns["code"] == {"kind": "category", "values": ["007", "12", "9"], "missing": True, "outside": "other"}


def test_of_nothing_but_noise_hardly_anything_is_found_and_prefixes_die_out():
    schema = schema_of(town=TOWN)
    sizes, values = [], 0
    for seed in range(20):
        ask = asked_of(schema, {"town": []}, noise=7, seed=seed)

        def counted(t, query, ask=ask):
            sizes.append(query.size)
            return ask(t, query)

        written = Discover(1, 0.1, 50).files(public_of(schema), counted)["schema.yaml"]
        values += len(yaml.safe_load(written)["columns"]["town"]["values"]) - 1  # but for 'other'
    assert values <= 7  # 2 are expected
    assert np.mean(sizes) < 3 * 29 and max(sizes) < 12 * 29


@pytest.mark.parametrize("value", ["london", "ely"])
def test_the_records_that_a_plan_says_are_needed_are_found_half_of_the_time(value, monkeypatch):
    monkeypatch.setattr("dpsyn.schedule.discover.FOLLOWED", 2)  # prefixes: here is one value alone, and noise
    column = schema_of(town=TOWN).open["town"]
    levels = [Asked(column, 0, known, 1) for known in range(6)]
    noise, hits, rng = [8.0, 8.0, 8.0, 8.0, 8.0, 6.0], 0, np.random.default_rng(1)
    records = half_found(levels, len(value), 0.1 / 6, noise)
    codes = column.codes(np.array([value], object))[0]
    for _ in range(80):
        state = nothing(column)
        for level, deviation in zip(levels, noise, strict=True):
            exact = np.zeros((len(state.prefixes), column.letters))
            mine = (state.prefixes == codes[: level.known]).all(1)
            exact[mine, codes[level.known]] = records
            again = records * (state.spelled == codes).all(1)
            drawn = [each + rng.normal(0, deviation, each.shape) for each in (exact, again)]
            state = updated(state, level, *drawn, deviation, 0.1 / 6)
        hits += value in state.values(column)
    assert 0.3 < hits / 80 < 0.7


def test_rows_show_every_value_in_proportion_to_its_count():
    assert shared_out(np.array([30.0, 60.0, 0.0, 10.0]), 21).tolist() == [6, 12, 1, 2]
    assert shared_out(np.array([1.0, 1.0, 1.0]), 3).tolist() == [1, 1, 1]
    assert shared_out(np.array([9.0, 1.0, 1.0]), 2).tolist() == [2, 0, 0]
    assert shared_out(np.zeros(3), 2).sum() == 2
    assert shared_out(np.array([5.0]), 7).tolist() == [7]


# what it moves


def tallied(schema, given, unit="record"):
    """given: (user, cells) of each row. The exact answer at a level in the middle of both columns."""
    samples = Samples(content(schema, {name: [cells[name] for _, cells in given] for name in schema.open}))
    codes = Characters(schema)(samples)
    units = np.array([user for user, _ in given])
    known = [schema.open["town"].codes(np.array(["bat", "yor", "-- "], object))[:, :3]]
    known += [schema.open["code"].codes(np.array(["0", "1"], object))[:, :1]]
    values = [schema.open["town"].codes(np.array(["bat", "yo"], object)), np.empty((0, 3), np.int32)]
    query = PrefixCounts(
        tuple(
            Spelled(first, column.letters, prefixes, ahead, whole)
            for first, column, prefixes, ahead, whole in zip(
                (0, 6), schema.open.values(), known, (1, 2), values, strict=True
            )
        )
    )
    if unit == "user":
        return query.tally_by_user(lambda: [Block(0, codes[:9], units[:9]), Block(0, codes[9:], units[9:])]), query
    return query.tally([Block(0, codes[:9], units[:9]), Block(0, codes[9:], units[9:])]), query


def drawn(n, seed):
    rng = np.random.default_rng(seed)
    towns = ["bath", "bat", "batley", "york", "yor", "-- a", "oslo", "Hull", "much too long", " york "]
    codes = ["007", "0", "", "1", "123", "1234", "x", "9"]
    return [(int(rng.integers(4)), {"town": str(rng.choice(towns)), "code": str(rng.choice(codes))}) for _ in range(n)]


@pytest.mark.parametrize("seed", range(12))
def test_a_record_moves_one_cell_of_each_column_by_one_and_a_user_a_vector_of_norm_one(seed):
    schema = schema_of(town=TOWN, code=CODE)
    given, (one, other) = drawn(40, seed), drawn(2, seed + 100)
    counts, query = tallied(schema, given)
    assert counts.sum() == query.moves * len(given)
    more = tallied(schema, [*given, one])[0] - counts
    assert (more >= 0).all() and more.sum() == query.moves and more.max() == 1
    replaced = tallied(schema, [*given[:7], other, *given[8:]])[0] - counts
    assert np.abs(replaced).sum() <= 2 * query.moves and np.abs(replaced).max() <= 1
    by_user, _ = tallied(schema, given, "user")
    new = [(9, cells) for _, cells in drawn(6, seed + 200)]
    grid = query.grid("user")
    assert np.linalg.norm(tallied(schema, [*given, *new], "user")[0] - by_user) <= grid
    again = [(user, {"town": "york", "code": "1"} if user == 2 else cells) for user, cells in given]
    assert np.linalg.norm(tallied(schema, again, "user")[0] - by_user) <= math.sqrt(2) * grid


def test_codes_that_no_reader_gives_count_as_all_else_and_repeated_prefixes_are_refused():
    codes = np.array([[1, 2], [1, 300], [-1, -1], [257, 2], [1, 0], [0, 0]], np.int32)
    none = np.empty((0, 2), np.int32)
    assert Spelled(0, 4, np.array([[1]], np.int32), 1, none).entries(codes).tolist() == [2, 4, 4, 4, 0, 4]
    whole = Spelled(0, 4, np.array([[1]], np.int32), 1, np.array([[3, 0], [1, 0]], np.int32))
    assert whole.entries(codes).tolist() == [2, 6, 6, 6, 5, 6]
    for wrong in ([[1], [1]], [[0]], [[4]]):
        with pytest.raises(ValueError, match="prefixes"):
            Spelled(0, 4, np.array(wrong, np.int32), 1, none)
    with pytest.raises(ValueError, match="prefixes"):
        Spelled(0, 4, np.array([[1]], np.int32), 1, np.array([[3, 0], [3, 0]], np.int32))


# spellings

HOSTILE = [
    *["no", "1e3", "007", "~", "null", "true", "0x1F", "12:30", "2020-01-01", "=", "<<", "&a", "*a", "!x", "%", "- a"],
    *["a: b", "a #b", "'", '"', '"\\', "[a]", "{a}", "é", "日本", "İ", "ẞ", "a  b", "|", ">", "?", ".5", "1_0"],
]


def test_whatever_a_value_is_the_written_schema_gives_it_back_and_its_cells_are_read_as_it(tmp_path):
    characters = "".join(sorted(set("".join(HOSTILE))))
    schema = schema_of(town={"kind": "category", "values": "open", "longest": 10, "characters": characters})
    column = schema.open["town"]
    assert all(column.text(codes[codes > 0]) == value and column.is_value(value) for value, codes in
               zip(HOSTILE, column.codes(np.array(HOSTILE, object)), strict=True))  # fmt: skip
    for odd in (" a", "a ", "1.0", "", "e\u0301"):  # what noise may spell, and no cell
        assert not column.is_value(odd)
    path = tmp_path / "schema.yaml"
    path.write_bytes(schema_yaml(schema, {"town": dict.fromkeys(HOSTILE, 1.0)}, {"town": 0.0}, records=99))
    again = Schema(read(str(path)))
    assert again.columns["town"].values == (*sorted(HOSTILE), "other") and not again.open
    cells = [*HOSTILE, " no ", "rare"]
    values, rules = again.columns["town"].read(cells)
    assert values.tolist() == [*HOSTILE, "no", "other"] and (rules < REFUSED).all()


@pytest.mark.parametrize(("longest", "characters"), [(1, "ab"), (1, "a"), (5, "a"), (2, "b a")])
def test_columns_of_one_character_are_no_trouble_nor_are_rows_without_a_value(longest, characters):
    schema = schema_of(town={"kind": "category", "values": "open", "longest": longest, "characters": characters})
    assert found(schema, {"town": ["a"] * 99}, noise=3)["town"]["values"] == ["a"]
    assert found(schema, {"town": []}, noise=0, false_values=1e-9)["town"]["values"] == ["other"]
    plan = Discover(None, 0.1, 5)
    deviations = [3.0] * len(plan.releases(public_of(schema).facts))
    assert all("about" in line for line in plan.warnings(public_of(schema).facts, deviations))


@pytest.mark.parametrize(
    ("outside", "cells", "expected"),
    [
        ("other", ["york", " york", "York", "far too long", None, "?"], ["york", "york", "", "", None, None]),
        ("missing", ["York", "NA"], [None, None]),
    ],
)
def test_a_value_of_other_characters_or_too_long_is_what_the_column_says_of_undeclared_ones(outside, cells, expected):
    said = {**TOWN, "missing": True, "missing_values": ["?", "NA"], "outside": outside}
    values, rules = schema_of(town=said).open["town"].read(cells)
    assert values.tolist() == expected and (rules < REFUSED).all()
    _, refused = schema_of(town={**TOWN, "outside": "refuse"}).open["town"].read(["York", "york", ""])
    assert (refused >= REFUSED).tolist() == [True, False, True]


# whole runs


DISCOVER = ["schedule=discover", "schedule.stride=1", "schedule.size=60", "schedule.false_values=0.001"]


def job(folder, given, *overrides, schema=SCHEMA, schedule=DISCOVER):
    folder.mkdir(exist_ok=True)
    with (folder / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["user", *COLUMNS], *given])
    if schema is not None:
        (folder / "schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False))
    return build(
        compose.settings(
            [
                "data=tables",
                f"data.path={folder / 'data.csv'}",
                f"data.schema.file={folder / 'schema.yaml'}",
                "data.id=test",
                "data.records=600",
                "privacy.epsilon=4",
                "privacy.delta=1e-4",
                f"run_dir={folder / 'run'}",
                *schedule,
                *overrides,
            ]
        )
    )


def run(folder, given, *overrides):
    made, out = job(folder, given, *overrides), io.StringIO()
    carry_out(made, Screen(Console(file=out, width=200), facts_of(made), len(made.releases)))
    return out.getvalue()


def test_a_run_finds_the_values_then_the_main_run_uses_them_and_both_are_on_one_account(tmp_path, capsys):
    printed = run(tmp_path, rows())
    release = tmp_path / "run/release"
    assert "oslo" not in printed and "york" not in printed
    found = Schema(read(str(release / "schema.yaml")))
    assert set(TOWNS) >= set(found.columns["town"].values) - {"other"} >= {"york", "bath", "hull"}
    assert found.columns["code"].values == ("007", "1", "12", "other") and found.columns["code"].missing
    assert found.label_columns == ("well",) and found.unit == "user" and list(found.columns) == list(COLUMNS)
    everything = b"".join(content for name, content in files(release).items() if "synthetic" not in name)
    assert b"oslo" not in everything and b"far too" not in everything
    assert verified(open_run(tmp_path / "run")).agrees
    assert "values that noisy counts found" in (release / "README.md").read_text()
    assert ">york<" in (release / "report.html").read_text()
    assert cli.main(["report", str(tmp_path / "run"), "--private"]) == 0
    assert cli.main(["expand", str(tmp_path / "run"), "--rows", "99"]) == 0
    assert verified(open_run(tmp_path / "run")).agrees
    assert len(open_run(tmp_path / "run").load(4)) == 60
    cells = ["schedule=cells", "schedule.size=100", "data.max_adjusted=0.3", f"run_dir={tmp_path / 'main'}"]
    with pytest.raises(UserError, match=r"schema.columns.town.values=open: expected a list of texts\. Find.*discover"):
        job(tmp_path, rows(), schedule=cells)
    made = job(tmp_path, rows(), f"data.schema.file={release / 'schema.yaml'}", schedule=cells)
    carry_out(made, Screen(Console(file=io.StringIO(), width=200), facts_of(made), len(made.releases)))
    for name in ("run", "main"):
        assert len(account.of_run(open_run(tmp_path / name).identity()["run"])) == 2
    capsys.readouterr()
    assert cli.main(["budget"]) == 0
    assert "all 2 together" in capsys.readouterr().out


NEIGHBOURS = {
    "one row more": (["u-new", "5", "reykjav", "999", "true"], []),
    "one user more, in users": (["u-new", "5", "reykja", "", "true"], ["privacy.unit=user"]),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_given_the_receipts_neighbouring_tables_give_the_same_bytes_and_the_same_screen(name, tmp_path, monkeypatch):
    odd, overrides = NEIGHBOURS[name]
    seen, noisy = [], None
    for number, given in enumerate([rows(200), [*rows(200), odd, odd]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with monkeypatch.context() as patched:
            patched.setenv("XDG_STATE_HOME", str(folder / "state"))
            patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            noisy = same_noise(patched, noisy)
            printed = run(folder, given, *overrides)
        seen.append((files(folder / "run/release"), printed.replace(str(folder), "")))
    assert seen[0] == seen[1]


class Cut(BaseException):
    pass


def test_a_run_that_is_cut_off_anywhere_goes_on_to_the_same_bytes_and_shards_are_one_stream(tmp_path, monkeypatch):
    monkeypatch.setattr("dpsyn.runs.directory.secrets.token_hex", lambda n: "0" * 2 * n)
    monkeypatch.setattr("dpsyn.privacy.account.check_known_directory", lambda *_: None)
    monkeypatch.setattr("dpsyn.privacy.electorate.FEW", 20)
    seeded, seen = "privacy.noise=insecure_seeded", []
    for name, shards in (("whole", 1), ("cut", 3)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name / "cache"))
        moments = [("replace", "votes/002.parquet"), ("replace", "iterations/003"), ("replace", "schema.yaml")]
        for moment in moments if name == "cut" else []:

            def cut():
                raise Cut

            with monkeypatch.context() as patched:
                for call in ("fsync", "replace", "mkdir"):
                    patched.setattr(os, call, getattr(os, call))
                reached = at_moment(moment, cut)
                with pytest.raises(Cut):
                    run(tmp_path / name, rows(), seeded, f"runtime.shards={shards}")
            assert reached == [moment]
        run(tmp_path / name, rows(), seeded, f"runtime.shards={shards}")
        seen.append(files(tmp_path / name / "run/not_private"))
    assert seen[0] == seen[1] and "schema.yaml" in seen[0]


def test_without_noise_every_value_is_found(tmp_path):
    planned(job(tmp_path, rows(50), "privacy=none"))
    run(tmp_path, rows(50), "privacy=none")
    found = Schema(read(str(tmp_path / "run/not_private/schema.yaml")))
    assert set(found.columns["town"].values) == {*TOWNS, "oslo", "other"}


def test_however_many_values_there_are_the_releases_are_those_of_the_plan(tmp_path):
    plan = planned(job(tmp_path, rows(50)))
    assert [release["name"] for release in plan["releases"]] == [f"prefixes {t}" for t in range(1, 5)]
    assert [release["open columns"] for release in plan["releases"]] == ["2", "2", "2", "1"]
    noise = [release["noise_in_records"] for release in plan["releases"]]
    assert len(set(noise[:2])) == 1 and noise[2] < noise[1] and noise[3] < noise[1]  # the last ones tell alone
    assert any("'town': a value of 4 characters is found with one chance in two" in text for text in plan["warnings"])


# bad input


def without(said, *words):
    return {word: value for word, value in said.items() if word not in words}


@pytest.mark.parametrize(
    ("columns", "more", "line"),
    [
        ({"town": without(TOWN, "longest")}, {}, r"town.longest=null: expected a whole number from 1 to 64"),
        ({"town": {**TOWN, "longest": 0}}, {}, r"town.longest=0: expected a whole number from 1 to 64"),
        ({"town": {**TOWN, "longest": 10**9}}, {}, r"town.longest=1000000000: expected a whole number from 1 to 64"),
        ({"town": {**TOWN, "characters": "aba"}}, {}, r"town.characters=aba: expected every character once; 'a'"),
        ({"town": {**TOWN, "characters": ["lower", "x"]}}, {}, r"expected every character once; 'x'"),
        ({"town": {**TOWN, "characters": "a\n"}}, {}, r"expected characters that can be seen"),
        ({"town": {**TOWN, "characters": []}}, {}, r"town.characters=\[\]: expected digits, upper"),
        ({"town": {**TOWN, "characters": "".join(map(chr, range(0x4E00, 0x4F00)))}}, {}, r"at most 200 characters"),
        ({"town": {**TOWN, "kind": "ordered"}}, {}, r"town.values=open: expected a list of texts, or a column of kind"),
        ({"town": {**TOWN, "long": 3}}, {}, r"town.long=3: expected .* for a category with values: open"),
        ({"town": {**TOWN, "outside": "clip"}}, {}, r"town.outside=clip: expected refuse or other"),
        (
            {"town": TOWN},
            {"labels": ["town"]},
            r"schema.labels=town: expected a column whose values are declared\. Find",
        ),
        ({"town": TOWN}, {"unit": "town"}, r"schema.unit=town: expected a column that is not declared"),
        ({"town": TOWN}, {"constraints": ["town < age"]}, r"neither texts nor open ones; 'town' is none"),
    ],
)
def test_what_is_no_open_column_is_refused_in_a_line(columns, more, line):
    with pytest.raises(UserError, match=line) as error:
        Schema({"columns": {"age": COLUMNS["age"], **columns}, **more})
    assert "\n" not in str(error.value).replace("a\n", "")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["schedule.stride=0"], r"schedule.stride=0: expected a whole number from 1 to 3, or null"),
        (["schedule.false_values=0"], r"schedule.false_values=0: expected a number over 0"),
        (["evaluate.epsilon=1"], r"evaluate.epsilon=1.0: expected null with a schedule that finds values"),
        (["metric=table_quality"], r"metric.parts=.*: expected none with a schedule that finds values"),
        (["privacy.votes_per_record=2"], r"schedule=discover: expected privacy.votes_per_record=1"),
        (["label_shares=noisy"], r"label_shares=noisy: expected 'uniform'"),
    ],
)
def test_what_cannot_be_combined_with_it_is_refused_before_a_record_is_read(overrides, line, tmp_path):
    with pytest.raises(UserError, match=line):
        made = job(tmp_path, rows(9), *overrides)
        carry_out(made, Screen(Console(file=io.StringIO()), facts_of(made), len(made.releases)))
    assert not (tmp_path / "run/release").exists()


def test_a_schema_without_an_open_column_has_nothing_to_find(tmp_path):
    closed = {"columns": {"age": COLUMNS["age"], "town": {"kind": "category", "values": ["york"]}}}
    with pytest.raises(
        UserError, match=r"schedule=discover: expected a table whose schema has a category with values: open"
    ):
        made = job(tmp_path, [], schema=closed)
        carry_out(made, Screen(Console(file=io.StringIO()), facts_of(made), len(made.releases)))


def test_the_named_sets_of_characters_have_each_character_once():
    assert all(len(set(each)) == len(each) for each in SETS.values())
