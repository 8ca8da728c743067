"""Chat models behind an endpoint that speaks OpenAI's protocol, hosted or local: generate, then paraphrase or fill in.

Every answer is stored on disk as it arrives, so an interrupted run pays for nothing twice.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dpsyn.api import Api, Degree, Meter, Usage
from dpsyn.data import Data
from dpsyn.errors import UserError, check_packages, invalid, missing
from dpsyn.language.answers import Answers, answer_key
from dpsyn.language.asking import Answer, Question, ask, ping, tokens_of
from dpsyn.language.cleaning import Request
from dpsyn.language.endpoints import DEFAULT_URL, Endpoint, check_address, check_key_name, key_in
from dpsyn.language.pace import Limits
from dpsyn.language.prompts import Prompts
from dpsyn.language.reasoning import without_reasoning
from dpsyn.marks import PLACE, SECRET, SPEED
from dpsyn.population import Label, Samples, of_texts
from dpsyn.randomness import retry_seeds
from dpsyn.validate import choice, flag, number, text_or_null, whole

OURS = ("model", "messages", "n", "stream", "seed", "temperature", "top_p", "max_tokens", "max_completion_tokens")
PER_MESSAGE = 16  # tokens around a message, at most
BLOCK = 128  # rows whose requests are made, and looked up in the cache, together
WHY = {"content_filter": "filtered", "refusal": "refused", "too_long": "too long for the model"}
WHY |= {"reasoning": "all of it reasoning"}
PING = "Reply with the word OK."

Requests = Callable[[Sequence[int], np.ndarray], Sequence[Request]]
"""(rows, a seed for each) -> what is asked of them"""


@dataclass(frozen=True)
class Chat(Api):
    """Texts, object of str [n].

    model: as the endpoint names it. prompts: what it is asked.
    temperature, top_p: None: not sent. extra: further parameters of the request. send_seed: the row's seed, modulo
        2^31, is sent as `seed`. max_tokens_param: the name under which the most tokens of an answer are sent.
    base_url: an address or several that serve the same model; None: OpenAI's. api_key_env: the environment variable
        that holds the key, one for all addresses or one for each, or several for one address. None: no key.
    concurrency, requests_per_minute, tokens_per_minute: of each endpoint; None: no limit but those that it shows.
    timeout: seconds, of one request. retries: of a row after 5xx, timeouts, lost connections and broken answers;
        deadline: seconds that they may take together. patience: seconds in which no endpoint answers, after which the
        run stops, to go on later.
    attempts: of a row whose answer is not usable (empty, refused, filtered), with new words and a new seed; then its
        parent stands in, or for a fresh row the text of another one of its label in the same call.
    max_fallback_share: the run stops where more than this share of the rows (and more than one) got no answer of its
        own.
    prices: model -> [a million tokens of prompts, a million tokens of answers].
    max_cost: in the unit of the prices; the run stops before it is passed, to go on with a higher one. In-flight
        requests are budgeted at their upper bound: one token per byte, max_tokens of output.

    answers_folder: of the cache, where answers of use are kept, under sha256 of the JSON of (digest of the address,
        model, parameters but the seed, messages, seed of the row), all as they are first asked; see
        dpsyn.language.answers. A run finds those of all addresses that it has asked, another run those of its own
        addresses alone.
    """

    model: str | None = field(metadata=PLACE)
    prompts: Prompts
    temperature: float | None
    top_p: float | None
    extra: Mapping[str, Any] = field(metadata=SECRET)
    send_seed: bool
    max_tokens_param: str
    base_url: str | Sequence[str] | None = field(metadata=SECRET | SPEED)
    api_key_env: str | Sequence[str] | None = field(metadata=SECRET | SPEED)
    concurrency: int = field(metadata=SPEED)
    requests_per_minute: float | None = field(metadata=SPEED)
    tokens_per_minute: float | None = field(metadata=SPEED)
    timeout: float = field(metadata=SPEED)
    deadline: float = field(metadata=SPEED)
    patience: float = field(metadata=SPEED)
    retries: int = field(metadata=SPEED)
    attempts: int
    max_fallback_share: float = field(metadata=SPEED)
    prices: Mapping[str, Sequence[float]] = field(metadata=SPEED)
    max_cost: float | None = field(metadata=SPEED)
    answers_folder: str = "answers"
    _meter: Meter = field(default_factory=Meter, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        text_or_null("api.model", self.model)
        if not isinstance(self.prompts, Prompts):
            raise invalid("api.prompts", self.prompts, "a part with _target_: dpsyn.language.prompts.Prompts")
        number("api.temperature", self.temperature, "a number, 0 or more, or null", least=0, optional=True)
        number("api.top_p", self.top_p, "a number over 0, 1 at most, or null", above=0, most=1, optional=True)
        if not isinstance(self.extra, Mapping) or not _is_json(self.extra):
            raise invalid("api.extra", self.extra, "names and values such as {reasoning_effort: low}, or {}")
        if taken := sorted(set(self.extra) & set(OURS)):
            raise invalid("api.extra", taken[0], "parameters that no other setting gives")
        flag("api.send_seed", self.send_seed)
        choice("api.max_tokens_param", self.max_tokens_param, ("max_tokens", "max_completion_tokens"))
        if not all(isinstance(url, str | None) for url in _several(self.base_url)):
            raise invalid("api.base_url", self.base_url, "an address, a list of them, or null")
        for name in _several(self.api_key_env):
            check_key_name(name)
        for key, least in (("concurrency", 1), ("retries", 0), ("attempts", 1)):
            whole(f"api.{key}", getattr(self, key), least)
        for key in ("requests_per_minute", "tokens_per_minute", "max_cost"):
            number(f"api.{key}", getattr(self, key), "a number over 0, or null", above=0, optional=True)
        for key in ("timeout", "deadline", "patience"):
            number(f"api.{key}", getattr(self, key), "seconds, more than 0", above=0)
        number("api.max_fallback_share", self.max_fallback_share, "a share between 0 and 1", least=0, most=1)
        for model, pair in self.prices.items() if isinstance(self.prices, Mapping) else [("", self.prices)]:
            if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(map(_is_number, pair)):
                raise invalid("api.prices", f"{{{model}: {pair}}}", "model: [price of prompts, of answers], or {}")

    @property
    def row_bytes(self) -> int:
        """About what a row takes on disk: a text of the declared length."""
        return 5 * self.prompts.generate_tokens

    @property
    def usage(self) -> Usage:
        """Of this process and those before it."""
        return self._meter.usage(self._money(self._meter.prompt_tokens, self._meter.answer_tokens))

    def resume(self, before: Usage, run: str | None) -> None:
        """run: its id, by which it finds what it was answered at other addresses."""
        self._meter.resume(before, run)

    def estimate(self, labels: Sequence[Label], generated: int, varied: int) -> Usage:
        """Estimated usage, each row asked once; seconds by the limits that are set."""
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

    def watched(self, advance: Callable[[int], None]) -> AbstractContextManager[None]:
        """While it lasts, advance(n) is called as n more rows are done."""
        return self._meter.watched(advance)

    def check(self) -> None:
        """Raises UserError for a missing package, model or price, what is no address, what are no prompts."""
        check_packages("api", "chat", "openai", "aiohttp")
        if not self.model:
            raise missing("api.model", "null", "the name of a model of the endpoint")
        for url, _ in self._addresses():
            check_address(url)
        self.prompts.check()
        if self.prompts.begins_answers:
            do = "An endpoint begins its answers itself; api=transformers and api=smollm go on with a beginning."
            raise invalid("api.prompts.file", "(with assistant)", "templates of system and user alone", do)
        if self.max_cost is not None and self.model not in self.prices:
            name = re.sub(r"([:,{}()=\\ ])", r"\\\1", self.model)  # as Hydra reads it
            do = f"Give '+api.prices={{{name}: [0.15, 0.6]}}', by a million tokens, with what it costs."
            raise invalid("api.max_cost", self.max_cost, "null where api.prices lacks the model", do)

    def ping(self, what: Literal["generate", "vary"]) -> None:
        """Raises UserError for a key, a model, an address or parameters that the endpoint refuses, in seconds."""
        key, most = "api.prompts.generate_tokens", self.prompts.generate_tokens
        if what == "vary":
            key, most = "api.prompts.max_tokens", min(self.prompts.max_tokens, self.prompts.typical_vary_tokens)
        body = self._body(Request(({"role": "user", "content": PING},), most), 0)
        endpoints = self.endpoints()
        if self.max_cost is not None and self._worst(body) * len(endpoints) > self.max_cost:
            raise invalid("api.max_cost", self.max_cost, f"more: a single request may cost {self._worst(body):.2g}")
        for answer in ping(endpoints, self._limits(), body):
            if answer.finish == "too_long" and answer.endpoint is not None:
                do = f"{answer.endpoint.host} says: {answer.said}"
                raise invalid(key, most, "a number of tokens that the model has room for", do)
            if answer.finish != "busy":
                self._count(body, answer)

    def check_degree(self, degree: Degree) -> None:
        """Raises UserError for what is no degree."""
        self.prompts.check_degree(degree)

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raises UserError for a placeholder or a label that the prompt file has nothing for."""
        self.prompts.check_labels(labels)

    def check_keys(self) -> None:
        """Raises UserError for a key that is not set, or is none."""
        self.endpoints()

    def reads(self) -> Sequence[Data]:
        return ()

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Raises UserError for a prompt that its label cannot fill, and where the endpoint cannot be asked."""

        def requests(rows: Sequence[int], seeds: np.ndarray) -> Sequence[Request]:
            return self.prompts.generate([labels[i] for i in rows], seeds)

        texts, why = self._asked("generate", requests, seeds)
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
            self._meter.done(len(parents))
            return Samples(parents)

        def requests(rows: Sequence[int], seeds: np.ndarray) -> Sequence[Request]:
            return self.prompts.vary([parents[i] for i in rows], [labels[i] for i in rows], degree, seeds)

        texts, why = self._asked("vary", requests, seeds)
        self._say(why, len(texts), "come back as their parents")
        return of_texts([own if text is None else text for own, text in zip(parents, texts, strict=True)])

    def adopt(self, samples: Samples, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Texts of another api, as they are. Raises UserError for what are no texts."""
        if samples.content.dtype != object:
            raise UserError("api chat: expected texts. Choose an api for this kind of data.")
        return Samples(samples.content)

    def _asked(self, what: str, requests: Requests, seeds: np.ndarray) -> tuple[list[str | None], dict[int, str]]:
        """A row each, from the cache what is there; and of rows without an answer the reason."""
        endpoints = self.endpoints()
        with Answers(self.answers_folder) as answers:
            call = _Call(self, what, requests, seeds, answers, self._addresses_of_run(answers, endpoints))
            ask(call.blocks(), endpoints, self._limits(), call)
        if elsewhere := call.found_at.keys() - {endpoint.digest for endpoint in endpoints}:
            line = "api chat: %d of %d rows have answers that this run was given before, at another address"
            rows = sum(call.found_at[address] for address in elsewhere)
            logging.getLogger(__name__).warning(line, rows, len(call.texts))
        self._meter.fallbacks += len(call.why)
        return call.texts, call.why

    def _limits(self) -> Limits:
        return Limits(
            self.concurrency,
            self.requests_per_minute,
            self.tokens_per_minute,
            self.timeout,
            self.deadline,
            self.patience,
            self.retries,
        )

    def _addresses_of_run(self, answers: Answers, endpoints: Sequence[Endpoint]) -> list[str]:
        """Digests: of those it asks now, then of others that this very run has asked."""
        now = list(dict.fromkeys(endpoint.digest for endpoint in endpoints))
        if self._meter.run is None:
            return now
        key = answer_key("addresses of a run", self._meter.run)
        before = answers.get([key]).get(key)
        known = [address for address in before if isinstance(address, str)] if isinstance(before, list) else []
        everywhere = list(dict.fromkeys([*now, *known]))
        if set(everywhere) != set(known):
            answers.put(key, everywhere)  # before any answer from there, and written in this order
        return everywhere

    def _say(self, why: Mapping[int, str], rows: int, what: str) -> None:
        """On standard error, how many rows got no answer."""
        if why:
            reasons = ", ".join(reason for reason, _ in Counter(why.values()).most_common(3))
            line = "api chat: %d of %d rows got no answer of use (%s), %s"
            logging.getLogger(__name__).warning(line, len(why), rows, reasons, what)

    def _money(self, prompt_tokens: float, answer_tokens: float) -> float | None:
        if (pair := self.prices.get(self.model or "")) is None:
            return None
        return (prompt_tokens * pair[0] + answer_tokens * pair[1]) / 1e6

    def _worst(self, body: Mapping[str, Any]) -> float:
        """Money that a request may cost, at most."""
        most = sum(PER_MESSAGE + len(message["content"].encode("utf-8", "replace")) for message in body["messages"])
        return self._money(most + PER_MESSAGE, body[self.max_tokens_param]) or 0.0

    def _count(self, body: Mapping[str, Any], answer: Answer) -> None:
        asked, told = tokens_of(body["messages"]), len((answer.text or "").encode()) // 4
        self._meter.calls += 1
        self._meter.prompt_tokens += asked if answer.prompt_tokens is None else answer.prompt_tokens
        self._meter.answer_tokens += told if answer.answer_tokens is None else answer.answer_tokens

    def _addresses(self) -> list[tuple[str | None, str | None]]:
        """(url, name of the variable that holds the key) of each endpoint."""
        urls, names = _several(self.base_url), _several(self.api_key_env)
        if not urls or not names or (len(urls) != len(names) and 1 not in (len(urls), len(names))):
            expected = f"one name, or one for each of the {len(urls)} addresses"
            raise invalid("api.api_key_env", ", ".join(map(str, names)) or "[]", expected)
        n = max(len(urls), len(names))
        return list(zip(urls * (n // len(urls)), names * (n // len(names)), strict=True))

    def endpoints(self) -> list[Endpoint]:
        """Raises UserError for a key that is not set, or is none."""
        return [Endpoint(url or DEFAULT_URL, key_in(name), name) for url, name in self._addresses()]

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
            self.max_tokens_param: request.max_tokens,
            **given,
            **self.extra,
        }


@dataclass(frozen=True)
class _Asked:
    """keys: of the cache, by the digest of each address."""

    row: int
    attempt: int
    request: Request
    keys: Mapping[str, bytes]


class _Call:
    """The rows of one call, as an Asker. addresses: digests of those whose answers it may use."""

    def __init__(
        self,
        chat: Chat,
        what: str,
        requests: Requests,
        seeds: np.ndarray,
        answers: Answers,
        addresses: Sequence[str],
    ) -> None:
        self.chat, self.meter, self.what, self.requests = chat, chat._meter, what, requests
        self.seeds, self.answers, self.addresses = seeds, answers, addresses
        self.texts: list[str | None] = [None] * len(seeds)
        self.why: dict[int, str] = {}
        self.found_at: Counter[str] = Counter()  # rows from the cache, by the address that answered
        self.reserved: dict[int, float] = {}  # by row: money for in-flight requests, at their upper bound

    def blocks(self) -> Iterator[list[Question]]:
        """What is not in the cache."""
        for start in range(0, len(self.seeds), BLOCK):
            yield self.questions(range(start, min(start + BLOCK, len(self.seeds))))

    def questions(self, rows: Sequence[int]) -> list[Question]:
        questions = [self.question(row, 0, request) for row, request in zip(rows, self.asked_of(rows, 0), strict=True)]
        known = self.answers.get(key for question in questions for key in question.key.keys.values())
        asked = []
        for question in questions:
            for address, key in question.key.keys.items():
                if (text := self.kept(question, known.get(key))) is not None:
                    self.found_at[address] += 1
                    self.meter.cached += 1
                    self.place(question.key.row, text)
                    break
            else:
                asked.append(question)
        return asked

    def kept(self, question: Question, value: Any) -> str | None:
        """The text of an answer of the cache; None where there is none."""
        text = value.get("text") if isinstance(value, dict) else None
        if not isinstance(text, str):
            return None
        attempt, request = value.get("attempt", 0), question.key.request
        if type(attempt) is int and attempt > 0:  # with other words than the first time
            request = self.asked_of([question.key.row], attempt)[0]
        return self.chat.prompts.cleaned(text, request, value.get("finish") == "length")

    def asked_of(self, rows: Sequence[int], attempt: int) -> Sequence[Request]:
        return self.requests(rows, retry_seeds(self.seeds[list(rows)], attempt))

    def question(self, row: int, attempt: int, request: Request, keys: Mapping[str, bytes] | None = None) -> Question:
        """keys: of the first attempt, under which a row's answer is kept; None: this is the first one."""
        chat = self.chat
        body = chat._body(request, int(retry_seeds(self.seeds[[row]], attempt)[0]))
        if keys is None:
            parameters = {name: value for name, value in body.items() if name not in ("model", "messages", "seed")}
            what = (chat.model, parameters, body["messages"], int(self.seeds[row]))
            keys = {address: answer_key(address, *what) for address in self.addresses}
        tokens = tokens_of(body["messages"]) + request.max_tokens
        return Question(_Asked(row, attempt, request, keys), body, tokens)

    def before(self, question: Question) -> bool:
        most = self.chat.max_cost
        if most is None:
            return True
        money, worst = self.chat.usage.money, self.chat._worst(question.body)
        assert money is not None  # check
        spent = money + self.meter.lost
        if spent + sum(self.reserved.values()) + worst <= most:
            self.reserved[question.key.row] = worst
            return True
        if self.reserved:  # it may cost less than its upper bound
            return False
        expected = f"more: {spent:.4g} are spent, and the next request may cost {worst:.2g}"
        raise invalid(
            "api.max_cost", most, expected, "What was answered is kept: the same command with a higher one goes on."
        )

    def answered(self, question: Question, answer: Answer) -> Question | None:
        row, attempt = question.key.row, question.key.attempt
        self.reserved.pop(row, None)
        self.chat._count(question.body, answer)
        if (text := self.text_of(question, answer)) is not None:
            assert answer.endpoint is not None
            # unusable answers are not kept: another start of the server may answer better
            value = {"text": answer.text, "finish": answer.finish, "attempt": attempt}
            self.answers.put(question.key.keys[answer.endpoint.digest], value)
            self.place(row, text)
        elif attempt + 1 < self.chat.attempts:
            return self.question(row, attempt + 1, self.asked_of([row], attempt + 1)[0], question.key.keys)
        else:
            self.without(row, _why(answer), answer.said)
        return None

    def failed(self, question: Question, sent: bool) -> None:
        worst = self.reserved.pop(question.key.row, 0.0)
        self.meter.lost += worst if sent else 0.0

    def given_up(self, question: Question, reason: str) -> None:
        self.without(question.key.row, reason)

    def text_of(self, question: Question, answer: Answer) -> str | None:
        """None: not usable."""
        return self.chat.prompts.cleaned(answer.text, question.key.request, answer.finish == "length")

    def place(self, row: int, text: str) -> None:
        self.texts[row] = text
        self.meter.done(1)

    def without(self, row: int, why: str, said: str = "") -> None:
        """said: by the endpoint. Raises UserError where it is one too many."""
        self.why[row] = why
        self.meter.done(1)
        share, n = self.chat.max_fallback_share, len(self.seeds)
        if len(self.why) > max(1.0, share * n):
            what = f"api chat: {len(self.why)} of {n} rows got no answer of use ({why})"
            do = f"The endpoint says: {said}. " if said else ""
            if why == WHY["too_long"]:
                do += "Lower api.prompts." + ("generate_tokens. " if self.what == "generate" else "max_parent_words. ")
            if why == WHY["reasoning"]:
                do += "Turn reasoning off (api.extra=..., or at the endpoint), or allow more tokens (api.prompts). "
            do += "What was answered is kept: the same command asks again for the rest; see api.prompts."
            raise UserError(f"{what}: more than api.max_fallback_share={share:g}. {do}")


def _why(answer: Answer) -> str:
    text = answer.text or ""
    thought = "all of it reasoning" if text.strip() and without_reasoning(text) is None else None
    return WHY.get(answer.finish) or thought or ("no text of use" if text.strip() else "empty")


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
