import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import run
from PIL import Image

from dpsyn import cli
from dpsyn.errors import UserError
from dpsyn.population import MISSING, Population, Samples
from dpsyn.runs import storage
from dpsyn.runs.directory import RunDirectory
from dpsyn.runs.export import export, folders_of
from dpsyn.runs.storage import columns_of, from_parquet, to_parquet

LABELS = [{"category": "Hotels", "stars": "5"}, {"category": "Bars, pubs", "stars": "1"}]


def finished(root, content, labels=LABELS, survivors=(True, False, True), forms=None):
    """A run directory with one iteration of three rows."""
    here = RunDirectory(root)
    (here.release / "iterations").mkdir(parents=True)
    (here.release / "privacy.json").write_text('{"epsilon": 1}')
    rows = np.array([0, 1, 0])
    population = Population(
        1, Samples(content, {"font": np.arange(3)}, forms or {}), rows, np.arange(3), np.array(survivors)
    )
    here.save(population, labels)
    (here.release / "synthetic.parquet").write_bytes(to_parquet(population, labels, lineage=False))
    return here


TEXTS = np.array(['said "hello",\nand left', "naïve 🙂", "=1+1"], object)
ROWS = np.array(
    [
        ("x", 1, 2.5, np.datetime64("2020-01-31"), 1),
        (None, MISSING, np.nan, np.datetime64("NaT"), -1),
        ("", 3, 1, 0, 0),
    ],
    [("kind", "O"), ("age", "i8"), ("weight", "f8"), ("born", "M8[D]"), ("married", "i1")],
)
PIXELS = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)


def test_texts_come_back_from_csv_and_jsonl_with_a_column_for_each_of_the_label(tmp_path):
    here = finished(tmp_path / "run", TEXTS)
    assert export(here, tmp_path / "c", "csv") == export(here, tmp_path / "j", "jsonl") == 3
    expected = [
        {"text": text, "category": category, "stars": stars}
        for text, (category, stars) in zip(TEXTS, [("Hotels", "5"), ("Bars, pubs", "1"), ("Hotels", "5")], strict=True)
    ]
    with (tmp_path / "c/data.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == expected
    assert [json.loads(line) for line in (tmp_path / "j/data.jsonl").read_text().splitlines()] == expected
    assert json.loads((tmp_path / "c/privacy.json").read_text()) == {"epsilon": 1}


def test_table_rows_keep_their_types_and_what_is_missing(tmp_path):
    here = finished(tmp_path / "run", ROWS, labels=[{}, {}])
    export(here, tmp_path / "p", "parquet")
    table = pq.read_table(tmp_path / "p/data.parquet")
    assert table.to_pydict() == columns_of(ROWS)
    assert [str(table[name].type) for name in ROWS.dtype.names] == ["string", "int64", "double", "date32[day]", "bool"]
    again = from_parquet((tmp_path / "p/data.parquet").read_bytes(), "here").samples.content
    assert again.dtype == ROWS.dtype
    assert columns_of(again) == columns_of(ROWS)
    export(here, tmp_path / "c", "csv")
    assert (tmp_path / "c/data.csv").read_text().splitlines()[1:] == [
        "x,1,2.5,2020-01-31,True",
        ",,,,",
        '"",3,1.0,1970-01-01,False',
    ]


def test_numbers_without_decimals_are_whole_in_every_text(tmp_path):
    content = np.array([(1000.0,), (np.nan,), (2010.0,)], [("x", "f8")])
    run = finished(tmp_path / "run", content, forms={"x": {"decimals": "0"}})
    export(run, tmp_path / "j", "jsonl")
    lines = (tmp_path / "j/data.jsonl").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ['{"x": 1000', '{"x": null', '{"x": 2010']


def test_images_come_back_from_a_folder_a_label_and_from_arrays(tmp_path):
    here = finished(tmp_path / "run", PIXELS)
    export(here, tmp_path / "i", "imagefolder")
    found = sorted(path.relative_to(tmp_path / "i") for path in (tmp_path / "i").rglob("*.png"))
    assert found == [Path("Bars, pubs_1/0000001.png"), Path("Hotels_5/0000000.png"), Path("Hotels_5/0000002.png")]
    assert (np.asarray(Image.open(tmp_path / "i/Hotels_5/0000002.png")) == PIXELS[2]).all()
    export(here, tmp_path / "n", "npz")
    with np.load(tmp_path / "n/data.npz", allow_pickle=False) as arrays:
        assert (arrays["content"] == PIXELS).all()
        assert [arrays["label_names"][i] for i in arrays["label"]] == ["Hotels | 5", "Bars, pubs | 1", "Hotels | 5"]


@pytest.mark.parametrize(
    ("labels", "folders"),
    [
        (["Golden Retriever", "Tabby & co.", "Bärenhund (groß)", "über-cat", "3"],
         ["Golden Retriever", "Tabby & co", "Bärenhund (groß)", "über-cat", "3"]),
        (["../../etc", "/x/y", "a/b", "a|b?", ".hidden"], ["_.._etc", "_x_y", "a_b", "a_b_", "hidden"]),
        (["cat", "Cat"], ["0_cat", "1_Cat"]),
        (["..", "a" * 300], ["all", "a" * 60]),
    ],
)  # fmt: skip
def test_a_label_has_the_folder_that_its_user_spelled_and_none_elsewhere(labels, folders):
    assert folders_of([{"label": label} for label in labels]) == folders


def test_texts_and_rows_are_arrays_without_a_pickle(tmp_path):
    for name, content in {"t": TEXTS, "r": ROWS[[0, 2]][[0, 1, 1]]}.items():
        here = finished(tmp_path / f"run{name}", content)
        export(here, tmp_path / name, "npz")
        with np.load(tmp_path / name / "data.npz", allow_pickle=False) as arrays:
            assert all(len(arrays[key]) for key in arrays)


def test_an_iteration_is_its_survivors_or_with_all_everything(tmp_path):
    here = finished(tmp_path / "run", TEXTS)
    assert export(here, tmp_path / "a", "csv", iteration=1) == 2
    assert export(here, tmp_path / "b", "csv", iteration=1, everything=True) == 3


def test_what_cannot_be_exported_is_one_line_and_writes_nothing(tmp_path, in_tmp, own_state, capsys):
    finished(tmp_path / "run", TEXTS)
    finished(tmp_path / "gone", TEXTS, survivors=(False,) * 3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/here").touch()
    for given, message in [
        (["run", "--to", "x", "--format", "xls"], "--format=xls: expected csv, jsonl"),
        (["run", "--to", "x", "--format", "imagefolder"], "--format=imagefolder: expected parquet, npz or csv"),
        (["run", "--to", "full", "--format", "csv"], "--to=full: expected a folder that does not exist"),
        (["run", "--to", "x", "--format", "csv", "--iteration", "7"], "--iteration=7: expected one of 1"),
        (["gone", "--to", "x", "--format", "csv", "--iteration", "1"], "--iteration=1: no survivors"),
        (["nowhere", "--to", "x", "--format", "csv"], "nowhere: no run of dpsyn is there"),
    ]:
        assert cli.main(["export", *given]) == 2
        assert capsys.readouterr().err.startswith(f"dpsyn: {message}")
        assert not Path("x").exists()


@pytest.mark.parametrize("noise", ["insecure_seeded"])
def test_a_run_that_is_not_private_leaves_only_when_told_to(noise, in_tmp, own_state, capsys):
    run("here", f"privacy.noise={noise}")
    assert cli.main(["export", "here", "--to", "out", "--format", "imagefolder"]) == 2
    assert "NOT PRIVATE" in capsys.readouterr().err
    assert cli.main(["export", "here", "--to", "out", "--format", "imagefolder", "--not-private"]) == 0
    assert "out: 60 rows" in capsys.readouterr().out
    assert len(list(Path("out").rglob("*.png"))) == 60


def test_a_tables_own_columns_may_be_called_as_ours_and_its_labels_stand_where_they_stood():
    content = np.array(
        [("b", "x", 3), ("a", "y", MISSING), ("b", "z", 5)], [("label", "O"), ("parent", "O"), ("survivor", "i8")]
    )
    labels = [{"label": "a"}, {"label": "b"}]
    given = Population(2, Samples(content, {}), np.array([1, 0, 1]), np.array([2, 1, 0]), np.array([True, False, True]))
    again = from_parquet(to_parquet(given, labels), "here")
    assert columns_of(again.samples.content) == columns_of(content)
    assert [again.labels.tolist(), again.parents.tolist(), again.survivors.tolist()] == [
        [1, 0, 1],
        [2, 1, 0],
        [1, 0, 1],
    ]
    released = pq.read_table(pa.BufferReader(to_parquet(given, labels, lineage=False)))
    assert released.column_names == ["label", "parent", "survivor"]
    assert released.to_pydict() == columns_of(content)


def test_columns_called_as_ours_or_numpys_stay_what_they_are_in_every_format(tmp_path):
    content = np.array(
        [("b", 7, np.datetime64("2020-01-31")), ("a", 8, np.datetime64("NaT")), ("b", 9, np.datetime64("2021-03-04"))],
        [("label", "O"), ("file", "i8"), ("born", "M8[D]")],
    )
    here = finished(tmp_path / "run", content, labels=[{"label": "a"}, {"label": "b"}])
    export(here, tmp_path / "n", "npz")
    with np.load(tmp_path / "n/data.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["born", "file", "label"]
        assert arrays["label"].tolist() == ["b", "a", "b"]
        assert arrays["file"].tolist() == [7, 8, 9]
    export(here, tmp_path / "j", "jsonl")
    lines = [json.loads(line) for line in (tmp_path / "j/data.jsonl").read_text().splitlines()]
    assert lines[0] == {"label": "b", "file": 7, "born": "2020-01-31"}
    assert lines[1] == {"label": "a", "file": 8, "born": None}


def test_a_table_in_many_groups_is_read_back_whole_or_a_few_rows_of_each_label(monkeypatch):
    monkeypatch.setattr(storage, "group_rows", lambda content: 7)
    content = np.array([(f"row {i}", float(i)) for i in range(50)], [("name", "O"), ("size", "<f8")])
    labels, survivors = np.arange(50) % 3, np.arange(50) % 4 > 0
    given = Population(2, Samples(content), labels, np.arange(50), survivors)
    kept = to_parquet(given, [{"d": name} for name in "abc"])
    assert pq.ParquetFile(pa.BufferReader(kept)).num_row_groups == 8
    again = from_parquet(kept, "here")
    assert again.samples.content.tolist() == content.tolist() and again.parents.tolist() == list(range(50))
    few = from_parquet(kept, "here", per_label=3)
    assert few.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 and few.survivors.all()
    assert [few.samples.content[at]["name"] for at in range(9)] == [f"row {row}" for row in few.parents]


def test_so_many_rows_are_some_of_them_and_the_same_each_time(tmp_path, capsys):
    content = np.array(["one", "two", "three"], object)
    root = tmp_path / "run"
    here = finished(root, content, survivors=(True, True, True))
    found = []
    for name in ("a", "b"):
        assert export(here, tmp_path / name, "csv", iteration=1, rows=2) == 2
        found.append((tmp_path / name / "data.csv").read_text())
    assert found[0] == found[1] and len(found[0].splitlines()) == 3
    for rows in (0, 4):
        with pytest.raises(UserError, match=r"--rows=.: expected a whole number from 1 to 3"):
            export(here, tmp_path / "c", "csv", iteration=1, rows=rows)
    assert not (tmp_path / "c").exists()
