"""Texts from files: trimmed, labelled, refused row by row, streamed; the presets; a pool of texts in a whole run."""

import io
import json
import socket
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from dpsyn import compose
from dpsyn.build import build, config_folder
from dpsyn.data import Data, Records
from dpsyn.data.texts import Texts
from dpsyn.errors import UserError
from dpsyn.execution import carry_out
from dpsyn.planning import facts
from dpsyn.privacy.electorate import open_electorate, survey_of
from dpsyn.privacy.survey import check_survey
from dpsyn.reading import sources
from dpsyn.reading.rows import NOT_UTF8
from dpsyn.show import Screen

CANARY = "CANARY-4711"
ONE_LINE = r"^data\.{}=[^\n]*: expected [^\n]*$"
STARS = {"stars": ["1", "5"]}


def written(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Rows as csv, jsonl or parquet, by the name of the file."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [rows[0], *[row.values() for row in rows]]
        quoted = [",".join('"' + str(cell).replace('"', '""') + '"' for cell in line) for line in lines]
        path.write_text("\n".join(quoted), newline="")
    return str(path)


def read(data: Data, size: int = 100) -> tuple[list[str], list[int], list[tuple[int, str, str]]]:
    """Texts, labels, and (row, column, rule) of what is refused."""
    batches: list[Records] = list(data.batches(size))
    assert all(batch.samples.content.dtype == object and batch.labels.dtype == np.int64 for batch in batches)
    return (
        [text for batch in batches for text in batch.samples.content],
        [label for batch in batches for label in batch.labels.tolist()],
        [(refusal.row, refusal.column, refusal.rule) for batch in batches for refusal in batch.refused],
    )


REVIEWS = [
    {"text": "Fine, and \"cheap\".\nWould go again.", "stars": 5, "user": "ann"},
    {"text": "  Never again! \t\n", "stars": 1, "user": "bob"},
    {"text": "né 😀 \0 x", "stars": 5, "user": ""},
    {"text": "Fine.", "stars": 5, "user": "ann"},
]  # fmt: skip
READ = ['Fine, and "cheap".\nWould go again.', "Never again!", "né 😀  x", "Fine."]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_texts_labels_and_users_are_read_alike_from_every_format(form: str, tmp_path: Path) -> None:
    data = Texts(written(tmp_path / f"a.{form}", REVIEWS), labels=STARS, unit_column="user")
    data.check()
    assert read(data) == (READ, [1, 0, 1, 1], [])
    assert np.concatenate([batch.units for batch in data.batches(3)]).tolist() == [0, 1, -1, 0]  # type: ignore[misc]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_row_that_cannot_be_used_is_one_refusal_and_the_others_are_read(form: str, tmp_path: Path) -> None:
    rows = [{"text": text, "stars": stars} for text, stars in (("a", 1), (" \n", 1), ("b", 3), ("\0", 5), ("c d e", 1))]
    data = Texts(written(tmp_path / f"a.{form}", rows), labels=STARS, max_words=2)
    assert read(data) == (["a"], [0], [
        (1, "text", "no text"), (2, "stars", "not among the declared values"), (3, "text", "no text"),
        (4, "text", "more words than data.max_words"),
    ])  # fmt: skip


def test_text_that_is_not_utf8_is_one_refusal(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\nfine\ncaf\xe9\nnaive\n")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n{"text": "\\udc00"}\n')
    pq.write_table(pa.table({"text": pa.array([b"fine", b"caf\xe9"]).view(pa.string())}), tmp_path / "c.parquet")
    assert read(Texts(str(tmp_path / "a.csv"))) == (["fine", "naive"], [0, 0], [(1, "text", NOT_UTF8)])
    assert read(Texts(str(tmp_path / "b.jsonl")))[2] == [(1, "text", NOT_UTF8), (2, "text", NOT_UTF8)]
    assert read(Texts(str(tmp_path / "c.parquet")))[2] == [(1, "text", NOT_UTF8)]
    for refusal in next(Texts(str(tmp_path / "a.csv")).batches(9)).refused:
        json.dumps(refusal.value, ensure_ascii=False).encode("utf-8")


def test_a_missing_cell_of_any_kind_is_no_text(tmp_path: Path) -> None:
    lines = ['{"text": null}', "{}", '{"text": ""}', '{"text": 7}', '{"text": ["a"]}', "?"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    texts, _, refused = read(Texts(str(tmp_path / "a.jsonl")))
    assert texts == ["7"]
    assert [rule for _, _, rule in refused] == [
        "no text", "no text", "no text", "a list or an object where a single value belongs", "not a JSON object",
    ]  # fmt: skip


def test_a_row_is_read_alike_alone_among_others_and_in_any_batch(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", REVIEWS)
    assert read(Texts(path, labels=STARS), 1) == read(Texts(path, labels=STARS), 3)
    for row, text in zip(REVIEWS, READ, strict=True):
        assert read(Texts(written(tmp_path / "one.csv", [row]), labels=STARS))[0] == [text]


def test_batches_are_full_but_for_the_last_however_many_rows_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", [{"text": f"text {i}" if i % 3 else " "} for i in range(100)])
    batches = list(Texts(path, on_error="skip").batches(20))
    assert [len(batch.samples) for batch in batches] == [20, 20, 20, 6]
    assert [refusal.row for batch in batches for refusal in batch.refused] == list(range(0, 100, 3))
    (only,) = Texts(written(tmp_path / "b.csv", [{"text": " "}])).batches(5)
    assert (len(only.samples), only.labels.dtype, len(only.refused)) == (0, np.int64, 1)


def test_rows_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "a line\n" * 20_000 + '"this quote does not end')
    batches = Texts(str(path)).batches(5000)
    assert len(next(batches).samples) == 5000
    with pytest.raises(UserError, match=ONE_LINE.format("path")):
        list(batches)


def test_values_are_what_the_file_says_unless_they_stand_for_another(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", [{"text": "a", "score": "top"}, {"text": "b", "score": "5.0"}])
    plain: dict[str, Any] = {"path": path, "labels": STARS, "label_columns": {"stars": "score"}}
    assert read(Texts(**plain))[2] == [(0, "score", "not among the declared values")]
    assert read(Texts(**plain, label_values={"stars": {"top": 5}})) == (["a", "b"], [1, 1], [])


# Which column


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_column_of_text_is_text_or_the_only_one_besides_labels_and_users(form: str, tmp_path: Path) -> None:
    rows = [{"review": "a", "stars": "5", "user": "x"}]
    path = written(tmp_path / f"a.{form}", rows)
    assert read(Texts(path, labels=STARS, unit_column="user"))[0] == ["a"]
    with pytest.raises(UserError, match=ONE_LINE.format("text_column")):
        Texts(path, labels=STARS).check()
    assert read(Texts(path, text_column="user"))[0] == ["x"]
    assert read(Texts(written(tmp_path / f"b.{form}", [{"other": "b", "text": "a"}])))[0] == ["a"]


def test_a_column_of_numbers_or_lists_is_no_column_of_text(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [{"review": "a", "stars": 5, "words": ["a", "b"]}])
    Texts(path).check()
    for column in ("stars", "words"):
        with pytest.raises(UserError, match=rf"^data\.text_column={column}: expected a column of text\.$"):
            Texts(path, text_column=column).check()
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"^data\.text_column=text: expected a column of text\.$"):
        Texts(str(tmp_path / "b.parquet")).check()


# Bad input


@pytest.mark.parametrize(
    "key, wrong",
    [
        ("path", {"path": None}),
        ("path", {"path": "nowhere.csv"}),
        ("path", {"path": "nowhere/*.jsonl"}),
        ("split", {"split": "test"}),
        ("subset", {"subset": "plain"}),
        ("text_column", {"text_column": "review"}),
        (r"label_columns\.stars", {"labels": STARS, "label_columns": {"stars": "score"}}),
        ("unit_column", {"unit_column": "user"}),
    ],
)
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_check_finds_missing_files_and_columns(form: str, key: str, wrong: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / f"a.{form}", [{"text": CANARY, "stars": "5"}])
    with pytest.raises(UserError, match=ONE_LINE.format(key)) as caught:
        Texts(**{"path": path, **wrong}).check()
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "key, wrong",
    [
        ("builder", {"builder": "imagefolder"}),
        ("split", {"split": "train[:10%]"}),
        ("delimiter", {"delimiter": "tab"}),
        ("max_words", {"max_words": 0}),
        (r"labels\.stars", {"labels": {"stars": [1.5]}}),
        ("label_columns", {"label_columns": {"stars": "score"}}),
        ("label_values", {"label_values": {"stars": {"5.0": "5"}}}),
        (r"label_values\.stars", {"labels": STARS, "label_values": {"stars": ["5.0"]}}),
        (r"label_values\.stars", {"labels": STARS, "label_values": {"stars": {"5.0": "5", "5": "4"}}}),
        ("records", {"records": 1.5}),
        ("id", {"id": ""}),
        ("on_error", {"on_error": "ignore"}),
    ],
)
def test_a_wrong_setting_is_one_line_before_anything_is_read(key: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=ONE_LINE.format(key)):
        Texts("x", **wrong)


@pytest.mark.parametrize("content", ["", "\n", '"text', "text,text\na,b\n"])
def test_a_csv_without_names_of_its_columns_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=ONE_LINE.format("path")):
        Texts(str(tmp_path / "a.csv")).check()


def test_empty_rows_stop_the_run_or_cast_no_vote_and_no_message_tells_which(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", [{"text": f"{CANARY} {i}" if i != 7 else " "} for i in range(20)])

    def lengths(samples: Any) -> np.ndarray:
        return np.array([[len(text)] for text in samples.content], np.float32)

    with pytest.raises(UserError, match=r"^data: some rows cannot vote \(column 'text': no text\)\. ") as caught:
        opened = open_electorate(Texts(path), lengths, {}, "record", tmp_path / "cache")
        check_survey(survey_of(opened), Texts(path), "record")
    assert CANARY not in str(caught.value) and "7" not in str(caught.value)
    electorate = open_electorate(Texts(path, on_error="skip"), lengths, {"on": "skip"}, "record", tmp_path / "cache")
    assert (electorate.folder / "000/0.vectors").stat().st_size == 19 * 4


def test_another_split_of_local_files_stands_beside_train_and_has_another_fingerprint(tmp_path: Path) -> None:
    train = written(tmp_path / "train.csv", [{"text": "a"}])
    written(tmp_path / "test.csv", [{"text": "b"}])
    data, held_out = Texts(train), Texts(train, split="test")
    assert read(held_out)[0] == ["b"]
    assert data.fingerprint() != held_out.fingerprint() and not data.digests() & held_out.digests()


def test_local_texts_are_read_without_asking_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(CANARY)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    data = Texts(written(tmp_path / "a.csv", REVIEWS), labels=STARS)
    data.check()
    assert data.fingerprint() and read(data)[0] == READ
    with pytest.raises(UserError, match=ONE_LINE.format("path")) as caught:
        next(Texts("nobody-at-all/nothing").batches(1))
    assert CANARY not in str(caught.value) + repr(caught.value.__context__) + repr(caught.value.__cause__)


def test_texts_on_the_hub_are_read_by_their_declared_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is not here: local data sets go through the same calls of `datasets`."""
    pytest.importorskip("datasets")
    monkeypatch.setattr(sources.Source, "kind", lambda self: "hub")
    monkeypatch.setattr(sources, "commit", lambda *asked: None)
    for form in ("parquet", "csv"):
        (tmp_path / form).mkdir()
        written(tmp_path / form / f"train.{form}", [{"review": " a ", "stars": "5"}, {"review": "", "stars": "5"}])
    info = {"features": {name: {"dtype": "string", "_type": "Value"} for name in ("review", "stars")}}
    table = pq.read_table(tmp_path / "parquet/train.parquet")
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": info})}), tmp_path / "parquet/train.parquet"
    )
    data = Texts(str(tmp_path / "parquet"), labels=STARS)
    assert read(data) == (["a"], [1], [(1, "review", "no text")])
    with pytest.raises(UserError, match=r"^data\.path=[^\n]*: expected data on the hub that declare the types"):
        list(Texts(str(tmp_path / "csv")).batches(1))


# Presets


def preset(*overrides: str) -> Texts:
    plain = compose.settings([*overrides, "privacy.epsilon=1", "privacy.delta=1e-6"])["data"]
    assert plain.pop("_target_") == "dpsyn.data.texts.Texts" and plain.pop("hold_out") == 0
    assert list(plain) == [item.name for item in fields(Texts)]
    return Texts(**plain)


@pytest.mark.parametrize(
    "name, labels, records",
    [("yelp", 50, 1_939_290), ("openreview", 60, 8_396), ("pubmed", 1, 75_316), ("texts", 1, None)],
)
def test_a_preset_declares_labels_and_how_many_records_there_are(name: str, labels: int, records: int | None) -> None:
    data = preset(f"data={name}")
    assert (len(data.labels), data.records, data.id) == (labels, records, None if name == "texts" else name)


def test_yelp_is_read_as_published_and_as_plain_columns(tmp_path: Path) -> None:
    published = {"text": "a", "label1": "Business Category: Bars", "label2": "Review Stars: 4.0"}
    path = written(tmp_path / "a.csv", [published])
    columns = "++data.label_columns={category: label1, stars: label2}"
    data = preset("data=yelp", f"data.path={path}", columns)
    plain = preset(
        "data=yelp", f"data.path={written(tmp_path / 'b.parquet', [{'text': 'a', 'category': 'Bars', 'stars': 4}])}"
    )
    for reviews in (data, plain):
        reviews.check()
        texts, (label,), refused = read(reviews)
        assert (texts, reviews.labels[label], refused) == (["a"], {"category": "Bars", "stars": "4"}, [])


def test_every_published_value_of_yelp_and_openreview_stands_for_a_declared_one() -> None:
    for name, heads in (
        ("yelp", ("Business Category: ", "Review Stars: ")),
        ("openreview", ("Area: ", "Recommendation: ")),
    ):
        data = preset(f"data={name}")
        for (column, values), head in zip(data.label_values.items(), heads, strict=True):
            declared = {label[column] for label in data.labels}
            own = {value.removeprefix(head): meant for value, meant in values.items() if value.startswith(head)}
            assert set(own.values()) == declared
            assert all(value.removesuffix(".0") == meant for value, meant in own.items())


def test_a_preset_whose_labels_are_made_fewer_refuses_the_others(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.csv", [{"text": "a", "category": "Bars", "stars": f"{stars}.0"} for stars in (1, 2, 5)]
    )
    data = preset("data=yelp", f"data.path={path}", "data.labels.stars=['1','5']")
    assert len(data.labels) == 20
    assert [row for row, _, _ in read(data)[2]] == [1]


def test_reviews_with_a_rating_alone_are_read_as_openreview(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", [{"text": f"t{i}", "rating": i, "decision": "Reject"} for i in range(1, 11)])
    chosen = ["~data.labels.area", "~data.label_values.area", "++data.label_columns.recommendation=rating"]
    data = preset("data=openreview", f"data.path={path}", *chosen)
    data.check()
    assert read(data)[1:] == ([0, 0, 1, 1, 2, 3, 4, 4, 4, 4], [])


def test_the_config_lists_every_argument_in_its_order() -> None:
    config = yaml.safe_load((config_folder() / "data/texts.yaml").read_text())
    assert list(config)[1:] == [item.name for item in fields(Texts)]


# A pool


def test_public_texts_stand_in_for_a_model_in_a_whole_run(tmp_path: Path) -> None:
    said = {"good": "I liked the {} very much, it was lovely", "bad": "what an awful {}, I want my money back"}
    things = ["soup", "room", "lamp", "tour", "film", "haircut", "bread", "tyre", "song", "view"]
    rows = [
        {"text": said[mood].format(thing) + "!" * k, "mood": mood} for mood in said for thing in things for k in (0, 1)
    ]
    private = written(tmp_path / "own.csv", rows[::2] * 20)
    public = written(tmp_path / "public.jsonl", [{"text": row["text"]} for row in rows[1::2]] + [{"text": " "}])
    chosen = [
        "data=texts",
        f"data.path={private}",
        "++data.labels={mood: [good, bad]}",
        "data.id=t",
        "data.records=400",
    ]
    chosen += ["api=pool_texts", f"api.path={public}", "api.neighbours=5", "embedding=ngrams", "embedding.features=64"]
    chosen += [
        "privacy.epsilon=8",
        "privacy.delta=1e-4",
        "schedule.releases=2",
        "schedule.size=20",
        "schedule.degree=5",
    ]
    job = build(compose.settings([*chosen, f"run_dir={tmp_path / 'run'}"]))
    release = carry_out(job, Screen(Console(file=io.StringIO(), width=100), facts(job), len(job.releases)))
    made = pq.read_table(release / "synthetic.parquet").to_pydict()
    assert set(made["text"]) <= {row["text"] for row in rows[1::2]}
    right = [("awful" in text) == (label == 1) for text, label in zip(made["text"], made["label"], strict=True)]
    assert np.mean(right) > 0.8
    assert all(str(tmp_path).encode() not in path.read_bytes() for path in release.rglob("*") if path.is_file())
