"""A schedule of another package: one file and one yaml, with no other edit."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from dpsyn import cli
from dpsyn.runs.directory import RunDirectory

SCHEDULE = '''
"""Rows in proportion to a noisy count of the labels, and as many again in a second iteration."""
from dataclasses import dataclass

import numpy as np
from dpsyn.marks import PUBLIC
from dpsyn.population import Population
from dpsyn.privacy.budget import Release
from dpsyn.privacy.query import LabelCounts
from dpsyn.randomness import row_seeds
from dpsyn.schedule import Schedule


@dataclass(frozen=True)
class Census(Schedule):
    rows: int

    def releases(self, facts):
        return [Release(f"census {t}", 1, share, {"rows": str(self.rows)}) for t, share in ((1, 1.0), (2, 3.0))]

    def api_rows(self, facts):
        return [(0, 0), (self.rows, 0), (self.rows, 0)]

    def final_size(self, facts):
        return self.rows

    def run(self, public, ask, last):
        for t in range(1 + (0 if last is None else last.iteration), 3):
            counts = np.maximum(ask(t, LabelCounts(len(public.labels))).values, 0)
            labels = np.searchsorted(np.cumsum(counts) / counts.sum(), (np.arange(self.rows) + 0.5) / self.rows)
            made = public.api.generate(public.named(labels), row_seeds(public.seed, t, "generate", self.rows))
            yield Population(t, made, labels, np.full(self.rows, -1), np.zeros(self.rows, bool))
'''
YAML = "_target_: theirs.census.Census\nrows: 300\n"
GIVEN = [
    "--config-dir", "mine", "+experiment=smoke", "schedule=census", "privacy.epsilon=3", "expand.rows=null",
    "trusted_packages=[theirs]", "run_dir=run",
]  # fmt: skip


@pytest.fixture
def theirs(in_tmp, own_state, monkeypatch):
    for path, text in {
        "theirs/__init__.py": "",
        "theirs/census.py": SCHEDULE,
        "mine/schedule/census.yaml": YAML,
    }.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    monkeypatch.syspath_prepend(str(in_tmp))
    for name in ("theirs", "theirs.census"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return in_tmp


def test_a_third_schedule_is_planned_run_interrupted_resumed_and_verified(theirs, capsys, monkeypatch):
    assert cli.main(["plan", *GIVEN]) == 0
    out = capsys.readouterr().out
    assert "census 1" in out and "census 2" in out and "rows of the synthetic data: 300" in out
    save = RunDirectory.save

    def cut(self, population, labels):
        if population.iteration == 2:
            raise KeyboardInterrupt
        save(self, population, labels)

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "save", cut)
        assert cli.main(["run", *GIVEN]) == 130
    assert cli.main(["run", *GIVEN]) == 0
    out = capsys.readouterr().out
    assert out.count("census 2: 10 noisy numbers, deviation") == 2  # the second time from its receipt
    said = json.loads(Path("run/release/privacy.json").read_text())
    assert [charge["name"] for charge in said["charges"]] == ["census 1", "census 2"]
    assert said["status"] == "DP" and said["lost_draws"] == 0 and 2.9 < said["epsilon"] <= 3
    assert said["charges"][0]["sigma"] == pytest.approx(3**0.5 * said["charges"][1]["sigma"], rel=1e-3)
    assert cli.main(["verify", "run"]) == 0
    final = RunDirectory(Path("run")).load(2)
    assert len(final) == 300 and np.bincount(final.labels, minlength=10).min() > 15
    assert "_target_: theirs.census.Census" in Path("run/release/config.yaml").read_text()
    assert "rows: (not published)" in Path("run/release/config.yaml").read_text()  # it is not marked


def test_a_query_that_dpsyn_does_not_have_is_refused_before_anything_is_read(theirs):
    own = "class Own(LabelCounts):\n    moves = 1\n\n\n"
    text = SCHEDULE.replace("@dataclass", own + "@dataclass", 1).replace("ask(t, LabelCounts(", "ask(t, Own(")
    assert text.count("Own(") == 2
    Path("theirs/census.py").write_text(text)
    with pytest.raises(RuntimeError, match=r"release 1: Own is no query of dpsyn\.privacy; nothing was read"):
        cli.main(["run", *GIVEN])
    assert not list(Path("run").rglob("intents/*"))


def test_two_coders_of_a_schedule_share_nothing_that_is_kept_of_the_records(theirs, own_state):
    coder = """
@dataclass(frozen=True)
class Bins:
    bins: int

    def fingerprint(self):
        return ""

    def __call__(self, samples):
        return np.minimum(samples.content.reshape(len(samples), -1).astype(np.int32), self.bins)


"""
    text = SCHEDULE.replace("@dataclass", coder + "@dataclass", 1)
    text = text.replace(
        "    def final_size", "    def coder(self, facts, embed):\n        return Bins(self.rows)\n\n    def final_size"
    )
    Path("theirs/census.py").write_text(text)
    for rows in (300, 310):
        given = [text for text in GIVEN if not text.startswith("run_dir")]
        assert (
            cli.main(["run", *given, f"schedule.rows={rows}", f"run_dir=run{rows}", "privacy.accept_joint_epsilon=20"])
            == 0
        )
    assert len(list((own_state / "cache/dpsyn/private").glob("*/complete.json"))) == 2


def test_a_schedule_that_lacks_what_the_contract_asks_for_is_refused_by_name(theirs, capsys):
    Path("theirs/census.py").write_text(SCHEDULE.replace("(Schedule)", "").replace("def final_size", "def size"))
    assert cli.main(["run", *GIVEN]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "final_size" in said and not Path("run").exists()
