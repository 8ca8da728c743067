"""Losses add up: whoever the data set is named by, from wherever, in whichever order."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from dpsyn import cli
from dpsyn.files import state_folder
from dpsyn.privacy import account
from dpsyn.privacy.budget import Charge

SCHEMA = "columns:\n  g: {kind: category, values: [a, b]}\n  x: {kind: integer, bounds: [0, 9]}\nlabels: []\n"
COMMON = ["data=tables", "schedule=cells", "privacy.delta=1e-05", "data.records=200"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with one private csv and its schema."""
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"g": ["a", "b"] * 100, "x": [5, 7] * 100}).to_csv("visits.csv", index=False)
    Path("schema.yaml").write_text(SCHEMA)
    return tmp_path


def run(path, where, *more):
    schema = f"data.schema.file={Path(where).parent / 'schema.yaml'}"
    return cli.main(["run", *COMMON, f"data.path={path}", schema, "privacy.epsilon=1", f"run_dir={where}", *more])


def joint(where):
    return json.loads((Path(where) / "release/privacy.json").read_text())["joint"]


def elsewhere(folder, monkeypatch):
    (folder / "other").mkdir()
    monkeypatch.chdir(folder / "other")
    return "../visits.csv"


def linked(folder, monkeypatch):
    (folder / "link.csv").symlink_to(folder / "visits.csv")
    return "link.csv"


def renamed(folder, monkeypatch):
    (folder / "visits.csv").rename(folder / "renamed.csv")
    return "renamed.csv"


def copied(folder, monkeypatch):
    shutil.copy(folder / "visits.csv", folder / "copy.csv")
    return "copy.csv"


def in_a_folder(folder, monkeypatch):
    (folder / "many").mkdir()
    shutil.copy(folder / "visits.csv", folder / "many/one.csv")
    (folder / "many/two.csv").write_text("g,x\na,5\n")
    return "many"


WAYS = [elsewhere, linked, renamed, copied, in_a_folder, lambda folder, monkeypatch: "./visits.csv"]


@pytest.mark.parametrize("way", WAYS)
def test_a_data_set_is_the_same_however_it_is_reached(folder, monkeypatch, way):
    assert run("visits.csv", folder / "one") == 0
    assert run(way(folder, monkeypatch), folder / "two") == 0
    assert joint(folder / "two")["runs"] == 2
    assert joint(folder / "two")["epsilon"] == pytest.approx(1.45, abs=0.03)


def test_four_runs_on_one_file_whatever_they_call_it_say_what_four_runs_spend(folder, monkeypatch):
    assert run("visits.csv", folder / "one") == 0
    assert run(linked(folder, monkeypatch), folder / "two") == 0
    assert run(elsewhere(folder, monkeypatch), folder / "three", "data.id=visits") == 0
    (folder / "visits.csv").write_text("g,x\n" + "b,5\n" * 200)  # other content, and no id: by its place
    assert run(folder / "visits.csv", folder / "four") == 0
    (runs,) = account.everything()
    assert len(runs) == 4
    assert joint(folder / "four")["runs"] == 4
    assert joint(folder / "four")["epsilon"] == pytest.approx(2.12, abs=0.05)


def test_other_data_are_not_added(folder):
    (folder / "others.csv").write_text("g,x\n" + "b,5\n" * 200)
    assert run("visits.csv", folder / "one") == 0
    assert run("others.csv", folder / "two") == 0
    assert joint(folder / "two")["runs"] == 1
    assert len(account.everything()) == 2


def test_a_copied_run_directory_does_not_go_on(folder, capsys):
    assert run("visits.csv", folder / "one") == 0
    shutil.copytree(folder / "one", folder / "copy")
    shutil.rmtree(folder / "copy/release/iterations")
    (folder / "copy/release/votes/002.parquet").unlink()
    before = sorted(path.name for path in (folder / "copy/private/intents").iterdir())
    assert run("visits.csv", folder / "copy") == 2
    assert "this run was begun in" in capsys.readouterr().err
    assert sorted(path.name for path in (folder / "copy/private/intents").iterdir()) == before


def test_the_account_tells_neither_file_names_nor_digests_to_who_has_the_file(folder):
    import hashlib

    assert run("visits.csv", folder / "one") == 0
    content = (state_folder() / "account.jsonl").read_text()
    digest = hashlib.blake2b((folder / "visits.csv").read_bytes(), digest_size=32).hexdigest()
    assert digest not in content and hashlib.sha256((folder / "visits.csv").read_bytes()).hexdigest() not in content
    for path in state_folder().iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_a_limit_on_a_data_set_refuses_the_run_that_would_pass_it_and_later_ones(folder, capsys):
    assert run("visits.csv", folder / "one", "privacy.max_joint_epsilon=1.5") == 0
    assert run("visits.csv", folder / "two") == 0
    assert run(copied(folder, None), folder / "three") == 2  # sets none itself
    assert "privacy.max_joint_epsilon=1.5: expected at least 1.8" in capsys.readouterr().err
    assert not (folder / "three/release/votes").exists() or not list((folder / "three/release/votes").iterdir())
    assert run("visits.csv", folder / "three", "privacy.max_joint_epsilon=3") == 0
    (runs,) = account.everything()
    assert len(runs) == 3


def test_all_members_of_a_sweep_say_what_the_whole_sweep_spends(folder):
    swept = ["run", "-m", *COMMON, "data.path=visits.csv", "data.schema.file=schema.yaml", "privacy.epsilon=1,2"]
    assert cli.main([*swept, "privacy.accept_joint_epsilon=3", "run_dir=sweep"]) == 0
    said = [json.loads(path.read_text())["joint"] for path in folder.glob("sweep*/release/privacy.json")]
    said = said or [json.loads(path.read_text())["joint"] for path in folder.glob("**/release/privacy.json")]
    assert [one["runs"] for one in said] == [2, 2]
    assert said[0]["epsilon"] == said[1]["epsilon"] == pytest.approx(2.34, abs=0.06)


def test_a_member_of_a_sweep_that_did_not_begin_is_taken_off_again(folder):
    charges = (Charge("votes", 5.0),)
    keys = (account.salted("x"),)
    planned = account.Entry("x", account.PLANNED + "/a", "/a", "record", "add_remove", 1e-5, charges, keys)
    account.enter(planned)
    assert account.everything() == [[planned]]
    account.withdraw([Path("/a")])
    assert account.everything() == []


def test_verify_and_budget_tell_what_is_spent_today(folder, capsys):
    assert run("visits.csv", folder / "one") == 0
    assert run("visits.csv", folder / "two") == 0
    capsys.readouterr()
    assert cli.main(["verify", "one"]) == 0
    assert "today, all 2 runs on these data that are known here: epsilon 1.4" in capsys.readouterr().out
    assert cli.main(["budget"]) == 0
    assert "all 2 together" in capsys.readouterr().out


def test_what_an_earlier_version_wrote_still_counts(folder):
    charge = {"name": "votes 1", "sigma": 5.0, "grid": 1, "moves": 1}
    old = {"data": f"place {folder / 'visits.csv'}", "run": "old", "directory": "/old", "unit": "record"}
    old |= {"neighbours": "add_remove", "delta": 1e-5, "charges": [charge]}
    (state_folder() / "abc.jsonl").write_text(json.dumps(old) + "\n")
    assert run("visits.csv", folder / "one") == 0
    assert joint(folder / "one")["runs"] == 2
