"""The contract of a metric: numbers about a population that nothing in the loop reads; and what metrics share."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dpsyn import __version__
from dpsyn.data import Data, modality_of, said_of
from dpsyn.embedding import Embedding
from dpsyn.errors import Missing, UserError, invalid, one_of
from dpsyn.files import cache_folder, named_by, room_on_disk
from dpsyn.population import MODALITIES, Modality, Population, Samples, take
from dpsyn.tables.schema import Schema
from dpsyn.validate import flag, whole

ODD = np.uint64(0x9E3779B97F4A7C15)

_real: deque[tuple[Data, Embedding, np.ndarray]] = deque(maxlen=4)  # vectors that a metric asked for last
_synthetic: deque[tuple[np.ndarray, Embedding, np.ndarray]] = deque(maxlen=1)


class Metric(Protocol):
    """private: True where it reads private data. Its numbers are then not differentially private: they go to
    `private/metrics.jsonl` and never to `release/`, the panel or a return value."""

    @property
    @abstractmethod
    def private(self) -> bool: ...

    @abstractmethod
    def __call__(self, population: Population) -> Mapping[str, float]:
        """Names to numbers."""
        ...

    @abstractmethod
    def reads(self) -> Sequence[Data]:
        """Every data set that its numbers are about; () for none. It is a promise: where `private` is False, the
        private data must not be among them."""
        ...

    @property
    def judges(self) -> Sequence[Modality]:
        """Of what it has numbers; others it refuses when it is called."""
        return MODALITIES

    def check(self) -> None:
        """Cheap checks of its settings and its data, without reading a row. Raises UserError."""
        return None


GROUPS: Mapping[Modality, str] = {
    "images": "image_quality",
    "texts": "text_quality",
    "rows": "table_quality",
    "rows with texts": "row_texts",
}
"""Of each modality the group of metrics that judges it best."""


def check_judges(key: str, metric: Metric, modality: Modality) -> None:
    """Raises UserError for a metric of another modality, or whose real data are of another.

    key: where the metric stands.
    metric: to be asked about samples of the modality.
    modality: of the run.
    """
    if modality not in metric.judges:
        of = one_of(metric.judges) if metric.judges else "nothing, with this embedding"
        raise invalid(key, f"(judges {of})", f"a metric of {modality}", f"Choose metric={GROUPS[modality]}.")
    for data in metric.reads():
        if (theirs := modality_of(data)) not in (None, modality):
            raise invalid(f"{key}.data", f"({theirs})", f"{modality}, as the run makes", "Name others by held_out.")


def check_table(key: str, schema: Any) -> None:
    """Raises UserError for a metric of tables with other data.

    key: the setting of the schema.
    schema: what it is set to.
    """
    if not isinstance(schema, Schema):
        do = " and ".join(f"metric={GROUPS[modality]} for {modality}" for modality in ("images", "texts"))
        raise invalid(key, "null", "the schema of a table", f"Choose {do}.")


def check_settings(metric: Any, name: str, least: Mapping[str, int], public: bool) -> None:
    """Checks of a metric's settings. Raises UserError, also for a `public` that is not true or false: a word such as
    "no" would count as true, and publish a private number.

    metric: with the settings.
    name: of the metric, for messages.
    least: for each setting that is a whole number, the least that it can be.
    public: its setting of this name; False where there is none, as the numbers are always private, or always public.
    """
    for key, at_least in least.items():
        whole(f"metric.parts.{name}.{key}", getattr(metric, key), at_least)
    flag(f"metric.parts.{name}.public", public)


def check_real(data: Data | None) -> None:
    """Raises UserError without real data, or for what they can tell to be wrong without reading a row."""
    if data is None:
        raise Missing("held_out=null: this metric needs real data. Declare a part of the group data as held_out.")
    with said_of("held_out"):
        data.check()


def real_samples(data: Data, size: int) -> Iterator[Samples]:
    """All real rows that can be read, in batches.

    data: the real data.
    size: rows of a batch at most.
    """
    return (records.samples for records in data.batches(size) if len(records.samples))


def batched(samples: Samples, size: int) -> Iterator[Samples]:
    """All rows, in batches.

    samples: n rows.
    size: rows of a batch at most.
    """
    return (take(samples, np.arange(k, min(k + size, len(samples)))) for k in range(0, len(samples), size))


def real_vectors(data: Data, embedding: Embedding, size: int) -> np.ndarray:
    """Vectors float32 [n, d] of all real rows that can be read, in order.

    They are embedded once for all metrics, all runs of a sweep, and later runs: they lie in the private cache, by the
    content of the data, and the settings of data and embedding. Vectors of parts whose settings do not say what they
    are, are kept for this process alone.

    data: the real data.
    embedding: under which they are compared.
    size: rows embedded at once.
    """
    for known in _real:
        if known[0] is data and known[1] is embedding:
            return known[2]
    batches, path = map(embedding, real_samples(data, size)), None
    with suppress(ValueError):
        named = [__version__, named_by(data), named_by(embedding), data.fingerprint(), embedding.fingerprint()]
        path = cache_folder() / f"real-{hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]}.npy"
    found = np.load(path, mmap_mode="r") if path is not None and path.exists() else _stored(batches, path)
    _real.append((data, embedding, found))
    return found


def sampled_sides(
    samples: Samples, data: Data, embedding: Embedding, size: int, rows: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of synthetic and of real rows, uniform samples of each.

    samples: synthetic ones.
    data: the real data.
    embedding: under which both are compared.
    size: rows embedded at once.
    rows: of each side, at most.
    seed: of the samples.
    """
    real = sampled(real_vectors(data, embedding, size), rows, seed)
    return sampled(synthetic_vectors(samples, embedding, size), rows, seed), real


def synthetic_vectors(samples: Samples, embedding: Embedding, size: int) -> np.ndarray:
    """As `real_vectors`, of synthetic samples. Those of the last ones are kept for the next metric.

    samples: n rows.
    embedding: under which they are compared.
    size: rows embedded at once.
    """
    for known in _synthetic:
        if known[0] is samples.content and known[1] == embedding:
            return known[2]
    _synthetic.clear()  # before the next ones: their file is gone then
    _synthetic.append((samples.content, embedding, _stored(map(embedding, batched(samples, size)), None)))
    return _synthetic[0][2]


def _stored(batches: Iterable[np.ndarray], path: Path | None) -> np.ndarray:
    """In a file that appears whole, or, without a path, in one that is gone with the array."""
    folder, n, d = cache_folder(), 0, 0
    with tempfile.TemporaryFile(dir=folder) as file, room_on_disk(folder):
        for batch in batches:
            rows = np.ascontiguousarray(batch, np.float32)
            if n and rows.shape[1] != d:
                raise RuntimeError("embedding: vectors of several lengths")
            n, d = n + len(rows), rows.shape[1]
            file.write(rows.tobytes())
        file.flush()
        found = np.memmap(file, np.float32, "r", shape=(n, d)) if n else np.zeros((0, d), np.float32)
        if path is not None:
            temporary = path.with_suffix(f".{os.getpid()}.part")
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as kept:
                np.lib.format.write_array(kept, found, allow_pickle=False)
            os.replace(temporary, path)
    return found


def blocks(vectors: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Some rows at a time.

    vectors: [n, d].
    size: rows of a block at most.
    """
    return (np.asarray(vectors[k : k + size]) for k in range(0, len(vectors), size))


def sampled(vectors: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """A uniform sample float32 [rows or fewer, d], in random order: a longer one begins with a shorter one.

    vectors: float32 [n, d].
    rows: of the sample, at most.
    seed: of the sample.
    """
    keys = np.random.default_rng(seed).random(len(vectors))
    return np.asarray(vectors[np.argsort(keys, kind="stable")[:rows]])


def check_comparable(ours: np.ndarray, real: np.ndarray) -> None:
    """Raises UserError where vectors of synthetic and real samples have another d.

    ours: [..., d], of synthetic samples.
    real: [..., d], of real ones.
    """
    if ours.shape[-1] != real.shape[-1]:
        raise UserError(
            "held_out: the embedding makes vectors of another length of the real samples than of the synthetic ones. "
            "Give both one size and as many channels."
        )


def texts_of(samples: Samples, name: str) -> np.ndarray:
    """object of str [n]. Raises UserError for what are no texts.

    samples: of any kind.
    name: of the metric, for messages.
    """
    if samples.content.dtype != object:
        raise UserError(f"metric {name}: expected texts. Leave this metric out for this kind of data.")
    return samples.content


@dataclass(frozen=True)
class Words:
    """Of many texts, one after the other: runs of letters, digits and underscores, without case.

    hashes: uint64 [m], of every word; they hold in this process alone. texts: int64 [m], the row of its text.
    """

    hashes: np.ndarray
    texts: np.ndarray

    def ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Hashes uint64 [k] and first words int64 [k] of all n-grams, none of which reaches over two texts."""
        found = self.hashes, np.arange(len(self.hashes))
        for length in range(1, n):
            found = self.longer(*found, length)
        return found

    def longer(self, hashes: np.ndarray, starts: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """From n-grams to the (n+1)-grams at the same starts: fewer, as some texts end there.

        hashes: uint64 [m], of n-grams.
        starts: int64 [m], at which words they begin.
        n: words of them.
        """
        inside = starts + n < len(self.texts)
        hashes, starts = hashes[inside], starts[inside]
        inside = self.texts[starts] == self.texts[starts + n]
        hashes, starts = hashes[inside], starts[inside]
        return hashes * ODD + self.hashes[starts + n], starts


def words(texts: Iterable[str]) -> Words:
    """Of all texts, in order."""
    parts = [np.array([hash(word) for word in re.findall(r"\w+", text.lower())], np.int64) for text in texts]
    hashes = np.concatenate([np.zeros(0, np.int64), *parts]).view(np.uint64)
    return Words(hashes, np.repeat(np.arange(len(parts)), [len(part) for part in parts]))
