"""The nearest items of every item of a pool, on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from dpsyn.api.pool.stock import Stock
from dpsyn.files import sync_file, sync_folder
from dpsyn.networks.runtime import Runtime, in_batches, torch_device
from dpsyn.networks.search import flat_search, merged
from dpsyn.population import F32, I64

BLOCK = 16384  # items that are compared at once with as many of them
FOUND = 2**20  # neighbours held at once


def connect(stock: Stock, width: int, path: Path, runtime: Runtime, advance: Callable[[int], None]) -> None:
    """Writes the nearest items of every item, block by block, into a file that appears whole.

    stock: the items.
    width: neighbours of each.
    path: of the file.
    runtime: names the device.
    advance: called with the number of items that have theirs, from any thread.
    """
    temporary, n = path.with_suffix(".part"), len(stock.content)
    try:
        with temporary.open("wb") as file:
            head = {"descr": "<i4", "fortran_order": False, "shape": (n, width)}
            np.lib.format.write_array_header_1_0(file, head)
            for start in range(0, n, BLOCK):  # all -1: on a full disk a write fails, where a map would end the process
                file.write(b"\xff" * (4 * width * min(BLOCK, n - start)))
        graph = np.load(temporary, mmap_mode="r+")
        for part in np.flatnonzero(stock.sizes).tolist():
            connect_part(stock, stock.members(part), graph, runtime, advance)
        graph.flush()
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def connect_part(
    stock: Stock, members: np.ndarray, graph: np.ndarray, runtime: Runtime, advance: Callable[[int], None]
) -> None:
    device, k = torch_device(runtime), min(graph.shape[1], len(members))

    def search(rows: slice) -> bool:
        mine = members[rows]
        graph[mine, 0] = mine
        if k > 1:
            graph[mine, 1:k] = nearest(stock.vectors[mine], stock.vectors, members, k - 1, device, rows.start)
        advance(len(mine))
        return True

    blocks = replace(runtime, network_batch_size=max(1, min(BLOCK, FOUND // k)))
    in_batches(len(members), blocks, "api pool: neighbours", search)


def nearest(queries: F32, vectors: F32, members: I64, k: int, device: str, own: int | None = None) -> I64:
    """int64 [q, k]: the k items that are nearest to each query, by distance, ties to the lower item.

    In float32: items whose distances differ by less may change places.

    queries: float32 [q, d].
    vectors: float32 [n, d], of all items.
    members: int64 [m], rising, the items that are searched, k of them at least.
    k: neighbours of each.
    device: of torch.
    own: query i is members[own + i], which is left out (then m > k); None: no query is an item.
    """
    asked = k + (own is not None)
    centre = vectors[members[:BLOCK]].mean(0)  # differences stay; the squares that cancel get small
    mine = queries - centre
    best, places = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(members), BLOCK):
        theirs = vectors[members[start : start + BLOCK]] - centre
        distances, rows = flat_search(theirs, device)(mine, min(asked, len(theirs)))
        best, places = np.concatenate([best, distances], 1), np.concatenate([places, rows + start], 1)
        best, places = merged(best, places, min(asked, best.shape[1]))
    if own is not None:
        others = np.argsort(places == own + np.arange(len(queries))[:, None], axis=1, kind="stable")
        places = np.take_along_axis(places, others[:, :k], 1)
    found: I64 = members[places]
    return found


def is_wide(path: Path, width: int) -> bool:
    return path.exists() and np.load(path, mmap_mode="r").shape[1] >= width
