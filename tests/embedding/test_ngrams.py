"""Hashed n-grams: the same numbers anywhere, one row alone, near where the words are near."""

import subprocess
import sys

import numpy as np
import pytest

from dpsyn.embedding import ngrams
from dpsyn.embedding.ngrams import Ngrams
from dpsyn.errors import UserError
from dpsyn.population import Samples

TEXTS = [
    "The soup was cold and the waiter rude.",
    "the soup was COLD,  and the waiter rude!",
    "Cold soup, rude waiter.",
    "Parking is free after six.",
    "",
    "Käse für 3 € \U0001f9c0 \ud800",
    "x" * 3000,
    "!?",
]


def embed(texts, features=256, words=(1, 2), characters=(3, 5)):
    made = Ngrams(features, words and list(words), characters and list(characters))
    return made(Samples(np.array(texts, object)))


def test_vectors_have_length_one_and_an_empty_text_has_none():
    vectors = embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 256) and vectors.dtype == np.float32
    lengths = np.linalg.norm(vectors, axis=1)
    assert lengths == pytest.approx([1, 1, 1, 1, 0, 1, 1, 1], abs=1e-6)
    assert embed([]).shape == (0, 256)


def test_a_row_has_the_same_bits_alone_and_in_any_batch(monkeypatch):
    whole = embed(TEXTS)
    for k, text in enumerate(TEXTS):
        assert np.array_equal(embed([text])[0], whole[k])
    assert np.array_equal(embed(TEXTS[::-1])[::-1], whole)
    monkeypatch.setattr(ngrams, "CHARACTERS", 10)
    assert np.array_equal(embed(TEXTS), whole)


@pytest.mark.parametrize("kind", [{"characters": None}, {"words": None}, {}], ids=["words", "characters", "both"])
def test_texts_that_share_words_are_nearer_than_others(kind):
    near = embed(TEXTS, **kind) @ embed(TEXTS, **kind).T
    assert near[0, 1] > near[0, 2] > near[0, 3] + 0.1


def test_words_count_whatever_stands_between_them_and_however_they_are_written():
    one, two, other = embed(["a soup, hot", "A  SOUP (hot)", "a soup hotter"], characters=None)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("lengths, ngrams", [((1, 1), 3), ((2, 2), 2), ((3, 3), 1), ((1, 3), 6), ((4, 5), 0)])
def test_every_ngram_of_words_falls_into_a_feature_and_none_reaches_over_two_texts(lengths, ngrams):
    vectors = embed(["one two three", "four"], features=4096, words=lengths, characters=None)
    assert np.count_nonzero(vectors[0]) == ngrams
    assert np.count_nonzero(vectors[1]) == (lengths[0] == 1)


def test_an_ngram_that_comes_often_counts_by_the_logarithm():
    vector = embed(["tea tea tea cake"], features=4096, words=(1, 1), characters=None)[0]
    weights = np.sort(np.abs(vector[vector != 0]))
    assert weights[1] / weights[0] == pytest.approx(np.log(4) / np.log(2), rel=1e-6)


def test_signs_are_even_so_that_unlike_texts_stand_at_right_angles():
    vectors = embed([" ".join(f"w{k}x{i}" for i in range(50)) for k in range(200)], words=(1, 1), characters=None)
    products = (vectors @ vectors.T)[np.triu_indices(200, 1)]
    assert abs(products.mean()) < 0.01
    assert products.std() == pytest.approx(1 / 16, rel=0.15)


def test_another_process_and_another_hash_seed_make_the_same_bits():
    code = (
        "import sys, numpy as np; from dpsyn.embedding.ngrams import Ngrams; from dpsyn.population import Samples;"
        "sys.stdout.write(Ngrams(64, [1, 2], [3, 4])(Samples(np.array(['A cup of tea'], object))).tobytes().hex())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"}
    )
    here = Ngrams(64, [1, 2], [3, 4])(Samples(np.array(["A cup of tea"], object)))
    assert run.stdout == here.tobytes().hex()
    assert here[0, :6] == pytest.approx([0, 0, 0, 0.1906874, 0, 0], abs=1e-7)  # from release to release, too


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": 0},
        {"features": True},
        {"word_ngrams": [2, 1]},
        {"word_ngrams": 2},
        {"char_ngrams": [0, 2]},
        {"char_ngrams": "ab"},
        {"word_ngrams": None, "char_ngrams": None},
    ],
)
def test_a_wrong_setting_is_one_line_with_its_name(wrong):
    with pytest.raises(UserError, match=f"^embedding.{next(iter(wrong))}=.*expected"):
        Ngrams(**{"features": 8, "word_ngrams": [1, 1], "char_ngrams": None, **wrong})


def test_images_are_refused():
    with pytest.raises(UserError, match="expected texts"):
        Ngrams(8, [1, 1], None)(Samples(np.zeros((1, 2, 2, 1), np.uint8)))
