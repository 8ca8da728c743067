"""`dpsyn list`: runs side by side."""

import json
import re
import shutil

import pytest

from dpsyn import cli


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("listed")
    tiny = ["+experiment=smoke", "schedule.size=20", "expand.rows=60"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(home / "state"))
        patched.setenv("XDG_CACHE_HOME", str(home / "cache"))
        for name, more in (("one", []), ("deep/two", ["privacy.epsilon=2"]), ("three", ["privacy=none"])):
            assert cli.main(["run", *tiny, *more, f"run_dir={home / 'runs' / name}"]) == 0
    return home


def listed(capsys, *given):
    assert cli.main(["list", *map(str, given)]) == 0
    return capsys.readouterr().out


def test_runs_stand_side_by_side_with_what_they_promise(home, capsys):
    capsys.readouterr()
    lines = listed(capsys, home / "runs").splitlines()
    assert lines[0].split()[:6] == ["run", "state", "epsilon", "delta", "releases", "rows"]
    assert [line.split()[0].removeprefix(f"{home}/runs/") for line in lines[1:]] == ["deep/two", "one", "three"]
    assert [re.split(r"  +", line)[1] for line in lines[1:]] == ["DP", "DP", "NOT PRIVATE"]
    told = json.loads(listed(capsys, home / "runs", "--json"))
    assert [each["rows"] for each in told] == [60, 60, 60]
    assert told[0]["epsilon"] <= 2 < told[1]["epsilon"] <= 4 and told[2]["epsilon"] is None
    assert all(each["metrics"]["signal to noise"] >= 0 for each in told[:2])


def test_it_needs_nothing_but_what_is_released_and_names_each_run_once(home, tmp_path, capsys):
    shutil.copytree(home / "runs/one/release", tmp_path / "a/release")
    capsys.readouterr()
    assert len(listed(capsys, tmp_path / "a", tmp_path).splitlines()) == 2


def test_a_damaged_or_hostile_run_is_one_line_and_commands_no_terminal(home, tmp_path, capsys):
    shutil.copytree(home / "runs/one/release", tmp_path / "a/release")
    shutil.copytree(home / "runs/one/release", tmp_path / "b/release")
    (tmp_path / "a/release/privacy.json").write_text("[]")
    said = json.loads((tmp_path / "b/release/privacy.json").read_text())
    (tmp_path / "b/release/privacy.json").write_text(json.dumps(said | {"status": "\x1b[31mDP"}))
    evil = {"iteration": 1, "final": True, "metric": "\x1b]0;x\x07", "n": 1.0}
    (tmp_path / "b/release/metrics.jsonl").write_text(json.dumps(evil))
    capsys.readouterr()
    text = listed(capsys, tmp_path)
    assert text.count(" damaged ") == 2 and "\x1b" not in text and "\x07" not in text


def test_no_run_is_an_error_of_one_line(tmp_path, capsys):
    assert cli.main(["list", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"dpsyn: {tmp_path}: no run of dpsyn is there.\n"
