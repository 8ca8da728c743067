"""`dpsyn plan`: every experiment, anywhere, in about the time that its libraries take to be imported."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_light import CODE

import dpsyn
from dpsyn import cli
from dpsyn.build import config_folder
from dpsyn.data import said_of
from dpsyn.errors import Missing, UserError, invalid, missing
from dpsyn.privacy import budget

EXPERIMENTS = sorted(path.stem for path in (config_folder() / "experiment").glob("*.yaml"))
# scipy.stats is not among them: dp_accounting imports it
UNNEEDED = (
    "torch", "diffusers", "transformers", "sentence_transformers", "faiss", "datasets", "openai", "aiohttp",
    "matplotlib", "sklearn", "pandas", "pyarrow", "huggingface_hub", "safetensors", "ray", "opendp",
)  # fmt: skip
# one of each api: what they lack is what the packages lack
OF_EACH_API = [
    "adult_tab_pe", "cat", "celeba_avatar", "celeba_digiface", "celeba_staged", "cifar10", "cifar10_consistency",
    "digits", "mails_smollm", "openreview", "openreview_gpt2", "text_smoke", "yelp_pool",
]  # fmt: skip
PLANS = """
import contextlib, io, json, sys
from dpsyn.cli import main
printed = {{}}
for name in {names}:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["plan", "+experiment=" + name]) == 0, name
    printed[name] = out.getvalue()
print(json.dumps([printed, sorted({{name.split(".")[0] for name in sys.modules}})]))
"""


def planned(names, before=""):
    """What the plan of each experiment prints, and the packages that all of them imported."""
    code = before + PLANS.format(names=names)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def apis(experiment):
    """The yaml of its api, where its own yaml says one."""
    return set(re.findall(r"override /api: (\w+)", (config_folder() / "experiment" / f"{experiment}.yaml").read_text()))


def needs(printed):
    return re.findall(r"^still needed to run: (.*?)=", printed, re.MULTILINE)


def test_every_experiment_is_planned_without_data_weights_keys_and_heavy_imports(in_tmp, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    printed, packages = planned(EXPERIMENTS)
    assert not set(packages) & set(UNNEEDED)
    assert not list(in_tmp.iterdir())
    for name, text in printed.items():
        table, _, after = text.partition("rows of the synthetic data")
        assert "promise: (" in table and "epsilon so" in table and "still needed" not in table and after, name
    assert needs(printed["digits"]) == needs(printed["smoke"]) == needs(printed["text_smoke"]) == []
    assert needs(printed["adult"]) == ["data.path"]  # and not that of the held out rows beside it
    assert needs(printed["yelp"]) == ["data.path", "api.model", "api.api_key_env"]
    assert needs(printed["yelp_pool"]) == ["data.path", "api.path"]
    assert needs(printed["cifar10_pool"]) == ["api.path"]
    assert "known only with the data: " in printed["adult"] and "known only" not in printed["digits"]


def test_the_light_install_plans_every_api_and_names_the_packages_that_a_run_needs(in_tmp):
    """No plan imports such a package, see above; here they are not found either."""
    assert set().union(*map(apis, EXPERIMENTS)) == set().union(*map(apis, OF_EACH_API))
    printed, _ = planned(OF_EACH_API, CODE.split("from dpsyn.cli")[0])
    cifar10 = [line for line in printed["cifar10"].splitlines() if line.startswith("still needed")]
    assert any("expected the package datasets. Install it: pip install datasets" in line for line in cifar10)
    assert all("expected the package " in line for line in cifar10)


def test_a_sweep_is_planned_without_data(in_tmp, own_state, capsys):
    assert cli.main(["plan", "-m", "+experiment=cat", "privacy.epsilon=1,2"]) == 0
    assert capsys.readouterr().out.count("still needed to run: data.path=null") == 2


def test_what_is_missing_stops_a_run_and_what_is_wrong_stops_a_plan(in_tmp, own_state, capsys):
    assert cli.main(["run", "+experiment=adult"]) == 2
    assert capsys.readouterr().err.startswith("dpsyn: data.path=null: expected ")
    Path("adult.csv").write_text("a,b\n1,2\n")
    assert cli.main(["plan", "+experiment=adult", "data.path=adult.csv"]) == 2
    assert "data.path=adult.csv: expected csv whose first line" in capsys.readouterr().err


def test_an_api_that_is_given_beside_votes_in_cells_is_said_to_be_ignored(in_tmp, own_state, capsys):
    assert cli.main(["plan", "+experiment=breast_cancer", "api=table"]) == 0
    assert "warning: api=table is ignored" in capsys.readouterr().out
    for given in (["+experiment=breast_cancer"], ["+experiment=breast_cancer_tab_pe", "api=table"]):
        assert cli.main(["plan", *given]) == 0
        assert "ignored" not in capsys.readouterr().out


@pytest.mark.parametrize("experiment", ["digits", "mnist", "breast_cancer", "adult"])
def test_the_last_row_of_the_table_says_what_the_promise_says(experiment, in_tmp, own_state, capsys):
    assert cli.main(["plan", f"+experiment={experiment}"]) == 0
    out = capsys.readouterr().out
    promised = re.search(r"promise: \((\S+),", out).group(1)
    rows = [line for line in out.splitlines() if line.lstrip().startswith(("votes", "counts"))]
    assert rows[-1].split()[-1] == promised
    spent = [float(line.split()[-1]) for line in rows]
    assert spent == sorted(spent)


@pytest.mark.parametrize(("unit", "adjacency"), [("record", "add_remove"), ("user", "replace")])
@pytest.mark.parametrize(
    ("epsilon", "delta", "shares"),
    [(1, 1e-5, [1] * 5), (10, 5e-7, [1] * 10), (0.332, 5e-9, [1, 1, 10, 3, 5]), (17.7, 9e-6, [1] * 9)],
)
def test_sigma_is_the_one_that_the_accountant_alone_finds(unit, adjacency, epsilon, delta, shares):
    settings = budget.Settings(epsilon=epsilon, delta=delta, unit=unit, adjacency=adjacency)
    releases = [budget.Release(str(at), 1, share) for at, share in enumerate(shares)]
    found = budget.calibrated(settings, releases)

    def spent(sigma):
        return budget.epsilon_of(budget.calibrated(settings, releases, sigma).charges, delta, adjacency)

    with pytest.raises(UserError, match="over the"):
        spent(round(found.sigma - 2e-4, 4))
    assert spent(found.sigma) <= epsilon


def test_what_a_reader_says_of_its_settings_is_said_of_the_key_that_names_it():
    for error in (invalid, missing):
        with pytest.raises(UserError) as raised, said_of("api.data"):
            raise error("data.path", "a/data.csv", "files", "Or say data.builder=.")
        assert str(raised.value) == "api.data.path=a/data.csv: expected files. Or say api.data.builder=."
        assert isinstance(raised.value, Missing) == (error is missing)


@pytest.mark.parametrize(("size", "epsilon", "told"), [(2000, 0.3, True), (500, 4, False), (500, "inf", False)])
def test_a_plan_says_that_votes_will_be_mostly_noise_from_public_numbers_alone(capsys, size, epsilon, told):
    noise = ["privacy=none"] if epsilon == "inf" else [f"privacy.epsilon={epsilon}"]
    assert cli.main(["plan", "+experiment=digits", f"schedule.size={size}", *noise]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert ("votes will be mostly noise: 140 records a label, 400 candidates" in printed) == told
    if told:
        advised = int(re.search(r"of ([\d,]+) candidates in all", printed)[1].replace(",", ""))  # type: ignore[index]
        assert 10 <= advised < size
    # 140 records, a mean vector of length 0.3 and the noise of one release that spends all: 10.4 at epsilon 0.3
    assert ("noisy sums of embeddings would tell more (signal to noise about 4.5" in printed) == told


def test_a_plan_says_that_sums_will_be_mostly_noise_from_public_numbers_alone(capsys):
    given = ["plan", "+experiment=yelp_pool", "data.path=private", "api.path=public"]
    for epsilon, told in ((0.02, True), (1, False)):
        assert cli.main([*given, f"privacy.epsilon={epsilon}"]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert ("noisy sums of embeddings will be mostly noise (signal to noise about 0.24" in printed) == told


def test_epsilons_stand_side_by_side_with_their_noise_and_what_it_hides(capsys):
    assert cli.main(["plan", "+experiment=digits", "--epsilon", "0.5,4", "--json"]) == 0
    strong, weak = json.loads(capsys.readouterr().out)
    assert strong["epsilon"] <= 0.5 < 3.9 < weak["epsilon"] <= 4
    assert strong["noise_in_records"] > 4 * weak["noise_in_records"]
    assert strong["signal_to_noise"] < 1 < weak["signal_to_noise"]
    assert 0.05 < strong["hits"] < weak["hits"] < 0.05 * 2.72**4
    assert "votes will be mostly noise" in strong["warnings"][0] and not weak["warnings"]
    assert cli.main(["plan", "+experiment=adult", "--epsilon=1"]) == 0
    assert "found with 5 % false alarms" in capsys.readouterr().out
    for bad in (["--epsilon"], ["--epsilon", "much"], ["--epsilon", "1", "-m"]):
        assert cli.main(["plan", "+experiment=digits", *bad]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_schedule_that_asks_nothing_can_be_planned(capsys):
    assert cli.main(["plan", "+experiment=digits", "schedule=none"]) == 0
    assert "no release: no private row is read" in capsys.readouterr().out


def test_a_table_of_which_no_pair_is_asked_is_told_so_before_it_is_made(capsys):
    assert cli.main(["plan", "+experiment=breast_cancer", "--epsilon", "1,4"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith((" 1.0 ", " 4.0 "))]
    assert [row[2] for row in rows] == ["0.75", "2.4"]  # a sixteenth of 460 records, over the noise of its cells
    few, enough = (dpsyn.plan("+experiment=breast_cancer", f"privacy.epsilon={epsilon}") for epsilon in (1, 100))
    assert any("no pair of columns is asked" in line for line in few["warnings"])
    assert not any("no pair of columns is asked" in line for line in enough["warnings"])
