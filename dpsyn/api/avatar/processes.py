"""Processes that draw faces, over pipes."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from typing import Any

import numpy as np

from dpsyn.api.avatar.faces import PARAMETERS, pictures
from dpsyn.errors import UserError

CHUNK = 64  # rows that a worker gets at once; a request fits into a pipe
HEADER = 7  # rows, height, width, and the crop

_started: dict[tuple[int, int], Workers] = {}


def workers_of(count: int) -> Workers:
    """The workers of this process, started once. A fork of it has its own."""
    key = (os.getpid(), count)
    if key not in _started:
        _started[key] = Workers(count)
        atexit.register(stop, count)
    return _started[key]


def stop(count: int) -> None:
    """Ends those of this process, where it has any."""
    if (workers := _started.pop((os.getpid(), count), None)) is not None:
        workers.close()


class Workers:
    """Processes that draw, over pipes. They end when their standard input does, however this process ends.

    Not multiprocessing: that runs the main script again in each of them, and a process killed may leave them behind.
    """

    def __init__(self, count: int) -> None:
        code = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from dpsyn.api.avatar import processes; "
        code += "processes.serve()"
        command = [sys.executable, "-c", code, json.dumps(sys.path)]
        self.workers = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
            for _ in range(count)
        ]

    def pictures(self, rows: np.ndarray, size: tuple[int, ...], crop: tuple[int, ...]) -> np.ndarray:
        """As `dpsyn.api.avatar.faces.pictures`. Raises UserError where a worker is gone.

        rows: parameters int [n, 16].
        size: (h, w) px.
        crop: as in `faces.pictures`.
        """
        images = np.empty((len(rows), *size, 3), np.uint8)
        waiting = iter(range(0, len(rows), CHUNK))
        with selectors.DefaultSelector() as busy:
            for worker, start in zip(self.workers, waiting, strict=False):
                _ask(worker, rows[start : start + CHUNK], size, crop)
                busy.register(_pipe(worker.stdout), selectors.EVENT_READ, (worker, start))
            while busy.get_map():
                for key, _ in busy.select():
                    worker, start = key.data
                    busy.unregister(key.fileobj)
                    part = images[start : start + CHUNK]
                    part[...] = np.frombuffer(_answer(worker, part.nbytes), np.uint8).reshape(part.shape)
                    following = next(waiting, None)
                    if following is not None:
                        _ask(worker, rows[following : following + CHUNK], size, crop)
                        busy.register(_pipe(worker.stdout), selectors.EVENT_READ, (worker, following))
        return images

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                with contextlib.suppress(BrokenPipeError):
                    _pipe(pipe).close()


def _pipe(pipe: Any) -> Any:
    assert pipe is not None
    return pipe


def _ask(worker: subprocess.Popen[bytes], rows: np.ndarray, size: tuple[int, ...], crop: tuple[int, ...]) -> None:
    request = np.concatenate([[len(rows), *size, *crop], rows.ravel()]).astype(np.int32)
    try:
        _pipe(worker.stdin).write(request.tobytes())
        _pipe(worker.stdin).flush()
    except BrokenPipeError:
        raise _gone(worker) from None


def _answer(worker: subprocess.Popen[bytes], size: int) -> bytes:
    answer = _pipe(worker.stdout).read(size)
    if len(answer) < size:
        raise _gone(worker)
    return answer


def _gone(worker: subprocess.Popen[bytes]) -> UserError:
    """It is ended, or about to: both its pipes are closed."""
    do = "Give the same command again; with runtime.workers=0 this process draws, and shows what goes wrong."
    return UserError(f"api avatar: a worker ended before its work was done (status {worker.wait()}). {do}")


def serve() -> None:
    """A worker: answers requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while len(head := sys.stdin.buffer.read(4 * HEADER)) == 4 * HEADER:
        n, height, width, *crop = np.frombuffer(head, np.int32).tolist()
        body = sys.stdin.buffer.read(4 * n * len(PARAMETERS))
        rows = np.frombuffer(body, np.int32).reshape(n, len(PARAMETERS))
        try:
            answers.write(pictures(rows, (height, width), tuple(crop)).tobytes())
            answers.flush()
        except BrokenPipeError:
            os._exit(0)  # nobody waits
