"""`dpsyn init`: three first jobs from scratch, of three commands and no failed try each."""

import json
import re
import shlex

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from harness import digits

from dpsyn import cli
from dpsyn.starting import columns_of


def stays(path, n, seed):
    """Hospital stays as a European program writes them: `;`, decimal commas, days first, cp1252."""
    rng = np.random.default_rng(seed)
    lines = ["Alter;Station;Aufnahme;Betrag"]
    for _ in range(n):
        day = f"{rng.integers(1, 29):02d}.{rng.integers(1, 13):02d}.{rng.integers(2020, 2024)}"
        ward = rng.choice(["Chirurgie", "Innere", "Pädiatrie"])
        lines.append(f"{rng.integers(0, 99)};{ward};{day};{rng.integers(100, 9000)},{rng.integers(0, 99):02d}")
    path.write_bytes(("\n".join(lines) + "\n").encode("cp1252"))


def photographs(folder, first, last):
    for row, name in zip(digits(last)[first:], ["cat", "dog"] * last, strict=False):
        place = folder / name / f"IMG_{row['user']}_{len(list(folder.rglob('*')))}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(row["image"])


SENTENCE = "the order came late and nobody answered but the jacket fits well so thanks für alles"
WORDS = SENTENCE.split(" ")


def comments(path, n, seed, encoding="utf-8", sign=","):
    rng = np.random.default_rng(seed)
    lines = [sign.join(("id", "comment", "topic"))]
    for at in range(n):
        text = '"' + " ".join(rng.choice(WORDS, rng.integers(5, 15))) + '\r\nthe end"'
        lines.append(sign.join((str(at), text, rng.choice(["delivery", "refund"]))))
    path.write_bytes(("\r\n".join(lines) + "\r\n").encode(encoding))


def commands(capsys):
    out = capsys.readouterr().out
    return [shlex.split(line)[1:] for line in re.findall(r"^  (dpsyn .*)$", out, re.MULTILINE)]


JOBS = {
    "a table": (["init", "stays.csv", "--records", "400", "--sample", "public.csv",
                 "--labels", "Station"], ["schedule.size=60", "privacy.epsilon=8"]),
    "photographs": (["init", "photos", "--records", "100", "--pool", "public"], ["schedule.size=20"]),
    "texts": (["init", "export.csv", "--text", "comment", "--records", "300", "--pool", "public.jsonl", "--encoding",
               "cp1252", "--labels", "topic=delivery,refund"], ["schedule.size=40", "api.neighbours=20",
              "schedule.degree=[20,10,5,1]"]),
    "rows with texts": (["init", "export.csv", "--sample", "public.csv", "--pool", "public.csv", "--records",
                         "300"], ["schedule.size=40", "schedule.candidates=60"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "private", "public", "expected"),
    [
        (
            "comment",
            "cp1252",
            "cp1252",
            "cp1252",
        ),  # only rows would tell: taken to be as the public ones
        ("comment", "utf-16", "utf-8", "utf-16"),  # Excel's
        ("comment", "utf-8-sig", "utf-8", None),
        ("Rückmeldung", "cp1252", "utf-8", "cp1252"),
        ("Rückmeldung", "utf-8", "cp1252", None),
    ],
)
def test_the_encoding_of_a_file_is_told_by_the_names_of_its_columns_or_by_the_public_one(
    name, private, public, expected, in_tmp
):
    for path, encoding in (("mine.csv", private), ("public.csv", public)):
        rows = "".join(f'{i};"schön, Nr. {i}\r\nGrüße"\r\n' for i in range(120))
        (in_tmp / path).write_bytes(f"id;{name}\r\n{rows}".encode(encoding))
    assert cli.main(["init", "mine.csv", "--text", name, "--records", "120", "--pool", "public.csv"]) == 0
    written = yaml.safe_load((in_tmp / "mine/experiment/mine.yaml").read_text())
    assert written["data"].get("encoding") == expected and written["data"]["delimiter"] == ";"
    assert cli.main(["check", "--config-dir", "mine", "+experiment=mine"]) == 0


@pytest.mark.parametrize("name", JOBS)
def test_a_first_job_takes_three_commands(name, in_tmp, capsys):
    if name == "a table":
        stays(in_tmp / "stays.csv", 400, 0)
        stays(in_tmp / "public.csv", 300, 1)
    elif name == "rows with texts":
        comments(in_tmp / "export.csv", 300, 0, "cp1252", ";")
        comments(in_tmp / "public.csv", 120, 1, "cp1252", ";")
    elif name == "photographs":
        photographs(in_tmp / "photos", 0, 100)
        photographs(in_tmp / "public", 100, 240)
    else:
        comments(in_tmp / "export.csv", 300, 0, "cp1252", ";")
        rng = np.random.default_rng(3)
        rows = [f'{{"text": "{" ".join(rng.choice(WORDS, rng.integers(5, 15)))}"}}\n' for _ in range(120)]
        (in_tmp / "public.jsonl").write_text("".join(rows))
    given, smaller = JOBS[name]
    capsys.readouterr()
    assert cli.main(given) == 0, capsys.readouterr().err
    plan, check, run = commands(capsys)
    assert [each[0] for each in (plan, check, run)] == ["plan", "check", "run"]
    assert cli.main(plan) == 0, capsys.readouterr().err
    assert "still needed" not in capsys.readouterr().out
    assert cli.main(check) == 0, capsys.readouterr()
    assert "a run would begin" in capsys.readouterr().out
    assert cli.main([*run, *smaller]) == 0, capsys.readouterr().err
    if name != "a table":  # the stage that is named is the one at work
        lines = capsys.readouterr().out.splitlines()
        size = {"rows with texts": 120, "texts": 120, "photographs": 140}[name]
        embedding = lines.index(f"embedding the pool: {size} rows ...")
        assert lines[embedding - 1] == "reading the pool ..." and lines[embedding + 1].startswith("generating: ")
    said = yaml.safe_load(next((in_tmp / "mine/experiment").glob("*.yaml")).read_text())
    assert said["data"]["records"] == int(given[given.index("--records") + 1])
    if name not in ("a table", "photographs"):
        assert said["schedule"]["size"] == 40  # a third of the pool
    if name == "rows with texts":
        rows = pq.read_table(in_tmp / "runs/export/release/synthetic.parquet").to_pylist()
        assert all(
            row["topic"] in ("delivery", "refund") and set(row["comment"].split()) <= {*WORDS, "the", "end"}
            for row in rows
        )


@pytest.mark.parametrize("given", [["--model", "gpt-4o-mini"], ["--local", "models/chat"], ["--local", "package:llm"]])
def test_texts_by_a_model_can_be_planned(given, in_tmp, capsys):
    comments(in_tmp / "mails.csv", 20, 0)
    described = ["--description", "mails: 'cross' ones"]
    assert cli.main(["init", "mails.csv", "--text", "comment", "--records", "400", *given, *described]) == 0
    plan, *_ = commands(capsys)
    assert cli.main(plan) == 0, capsys.readouterr().err
    written = (in_tmp / "mine/experiment/mails.yaml").read_text()
    assert f'"{given[1]}"' in written and "API rows: at most" in capsys.readouterr().out
    assert (in_tmp / "mine/prompts/mails.yaml").exists() == ("--local" in given)


@pytest.mark.parametrize("given", [[], ["--model", "gpt-4o-mini"], ["--local", "package:llm"]])
def test_rows_get_texts_from_a_model_and_none_where_none_is_named(given, in_tmp, capsys):
    comments(in_tmp / "mails.csv", 200, 0)
    comments(in_tmp / "public.csv", 100, 1)
    described = ["--description", "a cross mail"] if given else []
    assert cli.main(["init", "mails.csv", "--sample", "public.csv", "--records", "200", *given, *described]) == 0
    said = capsys.readouterr().out
    assert ("comment is a text, and left out; for one in each row give --pool" in said) == (not given)
    written = yaml.safe_load((in_tmp / "mine/schemas/mails.yaml").read_text())["columns"]
    assert list(written) == (["comment", "topic"] if given else ["topic"])
    if given:
        assert written["comment"] == {"kind": "text", "words": 20, "about": "a cross mail", "language": None}
        plan = next(shlex.split(line)[1:] for line in said.splitlines() if line.startswith("  dpsyn plan"))
        assert cli.main(plan) == 0, capsys.readouterr().err
        assert (in_tmp / "mine/prompts/mails.yaml").exists() == ("--local" in given)
        assert "API rows: at most 601" in capsys.readouterr().out


def test_several_texts_come_from_public_rows_which_are_read_as_the_sample_is(in_tmp, capsys):
    for name in ("letters", "public"):
        rows = [f"{at},{at % 10}5;a letter of day {at};dear sir the bed {at} was cold" for at in range(60)]
        (in_tmp / f"{name}.csv").write_bytes(("bill;title;body\n" + "\n".join(rows)).encode("cp1252"))
    given = ["init", "letters.csv", "--sample", "public.csv", "--records", "60"]
    assert cli.main([*given, "--model", "m", "--description", "a letter"]) == 2
    assert "--text=(not given): expected title or body. For all of them give --pool" in capsys.readouterr().err
    assert cli.main([*given, "--pool", "public.csv"]) == 0
    plan, *_ = commands(capsys)
    assert cli.main(plan) == 0, capsys.readouterr().err
    out = " ".join(capsys.readouterr().out.split())
    assert "sums of title" in out and "sums of body" in out
    assert "API rows: at most 20,001" in out  # a row of the pool has both texts
    said = yaml.safe_load((in_tmp / "mine/experiment/letters.yaml").read_text())
    assert {"override /api": "pool_rows"} in said["defaults"]
    assert said["api"]["data"] == {"delimiter": ";", "decimal": ","}


def test_no_private_row_is_looked_at(in_tmp, capsys):
    stays(in_tmp / "public.csv", 300, 1)
    head = (in_tmp / "public.csv").read_bytes().splitlines()[0]
    written = []
    for number, rows in enumerate((b"1;a;b;c", b"999;secret;secret;secret\n\xff\xfe;;;")):
        (in_tmp / "stays.csv").write_bytes(head + b"\n" + rows)
        to = f"mine{number}"
        given = ["init", "stays.csv", "--records", "400", "--sample", "public.csv", "--to", to]
        assert cli.main(given) == 0, capsys.readouterr().err
        written.append([path.read_text() for path in sorted((in_tmp / to).rglob("*.yaml"))])
    assert written[0] == written[1] and "secret" not in str(written)


def test_a_file_without_a_line_of_names_and_names_of_folders_are_private(in_tmp, capsys):
    (in_tmp / "notes.csv").write_text("Alice Smith has HIV\nBob Jones is well\n")
    (in_tmp / "more.csv").write_text("Alice Smith;HIV\nBob Jones;well\n")
    comments(in_tmp / "public.csv", 20, 0)
    for name in ("notes.csv", "more.csv"):
        for text in ([], ["--text", "Alise Smith"]):
            assert cli.main(["init", name, "--kind", "texts", "--records", "9", "--pool", "public.csv", *text]) == 2
            said = "".join(capsys.readouterr())
            assert "--text" in said and "HIV" not in said and "Alice" not in said
    photographs(in_tmp / "photos", 0, 10)
    (in_tmp / "photos/cat").rename(in_tmp / "photos/patient_anna")
    photographs(in_tmp / "public", 10, 20)
    assert cli.main(["init", "photos", "--records", "10", "--pool", "public", "--name", "scans"]) == 0
    assert "a release will publish the name scans" in capsys.readouterr().out
    assert "patient_anna" not in (in_tmp / "mine/experiment/scans.yaml").read_text()


@pytest.mark.parametrize("kind", ["table", "texts"])
def test_which_keys_the_first_private_row_has_changes_nothing(kind, in_tmp, capsys):
    """A row of jsonl may lack some."""
    rows = [{"age": at % 9, "topic": "ab"[at % 2], "comment": f"{SENTENCE} {at}"} for at in range(60)]
    (in_tmp / "public.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = ["--sample"] if kind == "table" else ["--text", "comment", "--labels", "topic=a,b", "--pool"]
    said = []
    for lacking in ("age", "topic", "comment"):
        private = [{key: value for key, value in rows[0].items() if key != lacking}, *rows[1:]]
        (in_tmp / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in private))
        given = ["init", "a.jsonl", "--kind", kind, "--records", "60", *source, "public.jsonl", "--to", lacking]
        assert cli.main(given) == 0, capsys.readouterr().err
        said.append([path.read_text() for path in sorted((in_tmp / lacking).rglob("*.yaml"))])
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"5\n"),
        ("a.jsonl", b'"SECRET"\n'),
        ("a.parquet", b"PAR1 no"),
        ("a.csv", b"SECRET" * 30_000 + b"\n"),
        ("a.CSV", b"text;SECRET\n"),
    ],
)
def test_files_that_are_none_are_one_line_that_quotes_nothing(name, content, in_tmp, capsys):
    (in_tmp / name).write_bytes(content)
    comments(in_tmp / "public.csv", 20, 0)
    given = ["init", name, "--kind", "texts", "--text", "words", "--records", "9", "--pool", "public.csv"]
    assert cli.main([*given, "--name", "null"]) == 2 and "--name=null" in capsys.readouterr().err
    assert cli.main(given) in (0, 2)
    said = capsys.readouterr().err
    assert "SECRET" not in said and said.count("\n") <= 1


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["nowhere.csv"], "expected a file or folder that is there"),
        (["stays.csv"], "--records: expected"),
        (["stays.csv", "--records", "0"], "--records=0: expected"),
        (["stays.csv", "--records", "9"], "Give --sample PUBLIC"),
        (["stays.csv", "--records", "9", "--sample", "stays.csv"], "public rows, not the private ones"),
        (["stays.csv", "--records", "9", "--sample", "more.csv", "--pool", "p"], "expected a column of texts"),
        (["stays.csv", "--records", "9", "--sample", "more.csv", "--pool", "p", "--text", "x"], "--text=x: expected"),
        (["notes.csv", "--records", "9", "--sample", "book.csv", "--model", "m"], "Give --description"),
        (["stays.csv", "--records", "9", "--sample", "book.csv"], "'note' is a text. Give --pool"),
        (["stays.csv", "--records", "9", "--sample", "book.csv", "--pool", "stays.csv"], "--pool=stays.csv: expected"),
        (["stays.csv", "--records", "9", "--kind", "texts", "--text", "x"], "--text=x: expected"),
        (["stays.csv", "--records", "9", "--name", "9 lives"], "--name=9 lives: expected"),
        (["stays.csv", "--records", "9", "--sample", "more.csv", "--encoding", "kl"], "--encoding=kl: expected"),
        (["notes.csv", "--records", "9", "--text", "note", "--pool", "."], "--pool=.: expected public rows or images"),
        (["photos", "--records", "9", "--pool", "photos"], "apart from the private ones"),
        (["photos", "--records", "9", "--pool", "photos/a"], "apart from the private ones"),
        (["empty", "--records", "9"], "a folder of images"),
    ],
)
def test_what_is_missing_is_one_line(given, why, in_tmp, capsys):
    stays(in_tmp / "stays.csv", 5, 0)
    stays(in_tmp / "more.csv", 50, 1)
    (in_tmp / "book.csv").write_text("name,kind,low,high\nAlter,integer,0,120\nnote,text,,\n")
    (in_tmp / "notes.csv").write_text("Alter,note\n")
    (in_tmp / "empty").mkdir()
    photographs(in_tmp / "photos/a", 0, 3)
    capsys.readouterr()
    assert cli.main(["init", *given]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1
    assert not (in_tmp / "mine").exists()


def test_a_file_that_is_there_is_not_written_over(in_tmp, capsys):
    photographs(in_tmp / "photos", 0, 10)
    photographs(in_tmp / "public", 1, 10)
    given = ["init", "photos", "--records", "100", "--pool", "public"]
    assert cli.main(given) == 0
    assert cli.main(given) == 2
    assert "another name" in capsys.readouterr().err


@pytest.mark.parametrize("records", ["1", "9" * 20])
def test_whatever_the_name_of_a_file_and_however_many_records_the_yaml_can_be_planned(records, in_tmp, capsys):
    stays(in_tmp / "a 'b'\n{x}.csv", 5, 0)
    stays(in_tmp / "public.csv", 50, 1)
    given = ["--records", records, "--sample", "public.csv", "--name", "mine"]
    assert cli.main(["init", "a 'b'\n{x}.csv", *given]) == 0
    assert cli.main(["plan", "--config-dir", "mine", "+experiment=mine", "schedule.size=50"]) == 0, (
        capsys.readouterr().err
    )


def test_columns_are_those_of_the_first_line(in_tmp):
    stays(in_tmp / "stays.csv", 5, 0)
    assert columns_of(in_tmp / "stays.csv") == ["Alter", "Station", "Aufnahme", "Betrag"]
