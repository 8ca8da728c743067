"""The nearest of many vectors, by a flat search in float32: right up to rounding.

On a CPU by numpy's BLAS, in blocks of distances that stay in a core's cache until the smallest of them are taken. (The
BLAS in faiss's wheel does not know every processor: 29 GFLOP a CPU second on one, 110 on another, numpy's 110 on both.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np

from dpsyn.networks.runtime import exact
from dpsyn.population import F32, I64
from dpsyn.threads import free_threads, in_threads

VECTORS, BLOCK = 2048, 2**18  # of a block; and its distances, 1 MiB
FEW = 4  # neighbours that are taken one after the other; more of them are parted from the rest at once

LEAST = 128  # queries of a thread
DISTANCES = 2**28  # held at once on a GPU: 1 GiB
LAST = np.int64(2**63 - 1)

_door, _inside = Lock(), 0
_limiter: Any = None

Search = Callable[[Any, int], tuple[F32, I64]]
"""(queries float32 [q, d], k) -> squared distances float32 [q, k], rising, and rows int64 [q, k], ties to the lower."""


def cpu_search(vectors: F32) -> Search:
    """Among vectors float32 [m, d], with finite squares; k at most m. Processors that are free share the queries."""
    m, d = vectors.shape
    edges = np.linspace(0, m, -(-m // VECTORS) + 1).astype(np.int64).tolist()
    # |v|^2 - 2 qv + |q|^2 is one product, of the query, 1 and |q|^2 with such a table
    tables = [np.ones((d + 2, stop - start), np.float32) for start, stop in pairwise(edges)]
    for start, table in zip(edges, tables, strict=False):
        part = vectors[start : start + table.shape[1]]
        np.multiply(part.T, -2, out=table[:d])
        np.einsum("ij,ij->i", part, part, out=table[d])
    at_once = max(1, BLOCK // max(table.shape[1] for table in tables))

    def share(queries: F32, k: int) -> tuple[F32, I64]:
        """Some queries, on one processor."""
        distances, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        some, room = np.ones((at_once, d + 2), np.float32), np.empty(BLOCK, np.float32)
        for first in range(0, len(queries), at_once):
            at = slice(first, min(first + at_once, len(queries)))
            n = at.stop - first
            some[:n, :d] = queries[at]
            np.einsum("ij,ij->i", queries[at], queries[at], out=some[:n, d + 1])

            def blocks(n: int = n) -> Iterator[tuple[int, F32]]:
                for start, table in zip(edges, tables, strict=False):
                    block = room[: n * table.shape[1]].reshape(n, -1)
                    yield start, np.matmul(some[:n], table, out=block)

            distances[at], rows[at] = (few if k <= FEW else many)(blocks(), k)
        return distances, rows

    def search(queries: F32, k: int) -> tuple[F32, I64]:
        # threads that share each product wait for each other at its end: twice the time where the machine is busy
        with _one_thread():
            return shared(share, queries, k)

    return search


@functools.cache
def _blas() -> Any:
    """The threads of numpy's BLAS. To find it among all libraries takes 11 ms, longer than a small label's search."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@contextmanager
def _one_thread() -> Iterator[None]:
    """While anybody is inside, BLAS uses one thread a product: the last one out restores what the first one found."""
    global _inside, _limiter
    with _door:
        if not _inside:
            _limiter = _blas().limit(limits=1)
        _inside += 1
    try:
        yield
    finally:
        with _door:
            _inside -= 1
            if not _inside:
                _limiter.restore_original_limits()


def shared(share: Search, queries: Any, k: int) -> tuple[F32, I64]:
    """What a search finds for all queries, a part of them on every processor.

    share: searches for some of the queries.
    queries: [q, d], dense or sparse.
    k: neighbours of each.
    """
    parts = max(1, min(free_threads(), len(queries) // LEAST))
    ends = np.linspace(0, len(queries), parts + 1).astype(np.int64).tolist()
    found = in_threads(lambda part: share(queries[slice(*part)], k), pairwise(ends))
    distances, rows = zip(*found, strict=True)
    return (distances[0], rows[0]) if parts == 1 else (np.concatenate(distances), np.concatenate(rows))


def few(blocks: Iterable[tuple[int, F32]], k: int) -> tuple[F32, I64]:
    """The k smallest entries of every row, rising, and their columns, of blocks (first column, float32 [n, w]) that
    stand side by side.

    blocks: float32 [n, w] each with its first column; they are overwritten.
    k: at most as many as there are columns.
    """
    values, columns = zip(*(_firsts(block, start, min(k, block.shape[1])) for start, block in blocks), strict=True)
    if len(values) == 1:
        return values[0], columns[0]
    return merged(np.concatenate(values, 1), np.concatenate(columns, 1), k)


def _firsts(block: F32, start: int, k: int) -> tuple[F32, I64]:
    lines = np.arange(len(block))
    values, columns = np.empty((len(block), k), np.float32), np.empty((len(block), k), np.int64)
    for i in range(k):
        columns[:, i] = least = block.argmin(1)
        values[:, i] = block[lines, least]
        block[lines, least] = np.inf
    columns += start
    return values, columns


def many(blocks: Iterable[tuple[int, F32]], k: int) -> tuple[F32, I64]:
    """As `few`, for a larger k, ties to the lower column; distances below 0 are taken for 0.

    Entries that are nearer than the k-th so far gather until they are twice as many, and then the k smallest stay. A
    distance and its column are one int64: the bits of a float rise with it where it is not negative.

    blocks: float32 [n, w] each with its first column.
    k: at most as many as there are columns.
    """
    kept, filled, limit = np.empty((0, 0), np.int64), np.empty(0, np.int64), np.empty((0, 1), np.float32)
    for start, block in blocks:
        n, width = block.shape
        np.maximum(block, 0, out=block)
        if not len(kept):
            kept, filled = np.full((n, 2 * k + max(width, VECTORS)), LAST), np.full(n, width)
            limit = np.full((n, 1), np.inf, np.float32)
            kept[:, :width] = block.view(np.int32)
            kept[:, :width] <<= 32
            kept[:, :width] |= np.arange(start, start + width)
        else:
            nearer = np.flatnonzero(block < limit)
            lines = nearer // width
            counts = np.bincount(lines, minlength=n)
            places = np.arange(len(nearer)) - np.repeat(np.cumsum(counts) - counts - filled, counts)
            kept[lines, places] = block.view(np.int32).ravel()[nearer].astype(np.int64) << 32 | (
                nearer - lines * width + start
            )
            filled += counts
        if (most := int(filled.max())) > 2 * k:
            kept[:, :most].partition(k - 1, axis=1)
            kept[:, k:most] = LAST
            np.minimum(filled, k, out=filled)
            enough = filled == k
            limit[enough] = (kept[enough, :k].max(1) >> 32).astype(np.int32).view(np.float32)[:, None]
    return _parted(kept[:, : max(k, int(filled.max()))], k)


def merged(distances: F32, rows: I64, k: int) -> tuple[F32, I64]:
    """The k nearest of what several searches found, rising, ties to the lower row.

    distances: float32 [q, n], squared.
    rows: int64 [q, n], which vectors these are of.
    k: n at most.
    """
    bits = np.maximum(distances, 0).view(np.int32).astype(np.int64)
    return _parted(bits << 32 | rows, k)


def _parted(keys: I64, k: int) -> tuple[F32, I64]:
    if k < keys.shape[1]:
        keys.partition(k - 1, axis=1)
    keys = np.sort(keys[:, :k], axis=1)
    return (keys >> 32).astype(np.int32).view(np.float32), keys & 0xFFFFFFFF


def torch_search(vectors: F32, device: str) -> Search:
    """The same on a torch device, without TF32.

    vectors: float32 [m, d], among which is searched.
    device: of torch.
    """
    import torch

    with exact():
        there = torch.from_numpy(vectors).to(device)
        squares = (there * there).sum(1)
        places = torch.arange(len(vectors), device=device)
    size = max(1, DISTANCES // max(1, len(vectors)))

    def keys(distances: Any, columns: Any) -> Any:
        """int64: the bits of the distance, which rise with it as it is not negative, then the column."""
        return (distances.view(torch.int32).to(torch.int64) << 32) | columns

    def search(queries: F32, k: int) -> tuple[F32, I64]:
        parts = []
        with exact():
            for start in range(0, len(queries), size):
                mine = torch.from_numpy(queries[start : start + size]).to(device)
                distances = torch.addmm(squares, mine, there.T, alpha=-2).add_((mine * mine).sum(1, keepdim=True))
                distances.clamp_(min=0)
                values, columns = torch.topk(distances, min(k + 1, len(vectors)), largest=False)
                found = torch.sort(keys(values, columns)).values
                if k < len(vectors) and (tied := found[:, k - 1] >> 32 == found[:, k] >> 32).any():
                    found[tied, :k] = torch.sort(keys(distances[tied], places)).values[:, :k]
                parts.append(found[:, :k])
            best = torch.cat(parts)
            return (best >> 32).to(torch.int32).view(torch.float32).cpu().numpy(), (best & 0xFFFFFFFF).cpu().numpy()

    return search


def flat_search(vectors: F32, device: str) -> Search:
    """The fastest of these on a torch device.

    vectors: float32 [m, d], among which is searched.
    device: 'cpu', 'cuda', 'cuda:1', ...
    """
    return cpu_search(vectors) if device == "cpu" else torch_search(vectors, device)
