"""`dpsyn verify` agrees with what dpsyn wrote, and with nothing else."""

import json
import shutil

import pytest
from harness import run

from dpsyn import cli
from dpsyn.privacy.statement import format_delta
from dpsyn.runs.directory import open_run
from dpsyn.runs.verification import verified


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    home = tmp_path_factory.mktemp("verified")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(home / "state"))
        patched.setenv("XDG_CACHE_HOME", str(home / "cache"))
        run(home / "run")
        run(home / "weak", "privacy.epsilon=null", "privacy.noise_multiplier=0.4", "privacy.delta=1e-6")
        run(home / "users", "privacy.delta=1.5151515e-6")
        run(home / "insecure", "privacy.noise=insecure_seeded")
        run(home / "none", "privacy=none")
    return home


@pytest.fixture
def here(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("name", ["run", "weak", "users", "insecure", "none"])
def test_it_agrees_with_what_dpsyn_wrote(here, name, capsys):
    report = verified(open_run(here / name))
    assert report.agrees and report.complete, report.lines
    assert cli.main(["verify", str(here / name)]) == 0


CHANGES = {
    "a lower epsilon": lambda said: said | {"epsilon": said["epsilon"] * 0.94},
    "an epsilon that is a little lower": lambda said: said | {"epsilon": said["epsilon"] - 0.001},
    "an epsilon of a tenth": lambda said: said | {"epsilon": 0.1},
    "no epsilon": lambda said: said | {"epsilon": None},
    "a lower epsilon of the schedule": lambda said: said | {"epsilon_declared_schedule": 0.1},
    "a lower delta": lambda said: said | {"delta": said["delta"] / 10},
    "another status": lambda said: said | {"status": "DP, AUDITED"},
    "another unit": lambda said: said | {"unit": "user"},
    "other neighbours": lambda said: said | {"neighbours": "replace"},
    "another sentence": lambda said: said | {"statement": said["statement"].replace("noisy", "very noisy")},
    "no limits": lambda said: said | {"limits": ["none"]},
    "a lower joint figure": lambda said: said | {"joint": said["joint"] | {"epsilon": 0.01}},
    "more runs": lambda said: said | {"joint": said["joint"] | {"runs": 7}},
    "a key more": lambda said: said | {"certified": True},
    "a key less": lambda said: {key: value for key, value in said.items() if key != "covers"},
    "fewer charges": lambda said: said | {"charges": said["charges"][:1]},
    "more noise than was drawn": lambda said: said | {"charges": [c | {"sigma": 50.0} for c in said["charges"]]},
    "fewer moves": lambda said: said | {"charges": [c | {"moves": 2} for c in said["charges"]]},
    "receipts that are not named": lambda said: (
        said | {"charges": [c | {"receipt_sha256": None} for c in said["charges"]]}
    ),
    "lost draws that were none": lambda said: said | {"lost_draws": 3},
    "other settings": lambda said: said | {"assumed_public": said["assumed_public"] | {"seed": 9}},
    "another mechanism": lambda said: said | {"mechanism": "Laplace, OpenDP 0.16, none"},
    "more records": lambda said: said | {"records": 10},
}


@pytest.mark.parametrize("name", ["run", "weak"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_statement_that_was_altered_does_not_agree(here, name, change, capsys):
    path = here / name / "release/privacy.json"
    path.write_text(json.dumps(CHANGES[change](json.loads(path.read_text()))))
    assert cli.main(["verify", str(here / name)]) in (1, 2)
    said = capsys.readouterr()
    assert "FAULT" in said.out or "no statement" in said.err


def test_a_run_without_noise_does_not_pass_for_a_protected_one(here, capsys):
    for name in ("insecure", "none"):
        shutil.move(here / name / "not_private", here / name / "release")
        path = here / name / "release/privacy.json"
        honest = json.loads((here / "run/release/privacy.json").read_text())
        said = json.loads(path.read_text())
        path.write_text(json.dumps(honest | {"charges": said["charges"]}))
        assert cli.main(["verify", str(here / name)]) in (1, 2)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "null", '{"status": "DP"}', '{"epsilon": 1, "charges": 5}', "\xff"]
)
def test_what_is_no_statement_is_one_line(here, content, capsys):
    (here / "run/release/privacy.json").write_bytes(content.encode("latin-1"))
    assert cli.main(["verify", str(here / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_incomplete_run_says_so_and_is_not_passed(here, capsys):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dpsyn.execution.vital_signs", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(here / "cut")
    assert cli.main(["verify", str(here / "cut")]) == 1
    out = capsys.readouterr().out
    assert "INCOMPLETE: 1 of 2 releases were made" in out


@pytest.mark.parametrize(
    ("delta", "shown"),
    [(1e-5, "1e-05"), (1.5151515e-6, "1.51516e-06"), (0.01, "0.01"), (1e-12, "1e-12"), (3.3333333e-7, "3.33334e-07")],
)
def test_a_shown_delta_is_never_less_than_what_is_promised(delta, shown):
    assert format_delta(delta) == shown
    assert float(format_delta(delta)) >= delta
