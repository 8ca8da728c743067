"""Where rows lie: local files and data sets on the hub.

Local files are walked and opened here. `datasets` would open a lock file in its cache and call a server that counts
loads, for local files too; it infers the types of a csv from all of its rows, so that one empty cell turns every "3"
into "3.0"; and where one image of a folder is called `train_1.png`, its image folders hold that image alone (measured,
datasets 5.2). It reads what is on the hub.
"""

from __future__ import annotations

import codecs
import contextlib
import fnmatch
import functools
import glob
import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from dpsyn.errors import check_packages, invalid, missing, one_of
from dpsyn.networks.hub import check_revision, commit_of
from dpsyn.reading.lines import check_jsonl, csv_cuts, csv_names, csv_rows, jsonl_cuts, jsonl_rows
from dpsyn.reading.rows import (
    Broken,
    Columns,
    Row,
    Span,
    as_text,
    bad_unit,
    is_bytes,
    is_text,
    parquet_rows,
    parquet_schema,
)
from dpsyn.validate import choice

SUFFIXES = {
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz"),
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    "parquet": (".parquet",),
    "imagefolder": (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".hif"),
    ),
}
CALLED = {
    "csv": "csv files",
    "jsonl": "jsonl files",
    "parquet": "parquet files",
    "imagefolder": "a folder of images",
}


CLOSED = "folders passed over (they cannot be opened)"


@dataclass(frozen=True)
class Table:
    """name: of the file, below the path of the source; private, '' on the hub. columns: that are read of it. rows:
    streamed, each with the number of its line (in parquet and on the hub, of the row), from 1 on."""

    name: str
    columns: Sequence[str]
    rows: Iterator[tuple[int, Row | Broken]]


@dataclass(frozen=True)
class Source:
    """Where rows lie: a name on the hub, or a local file, folder or glob pattern.

    path, builder, subset, split: settings of the data. builders: the kinds of file that may be meant. delimiter: of
    csv; None: a tab for .tsv, otherwise a comma. header: names for the columns of csv files whose first line has none.
    encoding: of csv, as Python names it. revision: on the hub.
    """

    path: str | None
    builder: str | None
    builders: Sequence[str]
    subset: str | None
    split: str
    delimiter: str | None = None
    header: Sequence[str] | None = None
    encoding: str = "utf-8"
    revision: str | None = None

    def check_settings(self) -> None:
        """Raises UserError for a wrong builder, split, revision or delimiter."""
        check_revision("data.revision", self.revision)
        choice("data.builder", self.builder, (None, *self.builders))
        if not re.fullmatch(r"[\w.-]+", str(self.split)):
            do = "Parts by position (train[:10%]) are refused: they would depend on other rows."
            raise invalid("data.split", self.split, "the name of a split", do)
        sign = self.delimiter
        if sign is not None and (not isinstance(sign, str) or len(sign) != 1 or sign in '"\r\n'):
            raise invalid("data.delimiter", repr(sign), "one character, or null")
        if not is_encoding(self.encoding):
            raise invalid("data.encoding", self.encoding, "an encoding of texts: utf-8, latin-1, cp1252, utf-16, ...")

    def check(self, packages: Sequence[str] = ()) -> Path | None:
        """The first local file; None for the hub, which is not asked. Raises Missing for a path or package that is not
        there.

        packages: those that are needed whatever the kind.
        """
        kind = self.kind()
        needed = {"parquet": ["pyarrow"], "hub": ["datasets", "huggingface_hub"]}.get(kind, [])
        check_packages("data.path", self.path, *packages, *needed)
        if kind == "hub":
            return None
        if self.subset is not None:
            raise invalid("data.subset", self.subset, "null for local files")
        if self.revision is not None:
            raise invalid("data.revision", self.revision, "null for local files")
        first = next(walk(self.place, kind), None)
        if first is None:
            raise missing("data.path", self.place, "images in it" if kind == "imagefolder" else CALLED[kind])
        return Path(first)

    @property
    def place(self) -> str:
        """The local path of this split. Raises UserError where the name of `path` does not say where others are."""
        place = Path(str(self.path))
        if self.split == "train":
            return str(place)
        if "train" not in place.name:
            raise invalid("data.split", self.split, "train for local files", "Name the test files by data.path.")
        return str(place.with_name(place.name.replace("train", self.split)))

    def kind(self) -> str:
        """One of `builders`, or 'hub'. Raises Missing for a local path that is not there."""
        called = [CALLED[builder] for builder in self.builders]
        if not isinstance(self.path, str) or not self.path:
            anything = f"a name on the hub, {', '.join(called[:-1])}, or {called[-1]}"
            raise missing(
                "data.path", "null" if self.path is None else self.path, CALLED.get(str(self.builder), anything)
            )
        place = os.path.expanduser(self.path)
        if os.path.exists(place) or glob.has_magic(place):
            place = os.path.expanduser(self.place)
            if not os.path.exists(place) and not glob.has_magic(place):
                raise missing("data.path", self.place, "an existing file or folder")
            return self.builder or self._local_kind(place)
        is_name = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", self.path) and not self.path.endswith(".zip")
        if self.builder is not None or not is_name or self.path.lower().endswith(tuple(sum(SUFFIXES.values(), ()))):
            name = "" if self.builder else ", or a name on the hub"
            raise missing("data.path", self.path, f"an existing file or folder{name}")
        return "hub"

    def _local_kind(self, place: str) -> str:
        """By the name of the file, or by the names in the folder."""
        names = os.listdir(place) if os.path.isdir(place) else [place]
        tables = [builder for builder in self.builders if builder != "imagefolder"]
        found = [kind for kind in tables if any(name.lower().endswith(SUFFIXES[kind]) for name in names)]
        if len(found) == 1 or (found and "imagefolder" in self.builders):
            return found[0]
        if "imagefolder" in self.builders:
            return "imagefolder"
        endings = one_of(suffix for kind in tables for suffix in SUFFIXES[kind])
        do = "Or say which to read with data.builder=."
        raise invalid("data.path", self.place, f"files of one kind, ending in {endings}", do)

    def files(self) -> list[Path]:
        """Local files in the order in which they are read."""
        return [Path(name) for name in sorted(walk(self.place, self.kind()))]

    def passed_over(self) -> Counter[str]:
        """What lies beside the local files that are read, by 'files passed over (SUFFIX)' and the like; private."""
        passed: Counter[str] = Counter()
        if self.kind() != "hub":
            for _ in walk(self.place, self.kind(), passed):
                pass
        return passed

    def digests(self) -> set[str]:
        """A digest of the content of each local file; of a data set on the hub, its fingerprint."""
        if self.kind() == "hub":
            return {self.fingerprint()}
        return {digest for _, _, digest in self._digests}

    def fingerprint(self) -> str:
        """Of names, sizes and content of local files; of the name and the commit of a data set on the hub."""
        if self.kind() == "hub":
            name = json.dumps([self.path, self.subset, self.split, commit(str(self.path), self.revision)])
            return blake2b(name.encode(), digest_size=32).hexdigest()
        return blake2b(json.dumps(self._digests).encode(), digest_size=32).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Without the digests of private files: a machine that is sent this looks at its own."""
        return {name: value for name, value in vars(self).items() if name != "_digests"}

    @functools.cached_property
    def _digests(self) -> list[tuple[str, int, str]]:
        """Name below the path, size, and digest of the content of each local file that is read."""
        try:
            top = root(self.place)
            return [_content(file, top) for file in self.files()]
        except OSError:  # it names a private file, so ours is raised after it and not from it
            pass
        raise invalid("data.path", self.path, "files that can be read")

    def columns(self, file: Path) -> Columns:
        """Of a local file. Raises UserError where they cannot be read, or have no names of their own."""
        kind = self.kind()
        if kind == "jsonl":
            check_jsonl(file, self.path)
            return Columns(None, ())
        if kind == "csv" and self.header is not None:
            return Columns(self.header, self.header)
        if kind == "csv":
            names = csv_names(file, self._delimiter(file), self.path, self.encoding)
            return Columns(names, names, listed=False)
        import pyarrow as pa

        schema = parquet_schema(file, self.path)
        types = [item.type.value_type if pa.types.is_dictionary(item.type) else item.type for item in schema]
        texts = [name for name, kind in zip(schema.names, types, strict=True) if is_text(kind) or is_bytes(kind)]
        return Columns(schema.names, texts)

    def check_unit(self, column: str) -> None:
        """Raises UserError where local parquet files hold the users of rows as floats, or not all as one type. On the
        hub `Columns.check_unit` says so."""
        if self.kind() != "parquet":
            return
        kinds = set()
        for file in self.files():
            schema = parquet_schema(file, self.path)
            if column in schema.names:
                kinds.add(_unit_kind(schema.field(column).type))
        if "floating numbers" in kinds or len(kinds) > 1:
            raise bad_unit(column, " and ".join(sorted(kinds)))

    def spans(self) -> list[Span]:
        """Each local file as a whole."""
        return [Span(file) for file in self.files()]

    def shares(self, n: int, least: int) -> list[list[Span]]:
        """All rows of local files in at most `n` runs of about as many bytes, at least `least`, in their order; one
        without spans for the hub.

        n: runs at most.
        least: bytes of a run at least, but for a file of less.
        """
        if self.kind() == "hub":
            return [[]]
        files = self.files()
        sizes = [file.stat().st_size for file in files]
        n = max(1, min(n, sum(sizes) // max(1, least)))
        borders = [sum(sizes) * at // n for at in range(1, n)]
        found: list[list[Span]] = [[] for _ in range(n)]
        start = 0
        for file, size in zip(files, sizes, strict=True):
            first = sum(border <= start for border in borders)
            spans = self._cut(file, size, [border - start for border in borders if start < border < start + size])
            for at, span in enumerate(spans, first):
                found[at].append(span)
            start += size
        return [spans for spans in found if spans]

    def _cut(self, file: Path, size: int, places: Sequence[int]) -> list[Span]:
        """A file in pieces, which end at about these bytes."""
        kind = self.kind()
        if not places or kind == "imagefolder" or file.name.lower().endswith(".gz"):
            return [Span(file)]
        if kind == "parquet":
            import pyarrow.parquet as pq

            rows = pq.read_metadata(file).num_rows
            cuts = [(rows * place // size, 0) for place in places]
        elif kind == "csv":
            cuts = csv_cuts(file, self._delimiter(file), self.encoding, places)
        else:
            cuts = jsonl_cuts(file, places)
        ends = [*(at for at, _ in cuts), None]
        return [Span(file, at, end, before) for (at, before), end in zip([(0, 0), *cuts], ends, strict=True)]

    def tables(self, choose: Callable[[Columns], list[str]], spans: Sequence[Span] | None = None) -> Iterator[Table]:
        """Each file, or the one part on the hub, with the columns that `choose` wants of it.

        choose: gets the columns of a file and says which of them are read; it may raise UserError.
        spans: which runs of which files are read; None: all files, whole.
        """
        kind = self.kind()
        if kind == "hub":
            with hub_stream(self, "rows", commit(str(self.path), self.revision)) as stream:
                if stream.features is None:
                    do = "Download its files and name them by data.path."
                    raise invalid("data.path", self.path, "data on the hub that declare the types of their columns", do)
                types = {name: getattr(feature, "dtype", None) for name, feature in stream.features.items()}
                texts = [name for name, dtype in types.items() if dtype in ("string", "large_string")]
                columns = choose(Columns(list(types), texts, floating=floating(stream.features)))
                yield Table("", columns, hub_rows(stream, columns))
            return
        top = root(self.place)
        for span in self.spans() if spans is None else spans:
            columns = choose(self.columns(span.file))
            rows: Iterator[tuple[int, Row | Broken]]
            if kind == "csv":
                rows = csv_rows(span, columns, self._delimiter(span.file), self.path, self.header, self.encoding)
            else:
                rows = (jsonl_rows if kind == "jsonl" else parquet_rows)(span, columns)
            yield Table(name_below(span.file, top), columns, rows)

    def _delimiter(self, file: Path) -> str:
        is_tabs = file.name.lower().removesuffix(".gz").endswith(".tsv")
        return self.delimiter or ("\t" if is_tabs else ",")


def is_encoding(name: object) -> bool:
    try:
        return isinstance(name, str) and bool(codecs.lookup(name)._is_text_encoding)
    except LookupError:
        return False


def _unit_kind(kind: Any) -> str:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "floating numbers"
    if pa.types.is_integer(kind):
        return "whole numbers"
    return "texts" if is_text(kind) or is_bytes(kind) else str(kind)


# Files


def root(path: str) -> Path:
    """What names below `path` are relative to: the folder, the folder of the file, or the fixed head of a pattern."""
    place = Path(os.path.expanduser(path))
    if place.exists():
        return place if place.is_dir() else place.parent
    while glob.has_magic(str(place)):
        place = place.parent
    return place


def walk(path: str, kind: str, passed: Counter[str] | None = None) -> Iterator[str]:
    """The files of one kind under a file, folder or pattern, unsorted. Whether one is read depends on it alone.

    Links to folders are followed, and every folder is read once.

    path: a file, a folder or a pattern; `~` is the home folder.
    kind: a key of SUFFIXES.
    passed: counts what is passed over, by a line that says why.
    """
    place, passed = os.path.expanduser(path), Counter() if passed is None else passed
    if os.path.isfile(place):
        yield place
        return
    for name in _below(place, passed) if os.path.isdir(place) else _matching(place, passed):
        if not name.lower().endswith(SUFFIXES[kind]):
            passed[f"files passed over ({os.path.splitext(name)[1].lower() or 'no suffix'})"] += 1
        elif not os.path.isfile(name):
            passed["files passed over (they link to nothing, or are no files)"] += 1
        else:
            yield name


def _below(top: str, passed: Counter[str]) -> Iterator[str]:
    """Files below a folder. Where links make two paths to one, the one without links counts, or else the first."""
    seen: set[tuple[int, int]] = set()
    waiting, here = deque([top]), os.path.realpath(top)
    while waiting:
        for folder, folders, names in os.walk(waiting.popleft(), onerror=lambda error: passed.update([CLOSED])):
            try:
                found = os.stat(folder)
            except OSError:
                passed.update([CLOSED])
                continue
            if (found.st_dev, found.st_ino) in seen:
                passed["folders passed over (linked to twice)"] += 1
                folders[:] = []
                continue
            seen.add((found.st_dev, found.st_ino))
            hidden = [name for name in folders if name.startswith(".")]
            passed.update(["folders passed over (hidden)"] * len(hidden))
            links = [name for name in sorted(folders) if os.path.islink(os.path.join(folder, name))]
            folders[:] = sorted({*folders} - {*hidden, *links})
            for link in (os.path.join(folder, name) for name in links if name not in hidden):
                if _is_in(here, os.path.realpath(link)):
                    passed["folders passed over (they link to a folder above)"] += 1
                else:
                    waiting.append(link)
            for name in names:
                if name.startswith("."):
                    passed["files passed over (hidden)"] += 1
                else:
                    yield os.path.join(folder, name)


def _is_in(place: str, folder: str) -> bool:
    return os.path.commonpath([place, folder]) == folder


def _matching(pattern: str, passed: Counter[str]) -> Iterator[str]:
    """What matches a pattern. `**` is walked here: glob's follows links in loops, for hours."""
    if "**" not in pattern.split("/"):
        yield from (name for name in glob.iglob(pattern) if not os.path.isdir(name))
        return
    steps = pattern.split("/")
    own = [fnmatch.translate(step)[4:-3].replace(".*", "[^/]*") for step in steps]
    found = ["(?:[^/]+/)*" if step == "**" else f"{own[at]}/" for at, step in enumerate(steps[:-1])]
    matching = re.compile("".join(found) + ("[^/]+" if steps[-1] == "**" else own[-1]))
    yield from (name for name in _below(str(root(pattern)), passed) if matching.fullmatch(name))


def _content(file: Path, top: Path) -> tuple[str, int, str]:
    content, size = blake2b(digest_size=32), 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            content.update(block)
            size += len(block)
    return name_below(file, top), size, content.hexdigest()


def name_below(file: Path, top: Path) -> str:
    """The name of a file below a folder, writable as UTF-8.

    file: a file.
    top: a folder that it lies in.
    """
    return os.fsencode(file.relative_to(top)).decode("utf-8", "backslashreplace")


# The hub


def quiet_datasets() -> Any:
    """`datasets` without telemetry, without progress bars (they show the number of files) and without its log, which
    quotes values. The variables work where it is not imported yet, the attributes where it is."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"
    import datasets
    import huggingface_hub

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()  # type: ignore[attr-defined]
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def commit(name: str, revision: str | None = None) -> str:
    """The commit of a data set on the hub, so that what is read is what was fingerprinted: a name is no digest of
    content. Raises UserError where the hub does not tell it.

    name: OWNER/NAME of the data set.
    revision: a branch, tag or commit; None: the default branch.
    """
    quiet_datasets()
    return commit_of("data.path", name, revision, "dataset")


@contextlib.contextmanager
def hub_stream(source: Source, what: str, revision: str | None) -> Iterator[Any]:
    """A split of a data set on the hub as `datasets` streams it. Raises UserError where the hub cannot give it.

    source: names the data set, its subset and its split.
    what: what is looked for, "rows" say, for messages.
    revision: the commit that is read; None: the newest.
    """
    import tempfile

    datasets = quiet_datasets()
    with tempfile.TemporaryDirectory() as cache:  # lock files; streamed rows are never written
        kind = None
        try:
            stream = datasets.load_dataset(
                source.path, source.subset, split=source.split, revision=revision, streaming=True, cache_dir=cache
            )
        except Exception as error:
            kind = type(error).__name__
        if kind is not None:
            which = f"data.subset={source.subset or 'null'}, data.split={source.split}"
            raise invalid("data.path", source.path, f"{what} on the hub with {which} ({kind})")
        yield stream


def hub_rows(stream: Any, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Rows, each with its number, from 1 on.

    stream: as `datasets` streams a split.
    columns: those that a row has in the end.
    """
    names = class_names(stream.features)
    for number, example in enumerate(stream.select_columns(list(columns)), 1):
        yield number, {column: as_text(example[column], names.get(column)) for column in columns}


def floating(features: Mapping[str, Any]) -> list[str]:
    """Columns of floating numbers, from the features of a data set."""
    kinds = {name: str(getattr(feature, "dtype", "")) for name, feature in features.items()}
    return [name for name, kind in kinds.items() if kind.startswith(("float", "double", "decimal"))]


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of class labels, from the features of a data set."""
    return {name: feature.names for name, feature in features.items() if hasattr(feature, "names")}
