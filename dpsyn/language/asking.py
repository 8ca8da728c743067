"""Many questions to chat endpoints of OpenAI's protocol, as fast as they bear and no faster, through all they do wrong.

One flat queue; every endpoint has a pace of its own. The rate falls by a third when an endpoint says 429 and grows
slowly again; the number at once falls when answers take much longer than they did. An endpoint that fails again and
again, or says when to come back, is left alone for a while and then tried with a single request (a circuit breaker).
"""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
import math
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from statistics import median
from typing import Any, Protocol

from dpsyn.errors import UserError, invalid
from dpsyn.language.endpoints import (
    PASSING,
    Endpoint,
    Failed,
    OutOfCredit,
    http_client,
    http_library,
    judged,
    not_reached,
    said_in,
    shortened,
    status_of_error,
    unreachable,
)

LIBRARIES = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")  # they may log addresses, headers and bodies

PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds before the first retry, doubled each time; at most
DECREASE, INCREASE = 0.7, 1.05  # of the rate, after a 429; of the rate, in a second without
SLOWEST = 0.5  # requests a second, below which no 429 brings the rate
MARGIN = 0.99  # of the limits that are set: 600 requests reach the endpoint in a little less than a minute, too
CATCH_UP = 0.25  # seconds by which requests that were held up may follow each other faster
FAILURES = 5  # rows in a row, not tried before, after which an endpoint is taken to be down
SLOW = 3.0  # times the best median latency, at which fewer are asked at once
LATENCIES = 32  # answers over which the median goes
DRAIN = 60.0  # seconds that requests on their way are awaited when all must stop
CONNECTIONS = 16  # a client: the pool of the HTTP library looks at each for every request (128: 0.25 ms more a call)
PINGS = 4  # attempts before an endpoint is taken not to answer: 3.5 seconds
SILENCE = 5.0  # seconds without an answer, after which a line says so
UNREAD_PATIENCE = 8.0  # seconds in which an endpoint says 200 and gives no answer, again and again
SETTINGS = "temperature, top_p, max_tokens_param, send_seed, extra"

# why an answer ends (finish_reason, of OpenAI, vLLM, llama.cpp, TGI, Anthropic, Cohere, Gemini, Mistral, ...)
WHOLE = {"stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete"}
CUT = {"length", "max_tokens", "max_output_tokens", "max_length", "model_length", "limit"}
WITHHELD = {"content_filter", "content-filter", "content_filtered", "safety", "blocklist", "prohibited_content"}
WITHHELD |= {"recitation", "spii", "error_toxic", "sensitive", "guardrail_intervened"}


@dataclass(frozen=True)
class Question:
    """key: what names it, for whoever asks. body: the request, JSON. tokens: of its prompt and its answer, about."""

    key: Any
    body: Mapping[str, Any]
    tokens: int


@dataclass(frozen=True)
class Answer:
    """text: None where there is none for good (refused, filtered, too long, nothing but reasoning). finish: 'stop',
    'length', or why there is none: 'content_filter', 'refusal', 'too_long', 'reasoning', 'length'. Tokens: None where
    the endpoint does not count. said: its words, where it refused. endpoint: which one answered."""

    text: str | None
    finish: str
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    said: str = ""
    endpoint: Endpoint | None = None


@dataclass(frozen=True)
class Limits:
    """Of each endpoint: concurrency, requests at once; requests_per_minute and tokens_per_minute, None: no limit.

    timeout: seconds, of one request. retries: of a row, after failures of its own (5xx, timeouts, resets, broken
    answers); deadline: seconds that these may take. patience: seconds without any answer, after which all stops.
    """

    concurrency: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    timeout: float
    deadline: float
    patience: float
    retries: int


class Asker(Protocol):
    """Who asks. All are called in one thread; what they raise stops the asking."""

    def before(self, question: Question) -> bool:
        """It is about to be sent; False: not before something else has come back. Raises UserError where never."""
        ...

    def answered(self, question: Question, answer: Answer) -> Question | None:
        """What to ask in its place, where the answer is of no use."""
        ...

    def failed(self, question: Question, sent: bool) -> None:
        """There was no answer; it will be asked again, or given up. sent: it may have been answered, and paid for."""
        ...

    def given_up(self, question: Question, reason: str) -> None:
        """It got no answer within its retries and its deadline."""
        ...


def ask(blocks: Iterable[Sequence[Question]], endpoints: Sequence[Endpoint], limits: Limits, asker: Asker) -> None:
    """Until each has an answer that is of use, or is given up. Where it must stop, those on their way are awaited.

    blocks: of questions, maybe empty, drawn as they are needed: a million need not be in memory, nor wait to be made.
    Raises UserError: a key that is refused, an unknown model, settings that the endpoint rejects, no endpoint that
    answers within limits.patience. Not for use where an event loop runs in this thread.
    """
    blocks = iter(blocks)
    if first := next(filter(None, blocks), None):
        asyncio.run(_Asking(chain([first], blocks), endpoints, limits, asker).run())


def ping(endpoints: Sequence[Endpoint], limits: Limits, body: Mapping[str, Any]) -> list[Answer]:
    """Asks each endpoint once, in few attempts: a wrong key, model or address is found in seconds. Returns the answers.

    One that says it has too much to do (429) is well. Raises UserError where asking could not go on: as `ask` does, and
    where no endpoint answers. Not for use where an event loop runs in this thread.
    """
    return asyncio.run(_ping(endpoints, limits, body))


def tokens_of(messages: Sequence[Mapping[str, str]]) -> int:
    """About: a token is some four bytes."""
    return sum(8 + len(message["content"].encode("utf-8", "replace")) // 4 for message in messages)


@dataclass(eq=False)
class _Row:
    """tries: that failed by its own fault, since `began` (monotonic seconds)."""

    question: Question
    tries: int = 0
    began: float | None = None


@dataclass(eq=False)
class _Line:
    """One endpoint: its clients, its pace, its breaker. Times are monotonic seconds."""

    endpoint: Endpoint
    limits: Limits
    clients: AsyncExitStack
    free: list[Any] = field(default_factory=list)  # an HTTP client as often as it may send at once
    window: float = 0.0  # requests at once
    most: float = math.inf  # requests a second, by the limit that is set
    rate: float = math.inf  # requests a second, as it bears
    grown: float = 0.0  # when the rate last grew
    next_request: float = 0.0
    next_tokens: float = 0.0
    on_their_way: int = 0
    sent: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    best: float = math.inf  # median latency
    judged: float = 0.0  # when latencies were last looked at
    failures: int = 0
    unread: int = 0  # in a row: status 200 without an answer
    warned: bool = False
    is_open: bool = False  # the breaker: until `until` nothing is sent, then one request at once
    probing: bool = False
    opened: float = -math.inf
    until: float = 0.0
    pauses: int = 0  # in a row
    ill_since: float | None = None  # without any answer
    last: str = ""

    def __post_init__(self) -> None:
        self.window = float(self.limits.concurrency)
        self.next_request = self.next_tokens = time.monotonic()
        if self.limits.requests_per_minute is not None:
            self.most = self.rate = self.limits.requests_per_minute / 60 * MARGIN

    def ready(self) -> float:
        """When it may next be asked; infinity: not before an answer comes."""
        if self.probing or (not self.is_open and self.on_their_way >= int(self.window)):
            return math.inf
        return max(self.until, self.next_request, self.next_tokens)

    def begin(self, now: float, tokens: int) -> None:
        self.on_their_way += 1
        self.probing = self.is_open
        self.sent.append(now)
        if math.isfinite(self.rate):
            self.rate = min(self.most, self.rate * INCREASE ** min(now - self.grown, 10.0))
        self.grown = now
        self.next_request = max(self.next_request, now - CATCH_UP) + 1 / self.rate
        self.take(now, tokens)

    def take(self, now: float, tokens: float) -> None:
        if self.limits.tokens_per_minute is not None:
            seconds = tokens * 60 / MARGIN / self.limits.tokens_per_minute
            self.next_tokens = max(self.next_tokens, now - CATCH_UP) + seconds

    def end(self, began: float) -> None:
        self.on_their_way -= 1
        if began >= self.opened:
            self.probing = False

    def well(self, now: float, began: float) -> None:
        """An answer came."""
        self.failures, self.unread, self.ill_since = 0, 0, None
        if began >= self.opened:  # else it was asked before the pause, which holds all the same
            self.is_open, self.pauses = False, 0
        self.window = min(self.limits.concurrency, self.window + 1 / self.window)
        self.latencies.append(now - began)
        if len(self.latencies) == LATENCIES and now > self.judged:
            typical = median(self.latencies)
            self.best = min(self.best * 1.01, typical)  # drifts: what was fast at night is no measure for the day
            self.judged = now + typical
            if typical > SLOW * self.best:
                self.narrow(now)

    def ill(self, now: float, began: float, failure: Failed, fresh: bool) -> None:
        """fresh: of a row that had not failed before; one that had says little of the endpoint."""
        self.last = failure.why
        self.ill_since = now if self.ill_since is None else self.ill_since
        since_opened = began >= self.opened
        self.unread = self.unread + 1 if failure.kind == "unread" else 0
        if failure.kind == "limit":
            if not self.is_open and since_opened:
                seconds = max(now - self.sent[0], 0.1)
                self.rate = max(DECREASE * min(self.rate, len(self.sent) / seconds), min(SLOWEST, self.most))
                self.grown = now
            must_pause = since_opened
        else:
            if failure.kind == "slow" and began > self.judged:
                self.narrow(now)
            self.failures += fresh or failure.kind == "down"
            must_pause = since_opened and (self.is_open or self.failures >= FAILURES)
        if must_pause:
            self.is_open, self.opened = True, now
            self.until = max(self.until, now + _backoff(self.pauses))
            self.pauses += 1
        if failure.after is not None:
            self.until = max(self.until, now + failure.after) if not must_pause else now + failure.after
        if self.is_open and now - self.ill_since > SILENCE and not self.warned:
            self.warned = True
            line = "%s gives no answer (%s); it is asked again for up to %g s"
            logging.getLogger(__name__).warning(line, self.endpoint.host, self.last, self.patience)

    @property
    def patience(self) -> float:
        """Seconds without any answer, after which it is given up."""
        always_unread = self.unread >= FAILURES
        return min(self.limits.patience, UNREAD_PATIENCE) if always_unread else self.limits.patience

    def narrow(self, now: float) -> None:
        self.window = max(1.0, self.limits.concurrency / 8, self.window * DECREASE)
        self.judged = now
        self.latencies.clear()

    async def post(self, body: Mapping[str, Any]) -> Any:
        """The response, whatever its status. Raises what the HTTP library raises."""
        if not self.free:
            client = http_client(self.endpoint, self.limits.timeout, CONNECTIONS)
            self.free += [await self.clients.enter_async_context(client)] * CONNECTIONS
        client = self.free.pop()
        try:
            return await client.post("chat/completions", content=json.dumps(body).encode())
        finally:
            self.free.append(client)


class _Asking:
    """The queue of one call of `ask`."""

    def __init__(
        self, blocks: Iterator[Sequence[Question]], endpoints: Sequence[Endpoint], limits: Limits, asker: Asker
    ) -> None:
        self.blocks, self.drawn = blocks, False  # drawn: all of them
        self.waiting: deque[_Row] = deque()
        self.later: list[tuple[float, int, _Row]] = []  # a heap: by when to ask again
        self.endpoints, self.limits, self.asker = endpoints, limits, asker
        self.tasks: set[asyncio.Task[None]] = set()
        self.stop: BaseException | None = None

    async def run(self) -> None:
        _hush()
        self.changed = asyncio.Event()
        async with AsyncExitStack() as clients:
            self.lines = [_Line(endpoint, self.limits, clients) for endpoint in self.endpoints]
            try:
                while self.stop is None and (self.draw() or self.waiting or self.later or self.tasks):
                    when = self.launch(time.monotonic())
                    if self.stop is None:
                        await self.until(0.0 if self.few_wait() else when)
                if self.tasks:
                    await asyncio.wait(self.tasks, timeout=min(self.limits.timeout, DRAIN))
            finally:
                for task in self.tasks:
                    task.cancel()
                await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.stop is not None:
            raise self.stop

    def few_wait(self) -> bool:
        return not self.drawn and len(self.waiting) <= 2 * self.limits.concurrency * len(self.lines)

    def draw(self) -> bool:
        """One more block where few wait, so that between two the answers are heard. False: there is none."""
        if self.few_wait():
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
            sound = [line for line in self.lines if not line.is_open]
            may_probe = not sound or len(self.waiting) > sum(line.window for line in sound)
            usable = [(line, line.ready()) for line in self.lines if may_probe or not line.is_open]
            ready = [line for line, when in usable if when <= now]
            if not ready:
                return min(soonest, *(when for _, when in usable))
            line = min(ready, key=lambda line: (not line.is_open, line.on_their_way / line.window))
            row = self.waiting[0]
            try:
                if not self.asker.before(row.question):
                    return soonest
            except UserError as error:
                self.stop = error
                return now
            self.waiting.popleft()
            line.begin(now, row.question.tokens)
            task = asyncio.create_task(self.one(row, line, now))
            self.tasks.add(task)
            task.add_done_callback(self.done)
        return soonest

    def done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.changed.set()
        if not task.cancelled() and (error := task.exception()) is not None and self.stop is None:
            self.stop = error

    async def one(self, row: _Row, line: _Line, began: float) -> None:
        """What it raises stops all."""
        question = row.question
        try:
            answer = await _heard(line, question.body)
        except Failed as failure:
            line.end(began)
            self.asker.failed(question, failure.sent)
            self.again(row, line, began, failure)
            return
        except OutOfCredit as error:
            self.asker.failed(question, False)
            self.waiting.append(row)
            if line in self.lines:
                self.lines.remove(line)
                if not self.lines:
                    raise
                logging.getLogger(__name__).warning("%s The others go on.", error)
            return
        except UserError:
            self.asker.failed(question, False)
            raise
        now = time.monotonic()
        line.end(began)
        line.well(now, began)
        if answer.prompt_tokens is not None and answer.answer_tokens is not None:
            line.take(now, answer.prompt_tokens + answer.answer_tokens - question.tokens)
        other = self.asker.answered(question, answer)
        if other is not None:
            self.waiting.append(_Row(other))

    def again(self, row: _Row, line: _Line, began: float, failure: Failed) -> None:
        now = time.monotonic()
        own = failure.kind in ("slow", "broken", "unread") and not line.is_open
        line.ill(now, began, failure, fresh=not row.tries)
        if not own:
            row.began = None  # what the endpoint does to all is not held against a row
            self.waiting.append(row)
            return
        row.tries += 1
        row.began = began if row.began is None else row.began
        wait = _backoff(row.tries - 1) if failure.after is None else failure.after
        if row.tries > self.limits.retries:
            self.asker.given_up(row.question, f"{row.tries} attempts, the last one: {failure.why}")
        elif now + wait - row.began > self.limits.deadline:
            self.asker.given_up(row.question, f"no answer within the deadline, the last time: {failure.why}")
        else:
            heapq.heappush(self.later, (now + wait, id(row), row))

    def end_of_patience(self) -> float:
        """When the last endpoint has been ill for too long."""
        ends = [
            line.ill_since + line.patience if line.is_open and line.ill_since is not None else math.inf
            for line in self.lines
        ]
        return max(ends)

    def nobody_answers(self) -> UserError:
        hosts = ", ".join(f"{line.endpoint.host} ({line.last})" for line in self.lines)
        patience = f"None answered for api.patience={self.limits.patience:g} s."
        if any(line.patience < self.limits.patience for line in self.lines):
            patience = "It says 200 to every request, and gives no answer."
        do = f"{patience} What was answered is kept: give the same command again to go on."
        return invalid("api.base_url", hosts, "an endpoint that answers", do)


async def _ping(endpoints: Sequence[Endpoint], limits: Limits, body: Mapping[str, Any]) -> list[Answer]:
    _hush()
    async with AsyncExitStack() as clients:

        async def one(endpoint: Endpoint) -> Answer | Exception:
            line = _Line(endpoint, limits, clients)
            for attempt in range(PINGS):
                try:
                    return await _heard(line, body)
                except UserError as error:
                    return error
                except Failed as failure:
                    if failure.kind == "limit":
                        return Answer(None, "busy", 0, 0)
                    last = failure
                if attempt and (last.kind == "slow" or "ConnectTimeout" in last.why):
                    break
                if attempt + 1 < PINGS:
                    await asyncio.sleep(_backoff(attempt))
            return last

        all_heard = asyncio.gather(*map(one, endpoints))
        done, _ = await asyncio.wait({all_heard}, timeout=SILENCE)
        if not done:
            hosts = ", ".join(dict.fromkeys(endpoint.host for endpoint in endpoints))
            line = "%s has not answered yet; it is waited for (api.timeout=%g s)"
            logging.getLogger(__name__).warning(line, hosts, limits.timeout)
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


async def _heard(line: _Line, body: Mapping[str, Any]) -> Answer:
    """Raises Failed where asking again may help, UserError where it cannot."""
    http, endpoint, model = http_library(), line.endpoint, body.get("model")
    try:
        async with asyncio.timeout(line.limits.timeout):
            response = await line.post(body)
    except (http.HTTPError, http.InvalidURL, TimeoutError, OSError) as error:
        raise not_reached(endpoint, error) from None
    status, content = response.status_code, response.content
    if response.is_success:
        try:
            return replace(_read(content), endpoint=endpoint)
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


def _read(content: bytes) -> Answer:
    """Raises ValueError for what is no answer, with what came instead."""
    try:
        told = json.loads(content)
    except ValueError:
        said = said_in(content[:2000].decode("utf-8", "replace"))
        kind = "a stream, not one answer" if said.startswith(("data:", "event:")) else "no JSON"
        raise ValueError(said if said.startswith("a web page") else f"{kind}: {said}") from None
    choice = _first(told.get("choices")) if isinstance(told, Mapping) else {}
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
        if isinstance(within.get("error"), str | Mapping) and len(within) <= 3:  # a gateway's, in the place of a text
            raise ValueError(f"an error: {said_in(within)}")
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves of a pair cannot be written
    return Answer(whole, finish, prompt, answer)


def _first(choices: Any) -> Mapping[str, Any]:
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, Mapping) else {}


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


def _backoff(number: int) -> float:
    """Seconds: doubled each time, less up to a quarter."""
    return min(PAUSE * 2 ** min(number, 30), LONGEST_PAUSE) * (1 - random.random() / 4)
