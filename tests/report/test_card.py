"""README.md of a release: `datasets` and others load the folder by it, each time what is in it."""

import shutil

import pandas as pd
import pytest
import yaml

from dpsyn import cli
from dpsyn.report import facts, write_report
from dpsyn.report.card import card, plain
from dpsyn.report.layout import of_release
from dpsyn.runs.directory import open_run

KINDS = ["images", "texts", "cells"]


def head(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_datasets_loads_each_release_in_one_cache(runs, tmp_path):
    """All folders are called `release`, and all files have one modification time."""
    datasets = pytest.importorskip("datasets")
    for name, column in (("images", "image"), ("texts", "text"), ("cells", "diagnosis")):
        folder = str(runs / name / "release")
        whole = datasets.load_dataset(folder, split="train", cache_dir=tmp_path / "cache")
        assert whole.num_rows == len(pd.read_parquet(f"{folder}/synthetic.parquet")) and column in whole.features
        iterations = datasets.load_dataset(folder, "iterations", split="train", cache_dir=tmp_path / "cache")
        rows = [len(each.labels) for each in facts.read(open_run(runs / name)).lineages]
        assert iterations.num_rows == sum(rows)
        votes = datasets.load_dataset(folder, "votes", split="train", cache_dir=tmp_path / "cache")
        receipts = (runs / name / "release/votes").glob("*.parquet")
        assert votes.num_rows == sum(len(pd.read_parquet(path)) for path in receipts)
        if name == "images":
            assert whole.features["label"].names == [str(digit) for digit in range(10)]
            assert whole[0]["image"].size == (28, 28)


def test_after_an_expansion_datasets_loads_the_new_rows(runs, tmp_path):
    datasets = pytest.importorskip("datasets")
    shutil.copytree(runs / "images", tmp_path / "run")
    sizes = []
    for rows in (60, 80):
        assert cli.main(["expand", str(tmp_path / "run"), "--rows", str(rows)]) == 0
        made = datasets.load_dataset(str(tmp_path / "run/release"), split="train", cache_dir=tmp_path / "cache")
        sizes.append(made.num_rows)
    assert sizes == [60, 80]


@pytest.mark.parametrize("name", KINDS)
def test_the_card_states_the_promise_the_columns_and_the_limits(runs, name):
    folder = runs / name / "release"
    text = (folder / "README.md").read_text()
    released = facts.read(open_run(runs / name))
    assert [config["config_name"] for config in head(folder)["configs"]] == ["default", "iterations", "votes"] + [
        "marginals"
    ] * (name == "cells")
    assert "Everything under release/" in text and "## Limits" in text and "load_dataset(" in text
    for column in pd.read_parquet(folder / "synthetic.parquet").columns:
        assert f"| {plain(column)} | " in text
    assert f"{released.rows:,} synthetic" in text
    assert str(runs) not in text


def test_an_interrupted_run_has_a_card_of_its_last_population(runs, tmp_path):
    shutil.copytree(runs / "texts", tmp_path / "run")
    here = open_run(tmp_path / "run")
    (here.release / "synthetic.parquet").unlink()
    write_report(here)
    assert head(here.release)["configs"][0]["data_files"] == f"iterations/{here.iterations()[-1]:03d}/samples.parquet"
    assert "not its final data" in (here.release / "README.md").read_text()


def test_names_of_strangers_stay_words(runs):
    import dataclasses

    evil = "a\n---\nb: <script>alert(1)</script> | `x` [y](http://z) {%raw%}"
    released = dataclasses.replace(
        facts.read(open_run(runs / "images")), labels=(evil, "2"), settings={"name": evil}, numbers=()
    )
    text = card(released, of_release(released)).decode()
    assert text.count("\n---\n") == 1
    assert yaml.safe_load(text.split("---\n")[1])["pretty_name"] == " ".join(evil.split())[:80]
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body.replace("\\<script\\>", "") and "[y](" not in body
