"""Processes of our own beside this one, which end with it however it ends, and do one call after the other."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe, connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from dpsyn.threads import processors

T = TypeVar("T")
CODE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from dpsyn.processes import serve; serve(sys.argv[2])"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_kept: dict[tuple[int, int], list[Worker]] = {}
_serves = False  # in a worker


class Ended(Exception):
    """A process ended before its work was done. Its text is how."""


def can_be_sent(*parts: object) -> bool:
    """Whether another process can be given them: a part from outside need not be made for that."""
    try:
        ForkingPickler.dumps(parts)
    except Exception:
        return False
    return True


def is_worker() -> bool:
    """Whether this process is one that another started to work for it."""
    return _serves


@dataclass(frozen=True)
class Worker:
    """A process, and the pipe over which it is asked and answers.

    Not multiprocessing's: that runs the main script again in each of them.
    """

    process: subprocess.Popen[bytes]
    pipe: connection.Connection

    def ask(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Sends a call to a worker that has answered all before. Raises `Ended` where it is gone.

        work: a function of a module, so that another process can be given it.
        arguments: which can be sent.
        """
        try:
            self.pipe.send((work, arguments))
        except (BrokenPipeError, ConnectionResetError):
            raise self._ended() from None

    def answer(self) -> Any:
        """Of the call before; waits for it. Raises what the call raised, and `Ended` where the process is gone."""
        try:
            answer, error = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._ended() from None
        if error is not None:
            raise error
        return answer

    def _ended(self) -> Ended:
        return Ended(f"status {self.process.wait()}")


def start(threads: int | None) -> Worker:
    """A new worker.

    threads: that BLAS and OpenMP use there; None: as they do here.
    """
    here, there = Pipe()
    with there:
        command = [sys.executable, "-c", CODE, json.dumps(sys.path), str(there.fileno())]
        own = os.environ | ({} if threads is None else dict.fromkeys(THREADS, str(threads)))
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[there.fileno()], env=own)
    return Worker(process, here)


def end(workers: Sequence[Worker]) -> None:
    """Ends them, whatever they do."""
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.wait()
        worker.pipe.close()
        assert worker.process.stdin is not None
        worker.process.stdin.close()


def kept(count: int) -> list[Worker]:
    """Workers of one thread each, started once, and kept until `end_kept` or the end of this process.

    count: how many.
    """
    key = (os.getpid(), count)
    if key not in _kept:
        _kept[key] = [start(1) for _ in range(count)]
        atexit.register(end_kept, count)
    return _kept[key]


def end_kept(count: int) -> None:
    """Ends those of this process, where it has any.

    count: as they were asked for.
    """
    end(_kept.pop((os.getpid(), count), []))


def shared_out(workers: Sequence[Worker], work: Callable[..., T], each: Sequence[tuple[Any, ...]]) -> list[T]:
    """`work(*arguments)` for each, by whichever worker is free; the answers in order. After an error some have answers
    left, and are of no more use.

    workers: that have answered all before.
    work: as in `Worker.ask`.
    each: arguments of each call.

    Raises the first error that comes, and `Ended` where a process is gone.
    """
    answers: dict[int, T] = {}
    busy: dict[Any, tuple[Worker, int]] = {}
    following = iter(enumerate(each))

    def ask_next(worker: Worker) -> None:
        for at, arguments in following:
            worker.ask(work, arguments)
            busy[worker.pipe] = (worker, at)
            return

    for worker in workers:
        ask_next(worker)
    while busy:
        for pipe in connection.wait(list(busy)):
            worker, at = busy.pop(pipe)
            answers[at] = worker.answer()
            ask_next(worker)
    return [answers[at] for at in range(len(each))]


def in_processes(work: Callable[..., T], each: Sequence[tuple[Any, ...]]) -> list[T]:
    """`work(*arguments)` for each, in a process of its own with its share of the processors; the answers in order.

    work: as in `Worker.ask`.
    each: arguments of each call.

    Raises the first error that comes, and `Ended` where a process is gone without one; then the others are ended.
    """
    workers: list[Worker] = []
    try:
        workers += (start(max(1, processors() // len(each))) for _ in each)
        return shared_out(workers, work, each)
    finally:
        end(workers)


# in a worker


def serve(number: str) -> None:
    """Answers calls until there are no more. Ctrl-C ends it at once, without a word.

    number: of the file that is the pipe.
    """
    global _serves
    _serves = True
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe: connection.Connection = connection.Connection(int(number))
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # nobody asks any more, or waits for the answer
        while True:
            pipe.send(_answered(pipe.recv_bytes()))


def _end_with_parent() -> None:
    """Standard input ends with whoever holds its other end. Else this waits for ever, with the memory of its device."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _answered(asked: bytes) -> tuple[Any, Exception | None]:
    try:
        work, arguments = ForkingPickler.loads(asked)
        return work(*arguments), None
    except Exception as found:
        error = found if can_be_sent(found) else RuntimeError(type(found).__name__)
        error.add_note(traceback.format_exc())
        return None, error
