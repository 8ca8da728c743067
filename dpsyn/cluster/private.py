"""The private side on Ray: shards are read, embedded and counted by tasks on nodes that may hold private rows.

They share one folder, a disk that all of these nodes see. Rows, vectors and what is met while reading lie there and
nowhere else; the driver gets tallies, padded modulo 2^64 with a key of their own, and of an error its kind alone. A
task may be tried again, wherever its node died: a tally is a function of the files, and the noise is drawn by the
driver, once, of the sum.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.cluster.session import PRIVATE, private_nodes
from dpsyn.data import Data, Divisible
from dpsyn.embedding import Coder, Embedding
from dpsyn.errors import UserError, invalid
from dpsyn.files import private_folder, write
from dpsyn.population import I64, U64
from dpsyn.privacy.electorate import Electorate, Spread, by_threads, embed_part
from dpsyn.privacy.holdout import Side
from dpsyn.privacy.nearest import search_on
from dpsyn.privacy.query import Nearest, Query
from dpsyn.processes import Ended, can_be_sent

TRIES = 5  # after a task's worker or node died
TOLD = "error.txt"  # what a failed task says of itself, beside the rows

Outcome = tuple[str, str]
"""Of an error its kind, and its text where that is made to be shown; two empty texts where all went well."""


def check_nodes(data: Data, coder: Coder, folder: Path) -> None:
    """Raises UserError where a node that may hold private rows does not see the same files and the folder, or cannot
    read and embed.

    data: the private data.
    coder: turns records into vectors, or into codes.
    folder: of the private cache.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not can_be_sent(data, coder):
        raise invalid("runtime", "ray", "parts that can be pickled", "The data or the embedding are none.")
    sign = folder / f"{secrets.token_hex(8)}.sign"
    write(sign, data.fingerprint().encode(), private=True)
    try:
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in private_nodes()]
        asked = [_task(_look, scheduling_strategy=where).remote(data, coder, sign) for where in there]
        found = _got(asked)
    except Ended:
        raise UserError("runtime=ray: a private node ended while it looked for the data.") from None
    finally:
        sign.unlink()
    for said, is_there, same in found:
        if said:
            raise UserError(f"a private node: {said}")
        if is_there and not same:
            raise invalid("data.path", data.place, "the same files on all private nodes")
        if not is_there:
            do = "Put it on a disk that they share, or give the resource to one node."
            raise invalid("runtime.private_folder", folder, "a folder that all private nodes see", do)


def reading(data: Data, shards: int) -> Spread:
    """Reads and embeds on Ray. The tasks cut the data themselves: where parts begin tells how many rows they have.

    data: the private data.
    shards: parts that are asked for.
    """

    def spread(work: Callable[..., None], each: Sequence[tuple[Any, ...]]) -> None:
        import ray

        task = _task(_embed)
        embed = ray.put(each[0][3])
        asked = [task.remote(data, shards, at, len(each), embed, *given[4:]) for at, given in enumerate(each)]
        for (_, _, _, _, folder, _), outcome in zip(each, _got(asked), strict=True):
            _raise(outcome, folder)
        for left in each[0][4].parent.glob("*.try"):  # of tasks that died
            shutil.rmtree(left, ignore_errors=True)

    return spread


def counting(electorate: Electorate, query: Query, shares: int) -> Sequence[I64]:
    """Each share's tally, counted on Ray.

    electorate: the records.
    query: checked against these records.
    shares: how many there are.
    """
    import ray

    if isinstance(query, Nearest):
        query = replace(query, search=search_on("cpu", bool(electorate.entries)))
    task, asked = _task(_count), ray.put((replace(electorate, count=by_threads), query))
    keys = [secrets.token_bytes(32) for _ in range(shares)]
    tallies = []
    try:
        found = _got([task.remote(asked, at, shares, key) for at, key in enumerate(keys)])
    except Ended:
        raise UserError(
            f"runtime.shards={electorate.shards}: processes that count votes ended, {TRIES + 1} times (out of memory?)."
        ) from None
    for key, (padded, outcome) in zip(keys, found, strict=True):
        _raise(outcome, electorate.folder)
        tallies.append((padded - pad(key, len(padded))).view(np.int64))
    return tallies


def unloadable(cause: BaseException) -> UserError:
    """Of a node that cannot load what it is sent."""
    what = f"the package {cause.name}" if isinstance(cause, ImportError) and cause.name else type(cause).__name__
    return UserError(f"runtime=ray: a node cannot load the parts of this run ({what}). Install on all what is here.")


def pad(key: bytes, n: int) -> U64:
    """uint64 [n]: what hides a tally, added modulo 2^64.

    key: 32 bytes from the system, used once.
    n: entries of the tally.
    """
    return np.frombuffer(hashlib.shake_128(key).digest(8 * n), "<u8").astype(np.uint64)


def _task(work: Callable[..., Any], **given: Any) -> Any:
    import ray

    return ray.remote(num_cpus=1, resources={PRIVATE: 0.001}, max_retries=TRIES, **given)(work)


def _got(asked: Sequence[Any]) -> list[Any]:
    import ray

    try:
        found: list[Any] = ray.get(list(asked))
    except ray.exceptions.RayTaskError as error:  # the tasks themselves raise nothing
        raise unloadable(error.cause) from None
    except ray.exceptions.RayError:
        raise Ended from None
    return found


def _raise(outcome: Outcome, folder: Path) -> None:
    kind, text = outcome
    if kind == UserError.__name__:
        raise UserError(text)
    if kind:
        error = RuntimeError(kind)
        if (folder / TOLD).exists():
            error.add_note((folder / TOLD).read_text())
        raise error


# in the tasks


def _tried(work: Callable[[], Any], folder: Path) -> tuple[Any, Outcome]:
    """Nothing is raised, as Ray would keep and log it."""
    try:
        return work(), ("", "")
    except UserError as error:
        return None, (UserError.__name__, str(error))
    except Exception as error:
        write(folder / TOLD, traceback.format_exc().encode("utf-8", "backslashreplace"), private=True)
        return None, (type(error).__name__, "")


def _embed(data: Data, shards: int, at: int, parts: int, embed: Coder, folder: Path, side: Side | None) -> Outcome:
    own = private_folder(folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.try"))

    def work() -> None:
        cut = data.parts(shards) if isinstance(data, Divisible) and parts > 1 else [data.batches]
        embed_part(cut[at], len(data.labels), data.unit_column, embed, own, side)

    outcome = _tried(work, own)[1]
    if not (folder / "survey.json").exists():  # by another try, whose node was thought to be dead
        with contextlib.suppress(OSError):  # the other try was faster
            own.rename(folder)
    return outcome


def _count(asked: tuple[Electorate, Query], at: int, shares: int, key: bytes) -> tuple[Any, Outcome]:
    electorate, query = asked
    tally, outcome = _tried(lambda: electorate.tally(query, at, shares), electorate.folder)
    return None if tally is None else tally.view(np.uint64) + pad(key, len(tally)), outcome


def _look(data: Data, coder: Coder, sign: Path) -> tuple[str, bool, bool]:
    """What is wrong with the parts here, whether the folder is there, and whether the data are those that it names."""
    try:
        data.check()
        if isinstance(coder, Embedding):
            coder.check()
        there = sign.exists()
        return "", there, there and sign.read_text() == data.fingerprint()
    except UserError as error:
        return str(error), False, False
    except Exception as error:
        return f"data.path={data.place}: expected files that can be read ({type(error).__name__}).", False, False
