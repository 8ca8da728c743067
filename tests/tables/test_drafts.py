"""What is drafted runs: draft and reader agree on what a cell is, whatever program wrote the file."""

import gzip
import json
import shlex
from pathlib import Path

import pytest
import yaml

from dpsyn import compose
from dpsyn.data.tables import Tables
from dpsyn.errors import UserError
from dpsyn.tables import draft, schema
from dpsyn.tables.schema import Schema

N = 60
FILES = {
    "semicolons": ("age;ward", lambda i: f"{20 + i};{'ab'[i % 2]}", {"delimiter": ";"}),
    "tabs": ("age\tward", lambda i: f"{20 + i}\t{'ab'[i % 2]}", {"delimiter": "\t"}),
    "decimal commas": ("bill;g", lambda i: f"{i},{i % 10}5;a", {"delimiter": ";", "decimal": ","}),
    "thousands": ("bill;g", lambda i: f"{1 + i}.234,5{i % 10};a", {"delimiter": ";", "decimal": ",", "thousands": "."}),
    "thousands in quotes": ("bill,g", lambda i: f'"{1 + i},{100 + i}.25",a', {"thousands": ","}),
    "exponents": ("x,g", lambda i: f"{1 + i}e{i % 3},a", {}),
    "an index": (",age", lambda i: f"{i},{20 + i % 30}", {}),
    "an index of pandas": ("Unnamed: 0,age", lambda i: f"{i},{20 + i % 30}", {}),
    "hashes": ("h,age", lambda i: f"{2**62 + i * 7919},{20 + i % 30}", {}),
    "users": ("patient_id,age", lambda i: f"p{i % 25},{20 + i % 30}", {}),
    "keys": ("order_id,age", lambda i: f"{1000 + i},{20 + i % 30}", {}),
    "compact dates": ("day,g", lambda i: f"2024{1 + i % 12:02}{1 + i % 28:02},a", {}),
    "dotted dates": ("day,g", lambda i: f"{1 + i % 28:02}.{1 + i % 12:02}.2024,a", {}),
    "slashed dates": ("day,g", lambda i: f"{1 + i % 28:02}/{1 + i % 12:02}/2024,a", {}),
    "datetimes": ("at,g", lambda i: f"2024-01-{1 + i % 28:02} 10:{i % 60:02}:00,a", {}),
    "datetimes with a zone": ("at,g", lambda i: f"2024-01-{1 + i % 28:02}T10:{i % 60:02}:07+01:00,a", {}),
    "times of day": ("at,g", lambda i: f"{i % 24:02}:{i % 60:02},a", {}),
    "yes and no": ("ok,g", lambda i: f"{'yes' if i % 3 else 'no'},a", {}),
    "numbers and words": ("x,g", lambda i: f"{i if i % 7 else 'low'},a", {}),
    "decimal commas and thousands apart": (
        "n;x",
        lambda i: f"{1 + i}.000;{i},5",
        {"delimiter": ";", "decimal": ",", "thousands": "."},
    ),
    "points that are no numbers": (
        "v;x;y",
        lambda i: f"{i % 3}.{i % 2};{i},5;{i},7",
        {"delimiter": ";", "decimal": ","},
    ),
    "narrow spaces": (
        "x;g",
        lambda i: f"{1 + i}\u202f234,5;a",
        {"delimiter": ";", "decimal": ",", "thousands": "\u202f"},
    ),
    "apostrophes": ("x,g", lambda i: f"{1 + i}'234.5,a", {"thousands": "'"}),
    "a category of two spellings": ("g,x", lambda i: f"{['1', '1.0', 'a'][i % 3]},{i % 4}", {}),
    "two forms of Unicode": ("g,x", lambda i: ["caf\u00e9", "cafe\u0301", "tea"][i % 3] + f",{i % 4}", {}),
    "zero and one": ("ok,g", lambda i: f"{i % 2},a", {}),
    "zero and one of pandas": ("ok,g", lambda i: f"{['0.0', '1.0', ''][i % 3]},a", {}),
    "lists of codes": ("codes;x", lambda i: f"{i % 3},{i % 2},{i % 4};{i},5", {"delimiter": ";", "decimal": ","}),
    "short years": ("day;g", lambda i: f"{1 + i % 28:02}.{1 + i % 12:02}.24;a", {"delimiter": ";"}),
    "names of months": ("day,g", lambda i: f"{1 + i % 28:02}-Feb-2024,a", {}),
    "hours of twelve": ("at,g", lambda i: f"02/{1 + i % 28:02}/2024 {1 + i % 12}:{i % 60:02} PM,a", {}),
    "some with a zone": ("at,g", lambda i: f"2024-01-{1 + i % 28:02}T10:{i % 60:02}:07{'Z' if i % 2 else ''},a", {}),
    "missing ones": ("x,y", lambda i: f"{i if i % 5 else ''},{'NA' if i % 4 else 3.5}", {}),
}


def drafted(path: Path, **settings: str) -> tuple[dict, list]:  # type: ignore[type-arg]
    """The draft of a file, and what is refused when the file is read with it."""
    text = draft.draft(str(path))
    place = path.parent / "draft.yaml"
    place.write_text(text, encoding="utf-8")
    data = Tables(str(path), Schema(schema.read(str(place))), **settings)  # type: ignore[arg-type]
    data.check()
    return yaml.safe_load(text), [refusal for records in data.batches(500) for refusal in records.refused]


@pytest.mark.parametrize("name", FILES)
def test_what_is_drafted_reads_every_row_of_its_file(tmp_path: Path, name: str) -> None:
    head, row, settings = FILES[name]
    path = tmp_path / "sample.csv"
    path.write_text("\n".join([head, *map(row, range(N))]) + "\n")
    _, refused = drafted(path, **settings)
    assert refused == []
    text = draft.draft(str(path))
    said = next((line for line in text.splitlines() if line.startswith("# It was read as the settings")), "")
    told = shlex.split(said.replace("# It was read as the settings", "").replace("say: a run needs them too.", ""))
    assert {word.replace("\\t", "\t") for word in told} == {f"data.{key}={value}" for key, value in settings.items()}


@pytest.mark.parametrize(
    ("name", "column", "kind"),
    [
        ("decimal commas", "bill", "number"), ("thousands", "bill", "number"),
        ("thousands in quotes", "bill", "number"),
        ("compact dates", "day", "date"), ("dotted dates", "day", "date"), ("slashed dates", "day", "date"),
        ("datetimes", "at", "datetime"), ("datetimes with a zone", "at", "datetime"), ("times of day", "at", "time"),
        ("decimal commas and thousands apart", "n", "integer"), ("decimal commas and thousands apart", "x", "number"),
        ("points that are no numbers", "v", "category"), ("narrow spaces", "x", "number"),
        ("apostrophes", "x", "number"), ("a category of two spellings", "g", "category"),
        ("zero and one", "ok", "boolean"), ("zero and one of pandas", "ok", "boolean"),
        ("lists of codes", "codes", "category"), ("short years", "day", "date"), ("names of months", "day", "date"),
        ("hours of twelve", "at", "datetime"), ("some with a zone", "at", "datetime"),
        ("yes and no", "ok", "boolean"), ("semicolons", "age", "integer"),
    ],
)  # fmt: skip
def test_a_column_is_drafted_as_what_it_is(tmp_path: Path, name: str, column: str, kind: str) -> None:
    head, row, settings = FILES[name]
    path = tmp_path / "sample.csv"
    path.write_text("\n".join([head, *map(row, range(N))]) + "\n")
    assert drafted(path, **settings)[0]["columns"][column]["kind"] == kind


def test_codes_by_which_people_may_be_told_are_no_category(tmp_path: Path) -> None:
    path = tmp_path / "sample.csv"
    path.write_text(
        "Kunde,ref,at\n" + "".join(f"K{i % 50},R-{i % 150},0{1 + i % 9}.02.2024 10:00\n" for i in range(400))
    )
    said, refused = drafted(path)
    assert said["unit"] == "Kunde" and list(said["columns"]) == ["at"] and refused == []
    assert said["columns"]["at"]["format"] == "%d.%m.%Y %H:%M"
    assert '# "ref": more than a hundred codes that differ by a number' in draft.draft(str(path))


def test_users_are_named_and_keys_and_hashes_are_left_out(tmp_path: Path) -> None:
    for name, unit in (("users", "patient_id"), ("keys", None), ("hashes", None), ("an index of pandas", None)):
        head, row, _ = FILES[name]
        path = tmp_path / "sample.csv"
        path.write_text("\n".join([head, *map(row, range(N))]) + "\n")
        said, _ = drafted(path)
        assert said["unit"] == unit and list(said["columns"]) == ["age"]
        assert said["extra"] == ("refuse" if unit else "ignore")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_encodings_are_told_from_the_file_and_read_where_they_are_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "sample.csv"
    path.write_bytes("age,ward\n{}".format("".join(f"{20 + i},g\u00e9riatrie\n" for i in range(N))).encode(encoding))
    settings = {} if encoding == "utf-8-sig" else {"encoding": encoding}
    said, refused = drafted(path, **settings)
    assert refused == [] and said["columns"]["ward"]["values"] == ["g\u00e9riatrie"]
    if encoding == "cp1252":
        assert "data.encoding=cp1252" in drafted(path)[1][0].rule


def test_packed_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sample.csv.gz"
    path.write_bytes(gzip.compress(("age,ward\n" + "20,a\n31,b\n" * N).encode()))
    assert drafted(path)[1] == []


def test_an_order_that_holds_in_all_rows_is_proposed_and_not_declared(tmp_path: Path) -> None:
    path = tmp_path / "sample.csv"
    rows = (f"2024-0{1 + i % 9}-01,2024-0{1 + i % 9}-{2 + i % 20:02}" for i in range(N))
    path.write_text("\n".join(["admitted,left", *rows]) + "\n")
    said, _ = drafted(path)
    assert said["constraints"] == []
    assert '# constraints: ["admitted <= left"]' in draft.draft(str(path))


def test_a_draft_is_utf8_whatever_the_terminal_is(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    path = tmp_path / "sample.csv"
    path.write_text("ward\n" + "g\u00e9riatrie\nsurgery\n" * N, encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "dpsyn", "schema", str(path)]
    ended = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert "g\u00e9riatrie" in ended.stdout.decode("utf-8")


def test_settings_that_a_draft_names_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    for delimiter, decimal, thousands in (("\t", ",", "."), (";", ".", "'"), ("|", ",", " "), (",", ".", "\u00a0")):
        dialect = draft.Dialect(delimiter, "cp1252", decimal, thousands)
        overrides = compose.readable(shlex.split(dialect.settings), False)
        data = compose.settings(["data=tables", "schedule=cells", *overrides])["data"]
        read = (data["delimiter"] or ",", data["encoding"], data["decimal"], data["thousands"])
        assert read == (delimiter, "cp1252", decimal, thousands)


def test_what_a_draft_leaves_out_and_what_it_doubts_is_said(tmp_path: Path) -> None:
    path = tmp_path / "sample.csv"
    path.write_text(",at,price\n" + "".join(f"{i},10:00:0{i % 9}.5,1.{i:03}\n" for i in range(N)) + "1,2,3,4\n")
    text = draft.draft(str(path))
    assert f"# Not in the draft, and refused by a run: 1 of {N + 1} lines: (line) more or fewer cells" in text
    assert '# "": a column without a name' in text and "parts of a second are cut" in text
    assert "# \"price\": 1.000 is read with '.' before decimals; if not so, say data.decimal=, data.thousands=." in text


def test_a_byte_of_another_encoding_late_in_a_file_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "sample.csv"
    path.write_bytes(b"g,x\n" + b"a,1\n" * 40_000 + b"caf\xe9,2\n")
    said, refused = drafted(path, encoding="cp1252")
    assert refused == [] and said["columns"]["g"]["values"] == ["a", "caf\u00e9"]


def test_a_column_of_texts_is_left_out_with_the_line_that_would_declare_it(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("age,said\n" + "".join(f"{20 + i % 9},it was the day number {i} of all\n" for i in range(N)))
    lines = draft.draft(str(path))
    assert "said" not in Schema(yaml.safe_load(lines)).fields
    (line,) = [each for each in lines.splitlines() if each.startswith('  # "said": nearly every cell differs')]
    column = yaml.safe_load(line[line.index("{") : line.index("}") + 1])
    assert column == {"kind": "text", "words": 20} and "schedule=rows_then_texts" in line
    columns = {**yaml.safe_load(lines)["columns"], "said": column}
    assert list(Schema({"columns": columns}).texts) == ["said"]


def test_a_name_that_ends_in_id_is_no_key_unless_it_says_so(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("paid,customerId\n" + "".join(f"{i},c{i}\n" for i in range(N)))
    lines = draft.draft(str(path))
    assert list(Schema(yaml.safe_load(lines)).columns) == ["paid"]
    assert '# "customerId": every row has its own: a key' in lines


def test_jsonl_is_drafted_too_with_its_texts_where_they_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "sample.jsonl"
    rows = [{"age": i % 40, "ok": i % 2 == 0, "note": f"a cold {i} and a long cough", "tags": [i]} for i in range(60)]
    path.write_text("".join(json.dumps({**row, "late": 1.5} if at else row) + "\n" for at, row in enumerate(rows)))
    said, refused = drafted(path)
    assert refused == [] and said["extra"] == "ignore"
    assert {name: column["kind"] for name, column in said["columns"].items()} == {
        "age": "integer", "ok": "boolean", "late": "number"
    }  # fmt: skip
    text = draft.draft(str(path), texts=draft.Texts(None, "a doctor's note"))
    assert yaml.safe_load(text)["columns"]["note"]["about"] == "a doctor's note"
    assert '# Left out, as they hold lists or objects: "tags".' in text


@pytest.mark.parametrize("given", [{"encoding": "klingon"}, {"delimiter": ";;"}])
def test_what_is_no_way_of_writing_a_csv_is_one_line(given, tmp_path):
    (tmp_path / "a.csv").write_text("age,ward\n1,a\n")
    ((name, value),) = given.items()
    with pytest.raises(UserError, match=f"^data.{name}='?{value}'?: expected"):
        draft.draft(str(tmp_path / "a.csv"), **given)
