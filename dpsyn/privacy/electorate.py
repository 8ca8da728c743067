"""The private side: every record embedded once, on disk, streamed past the candidates at every vote.

Vectors lie in the private cache, a file a label, and are read back block by block, so memory is bounded by the
block, not by the number of records. (Plain reads, not a memory map: a map's pages count as resident until the
system takes them back.)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dpsyn import __version__
from dpsyn.data import Data
from dpsyn.embedding import Coder, Sparse, SparseEmbedding, Truncating
from dpsyn.errors import invalid
from dpsyn.files import private_folder, room_on_disk, write
from dpsyn.population import Samples
from dpsyn.privacy.budget import Unit
from dpsyn.privacy.nearest import Vectors, flushed
from dpsyn.privacy.query import Block, Query
from dpsyn.privacy.survey import Survey, Surveyor, read_survey
from dpsyn.privacy.votes import Votes

BATCH = 256  # rows embedded at once: one fixed shape, whatever the number of records
BLOCK_BYTES = 2**26
FORMAT = 8  # of a cache entry
SPARSE = 5  # a sparse product takes as many times as long an entry as a dense one


@dataclass(frozen=True)
class Electorate:
    """Embedded private records, by label. Private, all of it: the repr tells nothing.

    folder: where they lie.
    entries: how many of a vector lie there, each with its index, where the others are 0; 0: all of them, without.
    kind: 'float32' for vectors, 'int32' for codes.
    """

    folder: Path
    labels: int
    dimension: int
    entries: int
    kind: str
    unit: Unit

    def __repr__(self) -> str:
        return "Electorate(private)"

    def tallied(self, query: Query) -> Votes:
        """The exact answer, sealed. Raises UserError where these records cannot be asked."""
        query.check(self.dimension)

        def blocks() -> Iterator[Block]:
            return (block for label in range(self.labels) for block in self._blocks(label))

        if self.unit == "user":
            return Votes(query.answer(query.tally_by_user(blocks)), 1, query.grid("user"))
        return Votes(query.answer(query.tally(blocks())), query.moves, query.grid("record"))

    def _blocks(self, label: int) -> Iterator[Block]:
        """One block of records after the other; the next one overwrites it."""
        if not self.dimension:
            return
        rows = max(1, BLOCK_BYTES // (4 * self.dimension))
        block = np.empty(rows, _row(self.dimension, self.entries, self.kind))
        with (
            (self.folder / f"{label}.vectors").open("rb") as vectors,
            (self.folder / f"{label}.units").open("rb") as units,
        ):
            while True:
                n = vectors.readinto(block.view(np.uint8)) // block.itemsize  # type: ignore[arg-type]
                if not n:
                    return
                values = block["values"][:n]
                records = Sparse(block["indices"][:n], values, self.dimension) if self.entries else values
                yield Block(label, records, np.frombuffer(units.read(8 * n), np.int64))


def _lengths(vectors: Vectors) -> tuple[int, int]:
    return (vectors.dimension, vectors.indices.shape[1]) if isinstance(vectors, Sparse) else (vectors.shape[1], 0)


def _row(dimension: int, entries: int, kind: str) -> np.dtype:
    """How a record's vector lies on disk."""
    places = [("indices", np.int32, (entries,))] if entries else []
    return np.dtype([*places, ("values", kind, (entries or dimension,))])


def open_electorate(data: Data, embed: Coder, identity: dict[str, object], unit: Unit, folder: Path) -> Electorate:
    """The private records, embedded now or found in the private cache.

    identity: all settings of the data and of the embedding; with the content of the data and the versions of dpsyn and
        of the format they name the cache entry.
    """
    named = json.dumps([__version__, FORMAT, data.fingerprint(), identity], sort_keys=True)
    key = hashlib.sha256(named.encode()).hexdigest()[:32]
    entry = folder / key
    if not (entry / "complete.json").exists():
        _embed_all(data, embed, entry)
    facts = json.loads((entry / "complete.json").read_text())
    return Electorate(entry, len(data.labels), facts["dimension"], facts["entries"], facts["kind"], unit)


def row_reports(electorate: Electorate) -> dict[str, bytes]:
    """Private files: refused.jsonl, the rows that cast no vote; adjusted.json, how many cells were read as another
    value, and whatever else was counted."""
    refused = (electorate.folder / "refused.jsonl").read_bytes()
    return {"refused.jsonl": refused, "adjusted.json": survey_of(electorate).notes()}


def survey_of(electorate: Electorate) -> Survey:
    """What was met when the rows were read. Private."""
    return read_survey((electorate.folder / "survey.json").read_bytes())


def _embed_all(data: Data, embed: Coder, entry: Path) -> None:
    for dead in entry.parent.glob("*.part"):  # of runs that were killed: vectors of private rows
        if not Path(f"/proc/{dead.name.split('.')[1]}").exists():
            shutil.rmtree(dead, ignore_errors=True)
    temporary = entry.with_name(f"{entry.name}.{os.getpid()}.part")
    private_folder(temporary)
    with room_on_disk(entry):
        try:
            facts, survey = _write_vectors(data, embed, temporary)
            write(temporary / "survey.json", survey.json(), private=True)
            write(temporary / "complete.json", json.dumps(facts).encode(), private=True)
            shutil.rmtree(entry, ignore_errors=True)
            temporary.rename(entry)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _write_vectors(data: Data, embed: Coder, folder: Path) -> tuple[dict[str, Any], Survey]:
    """Vectors, units and refused rows as they come, so that memory is bounded by a batch."""
    dimension, entries, kind = 0, 0, "float32"  # until there is a record
    met = Surveyor(len(data.labels))
    look: Callable[[Samples], Vectors] = embed.sparse if isinstance(embed, SparseEmbedding) else embed
    refused = _private_file(folder / "refused.jsonl")
    files = [
        [_private_file(folder / f"{label}.{kind}") for kind in ("vectors", "units")]
        for label in range(len(data.labels))
    ]
    try:
        for records in data.batches(BATCH):
            met.add(records)
            refused.writelines(f"{json.dumps(asdict(refusal))}\n".encode() for refusal in records.refused)
            n = len(records.samples)
            if not n:
                continue
            if records.units is None and data.unit_column is not None:
                raise invalid("data.unit_column", data.unit_column, "a column of every file")
            vectors = _embed_padded(look, records.samples)[:n]
            if isinstance(vectors, Sparse) and SPARSE * vectors.indices.shape[1] > vectors.dimension:
                look, vectors = embed, vectors.dense()
            if isinstance(embed, Truncating):
                met.remark("longer than the embedding reads", int(embed.truncated(records.samples).sum()))
            units = np.full(n, -1) if records.units is None else records.units
            before, (dimension, entries) = (dimension, entries), _lengths(vectors)
            if before not in ((0, 0), (dimension, entries)):
                raise RuntimeError("embedding: vectors of several lengths")
            kind = "int32" if isinstance(vectors, np.ndarray) and vectors.dtype == np.int32 else "float32"
            lines = np.empty(n, _row(dimension, entries, kind))
            if isinstance(vectors, Sparse):
                lines["indices"] = vectors.indices
            values = vectors.values if isinstance(vectors, Sparse) else vectors
            lines["values"] = flushed(values) if kind == "float32" else values
            for label in np.unique(records.labels):
                mine = records.labels == label
                files[label][0].write(lines[mine].tobytes())
                files[label][1].write(units[mine].astype(np.int64).tobytes())
    finally:
        for file in [refused, *(file for pair in files for file in pair)]:
            file.close()
    return {"dimension": dimension, "entries": entries, "kind": kind}, met.survey


def _private_file(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb")


def _embed_padded(embed: Callable[[Samples], Vectors], samples: Samples) -> Vectors:
    content: np.ndarray | Sequence[object] = samples.content
    short = BATCH - len(samples)
    if short:
        content = np.concatenate([samples.content, np.repeat(samples.content[:1], short, axis=0)])
    return embed(Samples(np.asarray(content)))
