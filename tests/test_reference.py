"""docs/reference is what the code says."""

import importlib.util
import json

import pytest
from harness import TINY
from pages import ROOT

from dpsyn import cli

FOLDER = ROOT / "docs/reference"


@pytest.fixture(scope="module")
def script():
    path = ROOT / "scripts/write_reference.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_committed_is_what_the_script_writes(script):
    written = script.pages()
    assert {path.name for path in FOLDER.iterdir()} == set(written)
    stale = [name for name, text in written.items() if (FOLDER / name).read_text(encoding="utf-8") != text]
    assert not stale, "run scripts/write_reference.py"


def test_every_key_of_every_yaml_and_every_flag_is_told(script):
    settings = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    for group in script.GROUPS:
        for path in (ROOT / "configs" / group).glob("*.yaml"):
            assert f"## {group}={path.stem}\n" in settings[group]
    for path in (ROOT / "configs/experiment").glob("*.yaml"):
        assert f"`+experiment={path.stem}`" in settings["settings"]
    assert "`privacy.epsilon`" in settings["privacy"] and "`api.max_cost`" in settings["api"]


def test_every_key_of_the_files_that_a_run_publishes_is_told(script, in_tmp):
    assert cli.main(["run", *TINY, "data.hold_out=0.4", "evaluate.epsilon=2", "run_dir=run"]) == 0
    assert not script.undescribed("privacy.json", json.loads((in_tmp / "run/release/privacy.json").read_text()))
    evaluation = json.loads((in_tmp / "run/release/evaluation.json").read_text())
    assert script.undescribed("evaluation.json", evaluation) == {"columns"}  # of a table
    told = (FOLDER / "files.md").read_text(encoding="utf-8")
    for path in (in_tmp / "run").rglob("*"):
        if path.is_file() and path.parent.name not in ("intents", "votes") and path.suffix not in (".lock", ""):
            assert path.name in told, path
