"""A run begins only where the rows vote as they stand, and `dpsyn check` says beforehand what would be refused."""

import json
from pathlib import Path

import pytest

from dpsyn import cli

SCHEMA = """
columns:
  g: {kind: category, values: [a, b, other], outside: other}
  x: {kind: integer, bounds: [0, 9], outside: clip}
labels: [g]
"""
COMMON = ["data=tables", "schedule=cells", "privacy.epsilon=4", "privacy.delta=1e-5"]
COMMON += ["data.path=rows.csv", "data.schema.file=schema.yaml", "data.records=300"]


@pytest.fixture(autouse=True)
def folder(in_tmp):
    (in_tmp / "schema.yaml").write_text(SCHEMA)
    return in_tmp


def rows(good, *others):
    Path("rows.csv").write_text("g,x\n" + "a,5\n" * good + "".join(f"{line}\n" for line in others))


def refused(capsys, *more):
    """What a run is refused with, and that nothing was drawn or charged before."""
    assert cli.main(["run", *COMMON, "run_dir=run", *more]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "300" not in said and "canary" not in said
    assert not list(Path().glob("run/*/votes/*")) and not list(Path().glob("run/private/intents/*"))
    return said


@pytest.mark.parametrize("others", [[], ["canary,5,7"] * 20])
def test_a_file_in_which_nobody_can_vote_is_refused(capsys, others):
    rows(0, *others)
    more = ["data.on_error=skip"]
    said = refused(capsys, *more)
    assert said.startswith("dpsyn: data.path=" if not others else "dpsyn: data.max_refused=0.01: expected")


def test_more_rows_than_allowed_that_cast_no_vote_are_refused_and_their_details_are_in_the_run(capsys):
    rows(295, *["canary,5,7"] * 4)
    said = refused(capsys, "data.on_error=skip")
    assert "data.max_refused=0.01: expected at most this share of rows that cast no vote (column '(line)':" in said
    told = [json.loads(line) for line in Path("run/private/refused.jsonl").read_text().splitlines()]
    assert len(told) == 4 and all("canary" in line["value"] for line in told)
    assert Path("run/private/refused.jsonl").stat().st_mode & 0o077 == 0
    assert cli.main(["run", *COMMON, "run_dir=run", "data.on_error=skip", "data.max_refused=0.05"]) == 0


def test_few_rows_that_cast_no_vote_are_skipped_where_that_was_asked(capsys):
    rows(299, "a,5,7")
    assert cli.main(["run", *COMMON, "run_dir=run", "data.on_error=skip"]) == 0


def test_more_adjusted_cells_of_a_column_than_allowed_are_refused(capsys):
    rows(280, *["a,77"] * 20)
    said = refused(capsys)
    assert "data.max_adjusted=0.05: expected at most this share of adjusted cells in column 'x'" in said
    assert "beyond the bounds, clipped to them" in said
    assert list(json.loads(Path("run/private/adjusted.json").read_text()).values()) == [20]
    assert cli.main(["run", *COMMON, "run_dir=run", "data.max_adjusted=0.1"]) == 0


def test_cells_read_as_other_count_by_column(capsys):
    rows(285, *["z,5"] * 10, *["a,77"] * 5)  # 3.3 % of g and 1.7 % of x
    assert cli.main(["run", *COMMON, "run_dir=run"]) == 0


def test_more_cells_read_as_other_than_allowed_are_refused(capsys):
    rows(280, *["z,5"] * 20)
    assert "column 'g'" in refused(capsys)


@pytest.mark.parametrize("share", [-0.1, 1.5, "much", "true"])
@pytest.mark.parametrize("key", ["max_refused", "max_adjusted"])
def test_a_share_is_between_0_and_1(capsys, key, share):
    rows(9)
    assert f"data.{key}=" in refused(capsys, f"data.{key}={share}")


def test_check_tells_what_would_be_refused_and_spends_and_writes_nothing(capsys):
    rows(290, "a,5,7", "z,5", *["a,77"] * 20)
    before = sorted(Path().rglob("*"))
    assert cli.main(["check", *COMMON, "data.on_error=skip"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("PRIVATE: ")
    for line in (
        "rows read: 312, of which 311 can vote",
        "refused, column '(line)': more or fewer cells than the first line has names: 1 (rows.csv:292)",
        "adjusted, column 'x': beyond the bounds, clipped to them: 20 (6.4% of its cells)",
        "adjusted, column 'g': not among the declared values, read as other: 1",
        "labels met: 2 of 3 declared",
        "a run would be refused: data.max_adjusted=0.05",
        "Do not choose bounds",
    ):
        assert line in out, line
    assert sorted(Path().rglob("*")) == before
    assert cli.main(["budget"]) == 0 and "No run" in capsys.readouterr().out
    assert cli.main(["check", *COMMON, "data.on_error=skip", "data.max_adjusted=0.1"]) == 0
    assert "a run would begin" in capsys.readouterr().out


def test_check_counts_the_users(capsys):
    Path("rows.csv").write_text("g,x,who\n" + "".join(f"a,5,{i % 30}\n" for i in range(299)) + "a,5,\n")
    Path("schema.yaml").write_text(SCHEMA + "unit: who\n")
    assert cli.main(["check", *COMMON, "privacy.unit=user"]) == 0
    assert "users met: 30; rows that name none, and cast no vote for one: 1" in capsys.readouterr().out
