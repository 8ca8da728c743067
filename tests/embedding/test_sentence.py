"""Sentence encoders: the numbers of sentence-transformers, the same bits in any company. A tiny network, made here."""

import json
import logging
import warnings

import numpy as np
import pytest

from dpsyn.embedding import sentence
from dpsyn.embedding.sentence import Sentence, batches
from dpsyn.errors import UserError
from dpsyn.networks.runtime import Runtime
from dpsyn.population import Samples

WORDS = ["the", "soup", "was", "cold", "and", "waiter", "rude", "is", "a", "good", "place", "for", "tea", "cake"]
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, n)) for n in (3, 30, 14, 62, 15, 1, 29, 70, 3, 46, 200, 14)] + [""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models")
    vocabulary = place / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    size = len(WORDS) + 5
    config = BertConfig(
        vocab_size=size,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(place / "plain")
    BertTokenizerFast(vocab_file=str(vocabulary), vocab=str(vocabulary)).save_pretrained(place / "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the module's name changed in version 6
        from sentence_transformers import SentenceTransformer, models

        network = models.Transformer(str(place / "plain"), max_seq_length=60)
        pooling = models.Pooling(48, pooling_mode="cls")
    SentenceTransformer(modules=[network, pooling], device="cpu").save(str(place / "sentences"))
    return place


def part(path, **changed):
    settings = {"revision": None, "prompt": None, "max_length": None, "normalize": False, "dtype": "float32"}
    return Sentence(str(path), **{**settings, "runtime": Runtime(device="cpu"), **changed})


def embed(path, texts, **changed):
    return part(path, **changed)(Samples(np.array(texts, object)))


@pytest.mark.parametrize("kind", ["plain", "sentences"])
@pytest.mark.parametrize("normalize", [False, True])
def test_vectors_are_those_of_sentence_transformers(folder, kind, normalize):
    from sentence_transformers import SentenceTransformer

    network = SentenceTransformer(str(folder / kind), device="cpu")
    expected = network.encode(TEXTS, normalize_embeddings=normalize)
    vectors = embed(folder / kind, TEXTS, normalize=normalize)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), 48)
    assert vectors == pytest.approx(expected, abs=1e-5)
    assert not np.allclose(vectors[0], vectors[1], atol=0.1)


def test_a_row_has_the_same_bits_alone_and_in_any_company(folder):
    path = folder / "sentences"
    whole = embed(path, TEXTS)
    for k, text in enumerate(TEXTS):
        assert np.array_equal(embed(path, [text])[0], whole[k])
    rng = np.random.default_rng(1)
    for _ in range(5):
        order = rng.integers(0, len(TEXTS), 40)
        assert np.array_equal(embed(path, [TEXTS[k] for k in order]), whole[order])


def test_the_shape_of_a_batch_is_a_function_of_the_length_of_a_text():
    lengths = np.random.default_rng(0).integers(0, 101, 500)
    seen, shapes = [], {}
    for rows, length, size in batches(lengths, 100, 256):
        assert 1 <= len(rows) <= size and size * length <= max(256, length)
        assert all(length - 16 < lengths[row] <= length or length == 16 for row in rows)
        assert shapes.setdefault(length, size) == size
        seen += rows.tolist()
    assert sorted(seen) == list(range(500))
    assert set(shapes) == {16, 32, 48, 64, 80, 96, 100}
    assert list(batches([], 100, 256)) == []


def test_no_rows_are_no_vectors(folder):
    assert embed(folder / "plain", []).shape == (0, 48)


def test_what_is_beyond_max_length_is_not_seen(folder):
    path = folder / "plain"
    long, other = "the soup was cold and " + "rude " * 20, "the soup was cold and " + "tea " * 20
    one, two = embed(path, [long, other], max_length=7)
    assert np.array_equal(one, two)
    one, two = embed(path, [long, other])
    assert not np.array_equal(one, two)
    with pytest.raises(UserError, match=r"embedding.max_length=65: expected null, or 64"):
        embed(path, ["tea"], max_length=65)


def test_a_prompt_stands_before_every_text(folder):
    path = folder / "plain"
    assert np.array_equal(embed(path, ["tea", "soup"], prompt="good "), embed(path, ["good tea", "good soup"]))


def test_bfloat16_is_near_and_not_the_same(folder):
    path = folder / "sentences"
    exactly, coarsely = (embed(path, TEXTS, dtype=dtype, normalize=True) for dtype in ("float32", "bfloat16"))
    assert coarsely.dtype == np.float32
    assert not np.array_equal(exactly, coarsely)
    assert (exactly * coarsely).sum(1).min() > 0.99


def test_fewer_rows_at_once_are_the_same_vectors(folder):
    path = folder / "sentences"
    few = embed(path, TEXTS, runtime=Runtime(device="cpu", network_batch_size=1))
    assert few == pytest.approx(embed(path, TEXTS), abs=1e-5)


def test_a_text_that_is_no_unicode_is_embedded_and_not_quoted(folder):
    vectors = embed(folder / "plain", ["tea \ud800 cake", "tea ? cake"])
    assert np.array_equal(vectors[0], vectors[1])


def test_a_network_is_loaded_once_and_nothing_is_said(folder, capfd, caplog):
    sentence.load.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            embed(folder / "plain", TEXTS[:2])
    assert sentence.load.cache_info().misses == 1
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_the_fingerprint_follows_the_weights_and_not_the_place(folder, tmp_path):
    import shutil

    before = part(folder / "sentences").fingerprint()
    copy = tmp_path / "copy"
    shutil.copytree(folder / "sentences", copy)
    assert part(copy).fingerprint() == before
    weights = next(copy.rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert part(copy).fingerprint() != before


@pytest.mark.parametrize(
    "wrong",
    [
        {"revision": 1},
        {"prompt": 2},
        {"max_length": 0},
        {"max_length": True},
        {"normalize": "no"},
        {"dtype": "float16"},
    ],
)
def test_a_wrong_setting_is_one_line_with_its_name(wrong):
    with pytest.raises(UserError, match=f"^embedding.{next(iter(wrong))}=.*expected"):
        part("somebody/model", **wrong)


@pytest.mark.parametrize("model", ["/nowhere/at/all", "a b", None, "http://there/model"])
def test_what_is_no_model_is_found_before_anything_is_loaded(model):
    with pytest.raises(UserError, match=r"^embedding.model=.*expected"):
        Sentence(model, None, None, None, True, "float32").check()
    part("somebody/model").check()


def test_a_folder_without_a_network_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"embedding.model=.*no config.json"):
        part(tmp_path).check()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    part(tmp_path).check()
    with pytest.raises(UserError, match=r"embedding.model=.*expected a network") as raised:
        embed(tmp_path, ["tea"])
    assert "\n" not in str(raised.value)


def test_a_name_that_cannot_be_fetched_is_one_line(monkeypatch):
    import huggingface_hub

    def nothing(*_, **__):
        raise OSError("down")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    with pytest.raises(
        UserError, match=r"embedding.model=somebody/model: expected .* on the hub .* \(\w+\)\. Name a folder"
    ):
        embed("somebody/model", ["tea"])


def test_images_are_refused(folder):
    with pytest.raises(UserError, match="expected texts"):
        part(folder / "plain")(Samples(np.zeros((1, 2, 2, 1), np.uint8)))


def test_texts_that_are_read_in_part_are_told_apart_and_counted_in_private(folder, tmp_path):
    from dpsyn.data.texts import Texts
    from dpsyn.privacy.electorate import open_electorate, row_reports

    embed = part(folder / "plain", max_length=8)
    texts = [WORDS[0], " ".join(WORDS[:4]), " ".join(WORDS[:3] * 5)]
    content = np.array(texts, object)
    assert embed.truncated(Samples(content)).tolist() == [False, False, True]
    (tmp_path / "texts.csv").write_text("text\n" + "\n".join(texts) + "\n")
    electorate = open_electorate(Texts(path=str(tmp_path / "texts.csv")), embed, {}, "record", tmp_path / "cache")
    assert json.loads(row_reports(electorate)["adjusted.json"]) == {"longer than the embedding reads": 1}
