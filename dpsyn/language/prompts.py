"""Prompts for language models (Aug-PE, arXiv 2403.01749): one yaml file of templates and word lists, filled row by row.

    generate:
      system: ...                # may be absent
      user: Write a review of a {category} business that gives {stars} of 5 stars, as {persona} would.
    vary:
      user: Fill in the blanks, {style}, in about {word_count} words. {masked_sample}
      assistant: ...             # may be absent: what the answer begins with, where the model can go on with it
    words:
      style: [...]               # one is drawn a row
      keyword: {Bars: [...], other: [...]}   # by a value of the label, or by some of its values joined by ' | '

A template has the label's columns, or {labels} for a sentence that names them all, every word list, {description} and
{word_count}, and to vary {sample} (paraphrase), {masked_sample} (fill in the blanks) or {sample_start} (go on with it).
Only templates are scanned for {name}; {{ and }} are braces.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from dpsyn.errors import did_you_mean, invalid, missing, one_of
from dpsyn.language.cleaning import BLANK, Request, cleaned, sentences
from dpsyn.marks import PLACE
from dpsyn.networks.hub import local_model, model_folder, pinned
from dpsyn.population import Label
from dpsyn.randomness import STREAMS, uniform
from dpsyn.reading.declarations import read_declared
from dpsyn.validate import flag, number, text_or_null, whole

KEY = "api.prompts.file"
SAMPLE, MASKED, START = "sample", "masked_sample", "sample_start"
ROLES = ("system", "user", "assistant")
LEAST_REST = 8  # words that a variation may go on for, at least
PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
TRUNCATED_AT = 2.0  # deviations: of the normal number that is added to the words of a parent
TOKENS_PER_CHARACTER, CHARACTERS_PER_WORD, TOKENS_PER_MESSAGE = 0.25, 5.4, 4  # of English, for estimates


@dataclass(frozen=True)
class Prompts:
    """What a language model is asked, row by row, and what of its answer is kept. It never sees private data.

    file: the content of a prompt file, as `read` gives it. description: one sentence for {description}.
    typical_words: of a text, about; None: three quarters of the words that generate_tokens hold.
    generate_tokens: most tokens of a fresh text. Its {word_count} is drawn around typical_words.
    word_std, min_words: {word_count} is that of the parent (or typical_words) and a normal number of deviation
        word_std, truncated at twice that; at least min_words.
    tokens_per_word, max_tokens: a variation gets {word_count} * tokens_per_word tokens, and max_tokens at most.
    max_parent_words: of a parent in a prompt; the middle of a longer one is left out. None: no limit.
    tokenizer: a folder, or a name on the hub, whose tokens are blanked; None: words are.
    keep_lines: line breaks of an answer are kept; else they are spaces.

    The degree is the probability that a token of the parent is blanked, or with {sample_start} the share of its words
    that are left out at its end, on average; and nothing else.
    """

    file: Any = field(metadata=PLACE)
    description: str | None
    typical_words: int | None
    generate_tokens: int
    word_std: float
    min_words: int
    tokens_per_word: float
    max_tokens: int
    max_parent_words: int | None
    tokenizer: str | None = field(metadata=PLACE)
    keep_lines: bool

    def __post_init__(self) -> None:
        for key in ("description", "tokenizer"):
            text_or_null(f"api.prompts.{key}", getattr(self, key))
        for key in ("generate_tokens", "min_words", "max_tokens", "typical_words", "max_parent_words"):
            may_lack = key in ("typical_words", "max_parent_words")
            whole(f"api.prompts.{key}", getattr(self, key), 1, optional=may_lack)
        number("api.prompts.word_std", self.word_std, "a number, 0 or more", least=0)
        number("api.prompts.tokens_per_word", self.tokens_per_word, "a number over 0", above=0)
        flag("api.prompts.keep_lines", self.keep_lines)

    def check(self) -> None:
        """Raises UserError for a file that is none, a description that is missing, and what is no tokenizer."""
        file = _file(self.file)
        described = any("description" in _names(key, text) for key, _, text in _all_templates(file))
        if described and not (self.description or "").strip():
            do = "Give api.prompts.description='...'."
            raise missing("api.prompts.description", "null", "one sentence that describes your data", do)
        if self.description is not None and not described:
            do = "This prompt file has no {description}; general has."
            raise invalid("api.prompts.description", self.description, "null", do)
        if self.tokenizer is not None:
            expected = "a folder that is there, a name on the hub, or null"
            model_folder("api.prompts.tokenizer", self.tokenizer, expected, needs_owner=False)

    @property
    def begins_answers(self) -> bool:
        """Whether a model is to go on with a beginning that it is given."""
        return any(key.endswith(".assistant") for key, _, _ in _all_templates(_file(self.file)))

    def check_degree(self, degree: Any) -> None:
        """Raises UserError for what is no probability."""
        expected = "a number between 0 (the parent itself) and 1, the probability that a token of it is blanked"
        number("schedule.degree", degree, expected, least=0, most=1)

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> list[Request]:
        """One a label. Raises UserError for an unknown placeholder and a label without its words.

        labels: [n].
        seeds: uint64 [n].
        """
        around = np.full(len(labels), self._typical_words)
        words = [min(count, self._words_that_fit) for count in self._word_counts(around, seeds)]
        return self._requests("generate", labels, seeds, {"word_count": words}, [self.generate_tokens] * len(labels))

    def vary(self, texts: Sequence[str], labels: Sequence[Label], degree: Any, seeds: np.ndarray) -> list[Request]:
        """One a text. Each draws its own mask, words and length by its seed.

        texts: the parents, [n].
        labels: [n].
        degree: how far, the same for all.
        seeds: uint64 [n].
        """
        self.check_degree(degree)
        words = self._word_counts(np.array([len(text.split()) for text in texts], np.int64), seeds)
        wanted = words
        used = {name for role, text in _templates(_file(self.file), "vary") for name in _names(role, text)}
        values: dict[str, Sequence[Any]] = {"word_count": words}
        if START in used:
            starts = values[START] = _starts(texts, float(degree), seeds)
            wanted = [max(LEAST_REST, n - len(start.split())) for n, start in zip(words, starts, strict=True)]
        if used & {SAMPLE, MASKED}:
            texts = self._shortened(texts)
        if SAMPLE in used:
            values[SAMPLE] = texts
        if MASKED in used:
            split = _tokens_of(self.tokenizer) if self.tokenizer else _words
            values[MASKED] = [
                _masked(text, split(text), float(degree), int(seed)) for text, seed in zip(texts, seeds, strict=True)
            ]
        limits = [min(self.max_tokens, math.ceil(count * self.tokens_per_word)) for count in wanted]
        return self._requests("vary", labels, seeds, values, limits)

    def cleaned(self, answer: str | None, request: Request | None = None, cut: bool = False) -> str | None:
        """The text of an answer, without reasoning, quotes, preambles, Markdown and remarks on its length; None: it is
        of no use.

        answer: as the model gave it; None: it gave none.
        request: that it answers, whose own words are taken out; None: it is not known.
        cut: whether it was cut off; then it ends with its last whole sentence, if it has one.
        """
        return cleaned(answer, self.keep_lines, request, cut)

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raises UserError for a placeholder or a label that the file has nothing for."""
        self.lengths(labels, "generate")
        self.lengths(labels, "vary")

    def lengths(self, labels: Sequence[Label], what: Literal["generate", "vary"]) -> tuple[float, float]:
        """Tokens of a row's prompt and of its answer, about, from the file and the declared lengths alone; mean over
        the labels. Raises UserError as `generate` does.

        labels: over which rows are spread evenly.
        what: which templates are asked.
        """
        file = _file(self.file)
        words = max(self._typical_words, self.min_words)
        text = words * CHARACTERS_PER_WORD
        if what == "vary" and self.max_parent_words is not None:
            text = min(text, self.max_parent_words * CHARACTERS_PER_WORD)
        total = 0.0
        for label in labels:
            known = self._known(file, what, label)
            for key, template in _templates(file, what):
                total += TOKENS_PER_MESSAGE
                for name in (names := _names(key, template)):
                    _check_known(key, name, known)
                size: float = len(PLACEHOLDER.sub("", template))
                for name in names:
                    if name in (SAMPLE, MASKED, START):
                        size += text
                    elif name in label or name == "description":
                        size += len(label.get(name, self.description or ""))
                    elif name == "labels":
                        size += len(_sentence(label))
                    elif name == "word_count":
                        size += len(str(words))
                    else:
                        options = _options(file, name, label)
                        size += sum(map(len, options)) / len(options)
                total += size * TOKENS_PER_CHARACTER
        limit = self.generate_tokens if what == "generate" else self.max_tokens
        return total / max(len(labels), 1), min(limit, words * CHARACTERS_PER_WORD * TOKENS_PER_CHARACTER)

    @property
    def typical_vary_tokens(self) -> int:
        """That a variation of a text of typical length gets."""
        return math.ceil(self._typical_words * self.tokens_per_word)

    @property
    def _typical_words(self) -> int:
        return self.typical_words or max(1, round(0.75 * self._words_that_fit))

    @property
    def _words_that_fit(self) -> int:
        """English words, into a fresh text."""
        return max(1, int(self.generate_tokens / (CHARACTERS_PER_WORD * TOKENS_PER_CHARACTER)))

    def _word_counts(self, around: np.ndarray, seeds: np.ndarray) -> list[int]:
        """One a row: `around` [n] and a truncated normal number."""
        normal = NormalDist()
        low, high = normal.cdf(-TRUNCATED_AT), normal.cdf(TRUNCATED_AT)
        shares = low + uniform(seeds, "prompts.length") * (high - low)
        drawn = [
            round(count + self.word_std * normal.inv_cdf(share)) for count, share in zip(around, shares, strict=True)
        ]
        return [max(self.min_words, count) for count in drawn]

    def _shortened(self, texts: Sequence[str]) -> Sequence[str]:
        """Without the middle of those over max_parent_words."""
        if self.max_parent_words is None:
            return texts
        most, cut = self.max_parent_words, []
        shortened = []
        for text in texts:
            words = list(re.finditer(r"\S+", text))
            if len(words) > most:
                cut.append(text)
                head = text[: words[(most + 1) // 2 - 1].end()]
                text = head + (" ... " + text[words[-(most // 2)].start() :] if most > 1 else " ...")
            shortened.append(text)
        if cut:
            line = "prompts: of %d of %d parents the middle is left out (api.prompts.max_parent_words=%d)"
            logging.getLogger(__name__).warning(line, len(cut), len(texts), most)
        return shortened

    def _known(self, file: Mapping[str, Any], what: str, label: Label) -> set[str]:
        if clash := sorted(
            set(label) & (set(file.get("words", {})) | {"description", "labels", "word_count", SAMPLE, MASKED, START})
        ):
            raise invalid(f"{KEY}.words", clash[0], "names that are no columns of the label", "Rename this one.")
        of_parent = {SAMPLE, MASKED, START} if what == "vary" else set()
        return {*label, *file.get("words", {}), "description", "labels", "word_count"} | of_parent

    def _requests(
        self,
        what: str,
        labels: Sequence[Label],
        seeds: np.ndarray,
        values: Mapping[str, Sequence[Any]],
        limits: Sequence[int],
    ) -> list[Request]:
        """values: of every name one a row; word lists, label and description are added."""
        if not len(labels):
            return []
        file = _file(self.file)
        templates = _templates(file, what)
        known = self._known(file, what, labels[0])
        used = {name: key for key, template in templates for name in _names(key, template)}
        for name, key in used.items():
            _check_known(key, name, known)
        lists = [name for name in used if name in file.get("words", {})]
        draws = {name: uniform(seeds, "prompts.list", zlib.crc32(name.encode())) for name in lists}
        requests, options_of = [], dict[tuple[str, ...], list[str]]()  # the same for all rows of a label
        for i, label in enumerate(labels):
            row = {name: str(column[i]) for name, column in values.items()}
            row |= {"description": (self.description or "").strip(), "labels": _sentence(label)}
            row |= {k: str(v) for k, v in label.items()}
            for name in lists:
                of_label = (name, *map(str, label.values()))
                if (options := options_of.get(of_label)) is None:
                    options = options_of[of_label] = _options(file, name, label)
                row[name] = options[int(draws[name][i] * len(options))]
            messages = tuple(
                {"role": key.rpartition(".")[2], "content": _filled(template, row)} for key, template in templates
            )
            fixed = {**row, SAMPLE: "\n", MASKED: "\n", START: "\n"}
            asked = [template for key, template in templates if not key.endswith(".assistant")]
            instructions = sentences("\n".join(_filled(template, fixed) for template in asked))
            requests.append(Request(messages, limits[i], instructions))
        return requests


def read(name: str, *folders: Path) -> Mapping[str, Any]:
    """The content of the prompt file NAME.yaml in the first of the folders that has it, or of the yaml at a path.

    name: of the file, or its path.
    folders: where a name is looked for, in this order.

    Raises UserError where there is no such file, and where it is no prompt file.
    """
    return _file(read_declared(KEY, "prompt file", name, *folders))


def _file(content: Any) -> Mapping[str, Any]:
    """{'generate': {...}, 'vary': {...}, 'words': {...}}, checked. Raises UserError for what is none."""
    if not isinstance(content, Mapping):
        value = "null" if content is None else str(content).splitlines()[0][:80] if str(content) else "''"
        raise invalid(KEY, value, "the content of a prompt file: generate, vary and words")
    _only(KEY, content, ("generate", "vary", "words"))
    for what in ("generate", "vary"):
        part = content.get(what)
        if not isinstance(part, Mapping):
            expected = "user, and if wanted system and assistant"
            raise invalid(f"{KEY}.{what}", "null" if part is None else "(no mapping)", expected)
        _only(f"{KEY}.{what}", part, ROLES)
        for role in ROLES:
            text = part.get(role)
            if not (text is None and role != "user") and (not isinstance(text, str) or not text.strip()):
                raise invalid(f"{KEY}.{what}.{role}", "null" if text is None else text, "a template")
            if text is not None:
                _names(f"{KEY}.{what}.{role}", text)
    used = {name for key, template in _templates(content, "vary") for name in _names(key, template)}
    if not used & {SAMPLE, MASKED, START}:
        expected = (
            "a template with {sample} (paraphrase), {masked_sample} (fill in the blanks) or {sample_start} (go on)"
        )
        raise invalid(f"{KEY}.vary.user", _short(content["vary"]["user"]), expected)
    words = content.get("words", {})
    if not isinstance(words, Mapping):
        raise invalid(f"{KEY}.words", "(no mapping)", "lists of words by name")
    for name, options in words.items():
        if name in (SAMPLE, MASKED, START, "word_count", "description"):
            raise invalid(f"{KEY}.words", name, "another name: this one has a meaning of its own")
        for part, entries in options.items() if isinstance(options, Mapping) else [(None, options)]:
            key = f"{KEY}.words.{name}" + ("" if part is None else f".{part}")
            whole = isinstance(entries, Sequence) and not isinstance(entries, str) and len(entries) > 0
            if not whole or not all(isinstance(entry, str | int | float) and str(entry).strip() for entry in entries):
                raise invalid(key, "null" if entries is None else _short(str(entries)), "a list of words")
    return content


def _only(key: str, content: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in content:
        if name not in known:
            raise invalid(key, name, one_of(known), did_you_mean(str(name), known))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:77] + "..."


def _templates(file: Mapping[str, Any], what: str) -> list[tuple[str, str]]:
    """(key, template), in the order of ROLES."""
    part = file[what]
    roles = [role for role in ROLES if part.get(role) is not None]
    return [(f"{KEY}.{what}.{role}", part[role].strip()) for role in roles]


def _all_templates(file: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [(key, what, text) for what in ("generate", "vary") for key, text in _templates(file, what)]


def _names(key: str, template: str) -> list[str]:
    """The placeholders, in order. Raises UserError for a brace that belongs to none."""
    names = []
    for match in PLACEHOLDER.finditer(template):
        if match[0] in ("{", "}") or match[1] == "":
            around = _short(template[max(match.start() - 20, 0) : match.end() + 20])
            raise invalid(key, around, "{name} for what is filled in", "Write {{ and }} for braces.")
        if match[1] is not None:
            names.append(match[1])
    return names


def _check_known(key: str, name: str, known: set[str]) -> None:
    if name not in known:
        there = [f"{{{other}}}" for other in sorted(known)]
        raise invalid(key, f"{{{name}}}", f"one of {one_of(there)}", did_you_mean(f"{{{name}}}", there))


def _filled(template: str, values: Mapping[str, str]) -> str:
    """One pass over the template: values are not looked into."""
    return PLACEHOLDER.sub(lambda match: values[match[1]] if match[1] is not None else match[0][0], template)


def _sentence(label: Label) -> str:
    """'' for data without labels."""
    return f"Its labels: {', '.join(f'{name} {value}' for name, value in label.items())}." if label else ""


def _options(file: Mapping[str, Any], name: str, label: Label) -> list[str]:
    """The list that is drawn from. Raises UserError where the label has none."""
    options = file["words"][name]
    if isinstance(options, Mapping):
        by_name = {str(key): entries for key, entries in options.items()}
        values = list(map(str, label.values()))
        parts = {key: [key] if key in values else key.split(" | ") for key in by_name}
        fitting = [key for key, some in parts.items() if set(some) <= set(values)]
        # of most of its values, then of the first of them
        fitting.sort(key=lambda key: (-len(parts[key]), [values.index(part) for part in parts[key]]))
        keys = [*fitting, *(["other"] if "other" in by_name else [])]
        if not keys:
            do, joined = "Add it, or a list named other.", " | ".join(values) or "all"
            raise invalid(f"{KEY}.words.{name}", _short(", ".join(by_name)), f"a list for the label {joined}", do)
        options = by_name[keys[0]]
    return [str(entry).strip() for entry in options]


def _words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\S+", text)]


@functools.lru_cache(maxsize=2)
def _tokens_of(place: str) -> Callable[[str], list[tuple[int, int]]]:
    """Text to the (start, end) of its tokens, in order, none empty, none overlapping.

    Raises UserError where the tokenizer cannot be loaded, or does not say where its tokens stand.
    """
    from transformers import AutoTokenizer

    name, tokenizer = str(local_model("api.prompts.tokenizer", place) or place), None
    commit = pinned("api.prompts.tokenizer", place, None, "Name a folder whose tokenizer transformers can load.")
    for local in (True, False):  # no request where the files are here
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, revision=commit, local_files_only=local, use_fast=True)
            break
        except Exception as error:  # of many kinds
            reason = f"{type(error).__name__}: {_short(str(error))}"
    if tokenizer is None:
        raise invalid("api.prompts.tokenizer", place, "a tokenizer that transformers can load", reason)
    if not tokenizer.is_fast:
        raise invalid(
            "api.prompts.tokenizer", place, "a fast tokenizer (tokenizer.json)", "Or null: words are blanked."
        )

    def spans(text: str) -> list[tuple[int, int]]:
        offsets = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )["offset_mapping"]
        found, position = [], 0
        for start, end in offsets:  # pieces of one character share its place; some tokens begin with their space
            start = max(start, position)
            start += len(text[start:end]) - len(text[start:end].lstrip())
            if start < end:
                found.append((start, end))
                position = end
        return found

    return spans


def _masked(text: str, tokens: Sequence[tuple[int, int]], probability: float, seed: int) -> str:
    """Each token by itself is a blank with this probability; what stands between tokens stays."""
    blanked = np.random.default_rng([seed, STREAMS["prompts.mask"]]).random(len(tokens)) < probability
    parts, position = [], 0
    for (start, end), blank in zip(tokens, blanked, strict=True):
        parts += [text[position:start], BLANK if blank else text[start:end]]
        position = end
    return "".join([*parts, text[position:]])


def _starts(texts: Sequence[str], degree: float, seeds: np.ndarray) -> list[str]:
    """The first words of each text, one at least. The share of them is uniform around 1 - degree, as widely as fits."""
    low, high = max(0.0, 1 - 2 * degree), min(1.0, 2 - 2 * degree)
    shares = low + uniform(seeds, "prompts.start") * (high - low)
    starts = []
    for text, share in zip(texts, shares, strict=True):
        words = _words(text)
        starts.append(text[: words[max(1, int(share * len(words))) - 1][1]] if words else text)
    return starts
