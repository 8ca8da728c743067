"""The nearest of many vectors, by a flat search in float32: right up to rounding.

On a CPU by numpy's BLAS, in blocks of distances that stay in a core's cache until the smallest of them are taken. (The
BLAS in faiss's wheel takes a new processor for one of 2004: 29 GFLOP a CPU second, where numpy's does 110.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from dpsyn.population import F32, I64

QUERIES, VECTORS = 128, 2048  # of a block: 1 MiB of distances
FEW = 4  # smallest ones, that are taken one after the other; more of them are parted from the rest at once
GROUP = 8  # entries of which the smallest is found first

Search = Callable[[Any, int], tuple[F32, I64]]
"""(queries [q, d], k) -> squared distances float32 [q, k], rising, and rows int64 [q, k]; -1 where there is none"""


def cpu_search(vectors: F32) -> Search:
    """Among vectors float32 [m, d], with finite squares. The queries are shared by the processors that are free."""
    from threadpoolctl import ThreadpoolController

    m, d = vectors.shape
    starts = np.linspace(0, m, -(-m // VECTORS) + 1).astype(np.int64)[:-1]
    # |v|^2 - 2 qv is one product, of the query and a 1 with this table
    tables = []
    for part in np.split(vectors, starts[1:]):
        table = np.empty((d + 1, len(part)), np.float32)
        np.multiply(part.T, -2, out=table[:d])
        table[d] = np.einsum("ij,ij->i", part, part, dtype=np.float64)
        tables.append(table)
    blas = ThreadpoolController().select(user_api="blas")

    def share(queries: F32, k: int) -> tuple[F32, I64]:
        """Some queries, on one processor."""
        distances, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        some = np.ones((QUERIES, d + 1), np.float32)
        room = np.empty(QUERIES * max(table.shape[1] for table in tables), np.float32)
        for start in range(0, len(queries), QUERIES):
            at = slice(start, min(start + QUERIES, len(queries)))
            n = at.stop - start
            some[:n, :d] = queries[at]
            values, columns = np.empty((n, 0), np.float32), np.empty((n, 0), np.int64)
            for first, table in zip(starts.tolist(), tables, strict=True):
                block = room[: n * table.shape[1]].reshape(n, -1)
                np.matmul(some[:n], table, out=block)
                more, there = smallest(block, min(k, table.shape[1]))
                values, columns = np.concatenate([values, more], 1), np.concatenate([columns, there + first], 1)
            if len(tables) > 1:
                order = np.argsort(values, axis=1)[:, :k]
                values, columns = np.take_along_axis(values, order, 1), np.take_along_axis(columns, order, 1)
            distances[at], rows[at] = values, columns
        distances += np.einsum("ij,ij->i", queries, queries)[:, None]
        return distances, rows

    def search(queries: F32, k: int) -> tuple[F32, I64]:
        # threads that share each product wait for each other at its end: twice the time where the machine is busy
        with blas.limit(limits=1):
            return shared(share, queries, k)

    return search


def shared(share: Search, queries: Any, k: int) -> tuple[F32, I64]:
    """What `share` finds for all queries, a part of them on every processor."""
    threads = max(1, min(len(os.sched_getaffinity(0)), len(queries) // QUERIES))
    if threads == 1:
        return share(queries, k)
    ends = np.linspace(0, len(queries), threads + 1).astype(np.int64).tolist()
    with ThreadPoolExecutor(threads) as pool:
        parts = [pool.submit(share, queries[a:b], k) for a, b in pairwise(ends)]
        distances, rows = zip(*(part.result() for part in parts), strict=True)
    return np.concatenate(distances), np.concatenate(rows)


def smallest(block: F32, k: int) -> tuple[F32, I64]:
    """The k smallest entries of every row, rising, and their columns. Overwrites `block` where k is at most FEW."""
    lines = np.arange(len(block))[:, None]
    if k <= FEW:
        values, columns = np.empty((len(block), k), np.float32), np.empty((len(block), k), np.int64)
        for i in range(k):
            columns[:, i] = block.argmin(1)
            at = lines, columns[:, i : i + 1]
            values[:, i : i + 1] = block[at]
            block[at] = np.inf
        return values, columns
    values, among = block, None
    groups = block.shape[1] // GROUP
    if k <= groups:  # they lie in the k groups whose smallest are smallest; group g: columns g, g + groups, ...
        least = block[:, :groups].copy()
        for i in range(1, GROUP):
            np.minimum(least, block[:, i * groups : (i + 1) * groups], out=least)
        chosen = np.argpartition(least, k - 1, axis=1)[:, :k]
        rest = np.broadcast_to(np.arange(GROUP * groups, block.shape[1]), (len(block), block.shape[1] - GROUP * groups))
        among = np.concatenate([*(chosen + i * groups for i in range(GROUP)), rest], 1)
        values = block[lines, among]
    columns = (
        np.argpartition(values, k - 1, axis=1)[:, :k] if k < values.shape[1] else np.tile(np.arange(k), (len(block), 1))
    )
    columns = columns[lines, np.argsort(values[lines, columns], axis=1)]
    return values[lines, columns], columns if among is None else among[lines, columns]


def torch_search(vectors: F32, device: str) -> Search:
    """The same on a torch device, without TF32."""
    import torch

    with torch.no_grad():
        there = torch.from_numpy(vectors).to(device)
        squares = (there * there).sum(1)
    # a block of 2^28 distances is 1 GiB
    size = max(1, 2**28 // max(1, len(vectors)))

    def search(queries: F32, k: int) -> tuple[F32, I64]:
        tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
        try:
            with torch.no_grad():
                parts = []
                for start in range(0, len(queries), size):
                    mine = torch.from_numpy(queries[start : start + size]).to(device)
                    distances = torch.addmm(squares, mine, there.T, alpha=-2) + (mine * mine).sum(1, keepdim=True)
                    parts.append(torch.topk(distances, k, largest=False, sorted=True))
                return (
                    torch.cat([part.values for part in parts]).cpu().numpy(),
                    torch.cat([part.indices for part in parts]).cpu().numpy(),
                )
        finally:
            torch.backends.cuda.matmul.allow_tf32 = tf32

    return search
