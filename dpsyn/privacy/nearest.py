"""The nearest candidates of a record, exactly.

A vote is a function of the one record and the candidates, and of nothing else. A bare float32 search is not: its
rounding depends on the block a record stands in, and one inserted record flips the votes of others (measured: 160 votes
on digits with repeated survivors). So the search only makes a shortlist. Where the gap between the last candidate
taken and the first one left exceeds what rounding can do, the shortlist is right as it stands; elsewhere distances are
taken again in float64, in one fixed order, among as many candidates as rounding could have mixed up.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import numpy as np

from dpsyn.embedding import Sparse
from dpsyn.networks.runtime import has_gpu

SHORTLIST = 4
UNIT_ROUNDOFF = 2.0**-24  # of float32
LEAST_OF_A_THREAD = 256  # records of a search
NEAR_BYTES = 2**20  # of the distances of sparse records held at once: what a processor keeps near it
SHORTLISTS = 2**22  # entries of shortlists held at once
GROUP = 8  # candidates of which the nearest is found first
FARTHEST = 1e15  # the square of a larger entry, summed, leaves float32

Vectors = np.ndarray | Sparse
"""Of records: float32 [b, d], or the same in sparse form."""

Search = Callable[[Any, int], tuple[np.ndarray, np.ndarray]]
"""(records, Vectors, k) -> squared distances float32 [b, k] rising, rows int64 [b, k]; -1 where there is none"""


def distinct(vectors: np.ndarray) -> np.ndarray:
    """The lowest row of every distinct finite vector, rising. vectors float32 [n, d] -> int64 [m]."""
    usable = np.flatnonzero(_measurable(vectors))
    if not len(usable):
        return usable
    solid = np.ascontiguousarray(vectors[usable] + np.float32(0))  # -0.0 and 0.0 are one vector
    _, first = np.unique(solid.view(np.dtype((np.void, solid.shape[1] * 4))).ravel(), return_index=True)
    return usable[np.sort(first)]


def nearest(records: Vectors, candidates: np.ndarray, k: int, search: Search) -> np.ndarray:
    """The k nearest candidates of every record by Euclidean distance, exactly; ties to the lowest row.

    candidates float32 [m, d], distinct and finite; k <= m. Returns int64 [b, k], in no order.
    A record that has no distance (an entry is NaN, inf or beyond 1e15) gets the lowest k rows.
    """
    m = len(candidates)
    everyone = np.arange(m)
    entries = records.values if isinstance(records, Sparse) else records
    lost = ~_measurable(entries)
    if lost.any():
        entries = np.where(lost[:, None], np.float32(0), entries)
        records = replace(records, values=entries) if isinstance(records, Sparse) else entries
    found = np.tile(everyone[:k], (len(records), 1))
    if m == k:
        return found
    # |computed - true| squared distance of any float32 evaluation, |x|^2 + |c|^2 - 2 xc among them (Higham 2002, 3.1)
    reach = _norms(entries) + float(_norms(candidates).max())
    slack = 2 * (candidates.shape[1] + 16) * UNIT_ROUNDOFF * reach**2
    open_rows = np.flatnonzero(~lost)
    width = min(m, k + SHORTLIST - 1)
    while len(open_rows):
        still_open = []
        for start in range(0, len(open_rows), SHORTLISTS // width + 1):
            part = open_rows[start : start + SHORTLISTS // width + 1]
            asked = records if len(part) == len(records) else records[part]  # a copy of all is a tenth of the time
            distances, rows = search(asked, width)
            distances = distances.astype(np.float64)
            limit = distances[:, k - 1] + 2 * slack[part]
            complete = (rows >= 0).all(1) & ((distances[:, -1] > limit) | (width == m))
            clear = complete & (distances[:, k] > limit)
            found[part[clear]] = rows[clear, :k]
            near = complete & ~clear
            found[part[near]] = _nearest_in_float64(
                _dense(records[part[near]]),
                candidates,
                np.where(distances[near] <= limit[near, None], rows[near], -1),
                k,
            )
            still_open.append(part[~complete])
        open_rows = np.concatenate(still_open)
        if width == m:  # a search that gives no row for a good record: look at every candidate
            for row in open_rows:
                found[row] = _nearest_in_float64(_dense(records[row : row + 1]), candidates, everyone[None], k)
            break
        width = min(m, width * 16)
    return found


def search_on(device: str, sparse: bool) -> Callable[[np.ndarray], Search]:
    """The fastest search on a device ('auto', 'cpu', 'cuda', 'cuda:1', ...), for dense or sparse records."""
    if device == "auto":
        device = "cuda" if has_gpu() else "cpu"
    if device == "cpu":
        return sparse_search if sparse else faiss_search
    return lambda candidates: torch_search(candidates, device)


def faiss_search(candidates: np.ndarray) -> Search:
    """Exact flat search on the CPU. candidates float32 [m, d]."""
    import faiss

    index = faiss.IndexFlatL2(candidates.shape[1])
    index.add(np.ascontiguousarray(candidates))
    # a shortlist costs 15 % more than one neighbour in blocks of 1024 candidates, faiss's own choice, and 4 % in these;
    # of 4096 records, its own choice too, a block's pages are new to every search: 1.3 s of Tab-PE's 29 on Adult
    faiss.cvar.distance_compute_blas_database_bs, faiss.cvar.distance_compute_blas_query_bs = 4096, 1024
    threads = faiss.omp_get_max_threads()

    def part(records: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return index.search(np.ascontiguousarray(records), k)

    def search(records: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        parts = min(threads, len(records) // LEAST_OF_A_THREAD)
        if parts < 2:
            return part(records, k)
        # threads that share each product wait for each other at its end: twice the time where the machine is busy
        with ThreadPoolExecutor(parts, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
            found = list(pool.map(part, np.array_split(records, parts), repeat(k)))
        return np.concatenate([distances for distances, _ in found]), np.concatenate([rows for _, rows in found])

    return search


def sparse_search(candidates: np.ndarray) -> Search:
    """The same for Sparse records: an entry a record tells costs a product with every candidate, a 0 nothing."""
    import faiss
    from scipy.sparse import csr_array

    m, d = candidates.shape
    groups = -(-m // GROUP)
    at_once = max(16, NEAR_BYTES // (4 * groups * GROUP))
    # |c|^2 - 2 xc is one product, of the record and a 1 with this table; candidates that fill up a group are far away
    table = np.zeros((d + 1, groups * GROUP), np.float32)
    table[:d, :m] = -2 * candidates.T
    table[d, :m], table[d, m:] = np.einsum("ij,ij->i", candidates, candidates), np.inf

    def few(records: Sparse, k: int) -> tuple[np.ndarray, np.ndarray]:
        n = len(records)
        values = np.concatenate([records.values, np.ones((n, 1), np.float32)], 1)
        places = np.concatenate([records.indices, np.full((n, 1), d, np.int32)], 1)
        some = values != 0
        ends = np.cumsum(some.sum(1))
        distances = csr_array((values[some], places[some], np.append(0, ends)), shape=(n, d + 1)) @ table
        rows = np.arange(n)[:, None]
        # the k nearest lie in the k groups whose nearest are nearest; group g: candidates g, g + groups, ...
        least = distances.reshape(n, GROUP, groups).min(1)
        first = min(k, groups)
        chosen = np.argpartition(least, first - 1, axis=1)[:, :first]
        among = (chosen[:, :, None] + np.arange(GROUP) * groups).reshape(n, -1)
        theirs = distances[rows, among]
        short = np.argpartition(theirs, k - 1, axis=1)[:, :k]
        short = short[rows, np.argsort(theirs[rows, short], axis=1)]
        theirs, found = theirs[rows, short], among[rows, short]
        theirs += np.einsum("ij,ij->i", records.values, records.values)[:, None]
        return theirs, np.where(found < m, found, -1)

    def part(rows: np.ndarray, records: Sparse, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [few(records[rows[start : start + at_once]], k) for start in range(0, len(rows), at_once)]

    def search(records: Sparse, k: int) -> tuple[np.ndarray, np.ndarray]:
        threads = faiss.omp_get_max_threads()
        with ThreadPoolExecutor(threads) as pool:
            shares = np.array_split(np.arange(len(records)), threads)
            found = list(chain.from_iterable(pool.map(part, shares, repeat(records), repeat(k))))
        return np.concatenate([distances for distances, _ in found]), np.concatenate([rows for _, rows in found])

    return search


def torch_search(candidates: np.ndarray, device: str) -> Search:
    """The same on a torch device. float32 without TF32. candidates float32 [m, d]."""
    import torch

    with torch.no_grad():
        there = torch.from_numpy(candidates).to(device)
        squares = (there * there).sum(1)
    # a block of 2^28 distances is 1 GiB
    block = max(1, 2**28 // max(1, len(candidates)))

    def search(records: Vectors, k: int) -> tuple[np.ndarray, np.ndarray]:
        tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
        try:
            with torch.no_grad():
                parts = []
                for start in range(0, len(records), block):
                    mine = torch.from_numpy(_dense(records[start : start + block])).to(device)
                    distances = torch.addmm(squares, mine, there.T, alpha=-2) + (mine * mine).sum(1, keepdim=True)
                    parts.append(torch.topk(distances, k, largest=False, sorted=True))
                return (
                    torch.cat([part.values for part in parts]).cpu().numpy(),
                    torch.cat([part.indices for part in parts]).cpu().numpy(),
                )
        finally:
            torch.backends.cuda.matmul.allow_tf32 = tf32

    return search


def _nearest_in_float64(records: np.ndarray, candidates: np.ndarray, shortlists: np.ndarray, k: int) -> np.ndarray:
    """shortlists int64 [b, w], -1 for no candidate -> int64 [b, k]; the order of summation depends on d alone."""
    at, column = np.nonzero(shortlists >= 0)
    rows = shortlists[at, column]
    distances = np.empty(len(rows))
    block = max(1, 2**21 // candidates.shape[1])
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        gaps = candidates[rows[part]].astype(np.float64) - records[at[part]]
        distances[part] = np.square(gaps, out=gaps).sum(1)
    order = np.lexsort((rows, distances, at))
    firsts = np.searchsorted(at[order], np.arange(len(records)))
    return rows[order[firsts[:, None] + np.arange(k)]]


def _dense(vectors: Vectors) -> np.ndarray:
    return vectors.dense() if isinstance(vectors, Sparse) else vectors


def _measurable(vectors: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        usable = np.einsum("ij,ij->i", vectors, vectors) < FARTHEST**2 / 2  # a tenth of the time; False for NaN too
    far = np.flatnonzero(~usable)
    if len(far):
        usable[far] = (vectors[far].max(1, initial=0) < FARTHEST) & (vectors[far].min(1, initial=0) > -FARTHEST)
    return usable


def _norms(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", vectors, vectors).astype(np.float64))
