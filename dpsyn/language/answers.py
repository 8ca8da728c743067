"""What a paid or slow model answered, kept on this machine, so that a run that was cut off asks nothing twice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from dpsyn.errors import OutOfSpace, UserError
from dpsyn.files import alone, answers_cache

MARK, VERSION = 0x64707379, 1  # application_id ("dpsy") and user_version of the file
PATIENCE = 60.0  # seconds until another process must have made its commit
GATHERING = 0.002  # seconds in which answers gather for one commit, which takes 0.07 ms of CPU time
AT_ONCE = 500  # keys of one SELECT; SQLite takes 999 and more
TABLE = "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value TEXT NOT NULL)"
SELECT = "SELECT key, value FROM answers WHERE key IN ({})"


def answer_key(*asked: Any) -> bytes:
    """32 bytes: sha256 of the JSON of what was asked (model, parameters, messages, seed of the row, attempt)."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")).digest()


class Answers:
    """`with Answers(folder) as answers`: values by key, JSON or bytes, in one SQLite file for its owner alone,
    in this folder of the cache.

    `put` returns at once; a thread commits together what came within GATHERING, and each commit is on disk before the
    next one starts: kill -9 and power cuts lose what came in the last few milliseconds and nothing older. Several
    processes may use the file together. One that is broken, or of another programme, is put aside with a line on
    standard error. Raises UserError where it cannot be written.
    """

    def __init__(self, folder: str = "answers") -> None:
        self.path = answers_cache(folder) / "answers.sqlite"

    def __enter__(self) -> Answers:
        self.connection = self._opened()
        self._error: UserError | None = None
        self._waiting: queue.SimpleQueue[tuple[bytes, str | bytes] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="answers")
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._writer.join()
        with suppress(sqlite3.Error):
            self.connection.close()
        if self._error is not None and kind is None:
            raise self._error

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Any]:
        """Those that are there. A value that is no JSON counts as not there."""
        wanted, found = list(keys), {}
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self._done(lambda connection: connection.execute(SELECT.format(marks), some).fetchall())  # noqa: B023
            for key, value in rows:
                with suppress(ValueError, TypeError):
                    found[bytes(key)] = value if isinstance(value, bytes) else json.loads(value)
        return found

    def put(self, key: bytes, value: Any) -> None:
        """Raises UserError where what came before could not be written.

        key: digest of what was asked.
        value: the answer: bytes, or what JSON can hold.
        """
        if self._error is not None:
            raise self._error
        self._waiting.put((key, value if isinstance(value, bytes) else json.dumps(value)))

    def _write(self) -> None:
        """In the thread, until None comes."""
        ended = False
        while not ended:
            batch = [self._waiting.get()]
            if batch[0] is not None:
                time.sleep(GATHERING)
            with suppress(queue.Empty):
                while True:
                    batch.append(self._waiting.get_nowait())
            ended = None in batch
            pairs = [pair for pair in batch if pair is not None]
            if pairs and self._error is None:
                try:
                    self._done(lambda connection: insert(connection, pairs))  # noqa: B023
                except UserError as error:
                    self._error = error

    def _done(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """A file that breaks meanwhile is put aside, too."""
        try:
            return work(self.connection)
        except sqlite3.OperationalError as error:
            raise self._failure(error) from None
        except sqlite3.DatabaseError:
            self.connection.close()
            self.connection = self._opened()
            try:
                return work(self.connection)
            except sqlite3.DatabaseError as error:
                raise self._failure(error) from None

    def _opened(self) -> sqlite3.Connection:
        try:
            with alone(self.path.with_suffix(".lock")):
                try:
                    return _connected(self.path)
                except sqlite3.OperationalError:
                    raise
                except sqlite3.DatabaseError:
                    aside = _put_aside(self.path)
                    line = "%s was no file of answers, or a broken one: it is now %s; what it held is asked anew."
                    logging.getLogger(__name__).warning(line, self.path, aside.name)
                    return _connected(self.path)
        except (sqlite3.Error, OSError) as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> UserError:
        """One line. SQLite's words tell of the file alone, not of what is in it."""
        if "full" in str(error):
            return OutOfSpace(f"{self.path}: the disk is full. Make room and give the same command again; it goes on.")
        do = "Move it away if it is broken; the same command goes on."
        return UserError(f"{self.path}: the answers that are kept cannot be used ({error}). {do}")


def _connected(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.DatabaseError for what is no file of ours."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # the files beside it get its mode
    connection = sqlite3.connect(path, timeout=PATIENCE, check_same_thread=False)
    try:
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if tables and found != [MARK, VERSION]:
            raise sqlite3.DatabaseError("another programme's")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        if not tables:
            connection.execute(f"PRAGMA application_id={MARK}")
            connection.execute(f"PRAGMA user_version={VERSION}")
            connection.execute(TABLE)  # last, so that its existence means complete
        connection.execute(SELECT.format("?"), [b""]).fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def insert(connection: sqlite3.Connection, pairs: list[tuple[bytes, str | bytes]]) -> None:
    with connection:
        connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", pairs)


def _put_aside(path: Path) -> Path:
    number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.broken{n}").exists())
    aside = path.with_name(f"{path.name}.broken{number}")
    path.rename(aside)
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    return aside
