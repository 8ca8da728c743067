"""A pool in the public cache: its items, their labels and their vectors, read once."""

from __future__ import annotations

import ast
import datetime
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import invalid
from dpsyn.population import Samples

FARTHEST = 1e15  # distances between such vectors, squared and summed, leave float32


@dataclass(frozen=True)
class _Lines:
    """Items that are objects, on disk: JSON, one after the other. Those that are asked for are read, and no others.

    starts: int64 [n + 1], where each begins in the file, and the end of the last. (Plain reads: a memory map of 1.2 GB,
    5,000 of its 2,000,000 texts asked for, counted as 1 GiB of memory.)
    """

    dtype: np.dtype
    starts: np.ndarray
    path: Path

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, items: np.ndarray) -> np.ndarray:
        spans = zip(self.starts[items].tolist(), self.starts[items + 1].tolist(), strict=True)
        with self.path.open("rb") as file:
            rows = [json.loads(os.pread(file.fileno(), stop - start, start)) for start, stop in spans]
        found = np.empty(len(rows), self.dtype)
        found[:] = [tuple(row) for row in rows] if self.dtype.names else rows
        return found


@dataclass(frozen=True)
class Stock:
    """A pool on disk, opened. parts: int64 [n], the label of each item, or 0 for all where labels do not count; -1 for
    one that has no vector.

    order: int64 [n], the items part by part; those of part p are the sizes[p] that begin at starts[p], rising.
    """

    folder: Path
    content: np.ndarray | _Lines
    vectors: np.ndarray
    parts: np.ndarray
    order: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    forms: Mapping[str, Mapping[str, str]]

    def members(self, part: int) -> np.ndarray:
        return self.order[self.starts[part] : self.starts[part] + self.sizes[part]]

    def samples(self, items: np.ndarray) -> Samples:
        return Samples(np.asarray(self.content[items]), {"item": items}, self.forms)


@lru_cache(maxsize=2)
def opened(folder: Path, labels: int) -> Stock:
    """The items that were written, read as they are asked for.

    folder: of the stock.
    labels: how many there are; 0: they do not count.
    """
    facts = json.loads((folder / "facts.json").read_text())
    vectors = np.memmap(folder / "vectors", np.float32, "r", shape=(facts["rows"], facts["dimension"]))
    parts = np.fromfile(folder / "labels", np.int64)
    if not labels:
        parts = np.minimum(parts, 0)
    order = np.flatnonzero(parts >= 0)
    order = order[np.argsort(parts[order], kind="stable")]
    sizes = np.bincount(parts[order], minlength=labels)
    starts = np.cumsum(sizes) - sizes
    return Stock(folder, _content(folder, facts), vectors, parts, order, starts, sizes, facts.get("forms", {}))


def write_items(
    data: Data, size: int, folder: Path, advance: Callable[[int], None]
) -> tuple[dict[str, Any], np.ndarray]:
    """Writes the content of all rows that can be read. Returns facts about it, and int64 [n], their labels.

    data: public rows.
    size: rows of a batch.
    folder: of the stock.
    advance: called with the number of rows that are written.
    """
    facts: dict[str, Any] = {}
    rows = left_out = 0
    labels = [np.empty(0, np.int64)]
    with (folder / "content").open("wb") as content, (folder / "starts").open("wb") as starts:
        starts.write(bytes(8))
        for records in data.batches(size):
            left_out += len(records.refused)
            if not len(records.samples):
                continue
            items = records.samples.content
            shape: dict[str, Any] = {"shape": items.shape[1:], "dtype": repr(np.lib.format.dtype_to_descr(items.dtype))}
            shape["forms"] = {name: dict(form) for name, form in records.samples.forms.items()}
            facts = facts or shape
            if facts != shape:
                raise invalid("api.data", type(data).__name__, "rows of one shape and type")
            if items.dtype.hasobject:
                lines = [json.dumps(item, default=_plain).encode() for item in items.tolist()]
                starts.write((np.cumsum([len(line) for line in lines], dtype=np.int64) + content.tell()).tobytes())
                content.write(b"".join(lines))
            else:
                content.write(items.tobytes())
            labels.append(records.labels.astype(np.int64))
            rows += len(items)
            advance(len(items))
    return {"rows": rows, "left_out": left_out, **facts}, np.concatenate(labels)


def write_vectors(
    embedding: Embedding,
    facts: Mapping[str, Any],
    labels: np.ndarray,
    size: int,
    folder: Path,
    advance: Callable[[int], None],
) -> int:
    """Embeds the items that were written, and returns the length of a vector. An item without a finite one gets zeros,
    and the label -1: it is in no part of the pool.

    embedding: of the pool.
    facts: as `write_items` returned them.
    labels: int64 [n], which are changed.
    size: rows of a batch.
    folder: of the stock.
    advance: called with the number of items that are embedded.
    """
    content, dimension = _content(folder, facts), 0
    with (folder / "vectors").open("wb") as vectors:
        for start in range(0, facts["rows"], size):
            items = content[np.arange(start, min(start + size, facts["rows"]))]
            found = np.asarray(embedding(Samples(np.asarray(items), forms=facts["forms"])), np.float32)
            usable = np.all(np.abs(found) < FARTHEST, axis=1)  # False for NaN too
            if start and found.shape[1] != dimension:
                raise invalid("embedding", type(embedding).__name__, "vectors of one length")
            dimension = found.shape[1]
            labels[start : start + size][~usable] = -1
            vectors.write(np.where(usable[:, None], found, 0).astype(np.float32).tobytes())
            advance(len(found))
    return dimension


def _content(folder: Path, facts: Mapping[str, Any]) -> np.ndarray | _Lines:
    dtype = np.lib.format.descr_to_dtype(ast.literal_eval(facts["dtype"]))
    if dtype.hasobject:
        return _Lines(dtype, np.fromfile(folder / "starts", np.int64), folder / "content")
    return np.memmap(folder / "content", dtype, "r", shape=(facts["rows"], *facts["shape"]))


def _plain(value: Any) -> int | str:
    """A date by its name, a time of day by its seconds: what numpy reads back."""
    return round(value.total_seconds()) if isinstance(value, datetime.timedelta) else str(value)
