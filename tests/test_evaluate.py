"""`dpsyn evaluate`: finished runs measured and compared, and numbers under DP."""

import json
import re
import shutil

import numpy as np
import pytest
from harness import digits, own_data, parquet
from pyarrow.parquet import read_table

from dpsyn import cli, evaluation
from dpsyn.errors import UserError
from dpsyn.evaluating import Measured, as_text
from dpsyn.files import STAMP, sha256
from dpsyn.population import Population, of_texts
from dpsyn.runs.directory import RunDirectory
from dpsyn.runs.seal import seal
from dpsyn.runs.verification import verified
from dpsyn.tables.schema import Schema

SMALL = ["+experiment=smoke", "schedule.size=40", "expand.rows=300", "metric=light_classifier"]
HELD = [*SMALL, "metric=none", "data.hold_out=0.4", "evaluate.epsilon=1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(home / "state"))
        patched.setenv("XDG_CACHE_HOME", str(home / "cache"))
        for name, more in (("one", SMALL), ("bare", [*SMALL, "schedule=none"]), ("held", HELD)):
            assert cli.main(["run", *more, f"run_dir={home / name}"]) == 0
    return home


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    return home


def test_finished_runs_stand_side_by_side_with_the_lift_over_no_votes(here, capsys):
    capsys.readouterr()
    assert cli.main(["evaluate", str(here / "one"), str(here / "bare")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("PRIVATE") and lines[1].split() == ["run", "classifier.accuracy"]
    one, bare = (float(line.split()[-1]) for line in lines[2:4])
    assert "lift over" in lines[4] and float(lines[4].split()[-1]) == pytest.approx(one - bare, abs=1e-3)
    recorded = [json.loads(line) for line in (here / "one/private/metrics.jsonl").read_text().splitlines()]
    assert recorded[-1]["accuracy"] == pytest.approx(one, abs=1e-4)
    assert not (here / "one/release/metrics.jsonl").read_text().count("accuracy")


def test_none_is_measured_where_one_cannot_be(here, capsys):
    before = (here / "one/private/metrics.jsonl").read_text()
    assert cli.main(["evaluate", str(here / "one"), str(here / "held")]) == 2
    assert f"metric=none: expected metrics, here or when {here / 'held'} began" in capsys.readouterr().err
    assert (here / "one/private/metrics.jsonl").read_text() == before


def test_an_iteration_and_another_metric_and_a_bound_for_ci(here, capsys):
    capsys.readouterr()
    assert cli.main(["evaluate", str(here / "one"), "--iteration", "1", "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)[0]["numbers"]["classifier.accuracy"] <= 1
    for bound, code in (("accuracy=0.0", 0), ("classifier.accuracy=1.01", 1), ("recall=0.5", 2), ("accuracy", 2)):
        assert cli.main(["evaluate", str(here / "one"), "--fail-under", bound]) == code
    error = capsys.readouterr().err
    assert f"{here / 'one'}: classifier.accuracy is below 1.01" in error
    assert cli.main(["evaluate", str(here / "one"), "--json", "--fail-under", "accuracy=1.01"]) == 1
    out, error = capsys.readouterr()
    exact = json.loads(out)[0]["numbers"]["classifier.accuracy"]
    assert "PRIVATE: " in error and f"{exact:.4g}" not in error
    assert cli.main(["evaluate", str(here / "one"), "metric=nosuch"]) == 2
    assert "expected one of" in capsys.readouterr().err
    assert cli.main(["evaluate", str(here / "one"), "--iteration", "9"]) == 2


def test_public_numbers_go_into_the_release_only_where_their_data_are_declared_public(here, tmp_path, capsys):
    run = here / "bare"
    assert cli.main(["evaluate", str(run), "--public"]) == 2
    assert "metric.parts.classifier.public=false: expected true with --public" in capsys.readouterr().err
    assert cli.main(["evaluate", str(run), "--public", "metric.parts.classifier.public=true"]) == 0
    assert "PRIVATE" not in capsys.readouterr().out
    assert "accuracy" in (run / "release/metrics.jsonl").read_text()
    assert "Measured without private data" in (run / "release/report.html").read_text()
    assert "classifier" in (run / "release/config.yaml").read_text()
    assert cli.main(["verify", str(run)]) == 0


def test_a_release_of_somebody_else_cannot_be_measured(here, tmp_path, capsys):
    shutil.copytree(here / "one/release", tmp_path / "other/release")
    assert cli.main(["evaluate", str(tmp_path / "other")]) == 2
    assert "expected a run of yours" in capsys.readouterr().err


def said(run):
    return json.loads((run / "release/evaluation.json").read_text())


def test_held_out_units_give_numbers_with_intervals_in_the_release(here, capsys):
    run = here / "held"
    numbers = {each["name"]: each for each in said(run)["numbers"]}
    assert set(numbers) == {"accuracy", "very near", "covered"}
    for each in numbers.values():
        assert each["low"] <= each["noise_low"] <= each["value"] <= each["noise_high"] <= each["high"]
    privacy = json.loads((run / "release/privacy.json").read_text())
    assert [c["of"] for c in privacy["charges"]] == ["voters"] * 2 + ["held_out"] * 3
    assert privacy["epsilon"] <= 4 and "epsilon is the larger of" in privacy["statement"]
    assert cli.main(["verify", str(run)]) == 0
    page = (run / "release/report.html").read_text()
    assert "Measured under differential privacy" in page and f"{numbers['accuracy']['value']:.1%}" in page
    assert {path.stat().st_mtime for path in (run / "release").rglob("*")} == {STAMP}


def test_the_same_command_changes_nothing_and_another_epsilon_is_refused(here, capsys):
    run = here / "held"
    before = {path: path.read_bytes() for path in (run / "release").rglob("*") if path.is_file()}
    intents = sorted((run / "private/intents").iterdir())
    assert cli.main(["run", *HELD, f"run_dir={run}"]) == 0
    assert cli.main(["run", *HELD[:-1], f"run_dir={run}"]) == 0  # settled once
    assert {path: path.read_bytes() for path in before} == before
    assert sorted((run / "private/intents").iterdir()) == intents
    assert cli.main(["run", *HELD[:-1], "evaluate.epsilon=2", f"run_dir={run}"]) == 2
    assert "evaluate.epsilon=2.0: expected 1" in capsys.readouterr().err


def test_afterwards_on_records_that_voted_the_losses_add(here, tmp_path, capsys):
    run = here / "one"
    before = json.loads((run / "release/privacy.json").read_text())["epsilon"]
    data = (run / "release/synthetic.parquet").read_bytes()
    assert cli.main(["evaluate", str(run), "--epsilon", "1"]) == 0
    after = json.loads((run / "release/privacy.json").read_text())
    assert before < after["epsilon"] < before + 1 and "had voted: their losses are added" in after["statement"]
    assert "records that voted" in said(run)["of"]
    assert (run / "release/synthetic.parquet").read_bytes() == data
    assert cli.main(["verify", str(run)]) == 0
    assert cli.main(["run", *SMALL, f"run_dir={run}"]) == 0  # goes on with the evaluation that was settled
    assert cli.main(["verify", str(run)]) == 0
    assert cli.main(["evaluate", str(run), "--epsilon", "2"]) == 2


def test_numbers_say_which_rows_they_are_of_once_the_data_are_expanded_and_can_be_made_again(here, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["run", *HELD, "schedule.releases=1", "expand.rows=null", f"run_dir={run}"]
    assert cli.main(command) == 0
    path, n = run / "release/evaluation.json", len(read_table(run / "release/synthetic.parquet"))
    kept, before = path.read_bytes(), f"measured on the {n} rows of the run, before it was expanded"
    assert said(run)["judged"] == {"rows": n, "sha256": sha256(run / "release/synthetic.parquet")}
    shown = [run / "release/report.html", run / "release/README.md"]
    assert not any(before in page.read_text() for page in shown)
    assert cli.main(["expand", str(run), "--rows", "90"]) == 0
    assert all(before in page.read_text() for page in shown)
    assert cli.main(["verify", str(run)]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--epsilon", "1"]) == 0
    assert before in " ".join(capsys.readouterr().out.split()) and path.read_bytes() == kept
    path.unlink()
    assert cli.main(command) == 0
    assert path.read_bytes() == kept and cli.main(["verify", str(run)]) == 0


def test_numbers_that_are_lost_with_their_rows_are_said_to_be(here, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    command = ["run", *HELD[:-2], "schedule.releases=1", "expand.rows=null", f"run_dir={run}"]
    assert cli.main(command) == 0
    assert cli.main(["expand", str(run), "--rows", "90"]) == 0
    assert cli.main(["evaluate", str(run), "--epsilon", "8"]) == 0
    assert said(run)["judged"]["rows"] == 90
    assert cli.main(["expand", str(run), "--rows", "100"]) == 0
    (run / "release/evaluation.json").unlink()
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--epsilon", "8"]) == 2
    assert "rows that are gone too: the data were expanded since" in capsys.readouterr().err
    assert cli.main(command) == 0


def test_an_epsilon_that_is_refused_settles_nothing(here, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    command = ["run", *SMALL, "metric=none", "schedule.releases=1", "privacy.max_joint_epsilon=6", f"run_dir={run}"]
    assert cli.main(command) == 0
    assert cli.main(["evaluate", str(run), "--epsilon", "8"]) == 2
    assert not (run / "private/evaluation.json").exists()
    assert cli.main(command) == 0
    assert cli.main(["evaluate", str(run), "--epsilon", "1"]) == 0
    assert cli.main(["verify", str(run)]) == 0


def test_data_of_one_label_and_one_vector_are_judged_and_it_is_said():
    rows = of_texts(["a"] * 6)
    synthetic = Population(1, rows, np.full(6, 1), np.full(6, -1), np.ones(6, bool))

    def embed(samples):
        return np.array([[len(text), 1] for text in samples.content], np.float32)

    made = evaluation.judge(synthetic, [{"x": "no"}, {"x": "yes"}], embed, None, "digest")
    assert made(of_texts(["a", "bbb"])).tolist() == [[1, 0], [1, 5]]
    assert [line.partition(":")[0] for line in evaluation.remarks(made)] == [
        "all synthetic rows have one label",
        "all synthetic samples have one vector",
    ]


def test_held_out_rows_are_refused_as_voters_are_where_nobody_votes(in_tmp, capsys):
    rows = [{**row, "label": "canary"} if at % 20 == 0 else row for at, row in enumerate(digits(600))]
    given = own_data(parquet(in_tmp / "rows.parquet", rows), "schedule=none", "data.hold_out=0.9", "data.records=600")
    given = [*SMALL, *given, "metric=none", "evaluate.epsilon=20", "run_dir=run"]
    assert cli.main(["run", *given]) == 2
    error = capsys.readouterr().err
    assert "some rows cannot vote (column 'label'" in error and "canary" not in error
    assert "canary" in (in_tmp / "run/private/refused.jsonl").read_text()
    assert not list((in_tmp / "run/private").glob("intents/*"))


def test_verify_finds_charges_that_are_laid_on_others_and_names_that_are_none(here, tmp_path):
    shutil.copytree(here / "held/release", tmp_path / "release")
    path = tmp_path / "release/privacy.json"
    honest = json.loads(path.read_text())

    def lines(of, hold_out):
        said = {**honest, "charges": [{**c, "of": side} for c, side in zip(honest["charges"], of, strict=True)]}
        said["assumed_public"] = {**honest["assumed_public"]}
        said["assumed_public"]["data"] = {**said["assumed_public"]["data"], "hold_out": hold_out}
        path.write_text(json.dumps(said))
        return "".join(verified(RunDirectory(tmp_path, True)).lines)

    found = "with this data.hold_out it was asked of"
    sides = [c["of"] for c in honest["charges"]]
    assert found not in lines(sides, 0.4) and found not in lines(["all"] * 5, 0)
    assert f"charged to voters; {found} all" in lines(sides, 0)
    assert f"charged to held_out; {found} voters" in lines(["voters", "held_out", *sides[2:]], 0.4)
    assert f"charged to voters; {found} held_out" in lines([*sides[:4], "voters"], 0.4)
    path.write_text(json.dumps({**honest, "charges": [{**c, "name": " "} for c in honest["charges"]]}))
    with pytest.raises(UserError, match="no statement"):
        verified(RunDirectory(tmp_path, True))


def claims(content):
    """Changes of an evaluation.json that a reader would believe, by what verify says of each."""
    yield "'numbers'", {**content, "numbers": [{**each, "value": 0.99} for each in content["numbers"]]}
    yield "'numbers'", {**content, "numbers": [{**each, "noise_low": 0.0} for each in content["numbers"]]}
    yield "'numbers'", {**content, "numbers": content["numbers"][1:]}
    yield "'of'", {**content, "of": "all records"}
    yield "other synthetic rows", {**content, "judged": {**content["judged"], "sha256": "0" * 64}}
    yield "'judge'", {**content, "judge": "0" * 64}
    yield "'award'", {**content, "award": "best paper"}
    yield "no evaluation of this version", {**content, "numbers": None, "judged": None}
    if "confusion" in content:
        confusion = content["confusion"]
        yield "'confusion'", {**content, "confusion": {**confusion, "deviation": 0.1}}
        yield "'confusion'", {**content, "confusion": {**confusion, "labels": confusion["labels"][::-1]}}
    if "distances" in content:
        yield "other bins", {**content, "distances": {**content["distances"], "ends": [1.0]}}
    if "columns" in content:
        better = [{**each, "total_variation": 0.0, "noise_low": 0.0} for each in content["columns"]]
        yield "'columns'", {**content, "columns": better}
        yield (
            "'columns'",
            {**content, "columns": [{**each, "synthetic": each["held_out"]} for each in content["columns"]]},
        )


def check_claims(run, tmp_path, least):
    """Whoever seals a release anew, with other claims in evaluation.json, is found out by its receipts."""
    copy, tried = tmp_path / "claimed", 0
    shutil.copytree(run / "release", copy / "release")
    path, content = copy / "release/evaluation.json", said(run)
    assert "evaluation.json: made again from" in "".join(verified(RunDirectory(copy, True)).lines)
    for found, change in claims(content):
        path.write_text(json.dumps(change))
        seal(copy / "release")
        faults = [line for line in verified(RunDirectory(copy, True)).lines if line.startswith("FAULT")]
        assert len(faults) == 1 and found in faults[0] and "evaluation.json" in faults[0], (found, faults)
        tried += 1
    assert tried >= least
    return copy


def test_verify_makes_the_numbers_of_an_evaluation_again_from_their_receipts(here, tmp_path):
    copy = check_claims(here / "held", tmp_path, 11)
    shutil.copy(copy / "release/evaluation.json", here / "bare/release")
    lines = verified(RunDirectory(here / "bare", True)).lines
    (here / "bare/release/evaluation.json").unlink()
    assert any("these numbers have no receipts" in line for line in lines)


def test_the_private_page_shows_the_data_beside_the_private_ones(here, capsys):
    public = (here / "bare/release/report.html").read_bytes()
    assert cli.main(["report", str(here / "bare"), "--private"]) == 0
    page = (here / "bare/private/report.html").read_text()
    for said in ("Beside the private data", "the candidates before any vote", "of held-out real ones", "Mean images"):
        assert said in page and said.encode() not in public
    assert (here / "bare/private/report.html").stat().st_mode & 0o077 == 0


def test_too_few_held_out_records_are_refused_with_the_number_needed(here, tmp_path, capsys):
    few = [*HELD[:-2], "data.hold_out=0.01", "evaluate.epsilon=1", f"run_dir={tmp_path / 'few'}"]
    assert cli.main(["run", *few]) == 2
    error = capsys.readouterr().err
    least = int(re.search(r"At this epsilon ([\d,]+) records are needed", error)[1].replace(",", ""))
    assert 50 < least < 400 and "data.hold_out=0" in error and not (tmp_path / "few").exists()
    capsys.readouterr()
    assert cli.main(["plan", *HELD]) == 0
    out = capsys.readouterr().out
    assert "held out: about 0.4 of the records" in out and "evaluation" in out


def test_tables_are_measured_column_by_column(here, tmp_path):
    run = tmp_path / "table"
    given = ["+experiment=breast_cancer", "schedule.size=300", "metric=none", "data.hold_out=0.5"]
    assert cli.main(["run", *given, "privacy.epsilon=4", "evaluate.epsilon=8", f"run_dir={run}"]) == 0
    columns = said(run)["columns"]
    assert len(columns) == 31
    for each in columns:
        assert each["noise_low"] <= each["total_variation"] <= each["noise_high"]
        assert sum(each["synthetic"]) == pytest.approx(1, abs=1e-3)
    assert cli.main(["verify", str(run)]) == 0
    check_claims(run, tmp_path, 10)
    assert cli.main(["report", str(run), "--private"]) == 0
    page = (run / "private/report.html").read_text()  # without an embedding rows are as far apart as their columns say
    assert "distance to the nearest private record" in page and "the candidates before any vote" not in page


def test_a_release_alone_cannot_be_measured(here, tmp_path, capsys):
    shutil.copytree(here / "bare/release", tmp_path / "alone")
    assert cli.main(["evaluate", str(tmp_path / "alone")]) == 2
    assert "expected the directory of a run; this is a release alone" in capsys.readouterr().err


def test_a_sweep_over_hold_outs_is_agreed_to_as_if_everybody_bore_everything(here, tmp_path, capsys):
    swept = [*HELD[:-2], "data.hold_out=0.3,0.4", "evaluate.epsilon=1", f"run_dir={tmp_path / 'run'}"]
    alone = json.loads((here / "held/release/privacy.json").read_text())["epsilon"]
    assert cli.main(["plan", "-m", *swept]) == 0
    together = float(re.search(r"together epsilon ([\d.]+)", capsys.readouterr().out)[1])
    assert together > 1.4 * alone


def test_a_hostile_evaluation_is_left_out_of_the_page(here, tmp_path):
    shutil.copytree(here / "held/release", tmp_path / "run/release")
    path = tmp_path / "run/release/evaluation.json"
    for evil in ("[]", '{"format": "dpsyn evaluation 1", "numbers": [{"name": 1}], "of": 2}', "{", '{"format": 1}'):
        path.write_text(evil)
        assert cli.main(["report", str(tmp_path / "run")]) == 0
        assert "Measured under differential privacy" not in (tmp_path / "run/release/report.html").read_text()
    good = said(here / "held")
    good["numbers"][0]["name"] = "<script>alert(1)</script>"
    path.write_text(json.dumps(good))
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    assert "<script>alert(1)" not in (tmp_path / "run/release/report.html").read_text()


def test_differences_are_paired_by_seed_with_a_standard_error():
    def one(name, size, seed, value, bare=False):
        return Measured(name, {"schedule.size": size}, seed, bare, {"m.x": value})

    values = [(0, 0.5, 0.7), (1, 0.3, 0.6), (2, 0.4, 0.5)]
    runs = [one(f"a{s}", 10, s, low, True) for s, low, _ in values] + [one(f"b{s}", 20, s, up) for s, _, up in values]
    last = as_text(runs).splitlines()[-1]
    gaps = np.array([up - low for _, low, up in values])
    assert f"{gaps.mean():+.4g} ± {gaps.std(ddof=1) / 3**0.5:.2g}" in last
    assert last.startswith("schedule.size=20: lift over schedule.size=10")


def test_many_numbers_are_lines_and_the_runs_are_columns():
    def one(name, size, up):
        numbers = {f"judges.a_long_name_{at}": at / 10 + up for at in range(8)}
        return Measured(name, {"schedule.size": size}, 0, False, numbers)

    runs = [one("runs/first", 10, 0.0), one("runs/second", 20, 0.25)]
    text = as_text(runs)
    lines = text.splitlines()
    assert lines[:3] == ["1  runs/first", "2  runs/second", "3  schedule.size=20: difference from schedule.size=10"]
    assert lines[3].split() == [] and lines[4].split() == ["number", "1", "2", "3"]
    assert lines[12].split() == ["judges.a_long_name_7", "0.7", "0.95", "+0.25"]
    assert max(map(len, lines)) < 80
    few = [Measured(each.name, each.settings, 0, False, {"m.x": 0.5}) for each in runs]
    assert as_text(few).splitlines()[0].split() == ["run", "m.x"]


@pytest.mark.parametrize("allowed", [True, False])
def test_only_a_column_that_may_miss_has_a_bin_for_it(allowed):
    kinds = {"n": {"kind": "integer", "bounds": [0, 9]}, "w": {"kind": "category", "values": ["a", "b"]}}
    columns = Schema({"columns": {name: {**said, "missing": allowed} for name, said in kinds.items()}}).columns
    for column in columns.values():
        places = np.arange(-1 if allowed else 0, column.size)
        content = np.empty(len(places), [(column.name, column.dtype)])
        content[column.name] = column.values_of(places)
        made = evaluation.bins(column, content)
        assert ("missing" in made.names) is allowed
        assert set(made.codes(content)) <= set(range(len(made.names)))
        assert made.codes(content)[0] == (len(made.names) - 1 if allowed else 0)
