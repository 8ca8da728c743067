"""The mails that come with dpsyn: the same everywhere, and worth voting on."""

import io
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.linear_model import LogisticRegression

from dpsyn import compose
from dpsyn.build import build
from dpsyn.data.mails import GRAMMAR, Mails
from dpsyn.embedding.ngrams import Ngrams
from dpsyn.errors import UserError
from dpsyn.execution import carry_out
from dpsyn.planning import facts
from dpsyn.population import Samples
from dpsyn.show import Screen


def read(split):
    batches = list(Mails(split).batches(1000))
    return np.concatenate([b.samples.content for b in batches]), np.concatenate([b.labels for b in batches])


def test_mails_have_a_topic_and_a_mood_and_differ():
    data = Mails()
    data.check()
    texts, labels = read("train")
    assert [tuple(label) for label in data.labels] == [("topic", "mood")] * 8
    assert texts.dtype == object and labels.dtype == np.int64
    assert 1400 < len(texts) < 1600 and len(set(texts)) > 0.99 * len(texts)
    assert np.bincount(labels, minlength=8).min() > 100
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 12 and 50 < max(lengths) <= 85
    assert not any(mark in "".join(texts) for mark in "{}|")


def test_the_parts_share_no_mail():
    parts = {split: set(read(split)[0]) for split in ("train", "test", "public")}
    assert not parts["train"] & parts["test"]
    assert len(parts["test"]) > 300 and len(parts["public"]) > 5900
    assert not parts["public"] & (parts["train"] | parts["test"])
    assert len({Mails(split).fingerprint() for split in parts}) == 3


def test_mails_are_the_same_in_every_process():
    code = "from dpsyn.data.mails import Mails; print(*(Mails(s).fingerprint() for s in ('train', 'test', 'public')))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert other == [Mails(split).fingerprint() for split in ("train", "test", "public")]


def test_public_mails_are_of_another_mix_and_say_things_that_the_shops_never_say():
    own, public = " ".join([*read("train")[0], *read("test")[0]]), " ".join(read("public")[0])
    assert "mattress" in public and "mattress" not in own
    share = {name: text.count("coffee machine") / len(text) for name, text in (("own", own), ("public", public))}
    assert share["own"] > 3 * share["public"]
    assert GRAMMAR.count("||") > 20


def test_a_wrong_setting_is_one_line():
    for wrong in ({"split": "valid"}, {"records": 0}, {"id": ""}, {"on_error": "go"}):
        with pytest.raises(UserError, match=f"^data.{next(iter(wrong))}=[^\n]*: expected [^\n]*$"):
            Mails(**wrong)


def test_votes_find_for_every_label_the_public_mails_that_are_of_it(tmp_path):
    """The whole program on texts, without any model: a classifier of real mails says what the synthetic ones are."""
    chosen = ["data=mails", "api=pool_mails", "embedding=ngrams", "embedding.features=256", "privacy.epsilon=8"]
    chosen += ["privacy.delta=1e-4", "schedule.releases=3", "schedule.size=400", "schedule.degree=30"]
    job = build(compose.settings([*chosen, f"run_dir={tmp_path / 'run'}"]))
    screen = Screen(Console(file=io.StringIO(), width=100), facts(job), len(job.releases))
    release = carry_out(job, screen)
    embed, (texts, labels) = Ngrams(256, [1, 1], [4, 4]), read("train")
    classifier = LogisticRegression(max_iter=300, C=10).fit(embed(Samples(texts)), labels)

    def right(path):
        table = pq.read_table(release / path).to_pydict()
        return classifier.score(embed(Samples(np.array(table["text"], object))), table["label"])

    assert right("iterations/000/samples.parquet") < 0.2
    assert right("synthetic.parquet") > 0.7
    assert set(pq.read_table(release / "synthetic.parquet")["text"].to_pylist()) <= set(read("public")[0])
