"""The commands of README and of all pages of docs, as they stand there, one after the other in one folder."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_server import ChatServer
from harness import digits, parquet
from pages import ROOT, carry_out, reason, steps, words
from PIL import Image
from sklearn.datasets import load_sample_images

from dpsyn import cli

GUIDES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/how-to/*.md"))
TUTORIALS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/tutorials/*.md"))
OWN_TESTS = {"docs/how-to/python.md": "tests/test_python.py"}
TOGETHER = ["README.md", "docs/tables.md", "docs/images.md", "docs/texts.md", "docs/parts.md", "docs/experiments.md"]
TOGETHER += ["docs/privacy.md", *(page for page in GUIDES if page not in OWN_TESTS), "CONTRIBUTING.md"]
SMALLER = {  # what a run is cut down to, so that the whole takes seconds
    "+experiment=digits": ["schedule.size=20", "expand.rows=60"],
    "+experiment=smoke": ["schedule.size=20", "expand.rows=60"],
    "+experiment=photos": ["schedule.size=20", "embedding.stride=4", "embedding.filters=32", "embedding.dimension=64"],
    "+experiment=stays": ["schedule.size=200"],
    "+experiment=mail_rows": ["schedule.size=30", "embedding=ngrams", "metric=none"],
    "schedule=rows_then_texts": [
        "schedule.size=30",
        "schedule.candidates=300",
        "embedding=ngrams",
        "api.neighbours=30",
    ],
    "data=digits": ["schedule.size=20"],
    "data=images": ["schedule.size=20"],
    "data=tables": ["schedule.size=200"],
    "data=texts": ["schedule.size=10"],
}
LONG = {  # not run; a run is planned
    "+experiment=mails": "5 CPU minutes",
    "mail_rows": "10 CPU seconds; tests/schedule/test_rows_then_texts.py runs some",
    "schedule=rows_then_texts": "20 CPU seconds; the same",
    "api=smollm": "a minute to load",
    "runtime=ray": "20 seconds; tests/cluster runs the same",
    "runs/stays --private": "17 seconds of boosting; the private page of digits is written",
    "runs/look/release/samples.txt": "of what is not run",
    "runs/mails": "the same",
}


def smaller(given):
    if "schedule=census" in given:
        return ["schedule.rows=40"]
    if given[:2] == ["dpsyn", "run"] and "--cfg" not in given:
        return [text for key, texts in SMALLER.items() if key in given for text in texts]
    return []


def follow(page, namespace, done, address):
    """Carries out the steps of a page; a command that was given before is not given again.

    done: commands. address: of a stand-in for a chat endpoint.
    """
    for step in steps(page):
        given = words(step) if step.kind == "command" else []
        if reason(step) or "RUN" in given or tuple(given) in done:
            continue
        done.add(tuple(given) if given else step.at)
        if any(text in step.text for text in LONG) and given[:2] != ["dpsyn", "plan"]:
            if given[:2] == ["dpsyn", "run"] and not {"--cfg", "--help"} & set(given):
                assert cli.main(["plan", *given[2:]]) == 0, f"{step.at}: {step.text}: cannot be planned"
            continue
        more = smaller(given)
        if "api=chat" in given:
            keys = [text for text in given if text.startswith("api.base_url=")]
            given = [text for text in given if text not in keys]
            more += [f"api.base_url={address}", "api.api_key_env=null", "embedding=ngrams"] if given[1] == "run" else []
        carry_out(step, namespace, more)


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer() as server:
        yield server.url


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
def what_pages_take_for_granted(in_tmp, monkeypatch):
    """Data of the reader's own, and files that another page shows."""
    rng = np.random.default_rng(0)
    put("sample.csv", "age,ward\n" + "".join(f"{20 + at % 60},surgery\n" for at in range(50)))
    put("mails.csv", "text,topic\n" + "where is my parcel,delivery\nmy money back,refund\n" * 20)
    wards = ("surgery", "medicine", "children", "")
    head = "patient,age,ward,admitted,left,seen,bill,died\n"
    stays = [
        f"p{at},{rng.integers(0, 90)},{wards[at % 4]},2022-03-0{1 + at % 5},2022-03-1{at % 9},"
        f"2022-03-05 10:{10 + at % 40}:00,{rng.integers(10, 9000)}.50,{at % 2 == 0}\n"
        for at in range(400)
    ]
    put("stays.csv", head + "".join(stays))
    cases = [f"p{at},{wards[at % 3]},{at % 90},{at % 2 == 0},the wound of bed {at % 7} heals\n" for at in range(200)]
    towns, codes = ("York", "Bath", "Hull"), ("A10", "B2", "")
    visits = [f"p{at},{towns[at % 3]},{codes[at % 3]},{at % 90}\n" for at in range(2000)]
    put("visits.csv", "patient,town,code,age\n" + "".join(visits))
    put("cases.csv", "patient,ward,age,urgent,note\n" + "".join(cases))
    public = [f"{wards[at % 3]},{at % 90},{at % 2 == 0},sleeps well in bed {at}\n" for at in range(60)]
    put("public_cases.csv", "ward,age,urgent,note\n" + "".join(public))
    letters = [
        f"{wards[at % 3]},a stay in {wards[at % 3]} no {at},dear sir the bed {at} was cold\n" for at in range(120)
    ]
    for name, some in (("letters", letters[:60]), ("public_letters", letters[60:])):
        put(f"{name}.csv", "ward,title,body\n" + "".join(some))
    notes = [f"the patient in bed {at} {('sleeps', 'eats', 'walks')[at % 3]} well" for at in range(90)]
    pq.write_table(pa.table({"text": notes}), "public_notes.parquet")
    for at, animal in enumerate(("cat", "dog")):
        photographs(f"photos/{animal}", at, 20)
        photographs(f"public_photos/{animal}", at, 150)
    parquet("digits.parquet", digits(200))
    for step in (step for page in TOGETHER for step in steps(page) if step.kind == "file"):
        carry_out(step, {})
    monkeypatch.setattr(sys, "path", [str(in_tmp), *sys.path])
    return in_tmp


def test_pages_commands_work_one_after_the_other_in_one_folder(what_pages_take_for_granted, endpoint):
    done = set()
    for page in TOGETHER:
        follow(page, {}, done, endpoint)
    there = {path.name for path in Path("runs").iterdir()}
    assert {"digits", "two", "none", "stays", "photos", "users", "noise"} <= there
    assert {"smoke-privacy.epsilon-1", "smoke-privacy.epsilon-2"} <= there
    assert "dpsyn" not in there and len(done) > 40


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: Path(page).stem)
def test_a_tutorial_works_from_an_empty_folder(page, in_tmp, endpoint):
    follow(page, {}, set(), endpoint)


def test_every_page_is_followed_or_has_nothing_to_run():
    followed = {*TOGETHER, *TUTORIALS, *OWN_TESTS}
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        page = str(path.relative_to(ROOT))
        if page not in followed and "reference" not in page:
            assert not [step.text for step in steps(page) if not reason(step)], page


def anchors(text):
    """Those of a page's headings, as GitHub and MkDocs make them."""
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.replace("`", "")).strip().lower().replace(" ", "-") for head in heads}


def test_links_between_pages_lead_to_a_file_and_a_heading_that_are_there():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = page.read_text(encoding="utf-8")
        for name, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]+))?\)", text):
            if "://" in name:
                continue
            to = page.parent / name if name else page
            assert to.exists(), f"{page.name}: {name}"
            inside = not page.is_relative_to(ROOT / "docs") or to.resolve().is_relative_to(ROOT / "docs")
            assert inside, f"{page.name}: {name} is not in the site"
            assert not anchor or anchor in anchors(to.read_text(encoding="utf-8")), f"{page.name}: {name}#{anchor}"
        for name in re.findall(r"`((?:dpsyn|configs|scripts|tests)/[\w/.-]+)`", text):
            there = (ROOT / name).exists() or name == "dpsyn/api/noise.py"
            assert there or "CHANGELOG" in page.name or "log" in page.name, f"{page.name}: {name}"


def test_the_site_is_built_of_all_pages_without_a_link_that_leads_nowhere(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: scripts/setup dev")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for path in ROOT.glob("docs/**/*.md"):
        page = (tmp_path / "site" / path.relative_to(ROOT / "docs").with_suffix(".html")).read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=.(?:https?:)?//", page), path  # it asks nobody


def test_readme_can_be_read_in_one_sitting():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_the_drawing_of_the_house_names_every_module():
    drawn = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for path in (ROOT / "dpsyn").rglob("*.py"):
        inside = path.relative_to(ROOT / "dpsyn").parts
        if path.stem.startswith("__") or inside[0] in ("api", "data", "embedding", "metric"):
            continue
        assert re.search(rf"\b{path.stem}\b", drawn), path
