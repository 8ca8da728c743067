"""Processes of our own beside this one, which end with it however it ends, and work on parts in each of them."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import connection, get_context, parent_process
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar, cast

from dpsyn.threads import processors

T = TypeVar("T")


class Ended(Exception):
    """A process ended before its work was done."""


def can_be_sent(*parts: object) -> bool:
    """Whether another process can be given them: a part from outside need not be made for that."""
    try:
        ForkingPickler.dumps(parts)
    except Exception:
        return False
    return True


def begin() -> None:
    """In a new process: Ctrl-C ends it at once, without a word, and it does not outlive the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Else it waits for ever, with the memory of its device, once its parent was killed."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def in_processes(work: Callable[..., T], each: Sequence[tuple[Any, ...]]) -> list[T]:
    """`work(*arguments)` for each, in a process of its own with its share of the processors; the answers in order.

    work: a function of a module, so that another process can be given it.
    each: arguments of each call, which can be sent.

    Raises the first error that comes, and `Ended` where a process is gone without one; then the others are ended.
    """
    context = get_context("spawn")
    answers: dict[int, T] = {}
    waiting: dict[Any, int] = {}
    processes = []
    try:
        for at, arguments in enumerate(each):
            here, there = context.Pipe(duplex=False)
            given = (there, max(1, processors() // len(each)), work, arguments)
            processes.append(context.Process(target=_work, args=given, daemon=True))
            processes[-1].start()
            there.close()
            waiting[here] = at
        while waiting:
            for pipe in connection.wait(list(waiting)):
                at = waiting.pop(pipe)
                try:
                    answer, error = cast(connection.Connection, pipe).recv()
                except EOFError:
                    raise Ended from None
                if error is not None:
                    raise error
                answers[at] = answer
        return [answers[at] for at in range(len(each))]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _work(there: Any, threads: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    from threadpoolctl import threadpool_limits

    begin()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for what is imported later
    threadpool_limits(threads)
    try:
        answer, error = work(*arguments), None
    except Exception as found:
        told = traceback.format_exc()
        answer, error = None, found if can_be_sent(found) else RuntimeError(type(found).__name__)
        error.add_note(told)
    there.send((answer, error))
    there.close()
