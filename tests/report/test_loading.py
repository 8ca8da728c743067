"""A release loads anywhere: what describes it for others is true, and each library reads it."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from harness import TINY
from hub_server import hub

from dpsyn import cli
from dpsyn.privacy.budget import epsilon_of
from dpsyn.report import facts
from dpsyn.runs.directory import open_run

KINDS = ["images", "texts", "cells"]


@pytest.mark.parametrize("name", KINDS)
def test_polars_and_duckdb_read_the_same_rows_as_pandas(runs, name):
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    path = runs / name / "release/synthetic.parquet"
    expected = pd.read_parquet(path)
    for found in (polars.read_parquet(path).to_pandas(), duckdb.sql(f"select * from '{path}'").df()):
        assert list(found.columns) == list(expected.columns) and len(found) == len(expected)
        for column in found.columns:
            if column != "image":
                assert found[column].tolist() == expected[column].tolist() or found[column].isna().any()


@pytest.mark.parametrize("name", KINDS)
def test_croissant_is_valid_and_gives_the_rows(runs, name):
    mlcroissant = pytest.importorskip("mlcroissant")
    folder = runs / name / "release"
    dataset = mlcroissant.Dataset(str(folder / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    rows = list(dataset.records("rows"))
    expected = pd.read_parquet(folder / "synthetic.parquet")
    assert len(rows) == len(expected) and len(rows[0]) == len(expected.columns)
    if name == "images":
        assert rows[0]["rows/image"].size == (28, 28)
        assert [row["rows/label"] for row in rows] == expected["label"].tolist()
    said = json.loads((folder / "croissant.json").read_text())
    for asked in ("dataLimitations", "dataBiases", "personalSensitiveInformation", "dataUseCases", "dataSocialImpact"):
        assert said[f"rai:{asked}"]
    assert "epsilon" in said["description"]
    for file in said["distribution"]:
        assert hashlib.sha256((folder / file["contentUrl"]).read_bytes()).hexdigest() == file["sha256"]


REQUIRED = {  # of opendp/deployments-registry-data, schemas/deployments-schema.yaml
    "basic": ("name", "data_curators", "description", "intended_use", "data_product_type", "data_product_region",
              "publication_date"),
    "administrative": ("status", "registry_authors", "tier"),
}  # fmt: skip


def test_the_record_of_the_deployment_is_filled_as_far_as_a_program_can(runs):
    texts = {name: (runs / name / "release/deployment.yaml").read_text() for name in KINDS}
    for name, text in texts.items():
        record = yaml.safe_load(text)
        assert set(record) == {"url_slug", "deployment"}
        for part, keys in REQUIRED.items():
            assert set(keys) <= set(record["deployment"][part])
        promise = facts.read(open_run(runs / name)).promise
        assert record["deployment"]["privacy_loss"]["privacy_parameters"] == {
            "epsilon": promise.epsilon,
            "delta": promise.delta,
        }
        assert "data_product_region: ''  # which region" in text and "EMPTY" not in text
    known = yaml.safe_load(texts["images"])["deployment"]["basic"]
    assert known["data_curators"][0]["data_curator_name"] == "A curator" and known["publication_date"] == "2026-11-30"
    assert "license: cc-by-4.0" in (runs / "images/release/README.md").read_text()


def test_what_the_curator_says_is_checked_and_identifies_no_run(tmp_path, capsys):
    again = [*TINY, f"run_dir={tmp_path / 'run'}"]
    assert cli.main(["run", *again, "card.curator=One"]) == 0
    assert cli.main(["run", *again, "card.curator_type=Bakery"]) == 2
    assert "card.curator_type=Bakery: expected" in capsys.readouterr().err
    assert cli.main(["run", *again, "card.published=yesterday"]) == 2
    assert "name: One" in (deployment := tmp_path / "run/release/deployment.yaml").read_text()
    assert cli.main(["run", *again, "card.curator=Another"]) == 0
    assert "name: Another" in deployment.read_text()


@pytest.mark.parametrize("name", KINDS)
def test_anyone_recomputes_epsilon_with_dp_accounting_alone(runs, name):
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    said = json.loads((runs / name / "release/privacy.json").read_text())

    def event(of):
        if of["class_name"] == "ComposedDpEvent":
            return dp_accounting.ComposedDpEvent([event(each) for each in of["events"]])
        if of["class_name"] == "SelfComposedDpEvent":
            return dp_accounting.SelfComposedDpEvent(event(of["event"]), of["count"])
        return dp_accounting.GaussianDpEvent(of["noise_multiplier"])

    accountant = PLDAccountant()
    accountant.compose(event(said["dp_event"]))
    assert accountant.get_epsilon(said["delta"]) == pytest.approx(said["epsilon"], rel=0.02)


def test_marginals_are_the_noisy_counts_in_words(runs):
    table = pd.read_parquet(runs / "cells/release/marginals.parquet")
    released = facts.read(open_run(runs / "cells"))
    counts = {t: receipt for t, receipt in released.cells.items() if "scores" not in receipt.charge.name}
    assert table["noisy_count"].tolist() == [float(v) for receipt in counts.values() for v in receipt.votes]
    for t, receipt in counts.items():
        assert set(table["deviation"][table["release"] == t]) == {receipt.charge.sigma}
    labels = table[(table["release"] == 1) & (table["column_1"] == "diagnosis")]
    assert labels["cell_1"].tolist() == ["malignant", "benign"] == list(released.labels)
    pairs = table[(table["release"] == 2) & (table["marginal"] == 1)]
    assert set(pairs["column_1"]) == {"mean radius"} and set(pairs["column_2"]) == {"diagnosis"}
    assert pairs["cell_2"].tolist()[:2] == ["malignant", "benign"]
    schema = yaml.safe_load((runs / "cells/release/config.yaml").read_text())["data"]["schema"]["file"]
    low, high = schema["columns"]["mean radius"]["bounds"]
    first, last = pairs["cell_1"].iloc[0].split(" to ")[0], pairs["cell_1"].iloc[-1].split(" to ")[-1]
    assert math.isclose(float(first), low) and math.isclose(float(last), high, rel_tol=0.01)


@pytest.mark.parametrize(
    ("name", "form", "data"),
    [("images", "imagefolder", None), ("images", "parquet", "data.parquet"), ("images", "npz", None),
     ("texts", "jsonl", "data.jsonl"), ("cells", "csv", "data.csv")],
)  # fmt: skip
def test_an_export_is_described_as_a_release_is(runs, tmp_path, name, form, data, capsys):
    to = tmp_path / "to"
    assert cli.main(["export", str(runs / name), "--to", str(to), "--format", form]) == 0
    head = yaml.safe_load((to / "README.md").read_text().split("---\n")[1])
    rows = len(pd.read_parquet(runs / name / "release/synthetic.parquet"))
    assert f"{rows:,} synthetic" in (to / "README.md").read_text()
    assert (to / "deployment.yaml").exists()
    if form != "npz":
        datasets = pytest.importorskip("datasets")
        assert datasets.load_dataset(str(to), split="train", cache_dir=tmp_path / "cache").num_rows == rows
        told = {config["description"] for config in head["configs"]}
        assert f"sha256 {hashlib.sha256(b'').hexdigest()}" not in told  # of the rows: datasets caches by it
    else:
        assert "configs" not in head
    if data:
        mlcroissant = pytest.importorskip("mlcroissant")
        assert len(list(mlcroissant.Dataset(str(to / "croissant.json")).records("rows"))) == rows
    capsys.readouterr()
    assert cli.main(["verify", str(to)]) == 1  # without receipts nothing can be computed again
    said = capsys.readouterr().out
    assert "as in an export" in said and "FAULT" not in said
    (to / "README.md").write_text("other")
    assert cli.main(["verify", str(to)]) == 1
    assert "README.md: not as it was released" in capsys.readouterr().out


def test_a_recipient_verifies_the_folder_alone_and_finds_a_flipped_byte_in_any_file(runs, tmp_path, capsys):
    shutil.copytree(runs / "images/release", tmp_path / "mine")
    assert cli.main(["verify", str(tmp_path / "mine")]) == 0
    assert cli.main(["list", str(tmp_path / "mine")]) == 0
    names = [path for path in sorted((tmp_path / "mine").rglob("*")) if path.is_file()]
    assert len(names) > 10
    rng = np.random.default_rng(0)
    for path in names:
        content = path.read_bytes()
        for at in {0, len(content) - 1, *rng.integers(0, len(content), 3).tolist()}:
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            assert cli.main(["verify", str(tmp_path / "mine")]) in (1, 2), (path, at)
        path.write_bytes(content)
    (tmp_path / "mine/more.txt").write_text("a file that nobody released")
    capsys.readouterr()
    assert cli.main(["verify", str(tmp_path / "mine")]) == 1
    assert "does not list this file" in capsys.readouterr().out
    (tmp_path / "mine/more.txt").unlink()
    (tmp_path / "mine/samples.png").unlink()
    assert cli.main(["verify", str(tmp_path / "mine")]) == 1


def test_a_report_of_a_strangers_folder_vouches_for_nothing_else(runs, tmp_path, capsys):
    shutil.copytree(runs / "images/release", tmp_path / "mine")
    (tmp_path / "mine/samples.png").write_bytes(b"other")
    assert cli.main(["report", str(tmp_path / "mine")]) == 0
    assert cli.main(["verify", str(tmp_path / "mine")]) == 1
    assert "samples.png: not as it was released" in capsys.readouterr().out
    assert not (tmp_path / "mine/private").exists()


def test_epsilon_of_the_event_is_that_of_the_charges(runs):
    promise = facts.read(open_run(runs / "cells")).promise
    assert epsilon_of(promise.charges, promise.delta, promise.neighbours) <= promise.epsilon


def pushed(address, *given, token="hf_test"):
    own = {**os.environ, "HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "dpsyn", "push", *map(str, given)]
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=120)


def test_push_sends_the_release_and_nothing_else(runs, tmp_path):
    pytest.importorskip("huggingface_hub")
    with hub() as (address, repositories, hidden):
        repositories["me/digits"] = {"old.parquet": b"of another release", ".gitattributes": b""}
        ended = pushed(address, runs / "images", "me/digits", "--private")
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines()[-1] == f"{address}/datasets/me/digits"
        release = runs / "images/release"
        expected = {str(path.relative_to(release)): path.read_bytes() for path in release.rglob("*") if path.is_file()}
        assert {name: content for name, content in repositories["me/digits"].items() if name[0] != "."} == expected
        assert hidden == ["me/digits"]
    for name, content in expected.items():  # as a recipient has it
        path = tmp_path / "got" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert cli.main(["verify", str(tmp_path / "got")]) == 0


def test_push_refuses_what_is_not_private_not_complete_or_altered(runs, tmp_path):
    assert cli.main(["run", *TINY, "privacy=none", f"run_dir={tmp_path / 'bare'}"]) == 0
    shutil.copytree(runs / "images/release", tmp_path / "cut/release")
    last = sorted((tmp_path / "cut/release/votes").iterdir())[-1]
    last.unlink()
    shutil.copytree(runs / "texts/release", tmp_path / "more/release")
    (tmp_path / "more/release/private_rows.csv").write_text("a private row")
    shutil.copytree(tmp_path / "bare/not_private", tmp_path / "renamed")
    with hub() as (address, repositories, _):
        for name, why in (
            ("bare", "NOT PRIVATE"),
            ("cut", "gone"),
            ("more", "does not list"),
            ("renamed", "NOT PRIVATE"),
        ):
            ended = pushed(address, tmp_path / name, "me/it")
            assert (ended.returncode, why in ended.stderr, ended.stderr.count("\n")) == (2, True, 1), ended.stderr
        assert pushed(address, runs / "images", "it").returncode == 2
        ended = pushed(address, runs / "images", "me/it", token="hf_other")
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
        assert not repositories.get("me/it")


@pytest.fixture
def fake_hub(monkeypatch):
    """Takes everything, and lets a test act while files are sent."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    acts = []

    class Hub:
        def create_repo(self, name, **_):
            return f"https://hub/{name}"

        def upload_folder(self, **_):
            for act in acts:
                act()

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return acts


def test_while_a_release_is_sent_no_run_works_in_it_and_one_at_work_is_not_sent(runs, fake_hub, capsys):
    run, met = open_run(runs / "images"), []

    def begin():
        met.append(cli.main(["expand", str(runs / "images"), "--rows", "70"]))

    fake_hub.append(begin)
    assert cli.main(["push", str(runs / "images"), "me/it"]) == 0
    assert met == [2] and "another process is working there" in capsys.readouterr().err
    with run.locked():
        assert cli.main(["push", str(runs / "images"), "me/it"]) == 2
        assert cli.main(["push", str(runs / "images/release"), "me/it"]) == 2
    assert capsys.readouterr().err.count("another process is working there") == 2 and met == [2]


def test_files_that_change_while_they_are_sent_are_not_said_to_be_there(runs, fake_hub, tmp_path, capsys):
    shutil.copytree(runs / "images/release", tmp_path / "got")
    fake_hub.append(lambda: (tmp_path / "got/metrics.jsonl").write_text("{}"))
    assert cli.main(["push", str(tmp_path / "got"), "me/it"]) == 2
    assert "files changed while they were sent" in capsys.readouterr().err
