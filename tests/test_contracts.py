"""Parts of others: what must be said is asked for by name, and where an api keeps its data makes no difference."""

import csv
from pathlib import Path

import pytest

from dpsyn import cli

OTHERS = '''
import numpy as np
from dpsyn.api import Api
from dpsyn.data import Data
from dpsyn.data.texts import Texts
from dpsyn.embedding import Embedding
from dpsyn.population import Samples


class Plain:
    """No dataclass, no subclass; it says what it reads."""

    row_bytes = 1
    labelled = True

    def __init__(self, path):
        self._public = [Texts(path, text_column="text")]

    def reads(self): return self._public
    def check(self): pass
    def check_keys(self): pass
    def check_degree(self, degree): pass
    def check_labels(self, labels): pass
    def generate(self, labels, seeds): return Samples(np.array(["a text"] * len(labels), object))
    def vary(self, samples, labels, degree, seeds): return samples


class InATuple(Api):
    row_bytes = 1

    def __init__(self, path):
        self.sources = ("kept", (Texts(path, text_column="text"), 3))

    def reads(self): return (self.sources[1][0],)
    generate, vary = Plain.generate, Plain.vary


class Silent:
    """It does not say what it reads."""

    row_bytes = 1

    def __init__(self, path): pass
    generate, vary = Plain.generate, Plain.vary


class Forgetful(Api):
    row_bytes = 1

    def __init__(self, path): pass
    generate, vary = Plain.generate, Plain.vary


class Rows:
    """It says neither where its rows lie nor what digests they have."""

    id = records = unit_column = None
    on_error, labels, max_refused, max_adjusted = "refuse", ({},), 0, 0

    def check(self): pass
    def fingerprint(self): return ""
    def batches(self, size): return iter(())


class Heirs(Data):
    id = records = unit_column = None
    on_error, labels, max_refused, max_adjusted = "refuse", ({},), 0, 0

    def fingerprint(self): return ""
    def batches(self, size): return iter(())


class Unkept:
    def __call__(self, samples): return np.zeros((len(samples), 2), np.float32)
    def reads(self): return ()
    def check(self): pass


class Looking(Embedding):
    def __call__(self, samples): return np.zeros((len(samples), 2), np.float32)
    def reads(self): return ()
'''
GIVEN = [
    "data=texts", "data.path=private.csv", "embedding=ngrams", "schedule=balanced", "schedule.releases=1",
    "schedule.size=4", "schedule.degree=1", "privacy.epsilon=1", "privacy.delta=1e-5", "run_dir=run",
    "trusted_packages=[others]",
]  # fmt: skip


@pytest.fixture
def others(in_tmp, own_state, monkeypatch):
    Path("others.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(str(in_tmp))
    for name, words in (("private", "mine"), ("public", "theirs")):
        with open(f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([["text"], *[[f"{words} {i} and more"] for i in range(30)]])
    Path("mine/api").mkdir(parents=True)
    return in_tmp


def run(api, path, capsys):
    Path("mine/api/own.yaml").write_text(f"_target_: others.{api}\npath: {path}\n")
    ended = cli.main(["run", "--config-dir", "mine", "api=own", *GIVEN])
    return ended, capsys.readouterr().err


@pytest.mark.parametrize("api", ["Plain", "InATuple"])
def test_wherever_an_api_keeps_its_data_they_may_not_be_the_private_ones(others, capsys, api):
    ended, said = run(api, "private.csv", capsys)
    assert ended == 2 and said.startswith("dpsyn: api.path=private.csv: expected public data, not those of data.path")
    Path("copy.csv").write_bytes(Path("private.csv").read_bytes())
    ended, said = run(api, "copy.csv", capsys)
    assert ended == 2 and said.startswith("dpsyn: api.path: files of the private data (data.path) are among these")
    assert not Path("run").exists()
    assert run(api, "public.csv", capsys)[0] == 0


@pytest.mark.parametrize("api", ["Silent", "Forgetful"])
def test_an_api_that_does_not_say_what_it_reads_is_refused_by_name(others, capsys, api):
    ended, said = run(api, "private.csv", capsys)
    assert ended == 2 and said.count("\n") == 1 and "reads" in said and not Path("run").exists()


def test_an_embedding_that_does_not_say_what_its_weights_are_is_refused_by_name(others, capsys):
    Path("mine/embedding").mkdir()
    Path("mine/embedding/own.yaml").write_text("_target_: others.Looking\n")
    given = [text for text in GIVEN if not text.startswith("embedding")]
    assert cli.main(["run", "--config-dir", "mine", "api=draw_text", "embedding=own", *given]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "fingerprint" in said


def test_what_a_part_lacks_is_named_where_its_contract_inherits_it(others, capsys):
    Path("mine/embedding").mkdir()
    Path("mine/embedding/own.yaml").write_text("_target_: others.Unkept\n")
    given = [text for text in GIVEN if not text.startswith("embedding")]
    assert cli.main(["run", "--config-dir", "mine", "api=draw_text", "embedding=own", *given]) == 2
    assert "It has no fits, fingerprint: see dpsyn.embedding.Embedding." in capsys.readouterr().err


def test_data_that_inherit_the_contract_and_do_not_say_where_they_lie_are_refused(others, capsys):
    Path("mine/data").mkdir()
    Path("mine/data/own.yaml").write_text("_target_: others.Heirs\n")
    given = [text for text in GIVEN if not text.startswith("data")]
    assert cli.main(["run", "--config-dir", "mine", "api=draw_text", "data=own", *given]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "place" in said and "digests" in said


def test_data_that_do_not_say_where_they_lie_are_refused_by_name(others, capsys):
    Path("mine/data").mkdir()
    Path("mine/data/own.yaml").write_text("_target_: others.Rows\n")
    given = [text for text in GIVEN if not text.startswith("data")]
    assert cli.main(["run", "--config-dir", "mine", "api=draw_text", "data=own", *given]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "dpsyn: data=others.Rows: expected a part of the group data. It has no place, digests: see dpsyn.data.Data."
    )
