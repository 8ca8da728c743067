"""What runs without torch, diffusers, transformers and openai, and what a part that needs one of them says."""

import json
import re
import subprocess
import sys
from pathlib import Path

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
import contextlib, importlib.util, io, json, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(name)

real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in {HEAVY} else real(name, package)
sys.meta_path.insert(0, Missing())
from dpsyn.cli import main

for command in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(command)
    print("ended", json.dumps([code, said.getvalue()]))
"""


def dpsyn(*commands):
    """The code of each of these commands, given one after the other in one process, and what it said of errors."""
    given = [sys.executable, "-c", CODE, json.dumps(commands)]
    ended = subprocess.run(given, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line[6:]) for line in ended.stdout.splitlines() if line.startswith("ended ")]


RUNS = {
    "digits": ["schedule.size=40", "expand.rows=80"],
    "breast_cancer": ["schedule.size=300"],
    "breast_cancer_tab_pe": ["schedule.releases=2", "schedule.sampled_releases=1"],
    "text_smoke": ["metric=lengths"],
}


def test_it_runs_without_the_heavy_packages(in_tmp):
    commands = [["plan", "+experiment=digits"], ["check", "+experiment=breast_cancer"], ["budget"]]
    for name, given in RUNS.items():
        commands += [
            ["run", f"+experiment={name}", *given, f"run_dir={name}", "privacy.accept_joint_epsilon=99"],
            ["verify", name],
            ["export", name, "--to", f"out/{name}", "--format", "parquet"],
        ]
    ended = dpsyn(*commands)
    assert [code for code, _ in ended] == [0] * len(commands), ended
    for name in RUNS:
        assert Path(name, "release/synthetic.parquet").exists() and list(Path("out", name).iterdir())


LACKING = [
    ("torch", ["metric=classifier"]),
    ("torch", ["embedding=inception"]),
    (
        "openai",
        ["api=chat", "api.model=m", "data=mails", "embedding=ngrams", "api.prompts.description=a", "metric=none"],
    ),
    (
        "torch",
        [
            "metric=frechet",
            "metric.parts.frechet.embedding={_target_: dpsyn.embedding.vision.Vision, path: a/b, size: 32, "
            "normalize: true, revision: null}",
        ],
    ),
]


def test_a_part_whose_package_is_missing_says_in_one_line_what_to_install(in_tmp):
    ended = dpsyn(*(["run", "+experiment=digits", *given] for _, given in LACKING))
    for (package, _), (code, said) in zip(LACKING, ended, strict=True):
        assert code == 2 and said.count("\n") == 1
        assert re.search(rf"expected the package {package}\. Install it: pip install {package}", said)
    assert not Path("runs").exists()


def test_the_light_requirements_are_those_of_the_project_without_the_heavy_ones():
    root = Path(__file__).parents[1]
    light = {line.strip() for line in (root / "requirements-light.txt").read_text().splitlines() if line[:1] != "#"}
    declared = (root / "setup.cfg").read_text().split("install_requires =")[1].split("\n\n")[0]
    everything = {re.split(r"[<>=]", line.strip())[0] for line in declared.split("\n")}
    heavy = {name.replace("_", "-") for name in HEAVY} | {"huggingface-hub", "huggingface_hub"}
    assert light - {""} == everything - heavy - {"", "sentence-transformers", "faiss-cpu"}
