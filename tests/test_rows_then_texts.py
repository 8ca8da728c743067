"""Whole runs of tables whose rows carry a text: rows by votes in cells, then a text for each that fits it."""

import csv
import dataclasses
import io
import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from chat_server import ChatServer
from harness import files, same_noise
from rich.console import Console

from dpsyn import cli, compose
from dpsyn.build import build
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError
from dpsyn.execution import carry_out
from dpsyn.files import named_by
from dpsyn.planning import facts, show_plan
from dpsyn.privacy.query import Answer
from dpsyn.runs.directory import open_run
from dpsyn.runs.verification import verified
from dpsyn.schedule.assignment import assigned, scores_of
from dpsyn.schedule.rows_with_texts import RowsWithTexts
from dpsyn.schedule.start import sums_about
from dpsyn.show import Screen
from dpsyn.tables.schema import Schema

COLOURS, SIZES = ("red", "green", "blue"), ("small", "large")
SCHEMA = {
    "columns": {
        "colour": {"kind": "category", "values": list(COLOURS)},
        "size": {"kind": "ordered", "values": list(SIZES)},
        "weight": {"kind": "integer", "bounds": [0, 99], "missing": True},
        "remark": {"kind": "text", "words": 12, "about": "a remark on a thing"},
    },
    "labels": [],
    "unit": "user",
    "extra": "ignore",
}
NAMES = ["user", *SCHEMA["columns"]]
WORDS = ("apple", "stone", "river", "cloud", "horse", "chair", "lamp", "glass", "leaf", "coat", "drum", "wheel")
VOTES = ["schedule.releases=2", "schedule.candidates=null"]
BOTH = ["schedule.releases=1", "schedule.candidates=400"]


def said(colour, size, rng):
    return f"The {size} {WORDS[rng.integers(len(WORDS))]} is {colour} and {WORDS[rng.integers(len(WORDS))]} like"


def rows(n=600, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        colour = COLOURS[min(2, int(3 * rng.random() ** 1.5))]
        size = SIZES[int(rng.random() < (0.8 if colour == "red" else 0.3))]
        weight = "" if colour == "blue" else str(int(rng.integers(0, 50)) + 50 * (size == "large"))
        found.append((f"u{i % 200}", colour, size, weight, said(colour, size, rng)))
    return found


def pool(path, n=500):
    rng = np.random.default_rng(1)
    texts = [said(COLOURS[i % 3], SIZES[i // 3 % 2], rng) + f" {i}" for i in range(n)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def job(folder, given, *overrides, schema=SCHEMA):
    folder.mkdir(exist_ok=True)
    with (folder / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([NAMES, *given])
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False))
    pool(folder / "pool.jsonl")
    own = [
        "data=tables",
        f"data.path={folder / 'data.csv'}",
        f"data.schema.file={folder / 'schema.yaml'}",
        "data.id=test",
        "data.records=600",
        "data.on_error=skip",
        "data.max_refused=0.1",
        "api=pool_texts",
        f"api.path={folder / 'pool.jsonl'}",
        "api.neighbours=5",
        "embedding=ngrams",
        "embedding.features=64",
        "schedule=rows_then_texts",
        "schedule.size=200",
        "schedule.releases=0",
        "schedule.candidates=400",
        "schedule.degree=5",
        "privacy.epsilon=4",
        "privacy.delta=1e-4",
        "metric=none",
        f"run_dir={folder / 'run'}",
    ]
    for group in ("api", "schedule", "embedding"):  # another one has other settings
        if any(text.startswith(f"{group}=") for text in overrides):
            own = [text for text in own if not text.startswith((f"{group}.", f"{group}="))]
    return build(compose.settings([*own, *overrides]))


def run(folder, given, *overrides):
    made, out = job(folder, given, *overrides), io.StringIO()
    carry_out(made, Screen(Console(file=out, width=200), facts(made), len(made.releases)))
    return out.getvalue()


def table(path):
    return {key: np.array(values, object) for key, values in pq.read_table(path).to_pydict().items()}


@pytest.mark.parametrize("way", [[], VOTES, BOTH], ids=["sums", "votes", "both"])
def test_every_row_gets_a_text_of_its_own_and_keeps_the_columns_that_the_counts_gave_it(way, tmp_path):
    run(tmp_path, rows(), *way)
    found = pq.read_table(tmp_path / "run/release/synthetic.parquet")
    assert found.column_names == list(SCHEMA["columns"]) and found.num_rows == 200
    assert [str(kind) for kind in found.schema.types] == ["string", "string", "int64", "string"]
    mine = table(tmp_path / "run/release/synthetic.parquet")
    assert all(isinstance(text, str) and text for text in mine["remark"])
    assert len(set(mine["remark"])) > 120
    iterations = sorted((tmp_path / "run/release/iterations").iterdir())
    with_texts = [table(path / "samples.parquet") for path in iterations][-(1 + int(way[0][-1]) if way else 1) :]
    for each in with_texts:
        for name in ("colour", "size", "weight"):
            assert (each[name] == mine[name]).all()
    assert verified(open_run(tmp_path / "run")).agrees


@pytest.mark.parametrize(("way", "least"), [([], 0.85), (BOTH, 0.75)], ids=["sums", "both"])
def test_texts_fit_the_columns_of_their_rows(way, least, tmp_path):
    run(tmp_path, rows(), *way, "privacy.epsilon=20")
    mine = table(tmp_path / "run/release/synthetic.parquet")
    pairs = zip(mine["colour"], mine["size"], mine["remark"], strict=True)
    fit = np.mean([[colour in text, size in text] for colour, size, text in pairs], axis=0)
    assert fit.min() > least


def test_a_table_whose_records_are_all_alike_gets_texts_too(tmp_path):
    columns = {name: {"kind": "category", "values": ["red"]} if name == "colour" else column
               for name, column in SCHEMA["columns"].items() if name in ("colour", "remark")}  # fmt: skip
    schema = {**SCHEMA, "columns": columns}
    made = job(tmp_path, [(user, "red", *rest) for user, _, *rest in rows()], "schedule.candidates=250", schema=schema)
    carry_out(made, Screen(Console(file=io.StringIO()), facts(made), len(made.releases)))
    mine = table(tmp_path / "run/release/synthetic.parquet")
    assert set(mine["colour"]) == {"red"} and len(set(mine["remark"])) > 100


@pytest.mark.parametrize(
    ("overrides", "line"),
    [(["api.neighbours=600"], "api.neighbours=600: expected at most 500"), (["api.by_label=true"], "api.data.labels=")],
)
def test_a_pool_that_cannot_be_asked_is_refused_before_anything_is_spent(overrides, line, tmp_path):
    with pytest.raises(UserError) as refused:
        run(tmp_path, rows(), *overrides)
    assert str(refused.value).startswith(line)
    assert not list((tmp_path / "run").rglob("intents/*")) and not list((tmp_path / "run").rglob("votes/*"))


def test_public_rows_of_one_text_give_it_to_all_rows(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"text": "all that is said"}\n')
    one = [f"api.path={tmp_path / 'one.jsonl'}", "api.neighbours=1", "schedule.degree=1", "schedule.size=200"]
    run(tmp_path, rows(), *one, "schedule.candidates=400")
    assert set(table(tmp_path / "run/release/synthetic.parquet")["remark"]) == {"all that is said"}


@pytest.mark.parametrize("candidates", [30, 70, 100, 170])
def test_candidates_are_given_to_as_few_rows_each_as_can_be(candidates, monkeypatch):
    monkeypatch.setattr("dpsyn.schedule.assignment.AT_ONCE", 40)
    rng = np.random.default_rng(0)
    fits, cells = [rng.normal(size=(candidates, 3))], [rng.integers(3, size=100)]
    times = np.bincount(assigned(fits, cells, None, rng), minlength=candidates)
    assert times.sum() == 100 and times.max() - times.min() <= 1


NEW = ("u-new", "green", "small", "93", "canary words that nobody else would ever say here")
NEIGHBOURS = {
    "one row more, sums": (lambda given: [*given, NEW], []),
    "one row more, votes": (lambda given: [NEW, *given], VOTES),
    "one row replaced": (lambda given: [NEW, *given[1:]], ["privacy.adjacency=replace", *BOTH]),
    "one user more": (lambda given: [*given, *[NEW] * 30], ["privacy.unit=user", *BOTH]),
    "rows that cannot be read": (lambda given: [*given, ("u", "red", "small", "1", " "), ("u", "x", "", "", "")], []),
    "a longer text": (lambda given: [*given[:-1], (*given[-1][:-1], given[-1][-1] + " and more" * 20)], []),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_given_the_receipts_neighbouring_tables_give_the_same_bytes_everywhere(name, tmp_path, monkeypatch, capfd):
    more, overrides = NEIGHBOURS[name]
    seen, noisy = [], None
    for number, given in enumerate([rows(), more(rows())]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with monkeypatch.context() as patched:
            patched.setenv("XDG_STATE_HOME", str(folder / "state"))
            patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            noisy = same_noise(patched, noisy)
            printed = run(folder, given, *overrides)
        seen.append((files(folder / "run/release"), printed.replace(str(folder), ""), capfd.readouterr()))
    assert seen[0] == seen[1]
    assert not any(b"canary" in content for content in seen[1][0].values())


def test_a_run_that_stopped_goes_on_from_its_receipts_to_the_same_bytes_and_draws_none_twice(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        noisy = same_noise(patched)
        run(tmp_path / "whole", rows(), *BOTH)
    whole = files(tmp_path / "whole/run/release")
    for kept in range(len(noisy)):
        folder = tmp_path / f"stopped{kept}"
        shutil.copytree(tmp_path / "whole", folder)
        for path in sorted((folder / "run/release/iterations").iterdir())[kept:]:
            shutil.rmtree(path)
        (folder / "run/release/synthetic.parquet").unlink()
        places = [
            f"{key}={tmp_path / 'whole'}/{name}"
            for key, name in (
                ("data.path", "data.csv"),
                ("data.schema.file", "schema.yaml"),
                ("api.path", "pool.jsonl"),
            )
        ]
        made = job(folder, rows(), *BOTH, *places)
        with monkeypatch.context() as patched:
            patched.setattr("dpsyn.privacy.ledger.discrete_gaussian", None)  # nothing is drawn
            patched.setenv("XDG_STATE_HOME", str(folder / "state"))
            carry_out(made, Screen(Console(file=io.StringIO()), facts(made), len(made.releases)))
        assert files(folder / "run/release") == whole


def test_the_tallies_are_the_same_in_any_number_of_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("dpsyn.privacy.electorate.FEW", 10)
    monkeypatch.setattr("dpsyn.runs.directory.secrets.token_hex", lambda n: "0" * 2 * n)
    seen = []
    for shards in ("1", "3"):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / f"state{shards}"))
        run(tmp_path / shards, rows(), *BOTH, "privacy.noise=insecure_seeded", f"runtime.shards={shards}")
        seen.append(files(tmp_path / shards / "run/not_private/votes"))
    assert seen[0] == seen[1] and len(seen[0]) == 5


def test_rows_with_texts_are_measured_on_held_out_rows(tmp_path):
    run(tmp_path, rows(2000), *BOTH, "data.records=2000", "data.hold_out=0.3", "evaluate.epsilon=4")
    found = json.loads((tmp_path / "run/release/evaluation.json").read_text())
    assert {each["column"] for each in found["columns"]} == {"colour", "size", "weight"}
    numbers = {each["name"]: each["value"] for each in found["numbers"]}
    assert numbers["very near"] < 0.1 and numbers["covered"] > 0.8  # by their columns and their texts together
    assert verified(open_run(tmp_path / "run")).agrees


def test_a_release_alone_can_be_expanded_and_the_first_rows_stay(tmp_path):
    run(tmp_path, rows(), *BOTH)
    before = table(tmp_path / "run/release/synthetic.parquet")
    assert cli.main(["expand", str(tmp_path / "run"), "--rows", "260"]) == 0
    after = table(tmp_path / "run/release/synthetic.parquet")
    assert len(after["remark"]) == 260 and all(after["remark"])
    for name, values in before.items():
        assert (after[name][:200] == values).all()
    assert cli.main(["expand", str(tmp_path / "run"), "--rows", "50"]) == 0
    fewer = table(tmp_path / "run/release/synthetic.parquet")
    assert len(fewer["remark"]) == 50 and set(fewer["remark"]) <= set(before["remark"])


def test_rows_of_chosen_labels_get_texts_too(tmp_path):
    schema = {**SCHEMA, "labels": ["colour"]}
    made = job(tmp_path, rows(), *BOTH, schema=schema)
    carry_out(made, Screen(Console(file=io.StringIO()), facts(made), len(made.releases)))
    path = tmp_path / "run/release/synthetic.parquet"
    assert cli.main(["expand", str(tmp_path / "run"), "--rows", "40", "--labels", "colour=blue"]) == 0
    found = table(path)
    assert set(found["colour"]) == {"blue"} and len(found["remark"]) == 40 and all(found["remark"])


def test_the_plan_tells_what_rows_and_texts_spend_and_reads_nothing(tmp_path, capsys):
    show_plan(job(tmp_path, rows(), *BOTH))
    out = " ".join(capsys.readouterr().out.split())
    assert all(name in out for name in ("counts 1", "votes 1", "embedding", "API rows: at most 601"))
    assert not (tmp_path / "run").exists()


def test_the_page_tells_the_counts_and_shows_rows_with_their_texts(tmp_path):
    made = job(tmp_path, rows(), *BOTH, schema={**SCHEMA, "labels": ["size"]})
    carry_out(made, Screen(Console(file=io.StringIO()), facts(made), len(made.releases)))
    page = (tmp_path / "run/release/report.html").read_text()
    mine = table(tmp_path / "run/release/synthetic.parquet")
    assert sum(text in page for text in mine["remark"]) > 5
    assert "The texts of the rows" in page and "a column that is no text from the table before" in page
    assert "Each column with the label, against its released noisy counts" in page
    assert "\n- tabular\n- text\n" in (tmp_path / "run/release/README.md").read_text()


def test_iterations_without_texts_can_be_measured_and_the_private_page_is_made(tmp_path, capsys):
    own = f"held_out={{_target_: dpsyn.data.tables.Tables, path: {tmp_path / 'data.csv'}, schema: '${{data.schema}}'}}"
    run(tmp_path, rows(), *BOTH, own, "metric=row_texts", "metric.every_n_releases=1")
    told = [json.loads(line) for line in (tmp_path / "run/private/metrics.jsonl").read_text().splitlines()]
    by_iteration = {each["iteration"]: each["accuracy"] for each in told if each["metric"] == "text_links"}
    assert sorted(by_iteration) == [1, 2, 3, 4] and by_iteration[1] < by_iteration[4] > 0.6
    assert cli.main(["report", str(tmp_path / "run"), "--private"]) == 0
    page = (tmp_path / "run/private/report.html").read_text()
    assert "PRIVATE" in page and "Runs of words shared with private texts: remark" in page


def test_the_page_of_a_run_whose_rows_have_no_texts_yet_tells_of_none(tmp_path):
    run(tmp_path, rows(), *BOTH)
    release = tmp_path / "run/release"
    (release / "synthetic.parquet").unlink()
    for path in sorted((release / "iterations").iterdir())[1:]:
        shutil.rmtree(path)
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    page = (release / "report.html").read_text()
    assert "The texts of the rows" not in page and "colour" in page


@dataclass(frozen=True)
class OfWords(Embedding):
    words: frozenset

    def fingerprint(self):
        return "of words"

    def reads(self):
        return ()

    def __call__(self, samples):
        return np.array([[word in text for word in self.words] for text in samples.content], np.float32)


def test_rows_are_embedded_by_any_embedding_of_texts_whatever_its_settings_are():
    assert named_by(RowsWithTexts(Schema(SCHEMA), OfWords(frozenset({"a"}))))


def test_the_plan_says_where_votes_for_texts_are_lost_in_the_noise(tmp_path, capsys):
    show_plan(job(tmp_path, rows(5), *VOTES, "privacy.epsilon=0.1"))
    out = " ".join(capsys.readouterr().out.split())
    assert "warning: votes for texts will be mostly noise: 3.0 records a row" in out
    fewer = int(out.split("schedule.size=")[1].split()[0])
    show_plan(job(tmp_path, rows(5), *VOTES, "privacy.epsilon=0.1", f"schedule.size={fewer}"))
    assert "votes for texts" not in capsys.readouterr().out


def test_rows_are_read_by_one_process_only_where_a_network_embeds_their_texts(tmp_path):
    from dpsyn.embedding import CodedEmbedding, Networked, Truncating

    ngrams = job(tmp_path, rows(5)).coder
    sentence = job(tmp_path, rows(5), "embedding=sentence").coder
    assert not isinstance(ngrams, Networked) and isinstance(sentence, Networked)
    assert all(isinstance(each, CodedEmbedding) and isinstance(each, Truncating) for each in (ngrams, sentence))


TWO = {**SCHEMA, "columns": {**SCHEMA["columns"], "title": {"kind": "text", "about": "a title"}}}


def titled(given):
    """Rows with a title that says the size, and the number that its remark has too."""
    return [
        (*row, f"{row[2]} thing {at}")
        for at, row in enumerate((*row[:-1], f"{row[-1]} {at}") for at, row in enumerate(given))
    ]


def two_texts(folder, *overrides, more=()):
    """A job of rows with a remark and a title each. more: private rows besides."""
    made = job(folder, rows(), *overrides, schema=TWO)
    for name, given in (("data.csv", [*titled(rows()), *more]), ("public.csv", titled(rows(seed=5)))):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([[*NAMES, "title"], *given])
    return made


POOL_OF_ROWS = ["api=pool_rows", "api.neighbours=5", "schedule.degree=5", "schedule.size=200", "schedule.releases=1",
                "schedule.candidates=600"]  # fmt: skip


@pytest.fixture(scope="module")
def run_with_two_texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(folder / "state"))
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        made = two_texts(folder, *POOL_OF_ROWS, f"api.path={folder / 'public.csv'}", "privacy.epsilon=20")
        carry_out(made, Screen(Console(file=io.StringIO()), facts(made), len(made.releases)))
    return folder / "run"


def test_given_the_receipts_one_user_more_gives_the_same_bytes_with_several_texts_too(tmp_path, monkeypatch, capfd):
    odd, empty = (*NEW, "a canary title"), (*NEW, "")
    seen, noisy = [], None
    for number, more in enumerate([[], [odd] * 30 + [empty]]):
        folder = tmp_path / str(number)
        with monkeypatch.context() as patched:
            patched.setenv("XDG_STATE_HOME", str(folder / "state"))
            patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            noisy = same_noise(patched, noisy)
            given = [
                *POOL_OF_ROWS,
                f"api.path={folder / 'public.csv'}",
                "privacy.unit=user",
                "privacy.adjacency=replace",
            ]
            made, out = two_texts(folder, *given, more=more), io.StringIO()
            carry_out(made, Screen(Console(file=out, width=200), facts(made), len(made.releases)))
        printed = out.getvalue().replace(str(folder), "")
        seen.append((files(folder / "run/release"), printed, capfd.readouterr()))
    assert seen[0] == seen[1]
    assert not any(b"canary" in content for content in seen[1][0].values())


def test_several_texts_of_a_row_stay_together_and_fit_its_columns(run_with_two_texts):
    mine = table(run_with_two_texts / "release/synthetic.parquet")
    assert all(
        remark.split()[-1] == title.split()[-1] for remark, title in zip(mine["remark"], mine["title"], strict=True)
    )
    fit = [[colour in remark, size in title] for colour, size, remark, title in
           zip(mine["colour"], mine["size"], mine["remark"], mine["title"], strict=True)]  # fmt: skip
    assert np.mean(fit, axis=0).min() > 0.75


def test_a_column_of_texts_that_is_the_same_for_all_candidates_fits_every_row_alike():
    rng = np.random.default_rng(0)
    for noise in (0.0, 3.0):
        alike = np.tile(rng.random(8).astype(np.float32), (50, 1))
        query = replace(sums_about(alike, 1, False), columns=(0,), cells=(np.arange(3)[:, None],))
        (found,) = scores_of(alike, query, Answer(rng.normal(size=query.size), noise))
        assert found.shape == (50, 3) and (found == 0).all()


def test_each_text_column_has_sums_of_its_own_and_a_vote_is_for_all_of_a_row(run_with_two_texts):
    said = json.loads((run_with_two_texts / "release/privacy.json").read_text())
    names = [charge["name"] for charge in said["charges"]]
    assert names[-3:] == ["votes 1", "embedding sums of remark", "embedding sums of title"]
    assert {charge["moves"] for charge in said["charges"][-3:]} == {1}
    assert said["charges"][-1]["sigma"] == pytest.approx(said["charges"][-2]["sigma"])
    assert verified(open_run(run_with_two_texts)).agrees
    page = (run_with_two_texts / "release/report.html").read_text()
    assert "The texts of the rows: remark" in page and "The texts of the rows: title" in page


def test_all_parts_of_a_release_load_though_the_first_iterations_have_no_texts(run_with_two_texts, tmp_path):
    datasets = pytest.importorskip("datasets")
    release = run_with_two_texts / "release"
    head = yaml.safe_load((release / "README.md").read_text().split("---\n")[1])
    rows = {
        config["config_name"]: datasets.load_dataset(
            str(release), config["config_name"], split="train", cache_dir=tmp_path
        ).num_rows
        for config in head["configs"]
    }
    sizes = [pq.read_metadata(path).num_rows for path in release.glob("iterations/*/samples.parquet")]
    assert rows["iterations"] + rows["iterations_from_001"] == sum(sizes)
    assert {"default", "votes", "marginals"} <= set(rows) and "iterations_from_001" in (
        release / "README.md"
    ).read_text()


def test_rows_with_several_texts_go_on_from_their_receipts_to_the_same_bytes(run_with_two_texts, tmp_path, monkeypatch):
    whole = files(run_with_two_texts / "release")
    iterations = len(list((run_with_two_texts / "release/iterations").iterdir()))
    given = [*POOL_OF_ROWS, f"api.path={run_with_two_texts.parent / 'public.csv'}", "privacy.epsilon=20"]
    given += [f"data.path={run_with_two_texts.parent / 'data.csv'}"]
    for kept in range(iterations):
        folder = tmp_path / str(kept)
        shutil.copytree(run_with_two_texts.parent, folder)
        for path in sorted((folder / "run/release/iterations").iterdir())[kept:]:
            shutil.rmtree(path)
        (folder / "run/release/synthetic.parquet").unlink()
        made = two_texts(folder, *given)
        with monkeypatch.context() as patched:
            patched.setattr("dpsyn.privacy.ledger.discrete_gaussian", None)  # nothing is drawn
            patched.setenv("XDG_STATE_HOME", str(folder / "account"))
            carry_out(made, Screen(Console(file=io.StringIO()), facts(made), len(made.releases)))
        assert files(folder / "run/release") == whole


def test_rows_with_several_texts_are_expanded_and_exported(run_with_two_texts, tmp_path, monkeypatch, capsys):
    run = run_with_two_texts
    monkeypatch.setenv("XDG_STATE_HOME", str(run.parent / "state"))
    assert cli.main(["expand", str(run), "--rows", "230"]) == 0, capsys.readouterr().err
    found = table(run / "release/synthetic.parquet")
    assert len(found["title"]) == 230 and all(found["title"]) and all(found["remark"])
    assert cli.main(["export", str(run), "--to", str(tmp_path / "out"), "--format", "csv"]) == 0
    assert (tmp_path / "out/data.csv").read_text().startswith("colour,size,weight,remark,title\n")


def by_chat(folder, server):
    asked = {"generate": {"user": "Write {about} of {colour}."}, "vary": {"user": "Say {about} otherwise: {sample}"}}
    (folder / "prompts.yaml").write_text(yaml.safe_dump(asked))
    return ["api=chat", "api.model=m", f"api.base_url={server.url}", "api.api_key_env=null", "schedule.degree=0.5",
            f"api.prompts.file={folder / 'prompts.yaml'}", "schedule.size=6", "schedule.releases=1"]  # fmt: skip


def test_a_model_is_asked_for_each_text_by_what_is_declared_of_it(tmp_path):
    with ChatServer() as server:
        made = two_texts(tmp_path, *by_chat(tmp_path, server))
        assert dataclasses.replace(made, expand_rows=30).expansion_api_rows == (0, 60)
        carry_out(made, Screen(Console(file=io.StringIO()), facts(made), len(made.releases)))
        prompts = [each.prompt for each in server.log]
    mine = table(tmp_path / "run/release/synthetic.parquet")
    assert all(mine["remark"]) and all(mine["title"]) and set(mine["remark"]) != set(mine["title"])
    for about in ("a remark on a thing", "a title"):
        assert sum(prompt.startswith(f"Write {about} of") for prompt in prompts) >= 6


def test_an_embedding_without_finite_vectors_is_refused_before_anything_is_spent(tmp_path, monkeypatch):
    broken = lambda _, texts: np.full((len(texts), 64), np.nan, np.float32)  # noqa: E731
    monkeypatch.setattr("dpsyn.embedding.ngrams.Ngrams.__call__", broken)
    with ChatServer() as server:
        made = two_texts(tmp_path, *by_chat(tmp_path, server))
        with pytest.raises(UserError, match="expected texts whose vectors are finite"):
            carry_out(made, Screen(Console(file=io.StringIO()), facts(made), len(made.releases)))
    assert not list((tmp_path / "run").rglob("intents/*"))


TEXT = {"kind": "text"}
PLAIN = {name: column for name, column in SCHEMA["columns"].items() if name != "remark"}


@pytest.mark.parametrize(
    ("schema", "overrides", "line"),
    [
        ({**SCHEMA, "columns": {"remark": TEXT}}, [], "schema.columns=['remark']: expected a column that is no text"),
        ({**SCHEMA, "columns": PLAIN}, [], "schedule=rows_then_texts: expected a schema with a column of kind text"),
        ({**SCHEMA, "columns": {**PLAIN, "a": TEXT, "b": TEXT}}, [], "api=(a pool of single texts): expected public"),
        ({**SCHEMA, "labels": ["remark"]}, [], "schema.labels=remark: expected a category, ordered, boolean or"),
        ({**SCHEMA, "constraints": ["remark <= size"]}, [], "schema.constraints='remark <= size': expected columns of "
         "the schema, neither texts nor open ones; 'remark' is none"),
        (SCHEMA, ["schedule=cells"], "schedule=cells: expected rows_then_texts for a schema with texts ('remark')"),
        (SCHEMA, ["schedule=tab_pe", "api=table", "embedding=table"], "api.schema=...: expected a schema without"),
        (SCHEMA, ["schedule.candidates=null"], "schedule.releases=0: expected 1 or more, or schedule.candidates"),
        (SCHEMA, ["schedule.candidates=100"], "schedule.candidates=100: expected null, or at least schedule.size=200"),
        (SCHEMA, ["schedule.rows_budget=1"], "schedule.rows_budget=1: expected a number between 0 and 1"),
        (SCHEMA, ["schedule.degree=0.5"], "schedule.degree=0.5: expected a whole number"),
        (SCHEMA, ["data.records=null"], "data.records=null: expected a declared number of rows with"),
        (SCHEMA, ["label_shares=noisy"], "label_shares=noisy: expected 'uniform' with a schedule that counts"),
        (SCHEMA, ["privacy.votes_per_record=2"], "schedule=rows_then_texts: expected privacy.votes_per_record=1"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_of_texts_is_one_line(schema, overrides, line, tmp_path):
    with pytest.raises(UserError) as refused:
        carry_out(job(tmp_path, rows(5), *overrides, schema=schema), Screen(Console(file=io.StringIO()), {}, 1))
    assert str(refused.value).startswith(line)
    assert not (tmp_path / "run/release").exists()


def test_a_list_of_words_without_one_pair_of_values_is_refused_before_a_row_is_read(tmp_path):
    schema = {**SCHEMA, "columns": {name: column for name, column in SCHEMA["columns"].items() if name != "weight"}}
    pairs = {f"{colour} | {size}": ["thing"] for colour in COLOURS for size in SIZES}
    prompts = tmp_path / "prompts.yaml"
    chat = ["api=chat", "api.model=m", "api.base_url=http://127.0.0.1:9/v1", f"api.prompts.file={prompts}"]
    given = [*chat, "schedule.degree=0.5", "schedule.candidates=250"]
    file = {"generate": {"user": "Write of a {what}."}, "vary": {"user": "Say it otherwise: {sample}"}}
    for left_out in (None, "green | large"):
        file["words"] = {"what": {key: words for key, words in pairs.items() if key != left_out}}
        prompts.write_text(yaml.safe_dump(file))
        made = job(tmp_path, rows(5), *given, schema=schema)
        if left_out is None:
            made.api.check_labels(made.asked_labels)
        else:
            with pytest.raises(UserError, match=r"a list for the label green \| large"):
                carry_out(made, Screen(Console(file=io.StringIO()), {}, 1))


def test_a_prompt_that_names_a_column_which_is_not_there_is_refused_before_a_row_is_read(tmp_path):
    prompts = tmp_path / "prompts.yaml"
    asked = "Write {about}. It is {size}, {colour} and weighs {wieght}."
    prompts.write_text(yaml.safe_dump({"generate": {"user": asked}, "vary": {"user": "Say it otherwise: {sample}"}}))
    chat = ["api=chat", "api.model=m", "api.base_url=http://127.0.0.1:9/v1", f"api.prompts.file={prompts}"]
    with pytest.raises(UserError, match=r"expected one of .*\{weight\}.*Did you mean \{weight\}"):
        carry_out(job(tmp_path, rows(5), *chat, "schedule.degree=0.5"), Screen(Console(file=io.StringIO()), {}, 1))
    assert not (tmp_path / "run/release").exists()


def test_a_list_of_words_that_lacks_a_missing_value_is_refused_before_a_row_is_read(tmp_path):
    colour = {**SCHEMA["columns"]["colour"], "missing": True}
    schema = {**SCHEMA, "columns": {**SCHEMA["columns"], "colour": colour}}
    asked = {"generate": {"user": "A {tone} {remark_of}"}, "vary": {"user": "Say it otherwise: {sample}"}}
    asked["words"] = {"tone": {name: ["warm"] for name in COLOURS}, "remark_of": ["remark"]}
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(yaml.safe_dump(asked))
    chat = ["api=chat", "api.model=m", "api.base_url=http://127.0.0.1:9/v1", f"api.prompts.file={prompts}"]
    with pytest.raises(UserError, match="expected a list for the label unknown"):
        given = job(tmp_path, rows(5), *chat, "schedule.degree=0.5", schema=schema)
        carry_out(given, Screen(Console(file=io.StringIO()), {}, 1))
