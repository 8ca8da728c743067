"""dpsyn from Python does what the command line does."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import dpsyn
from dpsyn import cli
from dpsyn.errors import UserError

PAGE = Path(__file__).parents[1] / "docs/how-to/python.md"
TABLE = ["data=tables", "data.schema.file=schema.yaml", "data.id=given", "data.records=300", "schedule=cells",
         "privacy.epsilon=4", "privacy.delta=1e-5", "schedule.size=50", "metric.parts=null"]  # fmt: skip
SCHEMA = """\
columns:
  age: {kind: integer, bounds: [0, 100]}
  city: {kind: category, values: [Bonn, Ulm, Köln]}
labels: [city]
"""


def test_what_the_page_says_runs(in_tmp):
    known = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), known)


def rows(n=300):
    rng = np.random.default_rng(0)
    return {"age": rng.integers(0, 100, n), "city": rng.choice(["Bonn", "Ulm", "Köln"], n)}


def test_frames_tables_and_columns_are_one_data_set_and_lie_where_only_their_owner_reads(in_tmp, monkeypatch):
    Path("schema.yaml").write_text(SCHEMA)
    polars = pytest.importorskip("polars")
    columns = rows()
    frame = pd.DataFrame(columns)
    chosen = frame.set_axis([7, 3] * 150)  # an index without a name
    categories = polars.DataFrame(columns).with_columns(polars.col("city").cast(polars.Categorical))
    given = [frame, pa.table(columns), columns, categories, chosen]
    found = [dpsyn.run(*TABLE, f"run_dir=r{at}", data=each) for at, each in enumerate(given)]
    assert [len(run.synthetic) for run in found] == [50] * 5
    joint = [run.privacy["joint"]["runs"] for run in found]
    assert joint == [1, 2, 3, 4, 5]  # the same rows add up
    frame = found[0].synthetic.to_pandas()
    assert set(frame.columns) == {"age", "city"} and set(frame["city"]) <= {"Bonn", "Ulm", "Köln"}
    assert found[0].synthetic.to_polars().shape == frame.shape
    kept = list(Path(next(iter(Path.cwd().parents))).glob("nothing"))
    assert not kept and "given" not in json.dumps({**found[0].privacy, "assumed_public": 0, "joint": 0})
    with pytest.raises(UserError, match="a run with other settings is there"):
        dpsyn.run(*TABLE, "run_dir=r0", "seed=5", data=frame)


def test_texts_and_images_alone_make_a_run_and_the_column_of_texts_keeps_its_name(in_tmp):
    texts = [f"my parcel {i} is late" if i % 2 else f"the invoice {i} is wrong" for i in range(100)]
    small = ["+experiment=text_smoke", "data=texts", "data.records=100", "schedule.size=8", "schedule.releases=1",
             "schedule.degree=1", "schedule.variations=0", "metric=none"]  # fmt: skip
    run = dpsyn.run(*small, "data.id=mine", "run_dir=a", data=texts)
    assert run.synthetic.to_arrow().column_names == ["text", "label"] and len(run.synthetic) == 8
    frame = pd.DataFrame({"Kommentar Text": texts, "Thema": ["late", "wrong"] * 50})
    own = ["data.text_column=Kommentar Text", "++data.labels={Thema: [late, wrong]}", "data.id=my", "run_dir=b"]
    run = dpsyn.run(*small, *own, data=frame)
    assert run.synthetic.to_pandas().columns.tolist() == ["Kommentar Text", "label"]
    assert cli.main(["export", "b", "--to", "out", "--format", "csv"]) == 0
    assert Path("out/data.csv").read_text().startswith("Kommentar Text,Thema\n")
    images = (np.arange(60 * 784).reshape(60, 28, 28) % 251).astype(np.uint8)
    drawn = ["+experiment=smoke", "data=images", "data.mode=L", "data.records=60", "api.texts=[o,x]", "schedule.size=4",
             "schedule.releases=1", "schedule.degree=1", "schedule.variations=0", "expand.rows=null"]  # fmt: skip
    run = dpsyn.run(*drawn, "data.id=images", "run_dir=c", data=images)
    assert run.synthetic.content().shape == (4, 28, 28, 1)


def test_texts_and_refusals_of_one_line(in_tmp):
    said = dpsyn.plan("+experiment=text_smoke", "privacy.epsilon=1")
    assert said["private"] and 0.9 < said["epsilon"] <= 1 and len(said["releases"]) == 3
    for bad, why in ((["privacy.epsilon=-1"], "privacy.epsilon=-1: expected"), (["nosuch=1"], "unknown key")):
        with pytest.raises(UserError, match=re.escape(why)):
            dpsyn.plan("+experiment=smoke", *bad)
    with pytest.raises(UserError, match="expected a path, a frame") as caught:
        dpsyn.run(*TABLE, data={"secret": [1, "a"], "b": [object()]})
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="expected a path, a frame"):
        dpsyn.run(*TABLE, data=[2**70, "x"])
    Path("schema.yaml").write_text(SCHEMA)
    without = [each for each in TABLE if not each.startswith("data.id")]
    with pytest.raises(UserError, match=r"data\.id=null: expected a name for data that are no file"):
        dpsyn.run(*without, data=rows())  # in another order they would be other data, whose epsilons do not add up
    with pytest.raises(UserError, match="no run of dpsyn is there"):
        dpsyn.open("nowhere")


def test_importing_dpsyn_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, dpsyn; dpsyn.__version__; print(sorted(m.split('.')[0] for m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'numpy'" not in out and "'hydra'" not in out
