"""What every reader promises: a line is read by itself, cells are what is written, and no message quotes one."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from dpsyn.errors import UserError
from dpsyn.reading.labels import labeller
from dpsyn.reading.lines import csv_names, csv_rows, encoding_of, jsonl_rows
from dpsyn.reading.rows import Broken, Span, excerpt, guarded, is_utf8, parquet_rows, plain_number
from dpsyn.reading.sources import Source, hub_rows, hub_stream

CANARY = "CANARY-4711"
TABLES = ("csv", "jsonl", "parquet")


def source(path: Any, **changes: Any) -> Source:
    return Source(
        **{"path": str(path), "builder": None, "builders": TABLES, "subset": None, "split": "train", **changes}
    )


def file(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, *columns: str, **changes: Any) -> list[Any]:
    """Rows as tuples of cells; what is broken as (column, rule)."""
    tables = source(path, **changes).tables(lambda there: list(columns))
    rows = [row for table in tables for _, row in guarded(table.rows, str(path))]
    return [(row.column, row.rule) if isinstance(row, Broken) else tuple(row.values()) for row in rows]


def everything_said(error: BaseException) -> str:
    return str(error) + repr(error.args) + repr(error.__cause__) + repr(error.__context__)


# csv


def test_cells_of_a_csv_are_strings_as_they_are_written(tmp_path: Path) -> None:
    path = file(tmp_path / "a.csv", 'a,b,c\n3,,007\n3.0,1e5, x \nTrue,nan,"q ""q"", q\n2nd line"\n')
    assert read(path, "a", "b", "c") == [
        ("3", "", "007"),
        ("3.0", "1e5", " x "),
        ("True", "nan", 'q "q", q\n2nd line'),
    ]
    assert read(path, "c", "a")[0] == ("007", "3")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_a_byte_order_mark_change_nothing(end: str, mark: bytes, tmp_path: Path) -> None:
    lines = ["é,b", "1,2", "", "3,4", ""]
    assert read(file(tmp_path / "a.csv", mark + end.join(lines).encode()), "é", "b") == [("1", "2"), ("3", "4")]


def test_a_line_of_other_cells_is_one_broken_row(tmp_path: Path) -> None:
    path = file(tmp_path / "a.csv", "a,b\n1,2\n1\n1,2,3\n3,4")
    wrong = ("(line)", "more or fewer cells than the first line has names")
    assert read(path, "a", "b") == [("1", "2"), wrong, wrong, ("3", "4")]


def test_bytes_that_are_no_utf8_are_told_from_all_text(tmp_path: Path) -> None:
    path = file(tmp_path / "a.csv", b"a,b\n\xff\xfe,1\n\xed\xa0\x80,2\n" + "né😀,3\n".encode())
    assert [(is_utf8(a), b) for a, b in read(path, "a", "b")] == [(False, "1"), (False, "2"), (True, "3")]
    json.dumps(excerpt(read(path, "a")[0][0]), ensure_ascii=False).encode("utf-8")


def test_a_tsv_is_parted_by_tabs_and_another_sign_can_be_named(tmp_path: Path) -> None:
    assert read(file(tmp_path / "a.tsv", "a\tb\n1,5\t2\n"), "a", "b") == [("1,5", "2")]
    assert read(file(tmp_path / "a.csv", "a;b\n1,5;2\n"), "b", "a", delimiter=";") == [("2", "1,5")]


def test_a_cell_may_be_of_any_length(tmp_path: Path) -> None:
    assert len(read(file(tmp_path / "a.csv", f"a\n{'x' * 300_000}\n"), "a")[0][0]) == 300_000


def test_an_index_without_a_name_is_one_more_column(tmp_path: Path) -> None:
    assert read(file(tmp_path / "a.csv", ",a\n0,x\n1,y\n"), "a") == [("x",), ("y",)]


@pytest.mark.parametrize("tail", [f'"{CANARY},2\n3,4\n', f'"{CANARY}" x,2\n3,4\n'])
def test_quotes_that_do_not_match_end_the_reading_with_one_line(tail: str, tmp_path: Path) -> None:
    path = file(tmp_path / "a.csv", "a,b\n1,2\n" + tail)
    rows = csv_rows(Span(path), ["a"], ",", "a.csv")
    assert next(rows) == (2, {"a": "1"})
    with pytest.raises(UserError, match=r"^data\.path=a\.csv: expected csv whose quotes match [^\n]*$") as caught:
        list(rows)
    assert CANARY not in everything_said(caught.value) and caught.value.__context__ is None


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "names the columns"),
        (b"\n1,2\n", "names the columns"),
        (f'"{CANARY}\n1,2\n'.encode(), "names the columns"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-8"),
        (f"{CANARY},{CANARY}\n1,2\n".encode(), "a name of its own"),
    ],
)
def test_a_csv_needs_a_first_line_of_names(content: bytes, expected: str, tmp_path: Path) -> None:
    path = file(tmp_path / "a.csv", content)
    with pytest.raises(UserError, match=rf"^data\.path=[^\n]*: expected [^\n]*{expected}[^\n]*$") as caught:
        source(path).columns(path)
    assert CANARY not in everything_said(caught.value)


def test_the_first_line_of_a_csv_is_never_shown_since_it_may_be_a_row(tmp_path: Path) -> None:
    path = file(tmp_path / "a.csv", f"{CANARY},5\nfine,4\n")
    with pytest.raises(UserError, match=r"^data\.x=text: expected one of the columns that the first line") as caught:
        source(path).columns(path).check({"data.x": "text"})
    assert CANARY not in everything_said(caught.value)


# jsonl


def test_numbers_of_jsonl_keep_the_text_they_are_written_as(tmp_path: Path) -> None:
    lines = [
        '{"a": 3, "b": "3"}', '{"a": 3.0, "b": 1e5}', '{"a": 12345678901234567890.10, "b": -0}',
        '{"a": true, "b": null}', '{"b": NaN}', "", '  {"a": "\\ud83d\\ude00", "b": "\\u00e9\\n"}  ',
    ]  # fmt: skip
    path = file(tmp_path / "a.jsonl", "\n".join(lines))
    assert read(path, "a", "b") == [
        ("3", "3"), ("3.0", "1e5"), ("12345678901234567890.10", "-0"), ("true", None), (None, "NaN"), ("😀", "é\n"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line, rule",
    [
        ("[1]", "not a JSON object"),
        ('"a"', "not a JSON object"),
        ('{"a": 1', "not a JSON object"),
        ("a,b", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('{"a": [1]}', "a list or an object where a single value belongs"),
        ('{"a": {"b": 1}}', "a list or an object where a single value belongs"),
    ],
)
def test_a_line_that_is_no_row_is_broken_alone(line: str, rule: str, tmp_path: Path) -> None:
    path = file(tmp_path / "a.jsonl", f'{{"a": 1}}\n{line}\n{{"a": 2, "other": [1]}}\n')
    first, wrong, last = read(path, "a")
    assert (first, wrong[1], last) == (("1",), rule, ("2",))


def test_bytes_and_escapes_that_are_no_utf8_are_told_from_text(tmp_path: Path) -> None:
    path = file(tmp_path / "a.jsonl", b'{"a": "\xff"}\n{"a": "\\ud800"}\n{"a": "x", "b": "\xff"}\n')
    assert [is_utf8(a) for (a,) in read(path, "a")] == [False, False, True]


# All formats


def test_the_same_rows_are_read_from_every_format(tmp_path: Path) -> None:
    texts, stars = ["plain", 'quoted, "x"\n', "né 😀", ""], ["5", "5.0", "1", "2"]
    lines = "".join(json.dumps({"t": t, "s": s}) + "\n" for t, s in zip(texts, stars, strict=True))
    quoted = "".join('"' + t.replace('"', '""') + f'",{s}\n' for t, s in zip(texts, stars, strict=True))
    pq.write_table(pa.table({"t": texts, "s": stars}), tmp_path / "a.parquet")
    every = [
        read(file(tmp_path / "a.csv", "t,s\n" + quoted), "t", "s"),
        read(file(tmp_path / "a.jsonl", lines), "t", "s"),
        read(tmp_path / "a.parquet", "t", "s"),
    ]
    assert every == [list(zip(texts, stars, strict=True))] * 3


CELL = some.text(max_size=8) | some.sampled_from(['"', ",", "\n", "\r\n", "\0", " ", "5", "5.0", "null"])
JUNK = [
    b"x\n",
    b"x,y,z\n",
    b"\xff,5\n",
    b"\n",
    b",\n",
    b'"a\nb",5\n',
    b"[1]\n",
    b"{}\n",
    b'{"t": [1], "s": "1"}\n',
    b"7\n",
]


@settings(max_examples=40, deadline=None, database=None)
@given(some.lists(some.tuples(CELL, CELL), max_size=6), some.integers(0, 6), some.sampled_from(JUNK), some.booleans())
def test_a_line_that_is_put_in_anywhere_leaves_the_others_as_they_were(
    tmp_path_factory: Any, rows: list[tuple[str, str]], place: int, line: bytes, is_csv: bool
) -> None:
    def written(cells: tuple[str, str]) -> bytes:
        if is_csv:
            return (",".join('"' + cell.replace('"', '""') + '"' for cell in cells) + "\n").encode("utf-8", "replace")
        return json.dumps(dict(zip("ts", cells, strict=True))).encode() + b"\n"

    def found(lines: list[bytes]) -> list[Any]:
        path.write_bytes((b"t,s\n" if is_csv else b"") + b"".join(lines))
        rows = csv_rows(Span(path), ["t", "s"], ",", "x") if is_csv else jsonl_rows(Span(path), ["t", "s"])
        return [row for _, row in rows]

    path = tmp_path_factory.getbasetemp() / "property"
    lines, place = [written(row) for row in rows], min(place, len(rows))
    before, after = found(lines), found([*lines[:place], line, *lines[place:]])
    assert after[:place] == before[:place]
    assert after[len(after) - len(before) + place :] == before[place:]
    assert 0 <= len(after) - len(before) <= line.count(b"\n")


def test_parquet_cells_are_text_whatever_their_type_and_one_missing_changes_no_other(tmp_path: Path) -> None:
    table = {"n": pa.array([5, None, 7]), "x": [5.0, float("nan"), 0.5], "b": [True, None, False]}
    table |= {"d": pa.array(["u", "v", "u"]).dictionary_encode(), "raw": [b"\xff", b"ok", None]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    rows = [row for _, row in parquet_rows(Span(tmp_path / "a.parquet"), list(table))]
    assert [tuple(row.values()) for row in rows] == [
        ("5", "5.0", "True", "u", "\udcff"), (None, None, None, "v", "ok"), ("7", "0.5", "False", "u", None),
    ]  # fmt: skip


def test_a_parquet_file_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["x"]), pa.array(["y"])], ["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"^data\.path=[^\n]*: expected parquet files that name every column once\.$"):
        source(tmp_path).columns(tmp_path / "a.parquet")


# Places


def test_the_kind_of_a_file_is_known_by_its_name_and_that_of_a_folder_by_those_in_it(tmp_path: Path) -> None:
    for name in (
        "one/a.csv",
        "one/b.tsv",
        "one/notes.md",
        "two/a.JSONL",
        "three/a.parquet",
        "mixed/a.csv",
        "mixed/b.jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        file(tmp_path / name, "a\n1\n")
    kinds = {name: source(tmp_path / name).kind() for name in ("one", "two", "three", "one/a.csv", "two/*.jsonl")}
    assert kinds == {"one": "csv", "two": "jsonl", "three": "parquet", "one/a.csv": "csv", "two/*.jsonl": "jsonl"}
    assert [path.name for path in source(tmp_path / "one").files()] == ["a.csv", "b.tsv"]
    for name in ("mixed", "one/notes.md", "*"):
        with pytest.raises(UserError, match=r"^data\.path=[^\n]*: expected files of one kind, [^\n]*data\.builder=\.$"):
            source(tmp_path / name).kind()
    assert source(tmp_path / "mixed", builder="csv").kind() == "csv"
    assert read(tmp_path / "one", "a") == [("1",), ("1",)]


@pytest.mark.parametrize("path", ["nowhere.csv", "a/b.jsonl", "./x", "archive.zip", None, ""])
def test_what_is_no_file_and_no_name_on_the_hub_is_one_line(path: str | None) -> None:
    with pytest.raises(UserError, match=r"^data\.path=[^\n]*: expected [^\n]*(file|folder)[^\n]*$"):
        Source(path, None, TABLES, None, "train").kind()


@pytest.mark.parametrize(
    "key, wrong",
    [("builder", "xml"), ("split", "train[:5]"), ("delimiter", ", "), ("delimiter", '"'), ("delimiter", 7)],
)
def test_a_wrong_setting_of_a_place_is_one_line(key: str, wrong: Any) -> None:
    with pytest.raises(UserError, match=rf"^data\.{key}=[^\n]*: expected [^\n]*$"):
        source("x", **{key: wrong}).check_settings()


# Labels


def test_a_value_that_stands_for_a_declared_one_is_that_one() -> None:
    labels = ({"stars": "1"}, {"stars": "5"})
    label_of = labeller(labels, {"stars": "score"}, {"stars": {"5.0": "5", "top": "5"}})
    assert [label_of({"score": value}) for value in ("5", "5.0", "top", "1")] == [1, 1, 1, 0]
    assert [label_of({"score": value}) for value in ("1.0", " 1", "1 ", "5.00")] == [0, 0, 0, 1]
    for value in ("01", "1.5", "", None):
        assert label_of({"score": value}) == Broken("score", "not among the declared values", value or "")


# The hub


def test_rows_on_the_hub_are_read_by_their_features(tmp_path: Path) -> None:
    """The network is not here: a local data set goes through the same calls of `datasets`."""
    pytest.importorskip("datasets")
    features = {
        "label": {"names": ["bad", "good"], "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    table = pa.table({"text": ["x", None, "né"], "label": [1, 0, None]})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
        tmp_path / "train.parquet",
    )
    with hub_stream(source(tmp_path), "texts", None) as stream:
        rows = [tuple(row.values()) for _, row in hub_rows(stream, ["text", "label"])]
    assert rows == [("x", "good"), (None, "bad"), ("né", None)]
    with (
        pytest.raises(UserError, match=r"^data\.path=[^\n]*: expected texts on the hub with data.subset=null, [^\n]*$"),
        hub_stream(source(tmp_path, split="absent"), "texts", None),
    ):
        pass


def test_rows_come_with_the_line_on_which_they_begin(tmp_path: Path) -> None:
    path = file(tmp_path / "a.csv", 'a,b\n1,2\n\n"x\ny",3\n4,5,6\n7,8\n')
    assert [line for line, _ in csv_rows(Span(path), ["a"], ",", "a.csv")] == [2, 4, 6, 7]
    path = file(tmp_path / "a.jsonl", '{"a": 1}\n\n[]\n{"a": 2}\n')
    assert [line for line, _ in jsonl_rows(Span(path), ["a"])] == [1, 3, 4]
    pq.write_table(pa.table({"a": range(1000)}), tmp_path / "a.parquet")
    assert [line for line, _ in parquet_rows(Span(tmp_path / "a.parquet"), ["a"])] == list(range(1, 1001))


@pytest.mark.parametrize(
    ("written", "decimal", "thousands", "read"),
    [
        ("1.000", ",", None, "?1.000"), ("1.5", ",", ".", "?1.5"), ("1e3", ",", None, "1e3"), (".5", ",", None, "?.5"),
        ("1.000", ",", ".", "1000"), ("1.000.000", ",", None, "1.000.000"), ("31.01.2024", ",", None, "31.01.2024"),
        ("1,000", ".", None, "1,000"), ("1,5", ".", ",", "1,5"), ("1\u202f000,5", ",", "\u202f", "1000.5"),
        ("-1.5e3", ",", None, "?-1.5e3"), ("n.a.", ",", None, "n.a."), (".", ",", None, "."),
    ],
)  # fmt: skip
def test_a_point_is_never_read_as_a_decimal_one_beside_decimal_commas(
    written: str, decimal: str, thousands: str | None, read: str
) -> None:
    assert plain_number(written, decimal, thousands) == read


@pytest.mark.parametrize(
    ("encoding", "looks"),
    [
        ("utf-8", "utf-8"), ("utf-8-sig", "utf-8"), ("cp1252", "cp1252"), ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"), ("utf-16-be", "utf-16-be"), ("utf-32", "utf-32"), ("utf-32-le", "utf-32-le"),
        ("utf-32-be", "utf-32-be"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("late", [False, True])
def test_the_encoding_of_a_file_is_told_wherever_its_first_accent_stands(
    encoding: str, looks: str, late: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(("a,b\n" + "x,1\n" * (50_000 if late else 1) + "caf\u00e9,2\n").encode(encoding))
    assert encoding_of(path) == looks
    rows = [row for _, row in csv_rows(Span(path), ["a"], ",", "a.csv", None, looks)]
    assert rows[-1] == {"a": "caf\u00e9"} and rows[0] == {"a": "x"}
    if looks not in ("utf-8", "cp1252"):
        with pytest.raises(UserError, match=f"say data.encoding={looks},"):
            csv_names(path, ",", "a.csv")


def test_bytes_that_no_windows_file_has_are_latin_1(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a\n\xe9\x81\n")
    assert encoding_of(tmp_path / "a.csv") == "latin-1"


def test_jsonl_in_utf_16_is_refused_by_that_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"text": "x"}\n'.encode("utf-16"))
    with pytest.raises(UserError, match=r"expected jsonl in UTF-8\. It looks like UTF-16"):
        read(tmp_path / "a.jsonl", "text")
