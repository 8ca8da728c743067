"""However many processes read the private rows and threads count them: the same integers, the same private files."""

import csv
import gzip
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from harness import digits, files, own_data, parquet, png, run
from hypothesis import given, settings
from hypothesis import strategies as some

from dpsyn.data.images import Images
from dpsyn.data.tables import Tables
from dpsyn.data.texts import Texts
from dpsyn.embedding.ngrams import Ngrams
from dpsyn.embedding.pixels import Pixels
from dpsyn.errors import UserError
from dpsyn.population import of_texts
from dpsyn.privacy import electorate as module
from dpsyn.privacy.electorate import open_electorate, row_reports
from dpsyn.privacy.marginals import Marginal
from dpsyn.privacy.nearest import search_on
from dpsyn.privacy.query import CellCounts, CellScores, LabelCounts, Nearest
from dpsyn.privacy.votes import unseal
from dpsyn.reading.lines import csv_cuts, csv_rows
from dpsyn.reading.rows import Span
from dpsyn.reading.sources import Source

PIXELS = Pixels(size=[8, 8], blur=0.5, directions=0, pool=1)
LABELS = ["red", "green"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 16)
    monkeypatch.setattr(module, "FEW", 5)
    monkeypatch.setattr(module, "BLOCK_BYTES", 2**12)


def here(work, each):
    """The parts in this process, one after the other: what is patched is so for them too."""
    for arguments in each:
        work(*arguments)


def rows(n=90):
    """Some have no label, no text or no user; users come back much later, spelled in another way."""
    words = ["apple", 'say "so"', "two\nlines", "a, b", "\u00e9tude", "plain text", "x\r\ny", '"', ""]
    for i in range(n):
        user = ["", f"{i % 11}", f" {i % 11}.0"][0 if i % 13 == 0 else 1 + i % 2]
        yield {"text": f"{words[i % 9]} {i}" if i % 9 < 8 else "", "label": (*LABELS, "blue")[i % 7 % 3], "user": user}


def write_csv(path, found, **form):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label", "user"], **form)
        writer.writeheader()
        writer.writerows(found)


def texts(folder, kind):
    found = list(rows())
    folder.mkdir()
    if kind == "csv":
        write_csv(folder / "a.csv", found)
        with (folder / "a.csv").open("a") as file:
            file.write("one cell\n\n")
    if kind == "csv in several files":
        for at in range(3):
            write_csv(folder / f"{at}.csv", found[at * 30 : at * 30 + 30], lineterminator="\n", quoting=csv.QUOTE_ALL)
    if kind == "csv.gz":
        write_csv(folder / "a.csv", found)
        for name in ("a", "b"):
            (folder / f"{name}.csv.gz").write_bytes(gzip.compress((folder / "a.csv").read_bytes()))
        (folder / "a.csv").unlink()
    if kind == "jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in found]
        (folder / "a.jsonl").write_text("\n".join([*lines[:40], "", "no json", *lines[40:]]))
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(found[:60]), folder / "a.parquet", row_group_size=25)
        pq.write_table(pa.Table.from_pylist(found[60:]), folder / "b.parquet")
    return Texts(str(folder), labels={"label": LABELS}, unit_column="user", on_error="skip")


KINDS = ["csv", "csv in several files", "csv.gz", "jsonl", "parquet"]
GRAMS = Ngrams(64, [1, 1], None)


def told(data, embed, queries, cache, unit, shards):
    electorate = open_electorate(data, embed, {}, unit, cache / f"{shards}", shards, here)
    assert not list(electorate.folder.rglob("users"))
    modes = {path.stat().st_mode & 0o77 for path in electorate.folder.rglob("*")}
    assert modes == {0}
    survey = (electorate.folder / "survey.json").read_bytes()
    return [unseal(electorate.tallied(query)).tolist() for query in queries], row_reports(electorate), survey


@pytest.mark.parametrize("unit", ["record", "user"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_shards_of_texts_gives_the_same(tmp_path, kind, unit):
    data = texts(tmp_path / "data", kind)
    made = GRAMS(of_texts([row["text"] for row in rows(24)]))
    labels = np.arange(24) % 2
    search = search_on("cpu", False)
    queries = [Nearest(made, labels, 1, search=search), Nearest(made, labels, 3, search=search), LabelCounts(2)]
    alone = told(data, GRAMS, queries, tmp_path, unit, 1)
    assert sum(alone[0][2]) > 30
    for shards in (2, 3, 7):
        assert told(data, GRAMS, queries, tmp_path, unit, shards) == alone


def test_parts_are_of_about_the_same_size_and_there_are_as_many_as_are_asked_for(tmp_path):
    for kind in ("csv", "jsonl", "parquet"):
        parts = texts(tmp_path / kind, kind).parts(3)
        sizes = [sum(len(records.labels) + len(records.refused) for records in part(9)) for part in parts]
        assert len(sizes) == 3 and min(sizes) > 20, (kind, sizes)
        assert len(texts(tmp_path / f"{kind} again", kind).parts(3, 10**6)) == 1


@pytest.mark.parametrize("unit", ["record", "user"])
@pytest.mark.parametrize("kind", ["parquet", "one row group", "folder"])
def test_any_number_of_shards_of_images_gives_the_same(tmp_path, kind, unit):
    found = [{**row, "user": f"{at % 9}"} for at, row in enumerate(digits(80))]
    found[7]["image"] = found[55]["image"] = b"no image"
    if kind == "folder":
        for at, row in enumerate(found):
            path = tmp_path / "data" / row["label"] / f"{at}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"])
        (tmp_path / "data" / "notes.txt").write_text("passed over")
    else:
        (tmp_path / "data").mkdir()
        parquet(tmp_path / "data" / "a.parquet", found)
    data = Images(
        str(tmp_path / "data"),
        labels={"label": [str(i) for i in range(10)]},
        mode="L",
        unit_column="user" if kind != "folder" else None,
        on_error="skip",
    )
    unit = "record" if kind == "folder" else unit
    made = np.random.default_rng(0).normal(0, 9, (40, 64)).astype(np.float32)
    queries = [Nearest(made, np.arange(40) % 10, 2), LabelCounts(10)]
    alone = told(data, PIXELS, queries, tmp_path, unit, 1)
    for shards in (2, 7):
        assert told(data, PIXELS, queries, tmp_path, unit, shards) == alone


def test_images_of_several_sizes_are_refused_whichever_part_they_lie_in(tmp_path):
    for at in range(8):
        side = 8 if at < 4 else 9
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{at}.png").write_bytes(png(np.full((side, side), at, np.uint8)))
    for shards in (1, 2):
        with pytest.raises(UserError, match="images are of several sizes"):
            open_electorate(
                Images(str(tmp_path / "data"), mode="L"), PIXELS, {}, "record", tmp_path / "c", shards, here
            )


class Codes:
    """Columns of a table as codes."""

    def __call__(self, samples):
        return np.stack([samples.content["a"], samples.content["b"]], 1).astype(np.int32)

    def fingerprint(self):
        return ""


@pytest.mark.parametrize("unit", ["record", "user"])
def test_any_number_of_shards_of_table_rows_gives_the_same_cells(tmp_path, unit):
    from dpsyn.tables.schema import Schema

    whole = {"kind": "integer", "bounds": [0, 4], "outside": "clip"}
    schema = Schema({"columns": {"a": whole, "b": whole}, "labels": [], "unit": "user"})
    path = tmp_path / "a.csv"
    cells = np.random.default_rng(0).integers(0, 6, (200, 2)).tolist()
    lines = [f"{a},{b},{at % 17}" for at, (a, b) in enumerate(cells)]
    lines[150] = "x,1,4"
    path.write_text("\n".join(["a,b,user", *lines]))
    data = Tables(str(path), schema, on_error="skip")
    grid = tuple(Marginal((j,), (np.arange(5),)) for j in (0, 1))
    queries = [CellCounts("pairs", grid)]
    if unit == "record":
        queries.append(CellScores("scores", grid, (np.full(5, 9), np.full(5, 7))))
    alone = told(data, Codes(), queries, tmp_path, unit, 1)
    assert json.loads(alone[1]["adjusted.json"])
    for shards in (3, 7):
        assert told(data, Codes(), queries, tmp_path, unit, shards) == alone


CELL = some.text(some.sampled_from('ab",\n\r\u00e9 '), max_size=5)
PLAIN = some.text(some.sampled_from("ab\u00e9 '"), max_size=3).map(lambda text: text + '5"')


@settings(deadline=None, max_examples=300)
@given(
    some.lists(some.tuples(CELL | PLAIN, CELL), max_size=12),
    some.sampled_from(["\n", "\r\n", "\r"]),
    some.lists(some.integers(1, 200), min_size=1, max_size=6),
    some.booleans(),
    some.sampled_from(["", "\ufeff"]),
)
def test_a_csv_is_cut_where_a_row_ends(tmp_path_factory, cells, end, places, literal, mark):
    """Quotes inside of cells that do not begin with one are signs like others."""

    def written(cell):
        return (
            cell
            if literal and cell.endswith('5"') and cell[0] != '"' and "," not in cell
            else ('"' + cell.replace('"', '""') + '"' if set(cell) & set('",\n\r') else cell)
        )

    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes((mark + end.join(["a,b", *(",".join(map(written, pair)) for pair in cells)])).encode())
    size = path.stat().st_size
    cuts = csv_cuts(path, ",", "utf-8", sorted({place for place in places if place < size}))
    ends = [*(at for at, _ in cuts), None]
    spans = [Span(path, at, stop, lines) for (at, lines), stop in zip([(0, 0), *cuts], ends, strict=True)]
    parts = [list(csv_rows(span, ["a", "b"], ",", "x")) for span in spans]
    assert [row for part in parts for row in part] == list(csv_rows(Span(path), ["a", "b"], ",", "x"))


def test_a_csv_whose_quotes_do_not_match_is_refused_in_parts_too(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "one\n" * 50 + '"two\n' + "three\n" * 50)
    for shards in (1, 4):
        with pytest.raises(UserError, match="quotes match"):
            open_electorate(Texts(str(path)), GRAMS, {}, "record", tmp_path / "cache", shards, here)


def test_in_an_encoding_of_more_bytes_a_letter_nothing_is_cut(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "one\n" * 50, encoding="utf-16")
    source = Source(str(path), "csv", ("csv",), None, "train", encoding="utf-16")
    assert source.shares(4, 1) == [[Span(path)]]


def test_shards_are_read_by_processes_that_are_gone_afterwards(tmp_path):
    data = texts(tmp_path / "data", "csv")
    alone = told(data, GRAMS, [LabelCounts(2)], tmp_path, "user", 1)
    assert told(data, GRAMS, [LabelCounts(2)], tmp_path, "user", 3) == alone


class Killed:
    def __call__(self, samples):
        os.kill(os.getpid(), signal.SIGKILL)

    def fingerprint(self):
        return ""


class Failing(Killed):
    def __call__(self, samples):
        raise ValueError(str(samples.content[0]))


def test_a_process_that_dies_is_one_line_and_leaves_nothing(tmp_path):
    data = texts(tmp_path / "data", "csv")
    with pytest.raises(UserError, match=r"^runtime.shards=2: a process .* ended \(out of memory\?\)") as caught:
        open_electorate(data, Killed(), {}, "record", tmp_path / "cache", 2)
    assert caught.value.__suppress_context__ and not list((tmp_path / "cache").iterdir())


def test_an_error_in_a_process_comes_back_with_where_it_was_raised(tmp_path):
    data = texts(tmp_path / "data", "csv")
    with pytest.raises(ValueError) as caught:  # of whichever fails first
        open_electorate(data, Failing(), {}, "record", tmp_path / "cache", 2)
    assert (
        str(caught.value) and "in embed_part" in caught.value.__notes__[0] and not list((tmp_path / "cache").iterdir())
    )


def test_parts_that_cannot_be_sent_are_read_in_one_process_unless_several_are_asked_for(tmp_path, monkeypatch):
    data = texts(tmp_path / "data", "csv")
    monkeypatch.setattr(module, "PART_BYTES", 1)
    monkeypatch.setattr(module, "free_threads", lambda: 2)

    class Local(Killed):
        def __call__(self, samples):
            return GRAMS(samples)

    open_electorate(data, Local(), {}, "record", tmp_path / "cache")
    with pytest.raises(UserError, match=r"^runtime.shards=2: expected 1, as data or embedding"):
        open_electorate(data, Local(), {"other": 1}, "record", tmp_path / "cache", 2)


SCRIPT = """
import sys, time
from pathlib import Path
from dpsyn.privacy.electorate import open_electorate
from dpsyn.data.texts import Texts
sys.path.insert(0, {tests!r})
from test_shards import Sleeping
data = Texts({path!r}, labels={{"label": ["red", "green"]}}, on_error="skip")
open_electorate(data, Sleeping(), {{}}, "record", Path({cache!r}), 2)
"""


class Sleeping(Killed):
    def __call__(self, samples):
        time.sleep(600)


def test_processes_end_with_the_one_that_started_them(tmp_path):
    texts(tmp_path / "data", "csv")
    tests = os.path.dirname(__file__)
    names = {"tests": tests, "path": str(tmp_path / "data"), "cache": str(tmp_path / "cache")}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(tests), tests])}
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT.format(**names)], env=environment, start_new_session=True)

    def children():
        found = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "-s", str(parent.pid)], capture_output=True, text=True)
        return [line for line in found.stdout.splitlines() if "dpsyn.processes" in line]

    waited = time.monotonic() + 60
    while len(children()) < 2 and time.monotonic() < waited:
        time.sleep(0.2)
    assert len(children()) == 2
    time.sleep(1)
    parent.kill()
    parent.wait()
    while children() and time.monotonic() < waited:
        time.sleep(0.2)
    assert not children()


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        [],
        ["data.unit_column=user", "privacy.unit=user", "label_shares=noisy"],
        ["privacy.adjacency=replace", "label_shares=noisy"],
    ],
    ids=["records", "users and label shares", "replace-one"],
)
def test_a_run_on_any_number_of_shards_writes_the_same(tmp_path, monkeypatch, given):
    monkeypatch.setattr("dpsyn.runs.directory.secrets.token_hex", lambda n: "0" * 2 * n)
    path = parquet(tmp_path / "a.parquet", digits(150))
    seen = []
    for shards in (1, 3, 7):
        for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
            monkeypatch.setenv(name, str(tmp_path / f"{shards}"))
        insecure = ["privacy.noise=insecure_seeded", f"runtime.shards={shards}"]
        run(tmp_path / f"{shards}" / "run", *own_data(path, *given), *insecure)
        found = files(tmp_path / f"{shards}" / "run")
        seen.append({name: content for name, content in found.items() if "/votes/" in name or "synthetic" in name})
    assert len(seen[0]) > 2 and seen[0] == seen[1] == seen[2]


def test_data_that_are_sent_elsewhere_carry_no_digest_of_a_file_and_are_looked_at_there(tmp_path):
    data = texts(tmp_path / "data", "csv")
    known, digests = data.fingerprint(), data.digests()
    sent = pickle.dumps(data)
    assert not any(digest.encode() in sent for digest in digests)
    assert pickle.loads(sent).fingerprint() == known
    (file,) = (path for path in (tmp_path / "data").rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes() + b"\n")
    assert pickle.loads(sent).fingerprint() != known
