"""`dpsyn expand --labels --shares`: rows of chosen labels, in chosen shares, without a new release."""

import json

import numpy as np
import pandas as pd
import pytest

from dpsyn.cli import main
from dpsyn.errors import UserError
from dpsyn.expanding import chosen_sizes, fewer
from dpsyn.population import Population, of_texts

TEXTS = ["+experiment=text_smoke", "schedule.releases=1", "schedule.degree=5", "schedule.variations=0"]
TEXTS += ["schedule.size=40", "api.neighbours=5", "metric=none"]
LABELS = [{"topic": topic, "mood": mood} for topic in ("refund", "repair") for mood in ("glad", "cross")]


def run(root, *settings):
    assert main(["run", *settings, f"run_dir={root}"]) == 0


def labels_of(root):
    return pd.read_parquet(root / "release/synthetic.parquet")


def final(labels):
    n = len(labels)
    return Population(1, of_texts(["a"] * n), np.array(labels), np.full(n, -1), np.ones(n, bool))


def sizes(*wanted, shares=None, rows=12, of=(0, 0, 0, 1, 2, 3)):
    return chosen_sizes(LABELS, final(of), rows, wanted, shares).tolist()


def test_labels_are_chosen_by_column_and_value_and_shares_are_learned_uniform_or_given():
    assert sizes() == [6, 2, 2, 2]
    assert sizes("topic=refund") == [9, 3, 0, 0]
    assert sizes("topic=refund", shares="uniform") == [6, 6, 0, 0]
    assert sizes("topic=refund", "mood=cross") == [0, 12, 0, 0]
    assert sizes("topic=refund", "topic=repair", "mood=cross", shares="1,3") == [0, 3, 0, 9]
    assert sizes(shares="0,1,1,2") == [0, 3, 3, 6]
    assert sum(sizes(shares="uniform", rows=7)) == 7


@pytest.mark.parametrize(
    ("wanted", "shares", "expected"),
    [
        (["topic=refnd"], None, "expected refund or repair. Did you mean refund?"),
        (["topik=refund"], None, "expected COLUMN=VALUE with topic or mood. Did you mean topic?"),
        (["refund"], None, "expected COLUMN=VALUE"),
        ([], "even", "expected uniform, or numbers"),
        ([], "1,2", "expected uniform, or 4 numbers, one a label"),
        ([], "0,0,0,0", "expected uniform, or numbers"),
        ([], "1,-1,1,1", "expected uniform, or numbers"),
        ([], "nan,1,1,1", "expected uniform, or numbers"),
    ],
)
def test_a_label_that_does_not_exist_and_shares_that_are_none_are_refused_in_one_line(wanted, shares, expected):
    with pytest.raises(UserError) as error:
        chosen_sizes(LABELS, final([0, 1, 2, 3]), 8, wanted, shares)
    assert expected in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="of which the final population has rows"):
        chosen_sizes(LABELS, final([0]), 8, ["topic=repair"], None)
    with pytest.raises(UserError, match=r"--rows 0"):
        chosen_sizes(LABELS, final([0]), 0, [], None)


@pytest.mark.slow
def test_texts_images_and_rows_of_chosen_labels_are_made_and_the_page_and_the_card_say_so(in_tmp, capsys):
    from dpsyn.data.mails import Mails
    from dpsyn.runs.storage import labels_are_chosen

    run(in_tmp / "texts", *TEXTS)
    names = [" | ".join(label.values()) for label in Mails().labels]
    before = labels_of(in_tmp / "texts").label.value_counts().to_dict()
    chosen = ["expand", "texts", "--rows", "30", "--labels", "topic=refund", "--shares", "uniform"]
    assert main(chosen) == 0
    made = labels_of(in_tmp / "texts")
    counts = made.label.value_counts()
    assert {names[label] for label in counts.index} == {"refund | glad", "refund | cross"}
    assert counts.tolist() == [15, 15]
    kept = json.loads((in_tmp / "texts/release/chosen_labels.json").read_text())
    assert kept["rows_of_labels"] == {"refund | glad": 15, "refund | cross": 15}
    said = "chosen, not learned"
    assert said in (in_tmp / "texts/release/README.md").read_text()
    assert said in (in_tmp / "texts/release/report.html").read_text()
    run(in_tmp / "texts", *TEXTS)  # a run that is finished leaves them as they are
    assert labels_of(in_tmp / "texts").equals(made)
    assert main(["verify", "texts"]) == 0
    assert main(["expand", "texts", "--rows", "40"]) == 0  # as learned again
    assert labels_of(in_tmp / "texts").label.value_counts().to_dict() == before
    assert said not in (in_tmp / "texts/release/report.html").read_text()
    (in_tmp / "texts/release/chosen_labels.json").write_text(json.dumps(kept))  # of other data: cut off in between
    assert not labels_are_chosen(in_tmp / "texts/release")
    (in_tmp / "texts/release/chosen_labels.json").unlink()
    assert main(["expand", "texts", "--rows", "30", "--labels", "topic=refnd"]) == 2
    assert "Did you mean refund?" in capsys.readouterr().err

    run(in_tmp / "images", "+experiment=smoke", "schedule.size=20", "expand.rows=null")
    digits = ["--labels", "digit=3", "--labels", "digit=7", "--shares", "1,2"]
    assert main(["expand", "images", "--rows", "9", *digits]) == 0
    assert labels_of(in_tmp / "images").label.value_counts().to_dict() == {7: 6, 3: 3}

    rows = ["+experiment=breast_cancer", "schedule.size=200", "metric=none"]
    from dpsyn import compose
    from dpsyn.build import build

    column, *_ = build(compose.settings(rows)).labels[0]
    run(in_tmp / "rows", *rows)
    assert main(["expand", "rows", "--rows", "60", "--shares", "uniform"]) == 0
    assert labels_of(in_tmp / "rows")[column].value_counts().tolist() == [30, 30]


def test_rows_says_how_many_rows_there_are_whatever_the_schedule_ends_with(tmp_path, capsys):
    given = [*TEXTS, "run_dir=" + str(tmp_path / "run")]
    assert main(["plan", *given, "rows=11"]) == 0
    said = capsys.readouterr().out
    assert "rows of the synthetic data: 11 at most" in said and "expand" not in said
    assert main(["run", *given]) == 0
    all_rows, privacy = labels_of(tmp_path / "run"), (tmp_path / "run/release/privacy.json").read_text()
    for rows in (11, 90):
        assert main(["run", *given, f"rows={rows}"]) == 0
        assert len(labels_of(tmp_path / "run")) == rows
        if rows < len(all_rows):  # some of those that there were
            assert set(labels_of(tmp_path / "run")["text"]) <= set(all_rows["text"])
    assert main(["verify", str(tmp_path / "run")]) == 0
    before, after = (json.loads(text) for text in (privacy, (tmp_path / "run/release/privacy.json").read_text()))
    assert before["charges"] == after["charges"]
    capsys.readouterr()
    for bad in ("0", "many", "-1"):
        assert main(["run", *given, f"rows={bad}"]) == 2
        assert capsys.readouterr().err.startswith(f"dpsyn: rows={bad}: expected a whole number, 1 or more")


def test_fewer_rows_keep_the_shares_of_the_labels_and_are_the_same_each_time():
    population = final([0] * 60 + [1] * 30 + [2] * 10)
    found = fewer(population, 20, seed=1)
    assert np.bincount(found.labels).tolist() == [12, 6, 2]
    same, other = fewer(population, 20, seed=1), fewer(population, 20, seed=2)
    assert same.parents.tolist() == found.parents.tolist() and len(other) == 20
    assert len(fewer(population, 100, seed=1)) == 100 and len(fewer(population, 1, seed=1)) == 1
