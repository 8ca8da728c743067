"""The api, and the public side of the embedding, on several devices at once: a process each, private data in none."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from typing import Any

from dpsyn.api import Api
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError

Ask = Callable[..., Any]
"""(what: 'generate', 'vary' or 'embed', its arguments ...) -> its answer"""
SpreadOut = Callable[[str, Sequence[Callable[[], tuple[Any, ...]]]], Iterator[Any]]
"""(what, for each batch what gives its arguments) -> the answers, in order"""

_asked: Ask | None = None  # of a worker process


def asked_of(api: Api, embed: Embedding) -> Ask:
    """All that is asked of public parts, by name."""
    parts: dict[str, Ask] = {"generate": api.generate, "vary": api.vary, "embed": embed}
    return lambda what, *arguments: parts[what](*arguments)


@contextmanager
def spread_out(api: Api, embed: Embedding, devices: Sequence[str] | None) -> Iterator[SpreadOut]:
    """devices: 'cuda:1', 'cpu', ...: a process each, started when first asked; None: all in this process, in turn.

    Every process has its own copy of the parts and sees its own device alone. Raises UserError where one of them dies.
    """
    if devices is None:
        ask = asked_of(api, embed)
        yield lambda what, batches: (ask(what, *batch()) for batch in batches)
        return
    context = get_context("spawn")
    with ExitStack() as stack:
        free: queue.Queue[ProcessPoolExecutor] = queue.Queue()
        for device in devices:
            given = (device, len(devices), api, embed)
            worker = ProcessPoolExecutor(1, context, initializer=_begin, initargs=given)
            stack.callback(worker.shutdown, wait=True, cancel_futures=True)
            free.put(worker)
        threads = ThreadPoolExecutor(len(devices))
        stack.callback(threads.shutdown, wait=True, cancel_futures=True)

        def one(what: str, batch: Callable[[], tuple[Any, ...]]) -> Any:
            worker = free.get()
            try:
                return worker.submit(_ask, what, batch()).result()
            except BrokenProcessPool:
                raise UserError(
                    f"runtime.devices={list(devices)}: a process ended (out of memory?). The same command goes on."
                ) from None
            finally:
                free.put(worker)

        yield lambda what, batches: threads.map(lambda batch: one(what, batch), batches)


def _begin(device: str, devices: int, api: Api, embed: Embedding) -> None:
    """In the new process, before torch is imported there."""
    global _asked
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, without a word
    kind, _, number = device.partition(":")
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    os.environ["CUDA_VISIBLE_DEVICES"] = (visible[int(number)] if visible else number) if kind == "cuda" else ""
    if kind == "cpu":
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // devices))
    _asked = asked_of(api, embed)


def _ask(what: str, arguments: tuple[Any, ...]) -> Any:
    assert _asked is not None
    return _asked(what, *arguments)
