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
import random
import re
import string
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.data import Data
from dpsyn.errors import UserError, check_packages, invalid
from dpsyn.files import answers_cache, write
from dpsyn.language.endpoints import (
    DEFAULT_URL,
    Endpoint,
    Failed,
    check_address,
    judged,
    key_in,
    not_reached,
    openai_client,
    said_in,
    shortened,
    status_of_error,
    unreachable,
)
from dpsyn.marks import PLACE, SECRET
from dpsyn.population import Label, Samples
from dpsyn.validate import choice, number, text_or_null, whole

ATTEMPTS = 3  # prompts a fresh row is asked with before it stays grey
PAUSE, LONGEST_PAUSE = 1.0, 600.0  # seconds before the first retry, doubled each time; at most
PINGS = 3  # attempts before an endpoint is taken not to answer
SETTINGS = "size, quality, response_format, edits"
LARGEST_ANSWER = 100_000_000  # bytes
REFUSED = "refused by the content filter"
GREY = 128

Request = tuple[str, Mapping[str, Any], np.ndarray | None]
"""'generate', 'edit' or 'create_variation'; its parameters; the parent, uint8 [h, w, c]"""


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
    concurrency: requests at once. timeout: seconds, of one request. retries: of one row after 429, 5xx, timeouts, lost
        connections and answers that are no image; waits double, and Retry-After is obeyed up to ten minutes.
    max_refused: the run stops where more than this share of the rows asked for (and more than one) got no image; up to
        there a fresh row that is refused tries other prompts and is grey in the end, a variation comes back as its
        parent, and how many is said on standard error.

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
    concurrency: int
    timeout: float
    retries: int
    max_refused: float
    answers_folder: str = "answers"

    def __post_init__(self) -> None:
        for key in ("base_url", "model", "quality", "response_format"):
            text_or_null(f"api.{key}", getattr(self, key))
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env or "NONE"):
            expected = "the name of an environment variable in capitals, not the key itself"
            raise invalid("api.api_key_env", "(not shown)", expected, "For instance OPENAI_API_KEY.")
        if self.prompts is not None:
            _by_label("api.prompts", self.prompts)
        choice("api.vary_with", self.vary_with, ("edit", "variation"))
        if self.edits is not None:
            _edits(self.edits)
        if self.size is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", str(self.size)):
            raise invalid("api.size", self.size, "WIDTHxHEIGHT, such as 1024x1024, or null")
        pair = self.image_size
        if pair is None and self.size is None:
            raise invalid("api.image_size", "null", "[height, width] px where api.size=null")
        if pair is not None and (isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2):
            raise invalid("api.image_size", pair, "[height, width] px, or null")
        if pair is not None and not all(type(side) is int and side > 0 for side in pair):
            raise invalid("api.image_size", list(pair), "[height, width] px, or null")
        for key, least in (("concurrency", 1), ("retries", 0)):
            whole(f"api.{key}", getattr(self, key), least)
        number("api.timeout", self.timeout, "seconds, more than 0", above=0)
        number("api.max_refused", self.max_refused, "a share between 0 and 1", least=0, most=1)

    @property
    def row_bytes(self) -> int:
        """About what a row takes on disk: a photograph as PNG, and its prompt."""
        height, width = self._shape
        return 2 * height * width + 100

    def check(self) -> None:
        """Raises UserError for a missing package, model, prompt or edit, and for what is no address."""
        check_packages("api", "image_endpoint", "openai", "PIL")
        if not self.model:
            raise invalid("api.model", "null", "the name of a model of the endpoint")
        check_address(self.base_url)
        if self.prompts is None:
            raise invalid(
                "api.prompts", "null", "a template over the label's columns, a list, or either for each label"
            )
        if self.vary_with == "edit" and self.edits is None:
            raise invalid("api.edits", "null", "a list of instructions, from the mildest to the strongest")

    def ping(self, what: Literal["generate", "vary"]) -> None:
        """Asks for one image. Raises UserError for a key, a model, an address or settings that the endpoint refuses."""
        grey = np.full((*self._shape, 3), GREY, np.uint8)
        request: Request = ("generate", {"prompt": "a grey square"}, None)
        if what == "vary":
            request = ("create_variation", {}, grey)
            if self.vary_with == "edit":
                request = ("edit", {"prompt": "Leave it as it is."}, grey)
        asyncio.run(self._pinged(request))

    def check_degree(self, degree: Degree) -> None:
        """Raises UserError for what is no degree."""
        if isinstance(degree, bool) or not isinstance(degree, int | float) or not 0 <= degree <= 1:
            raise invalid(
                "schedule.degree", degree, "a number between 0 (the parent) and 1 (the strongest of api.edits)"
            )

    def reads(self) -> Sequence[Data]:
        return ()

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Raises UserError for a template without its column, and where the endpoint cannot be asked."""
        prompts = self._prompts(labels, seeds)
        images, reasons = self._asked([("generate", {"prompt": prompt}, None) for prompt in prompts], seeds)
        for attempt in range(1, ATTEMPTS):
            rows = [i for i, reason in enumerate(reasons) if reason == REFUSED]
            if not rows:
                break
            words = [np.random.SeedSequence([int(seeds[i]), attempt]).generate_state(1, np.uint64)[0] for i in rows]
            prompts[rows] = self._prompts([labels[i] for i in rows], np.array(words, np.uint64))
            again = [("generate", {"prompt": prompts[i]}, None) for i in rows]
            for i, image, reason in zip(rows, *self._asked(again, np.array(words, np.uint64)), strict=True):
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
        requests: list[Request] = [("create_variation", {}, image) for image in samples.content]
        if self.vary_with == "edit":
            levels = _edits(self.edits)
            choice = levels[math.ceil(degree * len(levels) - 1e-9) - 1]
            requests = []
            for label, seed, prompt, image in zip(labels, seeds, prompts, samples.content, strict=True):
                template = choice[np.random.default_rng([int(seed), 1]).integers(len(choice))]
                instruction = _filled("api.edits", template, {"prompt": prompt, **label})
                requests.append(("edit", {"prompt": instruction}, image))
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
        """object of str [n]"""
        prompts, by_label = np.empty(len(labels), object), _by_label("api.prompts", self.prompts)
        for i, (label, seed) in enumerate(zip(labels, seeds, strict=True)):
            name = " | ".join(label.values()) or "all"
            templates = by_label.get(name) or by_label.get(None)
            if templates is None:
                raise invalid("api.prompts", ", ".join(map(str, by_label)), f"templates for the label {name} too")
            template = templates[np.random.default_rng([int(seed), 0]).integers(len(templates))]
            prompts[i] = _filled("api.prompts", template, label)
        return prompts

    def _asked(
        self, requests: Sequence[Request], seeds: np.ndarray
    ) -> tuple[list[np.ndarray | None], list[str | None]]:
        """Of each row the image, uint8 [h, w, 3], or None and the reason. From the cache what is there."""
        keys = [self._cache_key(request, int(seed)) for request, seed in zip(requests, seeds, strict=True)]
        folder = answers_cache(self.answers_folder) / "images"
        found = {key: _read(folder / key[:2] / f"{key}.png", self._shape) for key in keys}
        missing = {key: request for key, request in zip(keys, requests, strict=True) if found[key] is None}
        reasons: dict[str, str] = {}
        if missing:
            asyncio.run(self._ask(missing, folder, found, reasons))
        return [found[key] for key in keys], [reasons.get(key) for key in keys]

    async def _ask(
        self,
        requests: Mapping[str, Request],
        folder: Path,
        found: dict[str, np.ndarray | None],
        reasons: dict[str, str],
    ) -> None:
        """Fills `found`, or `reasons` where there is no image, key by key. When the run must stop, requests on their
        way are still awaited and kept."""
        endpoint, gate = self._endpoint(), asyncio.Semaphore(self.concurrency)
        stop: list[UserError] = []

        async def one(client: Any, key: str, request: Request) -> None:
            async with gate:
                for attempt in range(self.retries + 1):
                    if stop:
                        return
                    try:
                        content = await self._heard(client, endpoint, request)
                        if content is None:
                            reason = REFUSED
                            break
                        found[key] = await asyncio.to_thread(self._kept, content, folder / key[:2] / f"{key}.png")
                        return
                    except UserError as error:
                        stop.append(error)
                        return
                    except Failed as failure:
                        reason = f"{self.retries + 1} attempts, the last one: {failure.why}"
                        if attempt < self.retries and not stop:
                            await asyncio.sleep(_pause(failure.after, attempt))
                    except ValueError as error:  # what came is no image
                        reason = f"{self.retries + 1} attempts, the last one: {error}"
                        if attempt < self.retries and not stop:
                            await asyncio.sleep(_pause(None, attempt))
                reasons[key] = reason
                if sum(reason != REFUSED for reason in reasons.values()) > self._bearable(len(requests)):
                    stop.append(self._too_many(list(reasons.values()), len(requests)))

        async with openai_client(endpoint, self.timeout, self.concurrency) as client:
            await asyncio.gather(*(one(client, key, request) for key, request in requests.items()))
        if stop:
            raise stop[0]

    async def _pinged(self, request: Request) -> None:
        endpoint = self._endpoint()
        async with openai_client(endpoint, self.timeout, 1) as client:
            for attempt in range(PINGS):
                try:
                    content = await self._heard(client, endpoint, request)
                    if content is not None:
                        self._decoded(content)
                    return  # a filter that refuses a grey square is none of the settings' fault
                except (Failed, ValueError) as error:
                    failure = error if isinstance(error, Failed) else Failed(str(error), "unread")
                if failure.kind == "limit":
                    return
                if attempt + 1 == PINGS or (failure.kind == "slow" and attempt):
                    raise unreachable(endpoint, failure)
                await asyncio.sleep(_pause(None, attempt))

    async def _heard(self, client: Any, endpoint: Endpoint, request: Request) -> bytes | None:
        """The bytes of an image file; None where it is refused. Raises Failed or ValueError where asking again may
        help, UserError where it cannot."""
        import openai

        try:
            async with asyncio.timeout(self.timeout):
                return await self._content(client, endpoint, request)
        except openai.APIStatusError as error:
            status, content, headers = error.status_code, error.response.content, error.response.headers
            judged(endpoint, self.model, SETTINGS, status, content, headers)
            return None
        except (openai.APIConnectionError, TimeoutError) as error:
            raise not_reached(endpoint, error.__cause__ or error) from None

    async def _content(self, client: Any, endpoint: Endpoint, request: Request) -> bytes | None:
        """As `_heard`."""
        kind, parameters, parent = request
        settings = {"size": self.size, "quality": self.quality, "response_format": self.response_format}
        if kind == "create_variation":
            del settings["quality"]
        given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
        if parent is not None:
            given["image"] = ("parent.png", self._png_to_send(parent), "image/png")
        asked = getattr(client.images.with_raw_response, kind)
        content = (await asked(model=self.model, n=1, **parameters, **given)).http_response.content
        told, said = None, content[:2000].decode("utf-8", "replace")
        with suppress(ValueError):
            told = json.loads(content)
        images = told.get("data") if isinstance(told, Mapping) else None
        first = images[0] if isinstance(images, list) and images else None
        text, url = (first.get(name) if isinstance(first, Mapping) else None for name in ("b64_json", "url"))
        if isinstance(text, str):
            return base64.b64decode(text.removeprefix("data:image/png;base64,"), validate=True)
        if isinstance(url, str) and re.match(r"https?://|data:image/", url):
            return await asyncio.to_thread(_fetched, url, self.timeout)
        if status := status_of_error(told):
            judged(endpoint, self.model, SETTINGS, status, content, {}, True)
            return None
        why = shortened(said_in(said if told is None else told), endpoint.key)
        raise Failed(f"status 200, no image: {why}", "unread", sent=True)

    def _kept(self, content: bytes, path: Path) -> np.ndarray:
        """Decodes, resizes and writes an answer. Raises ValueError for what is no image."""
        image = self._decoded(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, _png(image))
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

    def _cache_key(self, request: Request, seed: int) -> str:
        kind, parameters, parent = request
        asked = {
            "endpoint": [Endpoint(self._url, None, None).digest, self.model, kind],
            "parameters": {**parameters, "size": self.size, "quality": self.quality},
            "parent": None if parent is None else [parent.shape, hashlib.sha256(parent.tobytes()).hexdigest()],
            "image_size": self._shape,
            "seed": seed,
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _bearable(self, n: int) -> float:
        return max(1.0, self.max_refused * n)

    def _too_many(self, reasons: Sequence[str], n: int) -> UserError:
        return UserError(
            f"api image_endpoint: {len(reasons)} of {n} rows got no image ({reasons[-1]}): more than"
            f" api.max_refused={self.max_refused}. What was answered is kept: give the same command again to go on."
        )

    def _judge(self, reasons: Sequence[str | None], what: str) -> None:
        """Says on standard error how many got no image. Raises UserError where it is too much."""
        without = [reason for reason in reasons if reason is not None]
        if len(without) > self._bearable(len(reasons)):
            raise self._too_many(without, len(reasons))
        if without:
            count = f"{len(without)} of {len(reasons)} rows"
            logging.getLogger(__name__).warning(
                "api image_endpoint: %s got no image (%s), %s", count, without[-1], what
            )


def _by_label(key: str, prompts: Any) -> dict[str | None, tuple[str, ...]]:
    """Label to templates; under None those for any label. Raises UserError for what are no templates."""
    named = {str(name): value for name, value in prompts.items()} if isinstance(prompts, Mapping) else {None: prompts}
    if not named:
        raise invalid(key, prompts, "templates")
    return {name: _templates(key if name is None else f"{key}.{name}", value) for name, value in named.items()}


def _edits(edits: Any) -> list[tuple[str, ...]]:
    if isinstance(edits, str) or not isinstance(edits, Sequence) or not edits:
        raise invalid("api.edits", edits, "a list of instructions, from the mildest to the strongest")
    return [_templates("api.edits", level) for level in edits]


def _templates(key: str, value: Any) -> tuple[str, ...]:
    templates = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else ()
    if not templates or not all(isinstance(template, str) and template.strip() for template in templates):
        raise invalid(key, "null" if value is None else value, "a template or a list of templates")
    for template in templates:
        try:
            list(string.Formatter().parse(template))
        except ValueError:
            raise invalid(key, template, "a template such as 'a photo of a {digit}'") from None
    return templates


def _filled(key: str, template: str, values: Mapping[str, str]) -> str:
    try:
        return template.format(**values)
    except (LookupError, AttributeError, TypeError, ValueError):
        columns = ", ".join(values) or "it has none"
        raise invalid(key, template, f"a template over the label's columns ({columns})") from None


def _pause(after: float | None, attempt: int) -> float:
    """Seconds until the next attempt: what the endpoint asks for, else doubled each time, less up to a quarter."""
    return min(PAUSE * 2**attempt, LONGEST_PAUSE) * (1 - random.random() / 4) if after is None else after


def _fetched(url: str, timeout: float) -> bytes:
    """Without the key: the address may be on another host."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            content: bytes = answer.read(LARGEST_ANSWER)
    except (OSError, HTTPException) as error:
        raise ValueError(f"the address of the answer: {type(error).__name__}") from None
    return content


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """An answer that was kept, or None."""
    from PIL import Image

    try:
        with Image.open(path) as file:
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
