"""Chat models behind an endpoint that speaks OpenAI's protocol, hosted or local: generate, then paraphrase or fill in.

Every answer is kept on disk as it comes, so that a run that was cut off asks, and pays, for nothing twice.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from dpsyn.answers import Answers, answer_key
from dpsyn.api import Degree, Usage
from dpsyn.asking import DEFAULT_URL, Answer, Endpoint, Limits, Question, ask, tokens_of
from dpsyn.errors import UserError, bad, one_of
from dpsyn.population import Label, Samples, of_texts
from dpsyn.prompts import Prompts, Request
from dpsyn.seeds import another

OURS = ("model", "messages", "n", "stream", "seed", "temperature", "top_p", "max_tokens", "max_completion_tokens")
PER_MESSAGE = 16  # tokens around a message, at most
BLOCK = 128  # rows whose requests are made, and looked up in the cache, together
WHY = {"content_filter": "filtered", "refusal": "refused", "too_long": "too long for the model"}
SENTENCE_END = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"')\]\u201d\u2019\u00bb]*(?=\s|$)")

Requests = Callable[[Sequence[int], np.ndarray], Sequence[Request]]
"""(rows, a seed for each) -> what is asked of them"""


@dataclass
class _State:
    """What changes while a Chat asks. lost: money that requests without an answer may have cost."""

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    stood_in: int = 0
    lost: float = 0.0
    advance: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Chat:
    """Texts, object of str [n].

    model: as the endpoint names it. prompts: what it is asked.
    temperature, top_p: None: not sent. extra: further parameters of the request. send_seed: the row's seed, modulo
        2^31, is sent as `seed`. max_tokens_as: the name under which the most tokens of an answer are sent.
    base_url: an address or several that serve the same model; None: OpenAI's. api_key_env: the environment variable
        that holds the key, one for all addresses or one for each, or several for one address. None: no key.
    concurrency, requests_per_minute, tokens_per_minute: of each endpoint; None: no limit but those that it shows.
    timeout: seconds, of one request. retries: of a row after 5xx, timeouts, lost connections and broken answers;
        deadline: seconds that they may take together. patience: seconds in which no endpoint answers, after which the
        run stops, to go on later.
    attempts: of a row whose answer is of no use (empty, refused, filtered), with new words and a new seed; then its
        parent stands in, or for a fresh row the text of another one of its label in the same call.
    max_stood_in: the run stops where more than this share of the rows (and more than one) got no answer of its own.
    prices: model -> [a million tokens of prompts, a million tokens of answers].
    max_cost: in the unit of the prices; the run stops before it is passed, to go on with a higher one. What is on its
        way counts at its worst: a token a byte, and the longest answer.

    An answer is kept under sha256 of the JSON of (model, parameters but the seed, messages, seed of the row, attempt);
    see dpsyn.answers.
    """

    model: str | None
    prompts: Prompts
    temperature: float | None
    top_p: float | None
    extra: Mapping[str, Any]
    send_seed: bool
    max_tokens_as: str
    base_url: str | Sequence[str] | None
    api_key_env: str | Sequence[str] | None
    concurrency: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    timeout: float
    deadline: float
    patience: float
    retries: int
    attempts: int
    max_stood_in: float
    prices: Mapping[str, Sequence[float]]
    max_cost: float | None
    _state: _State = field(default_factory=_State, init=False, compare=False, repr=False)

    operational: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "api_key_env", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "deadline"}
        | {"patience", "retries", "max_stood_in", "prices", "max_cost"}
    )

    def __post_init__(self) -> None:
        if not isinstance(self.model, str | None):
            raise bad("api.model", self.model, "a text, or null")
        if not isinstance(self.prompts, Prompts):
            raise bad("api.prompts", self.prompts, "a part with _target_: dpsyn.prompts.Prompts")
        if self.temperature is not None and not _is_number(self.temperature):
            raise bad("api.temperature", self.temperature, "a number, 0 or more, or null")
        if self.top_p is not None and not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise bad("api.top_p", self.top_p, "a number over 0, 1 at most, or null")
        if not isinstance(self.extra, Mapping) or not _is_json(self.extra):
            raise bad("api.extra", self.extra, "names and values such as {reasoning_effort: low}, or {}")
        if taken := sorted(set(self.extra) & set(OURS)):
            raise bad("api.extra", taken[0], "parameters that no other setting gives")
        if type(self.send_seed) is not bool:
            raise bad("api.send_seed", self.send_seed, "true or false")
        if self.max_tokens_as not in ("max_tokens", "max_completion_tokens"):
            raise bad("api.max_tokens_as", self.max_tokens_as, one_of(["max_tokens", "max_completion_tokens"]))
        if not all(isinstance(url, str | None) for url in _several(self.base_url)):
            raise bad("api.base_url", self.base_url, "an address, a list of them, or null")
        for name in _several(self.api_key_env):
            if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", str(name)):
                expected = "the name of an environment variable in capitals, not the key itself"
                raise bad("api.api_key_env", "(not shown)", expected, "For instance OPENAI_API_KEY.")
        for key, least in (("concurrency", 1), ("retries", 0), ("attempts", 1)):
            if type(value := getattr(self, key)) is not int or value < least:
                raise bad(f"api.{key}", value, f"a whole number, {least} or more")
        for key in ("requests_per_minute", "tokens_per_minute", "max_cost"):
            value = getattr(self, key)
            if value is not None and not (_is_number(value) and value > 0):
                raise bad(f"api.{key}", value, "a number over 0, or null")
        for key in ("timeout", "deadline", "patience"):
            if not _is_number(value := getattr(self, key)) or not value:
                raise bad(f"api.{key}", value, "seconds, more than 0")
        if not _is_number(self.max_stood_in) or self.max_stood_in > 1:
            raise bad("api.max_stood_in", self.max_stood_in, "a share between 0 and 1")
        for model, pair in self.prices.items() if isinstance(self.prices, Mapping) else [("", self.prices)]:
            if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(map(_is_number, pair)):
                raise bad("api.prices", f"{{{model}: {pair}}}", "model: [price of prompts, of answers], or {}")

    @property
    def row_bytes(self) -> int:
        """About what a row takes on disk: a text of the declared length."""
        return 5 * self.prompts.generate_tokens

    @property
    def usage(self) -> Usage:
        """Of this process and those before it."""
        state = self._state
        counts = {name: getattr(state, name) for name in ("calls", "cached", "prompt_tokens", "answer_tokens")}
        return Usage(money=self._money(state.prompt_tokens, state.answer_tokens), stood_in=state.stood_in, **counts)

    def resume(self, before: Usage) -> None:
        """Adds what processes before this one took. Money is counted anew, from the tokens."""
        for name in ("calls", "cached", "prompt_tokens", "answer_tokens", "stood_in"):
            setattr(self._state, name, getattr(self._state, name) + getattr(before, name))

    def estimate(self, labels: Sequence[Label], generated: int, varied: int) -> Usage:
        """What so many rows will take, each asked once; seconds by the limits that are set."""
        prompts, answers = 0.0, 0.0
        for what, rows in (("generate", generated), ("vary", varied)):
            if rows:
                prompt, answer = self.prompts.lengths(labels, what)  # type: ignore[arg-type]
                prompts, answers = prompts + rows * prompt, answers + rows * answer
        shares = len(self._addresses())
        limits = [(generated + varied, self.requests_per_minute), (prompts + answers, self.tokens_per_minute)]
        seconds = [60 * amount / limit / shares for amount, limit in limits if limit is not None]
        money, counts = self._money(prompts, answers), (generated + varied, 0, round(prompts), round(answers))
        return Usage(*counts, money=money, seconds=max(seconds, default=None))

    @contextmanager
    def watched(self, advance: Callable[[int], None]) -> Iterator[None]:
        """While it lasts, advance(n) is called as n more rows are done."""
        self._state.advance = advance
        try:
            yield
        finally:
            self._state.advance = None

    def check(self) -> None:
        """Raises UserError for a missing package, model, key or price, what is no address, what are no prompts."""
        if importlib.util.find_spec("openai") is None:
            raise bad("api", "chat", "the package openai", "Install it: pip install openai")
        if not self.model:
            raise bad("api.model", "null", "the name of a model of the endpoint")
        for url, _ in self._addresses():
            if url is not None and not re.match(r"https?://[^/\s]", url):
                raise bad("api.base_url", url, "an address such as http://localhost:8000/v1, or null")
        self._endpoints()
        self.prompts.check()
        if self.max_cost is not None and self.model not in self.prices:
            name = re.sub(r"([:,{}()=\\ ])", r"\\\1", self.model)  # as Hydra reads it
            do = f"Give '+api.prices={{{name}: [0.15, 0.6]}}', by a million tokens, with what it costs."
            raise bad("api.max_cost", self.max_cost, "null where api.prices lacks the model", do)

    def check_degree(self, degree: Degree) -> None:
        """Raises UserError for what is no degree."""
        self.prompts.check_degree(degree)

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Raises UserError for a prompt that its label cannot fill, and where the endpoint cannot be asked."""

        def requests(rows: Sequence[int], seeds: np.ndarray) -> Sequence[Request]:
            return self.prompts.generate([labels[i] for i in rows], seeds)

        texts, why = self._asked(requests, seeds)
        by_label: dict[tuple[str, ...], list[str]] = {}
        for label, text in zip(labels, texts, strict=True):
            if text is not None:
                by_label.setdefault(tuple(label.values()), []).append(text)
        for i in why:
            others = by_label.get(tuple(labels[i].values()))
            if others is None:
                name = " | ".join(map(str, labels[i].values())) or "no label"
                what = f"api chat: no row of {name} got an answer ({why[i]}), so that none can stand in."
                raise UserError(f"{what} What was answered is kept: see api.prompts, and give the same command again.")
            texts[i] = others[int(seeds[i]) % len(others)]
        self._say(why, len(texts), "are copies of others of their label")
        return of_texts(texts)

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        """degree: 0: the parent itself, nothing is asked; else the probability that a token of it is blanked."""
        self.check_degree(degree)
        parents = self.adopt(samples, labels, seeds).content
        if not degree:
            self._advance(len(parents))
            return Samples(parents)

        def requests(rows: Sequence[int], seeds: np.ndarray) -> Sequence[Request]:
            return self.prompts.vary([parents[i] for i in rows], [labels[i] for i in rows], degree, seeds)

        texts, why = self._asked(requests, seeds)
        self._say(why, len(texts), "come back as their parents")
        return of_texts([own if text is None else text for own, text in zip(parents, texts, strict=True)])

    def adopt(self, samples: Samples, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Texts of another api, as they are. Raises UserError for what are no texts."""
        if samples.content.dtype != object:
            raise UserError("api chat: expected texts. Choose an api for this kind of data.")
        return Samples(samples.content)

    def _asked(self, requests: Requests, seeds: np.ndarray) -> tuple[list[str | None], dict[int, str]]:
        """A row each, from the cache what is there; and of rows without an answer the reason."""
        limits = Limits(
            self.concurrency,
            self.requests_per_minute,
            self.tokens_per_minute,
            self.timeout,
            self.deadline,
            self.patience,
            self.retries,
        )
        with Answers() as answers:
            call = _Call(self, requests, seeds, answers)
            ask(call.blocks(), self._endpoints(), limits, call)
        self._state.stood_in += len(call.why)
        return call.texts, call.why

    def _say(self, why: Mapping[int, str], rows: int, what: str) -> None:
        """On standard error, how many rows got no answer."""
        if why:
            reasons = ", ".join(reason for reason, _ in Counter(why.values()).most_common(3))
            line = "api chat: %d of %d rows got no answer of use (%s), %s"
            logging.getLogger(__name__).warning(line, len(why), rows, reasons, what)

    def _advance(self, rows: int) -> None:
        if self._state.advance is not None:
            self._state.advance(rows)

    def _money(self, prompt_tokens: float, answer_tokens: float) -> float | None:
        if (pair := self.prices.get(self.model or "")) is None:
            return None
        return (prompt_tokens * pair[0] + answer_tokens * pair[1]) / 1e6

    def _addresses(self) -> list[tuple[str | None, str | None]]:
        """(url, name of the variable that holds the key) of each endpoint."""
        urls, names = _several(self.base_url), _several(self.api_key_env)
        if not urls or not names or (len(urls) != len(names) and 1 not in (len(urls), len(names))):
            expected = f"one name, or one for each of the {len(urls)} addresses"
            raise bad("api.api_key_env", ", ".join(map(str, names)) or "[]", expected)
        n = max(len(urls), len(names))
        return list(zip(urls * (n // len(urls)), names * (n // len(names)), strict=True))

    def _endpoints(self) -> list[Endpoint]:
        """Raises UserError for a key that is not set."""
        found = []
        for url, name in self._addresses():
            key = os.environ.get(name, "").strip() if name is not None else None
            if key == "":
                do = "Set it; for an endpoint without keys give api.api_key_env=null."
                raise bad("api.api_key_env", name, "an environment variable that holds the key", do)
            found.append(Endpoint(url or DEFAULT_URL, key, name))
        return found

    def _body(self, request: Request, seed: int) -> dict[str, Any]:
        drawing = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": seed % 2**31 if self.send_seed else None,
        }
        given = {name: value for name, value in drawing.items() if value is not None}
        messages = [dict(message) for message in request.messages]
        return {
            "model": self.model,
            "messages": messages,
            self.max_tokens_as: request.max_tokens,
            **given,
            **self.extra,
        }


class _Call:
    """The rows of one call, as an Asker (dpsyn.asking)."""

    def __init__(self, chat: Chat, requests: Requests, seeds: np.ndarray, answers: Answers) -> None:
        self.chat, self.state, self.requests, self.seeds, self.answers = chat, chat._state, requests, seeds, answers
        self.texts: list[str | None] = [None] * len(seeds)
        self.why: dict[int, str] = {}
        self.reserved: dict[int, float] = {}  # by row: money for what is on its way, at its worst

    def blocks(self) -> Iterator[list[Question]]:
        """What is not in the cache."""
        for start in range(0, len(self.seeds), BLOCK):
            yield self.questions(range(start, min(start + BLOCK, len(self.seeds))))

    def questions(self, rows: Sequence[int]) -> list[Question]:
        asked: list[Question] = []
        for attempt in range(self.chat.attempts):
            questions = self.asked_of(rows, attempt)
            known = self.answers.get(question.key[2] for question in questions)
            useless = {}
            for question in questions:
                row, _, key = question.key
                answer = _kept(known.get(key))
                if answer is None:
                    asked.append(question)
                elif (text := self.text_of(answer)) is None:
                    useless[row] = _why(answer)
                else:
                    self.state.cached += 1
                    self.place(row, text)
            if not (rows := list(useless)):
                break
        for row, why in useless.items():
            self.without(row, why)
        return asked

    def asked_of(self, rows: Sequence[int], attempt: int) -> list[Question]:
        """key: (row, attempt, key of the cache)."""
        chat, own = self.chat, np.array([another(int(self.seeds[i]), attempt) for i in rows], np.uint64)
        questions = []
        for row, seed, request in zip(rows, own.tolist(), self.requests(rows, own), strict=True):
            body = chat._body(request, seed)
            parameters = {name: value for name, value in body.items() if name not in ("model", "messages", "seed")}
            key = answer_key(chat.model, parameters, body["messages"], int(self.seeds[row]), attempt)
            tokens = tokens_of(body["messages"]) + request.max_tokens
            questions.append(Question((row, attempt, key), body, tokens))
        return questions

    def before(self, question: Question) -> bool:
        most = self.chat.max_cost
        if most is None:
            return True
        money, worst = self.chat.usage.money, self.worst(question)
        assert money is not None  # check
        spent = money + self.state.lost
        if spent + sum(self.reserved.values()) + worst <= most:
            self.reserved[question.key[0]] = worst
            return True
        if self.reserved:  # it may come cheaper than at its worst
            return False
        expected = f"more: {spent:.4g} are spent, and the next request may cost {worst:.2g}"
        raise bad(
            "api.max_cost", most, expected, "What was answered is kept: the same command with a higher one goes on."
        )

    def answered(self, question: Question, answer: Answer) -> Question | None:
        row, attempt, key = question.key
        self.reserved.pop(row, None)
        asked, told = tokens_of(question.body["messages"]), len((answer.text or "").encode()) // 4
        self.state.calls += 1
        self.state.prompt_tokens += asked if answer.prompt_tokens is None else answer.prompt_tokens
        self.state.answer_tokens += told if answer.answer_tokens is None else answer.answer_tokens
        self.answers.put(key, {"text": answer.text, "finish": answer.finish})
        if (text := self.text_of(answer)) is not None:
            self.place(row, text)
        elif attempt + 1 < self.chat.attempts:
            return self.asked_of([row], attempt + 1)[0]
        else:
            self.without(row, _why(answer))
        return None

    def failed(self, question: Question, sent: bool) -> None:
        worst = self.reserved.pop(question.key[0], 0.0)
        self.state.lost += worst if sent else 0.0

    def given_up(self, question: Question, reason: str) -> None:
        self.without(question.key[0], reason)

    def text_of(self, answer: Answer) -> str | None:
        """None: it is of no use. An answer that was cut off ends with its last whole sentence, if it has one."""
        text = answer.text
        if text is not None and answer.finish == "length":
            ends = [match.end() for match in SENTENCE_END.finditer(text)]
            text = text[: ends[-1]] if ends else text
        return None if text is None else self.chat.prompts.cleaned(text)

    def place(self, row: int, text: str) -> None:
        self.texts[row] = text
        self.chat._advance(1)

    def without(self, row: int, why: str) -> None:
        """Raises UserError where it is one too many."""
        self.why[row] = why
        self.chat._advance(1)
        share, n = self.chat.max_stood_in, len(self.seeds)
        if len(self.why) > max(1.0, share * n):
            what = f"api chat: {len(self.why)} of {n} rows got no answer of use ({why})"
            do = "The same command asks again for those without any; of no use stays of no use: see api.prompts."
            raise UserError(f"{what}: more than api.max_stood_in={share:g}. {do}")

    def worst(self, question: Question) -> float:
        """Money, at most."""
        messages = question.body["messages"]
        most = sum(PER_MESSAGE + len(message["content"].encode("utf-8", "replace")) for message in messages)
        return self.chat._money(most + PER_MESSAGE, question.body[self.chat.max_tokens_as]) or 0.0


def _kept(value: Any) -> Answer | None:
    """An answer of the cache; None where there is none."""
    if not isinstance(value, dict) or not isinstance(text := value.get("text"), str | None):
        return None
    return Answer(text, str(value.get("finish")))


def _why(answer: Answer) -> str:
    return WHY.get(answer.finish, "empty" if not (answer.text or "").strip() else "no text of use")


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_number(value: Any) -> bool:
    """0 or more, and finite."""
    return type(value) in (int, float) and 0 <= value < math.inf


def _is_json(value: Any) -> bool:
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        return False
