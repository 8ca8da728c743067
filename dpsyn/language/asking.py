"""Sends many requests to OpenAI-compatible endpoints: adaptive rate, retries, one circuit breaker per endpoint.

One flat queue; every endpoint has a pace of its own (`dpsyn/language/pace.py`).
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import json
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol

import numpy as np

from dpsyn.errors import UserError, invalid
from dpsyn.language.endpoints import (
    PASSING,
    Endpoint,
    Failed,
    OutOfCredit,
    Response,
    errors_of_http,
    first_of,
    judged,
    not_reached,
    said_in,
    shortened,
    status_of_error,
    unreachable,
)
from dpsyn.language.pace import SILENCE, Limits, Pacer, backoff

# they may log addresses, headers and bodies
LIBRARIES = ("openai", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp")

DRAIN = 60.0  # seconds that requests on their way are awaited when all must stop
OBJECTS = 20_000  # new ones, after which the collector looks for garbage
PINGS = 4  # attempts before an endpoint is taken not to answer: 3.5 seconds
SETTINGS = "temperature, top_p, max_tokens_param, send_seed, extra"

# why an answer ends (finish_reason, of OpenAI, vLLM, llama.cpp, TGI, Anthropic, Cohere, Gemini, Mistral, ...)
WHOLE = {"stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete"}
CUT = {"length", "max_tokens", "max_output_tokens", "max_length", "model_length", "limit"}
WITHHELD = {"content_filter", "content-filter", "content_filtered", "safety", "blocklist", "prohibited_content"}
WITHHELD |= {"recitation", "spii", "error_toxic", "sensitive", "guardrail_intervened"}


@dataclass(frozen=True)
class Question:
    """key: what names it, for whoever asks. body: the request; JSON of a chat. tokens: of prompt and answer, about."""

    key: Any
    body: Any
    tokens: int


@dataclass(frozen=True)
class Answer:
    """text: None where there is none for good (refused, filtered, too long, nothing but reasoning). finish: 'stop',
    'length', or why there is none: 'content_filter', 'refusal', 'too_long', 'reasoning', 'length'. Tokens: None where
    the endpoint does not count. said: its words, where it refused. endpoint: which one answered. image: uint8
    [h, w, 3], where one was asked for."""

    text: str | None
    finish: str
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    said: str = ""
    endpoint: Endpoint | None = None
    image: np.ndarray | None = None


Exchange = Callable[[Pacer, Any], Awaitable[Answer]]
"""(the endpoint's pacer, a request's body) -> its answer. Raises Failed where asking again may help, UserError where it
cannot."""


class Asker(Protocol):
    """Who asks. All are called in one thread; what they raise stops the asking."""

    def before(self, question: Question) -> bool:
        """It is about to be sent; False: not before something else has come back. Raises UserError where never."""
        ...

    def answered(self, question: Question, answer: Answer) -> Question | None:
        """What to ask instead, where the answer is not usable.

        question: that was asked.
        answer: to it.
        """
        ...

    def failed(self, question: Question, sent: bool) -> None:
        """There was no answer; it will be asked again, or given up.

        question: that was asked.
        sent: whether it may have been answered, and paid for.
        """
        ...

    def given_up(self, question: Question, reason: str) -> None:
        """It got no answer within its retries and its deadline.

        question: that was asked.
        reason: in words, without the key.
        """
        ...


def ask(
    blocks: Iterable[Sequence[Question]],
    endpoints: Sequence[Endpoint],
    limits: Limits,
    asker: Asker,
    exchange: Exchange | None = None,
) -> None:
    """Until each has an answer that is of use, or is given up. Where it must stop, those on their way are awaited.

    blocks: of questions, maybe empty, drawn as they are needed: a million need not be in memory, nor wait to be made.
    endpoints: one or more, among which questions are shared.
    limits: of each endpoint.
    asker: told of every answer and failure.
    exchange: how one is sent and its answer read; None: as a chat.

    Raises UserError: a key that is refused, an unknown model, settings that the endpoint rejects, no endpoint that
    answers within limits.patience. Not for use where an event loop runs in this thread.
    """
    blocks = iter(blocks)
    if first := next(filter(None, blocks), None):
        with _few_collections():
            asyncio.run(Asking(chain([first], blocks), endpoints, limits, asker, exchange or chat).run())


def ping(endpoints: Sequence[Endpoint], limits: Limits, body: Any, exchange: Exchange | None = None) -> list[Answer]:
    """Asks each endpoint once, in few attempts: a wrong key, model or address is found in seconds. Returns the answers.

    One that says it has too much to do (429) is well. Raises UserError where asking could not go on: as `ask` does, and
    where no endpoint answers. Not for use where an event loop runs in this thread.

    endpoints: one or more.
    limits: of each endpoint.
    body: of the request.
    exchange: how it is sent and its answer read; None: as a chat.
    """
    return asyncio.run(_ping(endpoints, limits, body, exchange or chat))


@contextmanager
def _few_collections() -> Iterator[None]:
    """Requests on their way look to Python's collector like a growing heap, which it then reads as a whole again and
    again, a fourth of the CPU time, though hardly any of them is part of a cycle."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], OBJECTS), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def tokens_of(messages: Sequence[Mapping[str, str]]) -> int:
    """About: a token is some four bytes."""
    return sum(8 + len(message["content"].encode("utf-8", "replace")) // 4 for message in messages)


@dataclass(eq=False)
class _Row:
    """tries: that failed by its own fault, since `began` (monotonic seconds)."""

    question: Question
    tries: int = 0
    began: float | None = None


class Asking:
    """The queue of one call of `ask`."""

    def __init__(
        self,
        blocks: Iterator[Sequence[Question]],
        endpoints: Sequence[Endpoint],
        limits: Limits,
        asker: Asker,
        exchange: Exchange,
    ) -> None:
        self.blocks, self.drawn = blocks, False  # drawn: all of them
        self.waiting: deque[_Row] = deque()
        self.later: list[tuple[float, int, _Row]] = []  # a heap: by when to ask again
        self.endpoints, self.limits, self.asker, self.exchange = endpoints, limits, asker, exchange
        self.tasks: set[asyncio.Task[None]] = set()
        self.stop: BaseException | None = None

    async def run(self) -> None:
        _hush()
        self.changed = asyncio.Event()
        async with AsyncExitStack() as clients:
            self.pacers = [Pacer(endpoint, self.limits, clients) for endpoint in self.endpoints]
            try:
                while self.stop is None and (self.draw() or self.waiting or self.later or self.tasks):
                    when = self.launch(time.monotonic())
                    if self.stop is None:
                        await self.until(0.0 if self.queue_is_low() else when)
                if self.tasks:
                    await asyncio.wait(self.tasks, timeout=min(self.limits.timeout, DRAIN))
            finally:
                for task in self.tasks:
                    task.cancel()
                await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.stop is not None:
            raise self.stop

    def queue_is_low(self) -> bool:
        return not self.drawn and len(self.waiting) <= 2 * self.limits.concurrency * len(self.pacers)

    def draw(self) -> bool:
        """One more block where few wait, so that between two the answers are heard. False: there is none."""
        if self.queue_is_low():
            try:
                block = next(self.blocks, None)
            except UserError as error:
                self.stop = error
                return False
            self.drawn = block is None
            self.waiting.extend(_Row(question) for question in block or [])
        return not self.drawn

    async def until(self, when: float) -> None:
        """Something has changed, or it is time."""
        loop = asyncio.get_running_loop()
        timer = loop.call_at(when, self.changed.set) if math.isfinite(when) else None
        await self.changed.wait()
        self.changed.clear()
        if timer is not None:
            timer.cancel()

    def launch(self, now: float) -> float:
        """Starts what may be; says when to look again."""
        while self.later and self.later[0][0] <= now:
            self.waiting.appendleft(heapq.heappop(self.later)[2])
        if now >= (end := self.end_of_patience()):
            self.stop = self.nobody_answers()
            return now
        soonest = min(end, self.later[0][0] if self.later else math.inf)
        while self.waiting:
            sound = [pacer for pacer in self.pacers if not pacer.is_open]
            may_probe = not sound or len(self.waiting) > sum(pacer.window for pacer in sound)
            usable = [(pacer, pacer.ready()) for pacer in self.pacers if may_probe or not pacer.is_open]
            ready = [pacer for pacer, when in usable if when <= now]
            if not ready:
                return min(soonest, *(when for _, when in usable))
            pacer = min(ready, key=lambda pacer: (not pacer.is_open, pacer.in_flight / pacer.window))
            row = self.waiting[0]
            try:
                if not self.asker.before(row.question):
                    return soonest
            except UserError as error:
                self.stop = error
                return now
            self.waiting.popleft()
            pacer.begin(now, row.question.tokens)
            task = asyncio.create_task(self.one(row, pacer, now))
            self.tasks.add(task)
            task.add_done_callback(self.done)
        return soonest

    def done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.changed.set()
        if not task.cancelled() and (error := task.exception()) is not None and self.stop is None:
            self.stop = error

    async def one(self, row: _Row, pacer: Pacer, began: float) -> None:
        """Asks once. What it raises stops all.

        row: a question and its attempts.
        pacer: of the endpoint that is asked.
        began: when it was sent, seconds of the monotonic clock.
        """
        question = row.question
        try:
            answer = await self.exchange(pacer, question.body)
        except Failed as failure:
            pacer.end(began)
            self.asker.failed(question, failure.sent)
            self.again(row, pacer, began, failure)
            return
        except OutOfCredit as error:
            self.asker.failed(question, False)
            self.waiting.append(row)
            if pacer in self.pacers:
                self.pacers.remove(pacer)
                if not self.pacers:
                    raise
                logging.getLogger(__name__).warning("%s The others go on.", error)
            return
        except UserError:
            self.asker.failed(question, False)
            raise
        now = time.monotonic()
        pacer.end(began)
        pacer.on_success(now, began)
        if answer.prompt_tokens is not None and answer.answer_tokens is not None:
            pacer.take(now, answer.prompt_tokens + answer.answer_tokens - question.tokens)
        other = self.asker.answered(question, answer)
        if other is not None:
            self.waiting.append(_Row(other))

    def again(self, row: _Row, pacer: Pacer, began: float, failure: Failed) -> None:
        now = time.monotonic()
        own = failure.kind in ("slow", "broken", "unread") and not pacer.is_open
        pacer.on_failure(now, began, failure, fresh=not row.tries)
        if not own:
            row.began = None  # what the endpoint does to all is not held against a row
            self.waiting.append(row)
            return
        row.tries += 1
        row.began = began if row.began is None else row.began
        wait = backoff(row.tries - 1) if failure.after is None else failure.after
        if row.tries > self.limits.retries:
            self.asker.given_up(row.question, f"{row.tries} attempts, the last one: {failure.why}")
        elif now + wait - row.began > self.limits.deadline:
            self.asker.given_up(row.question, f"no answer within the deadline, the last time: {failure.why}")
        else:
            heapq.heappush(self.later, (now + wait, id(row), row))

    def end_of_patience(self) -> float:
        """When the last endpoint has been ill for too long."""
        ends = [
            pacer.failing_since + pacer.patience if pacer.is_open and pacer.failing_since is not None else math.inf
            for pacer in self.pacers
        ]
        return max(ends)

    def nobody_answers(self) -> UserError:
        hosts = ", ".join(f"{pacer.endpoint.host} ({pacer.last})" for pacer in self.pacers)
        patience = f"None answered for api.patience={self.limits.patience:g} s."
        if any(pacer.patience < self.limits.patience for pacer in self.pacers):
            patience = "It says 200 to every request, and gives no answer."
        do = f"{patience} What was answered is kept: give the same command again to go on."
        return invalid("api.base_url", hosts, "an endpoint that answers", do)


async def _ping(endpoints: Sequence[Endpoint], limits: Limits, body: Any, exchange: Exchange) -> list[Answer]:
    _hush()
    async with AsyncExitStack() as clients:

        async def one(endpoint: Endpoint) -> Answer | Exception:
            pacer = Pacer(endpoint, limits, clients)
            for attempt in range(PINGS):
                try:
                    return await exchange(pacer, body)
                except UserError as error:
                    return error
                except Failed as failure:
                    if failure.kind == "limit":
                        return Answer(None, "busy", 0, 0)
                    last = failure
                if attempt and (last.kind == "slow" or "ConnectionTimeout" in last.why):
                    break
                if attempt + 1 < PINGS:
                    await asyncio.sleep(backoff(attempt))
            return last

        all_heard = asyncio.gather(*map(one, endpoints))
        done, _ = await asyncio.wait({all_heard}, timeout=SILENCE)
        if not done:
            hosts = ", ".join(dict.fromkeys(endpoint.host for endpoint in endpoints))
            pacer = "%s has not answered yet; it is waited for (api.timeout=%g s)"
            logging.getLogger(__name__).warning(pacer, hosts, limits.timeout)
        heard = await all_heard
    answers = [answer for answer in heard if isinstance(answer, Answer)]
    for error in heard:
        if isinstance(error, UserError) and not (isinstance(error, OutOfCredit) and answers):
            raise error
    if not answers:
        raise next(
            unreachable(e, error) for e, error in zip(endpoints, heard, strict=True) if isinstance(error, Failed)
        )
    return answers


def _hush() -> None:
    import openai  # noqa: F401  # reads OPENAI_LOG, which the next lines overrule

    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


async def chat(pacer: Pacer, body: Mapping[str, Any]) -> Answer:
    """An exchange by chat/completions.

    pacer: of the endpoint.
    body: of the request.
    """
    endpoint, model = pacer.endpoint, body.get("model")
    response = await posted(pacer, "chat/completions", json.dumps(body).encode())
    status, content = response.status, response.content
    if response.is_success:
        try:
            return replace(read_answer(content), endpoint=endpoint)
        except ValueError as error:
            told = json.loads(content) if _is_json(content) else None
            within = status_of_error(told)
            if within is None:
                why = f"status 200, {shortened(str(error), endpoint.key)}"
                raise Failed(why, "broken" if PASSING.search(why) else "unread", sent=True) from None
            status = within
    within_200 = response.is_success
    finish, said = judged(endpoint, model, SETTINGS, status, content, response.headers, within_200)
    return Answer(None, finish, 0, 0, said, endpoint)


async def posted(pacer: Pacer, path: str, content: bytes, kind: str = "application/json") -> Response:
    """The response, whatever its status. Raises Failed where there is none.

    pacer: of the endpoint.
    path: below the endpoint's address.
    content: of the request.
    kind: its media type.
    """
    try:
        return await pacer.post(path, content, kind)
    except errors_of_http() as error:
        raise not_reached(pacer.endpoint, error) from None


def read_answer(content: bytes) -> Answer:
    """Raises ValueError for what is no answer, with what came instead."""
    try:
        told = json.loads(content)
    except ValueError:
        said = said_in(content[:2000].decode("utf-8", "replace"))
        kind = "a stream, not one answer" if said.startswith(("data:", "event:")) else "no JSON"
        raise ValueError(said if said.startswith("a web page") else f"{kind}: {said}") from None
    choice = first_of(told, "choices")
    message = choice.get("message")
    if not isinstance(message, Mapping):
        failed = {"error": choice["error"]} if choice.get("error") else told
        has_error = isinstance(failed, Mapping) and bool(failed.get("error"))
        raise ValueError(f"an error: {said_in(failed)}" if has_error else f"no answer: {said_in(told) or 'null'}")
    text, reason = _text_in(message.get("content")), str(choice.get("finish_reason") or "stop").lower()
    usage = told.get("usage")
    counts = [
        (usage if isinstance(usage, Mapping) else {}).get(name) for name in ("prompt_tokens", "completion_tokens")
    ]
    prompt, answer = [count if type(count) is int and count >= 0 else None for count in counts]
    refused = message.get("refusal")
    if reason in WITHHELD or reason == "refusal" or (refused and not text):
        return Answer(
            None, "content_filter" if reason in WITHHELD else "refusal", prompt, answer, said=str(refused or "")
        )
    if reason not in WHOLE | CUT:
        error = said_in(choice.get("error")) or said_in(told.get("error"))
        raise ValueError(f"no whole answer (finish_reason {reason})" + (f": {error}" if error else ""))
    finish = "stop" if reason in WHOLE else "length"
    if text is None and finish == "length":  # all tokens went into thinking
        return Answer(None, "length", prompt, answer)
    if text is None and any(message.get(name) for name in ("reasoning_content", "reasoning", "thinking")):
        return Answer(None, "reasoning", prompt, answer)
    if text is None:
        raise ValueError("an answer without a text")
    if text.lstrip().startswith("{") and _is_json(text.encode("utf-8", "replace")):
        within = json.loads(text)
        if isinstance(within.get("error"), str | Mapping) and len(within) <= 3:  # a gateway's, instead of a text
            raise ValueError(f"an error: {said_in(within)}")
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves of a pair cannot be written
    return Answer(whole, finish, prompt, answer)


def _text_in(content: Any) -> str | None:
    """Of a message: a text, or parts of it, some of which are no text. None where there is none."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        if isinstance(part, Mapping) and part.get("type", "text") in ("text", "output_text", None):
            part = part.get("text")
            part = part.get("value") if isinstance(part, Mapping) else part
        if isinstance(part, str):
            texts.append(part)
    return "".join(texts) if texts else None


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
