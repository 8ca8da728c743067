"""The nearest items of every item of a pool, on disk."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.api.pool.stock import Stock
from dpsyn.files import sync_file, sync_folder
from dpsyn.networks.runtime import Runtime, exact, in_batches, torch_device

BLOCK = 16384  # items that are compared at once with QUERIES of them
QUERIES = {"cpu": 1024, "cuda": 16384}  # queries a pass over all items: a GPU has to wait for them


def connect(stock: Stock, width: int, path: Path, runtime: Runtime) -> None:
    """Writes the `width` nearest items of every item, block by block, into `path`, which appears whole."""
    temporary, n = path.with_suffix(".part"), len(stock.content)
    try:
        with temporary.open("wb") as file:
            head = {"descr": "<i4", "fortran_order": False, "shape": (n, width)}
            np.lib.format.write_array_header_1_0(file, head)
            for start in range(0, n, BLOCK):  # all -1: on a full disk a write fails, where a map would end the process
                file.write(b"\xff" * (4 * width * min(BLOCK, n - start)))
        graph = np.load(temporary, mmap_mode="r+")
        for part in np.flatnonzero(stock.sizes).tolist():
            _connect_part(stock, stock.members(part), graph, runtime)
        graph.flush()
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _connect_part(stock: Stock, members: np.ndarray, graph: np.ndarray, runtime: Runtime) -> None:
    device, k = torch_device(runtime), min(graph.shape[1], len(members))

    def search(rows: slice) -> bool:
        mine = members[rows]
        graph[mine, 0] = mine
        if k > 1:
            graph[mine, 1:k] = nearest(stock.vectors[mine], stock.vectors, members, k - 1, device, rows.start)
        return True

    blocks = replace(runtime, network_batch_size=QUERIES[device.partition(":")[0]])
    in_batches(len(members), blocks, "api pool: neighbours", search)


def nearest(
    queries: np.ndarray, vectors: np.ndarray, members: np.ndarray, k: int, device: str, own: int | None = None
) -> np.ndarray:
    """int64 [q, k]: the k items among `members` that are nearest to each query, by distance, ties to the lower item.

    queries float32 [q, d]; vectors float32 [n, d]; members int64 [m], rising, m >= k. own: query i is members[own + i],
    which is left out, m > k. In float32: items whose distances differ by less may change places.
    A distance and the place of its item are one int64, so that the order is total and does not depend on k.
    """
    centre = vectors[members[:BLOCK]].mean(0)  # differences stay; the squares that cancel get small
    if find_spec("torch") is None:
        return _nearest_numpy(queries - centre, vectors, centre, members, k, own)
    import torch

    with exact():
        mine = torch.from_numpy(queries - centre).to(device)
        norms = (mine * mine).sum(1, keepdim=True)
        best = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
        room = torch.empty((len(queries), min(BLOCK, len(members))), device=device)  # made once: 15 % of the product
        for start in range(0, len(members), BLOCK):
            theirs = torch.from_numpy(vectors[members[start : start + BLOCK]] - centre).to(device)
            places = torch.arange(start, start + len(theirs), device=device)
            partial = room[:, : len(theirs)]  # of the squared distance; what all in a row share is added to few
            torch.addmm((theirs * theirs).sum(1), mine, theirs.T, alpha=-2, out=partial)
            if own is not None:
                partial.diagonal(own - start).fill_(torch.inf)
            values, columns = torch.topk(partial, min(k + 1, len(theirs)), largest=False)
            keys = _keys(values, norms, places[columns])
            found = keys[:, :k]
            if len(theirs) > k and (tied := keys[:, k - 1] >> 32 == keys[:, k] >> 32).any():
                found[tied] = torch.topk(_keys(partial[tied], norms[tied], places), k, largest=False).values
            best = torch.cat([best, found], 1)
            best = torch.topk(best, min(k, best.shape[1]), largest=False).values
        return members[(best & 0xFFFFFFFF).cpu().numpy()]


def _nearest_numpy(
    queries: np.ndarray, vectors: np.ndarray, centre: np.ndarray, members: np.ndarray, k: int, own: int | None
) -> np.ndarray:
    """The same without torch, in more time. queries: less the centre."""
    norms = np.einsum("ij,ij->i", queries, queries)[:, None]
    best = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(members), BLOCK):
        theirs = vectors[members[start : start + BLOCK]] - centre
        squares = np.maximum(norms - 2 * (queries @ theirs.T) + np.einsum("ij,ij->i", theirs, theirs), 0)
        if own is not None:
            mine = np.arange(len(queries)) + own - start
            inside = (mine >= 0) & (mine < len(theirs))
            squares[np.flatnonzero(inside), mine[inside]] = np.inf
        places = np.arange(start, start + len(theirs))
        keys = np.concatenate([best, (squares.astype(np.float32).view(np.int32).astype(np.int64) << 32) | places], 1)
        best = np.partition(keys, min(k, keys.shape[1]) - 1, axis=1)[:, :k]
    return members[np.sort(best, axis=1) & 0xFFFFFFFF]


def _keys(partial: Any, norms: Any, places: Any) -> Any:
    """int64: the bits of the squared distance, which rise with it as it is not negative, then the place."""
    import torch

    return ((partial + norms).clamp_(min=0).view(torch.int32).to(torch.int64) << 32) | places


def is_wide(path: Path, width: int) -> bool:
    return path.exists() and np.load(path, mmap_mode="r").shape[1] >= width
