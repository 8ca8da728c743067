"""A public data set as the simulator (Sim-PE, arXiv 2502.05505): random items, and random ones of their neighbours."""

from __future__ import annotations

import ast
import datetime
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn import __version__
from dpsyn.api import Api, Degree
from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, invalid
from dpsyn.files import UNNAMED, named_by, public_cache, room_on_disk, sync_folder
from dpsyn.marks import PLACE
from dpsyn.networks.runtime import Runtime, exact, in_batches, torch_device
from dpsyn.population import Label, Samples
from dpsyn.randomness import uniform
from dpsyn.validate import flag, whole

BLOCK = 16384  # items that are compared at once with QUERIES of them
QUERIES = {"cpu": 1024, "cuda": 16384}  # queries a pass over all items: a GPU has to wait for them
LAYOUT = 3  # of the files in the cache
FARTHEST = 1e15  # distances between such vectors, squared and summed, leave float32


@dataclass(frozen=True)
class Pool(Api):
    """Samples are items of the pool: images, texts or table rows. Their trait `item`, int64, is the place in the pool.

    data: the public rows, read once; those that are refused, or have no finite vector, are left out.
    embedding: the space in which neighbours are found. It is asked once for each item; later its vectors are looked up.
    path: where the data are (`data` reads there); a pool without one is refused.
    by_label: a row draws from the items with its label alone, which the data must declare; otherwise from all.
    neighbours: the largest degree there will be: that many neighbours of each item are kept, and a smaller pool is
        refused when it is opened, before anything is spent. None: the graph is made when a degree is first asked for,
        again for each larger one, a pool that is too small fails only then.

    A degree is the number of nearest items that a variation is drawn from, by Euclidean distance, the item itself
    among them and first (in the published code too: its distance to itself is 0). So 1 leaves it as it is; so does 0.

    Content, vectors and neighbours lie in the public cache, named by the content and the settings of the data and
    the embedding, and are mapped into memory. Neighbours take 4 bytes each: 4.9 GB for 1,000 each of 1.22 million.
    """

    data: Data
    embedding: Embedding
    path: str | None = field(metadata=PLACE)
    by_label: bool
    neighbours: int | None
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        flag("api.by_label", self.by_label)
        whole("api.neighbours", self.neighbours, 1, optional=True)

    @property
    def row_bytes(self) -> int:
        """About what a row takes on disk: a small colour picture, or some paragraphs."""
        return 3000

    def check(self) -> None:
        """Raises UserError without a path, for data that are not there, and for what the embedding finds wrong."""
        if not self.path:
            raise invalid("api.path", "null", "public data: a name on the hub, parquet files, or a folder")
        for part in (self.data, self.embedding):
            _named(part)
        with _about_the_pool():
            self.data.check()
        self.embedding.check()

    def check_degree(self, degree: Degree) -> None:
        """Raises UserError for a degree that is no number of neighbours, or more than are kept."""
        if isinstance(degree, bool) or not isinstance(degree, int | float) or degree < 0 or degree != degree // 1:
            raise invalid("schedule.degree", degree, "a whole number: how many nearest items of the pool to draw from")
        if self.neighbours is not None and degree > self.neighbours:
            raise invalid("schedule.degree", degree, f"at most api.neighbours={self.neighbours}", "Raise that one.")

    def reads(self) -> Sequence[Data]:
        return (self.data, *self.embedding.reads())

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """An item each, uniform over the pool, or over its items with the row's label.

        Raises UserError where there are none, or fewer than `neighbours`.
        """
        stock = self._stock()
        parts = self._parts(stock, labels)
        return stock.samples(stock.order[stock.starts[parts] + _choice(seeds, "pool.item", stock.sizes[parts])])

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        """Of the `degree` items that are nearest to the parent's, itself among them, a uniform one.

        Raises UserError where the pool, or its part with the item's label, has fewer.
        """
        self.check_degree(degree)
        stock, nearest = self._stock(), max(1, int(degree))  # type: ignore[arg-type]
        items = _items(samples, len(stock.content))
        for part in np.unique(stock.parts[items]).tolist():
            if stock.sizes[part] < nearest:
                raise invalid("schedule.degree", degree, f"at most {stock.sizes[part]}, {self._named(part)}")
        if nearest > 1:
            graph = self._graph(stock, nearest)
            items = graph[items, _choice(seeds, "pool.neighbour", np.full(len(items), nearest))].astype(np.int64)
        return stock.samples(items)

    def adopt(self, samples: Samples, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """The samples with the trait `item`: the nearest item, with by_label among those of the row's label. Their
        content stays, so they have to be embedded: `vectors` would say what that item's are. Raises UserError where
        their vectors are of another length.
        """
        stock = self._stock()
        parts, items = self._parts(stock, labels), np.empty(len(samples), np.int64)
        device, step = torch_device(self.runtime), self.runtime.batch_size
        for start in range(0, len(samples), step):
            rows = slice(start, start + step)
            vectors = self.embedding(Samples(samples.content[rows]))
            if vectors.shape[1] != stock.vectors.shape[1]:
                do = "Images must have the same size and channels: set api.data.size, api.data.mode or embedding.size."
                raise UserError(f"api pool: another api's samples have vectors of another length than the pool's. {do}")
            vectors = np.where(np.abs(vectors) < FARTHEST, vectors, 0).astype(np.float32)
            for part in np.unique(parts[rows]).tolist():
                mine = parts[rows] == part
                items[rows][mine] = _nearest(vectors[mine], stock.vectors, stock.members(part), 1, device)[:, 0]
        return Samples(samples.content, {**samples.traits, "item": items})

    def vectors(self, samples: Samples) -> np.ndarray:
        """float32 [n, d]: what the embedding said of the items. For samples that the pool made."""
        stock = self._stock()
        return np.asarray(stock.vectors[_items(samples, len(stock.content))])

    @cached_property
    def _fingerprint(self) -> str:
        with _about_the_pool():
            return self.data.fingerprint()

    @cached_property
    def _name(self) -> str:
        """Of the folder in the cache."""
        seen_by = self.embedding.fingerprint()
        named = json.dumps([__version__, LAYOUT, self._fingerprint, _named(self.data), _named(self.embedding), seen_by])
        return hashlib.sha256(named.encode()).hexdigest()[:32]

    def _stock(self) -> _Stock:
        folder = public_cache() / "pools" / self._name
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            with _alone(folder.with_suffix(".lock")), room_on_disk(folder), _about_the_pool():
                if not folder.exists():
                    self._collect(folder)
        return _opened(folder, len(self.data.labels) if self.by_label else 0)

    def _parts(self, stock: _Stock, labels: Sequence[Label]) -> np.ndarray:
        """int64 [n]: the part of the pool that each row draws from. Raises UserError where it is too small."""
        rows = list(labels)
        objects = np.fromiter(map(id, rows), np.int64, len(rows))  # many rows, but few labels
        _, first, kind = np.unique(objects, return_index=True, return_inverse=True)
        numbers = np.zeros(len(first), np.int64)
        if self.by_label:
            declared = [dict(label) for label in self.data.labels]
            for at, row in enumerate(first.tolist()):
                asked = dict(rows[row])
                if asked not in declared:
                    do = "Declare the labels of the private data, or draw from all items with api.by_label=false."
                    raise invalid("api.data.labels", _shown(declared), f"{asked} among them", do)
                numbers[at] = declared.index(asked)
        if rows:
            self._check_sizes(stock.sizes, np.unique(numbers).tolist())
        return numbers[kind]

    def _check_sizes(self, sizes: np.ndarray, parts: Sequence[int]) -> None:
        """sizes: int64, items of each part of the pool. Raises UserError where one of these is too small."""
        part = min(parts, key=lambda part: int(sizes[part]))
        size = int(sizes[part])
        if not size:
            what = f"at least one row with the label {dict(self.data.labels[part])}"
            raise invalid("api.path", self.path, what if self.by_label else "at least one row that can be read")
        if self.neighbours is not None and size < self.neighbours:
            do = "Lower it, and schedule.degree with it, or name a larger pool."
            raise invalid("api.neighbours", self.neighbours, f"at most {size}, {self._named(part)}", do)

    def _named(self, part: int) -> str:
        return "the items of the pool" + (f" with the label {dict(self.data.labels[part])}" if self.by_label else "")

    def _graph(self, stock: _Stock, width: int) -> np.ndarray:
        """int32 [n, width or more]: the items nearest to each, itself first; -1 where a label has no more."""
        path = stock.folder / ("neighbours_by_label.npy" if self.by_label else "neighbours.npy")
        if not _is_wide(path, width):
            with _alone(stock.folder / "lock"), room_on_disk(path):
                if not _is_wide(path, width):
                    kept = min(max(width, self.neighbours or 0), int(stock.sizes.max()))
                    _connect(stock, kept, path, self.runtime)
        graph: np.ndarray = np.load(path, mmap_mode="r")
        return graph

    def _collect(self, folder: Path) -> None:
        """Reads the pool, and embeds it once it is known to be large enough, into `folder`, which appears whole."""
        temporary, size = folder.with_suffix(".part"), self.runtime.batch_size
        shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed: whoever is here holds the lock
        temporary.mkdir()
        try:
            facts, labels = _write_items(self.data, size, temporary)
            if not facts["rows"]:
                left_out = f"{facts['left_out']} were left out"
                raise invalid("api.path", self.path, f"at least one row that can be read ({left_out})")
            parts = len(self.data.labels) if self.by_label else 1
            sizes = np.bincount(labels if self.by_label else np.zeros_like(labels), minlength=parts)
            self._check_sizes(sizes, range(parts))
            facts["dimension"] = _write_vectors(self.embedding, facts, labels, size, temporary)
            if (labels < 0).all():
                raise invalid("api.path", self.path, "at least one row that can be embedded")
            (temporary / "labels").write_bytes(labels.tobytes())
            (temporary / "facts.json").write_text(json.dumps(facts))
            for file in temporary.iterdir():
                _sync(file)
            sync_folder(temporary)
            temporary.rename(folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


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
class _Stock:
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
def _opened(folder: Path, labels: int) -> _Stock:
    """labels: how many there are; 0: they do not count."""
    facts = json.loads((folder / "facts.json").read_text())
    vectors = np.memmap(folder / "vectors", np.float32, "r", shape=(facts["rows"], facts["dimension"]))
    parts = np.fromfile(folder / "labels", np.int64)
    if not labels:
        parts = np.minimum(parts, 0)
    order = np.flatnonzero(parts >= 0)
    order = order[np.argsort(parts[order], kind="stable")]
    sizes = np.bincount(parts[order], minlength=labels)
    starts = np.cumsum(sizes) - sizes
    return _Stock(folder, _content(folder, facts), vectors, parts, order, starts, sizes, facts.get("forms", {}))


def _write_items(data: Data, size: int, folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    """The content of all rows that can be read, and int64 [n], their labels."""
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
    return {"rows": rows, "left_out": left_out, **facts}, np.concatenate(labels)


def _write_vectors(embedding: Embedding, facts: Mapping[str, Any], labels: np.ndarray, size: int, folder: Path) -> int:
    """Embeds the items that were written, and returns the length of a vector. An item without a finite one gets zeros,
    and -1 in `labels`: it is in no part of the pool."""
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
    return dimension


def _content(folder: Path, facts: Mapping[str, Any]) -> np.ndarray | _Lines:
    dtype = np.lib.format.descr_to_dtype(ast.literal_eval(facts["dtype"]))
    if dtype.hasobject:
        return _Lines(dtype, np.fromfile(folder / "starts", np.int64), folder / "content")
    return np.memmap(folder / "content", dtype, "r", shape=(facts["rows"], *facts["shape"]))


def _plain(value: Any) -> int | str:
    """A date by its name, a time of day by its seconds: what numpy reads back."""
    return round(value.total_seconds()) if isinstance(value, datetime.timedelta) else str(value)


def _connect(stock: _Stock, width: int, path: Path, runtime: Runtime) -> None:
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
        _sync(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _connect_part(stock: _Stock, members: np.ndarray, graph: np.ndarray, runtime: Runtime) -> None:
    device, k = torch_device(runtime), min(graph.shape[1], len(members))

    def search(rows: slice) -> bool:
        mine = members[rows]
        graph[mine, 0] = mine
        if k > 1:
            graph[mine, 1:k] = _nearest(stock.vectors[mine], stock.vectors, members, k - 1, device, rows.start)
        return True

    blocks = replace(runtime, network_batch_size=QUERIES[device.partition(":")[0]])
    in_batches(len(members), blocks, "api pool: neighbours", search)


def _nearest(
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


def _choice(seeds: np.ndarray, stream: str, sizes: np.ndarray) -> np.ndarray:
    """int64 [n], uniform in [0, sizes[i]) by seeds[i] alone."""
    return np.floor(uniform(seeds, stream) * sizes).astype(np.int64)


def _items(samples: Samples, n: int) -> np.ndarray:
    """int64: the trait `item`. Raises UserError where it is missing, or names none of the n items."""
    if "item" not in samples.traits:
        raise UserError("api pool: the samples lack the trait item: another api made them.")
    items = samples.traits["item"]
    if len(items) and not 0 <= items.min() <= items.max() < n:
        raise UserError(f"api pool: the samples name items that are not among the {n} of the pool: it is another one.")
    return items


def _is_wide(path: Path, width: int) -> bool:
    return path.exists() and np.load(path, mmap_mode="r").shape[1] >= width


def _named(part: Any) -> str:
    try:
        return named_by(part)
    except ValueError as error:
        raise invalid("api", error, UNNAMED, "What is kept of a pool is named by them.") from None


def _shown(labels: Sequence[Label]) -> str:
    return ", ".join(str(dict(label)) for label in labels[:3]) + (", ..." if len(labels) > 3 else "")


@contextmanager
def _about_the_pool() -> Iterator[None]:
    """What a reader says of `data.` is said of `api.data.`, so that nobody looks for it in the private data."""
    try:
        yield
    except UserError as error:
        text = str(error)
        raise type(error)(f"api.{text}" if text.startswith("data") else text) from None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; others wait. The lock falls with whoever holds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
