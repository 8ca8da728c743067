"""Metrics of texts: against the sums written out, on made-up mails, and what they refuse."""

import dataclasses
import importlib.util
import itertools
import pickle
import re
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from dpsyn import build, compose
from dpsyn.data import Records
from dpsyn.data.mails import Mails
from dpsyn.embedding.ngrams import Ngrams
from dpsyn.errors import UserError
from dpsyn.metric import diversity, words
from dpsyn.metric.diversity import Diversity, distinct, near_duplicates, repeated
from dpsyn.metric.frechet import Frechet
from dpsyn.metric.kid import Kid
from dpsyn.metric.lengths import Lengths
from dpsyn.metric.mauve import Mauve
from dpsyn.metric.overlap import Overlap, longest_common
from dpsyn.metric.precision_recall import PrecisionRecall
from dpsyn.metric.text_classifier import TextClassifier, columns
from dpsyn.networks.runtime import Runtime
from dpsyn.population import Population, Samples

EMBEDDING = Ngrams(256, [1, 1], [4, 4])
TEST = Mails("test", None, None, "refuse")
ONE_LABEL = ({},)


@dataclass
class Given:
    texts: Sequence[str]
    labels: Sequence[dict] = ONE_LABEL
    numbers: Sequence[int] | None = None
    read: int = field(default=0, compare=False)

    def check(self):
        pass

    def fingerprint(self):
        return sha256(repr((list(self.texts), self.numbers)).encode()).hexdigest()

    def batches(self, size):
        self.read += 1
        content = array(self.texts)
        numbers = np.zeros(len(content), np.int64) if self.numbers is None else np.array(self.numbers)
        yield Records(Samples(content[:0]), numbers[:0])
        for start in range(0, len(content), size):
            yield Records(Samples(content[start : start + size]), numbers[start : start + size])


def array(texts):
    whole = np.empty(len(texts), object)
    whole[:] = texts
    return whole


def population(texts, labels=None):
    n = len(texts)
    labels = np.zeros(n, np.int64) if labels is None else labels
    return Population(1, Samples(array(texts)), labels, np.full(n, -1), np.ones(n, bool))


def mails(split, n):
    records = next(Mails(split, None, None, "refuse").batches(n))
    return population(list(records.samples.content), records.labels)


def made_up(n, seed=0, vocabulary=30, least=0):
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{k}" for k in rng.zipf(1.5, rng.integers(least, 30)) % vocabulary) for _ in range(n)]


def tokens(text):
    return re.findall(r"\w+", text.lower())


def ngrams(text, n):
    listed = tokens(text)
    return [tuple(listed[k : k + n]) for k in range(len(listed) - n + 1)]


# lengths


def test_lengths_are_those_of_the_formulas_and_the_real_side_is_read_once():
    ours, real = made_up(40), Given(made_up(70, 1))
    metric = Lengths(real, False)
    numbers = [metric(population(ours)) for _ in range(2)][1]
    mine, theirs = ([len(text.split()) for text in texts] for texts in (ours, real.texts))
    assert numbers["lengths_wasserstein"] == pytest.approx(wasserstein_distance(mine, theirs))
    assert numbers["lengths_mean"] == pytest.approx(np.mean(mine))
    assert numbers["lengths_std_real"] == pytest.approx(np.std(theirs))
    assert numbers["lengths_median"] == np.median(mine)
    assert numbers["lengths_p90_real"] == pytest.approx(np.quantile(theirs, 0.9))
    assert real.read == 1
    assert metric.private and not dataclasses.replace(metric, public=True).private
    assert "real_lengths" in vars(metric) and "real_lengths" not in vars(pickle.loads(pickle.dumps(metric)))


def test_equal_texts_have_no_distance_and_longer_ones_the_words_they_have_more():
    real = made_up(50)
    assert Lengths(Given(real), False)(population(real))["lengths_wasserstein"] == 0
    longer = [f"{text} and three more" for text in real]
    assert Lengths(Given(real), False)(population(longer))["lengths_wasserstein"] == pytest.approx(3)
    with pytest.raises(UserError, match="expected a synthetic and a real text"):
        Lengths(Given([]), False)(population(real))


# diversity


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_distinct_and_repeated_ngrams_are_those_that_are_counted_one_by_one(n):
    texts = made_up(60)
    listed = [(gram, row) for row, text in enumerate(texts) for gram in ngrams(text, n)]
    homes = {gram: {row for other, row in listed if other == gram} for gram, _ in listed}
    whole = words(texts)
    assert distinct(whole, n) == pytest.approx(len(homes) / len(listed))
    assert repeated(whole, n) == pytest.approx(sum(len(homes[gram]) > 1 for gram, _ in listed) / len(listed))


def test_an_ngram_does_not_reach_over_two_texts_and_repeats_inside_one_text_are_not_between_texts():
    assert len(words(["a b", "", "c d e"]).ngrams(3)[0]) == 1
    assert repeated(words(["a b c d a b c d a b c d", "e f g h"]), 4) == 0
    assert repeated(words(["x a b c d", "a b c d y"]), 4) == pytest.approx(2 / 4)
    assert distinct(words(["", "a"]), 2) == repeated(words([]), 4) == 0


@pytest.mark.parametrize("near", [0.3, 0.5, 0.8, 1.0])
def test_near_duplicates_are_those_that_every_pair_compared_gives(near):
    rng = np.random.default_rng(0)
    texts = made_up(60, vocabulary=200)
    for text in texts[:40]:  # one word of some other
        parts = text.split()
        if parts:
            parts[rng.integers(len(parts))] = "another"
        texts.append(" ".join(parts))
    texts += [texts[1], "one", "one", "two three", "two four", "one one"]

    def shingles(text):
        return set(ngrams(text, min(3, max(len(tokens(text)), 1))))

    expected = np.zeros(len(texts), bool)
    for i, j in itertools.permutations(range(len(texts)), 2):
        one, two = shingles(texts[i]), shingles(texts[j])
        expected[i] |= one == two or len(one & two) >= near * len(one | two) - 1e-9
    found = near_duplicates(words(texts), len(texts), near)
    assert np.array_equal(found, expected)
    assert 0 < found.mean() < 1


def test_thousands_of_variations_of_one_text_are_found_without_comparing_all_pairs(monkeypatch):
    monkeypatch.setattr(diversity, "PAIRS", 20)
    compared = []
    jaccard = diversity.jaccard
    monkeypatch.setattr(diversity, "jaccard", lambda one, two: compared.append(1) or jaccard(one, two))
    base = [f"w{k}" for k in range(100)]
    texts = [" ".join([*base[: k % 100], f"x{k}", *base[k % 100 :]]) for k in range(2000)]
    assert near_duplicates(words(texts), len(texts), 0.8).all()
    assert len(compared) <= 40 * len(texts)


def test_diversity_reads_no_private_data_and_knows_duplicates():
    metric = Diversity(0.8)
    assert metric.private is False
    numbers = metric(population(["Tea  and cake", "tea and cake", "Tea and cake", "Something else here"]))
    assert numbers["vocabulary"] == 6
    assert numbers["duplicates"] == 0.25
    assert numbers["near_duplicates"] == 0.75
    assert numbers["distinct_3"] == 0.5
    assert numbers["repeated_4"] == 0


# overlap


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_longest_common_ngram_is_that_of_all_pairs(size):
    ours, theirs = made_up(30, least=1), made_up(40, 5)
    theirs[3], theirs[4] = f"before {ours[2]} after", ours[7]
    known = [{gram for text in theirs for gram in ngrams(text, n)} for n in range(32)]
    expected = [max((n for n in range(4, 32) if known[n] & set(ngrams(text, n))), default=0) for text in ours]
    batches = (array(theirs[k : k + size]) for k in range(0, len(theirs), size))
    found = longest_common(array(ours), batches)
    assert found.tolist() == expected
    assert found[2] == len(tokens(ours[2])) and len(set(expected)) > 3


def test_overlap_says_how_many_texts_have_how_long_a_part_of_a_private_one():
    secret = " ".join(f"s{k}" for k in range(60))
    ours = [secret.upper(), " ".join(secret.split()[5:20]), "s1 s2 s3 t s4", "nothing of it"]
    metric = Overlap(Given([*made_up(20), secret, ""]), 8)
    assert metric.private is True
    numbers = metric(population(ours))
    assert numbers == {
        "overlap_mean": 75 / 4,
        "overlap_max": 60,
        "overlap_10": 0.5,
        "overlap_20": 0.25,
        "overlap_50": 0.25,
    }
    assert metric(population(["", "a"]))["overlap_max"] == 0
    assert Overlap(Given([]), 8)(population(ours))["overlap_mean"] == 0


# classifier

SETTINGS = {"network": "logistic", "inverse_penalty": 10.0, "model": None, "max_length": 32, "epochs": 4}
SETTINGS |= {"batch_size": 16, "learning_rate": 0.003, "seed": 0, "public": False}


def classifier(data, **changed):
    return TextClassifier(data, **{"embedding": EMBEDDING, **SETTINGS, "runtime": Runtime(device="cpu"), **changed})


def test_labels_of_mails_are_found_by_what_was_trained_on_others():
    numbers = classifier(TEST)(mails("public", 1000))
    assert set(numbers) == {f"{kind}_{name}" for kind in ("accuracy", "f1") for name in ("topic", "mood", "joint")}
    assert min(numbers.values()) > 0.9


def test_shuffled_labels_teach_nothing():
    made = mails("public", 1000)
    shuffled = dataclasses.replace(made, labels=np.random.default_rng(0).permutation(made.labels))
    assert classifier(TEST)(shuffled)["accuracy_topic"] < 0.45


def test_accuracy_and_f1_are_those_of_the_formulas():
    labels = ({"a": "x", "b": "1"}, {"a": "y", "b": "1"}, {"a": "z", "b": "1"})
    real = Given(["ax"] * 8 + ["by"] * 2, labels, [0] * 6 + [2] * 2 + [1, 0])
    numbers = classifier(real)(population(["ax", "by"] * 5, np.array([0, 1] * 5)))
    # b has one value. Guessed: 8 x, 2 y, no z; of 7, 1 and 2
    assert numbers == {"accuracy_a": pytest.approx(0.7), "f1_a": pytest.approx((2 * 6 / 15 + 2 * 1 / 3 + 0) / 3)}


def test_columns_are_told_apart_and_joined():
    labels = [{"a": a, "b": b, "c": "always"} for a in "xy" for b in "123"]
    assert {name: values.tolist() for name, values in columns(labels).items()} == {
        "a": [0, 0, 0, 1, 1, 1],
        "b": [0, 1, 2, 0, 1, 2],
        "joint": [0, 1, 2, 3, 4, 5],
    }
    assert list(columns(labels[:3])) == ["b"]
    assert columns([{}]) == {}


def test_a_population_of_one_label_or_data_without_labels_is_no_error():
    made = mails("public", 50)
    one = dataclasses.replace(made, labels=np.zeros(50, np.int64))
    numbers = classifier(TEST)(one)
    assert 0.1 < numbers["accuracy_topic"] < 0.5
    assert classifier(Given(made_up(5)))(population(made_up(5))) == {}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = sorted({word for text in mails("public", 400).samples.content for word in tokens(text)})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary]))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary) + 5, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_an_encoder_learns_the_labels_and_one_seed_trains_one_network(encoder):
    import torch

    metric = classifier(TEST, network="encoder", model=str(encoder), epochs=6, learning_rate=0.01)
    metric.check()
    made = mails("public", 400)
    state = torch.random.get_rng_state()
    numbers = metric(made)
    assert set(numbers) == {f"{kind}_{name}" for kind in ("accuracy", "f1") for name in ("topic", "mood", "joint")}
    assert numbers["accuracy_topic"] > 0.6
    assert torch.equal(torch.random.get_rng_state(), state)
    assert metric(made) == numbers


def test_an_encoder_that_is_not_there_is_one_line(tmp_path):
    for model in (None, "/nowhere", "not a name"):
        with pytest.raises(UserError, match=r"text_classifier.model=.*expected"):
            classifier(TEST, network="encoder", model=model).check()
    empty = classifier(TEST, network="encoder", model=str(tmp_path))
    with pytest.raises(UserError, match=r"text_classifier.model=.*transformers says") as raised:
        empty(mails("public", 20))
    assert "\n" not in str(raised.value)


# MAUVE

MAUVE = {"buckets": 4, "scaling": 5, "rows": 100, "seed": 0, "batch_size": 64, "public": False}


def test_mauve_without_its_package_is_one_line(monkeypatch):
    monkeypatch.setattr("dpsyn.metric.mauve.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install mauve-text"):
        Mauve(TEST, EMBEDDING, **MAUVE).check()


def test_mauve_is_given_vectors_of_equal_number(monkeypatch):
    seen = {}

    def compute_mauve(p_features, q_features, **settings):
        seen.update(settings, p=p_features, q=q_features)
        return types.SimpleNamespace(mauve=0.25)

    monkeypatch.setitem(sys.modules, "mauve", types.SimpleNamespace(compute_mauve=compute_mauve))
    assert Mauve(TEST, EMBEDDING, **MAUVE)(mails("public", 50)) == {"mauve": 0.25}
    assert seen["p"].shape == seen["q"].shape == (50, 256)
    assert seen["num_buckets"] == 4 and seen["mauve_scaling_factor"] == 5 and seen["seed"] == 0
    with pytest.raises(UserError, match="expected 4 synthetic and real rows"):
        Mauve(TEST, EMBEDDING, **MAUVE)(mails("public", 3))


@pytest.mark.skipif(importlib.util.find_spec("mauve") is None, reason="mauve-text is not installed")
def test_mauve_is_high_for_like_texts_and_low_for_others():
    metric = Mauve(TEST, EMBEDDING, **MAUVE)
    like, other = metric(mails("train", 200))["mauve"], metric(population(made_up(200)))["mauve"]
    assert 1 >= like > 0.5 > other >= 0


# all of them


def test_frechet_kid_precision_and_recall_tell_like_texts_from_others():
    common = {"seed": 0, "batch_size": 64, "public": False}
    found = []
    for made in (mails("train", 300), population(made_up(300, least=5))):
        numbers = dict(Frechet(TEST, EMBEDDING, 64, False)(made))
        numbers |= Kid(TEST, EMBEDDING, subsets=5, subset_size=100, rows=300, **common)(made)
        numbers |= PrecisionRecall(TEST, EMBEDDING, 3, 5, rows=300, **common, runtime=Runtime(device="cpu"))(made)
        found.append(numbers)
    like, other = found
    assert like["frechet"] < other["frechet"] / 3
    assert abs(like["kid"]) < other["kid"] / 3
    assert like["recall"] > 0.7 and other["recall"] < 0.1


def test_text_quality_is_composed_of_all_its_parts_and_measures_texts():
    held_out = ["+held_out._target_=dpsyn.data.mails.Mails", "+held_out.split=test", "+held_out.id=null"]
    held_out += ["+held_out.records=null", "+held_out.on_error=refuse"]
    plain = compose.settings(
        ["data=mails", "embedding=ngrams", "metric=text_quality", "privacy.epsilon=1", "privacy.delta=1e-5", *held_out]
    )
    metrics = {
        name: build.built_part(name, part, [], plain["runtime"]) for name, part in plain["metric"]["parts"].items()
    }
    assert set(metrics) == {"lengths", "diversity", "text_classifier", "frechet", "precision_recall"}
    assert [name for name, metric in metrics.items() if not metric.private] == ["diversity"]
    made = mails("train", 200)
    for name, metric in metrics.items():
        getattr(metric, "check", lambda: None)()
        numbers = metric(made)
        assert numbers and all(isinstance(v, float) and np.isfinite(v) for v in numbers.values()), name


@pytest.mark.parametrize(
    "metric",
    [Lengths(TEST, False), Diversity(0.8), Overlap(TEST, 8), classifier(TEST)],
    ids=["lengths", "diversity", "overlap", "text_classifier"],
)
def test_images_are_refused(metric):
    images = Samples(np.zeros((2, 4, 4, 1), np.uint8))
    made = dataclasses.replace(population(["a", "b"]), samples=images)
    with pytest.raises(UserError, match="expected texts"):
        metric(made)


@pytest.mark.parametrize(
    "key, make",
    [
        ("lengths.public", lambda: Lengths(TEST, "no")),
        ("diversity.near", lambda: Diversity(0)),
        ("diversity.near", lambda: Diversity(True)),
        ("overlap.batch_size", lambda: Overlap(TEST, 0)),
        ("mauve.buckets", lambda: Mauve(TEST, EMBEDDING, **{**MAUVE, "buckets": 1})),
        ("text_classifier.network", lambda: classifier(TEST, network="bert")),
        ("text_classifier.inverse_penalty", lambda: classifier(TEST, inverse_penalty=0)),
        ("text_classifier.epochs", lambda: classifier(TEST, epochs=0)),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_name(key, make):
    with pytest.raises(UserError, match=f"^metric.parts.{key}=.*expected"):
        make()


@pytest.mark.parametrize("make", [lambda: Lengths(None, False), lambda: classifier(None)])
def test_real_data_are_needed(make):
    with pytest.raises(UserError, match="held_out=null"):
        make().check()
