"""The private side: every record embedded once, on disk, streamed past the candidates at every vote.

Records are read and embedded in parts, each by a process of its own where that is worth it, and vectors lie in the
private cache, a folder a part with a file a label. They are read back block by block, so memory is bounded by the
block, not by the number of records. (Plain reads, not a memory map: a map's pages count as resident until the system
takes them back.) Votes are counted in one run of the records, or in several by threads. How many parts and runs there
are changes no byte.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dpsyn import __version__
from dpsyn.data import Batches, Data, Divisible, Records
from dpsyn.embedding import Coded, CodedEmbedding, Coder, Networked, Sparse, SparseEmbedding, Truncating
from dpsyn.errors import UserError, invalid
from dpsyn.files import private_folder, room_on_disk, write
from dpsyn.population import I64, Samples
from dpsyn.privacy.budget import Unit
from dpsyn.privacy.holdout import Side
from dpsyn.privacy.nearest import Vectors, flushed
from dpsyn.privacy.query import Block, Query
from dpsyn.privacy.survey import Survey, Surveyor, merged, read_survey
from dpsyn.privacy.votes import Votes
from dpsyn.processes import Ended, can_be_sent, in_processes
from dpsyn.threads import free_threads, in_threads

BATCH = 256  # rows embedded at once: one fixed shape, whatever the number of records
BLOCK_BYTES = 2**26
FORMAT = 10  # of a cache entry
SPARSE = 5  # a sparse product takes as many times as long an entry as a dense one
PART_BYTES = 2**24  # of data: what takes less is read in this process, as starting another takes a second
FEW = 2**13  # records that one thread counts in less time than it takes to share them
USER = 16  # bytes of the digest of a user's id

Count = Callable[["Electorate", Query, int], Sequence[I64]]
"""(records, query, n) -> what `Electorate.tally` gives for each of n shares of them"""
Spread = Callable[[Callable[..., None], Sequence[tuple[Any, ...]]], object]
"""(`embed_part`, its arguments for each part): calls it for all of them"""
Run = Sequence[tuple[int, int, int, int]]
"""Records that a thread counts: (label, part, first, last) ..."""


@dataclass(frozen=True)
class Electorate:
    """Embedded private records, by part and label. Private, all of it: the repr tells nothing.

    folder: where they lie.
    entries: how many of a vector lie there, each with its index, where the others are 0; 0: all of them, without.
    kind: 'float32' for vectors, 'int32' for codes.
    codes: how many lie before each vector; 0: none.
    shards: in which votes are counted; None: one, as search and counter share each block among the processors (two took
        1.2 to 1.8 times as long, `scripts/bench_shards.py`).
    count: how.
    """

    folder: Path
    parts: int
    labels: int
    dimension: int
    entries: int
    kind: str
    codes: int
    unit: Unit
    shards: int | None
    count: Count

    def __repr__(self) -> str:
        return "Electorate(private)"

    def tallied(self, query: Query) -> Votes:
        """The exact answer, sealed. Raises UserError where these records cannot be asked."""
        query.check(self.dimension)
        tallies = self.count(self, query, self._shares())
        total = query.answer(np.sum(tallies, axis=0, dtype=np.int64))
        return Votes(total, 1 if self.unit == "user" else query.moves, query.grid(self.unit))

    def tally(self, query: Query, at: int, shares: int) -> I64:
        """The exact answer, not sealed, of one of so many shares of the records: they sum up to that of all.

        query: checked against these records.
        at: which share, from 0 on.
        shares: how many there are.
        """
        if self.unit == "record":
            return query.tally(self._blocks(self._runs(shares)[at], shares))
        (run,) = self._runs(1)  # a user's records may lie anywhere

        def blocks() -> Iterator[Block]:
            theirs = (_of_units(block, block.units % shares == at) for block in self._blocks(run, shares))
            return (block for block in theirs if len(block.units))

        return query.tally_by_user(blocks)

    def _shares(self) -> int:
        records = sum(rows for _, _, rows in self._places())
        return max(1, min(self.shards or 1, records // FEW))

    def _places(self) -> list[tuple[int, int, int]]:
        """(label, part, records in it), label by label."""
        found = [(label, part) for label in range(self.labels) for part in range(self.parts) if self.dimension]
        return [(label, part, self._file(part, label, "units").stat().st_size // 8) for label, part in found]

    def _runs(self, shares: int) -> list[Run]:
        """All records, label by label, in so many runs of about as many."""
        places = self._places()
        ends = list(itertools.accumulate(rows for _, _, rows in places))
        borders = [(ends or [0])[-1] * at // shares for at in range(shares + 1)]
        return [
            [
                (label, part, max(0, start - end + rows), min(rows, stop - end + rows))
                for (label, part, rows), end in zip(places, ends, strict=True)
                if start < end and end - rows < stop
            ]
            for start, stop in itertools.pairwise(borders)
        ]

    def _blocks(self, run: Run, threads: int) -> Iterator[Block]:
        """One block of records after the other; the next one overwrites it."""
        if not run:
            return
        row = _row(self.dimension, self.entries, self.kind, self.codes)
        block = np.empty(max(1, BLOCK_BYTES // (4 * self.dimension * threads)), row)
        for label, part, first, last in run:
            with (
                self._file(part, label, "vectors").open("rb") as vectors,
                self._file(part, label, "units").open("rb") as units,
            ):
                vectors.seek(first * block.itemsize)
                units.seek(first * 8)
                while first < last:
                    some = block[: last - first]
                    n = vectors.readinto(some.view(np.uint8)) // block.itemsize  # type: ignore[arg-type]
                    first += n
                    values = some["values"][:n]
                    records = Sparse(some["indices"][:n], values, self.dimension) if self.entries else values
                    codes = some["codes"][:n] if self.codes else None
                    yield Block(label, records, np.frombuffer(units.read(8 * n), np.int64), codes)

    def _file(self, part: int, label: int, kind: str) -> Path:
        return _part(self.folder, part) / f"{label}.{kind}"


def by_threads(electorate: Electorate, query: Query, shares: int) -> Sequence[I64]:
    """Each share's tally, counted by a thread.

    electorate: the records.
    query: checked against these records.
    shares: how many there are.
    """
    return in_threads(lambda at: electorate.tally(query, at, shares), range(shares))


def _of_units(block: Block, mine: np.ndarray) -> Block:
    codes = None if block.codes is None else block.codes[mine]
    return Block(block.label, block.vectors[mine], block.units[mine], codes)


def _part(folder: Path, part: int) -> Path:
    return folder / f"{part:03d}"


def _lengths(vectors: Vectors) -> tuple[int, int]:
    return (vectors.dimension, vectors.indices.shape[1]) if isinstance(vectors, Sparse) else (vectors.shape[1], 0)


def _row(dimension: int, entries: int, kind: str, codes: int) -> np.dtype:
    """How a record's vector lies on disk."""
    places = [(name, np.int32, (n,)) for name, n in (("indices", entries), ("codes", codes)) if n]
    return np.dtype([*places, ("values", kind, (entries or dimension,))])


def open_electorate(
    data: Data,
    embed: Coder,
    identity: dict[str, object],
    unit: Unit,
    folder: Path,
    shards: int | None = None,
    spread: Spread = in_processes,
    count: Count = by_threads,
    side: Side | None = None,
) -> Electorate:
    """The private records, embedded now or found in the private cache.

    data: the private data.
    embed: turns records into vectors, or into codes.
    identity: all settings of the data and of the embedding; with the content of the data and the versions of dpsyn and
        of the format they name the cache entry.
    unit: whose privacy is promised, "record" or "user".
    folder: the private cache.
    shards: in which they are read and embedded, and votes are counted; None: they are counted in one, and read by as
        many processes as processors are free, by one where the data are small or a network embeds them.
    spread: how the shards are read.
    count: how the shards are counted.
    side: of a hold-out split; None: all records.
    """
    named = json.dumps([__version__, FORMAT, data.fingerprint(), identity, repr(side)], sort_keys=True)
    key = hashlib.sha256(named.encode()).hexdigest()[:32]
    entry = folder / key
    if not (entry / "complete.json").exists():
        try:
            _embed_all(_parts(data, embed, shards), data, embed, entry, spread, side)
        except Ended:  # not how many there were: that tells how large the data are
            said = f"runtime.shards={'null' if shards is None else shards}"
            do = "With fewer of them less memory is needed; the same command goes on."
            raise UserError(f"{said}: a process that reads private records ended (out of memory?). {do}") from None
    facts = json.loads((entry / "complete.json").read_text())
    return Electorate(entry, labels=len(data.labels), unit=unit, shards=shards, count=count, **facts)


def row_reports(electorate: Electorate) -> dict[str, bytes]:
    """Private files: refused.jsonl, the rows that cast no vote; adjusted.json, how many cells were read as another
    value, and whatever else was counted."""
    refused = (electorate.folder / "refused.jsonl").read_bytes()
    return {"refused.jsonl": refused, "adjusted.json": survey_of(electorate).notes()}


def survey_of(electorate: Electorate) -> Survey:
    """What was met when the rows were read. Private."""
    return read_survey((electorate.folder / "survey.json").read_bytes())


def _parts(data: Data, embed: Coder, shards: int | None) -> Sequence[Batches]:
    """What each process reads; one part is read in this one."""
    if shards == 1 or not isinstance(data, Divisible):
        return [data.batches]
    if shards is not None:
        if not can_be_sent(data, embed):
            raise invalid("runtime.shards", shards, "1, as data or embedding are parts that cannot be pickled")
        return data.parts(shards)
    parts = [] if isinstance(embed, Networked) else data.parts(free_threads(), PART_BYTES)
    return parts if len(parts) > 1 and can_be_sent(data, embed) else [data.batches]


def _embed_all(
    parts: Sequence[Batches], data: Data, embed: Coder, entry: Path, spread: Spread, side: Side | None
) -> None:
    host = platform.node()
    for dead in entry.parent.glob(f"*.{host}.part"):  # of runs that were killed: vectors of private rows
        if not Path(f"/proc/{dead.name.split('.')[1]}").exists():
            shutil.rmtree(dead, ignore_errors=True)
    temporary = entry.with_name(f"{entry.name}.{os.getpid()}.{host}.part")
    private_folder(temporary)
    with room_on_disk(entry):
        try:
            folders = [private_folder(_part(temporary, part)) for part in range(len(parts))]
            each = [
                (batches, len(data.labels), data.unit_column, embed, folder, side)
                for batches, folder in zip(parts, folders, strict=True)
            ]
            if len(each) == 1 and spread is in_processes:
                embed_part(*each[0])
            else:
                spread(embed_part, each)
            facts = _joined(temporary, folders)
            write(temporary / "complete.json", json.dumps(facts).encode(), private=True)
            shutil.rmtree(entry, ignore_errors=True)
            temporary.rename(entry)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _joined(entry: Path, folders: Sequence[Path]) -> dict[str, Any]:
    """What is said of all parts: the survey and the refused rows, numbered like the users as if they were one."""
    users = _number_users(folders)
    surveys = [read_survey((folder / "survey.json").read_bytes()) for folder in folders]
    first = 0
    with _private_file(entry / "refused.jsonl") as refused:
        for folder, survey in zip(folders, surveys, strict=True):
            with (folder / "refused.jsonl").open("rb") as lines:
                for line in lines:
                    refusal = json.loads(line)
                    refused.write(f"{json.dumps({**refusal, 'row': refusal['row'] + first})}\n".encode())
            first += survey.rows
    survey = surveys[0] if len(folders) == 1 else merged(surveys, users)
    write(entry / "survey.json", survey.json(), private=True)
    found = [json.loads((folder / "facts.json").read_text()) for folder in folders]
    met = [facts for facts in found if facts["dimension"]] or found[:1]
    if any(facts != met[0] for facts in met):
        raise RuntimeError("embedding: vectors of several lengths")
    return {"parts": len(folders), **met[0]}


def _number_users(folders: Sequence[Path]) -> int:
    """Gives the users of all parts the numbers that they had in one. Returns how many there are."""
    digests = [np.fromfile(folder / "users", np.dtype((np.void, USER))) for folder in folders]
    for folder in folders:
        (folder / "users").unlink()
    together = np.concatenate(digests)
    _, first, place = np.unique(together, return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(first))[place].astype(np.int64)  # by where they are first met
    starts = np.cumsum([0, *map(len, digests)])
    for folder, start in zip(folders[1:], starts[1:].tolist(), strict=False):
        for file in folder.glob("*.units"):
            units = np.fromfile(file, np.int64)
            known = units >= 0
            units[known] = numbers[start + units[known]]
            units.tofile(file)
    return len(first)


def embed_part(
    batches: Batches, labels: int, unit_column: str | None, embed: Coder, folder: Path, side: Side | None = None
) -> None:
    """Writes vectors, units, users and refused rows as they come, so that memory is bounded by a batch, and then what
    they are and what was met.

    batches: gives the rows of the part, in batches.
    labels: how many there are.
    unit_column: the column that names users; None: rows are of nobody.
    embed: turns records into vectors, or into codes.
    folder: of the part, which is there and empty.
    side: of a hold-out split; None: all records.
    """
    dimension, entries, kind, codes = 0, 0, "float32", 0  # until there is a record
    met, keeps = Surveyor(labels), None if side is None else side.filter()
    look: Callable[[Samples], Vectors | Coded] = embed
    if isinstance(embed, SparseEmbedding):
        look = embed.sparse
    elif isinstance(embed, CodedEmbedding):
        look = embed.coded
    refused, users = _private_file(folder / "refused.jsonl"), _private_file(folder / "users")
    files = [[_private_file(folder / f"{label}.{kind}") for kind in ("vectors", "units")] for label in range(labels)]
    try:
        for records in batches(BATCH):
            met.add(records)
            refused.writelines(f"{json.dumps(asdict(refusal))}\n".encode() for refusal in records.refused)
            users.writelines(_digest(user) for user in records.users)
            if keeps is not None:
                records = _chosen(records, keeps(records))
            n = len(records.samples)
            if not n:
                continue
            if records.units is None and unit_column is not None:
                raise invalid("data.unit_column", unit_column, "a column of every file")
            seen = _embed_padded(look, records.samples)[:n]
            vectors = seen.vectors if isinstance(seen, Coded) else seen
            codes = seen.codes.shape[1] if isinstance(seen, Coded) else 0
            if isinstance(vectors, Sparse) and SPARSE * vectors.indices.shape[1] > vectors.dimension:
                look, vectors = embed, vectors.dense()
            if isinstance(embed, Truncating):
                met.remark("longer than the embedding reads", int(embed.truncated(records.samples).sum()))
            units = np.full(n, -1) if records.units is None else records.units
            before, (dimension, entries) = (dimension, entries), _lengths(vectors)
            if before not in ((0, 0), (dimension, entries)):
                raise RuntimeError("embedding: vectors of several lengths")
            kind = "int32" if isinstance(vectors, np.ndarray) and vectors.dtype == np.int32 else "float32"
            lines = np.empty(n, _row(dimension, entries, kind, codes))
            if isinstance(vectors, Sparse):
                lines["indices"] = vectors.indices
            if isinstance(seen, Coded):
                lines["codes"] = seen.codes
            values = vectors.values if isinstance(vectors, Sparse) else vectors
            lines["values"] = flushed(values) if kind == "float32" else values
            for label in np.unique(records.labels):
                mine = records.labels == label
                files[label][0].write(lines[mine].tobytes())
                files[label][1].write(units[mine].astype(np.int64).tobytes())
    finally:
        for file in [refused, users, *(file for pair in files for file in pair)]:
            file.close()
    facts = {"dimension": dimension, "entries": entries, "kind": kind, "codes": codes}
    write(folder / "facts.json", json.dumps(facts).encode(), private=True)
    write(folder / "survey.json", met.survey.json(), private=True)


def _chosen(records: Records, mine: np.ndarray) -> Records:
    rows = np.flatnonzero(mine)
    units = None if records.units is None else records.units[rows]
    return Records(Samples(records.samples.content[rows], forms=records.samples.forms), records.labels[rows], units)


def _digest(user: str) -> bytes:
    return hashlib.blake2b(user.encode("utf-8", "surrogatepass"), digest_size=USER).digest()


def _private_file(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _embed_padded(embed: Callable[[Samples], Vectors | Coded], samples: Samples) -> Vectors | Coded:
    content: np.ndarray | Sequence[object] = samples.content
    short = BATCH - len(samples)
    if short:
        content = np.concatenate([samples.content, np.repeat(samples.content[:1], short, axis=0)])
    return embed(Samples(np.asarray(content)))
