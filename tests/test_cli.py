import subprocess
import sys
from pathlib import Path

import pytest
from harness import TINY

from dpsyn import cli

BAD = [
    (["run", "privacy.epsilonn=1"], "privacy.epsilonn=1: unknown key. Did you mean privacy.epsilon?"),
    (["run", "+experiment=digit"], "experiment=digit: expected one of "),
    (["run", "embeding=pixels"], "embeding=pixels: "),
    (["run", "data=digits"], "privacy.epsilon=null: expected a number over 0"),
    (["run", "privacy.epsilon=-1"], "privacy.epsilon=-1: expected a number over 0, or inf with privacy=none."),
    (["run", "privacy.epsilon=0"], "privacy.epsilon=0: expected a number over 0"),
    (["run", "privacy.epsilon=much"], "privacy.epsilon=much: expected a number"),
    (["run", "privacy.delta=null"], "privacy.delta=null: expected a number between 1e-12 and 1e-2"),
    (["run", "privacy.delta=0.1"], "privacy.delta=0.1: expected a number between 1e-12 and 1e-2"),
    (["run", "privacy.noise_multiplier=3"], "privacy.noise_multiplier=3: expected null when privacy.epsilon is given"),
    (["run", "schedule.releases=0"], "schedule.releases=0: expected a whole number, 1 or more"),
    (["run", "schedule.size=3"], "schedule.size=3: expected enough for every one of the 10 labels"),
    (["run", "data=image_folder", "data.path=nowhere", "privacy.epsilon=1", "privacy.delta=1e-5"], "data.path=nowhere"),
    (
        ["run", "data=image_folder", "privacy.epsilon=1", "privacy.delta=1e-5"],
        "data.path=null: expected a folder of images",
    ),
    (["run", "api._target_=os.system"], "api._target_=os.system: expected a part of dpsyn"),
    (["run", "api._target_=dpsyn.files.os.remove"], "api._target_=dpsyn.files.os.remove: "),
    (["run", "api._target_=dpsyn.job.Path"], "api._target_=dpsyn.job.Path: expected a part of dpsyn"),
    (
        ["run", "api._target_=dpsyn.api.nothing.Nothing"],
        "api._target_=dpsyn.api.nothing.Nothing: expected a part of dpsyn",
    ),
    (["run", "api.size=[5]"], "api.size=[5]: expected [low, high] in whole numbers"),
    (["run", "api.fonts=empty"], "api.fonts=empty: expected "),
    (["run", "seed=-1"], "seed=-1: expected a whole number"),
    (["run", "--config-dir", "nowhere"], "--config-dir=nowhere: expected a folder of configs"),
    (["plan", "privacy.epsilon=-1"], "privacy.epsilon=-1: expected a number over 0"),
    (["run", "run_dir=afile/x"], "run_dir=afile/x: expected a directory that can be created"),
    (["run", "--multi"], "--multi: unknown flag."),
    (["run", "privacy.epsilon='a\\nb'"], "privacy.epsilon=a"),
    (["run", "privacy.epsilon='a\nb'"], "privacy.epsilon=a b: expected a number"),
    (["run", "seed=1.5"], "seed=1.5: expected a whole number"),
    (["run", "label_shares=[1]"], "label_shares=[1]: expected 'uniform', one number a label (10)"),
    (["run", "runtime.device=gpu"], "runtime.device=gpu: expected auto, cpu, cuda or cuda:1."),
    (["run", "runtime.device=cuda:99"], "runtime.device=cuda:99: expected a device of this machine."),
    (["run", "schedule.degree={nonsense:1}"], "schedule.degree=nonsense: expected some of text, font"),
    (["run", "schedule.degree=many"], "schedule.degree=many: expected a number"),
    (["run", "expand.degree=a"], "schedule.degree=a: expected a number"),
    (["run", "held_out=null"], "held_out=null: this metric needs real data"),
    (["run", "schedule.size=a"], "schedule.size=a: expected a whole number"),
    (["run", "privacy=[]"], "privacy="),
    (["run", "~api"], "api={"),
    (["run", "trusted_packages=5"], "trusted_packages=5: expected a list"),
    (["run", "privacy.budget_split=[1,2]"], "privacy.budget_split=[1, 2]: expected null, or one number a release"),
    (
        ["runn"],
        "runn: unknown verb. Expected init, run, plan, check, expand, report, evaluate, export, push, schema, list,",
    ),
    (["verify", "nowhere"], "nowhere: no run of dpsyn is there"),
    (["expand", "nowhere", "--rows", "5"], "nowhere: no run of dpsyn is there"),
    (["run", "-m", "privacy.epsilon=1,2"], "privacy.accept_joint_epsilon=null: expected at least "),
]


@pytest.mark.parametrize(
    ("given", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_gets_one_clear_line_and_writes_nothing(given, message, in_tmp, own_state, capsys):
    Path("afile").touch()
    assert cli.main(given) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"dpsyn: {message}")
    assert said.err.count("\n") == 1
    assert [path.name for path in in_tmp.iterdir()] == ["afile"]
    assert not list(own_state.glob("*/dpsyn"))


@pytest.mark.parametrize(
    "given",
    [["--help"], ["--version"], ["plan", "+experiment=mnist"], ["plan", "-m", "privacy.epsilon=1,2"], ["budget"]],
    ids=" ".join,
)
def test_what_only_tells_writes_nothing(given, in_tmp, capsys):
    assert cli.main(given) == 0
    assert capsys.readouterr().out
    assert list(in_tmp.iterdir()) == []


def dpsyn(*given, cwd):
    command = [sys.executable, "-m", "dpsyn", *given]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize("given", [["--help"], ["--cfg", "job"]], ids=" ".join)
def test_hydras_own_flags_work_and_write_nothing(given, tmp_path):
    ended = dpsyn("run", *given, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "epsilon" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_makes_a_run_for_each_and_keeps_hydras_file_private(tmp_path):
    ended = dpsyn(
        "run", "-m", *TINY, "privacy.epsilon=1,2", "privacy.accept_joint_epsilon=4", "expand.rows=null", cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert "2 runs on one data set: together epsilon" in ended.stdout
    runs = tmp_path / "runs"
    assert {path.name for path in runs.iterdir()} == {".sweeps", "smoke-privacy.epsilon-1", "smoke-privacy.epsilon-2"}
    assert (runs / ".sweeps").stat().st_mode & 0o077 == 0
    for name in ("smoke-privacy.epsilon-1", "smoke-privacy.epsilon-2"):
        assert (runs / name / "release/synthetic.parquet").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_configs_of_ones_own_are_found(in_tmp, capsys):
    folder = in_tmp / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("# @package _global_\ndefaults: [smoke]\nname: own\nprivacy: {epsilon: 2}\n")
    assert cli.main(["plan", "--config-dir", "mine", "+experiment=own"]) == 0
    assert "runs/own" in capsys.readouterr().out


def test_a_part_of_a_package_that_is_trusted_is_built(in_tmp, capsys, monkeypatch):
    Path("elsewhere.py").write_text(
        "from dpsyn.api.draw_text import DrawText\nclass Mine(DrawText):\n    pass\nMine.__module__ = 'elsewhere'\n"
    )
    monkeypatch.syspath_prepend(str(in_tmp))
    given = ["plan", "api._target_=elsewhere.Mine"]
    assert cli.main(given) == 2
    assert "trusted_packages" in capsys.readouterr().err
    assert cli.main([*given, "trusted_packages=[elsewhere]"]) == 0


def test_a_run_prints_plain_lines_without_any_time_when_it_is_no_terminal(in_tmp, capsys):
    assert cli.main(["run", *TINY]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("promise: (")
    assert any(line.startswith("iteration 2 of 2: effective candidates") for line in lines)
    assert any(line.startswith("synthetic data: runs/smoke/release/synthetic.parquet") for line in lines)


def test_what_expand_added_stays_when_the_same_run_is_given_again(in_tmp, capsys):
    import pyarrow.parquet as pq

    given = ["run", *TINY, "expand.rows=null", "run_dir=run"]
    assert cli.main(given) == 0
    path = Path("run/release/synthetic.parquet")
    short = pq.read_table(path).num_rows
    assert cli.main(["expand", "run", "--rows", str(2 * short), "expand.degree.size=1"]) == 0
    longer = path.read_bytes()
    assert cli.main(given) == 0
    assert path.read_bytes() == longer and pq.read_table(path).num_rows == 2 * short


def test_a_run_on_ones_own_data_is_named_after_their_id_or_their_file(in_tmp):
    from dpsyn import compose

    own = ["data=images", "data.path=scans/chest.parquet", "privacy.epsilon=1", "privacy.delta=1e-5"]
    assert compose.settings(own)["run_dir"] == "runs/chest"
    assert compose.settings([*own, "data.id=xrays"])["run_dir"] == "runs/xrays"
    assert compose.settings([*own, "run_dir=here"])["run_dir"] == "here"
    assert compose.settings(own)["name"] == "dpsyn"  # what is published does not name the file


def test_a_run_with_other_settings_is_refused_with_three_of_them(in_tmp, capsys):
    assert cli.main(["run", *TINY, "run_dir=run"]) == 0
    more = ["seed=5", "embedding.blur=2", "api.slant=[0,1]", "api.rotation=[0,1]", "privacy.epsilon=1"]
    assert cli.main(["run", *TINY, "run_dir=run", *more]) == 2
    said = capsys.readouterr().err
    assert said.count(" was ") == 3 and "and 2 more" in said and said.count("\n") == 1


def test_a_cache_that_cannot_be_made_is_named_though_it_is_private_data_that_go_there(in_tmp, monkeypatch, capsys):
    (in_tmp / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp / "file"))
    assert cli.main(["run", "experiment=smoke"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("dpsyn: ") and "file" in said and "may be private" not in said


def test_a_sweep_leaves_warnings_as_they_are(in_tmp):
    given = ["run", "-m", *TINY, "seed=1,2", "metric=none", "privacy.epsilon=1", "privacy.accept_joint_epsilon=9"]
    code = (
        "import logging; from dpsyn import cli; "
        f"print(cli.main({given}), logging.getLogger('dpsyn.language.prompts').isEnabledFor(logging.WARNING))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.endswith("0 True\n")
