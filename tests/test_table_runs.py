"""Whole runs of tables: votes in cells, and Tab-PE's for the nearest row, on a table that is made here."""

import csv
import io
import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from harness import at_moment, files, same_noise
from rich.console import Console

from dpsyn import cli, compose
from dpsyn.build import build
from dpsyn.errors import UserError
from dpsyn.execution import carry_out
from dpsyn.planning import facts, show_plan
from dpsyn.privacy import account, electorate
from dpsyn.runs.directory import open_run
from dpsyn.runs.verification import verified
from dpsyn.show import Screen

SCHEMA = {
    "columns": {
        "age": {"kind": "integer", "bounds": [0, 99]},
        "job": {"kind": "category", "values": ["none", "clerk", "smith", "nurse"], "missing": True},
        "left": {"kind": "integer", "bounds": [0, 99], "missing": True},
        "weight": {"kind": "number", "bounds": [0, 120], "resolution": 0.5},
        "well": {"kind": "category", "values": ["yes", "no"]},
    },
    "labels": ["well"],
    "unit": "user",
    "constraints": ["left <= age"],
    "extra": "ignore",
}
NAMES = ["user", *SCHEMA["columns"]]
CANARY = "93"  # years: nobody else is as old


def rows(n=900, seed=0):
    rng = np.random.default_rng(seed)
    age = rng.integers(10, 80, n)
    well = age + rng.normal(0, 10, n) < 45
    job = np.where(well, "smith", rng.choice(["none", "clerk", "nurse"], n))
    left = np.where(job == "none", "", (age // 2).astype(str))
    weight = (40 + age / 4).round(1)
    units = [f"u{i % 300}" for i in range(n)]
    table = zip(units, age.astype(str), job, left, weight.astype(str), np.where(well, "yes", "no"), strict=True)
    return [tuple(map(str, row)) for row in table]


def job(folder, given, *overrides):
    folder.mkdir(exist_ok=True)
    with (folder / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([NAMES, *given])
    (folder / "schema.yaml").write_text(yaml.safe_dump(SCHEMA, sort_keys=False))
    return build(
        compose.settings(
            [
                "data=tables",
                f"data.path={folder / 'data.csv'}",
                f"data.schema.file={folder / 'schema.yaml'}",
                "data.id=test",
                "data.records=900",
                "data.on_error=skip",
                "data.max_refused=0.1",
                "schedule=cells",
                "schedule.size=900",
                "privacy.epsilon=4",
                "privacy.delta=1e-4",
                "metric=constraints",
                f"run_dir={folder / 'run'}",
                *overrides,
            ]
        )
    )


def run(folder, given, *overrides):
    made, out = job(folder, given, *overrides), io.StringIO()
    carry_out(made, Screen(Console(file=out, width=200), facts(made), len(made.releases)))
    return out.getvalue()


TAB_PE = [
    "api=table",
    "embedding=table",
    "schedule=tab_pe",
    "schedule.size=40",
    "schedule.releases=3",
    "schedule.sampled_releases=1",
]
ODD = ("u-new", CANARY, "nurse", "90", "119.5", "yes")
NEIGHBOURS = {
    "one row more": (lambda given: [*given, ODD], []),
    "one row replaced": (lambda given: [ODD, *given[1:]], ["privacy.adjacency=replace"]),
    "rows that cannot be read": (
        lambda given: [*given, ("u", "old", "nurse", "1", "1", "yes"), ("u", "1", "", "", "", "?")],
        [],
    ),
    "one user more, with rows of both labels": (
        lambda given: [*given, *[(*ODD[:-1], well) for well in ("yes", "no", "no")]],
        ["privacy.unit=user"],
    ),
    "one row more, Tab-PE": (lambda given: [*given, ODD], TAB_PE),
    "one row more, Tab-PE, kept as few entries": (lambda given: [*given, ODD], TAB_PE),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_given_the_receipts_neighbouring_tables_give_the_same_bytes_everywhere(name, tmp_path, monkeypatch, capfd):
    more, overrides = NEIGHBOURS[name]
    if "few entries" in name:
        monkeypatch.setattr(electorate, "SPARSE", 1)
    seen, noisy = [], None
    for number, given in enumerate([rows(), more(rows())]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with monkeypatch.context() as patched:
            patched.setenv("XDG_STATE_HOME", str(folder / "state"))
            patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            noisy = same_noise(patched, noisy)
            printed = run(folder, given, *overrides)
        seen.append((files(folder / "run/release"), printed.replace(str(folder), ""), capfd.readouterr()))
    assert seen[0] == seen[1]


def test_a_run_is_the_same_whether_its_rows_are_kept_as_few_entries_or_as_dense_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr("dpsyn.runs.directory.secrets.token_hex", lambda n: "0" * 2 * n)
    seen = []
    for least, entries in ((1, 5), (100, 0)):
        folder = tmp_path / str(entries)
        folder.mkdir()
        monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setattr(electorate, "SPARSE", least)
        run(folder, rows(), *TAB_PE, "privacy.noise=insecure_seeded")
        facts_of = [json.loads(path.read_text()) for path in folder.rglob("complete.json")]
        assert [fact["entries"] for fact in facts_of] == [entries]
        seen.append(files(folder / "run/not_private"))
    assert seen[0] == seen[1] and any("votes" in str(name) for name in seen[0])


def test_rows_follow_the_private_ones_keep_their_types_and_break_no_constraint(tmp_path, capsys):
    given = rows(4000)
    given[7] = ("u", "120", *given[7][2:])
    printed = run(tmp_path, given, "data.records=4000", "schedule.size=4000")
    assert "constraints (final data): broken 0" in printed
    found = pq.read_table(tmp_path / "run/release/synthetic.parquet")
    assert found.column_names == list(SCHEMA["columns"])
    assert [str(kind) for kind in found.schema.types] == ["int64", "string", "int64", "double", "string"]
    assert found.num_rows == 4000
    table = {key: np.array(values) for key, values in found.to_pydict().items()}
    assert set(table["job"]) <= {"none", "clerk", "smith", "nurse", None}
    assert (table["weight"] * 2 % 1 == 0).all()
    real = dict(zip(NAMES, map(np.array, zip(*given, strict=True)), strict=True))
    pairs = [(table["job"] == "smith", table["well"] == "yes"), (table["job"] == "smith", table["age"] > 45)]
    true = [(real["job"] == "smith", real["well"] == "yes"), (real["job"] == "smith", real["age"].astype(int) > 45)]
    for (one, two), (true_one, true_two) in zip(pairs, true, strict=True):
        assert np.mean(one & two) == pytest.approx(np.mean(true_one & true_two), abs=0.05)
    report = verified(open_run(tmp_path / "run"))
    assert report.agrees, report.lines
    assert sum(json.loads((tmp_path / "run/private/adjusted.json").read_text()).values()) == 1
    assert json.loads((tmp_path / "run/release/privacy.json").read_text())["epsilon"] <= 4
    assert cli.main(["expand", str(tmp_path / "run"), "--rows", "5000"]) == 0
    assert pq.read_table(tmp_path / "run/release/synthetic.parquet").num_rows == 5000


@pytest.mark.parametrize("way", [[], ["schedule=tab_pe", "api=table", "embedding=table", "schedule.size=100"]])
def test_the_schema_is_published_and_a_release_alone_can_be_expanded(tmp_path, way):
    run(tmp_path, rows(), "metric=none", *way)
    said = yaml.safe_load((tmp_path / "run/release/config.yaml").read_text())
    assert said["data"]["schema"]["file"] == SCHEMA and said["data"]["path"] == "(not published)"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run/release").rename(tmp_path / "elsewhere/release")
    for gone in ("data.csv", "schema.yaml"):
        (tmp_path / gone).unlink()
    shutil.rmtree(tmp_path / "run")
    assert cli.main(["expand", str(tmp_path / "elsewhere"), "--rows", "1200"]) == 0
    assert pq.read_table(tmp_path / "elsewhere/release/synthetic.parquet").num_rows == 1200


def test_a_run_that_stopped_learns_again_from_its_receipts_and_draws_none_twice(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        noisy = same_noise(patched)
        run(tmp_path / "whole", rows())
    whole = files(tmp_path / "whole/run/release")
    for kept in range(len(noisy)):
        folder = tmp_path / f"stopped{kept}"
        shutil.copytree(tmp_path / "whole", folder)
        for path in sorted((folder / "run/release/iterations").iterdir())[kept:]:
            shutil.rmtree(path)
        shutil.rmtree(folder / "run/release/iterations" / "none", ignore_errors=True)
        (folder / "run/release/synthetic.parquet").unlink()
        made = job(
            folder,
            rows(),
            f"data.path={tmp_path / 'whole/data.csv'}",
            f"data.schema.file={tmp_path / 'whole/schema.yaml'}",
        )
        with monkeypatch.context() as patched:
            patched.setattr("dpsyn.privacy.ledger.discrete_gaussian", None)  # nothing is drawn
            patched.setenv("XDG_STATE_HOME", str(folder / "state"))  # another machine's: it knows of no other directory
            carry_out(made, Screen(Console(file=io.StringIO()), facts(made), len(made.releases)))
        assert files(folder / "run/release") == whole


def test_a_run_that_is_cut_off_at_its_first_draw_states_what_it_may_spend_and_counts_the_draw(tmp_path, monkeypatch):
    class Cut(BaseException):
        pass

    def cut(exact, scale):
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr("dpsyn.privacy.ledger.discrete_gaussian", cut)
        with pytest.raises(Cut):
            run(tmp_path, rows())
    said = json.loads((tmp_path / "run/release/privacy.json").read_text())
    assert said["status"] == "INCOMPLETE"
    assert len(said["charges"]) == len(job(tmp_path, rows()).releases)
    assert not verified(open_run(tmp_path / "run")).agrees  # the draw is started, and not in the statement yet
    with pytest.raises(UserError, match=r"privacy.accept_lost_draws=0: 1 noisy release\(s\)"):
        run(tmp_path, rows())
    for other in ("data.records=901", "privacy.epsilon=3", "privacy.unit=user"):
        with pytest.raises(UserError, match=f"{other.split('=')[0]} was"):
            run(tmp_path, rows(), other)
    run(tmp_path, rows(), "privacy.accept_lost_draws=1")
    again = json.loads((tmp_path / "run/release/privacy.json").read_text())
    assert (again["status"], again["lost_draws"]) == ("DP", 1)
    assert again["epsilon"] > said["epsilon"] == again["epsilon_declared_schedule"]
    assert verified(open_run(tmp_path / "run")).agrees


def test_a_run_that_was_cut_off_before_it_had_begun_is_on_the_account_when_it_begins_again(tmp_path, monkeypatch):
    """It gets another id then, and spends under that one."""

    class Cut(BaseException):
        pass

    def cut():
        raise Cut

    for moment in (("fsync", "pending/001.parquet"), ("replace", "votes/002.parquet")):
        with monkeypatch.context() as patched:
            for name in ("fsync", "replace", "mkdir"):
                patched.setattr(os, name, getattr(os, name))  # as they are, to be put back
            reached = at_moment(moment, cut)
            with pytest.raises(Cut):
                run(tmp_path, rows())
        assert reached == [moment]
    here = open_run(tmp_path / "run")
    known = account.of_run(here.identity()["run"])
    said = json.loads((here.release / "privacy.json").read_text())
    assert any(entry.run == here.identity()["run"] and len(entry.charges) == len(said["charges"]) for entry in known)


def test_a_plan_shows_the_releases_and_reads_nothing(tmp_path, capsys):
    show_plan(job(tmp_path, rows()))
    out = " ".join(capsys.readouterr().out.split())
    assert "counts 1" in out
    assert "rows of the synthetic data: 900" in out
    assert not (tmp_path / "run").exists()


def test_the_plan_says_that_a_row_is_protected_where_users_are_named(tmp_path, capsys):
    show_plan(job(tmp_path, rows()))
    assert "warning: column 'user' names users, but privacy.unit=record" in capsys.readouterr().out
    show_plan(job(tmp_path, rows(), "privacy.unit=user"))
    assert "warning:" not in capsys.readouterr().out


def test_without_the_column_of_its_users_no_row_is_read_for_them(tmp_path):
    made = job(tmp_path, rows(), "privacy.unit=user")
    (tmp_path / "data.csv").write_text((tmp_path / "data.csv").read_text().replace("user", "person", 1))
    with pytest.raises(UserError, match=r"^data\.unit_column=user: expected a column of every file"):
        carry_out(made, Screen(Console(file=io.StringIO()), {}, 1))
    assert not list((tmp_path / "run/release").rglob("votes/*"))


def test_noise_is_told_in_records_whoever_is_protected(tmp_path):
    users = ["privacy.unit=user", "schedule.scores=false"]
    told = []
    for overrides in (["schedule.scores=false"], users):
        words = facts(job(tmp_path, rows(), *overrides))["noise"].split()
        told.append([float(words[2]), float(words[4])])
    assert told[0] == pytest.approx(told[1], rel=0.02)  # a user with one row moves as many entries as a record


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["data.records=null"], "data.records=null: expected a declared number of rows with schedule=cells"),
        (["expand.rows=0"], "expand.rows=0: expected a whole number, 1 or more, or null"),
        (["privacy.votes_per_record=2"], "schedule=cells: expected privacy.votes_per_record=1"),
        (["label_shares=noisy"], "label_shares=noisy: expected 'uniform' with a schedule that counts"),
        (["privacy.epsilon=null", "privacy.noise_multiplier=3"], "privacy.noise_multiplier=3: expected null"),
        (["schedule.size=0"], "schedule.size=0: expected a whole number"),
    ],
)
def test_what_votes_in_cells_cannot_go_with_is_one_line(overrides, line, tmp_path):
    with pytest.raises(UserError) as refused:
        carry_out(job(tmp_path, rows(), *overrides), Screen(Console(file=io.StringIO()), {}, 1))
    assert str(refused.value).startswith(line)
    assert not (tmp_path / "run/release").exists()
