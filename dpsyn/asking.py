"""Many questions to chat endpoints of OpenAI's protocol, as fast as they bear and no faster, through all they do wrong.

One flat queue; every endpoint has a pace of its own. The rate falls by a third when an endpoint says 429 and grows
slowly again; the number at once falls when answers take much longer than they did. An endpoint that fails again and
again, or says when to come back, is left alone for a while and then tried with a single request (a circuit breaker).
"""

from __future__ import annotations

import asyncio
import difflib
import email.utils
import heapq
import importlib
import json
import logging
import math
import random
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from statistics import median
from typing import Any, Protocol
from urllib.parse import urlsplit

from dpsyn.errors import UserError, bad

DEFAULT_URL = "https://api.openai.com/v1"  # named, so that no variable of the environment sends requests elsewhere
OF_OPENAI = ("OpenAI-Organization", "OpenAI-Project")  # taken from the environment; no other endpoint's business
ABOUT_THIS_MACHINE = ("OS", "Arch", "Runtime", "Runtime-Version", "Lang", "Package-Version", "Async")
LIBRARIES = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")  # they may log addresses, headers and bodies

PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds before the first retry, doubled each time; at most
LONGEST_RETRY_AFTER = 600.0  # seconds, however long an endpoint asks for
DECREASE, INCREASE = 0.7, 1.05  # of the rate, after a 429; of the rate, in a second without
SLOWEST = 0.5  # requests a second, below which no 429 brings the rate
MARGIN = 0.99  # of the limits that are set: 600 requests reach the endpoint in a little less than a minute, too
CATCH_UP = 0.25  # seconds by which requests that were held up may follow each other faster
FAILURES = 5  # rows in a row, not tried before, after which an endpoint is taken to be down
SLOW = 3.0  # times the best median latency, at which fewer are asked at once
LATENCIES = 32  # answers over which the median goes
DRAIN = 60.0  # seconds that requests on their way are awaited when all must stop
CONNECTIONS = 16  # a client: the pool of the HTTP library looks at each for every request (128: 0.25 ms more a call)

FILTERED = re.compile(r"content.?(policy|filter)|moderation|safety|responsible.?ai", re.IGNORECASE)
TOO_LONG = re.compile(r"context.?(length|size|window)|maximum context|too (long|large)", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """key: what names it, for whoever asks. body: the request, JSON. tokens: of its prompt and its answer, about."""

    key: Any
    body: Mapping[str, Any]
    tokens: int


@dataclass(frozen=True)
class Answer:
    """text: None where there is none for good (refused, filtered, the prompt too long). finish: 'stop', 'length',
    'content_filter', 'refusal', 'too_long' or what else the endpoint says. Tokens: None where it does not count."""

    text: str | None
    finish: str
    prompt_tokens: int | None = None
    answer_tokens: int | None = None


@dataclass(frozen=True)
class Endpoint:
    """url: None: OpenAI's. key: None: it needs none. key_env: the environment variable that the key is of."""

    url: str | None
    key: str | None = field(repr=False)
    key_env: str | None

    @property
    def host(self) -> str:
        return urlsplit(self.url or DEFAULT_URL).netloc.rpartition("@")[2]


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


def tokens_of(messages: Sequence[Mapping[str, str]]) -> int:
    """About: a token is some four bytes."""
    return sum(8 + len(message["content"].encode("utf-8", "replace")) // 4 for message in messages)


@dataclass(eq=False)
class _Row:
    """tries: that failed by its own fault, since `began` (monotonic seconds)."""

    question: Question
    tries: int = 0
    began: float | None = None


class _Failed(Exception):
    """No answer. kind: 'limit' (429), 'down' (not reached), 'slow' (timed out) or 'broken' (all else); the last two may
    be the row's own fault. after: seconds until when to come back, where the endpoint says so. sent: it may have been
    answered, and paid for."""

    def __init__(self, why: str, kind: str, after: float | None = None, sent: bool = False) -> None:
        super().__init__(why)
        self.why, self.kind, self.after, self.sent = why, kind, after, sent


class _OutOfCredit(UserError):
    """This key cannot pay; another may."""


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
        self.failures, self.ill_since = 0, None
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

    def ill(self, now: float, began: float, failure: _Failed, fresh: bool) -> None:
        """fresh: of a row that had not failed before; one that had says little of the endpoint."""
        self.last = failure.why
        self.ill_since = now if self.ill_since is None else self.ill_since
        since_opened = began >= self.opened
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

    def narrow(self, now: float) -> None:
        self.window = max(1.0, self.limits.concurrency / 8, self.window * DECREASE)
        self.judged = now
        self.latencies.clear()

    async def post(self, body: Mapping[str, Any]) -> Any:
        """The response, whatever its status. Raises what the HTTP library raises."""
        if not self.free:
            self.free += [await self.clients.enter_async_context(self.client())] * CONNECTIONS
        client = self.free.pop()
        try:
            return await client.post("chat/completions", content=json.dumps(body).encode())
        finally:
            self.free.append(client)

    def client(self) -> Any:
        """The HTTP client of an openai.AsyncOpenAI, with its address and headers. By `chat.completions.create` a call
        takes 0.7 ms more of CPU time (1.3 for 0.6), for options that are copied and answers checked field by field."""
        import openai

        elsewhere = OF_OPENAI if (self.endpoint.url or DEFAULT_URL) != DEFAULT_URL else ()
        untold = [*elsewhere, *(f"X-Stainless-{name}" for name in ABOUT_THIS_MACHINE)]
        http = openai.DefaultAsyncHttpxClient(
            limits=_http().Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
            timeout=self.limits.timeout,
            follow_redirects=False,  # else prompts go to an address that nobody gave
            verify=_trust(),
        )
        client = openai.AsyncOpenAI(
            base_url=self.endpoint.url or DEFAULT_URL,
            api_key=self.endpoint.key or "none",
            default_headers=dict.fromkeys(untold, openai.Omit()),  # type: ignore[arg-type]
            http_client=http,
        )
        headers = {**client.default_headers, **client.auth_headers}
        http.headers.update({name: value for name, value in headers.items() if isinstance(value, str)})
        http.base_url = client.base_url
        return http


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
        import openai  # noqa: F401  # reads OPENAI_LOG, which the next lines overrule

        for name in LIBRARIES:
            logging.getLogger(name).setLevel(logging.WARNING)
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
        except _Failed as failure:
            line.end(began)
            self.asker.failed(question, failure.sent)
            self.again(row, line, began, failure)
            return
        except _OutOfCredit as error:
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

    def again(self, row: _Row, line: _Line, began: float, failure: _Failed) -> None:
        now = time.monotonic()
        own = failure.kind in ("slow", "broken") and not line.is_open
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
        ills = [line.ill_since if line.is_open else None for line in self.lines]
        return math.inf if None in ills else max(filter(None, ills)) + self.limits.patience

    def nobody_answers(self) -> UserError:
        hosts = ", ".join(f"{line.endpoint.host} ({line.last})" for line in self.lines)
        patience = f"None answered for api.patience={self.limits.patience:g} s."
        do = f"{patience} What was answered is kept: give the same command again to go on."
        return bad("api.base_url", hosts, "an endpoint that answers", do)


async def _heard(line: _Line, body: Mapping[str, Any]) -> Answer:
    """Raises _Failed where asking again may help, UserError where it cannot."""
    http = _http()
    try:
        async with asyncio.timeout(line.limits.timeout):
            response = await line.post(body)
    except (http.ConnectError, http.ConnectTimeout) as error:
        raise _Failed(f"{type(error).__name__}: {error}".removesuffix(": "), "down") from None
    except (http.TimeoutException, TimeoutError):
        raise _Failed("timed out", "slow", sent=True) from None
    except (http.HTTPError, OSError) as error:
        raise _Failed(type(error).__name__, "broken", sent=True) from None
    if not response.is_success:
        return _by_status(line.endpoint, body, response)
    try:
        return _read(response.content)
    except ValueError as error:
        raise _Failed(str(error), "broken", sent=True) from None


def _by_status(endpoint: Endpoint, body: Mapping[str, Any], response: Any) -> Answer:
    """What an answer other than 200 means."""
    status, message, words = response.status_code, response.text, ""
    with suppress(ValueError):
        told = response.json()
        told = told.get("error", told) if isinstance(told, Mapping) else told
        said = told if isinstance(told, Mapping) else {"message": told}
        message = str(said.get("message") or said.get("detail") or told)
        words = " ".join(str(said.get(name)) for name in ("code", "type", "message", "innererror"))
    key_env = endpoint.key_env or "null"
    if status in (400, 403, 422, 451) and FILTERED.search(words):
        return Answer(None, "content_filter", 0, 0)
    if status in (400, 413, 422, 429) and TOO_LONG.search(words):
        return Answer(None, "too_long", 0, 0)
    if status in (401, 403):
        do = f"{endpoint.host} answered {status}."
        raise bad("api.api_key_env", key_env, f"a key that may use the model {body.get('model')}", do)
    if status == 402 or "insufficient_quota" in words:
        raise _OutOfCredit(str(bad("api.api_key_env", key_env, "a key with credit left", "It has none.")))
    if status == 404:
        do = f"{endpoint.host}: {_short(message, body, endpoint.key)}" if message else ""
        raise bad("api.model", body.get("model"), "a model of the endpoint, and api.base_url its address", do)
    if 300 <= status < 400:
        raise bad("api.base_url", endpoint.host, "the address itself", f"It answered {status}: it is elsewhere.")
    if 400 <= status < 500 and status not in (408, 409, 425, 429):
        expected = (
            "a model and settings that the endpoint accepts (temperature, top_p, max_tokens_as, send_seed, extra)"
        )
        do = f"It answered {status}: {_short(message, body, endpoint.key)}"
        raise bad("api.model", body.get("model"), expected, do)
    raise _Failed(f"status {status}", "limit" if status == 429 else "broken", _retry_after(response.headers))


def _read(content: bytes) -> Answer:
    """Raises ValueError for what is no answer."""
    try:
        told = json.loads(content)
        choice = told["choices"][0]
        message = choice["message"]
        text, refused = message.get("content"), message.get("refusal")
        finish = choice.get("finish_reason") or "stop"
        usage = told.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError("no answer in what came") from None
    counts = [count if type(count) is int and count >= 0 else None for count in counts]
    if isinstance(text, list):  # parts, as some endpoints give
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    if finish == "content_filter" or (refused and not text):
        return Answer(None, "content_filter" if finish == "content_filter" else "refusal", *counts)
    if text is None and finish == "length":  # all tokens went into thinking
        return Answer(None, "length", *counts)
    if not isinstance(text, str):
        raise ValueError("an answer without a text")
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves of a pair cannot be written
    return Answer(whole, str(finish), *counts)


def _short(said: str, body: Mapping[str, Any], key: str | None) -> str:
    """What an endpoint said, on one line, without the key, and not where it quotes the prompt."""
    said = " ".join((said.replace(key, "(key)") if key else said).split())[:300]
    for message in body["messages"]:
        asked = " ".join(message["content"].split())
        if difflib.SequenceMatcher(None, said, asked, False).find_longest_match().size >= min(24, len(asked)):
            return "(it quotes the prompt)"
    return said


def _backoff(number: int) -> float:
    """Seconds: doubled each time, less up to a quarter."""
    return min(PAUSE * 2 ** min(number, 30), LONGEST_PAUSE) * (1 - random.random() / 4)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, at most LONGEST_RETRY_AFTER; None: the endpoint does not say."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        if re.fullmatch(r"\d+(\.\d+)?", after := headers.get(name, "").strip()):
            return min(float(after) / unit, LONGEST_RETRY_AFTER)
        if date := email.utils.parsedate_tz(after):
            return min(max(email.utils.mktime_tz(date) - time.time(), 0.0), LONGEST_RETRY_AFTER)
    return None


@cache
def _http() -> Any:
    """The HTTP library that openai is built on: httpx2, in older versions httpx."""
    import openai

    return importlib.import_module(type(openai.DEFAULT_CONNECTION_LIMITS).__module__.partition(".")[0])


@cache
def _trust() -> Any:
    return _http().create_ssl_context()  # 30 ms, so once for all clients
