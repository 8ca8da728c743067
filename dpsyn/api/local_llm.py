"""A causal language model of transformers on this machine as an api of Aug-PE (arXiv 2403.01749).

It decodes in a loop of its own, not with `generate`: there a batch has one generator and one limit. Here every row
draws its tokens from its own seed and ends at its own limit, and rows that have ended leave the batch.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.data import Data
from dpsyn.errors import UserError, check_packages, first_line, invalid
from dpsyn.language.cleaning import Request, beginning_of
from dpsyn.language.prompts import Prompts
from dpsyn.language.reasoning import open_tag, without_reasoning
from dpsyn.marks import PLACE, SPEED
from dpsyn.networks.hub import model_folder, pinned, quiet_transformers
from dpsyn.networks.packaged import as_safetensors, check_gguf
from dpsyn.networks.runtime import Runtime, in_batches, placed, running, torch_device, torch_dtype
from dpsyn.population import Label, Samples, of_texts
from dpsyn.randomness import retry_seeds, uniform
from dpsyn.validate import flag, number, text_or_null, whole

AT_ONCE = 4  # tokens between two looks at which rows have ended; a look waits for the device
LEAVING = (
    8  # a batch shrinks once one in this many of its rows has ended: shrinking copies the cache of keys and values
)
MOST_LIKELY = 1024  # tokens that mostly hold top_p: of 50,257 they are found in 1/8 of the time that a sort takes
LAST_RESORT = 10  # times `attempts`, for one row of a label of which no row at all got a text
FOLDER = "a folder that transformers saved with safetensors"
EXPECTED = "a folder or a GGUF file that is there, package:NAME, or a name on the hub"


@dataclass(frozen=True)
class LocalLLM(Api):
    """Texts, object of str [n].

    path: a folder that transformers saved, a GGUF file (chat models of llama.cpp), 'package:NAME' for the model that an
        installed package carries, or a name on the hub; safetensors and GGUF alone are read. revision: of the hub's.
    trust_remote_code: whether code that comes with the model may run.
    prompts: what it is asked. A model with a chat template gets it as system and user; one without continues the
        system's text, an empty line and the user's.
    temperature, top_k, top_p: of the drawing of tokens; tokens as likely as the last one that is kept are kept too.
        top_k None: all.
    stop: an answer ends before the first of these texts.
    attempts: of a row whose answer is not usable, with new words, blanks and tokens; then its parent stands in, or for
        a fresh row another text of its label. How many is said on standard error.
    tokens_per_batch: prompt and answer, over the rows of a batch; fewer rows where memory runs out.
    device_map: as accelerate has it ('auto': over all GPUs, then the CPU); None: on the device of the runtime.
    offload: the weights wait in the memory of the CPU while others, such as the embedding, are on the device.

    A prompt that leaves too little of the model's context to its answer loses its middle; an answer gets half of the
    context at most. The weights are loaded in the dtype of the runtime, when first asked.
    """

    path: str | None = field(metadata=PLACE)
    revision: str | None
    trust_remote_code: bool
    prompts: Prompts
    temperature: float
    top_k: int | None
    top_p: float
    stop: Sequence[str]
    attempts: int
    tokens_per_batch: int = field(metadata=SPEED)
    device_map: str | None = field(metadata=SPEED)
    offload: bool = field(metadata=SPEED)
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        for key in ("path", "revision", "device_map"):
            text_or_null(f"api.{key}", getattr(self, key))
        for key in ("trust_remote_code", "offload"):
            flag(f"api.{key}", getattr(self, key))
        if not isinstance(self.prompts, Prompts):
            raise invalid("api.prompts", self.prompts, "a part with _target_: dpsyn.language.prompts.Prompts")
        number("api.temperature", self.temperature, "a number over 0", above=0)
        number("api.top_p", self.top_p, "a number over 0, 1 at most", above=0, most=1)
        whole("api.top_k", self.top_k, 1, optional=True)
        for key in ("attempts", "tokens_per_batch"):
            whole(f"api.{key}", getattr(self, key), 1)
        stop = self.stop
        if isinstance(stop, str) or not isinstance(stop, Sequence) or not all(isinstance(s, str) and s for s in stop):
            raise invalid("api.stop", stop, "a list of texts, or []")

    @property
    def row_bytes(self) -> int:
        """About what a row takes on disk: a text of the declared length."""
        return 5 * self.prompts.generate_tokens

    def check(self) -> None:
        """Raises UserError for what is no model, a missing package, and settings that exclude each other."""
        check_packages("api", "transformers", "torch", "transformers", *(["accelerate"] if self.device_map else []))
        if self.device_map is not None:
            if self.offload:
                raise invalid("api.offload", "true", "false beside api.device_map")
            if self.runtime.devices is not None:
                raise invalid("runtime.devices", self.runtime.devices, "null beside api.device_map")
        self._place()
        self.prompts.check()

    def check_degree(self, degree: Degree) -> None:
        """Raises UserError for what is no degree."""
        self.prompts.check_degree(degree)

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raises UserError for a placeholder or a label that the prompt file has nothing for."""
        self.prompts.check_labels(labels)

    def reads(self) -> Sequence[Data]:
        return ()

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Raises UserError for a prompt that its label cannot fill, a model that cannot be loaded, and a label of which
        no answer is a text."""

        def requests(rows: Sequence[int], seeds: np.ndarray) -> list[Request]:
            return self.prompts.generate([labels[i] for i in rows], seeds)

        names = [" | ".join(map(str, label.values())) for label in labels]
        texts = self._texts(requests, seeds, names)
        without = [i for i, text in enumerate(texts) if text is None]
        by_name: dict[str, list[str]] = {}
        for name, text in zip(names, texts, strict=True):
            if text is not None:
                by_name.setdefault(name, []).append(text)
        for i in without:
            if names[i] not in by_name:
                do = f"It was asked {LAST_RESORT * self.attempts} times. See api.prompts and api.stop."
                raise invalid("api.path", self.path, f"a model that answers with a text ({names[i] or 'no label'})", do)
            others = by_name[names[i]]
            texts[i] = others[int(seeds[i]) % len(others)]
        self._say(len(without), len(texts), "are copies of others of their label")
        return of_texts(texts)

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        """degree: 0: the parent itself, nothing is asked; else the probability that a token of it is blanked."""
        self.check_degree(degree)
        parents = self.adopt(samples, labels, seeds).content
        if not degree:
            return of_texts(list(parents))

        def requests(rows: Sequence[int], seeds: np.ndarray) -> list[Request]:
            return self.prompts.vary([parents[i] for i in rows], [labels[i] for i in rows], degree, seeds)

        texts = self._texts(requests, seeds, None)
        self._say(sum(text is None for text in texts), len(texts), "come back as their parents")
        return of_texts([own if text is None else text for own, text in zip(parents, texts, strict=True)])

    def adopt(self, samples: Samples, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Texts of another api, as they are. Raises UserError for what are no texts."""
        if samples.content.dtype != object:
            raise UserError("api transformers: expected texts. Choose an api for this kind of data.")
        return samples

    def _place(self) -> str:
        """The folder, the GGUF file, or the name on the hub."""
        folder = model_folder("api.path", self.path, EXPECTED, needs_owner=False)
        if folder and folder.is_file():
            check_gguf("api.path", folder)
        elif folder and (not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors"))):
            expected = "a folder with config.json and safetensors, as transformers saves it"
            raise invalid("api.path", self.path, expected)
        return str(folder or self.path)

    def _texts(self, requests: Any, seeds: np.ndarray, names: Sequence[str] | None) -> list[str | None]:
        """A row each; None where no attempt gave a text. requests: (rows, a seed each) -> what is asked of them.
        names: of the rows' labels, of which each should have one text at least; None where parents stand in."""
        texts: list[str | None] = [None] * len(seeds)
        for attempt in range(self.attempts * (1 if names is None else LAST_RESORT)):
            rows = [i for i, text in enumerate(texts) if text is None]
            if names is not None and attempt >= self.attempts:
                found = {name for name, text in zip(names, texts, strict=True) if text is not None}
                rows = list({names[i]: i for i in rows if names[i] not in found}.values())
            if not rows:
                break
            own = retry_seeds(seeds[rows], attempt)
            asked = requests(rows, own)
            for i, request, (answer, cut) in zip(rows, asked, self.answers(asked, own), strict=True):
                texts[i] = self.prompts.cleaned(answer, request, cut)
        return texts

    def answers(self, requests: Sequence[Request], seeds: np.ndarray) -> list[tuple[str, bool]]:
        """The text of each answer, with the beginning that it was given, without reasoning, cut at the stop texts; ''
        where nothing is left, or where a number is not finite. True beside those that ended at their limit.

        requests: prompts and the tokens that an answer may have, [n].
        seeds: uint64 [n].
        """
        runtime = replace(
            self.runtime,
            device=torch_device(self.runtime),
            devices=None,
            dtype=str(torch_dtype(self.runtime)).removeprefix("torch."),  # type: ignore[arg-type]
        )
        place = self._place()
        network, tokenizer, ends = load(place, self.revision, self.trust_remote_code, self.device_map, runtime)
        ids, limits, opened = self.fitted(tokenizer, context_of(network), requests)
        answers = [("", False)] * len(requests)
        with quiet_transformers(), _on_device(network, runtime, self.device_map, self.offload):
            for batch in self._batches(ids, limits):
                most = 1 << max(len(ids[i]) + limits[i] for i in batch).bit_length()
                rows_at_once = replace(runtime, network_batch_size=len(batch))

                def work(part: slice, batch: Sequence[int] = batch) -> list[tuple[str, bool]]:
                    rows = batch[part]
                    drawn = self.draw(
                        network, tokenizer, ends, [ids[i] for i in rows], [limits[i] for i in rows], seeds[rows]
                    )
                    return [
                        self._finished(tokenizer, requests[i], opened[i], tokens, len(tokens) >= limits[i])
                        for i, tokens in zip(rows, drawn, strict=True)
                    ]

                with running(runtime):
                    # how many rows fit depends on their length: what was found out is kept for each power of two
                    parts = in_batches(len(batch), rows_at_once, f"api transformers, {most} tokens a row", work)
                for i, answer in zip(batch, (answer for part in parts for answer in part), strict=True):
                    answers[i] = answer
        return answers

    def fitted(
        self, tokenizer: Any, context: int | None, requests: Sequence[Request]
    ) -> tuple[list[list[int]], list[int], list[str]]:
        """Of each row the tokens of its prompt, how many its answer may have, and the mark of reasoning, if any, that
        its prompt ends with.

        tokenizer: of the model.
        context: tokens that the network takes; None: it does not say.
        requests: [n].
        """
        chat = bool(tokenizer.chat_template)
        texts = [as_chat(tokenizer, request) if chat else _as_text(request) for request in requests]
        opened = [open_tag(text) if chat else "" for text in texts]
        # the template writes the special tokens itself
        ids = tokenizer(texts, add_special_tokens=not chat, verbose=False)["input_ids"] if texts else []
        ids = [row or [tokenizer.eos_token_id or 0] for row in ids]
        limits = [request.max_tokens for request in requests]
        if context is None:
            return ids, limits, opened
        limits = [min(limit, context // 2) for limit in limits]
        cut = 0
        for i, (row, limit) in enumerate(zip(ids, limits, strict=True)):
            room = context - limit
            if len(row) > room:
                ids[i] = [*row[: (room + 1) // 2], *row[len(row) - room // 2 :]]
                cut += 1
        if cut:
            line = "api transformers: %d of %d prompts lost their middle: with the answer they exceed %d tokens"
            logging.getLogger(__name__).warning(line, cut, len(ids), context)
        return ids, limits, opened

    def _batches(self, ids: Sequence[Sequence[int]], limits: Sequence[int]) -> Iterator[list[int]]:
        """Rows of like length together, the longest first."""
        batch: list[int] = []
        widest = longest = 0
        for i in sorted(range(len(ids)), key=lambda i: (-len(ids[i]) - limits[i], i)):
            widest, longest = max(widest, len(ids[i])), max(longest, limits[i])
            full = len(batch) >= self.runtime.network_batch_size
            if batch and (full or (len(batch) + 1) * (widest + longest) > self.tokens_per_batch):
                yield batch
                batch, widest, longest = [], len(ids[i]), limits[i]
            batch.append(i)
        if batch:
            yield batch

    def draw(
        self,
        network: Any,
        tokenizer: Any,
        ends: frozenset[int],
        ids: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: np.ndarray,
    ) -> list[list[int]]:
        """The tokens of each answer, without the one that ends it. Token j of a row is drawn with the j-th number of
        its seed, by the inverse of its distribution function: whoever else is in the batch.

        network: of the model.
        tokenizer: of the model.
        ends: tokens that end an answer.
        ids: tokens of each prompt, [n].
        limits: tokens that each answer may have, [n].
        seeds: uint64 [n].
        """
        import torch

        device = network.get_input_embeddings().weight.device
        width = max(map(len, ids))
        tokens = torch.zeros((len(ids), width), dtype=torch.long)
        mask = torch.zeros((len(ids), width), dtype=torch.long)
        for i, row in enumerate(ids):  # on the left, so that all rows go on in one column
            tokens[i, width - len(row) :], mask[i, width - len(row) :] = torch.tensor(row), 1
        tokens, mask = tokens.to(device), mask.to(device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        accepted = inspect.signature(network.forward).parameters
        memory = "cache" if "cache" in accepted else "past_key_values"  # its name before
        last = (context_of(network) or math.inf) - 1  # finished rows stay in the batch until it shrinks
        only_last = {name: 1 for name in ("logits_to_keep", "num_logits_to_keep") if name in accepted}
        answers: list[list[int]] = [[] for _ in ids]
        ended = np.zeros(len(ids), bool)
        rows, done = np.arange(len(ids)), 0
        cache: Any = None
        tail = AT_ONCE + 8 + 4 * max(map(len, self.stop), default=0)
        while len(rows):
            steps = min(AT_ONCE, min(limits[i] for i in rows.tolist() if not ended[i]) - done)
            draws = np.stack([uniform(seeds[rows], "local_llm.token", done + step) for step in range(steps)])
            numbers, drawn = torch.from_numpy(draws).to(device), []
            for step in range(steps):
                where = {"position_ids": positions.clamp(max=last)} if "position_ids" in accepted else {}
                given = {"input_ids": tokens, "attention_mask": mask, memory: cache, "use_cache": True}
                out = network(**given, **where, **only_last)
                cache = out[memory]
                chosen = chosen_tokens(out.logits[:, -1], numbers[step], self.temperature, self.top_k, self.top_p)
                drawn.append(chosen)
                tokens = chosen.clamp(min=0)[:, None]
                mask = torch.cat([mask, mask.new_ones((len(rows), 1))], 1)
                positions = positions[:, -1:] + 1
            done += steps
            for i, row in zip(rows.tolist(), torch.stack(drawn, 1).tolist(), strict=True):
                if ended[i]:
                    continue
                end = next((at for at, token in enumerate(row) if token in ends), None)
                answers[i] += row[:end]
                ended[i] = end is not None or done >= limits[i]
                if min(row) < 0:
                    answers[i], ended[i] = [], True
            if self.stop:
                texts = tokenizer.batch_decode([answers[i][-tail:] for i in rows], skip_special_tokens=True)
                ended[rows] |= [self.cut(text) != text for text in texts]
            stay = np.flatnonzero(~ended[rows])
            if len(rows) - len(stay) >= len(rows) / LEAVING:
                rows = rows[stay]
                index = torch.from_numpy(stay).to(device)
                tokens, mask, positions = tokens[index], mask[index], positions[index]
                if len(rows):
                    cache.reorder_cache(index)  # of any kind of cache: the rows of the index alone
        return answers

    def _finished(
        self, tokenizer: Any, request: Request, opened: str, tokens: Sequence[int], at_limit: bool
    ) -> tuple[str, bool]:
        """The answer of these tokens, and whether it ended at its limit."""
        begun = beginning_of(request)
        drawn = without_reasoning(opened + decoded(tokenizer, tokens, begun)) or ""
        text = self.cut(drawn)
        return (begun + text if text.strip() else "", at_limit and text == drawn)

    def cut(self, text: str) -> str:
        """Before the first stop text; those that stand before all else do not count."""
        start = len(text) - len(text.lstrip())
        places = [place for stop in self.stop if (place := text.find(stop, start)) >= 0]
        return text[: min(places)] if places else text

    def _say(self, without: int, n: int, what: str) -> None:
        if without:
            line = "api transformers: %d of %d rows got no text after %d attempts and %s"
            logging.getLogger(__name__).warning(line, without, n, self.attempts, what)


def decoded(tokenizer: Any, tokens: Sequence[int], begun: str = "") -> str:
    """Without special tokens, but for those that reasoning stands between: without_reasoning needs them.

    tokenizer: of the network.
    tokens: of an answer.
    begun: what they go on from: some tokenizers know of a space before a word only by what stands before it.
    """
    if begun:
        ids = tokenizer(begun, add_special_tokens=False, verbose=False)["input_ids"]
        text = str(tokenizer.decode([*ids, *tokens], skip_special_tokens=True))
        if text.startswith(begun):
            return text[len(begun) :]
    whole = str(tokenizer.decode(tokens, skip_special_tokens=False))
    bare = str(tokenizer.decode(tokens, skip_special_tokens=True))
    if whole == bare or (rest := without_reasoning(whole)) == whole:
        return bare
    marks = "|".join(map(re.escape, sorted(tokenizer.all_special_tokens, key=len, reverse=True)))
    return "<think>" if rest is None else re.sub(marks, "", rest) if marks else rest


def _as_text(request: Request) -> str:
    return "\n\n".join(message["content"] for message in request.messages)


def as_chat(tokenizer: Any, request: Request) -> str:
    """By the model's template, up to where its answer begins, and the beginning that it is given.

    tokenizer: of the network.
    request: what is asked.
    """
    # models that think before they answer would use the answer's tokens for it
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    begun = beginning_of(request)
    asked = list(request.messages[:-1] if begun else request.messages)
    try:
        return str(tokenizer.apply_chat_template(asked, **options)) + begun
    except Exception:  # jinja's: some templates know no system
        merged: list[Mapping[str, str]] = [
            {"role": "user", "content": _as_text(replace(request, messages=tuple(asked)))}
        ]
        return str(tokenizer.apply_chat_template(merged, **options)) + begun


def chosen_tokens(logits: Any, numbers: Any, temperature: float, top_k: int | None, top_p: float) -> Any:
    """The token of each row, int64 [n]; -1 where scores are not finite.

    Tokens are kept by their share and stand in their own order, so that ties (bfloat16 has many) are no matter of how a
    sort goes.

    logits: float [n, v].
    numbers: float64 [n] in [0, 1), which draw them.
    temperature: what scores are divided by.
    top_k: tokens that may be chosen; None: all.
    top_p: share of the mass that those have which may be chosen.
    """
    import torch

    shares = torch.softmax(logits.float() / temperature, -1)
    if top_k is not None and top_k < shares.shape[1]:
        least = shares.topk(top_k).values[:, -1:]
        shares = torch.where(shares >= least, shares, 0)
    if top_p < 1:
        enough = top_p * shares.sum(-1, keepdim=True)
        falling = shares.topk(min(MOST_LIKELY, shares.shape[1])).values
        if not (falling.sum(-1, keepdim=True) > enough).all():
            falling = shares.sort(descending=True).values
        kept = falling.cumsum(-1) - falling < enough
        least = torch.where(kept, falling, torch.inf).amin(-1, keepdim=True)
        shares = torch.where(shares >= least, shares, 0)
    below = shares.double().cumsum(-1)
    found = torch.searchsorted(below, numbers[:, None] * below[:, -1:], right=True)[:, 0]
    return torch.where(below[:, -1].isfinite(), found.clamp(max=shares.shape[1] - 1), -1)


def context_of(network: Any) -> int | None:
    """Tokens of prompt and answer together that the network knows places for."""
    config = network.config.get_text_config(decoder=True)
    most = getattr(config, "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 1 else None


@functools.lru_cache(maxsize=1)
def load(
    place: str, revision: str | None, trust_remote_code: bool, device_map: str | None, runtime: Runtime
) -> tuple[Any, Any, frozenset[int]]:
    """The network, the tokenizer, the tokens that end an answer. Raises UserError where they cannot be loaded.

    place: a folder, or OWNER/NAME on the hub.
    revision: a commit, a tag or a branch; None: the newest at the first use.
    trust_remote_code: whether code of the model may run.
    device_map: of transformers; None: one device.
    runtime: names device and type of numbers.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if Path(place).is_file():
        place = str(as_safetensors("api.path", Path(place)))
    commit = pinned("api.path", place, revision, f"Give api.path= {FOLDER}.")
    where: dict[str, Any] = {"revision": commit, "trust_remote_code": trust_remote_code}
    try:
        with quiet_transformers():
            from transformers import AutoModelForCausalLM, AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(place, **where)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place,
                torch_dtype=torch_dtype(runtime),
                use_safetensors=True,
                device_map=device_map,
                output_loading_info=True,
                **where,
            )
            network, info = loaded
    except Exception as error:  # transformers and safetensors raise many kinds
        said = first_line(error)
        do = f"Give api.path= {FOLDER} ({type(error).__name__}: {said})"
        raise invalid("api.path", place, "a causal language model that can be loaded here", do) from None
    if missing := sorted(info["missing_keys"]):
        raise invalid("api.path", place, "the weights of a causal language model", f"It has no {missing[0]}.")
    network.requires_grad_(False).eval()
    if (head := network.get_output_embeddings()) is not None:
        # of the last places alone, which lie apart, torch copies the vocabulary's weights once a row (bfloat16, CPU, 32
        # prompts of 62 tokens: 9 of 10 seconds)
        head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    named = network.generation_config.eos_token_id if network.generation_config is not None else None
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    return network, tokenizer, frozenset(ends)


@contextlib.contextmanager
def _on_device(network: Any, runtime: Runtime, device_map: str | None, offload: bool) -> Iterator[None]:
    import torch

    if device_map is None:
        # a network that grows by a token a step is not compiled
        placed(network, replace(runtime, compile=False, channels_last=False))
    try:
        yield
    finally:
        if offload:
            network.to("cpu")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
