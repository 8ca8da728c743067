"""Hosted image models behind an OpenAI-compatible endpoint: generate, then edit or vary the parent.

Every answer is stored on disk as it arrives, so an interrupted run pays for nothing twice.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import logging
import math
import re
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Literal

import numpy as np

from dpsyn.api import Api, Degree, Meter, Usage
from dpsyn.data import Data
from dpsyn.errors import UserError, check_packages, invalid, missing
from dpsyn.language.answers import Answers, answer_key
from dpsyn.language.asking import Answer, Question, ask, ping, posted
from dpsyn.language.endpoints import (
    DEFAULT_URL,
    Endpoint,
    Failed,
    Response,
    check_address,
    check_key_name,
    first_of,
    http_library,
    judged,
    key_in,
    said_in,
    shortened,
    status_of_error,
)
from dpsyn.language.pace import Limits, Pacer
from dpsyn.language.templates import by_label, drawn, filled, several
from dpsyn.marks import PLACE, SECRET, SPEED
from dpsyn.population import Label, Samples
from dpsyn.randomness import retry_seeds
from dpsyn.validate import choice, number, side_lengths, text_or_null, whole

ATTEMPTS = 3  # prompts a fresh row is asked with before it stays grey
SETTINGS = "size, quality, response_format, edits"
LARGEST_ANSWER = 100_000_000  # bytes
REFUSED = "refused by the content filter"
GREY = 128

Request = tuple[str, Mapping[str, Any], np.ndarray | None]
"""'generations', 'edits' or 'variations'; its parameters; the parent, uint8 [h, w, c]"""


@dataclass(frozen=True)
class ImageEndpoint(Api):
    """Images uint8 [n, h, w, 3].

    base_url: None: OpenAI's. model: as the endpoint names it. api_key_env: the environment variable that holds the key;
        None: the endpoint needs none.
    prompts: a template over the label's columns, a list of them, or a mapping from a label (its values joined by ' | ')
        to either. Every row draws one by its seed and keeps it, filled in, as the trait `prompt`.
    vary_with: 'edit': the parent and an instruction are sent; 'variation': the parent alone (an older interface).
    edits: instructions, from the mildest to the strongest, each a template over the label's columns and {prompt}, or a
        list of which a row draws one.
    size: 'WIDTHxHEIGHT' as the endpoint takes it; parents are sent in it; None: the endpoint's own. quality: None: the
        endpoint's own. response_format: 'b64_json' for endpoints that else answer with addresses, None for those that
        do not know it (GPT image models). An address is fetched without the key.
    image_size: [height, width] px of the samples, to which answers are resized; None: `size`.
    concurrency: requests at once.
    requests_per_minute: None: the limit is learned from 429s, and Retry-After is obeyed up to ten minutes.
    timeout: seconds, of one request. retries: of one row after 5xx, timeouts, lost connections and answers that are no
        image; deadline: seconds that these may take. patience: seconds without any answer, after which all stops.
    max_fallback_share: the run stops where more than this share of the rows asked for (and more than one) got no image;
        up to there a fresh row that is refused tries other prompts and is grey in the end, a variation comes back as
        its parent, and how many is said on standard error.
    prices: model -> what an image costs. max_cost: in their unit; the run stops before it is passed, and resumes with a
        higher one.

    Hosted models take no seed: what makes a row repeatable is the cache of answers, keyed by the request and the seed.
    answers_folder: of the cache, where they lie.
    """

    base_url: str | None = field(metadata=SECRET)
    model: str | None = field(metadata=PLACE)
    api_key_env: str | None = field(metadata=SECRET)
    prompts: Any
    vary_with: str
    edits: Any
    size: str | None
    quality: str | None
    response_format: str | None
    image_size: Sequence[int] | None
    concurrency: int = field(metadata=SPEED)
    requests_per_minute: float | None = field(metadata=SPEED)
    timeout: float = field(metadata=SPEED)
    deadline: float = field(metadata=SPEED)
    patience: float = field(metadata=SPEED)
    retries: int = field(metadata=SPEED)
    max_fallback_share: float = field(metadata=SPEED)
    prices: Mapping[str, float] = field(metadata=SPEED)
    max_cost: float | None = field(metadata=SPEED)
    answers_folder: str = "answers"
    _meter: Meter = field(default_factory=Meter, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        for key in ("base_url", "model", "quality", "response_format"):
            text_or_null(f"api.{key}", getattr(self, key))
        check_key_name(self.api_key_env)
        if self.prompts is not None:
            by_label("api.prompts", self.prompts)
        choice("api.vary_with", self.vary_with, ("edit", "variation"))
        if self.edits is not None:
            _edits(self.edits)
        if self.size is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", str(self.size)):
            raise invalid("api.size", self.size, "WIDTHxHEIGHT, such as 1024x1024, or null")
        pair = self.image_size
        if pair is None and self.size is None:
            raise invalid("api.image_size", "null", "[height, width] px where api.size=null")
        side_lengths("api.image_size", pair, optional=True)
        for key, least in (("concurrency", 1), ("retries", 0)):
            whole(f"api.{key}", getattr(self, key), least)
        for key in ("timeout", "deadline", "patience"):
            number(f"api.{key}", getattr(self, key), "seconds, more than 0", above=0)
        for key in ("requests_per_minute", "max_cost"):
            number(f"api.{key}", getattr(self, key), "a number over 0, or null", above=0, optional=True)
        number("api.max_fallback_share", self.max_fallback_share, "a share between 0 and 1", least=0, most=1)
        for model, price in self.prices.items() if isinstance(self.prices, Mapping) else [("", self.prices)]:
            number("api.prices", price if model else self.prices, "model: what an image costs, or {}", least=0)

    @property
    def row_bytes(self) -> int:
        """About what a row takes on disk: a photograph as PNG, and its prompt."""
        height, width = self._shape
        return 2 * height * width + 100

    @property
    def usage(self) -> Usage:
        """Of this process and those before it."""
        return self._meter.usage(self._money(self._meter.calls))

    def resume(self, before: Usage, run: str | None) -> None:
        """Goes on from what processes before this one took."""
        self._meter.resume(before, run)

    def estimate(self, labels: Sequence[Label], generated: int, varied: int) -> Usage:
        """Estimated usage, each row asked once; seconds by the limit that is set."""
        calls, limit = generated + varied, self.requests_per_minute
        return Usage(calls, money=self._money(calls), seconds=None if limit is None else 60 * calls / limit)

    def watched(self, advance: Callable[[int], None]) -> AbstractContextManager[None]:
        """While it lasts, advance(n) is called as n more rows are done."""
        return self._meter.watched(advance)

    def check(self) -> None:
        """Raises UserError for a missing package, model, price, prompt or edit, and for what is no address."""
        check_packages("api", "image_endpoint", "openai", "aiohttp", "PIL")
        if not self.model:
            raise missing("api.model", "null", "the name of a model of the endpoint")
        check_address(self.base_url)
        if self.prompts is None:
            raise missing(
                "api.prompts", "null", "a template over the label's columns, a list, or either for each label"
            )
        if self.vary_with == "edit" and self.edits is None:
            raise missing("api.edits", "null", "a list of instructions, from the mildest to the strongest")
        if self.max_cost is not None and self.model not in self.prices:
            do = f"Give '+api.prices={{{self.model}: 0.04}}', with what an image costs."
            raise invalid("api.max_cost", self.max_cost, "null where api.prices lacks the model", do)

    def ping(self, what: Literal["generate", "vary"]) -> None:
        """Asks for one image. Raises UserError for a key, a model, an address or settings that the endpoint refuses."""
        grey = np.full((*self._shape, 3), GREY, np.uint8)
        request: Request = ("generations", {"prompt": "a grey square"}, None)
        if what == "vary":
            request = ("variations", {}, grey)
            if self.vary_with == "edit":
                request = ("edits", {"prompt": "Leave it as it is."}, grey)
        if self.max_cost is not None and (self._money(1) or 0) > self.max_cost:
            raise invalid("api.max_cost", self.max_cost, f"more: a single image costs {self._money(1):.2g}")

        async def exchange(pacer: Pacer, body: Request) -> Answer:
            return await self._exchange(pacer, body, lambda _: None)

        for answer in ping([self._endpoint()], self._limits(), request, exchange):
            self._meter.calls += answer.finish == "stop"

    def check_keys(self) -> None:
        """Raises UserError for a key that is not set, or is none."""
        key_in(self.api_key_env)

    def check_degree(self, degree: Degree) -> None:
        """Raises UserError for what is no degree."""
        expected = "a number between 0 (the parent) and 1 (the strongest of api.edits)"
        number("schedule.degree", degree, expected, least=0, most=1)

    def reads(self) -> Sequence[Data]:
        return ()

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Raises UserError for a template without its column, and where the endpoint cannot be asked."""
        prompts = self._prompts(labels, seeds)
        images, reasons = self._asked([("generations", {"prompt": prompt}, None) for prompt in prompts], seeds)
        for attempt in range(1, ATTEMPTS):
            rows = [i for i, reason in enumerate(reasons) if reason == REFUSED]
            if not rows:
                break
            others = retry_seeds(seeds[rows], attempt)
            prompts[rows] = self._prompts([labels[i] for i in rows], others)
            again = [("generations", {"prompt": prompts[i]}, None) for i in rows]
            for i, image, reason in zip(rows, *self._asked(again, others), strict=True):
                images[i], reasons[i] = image, reason
        self._judge(reasons, "are grey")
        grey = np.full((*self._shape, 3), GREY, np.uint8)
        return Samples(self._stacked([grey if image is None else image for image in images]), {"prompt": prompts})

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        """degree: 0: the parent itself, nothing is asked. d over 0: the edit that stands at d of the way through the
        list, so that with k edits the first serves d up to 1/k and the last those above 1 - 1/k. With
        vary_with=variation all above 0 are alike."""
        self.check_degree(degree)
        assert isinstance(degree, int | float)
        if "prompt" not in samples.traits:
            raise UserError("api image_endpoint: the samples lack the trait prompt: another api drew them.")
        prompts = np.asarray(samples.traits["prompt"], object)
        parents = [self._fitted(image) for image in samples.content]
        if not degree or not parents:
            return Samples(self._stacked(parents), {"prompt": prompts})
        requests: list[Request] = [("variations", {}, image) for image in samples.content]
        if self.vary_with == "edit":
            levels = _edits(self.edits)
            choice = levels[math.ceil(degree * len(levels) - 1e-9) - 1]
            requests = []
            for label, seed, prompt, image in zip(labels, seeds, prompts, samples.content, strict=True):
                template = choice[np.random.default_rng([int(seed), 1]).integers(len(choice))]
                instruction = filled("api.edits", template, {"prompt": prompt, **label})
                requests.append(("edits", {"prompt": instruction}, image))
        images, reasons = self._asked(requests, seeds)
        self._judge(reasons, "come back as their parents")
        rows = [own if image is None else image for own, image in zip(parents, images, strict=True)]
        return Samples(self._stacked(rows), {"prompt": prompts})

    def adopt(self, samples: Samples, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Gives samples of another api a prompt each, as a fresh sample would draw it."""
        return Samples(samples.content, {**samples.traits, "prompt": self._prompts(labels, seeds)})

    @property
    def _shape(self) -> tuple[int, int]:
        """height, width"""
        if self.image_size is not None:
            return self.image_size[0], self.image_size[1]
        width, height = str(self.size).split("x")
        return int(height), int(width)

    @property
    def _url(self) -> str:
        return self.base_url or DEFAULT_URL

    def _endpoint(self) -> Endpoint:
        """Raises UserError for a key that is not set, or is none."""
        return Endpoint(self._url, key_in(self.api_key_env), self.api_key_env)

    def _prompts(self, labels: Sequence[Label], seeds: np.ndarray) -> np.ndarray:
        return drawn(by_label("api.prompts", self.prompts), labels, seeds)

    def _asked(
        self, requests: Sequence[Request], seeds: np.ndarray
    ) -> tuple[list[np.ndarray | None], list[str | None]]:
        """Of each row the image, uint8 [h, w, 3], or None and the reason. From the cache what is there."""
        keys = [self._key(request, int(seed)) for request, seed in zip(requests, seeds, strict=True)]
        with Answers(self.answers_folder) as answers:
            found = {key: _image(answers.get([key]).get(key), self._shape) for key in keys}
            missing = {key: request for key, request in zip(keys, requests, strict=True) if found[key] is None}
            cached = len(requests) - len(missing)
            self._meter.cached += cached
            self._meter.done(cached)
            call = _Call(self, len(missing), found)

            async def exchange(pacer: Pacer, body: tuple[bytes, Request]) -> Answer:
                key, request = body
                return await self._exchange(pacer, request, lambda image: answers.put(key, _png(image)))

            questions = [Question(key, (key, request), 0) for key, request in missing.items()]
            ask([questions], [self._endpoint()], self._limits(), call, exchange)
        return [found[key] for key in keys], [call.reasons.get(key) for key in keys]

    def _limits(self) -> Limits:
        requests = self.requests_per_minute
        return Limits(self.concurrency, requests, None, self.timeout, self.deadline, self.patience, self.retries)

    def _money(self, calls: int) -> float | None:
        price = self.prices.get(str(self.model))
        return None if price is None else calls * price

    async def _exchange(self, pacer: Pacer, request: Request, keep: Callable[[np.ndarray], None]) -> Answer:
        """Its image, decoded and kept; none where it is refused. Raises as `Exchange` does."""
        endpoint = pacer.endpoint
        response = await self._sent(pacer, request)
        status, content = response.status, response.content
        told, said = None, content[:2000].decode("utf-8", "replace")
        with suppress(ValueError):
            told = json.loads(content)
        within = status_of_error(told) if response.is_success and not first_of(told, "data") else None
        if not response.is_success or within is not None:
            headers = response.headers if within is None else {}
            judged(endpoint, self.model, SETTINGS, within or status, content, headers, within is not None)
            return Answer(None, REFUSED, endpoint=endpoint)
        try:
            found = await self._content(told)
            if found is None:
                why = shortened(said_in(said if told is None else told), endpoint.key)
                raise Failed(f"status 200, no image: {why}", "unread", sent=True)
            image = await asyncio.to_thread(self._kept, found, keep)
        except ValueError as error:  # what came is no image
            raise Failed(str(error), "unread", sent=True) from None
        return Answer(None, "stop", endpoint=endpoint, image=image)

    async def _sent(self, pacer: Pacer, request: Request) -> Response:
        """The response, whatever its status."""
        kind, parameters, parent = request
        settings = {"size": self.size, "quality": self.quality, "response_format": self.response_format}
        if kind == "variations":
            del settings["quality"]
        given = {"model": self.model, "n": 1, **parameters}
        given |= {key: value for key, value in settings.items() if value is not None}
        if parent is None:
            return await posted(pacer, f"images/{kind}", json.dumps(given).encode())
        files = {"image": ("parent.png", self._png_to_send(parent), "image/png")}
        data = {key: str(value) for key, value in given.items()}
        form = http_library().Request("POST", "http://form", data=data, files=files)
        return await posted(pacer, f"images/{kind}", form.read(), form.headers["content-type"])

    async def _content(self, told: Any) -> bytes | None:
        """The bytes of the image file in an answer, or None. Raises ValueError for what cannot be read."""
        first = first_of(told, "data")
        text, url = (first.get(name) for name in ("b64_json", "url"))
        if isinstance(text, str):
            return base64.b64decode(text.removeprefix("data:image/png;base64,"), validate=True)
        if isinstance(url, str) and re.match(r"https?://|data:image/", url):
            return await asyncio.to_thread(_fetched, url, self.timeout)
        return None

    def _kept(self, content: bytes, keep: Callable[[np.ndarray], None]) -> np.ndarray:
        """Decodes, resizes and keeps an answer. Raises ValueError for what is no image."""
        image = self._decoded(content)
        keep(image)
        return image

    def _decoded(self, content: bytes) -> np.ndarray:
        """uint8 [h, w, 3]; transparent pixels on white."""
        from PIL import Image

        try:
            with Image.open(io.BytesIO(content)) as file:
                deep = file.mode.startswith("I;16")
                whole = (Image.fromarray((np.asarray(file) >> 8).astype(np.uint8)) if deep else file).convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
        except Exception as error:  # Pillow's decoders raise many kinds
            raise ValueError(f"no image: {type(error).__name__}") from None
        return self._fitted(np.asarray(image))

    def _fitted(self, image: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 1 or 3] -> [*image_size, 3]"""
        image = np.broadcast_to(image, (*image.shape[:2], 3))
        return image if image.shape[:2] == self._shape else _resized(image, self._shape)

    def _png_to_send(self, parent: np.ndarray) -> bytes:
        image = np.broadcast_to(parent, (*parent.shape[:2], 3))
        if self.size is not None:
            width, height = map(int, self.size.split("x"))
            image = image if image.shape[:2] == (height, width) else _resized(image, (height, width))
        return _png(image)

    def _stacked(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(images) if images else np.empty((0, *self._shape, 3), np.uint8)

    def _key(self, request: Request, seed: int) -> bytes:
        kind, parameters, parent = request
        asked = {
            "endpoint": [Endpoint(self._url, None, None).digest, self.model, kind],
            "parameters": {**parameters, "size": self.size, "quality": self.quality},
            "parent": None if parent is None else [parent.shape, hashlib.sha256(parent.tobytes()).hexdigest()],
            "image_size": self._shape,
            "seed": seed,
        }
        return answer_key(asked)

    def _bearable(self, n: int) -> float:
        return max(1.0, self.max_fallback_share * n)

    def _too_many(self, reasons: Sequence[str], n: int) -> UserError:
        return UserError(
            f"api image_endpoint: {len(reasons)} of {n} rows got no image ({reasons[-1]}): more than "
            f"api.max_fallback_share={self.max_fallback_share}. What was answered is kept: the same command resumes."
        )

    def _judge(self, reasons: Sequence[str | None], what: str) -> None:
        """Says on standard error how many got no image. Raises UserError where it is too much."""
        without = [reason for reason in reasons if reason is not None]
        if len(without) > self._bearable(len(reasons)):
            raise self._too_many(without, len(reasons))
        self._meter.fallbacks += len(without)
        if without:
            count = f"{len(without)} of {len(reasons)} rows"
            logging.getLogger(__name__).warning(
                "api image_endpoint: %s got no image (%s), %s", count, without[-1], what
            )


class _Call:
    """The rows of one call, as an Asker. rows: how many are asked; found: images by key, to be filled."""

    def __init__(self, part: ImageEndpoint, rows: int, found: dict[bytes, np.ndarray | None]) -> None:
        self.part, self.rows, self.found, self.in_flight = part, rows, found, 0
        self.reasons: dict[bytes, str] = {}

    def before(self, question: Question) -> bool:
        part, price = self.part, self.part._money(1)
        if part.max_cost is not None and price is not None:
            spent = part._money(part._meter.calls) or 0.0
            if spent + price * (self.in_flight + 1) > part.max_cost:
                if self.in_flight:
                    return False
                do = "What was answered is kept: the same command with a higher one resumes."
                expected = f"more: {spent:.2f} spent, and the next image may cost {price:.2g}"
                raise invalid("api.max_cost", part.max_cost, expected, do)
        self.in_flight += 1
        return True

    def answered(self, question: Question, answer: Answer) -> None:
        self.in_flight -= 1
        if answer.image is None:
            self.reasons[question.key] = REFUSED
        else:
            self.part._meter.calls += 1
            self.found[question.key] = answer.image
        self.part._meter.done(1)

    def failed(self, question: Question, sent: bool) -> None:
        self.in_flight -= 1

    def given_up(self, question: Question, reason: str) -> None:
        self.reasons[question.key] = reason
        self.part._meter.done(1)
        if sum(each != REFUSED for each in self.reasons.values()) > self.part._bearable(self.rows):
            raise self.part._too_many(list(self.reasons.values()), self.rows)


def _edits(edits: Any) -> list[tuple[str, ...]]:
    if isinstance(edits, str) or not isinstance(edits, Sequence) or not edits:
        raise invalid("api.edits", edits, "a list of instructions, from the mildest to the strongest")
    return [several("api.edits", level) for level in edits]


def _fetched(url: str, timeout: float) -> bytes:
    """Without the key: the address may be on another host."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            content: bytes = answer.read(LARGEST_ANSWER)
    except (OSError, HTTPException) as error:
        raise ValueError(f"the address of the answer: {type(error).__name__}") from None
    return content


def _image(kept: Any, shape: tuple[int, int]) -> np.ndarray | None:
    """uint8 [*shape, 3] of an answer that was kept; None where there is none."""
    from PIL import Image

    if not isinstance(kept, bytes):
        return None
    try:
        with Image.open(io.BytesIO(kept), formats=("PNG",)) as file:
            image = np.asarray(file.convert("RGB"))
    except (OSError, ValueError):
        return None
    return image if image.shape == (*shape, 3) else None


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(sink, "PNG")
    return sink.getvalue()


def _resized(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    height, width = shape
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BICUBIC))
