"""The local language model as an api: tiny random networks and a tokenizer made here, saved as published ones are."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from dpsyn.api import local_llm as part
from dpsyn.api.local_llm import LocalLLM, chosen_tokens, context_of, load
from dpsyn.errors import UserError
from dpsyn.language.cleaning import Request
from dpsyn.language.prompts import Prompts
from dpsyn.networks.runtime import Runtime
from dpsyn.population import Samples
from dpsyn.randomness import uniform

LINES = [
    "The food was good and the people were kind.",
    "We waited for an hour, and the room was cold!",
    "Nobody answered the phone. I will not come back.",
    "system user assistant blank words review restaurant bar",
]
FILE = {
    "generate": {"user": "A review of a {kind}, {style}:"},
    "vary": {"system": "Fill in the blanks.", "user": "{masked_sample} Whole:"},
    "words": {"style": ["good", "cold", "kind", "long"]},
}
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 128


def tokenizer(template=None):
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(LINES, vocab_size=320, min_frequency=1, special_tokens=["<end>"], show_progress=False)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<end>")
    fast.chat_template = template
    return fast


def save(folder, network, template=None):
    # far apart, so that what is drawn depends on what was read
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(4)
    network.save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT, "vocab_size": 320}
    network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, eos_token_id=0, bos_token_id=0))
    return save(tmp_path_factory.mktemp("gpt2"), network)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "vocab_size": 320}
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, eos_token_id=0, bos_token_id=0))
    return save(tmp_path_factory.mktemp("llama"), network, TEMPLATE)


@pytest.fixture(params=["gpt2", "llama"])
def folder(request):
    return request.getfixturevalue(request.param)


def prompts(**changes):
    settings = {"file": FILE, "description": None, "typical_words": 10, "generate_tokens": 12, "word_std": 4}
    settings |= {"min_words": 3, "tokens_per_word": 1.5, "max_tokens": 40, "max_parent_words": None, "tokenizer": None}
    return Prompts(**{**settings, "keep_lines": False, **changes})


def model(path, **changes):
    settings = {"path": path, "revision": None, "trust_remote_code": False, "prompts": prompts(), "temperature": 1.0}
    settings |= {"top_k": None, "top_p": 1.0, "stop": [], "attempts": 2, "tokens_per_batch": 4096, "device_map": None}
    return LocalLLM(**{**settings, "offload": False, "runtime": Runtime(device="cpu", dtype="float32"), **changes})


def seeds(n, start=0):
    return np.random.SeedSequence(start).generate_state(n, np.uint64)


def asked(*texts, limit=12):
    return [Request(({"role": "user", "content": text},), limit) for text in texts]


MANY = [" ".join(LINES)[at : at + 5 + 11 * at % 90] for at in range(24)]
KINDS = [{"kind": ("bar", "restaurant")[i % 2]} for i in range(24)]


def test_a_row_is_the_same_alone_and_in_any_batch(folder):
    requests = [replace(request, max_tokens=3 + i) for i, request in enumerate(asked(*MANY))]
    whole = model(folder).answers(requests, seeds(24))
    assert len(set(whole)) == 24
    assert whole == model(folder, tokens_per_batch=200).answers(requests, seeds(24))
    assert whole == model(folder, runtime=Runtime(device="cpu", network_batch_size=3, dtype="float32")).answers(
        requests, seeds(24)
    )
    for i in (0, 7, 23):
        assert model(folder).answers(requests[i : i + 1], seeds(24)[i : i + 1]) == [whole[i]]


def test_the_whole_api_gives_the_same_rows_whatever_the_batch(folder):
    api = model(folder)
    fresh = api.generate(KINDS, seeds(24))
    varied = api.vary(fresh, KINDS, 0.5, seeds(24, 1))
    assert len(fresh) == len(varied) == 24 and (fresh.content != varied.content).sum() > 12
    again = model(folder, tokens_per_batch=300)
    assert (again.generate(KINDS[5:9], seeds(24)[5:9]).content == fresh.content[5:9]).all()
    some = Samples(fresh.content[5:9])
    assert (again.vary(some, KINDS[5:9], 0.5, seeds(24, 1)[5:9]).content == varied.content[5:9]).all()


def test_another_seed_gives_another_text(folder):
    answers = model(folder).answers(asked(*[MANY[3]] * 20), seeds(20))
    assert len(set(answers)) == 20


def test_tokens_are_those_that_the_network_gives_without_padding_cache_or_batch(folder):
    api = model(folder, temperature=0.7, top_k=20, top_p=0.8)
    network, words, ends = load(folder, None, False, None, replace(api.runtime, dtype="float32"))
    ids = [words(text)["input_ids"] for text in MANY[:6]]
    limits = [4, 9, 9, 2, 12, 7]
    drawn = api.draw(network, words, ends, ids, limits, seeds(6))
    for row, limit, seed, got in zip(ids, limits, seeds(6), drawn, strict=True):
        own = list(row)
        for step in range(limit):
            with torch.no_grad():
                logits = network(torch.tensor([own])).logits[:, -1]
            number = torch.from_numpy(uniform(np.array([seed]), "local_llm.token", step))
            own.append(int(chosen_tokens(logits, number, 0.7, 20, 0.8)))
            if own[-1] in ends:
                own.pop()
                break
        assert got == own[len(row) :]


def test_the_most_likely_token_alone_is_what_generate_of_transformers_gives(folder):
    api = model(folder, top_k=1)
    network, words, ends = load(folder, None, False, None, replace(api.runtime, dtype="float32"))
    row = words(MANY[5], return_tensors="pt")
    theirs = network.generate(**row, do_sample=False, max_new_tokens=12, pad_token_id=0)[0, row["input_ids"].shape[1] :]
    theirs = [token for token in theirs.tolist() if token not in ends]
    assert api.draw(network, words, ends, [row["input_ids"][0].tolist()], [12], seeds(1)) == [theirs]


def test_every_row_ends_at_its_own_limit(folder):
    api = model(folder)
    network, words, _ = load(folder, None, False, None, replace(api.runtime, dtype="float32"))
    ids = [words(text)["input_ids"] for text in MANY]
    limits = [1 + 7 * i % 40 for i in range(24)]
    drawn = api.draw(network, words, frozenset(), ids, limits, seeds(24))
    assert [len(tokens) for tokens in drawn] == limits


def test_a_row_that_ends_gives_what_stands_before_the_end(folder):
    api = model(folder)
    network, words, _ = load(folder, None, False, None, replace(api.runtime, dtype="float32"))
    ids = [words(text)["input_ids"] for text in MANY]
    free = api.draw(network, words, frozenset(), ids, [20] * 24, seeds(24))
    ends = frozenset(range(0, 320, 9))
    drawn = api.draw(network, words, ends, ids, [20] * 24, seeds(24))
    for whole, got in zip(free, drawn, strict=True):
        end = next((at for at, token in enumerate(whole) if token in ends), 20)
        assert got == whole[:end]


def test_an_answer_ends_before_the_first_stop_text_unless_nothing_stands_before_it(folder):
    free = model(folder).answers(asked(*MANY, limit=40), seeds(24))
    stop = ["e", "th"]
    stopped = model(folder, stop=stop).answers(asked(*MANY, limit=40), seeds(24))
    assert sum(a != b for a, b in zip(free, stopped, strict=True)) > 5
    for (whole, _), (got, _) in zip(free, stopped, strict=True):
        assert got == whole[: min((whole.index(text) for text in stop if text in whole), default=None)]
    assert model(folder, stop=["\n\n"]).cut("\n\n one\n\ntwo") == "\n\n one"


def test_an_answer_goes_on_from_the_beginning_that_it_is_given_and_says_when_it_was_cut_off(folder):
    begun = "We waited for"
    requests = [Request((*one.messages, {"role": "assistant", "content": begun}), 5) for one in asked(*MANY[:6])]
    api = model(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    ids, limits, _ = api.fitted(words, None, requests)
    assert all(words.decode(row).endswith(begun) for row in ids) and limits == [5] * 6
    answers = api.answers(requests, seeds(6))
    assert all(text == "" or (text.startswith(begun) and len(text) > len(begun)) for text, _ in answers)
    assert all(cut for text, cut in answers if text) and sum(text != "" for text, _ in answers) > 3
    # a stop text in what was given does not end the answer
    kept = model(folder, stop=["waited"]).answers(requests, seeds(6))
    assert [text[: len(begun)] for text, _ in kept] == [text[: len(begun)] for text, _ in answers]


def test_shares_of_many_draws_are_those_of_the_network():
    logits = torch.tensor([[1.0, 0.0, -torch.inf, 2.0, 0.0]]).repeat(20_000, 1)
    numbers = torch.from_numpy(uniform(np.arange(20_000, dtype=np.uint64), "local_llm.token", 3))
    for temperature, top_k, top_p in ((1.0, None, 1.0), (2.0, None, 1.0), (1.0, 2, 1.0), (1.0, None, 0.8)):
        shares = torch.softmax(logits[0] / temperature, 0)
        if top_k or top_p < 1:
            shares = torch.where(shares >= 0.2, shares, 0)
            shares = shares / shares.sum()
        counts = torch.bincount(chosen_tokens(logits, numbers, temperature, top_k, top_p), minlength=5) / 20_000
        assert (counts - shares).abs().max() < 0.015
        assert counts[2] == 0


def test_of_a_large_vocabulary_top_p_keeps_the_same_tokens_however_they_are_found(monkeypatch):
    logits = torch.randn((50, 3000), generator=torch.Generator().manual_seed(0)) * 4
    numbers = torch.from_numpy(uniform(np.arange(50, dtype=np.uint64), "local_llm.token", 3))
    found = {top_p: chosen_tokens(logits, numbers, 1.0, None, top_p) for top_p in (0.3, 0.9, 0.9999)}
    monkeypatch.setattr(part, "MOST_LIKELY", 2)
    for top_p, tokens in found.items():
        assert (chosen_tokens(logits, numbers, 1.0, None, top_p) == tokens).all()
        shares, order = torch.softmax(logits, 1).sort(descending=True)
        before = {int(t): float(b) for t, b in zip(order[0], shares[0].cumsum(0) - shares[0], strict=True)}
        assert before[int(tokens[0])] < top_p


def test_tokens_that_are_as_likely_as_the_last_one_kept_are_kept():
    logits = torch.tensor([[0.0, 1.0, 0.0, 0.0]]).repeat(4, 1)
    numbers = torch.tensor([0.0, 0.2, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert set(chosen_tokens(logits, numbers, 1.0, 2, 1.0).tolist()) == {0, 1, 3}


def test_numbers_that_are_not_finite_give_no_answer(gpt2, monkeypatch):
    logits = torch.tensor([[0.0, torch.nan], [0.0, 0.0]])
    assert chosen_tokens(logits, torch.tensor([0.5, 0.9], dtype=torch.float64), 1.0, None, 1.0).tolist() == [-1, 1]
    monkeypatch.setattr(part, "chosen_tokens", lambda logits, *rest: torch.full((len(logits),), -1))
    assert model(gpt2).answers(asked(*MANY[:3]), seeds(3)) == [("", False)] * 3


def test_a_chat_template_is_used_where_there_is_one(gpt2, llama):
    request = Request(({"role": "system", "content": "cold"}, {"role": "user", "content": "bar"}), 4)
    for folder, expected in ((llama, "<|system|>cold<|user|>bar<|assistant|>"), (gpt2, "cold\n\nbar")):
        words = transformers.AutoTokenizer.from_pretrained(folder)
        ids, _, _ = model(folder).fitted(words, None, [request])
        assert words.decode(ids[0]) == expected


def test_a_template_that_knows_no_system_gets_it_with_the_user():
    words = tokenizer("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE)
    request = Request(({"role": "system", "content": "cold"}, {"role": "user", "content": "bar"}), 4)
    assert part.as_chat(words, request) == "<|user|>cold\n\nbar<|assistant|>"


def test_a_prompt_that_is_too_long_loses_its_middle_and_says_so(folder, caplog):
    words = transformers.AutoTokenizer.from_pretrained(folder)
    long = " ".join(f"{n}" for n in range(200))
    api = model(folder)
    whole = words(long)["input_ids"]
    ids, limits, _ = api.fitted(words, CONTEXT, asked("bar", long, limit=30) + asked(long, limit=1000))
    assert [len(row) for row in ids[1:]] == [CONTEXT - 30, CONTEXT // 2] and limits == [30, 30, CONTEXT // 2]
    text = words.decode(ids[1])
    assert "0 1 2" in text and text.replace("<|assistant|>", "").endswith("198 199") and " 100 " not in text
    assert len(whole) > CONTEXT and "2 of 3 prompts lost their middle" in caplog.text
    assert len(api.answers(asked(long, limit=1000), seeds(1))) == 1


MARKS = [
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|end|>",
    "[THINK]",
    "[/THINK]",
    "<pad>",
    "<|channel>",
    "<channel|>",
]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            "<|channel|>analysis<|message|>A bar.<|end|><|start|>assistant<|channel|>final<|message|>It was cold.",
            "It was cold.",
        ),
        ("<|channel|>analysis<|message|>A bar. And then", "<think>"),
        ("[THINK]A bar.[/THINK]It was cold.<pad>", "It was cold."),
        ("[THINK]A bar. And", "<think>"),
        ("<|channel>thought\nA bar.<channel|>It was cold.", "It was cold."),
        ("It was cold.<pad><pad>", "It was cold."),
        ("It was cold.", "It was cold."),
    ],
)
def test_reasoning_between_special_tokens_is_taken_out_with_them(answer, text):
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": MARKS})
    assert part.decoded(words, words(answer)["input_ids"]) == text


def test_where_the_template_begins_the_reasoning_an_answer_without_its_end_is_of_no_use(gpt2, tmp_path, monkeypatch):
    shutil.copytree(gpt2, tmp_path / "thinks")
    tokenizer(TEMPLATE + "<think>\n").save_pretrained(tmp_path / "thinks")
    said = iter(["The user is cold.", "The user is cold.</think>It was good."])
    monkeypatch.setattr(part, "decoded", lambda *_: next(said))
    answers = model(str(tmp_path / "thinks")).answers(asked(*MANY[:2]), seeds(2))
    assert {text for text, _ in answers} == {"", "It was good."}


def test_an_answer_of_no_use_is_asked_again_then_the_parent_stands_in(folder, caplog, monkeypatch):
    calls = []

    def answers(self, requests, own):
        calls.append((list(requests), own))
        return [("I'm sorry, but I cannot help with that." if seed % 2 else "a fine text", False) for seed in own]

    monkeypatch.setattr(LocalLLM, "answers", answers)
    parents = Samples(np.array([f"parent {i}" for i in range(24)], object))
    varied = model(folder).vary(parents, KINDS, 0.5, seeds(24))
    odd = [int(seed) % 2 for seed in seeds(24)]
    assert len(calls) == 2 and len(calls[1][0]) == sum(odd)
    assert not set(calls[0][1]) & set(calls[1][1])
    left = sum(int(seed) % 2 for seed in calls[1][1])
    assert 0 < left == sum(text.startswith("parent") for text in varied.content)
    assert all(text == "a fine text" or text == f"parent {i}" for i, text in enumerate(varied.content))
    assert f"{left} of 24 rows got no text after 2 attempts and come back as their parents" in caplog.text


def test_for_a_fresh_row_another_of_its_label_stands_in(folder, caplog, monkeypatch):
    def answers(self, requests, own):
        return [
            ("" if seed % 2 else f"a {'bar' if 'bar' in r.messages[0]['content'] else 'restaurant'}", False)
            for r, seed in zip(requests, own, strict=True)
        ]

    monkeypatch.setattr(LocalLLM, "answers", answers)
    fresh = model(folder, attempts=1).generate(KINDS, seeds(24))
    assert all(label["kind"] in text for label, text in zip(KINDS, fresh.content, strict=True))
    assert "are copies of others of their label" in caplog.text
    odd = np.array([seed for seed in seeds(24) if seed % 2])[:1]
    assert "bar" in model(folder, attempts=1).generate(KINDS[:1], odd).content[0]  # alone: asked on


def test_a_label_without_any_text_stops_with_one_line(folder, monkeypatch):
    monkeypatch.setattr(LocalLLM, "answers", lambda self, requests, own: [("", False)] * len(requests))
    with pytest.raises(UserError, match=r"a model that answers with a text \(bar\)"):
        model(folder).generate(KINDS[:1], seeds(1))


def test_degree_zero_gives_the_parents_and_asks_nothing(folder, monkeypatch):
    monkeypatch.setattr(LocalLLM, "answers", lambda *arguments: pytest.fail("asked"))
    parents = Samples(np.array(["one", "two"], object))
    assert (model(folder).vary(parents, KINDS[:2], 0, seeds(2)).content == parents.content).all()
    assert len(model(folder).generate([], seeds(0))) == 0


def test_memory_that_runs_out_costs_time_alone(folder, monkeypatch):
    requests = asked(*MANY)
    whole = model(folder).answers(requests, seeds(24))
    drawn = LocalLLM.draw

    def scarce(self, network, words, ends, ids, limits, own):
        if len(ids) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return drawn(self, network, words, ends, ids, limits, own)

    monkeypatch.setattr(LocalLLM, "draw", scarce)
    monkeypatch.setattr("dpsyn.networks.runtime.fitting", {})
    assert model(folder).answers(requests, seeds(24)) == whole


def test_offloaded_weights_give_the_same_texts(gpt2):
    answers = model(gpt2).answers(asked(*MANY[:4]), seeds(4))
    assert model(gpt2, offload=True).answers(asked(*MANY[:4]), seeds(4)) == answers


def test_bfloat16_is_asked_of_the_runtime(folder):
    api = model(folder, runtime=Runtime(device="cpu", dtype="bfloat16"))
    assert len(api.generate(KINDS[:4], seeds(4))) == 4
    network, _, _ = load(folder, None, False, None, replace(api.runtime, devices=None))
    assert network.dtype == torch.bfloat16


def test_it_can_be_sent_to_another_process_until_it_is_asked(folder):
    api = pickle.loads(pickle.dumps(model(folder)))
    assert api == model(folder)


def test_the_context_is_that_of_the_network(gpt2):
    config = transformers.AutoConfig.from_pretrained(gpt2)
    assert context_of(type("Network", (), {"config": config})) == CONTEXT


def test_what_is_no_model_is_refused_in_one_line(gpt2, tmp_path):
    model(gpt2).check()
    model("openai-community/gpt2").check()
    for path in (None, "", "no/such/folder", str(tmp_path)):
        with pytest.raises(UserError, match=r"^api\.path=.*expected") as error:
            model(path).check()
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^api\.path=nobody/nothing: .*can be reached"):
        model("nobody/nothing").generate(KINDS[:1], seeds(1))
    broken = tmp_path / "broken"
    shutil.copytree(gpt2, broken)
    (broken / "model.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match=r"^api\.path=") as error:
        model(str(broken)).generate(KINDS[:1], seeds(1))
    assert "\n" not in str(error.value)


def test_a_model_that_lacks_weights_is_refused(gpt2, tmp_path):
    larger = tmp_path / "larger"
    shutil.copytree(gpt2, larger)
    config = json.loads(Path(larger, "config.json").read_text())
    Path(larger, "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    with pytest.raises(UserError, match="It has no transformer"):
        model(str(larger)).generate(KINDS[:1], seeds(1))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("temperature", value) for value in (0, -1, None, True, float("inf"))],
        *[("top_p", value) for value in (0, 1.1, None)],
        *[("top_k", value) for value in (0, 1.5)],
        *[("stop", value) for value in ("\n", [""], None, [1])],
        *[("attempts", 0), ("tokens_per_batch", 0), ("offload", "no"), ("prompts", {}), ("path", 3)],
    ],
)
def test_settings_that_mean_nothing_are_refused(key, value):
    with pytest.raises(UserError, match=rf"^api\.{key}="):
        model(**{"path": "gpt2", key: value})


def test_what_cannot_be_combined_is_refused(gpt2, monkeypatch):
    monkeypatch.setattr("dpsyn.errors.find_spec", lambda name: True if name in ("torch", "transformers") else None)
    with pytest.raises(UserError, match="the package accelerate"):
        model(gpt2, device_map="auto").check()
    monkeypatch.setattr("dpsyn.errors.find_spec", lambda name: name)
    with pytest.raises(UserError, match=r"api\.offload=true"):
        model(gpt2, device_map="auto", offload=True).check()
    with pytest.raises(UserError, match=r"runtime\.devices"):
        model(gpt2, device_map="auto", runtime=Runtime(devices=["cpu", "cpu"])).check()
    with pytest.raises(UserError, match=r"schedule\.degree=2"):
        model(gpt2).check_degree(2)
    with pytest.raises(UserError, match="expected texts"):
        model(gpt2).vary(Samples(np.zeros((1, 2, 2, 3), np.uint8)), KINDS[:1], 0.5, seeds(1))
