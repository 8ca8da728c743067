"""The pace of one endpoint: how many requests at once and a second, learned from its answers; a circuit breaker.

The rate falls by a third when the endpoint says 429 and grows slowly again; the number of requests at once falls when
answers take much longer than they did. An endpoint that fails again and again, or says when to come back, is left
alone for a while and then tried with a single request.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from dpsyn.language.endpoints import Endpoint, Failed, Response, address, http_client

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from yarl import URL

PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds before the first retry, doubled each time; at most
DECREASE, INCREASE = 0.7, 1.05  # of the rate, after a 429; of the rate, in a second without
SLOWEST = 0.5  # requests a second, below which no 429 brings the rate
MARGIN = 0.99  # of the limits that are set: 600 requests reach the endpoint in a little less than a minute, too
CATCH_UP = 0.25  # seconds by which requests that were held up may follow each other faster
FAILURES = 5  # rows in a row, not tried before, after which an endpoint is taken to be down
SLOW = 3.0  # times the best median latency, at which fewer are asked at once
LATENCIES = 32  # answers over which the median goes
SILENCE = 5.0  # seconds without an answer, after which a line says so
UNREAD_PATIENCE = 8.0  # seconds in which an endpoint says 200 and gives no answer, again and again


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


@dataclass(eq=False)
class Pacer:
    """One endpoint: its client, its pace, its breaker. Times are monotonic seconds."""

    endpoint: Endpoint
    limits: Limits
    clients: AsyncExitStack
    client: ClientSession | None = None
    addresses: dict[str, URL] = field(default_factory=dict)  # by the path of the request
    window: float = 0.0  # requests at once
    rate_limit: float = math.inf  # requests a second, by the limit that is set
    rate: float = math.inf  # current rate, learned from 429s
    grown: float = 0.0  # when the rate last grew
    next_request: float = 0.0
    next_tokens: float = 0.0
    in_flight: int = 0
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
    failing_since: float | None = None  # without any answer
    last: str = ""

    def __post_init__(self) -> None:
        self.window = float(self.limits.concurrency)
        self.next_request = self.next_tokens = time.monotonic()
        if self.limits.requests_per_minute is not None:
            self.rate_limit = self.rate = self.limits.requests_per_minute / 60 * MARGIN

    def ready(self) -> float:
        """When it may next be asked; infinity: not before an answer comes."""
        if self.probing or (not self.is_open and self.in_flight >= int(self.window)):
            return math.inf
        return max(self.until, self.next_request, self.next_tokens)

    def begin(self, now: float, tokens: int) -> None:
        self.in_flight += 1
        self.probing = self.is_open
        self.sent.append(now)
        if math.isfinite(self.rate):
            self.rate = min(self.rate_limit, self.rate * INCREASE ** min(now - self.grown, 10.0))
        self.grown = now
        self.next_request = max(self.next_request, now - CATCH_UP) + 1 / self.rate
        self.take(now, tokens)

    def take(self, now: float, tokens: float) -> None:
        if self.limits.tokens_per_minute is not None:
            seconds = tokens * 60 / MARGIN / self.limits.tokens_per_minute
            self.next_tokens = max(self.next_tokens, now - CATCH_UP) + seconds

    def end(self, began: float) -> None:
        self.in_flight -= 1
        if began >= self.opened:
            self.probing = False

    def on_success(self, now: float, began: float) -> None:
        """An answer came.

        now: seconds, of the monotonic clock.
        began: when the request was sent.
        """
        self.failures, self.unread, self.failing_since = 0, 0, None
        if began >= self.opened:  # else it was asked before the pause, which holds all the same
            self.is_open, self.pauses = False, 0
        self.window = min(self.limits.concurrency, self.window + 1 / self.window)
        self.latencies.append(now - began)
        if len(self.latencies) == LATENCIES and now > self.judged:
            typical = median(self.latencies)
            self.best = min(self.best * 1.01, typical)  # drifts: what was fast at night is no measure for the day
            self.judged = now + typical
            if typical > SLOW * self.best:
                self.reduce_window(now)

    def on_failure(self, now: float, began: float, failure: Failed, fresh: bool) -> None:
        """There was no usable answer.

        now: seconds, of the monotonic clock.
        began: when the request was sent.
        failure: what kind it is, and why.
        fresh: whether its row had not failed before; one that had says little of the endpoint.
        """
        self.last = failure.why
        self.failing_since = now if self.failing_since is None else self.failing_since
        since_opened = began >= self.opened
        self.unread = self.unread + 1 if failure.kind == "unread" else 0
        if failure.kind == "limit":
            if not self.is_open and since_opened:
                seconds = max(now - self.sent[0], 0.1)
                self.rate = max(DECREASE * min(self.rate, len(self.sent) / seconds), min(SLOWEST, self.rate_limit))
                self.grown = now
            must_pause = since_opened
        else:
            if failure.kind == "slow" and began > self.judged:
                self.reduce_window(now)
            self.failures += fresh or failure.kind == "down"
            must_pause = since_opened and (self.is_open or self.failures >= FAILURES)
        if must_pause:
            self.is_open, self.opened = True, now
            self.until = max(self.until, now + backoff(self.pauses))
            self.pauses += 1
        if failure.after is not None:
            self.until = max(self.until, now + failure.after) if not must_pause else now + failure.after
        if self.is_open and now - self.failing_since > SILENCE and not self.warned:
            self.warned = True
            line = "%s gives no answer (%s); it is asked again for up to %g s"
            logging.getLogger(__name__).warning(line, self.endpoint.host, self.last, self.patience)

    @property
    def patience(self) -> float:
        """Seconds without any answer, after which it is given up."""
        always_unread = self.unread >= FAILURES
        return min(self.limits.patience, UNREAD_PATIENCE) if always_unread else self.limits.patience

    def reduce_window(self, now: float) -> None:
        self.window = max(1.0, self.limits.concurrency / 8, self.window * DECREASE)
        self.judged = now
        self.latencies.clear()

    async def post(self, path: str, content: bytes, kind: str) -> Response:
        """The response, whatever its status. Raises what the HTTP library raises.

        path: below the endpoint's address.
        content: of the request.
        kind: its media type.
        """
        if self.client is None:
            self.client = await self.clients.enter_async_context(http_client(self.endpoint, self.limits.timeout))
        if (url := self.addresses.get(path)) is None:
            url = self.addresses[path] = address(self.endpoint, path)
        sending = self.client.post(url, data=content, headers={"Content-Type": kind}, allow_redirects=False)
        async with sending as response:  # a redirect would take prompts to an address that nobody gave
            return Response(response.status, response.headers, await response.read())


def backoff(number: int) -> float:
    """Seconds: doubled each time, less up to a quarter."""
    return min(PAUSE * 2 ** min(number, 30), LONGEST_PAUSE) * (1 - random.random() / 4)
