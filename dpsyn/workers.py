"""The api, and the public side of the embedding, asked in batches, on several devices at once where there are several.

A device has a process of its own with its own copy of the parts; private data are in none of them.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from dpsyn.api import Api, Degree, LooksUp, Preparing, Progress, Queued, asked_of
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError
from dpsyn.networks.runtime import OnRay, Runtime
from dpsyn.population import Label, Samples, concatenate, take
from dpsyn.processes import Ended, Worker, end, start
from dpsyn.threads import processors

Ask = Callable[..., Any]
"""(what: 'generate', 'vary' or 'embed', its arguments ...) -> its answer"""
Dispatch = Callable[[str, Sequence[Callable[[], tuple[Any, ...]]]], Iterator[Any]]
"""(what, for each batch what gives its arguments) -> the answers, in order"""

_ask_here: Ask | None = None  # of a worker process


@dataclass(frozen=True)
class InBatches:
    """An api, and an embedding of its samples, that may be asked for any number of rows."""

    api: Api
    inner: Embedding
    runtime: Runtime
    dispatch: Dispatch
    progress: Progress

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        if isinstance(queue := self._ready(None), Queued):
            return self._queued(queue, "generating", len(labels), lambda at: self.api.generate(labels[at], seeds[at]))
        return concatenate(self._asked("generate", "generating", len(labels), lambda at: (labels[at], seeds[at])))

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        def batch(at: slice) -> tuple[Any, ...]:
            return take(samples, np.arange(len(samples))[at]), labels[at], degree, seeds[at]

        if isinstance(queue := self._ready(degree), Queued):
            return self._queued(queue, "varying", len(labels), lambda at: self.api.vary(*batch(at)))
        return concatenate(self._asked("vary", "varying", len(labels), batch))

    def _ready(self, degree: Degree | None) -> Api:
        """The api that answers, once it can be asked. Where other processes or machines ask, they do its work there."""
        asked = asked_of(self.api, degree)
        if isinstance(asked, Preparing) and self.runtime.devices is None and not isinstance(self.runtime, OnRay):
            asked.prepare(degree if asked is self.api else None, self.progress)  # its degree is in the other's
        return asked

    def embed(self, samples: Samples) -> np.ndarray:
        """float32 [n, d]; looked up where the api has looked at all that it makes with this very embedding."""
        if isinstance(self.api, LooksUp) and self.api.embedding == self.inner:
            with self.progress("looking up", len(samples)):
                return self.api.vectors(samples)
        rows = np.arange(len(samples))
        parts = self._asked("embed", "embedding", len(rows), lambda at: (take(samples, rows[at]),))
        return np.concatenate(parts).astype(np.float32, copy=False)

    def _queued(self, queue: Queued, text: str, n: int, ask: Callable[[slice], Samples]) -> Samples:
        """All rows in one call: the api queues them in this process, and says how far it is."""
        with self.progress(text, n) as advance, queue.watched(advance):
            return cast(Samples, _whole(ask(slice(0, n)), n, text))

    def _asked(self, what: str, text: str, n: int, arguments: Callable[[slice], tuple[Any, ...]]) -> list[Any]:
        size = min(self.runtime.batch_size, max(1, -(-n // self.runtime.places)))
        slices = [slice(start, min(start + size, n)) for start in range(0, max(n, 1), size)]
        parts = []
        with self.progress(text, n) as advance:
            answers = self.dispatch(what, [lambda at=at: arguments(at) for at in slices])  # type: ignore[misc]
            for at, part in zip(slices, answers, strict=True):
                parts.append(_whole(part, at.stop - at.start, text))
                advance(len(part))
        return parts


def _whole(part: Any, rows: int, text: str) -> Any:
    if len(part) != rows:
        raise RuntimeError(f"{text}: asked for {rows} rows, got {len(part)}")
    return part


@contextmanager
def asked_in_batches(api: Api, embed: Embedding, runtime: Runtime, progress: Progress) -> Iterator[InBatches]:
    """The processes of `runtime.devices` start when first asked and end with the context. Raises UserError where one of
    them dies.

    api: the maker of candidates.
    embed: the embedding.
    runtime: devices, and rows of a batch.
    progress: shows a phase and how many rows are done.
    """
    with _dispatching(api, embed, runtime) as dispatch:
        yield InBatches(api, embed, runtime, dispatch, progress)


def _dispatching(api: Api, embed: Embedding, runtime: Runtime) -> AbstractContextManager[Dispatch]:
    if isinstance(runtime, OnRay):
        from dpsyn.cluster import public

        return public.dispatching(api, embed, runtime)
    return dispatching(api, embed, runtime.devices)


@contextmanager
def dispatching(api: Api, embed: Embedding, devices: Sequence[str] | None) -> Iterator[Dispatch]:
    if devices is None:
        ask = _asker(api, embed)
        yield lambda what, batches: (ask(what, *batch()) for batch in batches)
        return
    kinds = [device.partition(":")[0] for device in devices]
    started: list[Worker] = []
    free: queue.Queue[Worker] = queue.Queue()

    def begin() -> None:
        for device, kind in zip(devices, kinds, strict=True):
            started.append(start(max(1, processors() // len(devices)) if kind == "cpu" else None))
            started[-1].ask(_begin, (device, api, embed))
        for worker in started:
            worker.answer()
            free.put(worker)

    def one(what: str, batch: Callable[[], tuple[Any, ...]]) -> Any:
        worker = free.get()
        try:
            worker.ask(_ask, (what, batch()))
            return worker.answer()
        finally:
            free.put(worker)

    def dispatch(what: str, batches: Sequence[Callable[[], tuple[Any, ...]]]) -> Iterator[Any]:
        try:
            if not started:
                begin()
            yield from threads.map(lambda batch: one(what, batch), batches)
        except Ended:
            raise UserError(
                f"runtime.devices={list(devices)}: a process ended (out of memory?). The same command goes on."
            ) from None

    with ExitStack() as stack:
        stack.callback(end, started)
        threads = ThreadPoolExecutor(len(devices))
        stack.callback(threads.shutdown, wait=True, cancel_futures=True)
        yield dispatch


def _asker(api: Api, embed: Embedding) -> Ask:
    parts: dict[str, Ask] = {"generate": api.generate, "vary": api.vary, "embed": embed}
    return lambda what, *arguments: parts[what](*arguments)


def _begin(device: str, api: Api, embed: Embedding) -> None:
    """In the new process, before torch is imported there."""
    global _ask_here
    kind, _, number = device.partition(":")
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    os.environ["CUDA_VISIBLE_DEVICES"] = (visible[int(number)] if visible else number) if kind == "cuda" else ""
    _ask_here = _asker(api, embed)


def _ask(what: str, arguments: tuple[Any, ...]) -> Any:
    assert _ask_here is not None
    return _ask_here(what, *arguments)
