"""What runs without torch, diffusers, transformers and openai, and what a part that needs one of them says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = [
    "torch",
    "diffusers",
    "transformers",
    "openai",
    "aiohttp",
    "sentence_transformers",
    "datasets",
    "safetensors",
    "faiss",
]
CODE = f"""
import importlib.util, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(name)

real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in {HEAVY} else real(name, package)
sys.meta_path.insert(0, Missing())
from dpsyn.cli import main
import json
sys.exit(max(main(command) for command in json.loads(sys.argv[1])))
"""


def dpsyn(*commands):
    """Ended commands, one after the other in one process; its code is the worst of theirs."""
    given = [sys.executable, "-c", CODE, json.dumps(commands)]
    return subprocess.run(given, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "given",
    [
        ["run", "+experiment=digits", "schedule.size=40", "expand.rows=80"],
        ["run", "+experiment=breast_cancer", "schedule.size=300"],
        ["run", "+experiment=breast_cancer_tab_pe", "schedule.releases=2", "schedule.sampled_releases=1"],
        ["run", "+experiment=text_smoke", "metric=lengths"],
        ["plan", "+experiment=digits"],
        ["check", "+experiment=breast_cancer"],
    ],
    ids=lambda given: " ".join(given[:2]),
)
def test_it_runs_without_the_heavy_packages(given, in_tmp):
    after = [["verify", "it"], ["export", "it", "--to", "out", "--format", "parquet"], ["budget"]]
    commands = [[*given, "run_dir=it"], *after] if given[0] == "run" else [given]
    ended = dpsyn(*commands)
    assert ended.returncode == 0, ended.stderr
    assert given[0] != "run" or (Path("it/release/synthetic.parquet").exists() and list(Path("out").iterdir()))


@pytest.mark.parametrize(
    ("given", "package"),
    [
        (["metric=classifier"], "torch"),
        (["embedding=inception"], "torch"),
        (["api=chat", "api.model=m", "data=mails", "embedding=ngrams", "api.prompts.description=a", "metric=none"],
             "openai"),
        (["metric=frechet", "metric.parts.frechet.embedding={_target_: dpsyn.embedding.vision.Vision, path: a/b, "
          "size: 32, normalize: true, revision: null}"], "torch"),
    ],
)  # fmt: skip
def test_a_part_whose_package_is_missing_says_in_one_line_what_to_install(given, package, in_tmp):
    ended = dpsyn(["run", "+experiment=digits", *given])
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert re.search(rf"expected the package {package}\. Install it: pip install {package}", ended.stderr)
    assert not Path("runs").exists()


def test_the_light_requirements_are_those_of_the_project_without_the_heavy_ones():
    root = Path(__file__).parents[1]
    light = {line.strip() for line in (root / "requirements-light.txt").read_text().splitlines() if line[:1] != "#"}
    declared = (root / "setup.cfg").read_text().split("install_requires =")[1].split("\n\n")[0]
    everything = {re.split(r"[<>=]", line.strip())[0] for line in declared.split("\n")}
    heavy = {name.replace("_", "-") for name in HEAVY} | {"huggingface-hub", "huggingface_hub"}
    assert light - {""} == everything - heavy - {"", "sentence-transformers", "faiss-cpu"}
