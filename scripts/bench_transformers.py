#!/usr/bin/env python
"""Answers a second of a local language model: dpsyn's api=transformers against `generate` of transformers, same run.

    .venv/bin/python scripts/bench_transformers.py [--rows 96] [--rounds 3] [--width 256] [--layers 4] [--vocabulary 8000]

A random Llama on the device of the runtime. Prompts of 20 to 220 tokens, limits of 20 to 200; no row ends by itself, as
with a model that is cut off. Against `generate` on batches of the same memory (tokens), in the order of the rows, each
with the longest limit of its rows; and again with the batches sorted by length, as dpsyn has them.
"""

import os
from collections.abc import Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import tempfile
import time

import numpy as np
import tokenizers
import torch
import transformers

from dpsyn.api.local_llm import LocalLLM, load
from dpsyn.language.prompts import Prompts, Request
from dpsyn.networks.runtime import Runtime, running, torch_device, torch_dtype


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 96), ("rounds", 3), ("width", 256), ("layers", 4), ("vocabulary", 8000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tokens_per_batch", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    transformers.utils.logging.set_verbosity_error()

    words = {f"w{i}": i for i in range(chosen.vocabulary)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()  # type: ignore[attr-defined]
    folder = tempfile.TemporaryDirectory()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder.name)
    torch.manual_seed(0)
    shape = {"hidden_size": chosen.width, "intermediate_size": 4 * chosen.width, "num_hidden_layers": chosen.layers}
    shape |= {"vocab_size": chosen.vocabulary, "max_position_embeddings": 1024, "num_attention_heads": 8}
    config = transformers.LlamaConfig(**shape, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder.name)

    rng = np.random.default_rng(0)
    lengths, limits = rng.integers(20, 221, chosen.rows), rng.integers(20, 201, chosen.rows)
    texts = [" ".join(f"w{i}" for i in rng.integers(1, chosen.vocabulary, length)) for length in lengths]
    requests = [
        Request(({"role": "user", "content": text},), int(limit)) for text, limit in zip(texts, limits, strict=True)
    ]
    seeds = np.random.SeedSequence(0).generate_state(chosen.rows, np.uint64)
    file = {"generate": {"user": "-"}, "vary": {"user": "{sample}"}}
    prompts = Prompts(file, None, None, 64, 20, 25, 1.2, 1200, None, None, False)
    runtime = Runtime()
    api = LocalLLM(
        folder.name, None, False, prompts, 1.0, None, 1.0, [], 1, chosen.tokens_per_batch, None, False, runtime
    )
    device = torch_device(runtime)
    place = Runtime(device=device, dtype=str(torch_dtype(runtime)).removeprefix("torch."))
    network, tokenizer, _ = load(folder.name, None, False, None, place)
    network.to(device)
    tokenizer.padding_side, tokenizer.pad_token = "left", "w0"

    def ours():
        answers = api.answers(requests, seeds)
        assert [len(answer.split()) for answer in answers] == limits.tolist()

    def theirs(order):
        """`generate` on the rows in this order."""
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order):
                rows = order[start : stop + 1]
                if len(rows) * (lengths[rows].max() + limits[rows].max()) > chosen.tokens_per_batch:
                    break
                stop += 1
            rows = order[start:stop]
            given = tokenizer([texts[i] for i in rows], return_tensors="pt", padding=True, add_special_tokens=False)
            settings = {"do_sample": True, "top_k": 0, "max_new_tokens": int(limits[rows].max()), "pad_token_id": 0}
            with running(runtime):
                network.generate(
                    given["input_ids"].to(device), attention_mask=given["attention_mask"].to(device), **settings
                )
            start = stop

    def timed(work, *arguments):
        start = time.perf_counter()
        work(*arguments)
        return time.perf_counter() - start

    as_they_come, by_length = np.arange(chosen.rows), np.argsort(-(lengths + limits), kind="stable")
    ours(), theirs(as_they_come[:8])
    seconds = {"ours": [], "in order": [], "sorted": []}
    for _ in range(chosen.rounds):  # in turn, so that a busy machine slows all
        seconds["ours"].append(timed(ours))
        seconds["in order"].append(timed(theirs, as_they_come))
        seconds["sorted"].append(timed(theirs, by_length))
    best = {name: min(times) for name, times in seconds.items()}
    tokens = limits.sum()
    print(f"{chosen.rows} rows, {lengths.sum()} tokens asked, {tokens} answered, on {device}")
    print(f"generate, in order:       {tokens / best['in order']:.0f} tokens/s")
    print(f"generate, sorted:         {tokens / best['sorted']:.0f} tokens/s")
    ratio, other = best["in order"] / best["ours"], best["sorted"] / best["ours"]
    print(f"dpsyn:                    {tokens / best['ours']:.0f} tokens/s, {ratio:.2f} and {other:.2f} times as many")
    folder.cleanup()


if __name__ == "__main__":
    main()
