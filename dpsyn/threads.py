"""Work that is shared among threads, where their number changes nothing in the result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def threads() -> int:
    """As many as this process may use cores; where OMP_NUM_THREADS is set, as many as it says."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdigit() and int(said):
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What `work` gives for each of the items, in order. It should spend its time in numpy, which leaves the
    interpreter to the other threads."""
    parts = list(items)
    workers = min(threads(), len(parts))
    if workers < 2:
        return list(map(work, parts))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, parts))
