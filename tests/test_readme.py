"""The commands of README and of the pages it names, as they stand there, one after the other in one folder."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from harness import digits, parquet
from PIL import Image
from sklearn.datasets import load_sample_images

from dpsyn import cli

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/tables.md", "docs/images.md", "docs/texts.md", "CONTRIBUTING.md"]
PAGES += [f"docs/how-to/{name}.md" for name in ("cluster", "publish", "evaluate")]
README = "\n\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
FOUND = re.findall(r"^    (dpsyn [^\\\n]*(?:\\\n[^\\\n]*)*)", README, re.MULTILINE)
COMMANDS = [
    shlex.split(found.replace("\\\n", " "), comments=True)[1:]
    for found in dict.fromkeys(re.sub(r" +", " ", found) for found in FOUND)
    if "RUN" not in found
]
SMALLER = {  # what a run is cut down to, so that the whole takes seconds
    "+experiment=digits": ["schedule.size=20", "expand.rows=60"],
    "+experiment=smoke": ["schedule.size=20", "expand.rows=60"],
    "+experiment=photos": ["schedule.size=20"],
    "data=digits": ["schedule.size=20"],
    "data=images": ["schedule.size=20"],
    "data=tables": ["schedule.size=200"],
}


def block(head):
    """A file as README shows it, by its first line."""
    lines = README[README.index(f"    {head}\n") :].splitlines()[1:]
    taken = []
    for line in lines:
        if line and not line.startswith("    "):
            break
        if taken and line.startswith(("    dpsyn ", "    # configs")):
            break
        taken.append(line[4:])
    return "\n".join(taken).strip() + "\n"


def put(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def photographs(folder, scene, n):
    """Squares cut from one of scikit-learn's two photographs."""
    Path(folder).mkdir(parents=True)
    rng, photograph = np.random.default_rng([scene, n]), load_sample_images().images[scene]
    for at in range(n):
        y, x = rng.integers(0, 380), rng.integers(0, 590)
        Image.fromarray(photograph[y : y + 40, x : x + 40]).save(f"{folder}/{at}.jpg")


@pytest.fixture
def what_readme_needs(in_tmp, monkeypatch):
    rng = np.random.default_rng(0)
    put("sample.csv", "age,ward\n" + "".join(f"{20 + at % 60},surgery\n" for at in range(50)))
    put("mails.csv", "text,topic\n" + "where is my parcel,delivery\nmy money back,refund\n" * 20)
    put("schema.yaml", block("# schema.yaml"))
    wards = ("surgery", "medicine", "children", "")
    head = "patient,age,ward,admitted,left,seen,bill,died\n"
    stays = [
        f"p{at},{rng.integers(0, 90)},{wards[at % 4]},2022-03-0{1 + at % 5},2022-03-1{at % 9},"
        f"2022-03-05 10:{10 + at % 40}:00,{rng.integers(10, 9000)}.50,{at % 2 == 0}\n"
        for at in range(400)
    ]
    put("stays.csv", head + "".join(stays))
    put("mine/experiment/photos.yaml", block("# mine/experiment/photos.yaml"))
    for at, animal in enumerate(("cat", "dog")):
        photographs(f"photos/{animal}", at, 20)
        photographs(f"public_photos/{animal}", at, 150)
    parquet("digits.parquet", digits(200))
    put("yours/noise.py", block("# dpsyn/api/noise.py"))
    put("mine/api/noise.yaml", "_target_: yours.noise.Noise\nsize: 28\n")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return in_tmp


def shown(command):
    return " ".join(["dpsyn", *command])


def test_what_readme_runs_can_be_planned_as_typed(what_readme_needs, capsys):
    runs = [command for command in COMMANDS if command[0] in ("run", "plan") and "--cfg" not in command]
    assert len(runs) >= 10
    for command in runs:
        assert cli.main(["plan", *command[1:]]) == 0, f"{shown(command)}\n{capsys.readouterr().err}"
        assert "promise" in capsys.readouterr().out


def test_readmes_commands_work_one_after_the_other_in_one_folder(what_readme_needs):
    for command in COMMANDS:
        if "api=chat" in command or "--cfg" in command:  # a hosted model; Hydra's own
            continue
        if "runtime=ray" in command and find_spec("ray") is None:
            continue
        smaller = [text for key, texts in SMALLER.items() if key in command and command[0] == "run" for text in texts]
        given = command[: command.index(">")] if ">" in command else command
        rows = ["60" if text == "6000" else text for text in given]
        ended = subprocess.run(
            [sys.executable, "-m", "dpsyn", *rows, *smaller], capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, f"{shown(command)}\n{ended.stderr}"
    there = {path.name for path in Path("runs").iterdir()}
    assert {"digits", "two", "none", "stays", "photos", "users", "noise"} <= there
    assert {"smoke-privacy.epsilon-1", "smoke-privacy.epsilon-2"} <= there
    assert "dpsyn" not in there


def test_no_page_names_a_file_or_a_module_that_is_not_there():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"\]\(([^)#]+)\)", text):
            assert "://" in name or (page.parent / name).exists(), f"{page.name}: {name}"
        for name in re.findall(r"`((?:dpsyn|configs|scripts|tests)/[\w/.-]+)`", text):
            assert (ROOT / name).exists() or name == "dpsyn/api/noise.py", f"{page.name}: {name}"


def test_the_drawing_of_the_house_names_every_module():
    drawn = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for path in (ROOT / "dpsyn").rglob("*.py"):
        inside = path.relative_to(ROOT / "dpsyn").parts
        if path.stem.startswith("__") or inside[0] in ("api", "data", "embedding", "metric"):
            continue
        assert re.search(rf"\b{path.stem}\b", drawn), path
