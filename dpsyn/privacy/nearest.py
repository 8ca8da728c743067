"""The nearest candidates of a record, exactly.

A vote is a function of the one record and the candidates, and of nothing else. A bare float32 search is not: its
rounding depends on the block a record stands in, and one inserted record flips the votes of others (measured: 160 votes
on digits with repeated survivors). So the search only makes a shortlist. Where the gap between the last candidate
taken and the first one left exceeds what rounding can do, the shortlist is right as it stands; elsewhere distances are
taken again in float64, in one fixed order, among as many candidates as rounding could have mixed up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dpsyn.embedding import Sparse
from dpsyn.networks.runtime import has_gpu
from dpsyn.networks.search import FEW, Search, few, flat_search, many, shared
from dpsyn.population import F32, I64

UNIT_ROUNDOFF = 2.0**-24  # of float32
NEAR_BYTES = 2**20  # of the distances of sparse records held at once: what a processor keeps near it
LONG = 256  # entries of a vector
SHORTLISTS = 2**22  # entries of shortlists held at once
TINY = np.float32(1e-18)  # products of two smaller entries are subnormal, which slows a processor down a lot
FARTHEST = 1e15  # the square of a larger entry, summed, leaves float32

Vectors = np.ndarray | Sparse
"""Of records: float32 [b, d], or the same in sparse form."""


def distinct(vectors: np.ndarray) -> np.ndarray:
    """The lowest row of every distinct finite vector, rising. vectors float32 [n, d] -> int64 [m]."""
    usable = np.flatnonzero(_measurable(vectors))
    if not len(usable):
        return usable
    solid = np.ascontiguousarray(vectors[usable] + np.float32(0))  # -0.0 and 0.0 are one vector
    _, first = np.unique(solid.view(np.dtype((np.void, solid.shape[1] * 4))).ravel(), return_index=True)
    return usable[np.sort(first)]


def flushed(vectors: F32) -> F32:
    """The same vectors with 0 for TINY entries, of candidates and of records alike."""
    return np.where(np.abs(vectors) < TINY, np.float32(0), vectors)


def nearest(records: Vectors, candidates: np.ndarray, k: int, search: Search) -> np.ndarray:
    """The k nearest candidates of every record by Euclidean distance, exactly, int64 [b, k] in no order; ties to the
    lowest row. A record that has no distance (an entry is NaN, inf or beyond 1e15) gets the lowest k rows.

    records: [b, d].
    candidates: float32 [m, d], distinct and finite.
    k: how many, m at most.
    search: of these candidates; it may be wrong by rounding.
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
    # beside a long product, taking more of the nearest at once costs nothing; where they are near, it spares a search
    width = min(m, k + (3 if candidates.shape[1] >= LONG else 1))
    while len(open_rows):
        still_open = []
        for start in range(0, len(open_rows), SHORTLISTS // width + 1):
            part = open_rows[start : start + SHORTLISTS // width + 1]
            asked = records if len(part) == len(records) else records[part]  # a copy of all is a tenth of the time
            distances, rows = search(asked, width)
            distances = distances.astype(np.float64)
            limit = distances[:, k - 1] + 2 * slack[part]
            complete = (rows[:, -1] >= 0) & ((distances[:, -1] > limit) | (width == m))
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


def search_on(device: str, sparse: bool) -> Callable[[F32], Search]:
    """The fastest search on a device, for dense or sparse records.

    device: 'auto', 'cpu', 'cuda', 'cuda:1', ...
    sparse: whether records are Sparse.
    """
    if device == "auto":
        device = "cuda" if has_gpu() else "cpu"
    if device == "cpu" and sparse:
        return sparse_search
    return lambda candidates: dense_search(flat_search(candidates, device))


def dense_search(search: Search) -> Search:
    """The same search, for Sparse records too."""
    return lambda records, k: search(_dense(records), k)


def sparse_search(candidates: F32) -> Search:
    """Among candidates float32 [m, d], for Sparse records: an entry a record tells costs a product with every
    candidate, a 0 nothing."""
    from scipy.sparse import csr_array

    m, d = candidates.shape
    at_once = max(16, NEAR_BYTES // (4 * m))
    # |c|^2 - 2 xc + |x|^2 is one product, of the record, a 1 and |x|^2 with this table
    table = np.ones((d + 2, m), np.float32)
    np.multiply(candidates.T, -2, out=table[:d])
    np.einsum("ij,ij->i", candidates, candidates, out=table[d])

    def some(records: Sparse, k: int) -> tuple[F32, I64]:
        n = len(records)
        squares = np.einsum("ij,ij->i", records.values, records.values)
        values = np.concatenate([records.values, np.ones((n, 1), np.float32), squares[:, None]], 1)
        places = np.concatenate([records.indices, np.tile(np.array([d, d + 1], np.int32), (n, 1))], 1)
        told = values != 0
        ends = np.cumsum(told.sum(1))
        block = csr_array((values[told], places[told], np.append(0, ends)), shape=(n, d + 2)) @ table
        return (few if k <= FEW else many)([(0, block)], k)

    def share(records: Sparse, k: int) -> tuple[F32, I64]:
        parts = [some(records[start : start + at_once], k) for start in range(0, len(records), at_once)]
        distances, rows = zip(*parts, strict=True)
        return np.concatenate(distances), np.concatenate(rows)

    return lambda records, k: shared(share, records, k)


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
