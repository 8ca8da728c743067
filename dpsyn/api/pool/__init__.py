"""A public data set as the simulator (Sim-PE, arXiv 2502.05505): random items, and random ones of their neighbours."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn import __version__
from dpsyn.api import Api, Degree, Progress, unwatched
from dpsyn.api.pool.graph import connect, is_wide, nearest
from dpsyn.api.pool.stock import FARTHEST, Stock, opened, write_items, write_vectors
from dpsyn.data import Data, said_of
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, invalid, missing
from dpsyn.files import UNNAMED, alone, named_by, public_cache, room_on_disk, sync_file, sync_folder
from dpsyn.marks import PLACE
from dpsyn.networks.runtime import Runtime, torch_device
from dpsyn.population import Label, Samples
from dpsyn.randomness import uniform
from dpsyn.validate import flag, whole

LAYOUT = 3  # of the files in the cache


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

    @property
    def labelled(self) -> bool:
        return self.by_label

    def check(self) -> None:
        """Raises UserError without a path, for data that are not there, and for what the embedding finds wrong."""
        if not self.path:
            raise missing("api.path", "null", "public data: a name on the hub, parquet files, or a folder")
        for part in (self.data, self.embedding):
            _named(part)
        with said_of("api.data"):
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
        stock = self.stock()
        parts = self._parts(stock, labels)
        return stock.samples(stock.order[stock.starts[parts] + _choice(seeds, "pool.item", stock.sizes[parts])])

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        """Of the `degree` items that are nearest to the parent's, itself among them, a uniform one.

        Raises UserError where the pool, or its part with the item's label, has fewer.
        """
        self.check_degree(degree)
        stock, width = self.stock(), max(1, int(degree))  # type: ignore[arg-type]
        items = _items(samples, len(stock.content))
        for part in np.unique(stock.parts[items]).tolist():
            if stock.sizes[part] < width:
                raise invalid("schedule.degree", degree, f"at most {stock.sizes[part]}, {self._named(part)}")
        if width > 1:
            graph = self.graph(stock, width)
            items = graph[items, _choice(seeds, "pool.neighbour", np.full(len(items), width))].astype(np.int64)
        return stock.samples(items)

    def adopt(self, samples: Samples, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """The samples with the trait `item`: the nearest item, with by_label among those of the row's label. Their
        content stays, so they have to be embedded: `vectors` would say what that item's are. Raises UserError where
        their vectors are of another length.
        """
        stock = self.stock()
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
                items[rows][mine] = nearest(vectors[mine], stock.vectors, stock.members(part), 1, device)[:, 0]
        return Samples(samples.content, {**samples.traits, "item": items})

    def vectors(self, samples: Samples) -> np.ndarray:
        """float32 [n, d]: what the embedding said of the items. For samples that the pool made."""
        stock = self.stock()
        return np.asarray(stock.vectors[_items(samples, len(stock.content))])

    @cached_property
    def _fingerprint(self) -> str:
        with said_of("api.data"):
            return self.data.fingerprint()

    @cached_property
    def folder_name(self) -> str:
        """Of the folder in the cache."""
        seen_by = self.embedding.fingerprint()
        named = json.dumps([__version__, LAYOUT, self._fingerprint, _named(self.data), _named(self.embedding), seen_by])
        return hashlib.sha256(named.encode()).hexdigest()[:32]

    def prepare(self, degree: Degree | None, progress: Progress) -> None:
        """Reads and embeds the pool, and finds neighbours where they are asked for."""
        stock = self.stock(progress)
        if degree is not None:
            self.check_degree(degree)
            width = max(1, int(degree))  # type: ignore[arg-type]
            if 1 < width <= stock.sizes.max():
                self.graph(stock, width, progress)

    def stock(self, progress: Progress = unwatched) -> Stock:
        folder = public_cache() / "pools" / self.folder_name
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            with alone(folder.with_suffix(".lock")), room_on_disk(folder), said_of("api.data"):
                if not folder.exists():
                    self._collect(folder, progress)
        return opened(folder, len(self.data.labels) if self.by_label else 0)

    def _parts(self, stock: Stock, labels: Sequence[Label]) -> np.ndarray:
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

    def graph(self, stock: Stock, width: int, progress: Progress = unwatched) -> np.ndarray:
        """int32 [n, width or more]: the items nearest to each, itself first; -1 where a label has no more.

        stock: the items.
        width: neighbours of each.
        progress: shows how many have theirs.
        """
        path = stock.folder / ("neighbours_by_label.npy" if self.by_label else "neighbours.npy")
        if not is_wide(path, width):
            with alone(stock.folder / "lock"), room_on_disk(path):
                if not is_wide(path, width):
                    kept = min(max(width, self.neighbours or 0), int(stock.sizes.max()))
                    with progress("finding neighbours in the pool", len(stock.content)) as advance:
                        connect(stock, kept, path, self.runtime, advance)
        graph: np.ndarray = np.load(path, mmap_mode="r")
        return graph

    def _collect(self, folder: Path, progress: Progress) -> None:
        """Reads the pool, and embeds it once it is known to be large enough, into `folder`, which appears whole."""
        temporary, size = folder.with_suffix(".part"), self.runtime.batch_size
        shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed: whoever is here holds the lock
        temporary.mkdir()
        try:
            with progress("reading the pool", None) as advance:
                facts, labels = write_items(self.data, size, temporary, advance)
            if not facts["rows"]:
                left_out = f"{facts['left_out']} were left out"
                raise invalid("api.path", self.path, f"at least one row that can be read ({left_out})")
            parts = len(self.data.labels) if self.by_label else 1
            sizes = np.bincount(labels if self.by_label else np.zeros_like(labels), minlength=parts)
            self._check_sizes(sizes, range(parts))
            with progress("embedding the pool", facts["rows"]) as advance:
                facts["dimension"] = write_vectors(self.embedding, facts, labels, size, temporary, advance)
            if (labels < 0).all():
                raise invalid("api.path", self.path, "at least one row that can be embedded")
            (temporary / "labels").write_bytes(labels.tobytes())
            (temporary / "facts.json").write_text(json.dumps(facts))
            for file in temporary.iterdir():
                sync_file(file)
            sync_folder(temporary)
            temporary.rename(folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


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


def _named(part: Any) -> str:
    try:
        return named_by(part)
    except ValueError as error:
        raise invalid("api", error, UNNAMED, "What is kept of a pool is named by them.") from None


def _shown(labels: Sequence[Label]) -> str:
    return ", ".join(str(dict(label)) for label in labels[:3]) + (", ..." if len(labels) > 3 else "")
