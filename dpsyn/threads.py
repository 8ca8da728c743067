"""How many threads are worth starting: the processors that this process may use, less those that others keep busy.

Threads that share work wait for each other. Where others want the same processors, OpenMP's waiting is most of what is
done (measured on two busy cores: MiniLM by two threads took 90 to 150 CPU seconds where one took 20).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
SHORTEST, LONGEST = 0.1, 10.0  # seconds over which others' use is averaged
KEPT = 1.0  # seconds for which an answer holds


def processors() -> int:
    """Those that this process may run on, by its affinity and the quotas of its control groups, rounded up."""
    return max(1, math.ceil(min(len(affinity()), _quota())))


def free_threads() -> int:
    """The processors less what other processes used of them lately, 1 at least. OMP_NUM_THREADS is an upper bound.

    Processes that are nice give way, so they do not count. The first call may take a tenth of a second.
    """
    global _then, _free
    if _free is None or time.monotonic() - _then.at > KEPT:
        now = reading()
        if now.at - _then.at > LONGEST:
            _then = now
        if now.at - _then.at < SHORTEST:
            time.sleep(SHORTEST)
            now = reading()
        _free, _then = unused(_then, now), now
    most = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    free = min(_free, int(most)) if most.isdecimal() and int(most) else _free
    return max(1, free // _sharing.get())


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What `work` gives for each of the items, in order, by as many threads as are free. It should spend its time in
    numpy, which leaves the interpreter to the other threads. What it starts itself has its share of those alone.

    work: called with one item; what it raises is raised here.
    items: drawn before the first is worked on.
    """
    parts = list(items)
    workers = min(free_threads(), len(parts)) if len(parts) > 1 else 1
    if workers < 2:
        return list(map(work, parts))
    with ThreadPoolExecutor(workers, initializer=_sharing.set, initargs=(workers * _sharing.get(),)) as pool:
        return list(pool.map(work, parts))


@contextmanager
def on_free_threads() -> Iterator[None]:
    """While it lasts, OpenMP and BLAS of the libraries that are loaded by now use the free processors alone."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(free_threads()):
        yield


def wait_passively() -> None:
    """Threads of OpenMP without work sleep, instead of asking for it in a loop: for libraries that are not loaded yet,
    and where the environment does not say otherwise."""
    for name, value in {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}.items():
        os.environ.setdefault(name, value)


@dataclass(frozen=True)
class Reading:
    """at: seconds by a clock. CPU seconds so far, of all processes on our processors, of all in our control group (None
    without a quota), and of this process."""

    at: float
    everybody: float
    group: float | None
    own: float


def unused(then: Reading, now: Reading) -> int:
    """Whole processors, 1 at least, that were not used by others.

    then: an earlier reading.
    now: a later one.
    """
    seconds, own = now.at - then.at, now.own - then.own
    unused = len(affinity()) - max(0.0, now.everybody - then.everybody - own) / seconds
    if now.group is not None and then.group is not None:
        unused = min(unused, _quota() - max(0.0, now.group - then.group - own) / seconds)
    return max(1, round(unused))


def reading() -> Reading:
    return Reading(time.monotonic(), used(affinity()), _used_by_group(), time.process_time())


def affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def used(processors: set[int]) -> float:
    """CPU seconds, those of nice processes not among them; 0 where the system does not say."""
    try:
        lines = (PROC / "stat").read_text().splitlines()
    except OSError:
        return 0.0
    ticks = 0
    for name, *counts in (line.split() for line in lines if line.startswith("cpu")):
        if name[3:].isdecimal() and int(name[3:]) in processors:
            user, _, system, _, _, *interrupts = map(int, counts[:8])
            ticks += user + system + sum(interrupts)
    return ticks / os.sysconf("SC_CLK_TCK")


def _quota() -> float:
    """Processors; infinity without a limit."""
    limits = [math.inf]
    for folder in _groups():
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # of versions 2 and 1
            try:
                words = [word for name in files for word in (folder / name).read_text().split()]
                limits.append(int(words[0]) / int(words[1]) if words[0] not in ("max", "-1") else math.inf)
            except (OSError, ValueError, IndexError, ZeroDivisionError):
                continue
    return min(limits)


def _used_by_group() -> float | None:
    """CPU seconds of the processes in our control group; None without a quota."""
    if _quota() == math.inf:
        return None
    for folder in _groups():
        for name, unit in (("cpu.stat", 1e6), ("cpuacct.usage", 1e9)):
            try:
                words = (folder / name).read_text().split()
                used = words[words.index("usage_usec") + 1] if name == "cpu.stat" else words[0]
                return int(used) / unit
            except (OSError, ValueError, IndexError):
                continue
    return None


def _groups() -> list[Path]:
    """The folders of our control groups and those above them, ours first; in a container the first may be elsewhere."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    folders: dict[Path, None] = {}
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and not {"cpu", "cpuacct"} & set(controllers.split(",")):
            continue
        top = CGROUP / controllers
        own = top / path.lstrip("/")
        folders |= dict.fromkeys(place for place in (own, *own.parents) if place == top or top in place.parents)
    return list(folders)


_sharing: ContextVar[int] = ContextVar("sharing", default=1)  # threads like this one that share the processors
_then = reading()
_free: int | None = None
