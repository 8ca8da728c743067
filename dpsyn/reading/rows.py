"""Rows of csv, jsonl and parquet files, each read as a map of one row, and what is made of their cells: labels."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import mmap
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from dpsyn.errors import UserError, invalid
from dpsyn.population import Label
from dpsyn.reading.spelling import canonical
from dpsyn.validate import choice, name_or_null, number, whole

T = TypeVar("T")

Row = Mapping[str, str | None]
"""Column to cell; None for a missing one. Bytes that are no UTF-8 are lone surrogates, see `is_utf8`."""

BOM = b"\xef\xbb\xbf"
SNIFFED = 2**16  # bytes of a file from which its delimiter is guessed
DELIMITERS = (",", ";", "\t", "|")
GROUPING = (".", ",", " ", "'", "\u2019", "\u00a0", "\u202f")  # signs between groups of three digits
WIDE: Mapping[str, Sequence[Sequence[int | None]]] = {  # how files of more bytes a letter begin; None: any but zero
    "utf-32": ((0xFF, 0xFE, 0, 0), (0, 0, 0xFE, 0xFF)),
    "utf-32-le": ((None, 0, 0, 0),),
    "utf-32-be": ((0, 0, 0, None),),
    "utf-16": ((0xFF, 0xFE), (0xFE, 0xFF)),
    "utf-16-le": ((None, 0, None, 0),),
    "utf-16-be": ((0, None, 0, None),),
}

BYTEWISE = ("utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1252")  # no byte of a sign is one of the csv's own signs

UNDECLARED = "not among the declared values"
CELLS = "more or fewer cells than the first line has names"
NO_OBJECT = "not a JSON object"
NOT_UTF8 = "not UTF-8 (of Latin-1 or Windows files say data.encoding=cp1252)"
NESTED = "a list or an object where a single value belongs"
POINTED = re.compile(r"\s*[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?\s*")  # a number, to Python
LINE = "(line)"  # the column of what is wrong with a whole line


@dataclass(frozen=True)
class Broken:
    """Stands for a row that cannot be used. `value` is private; `column` and `rule` may be shown."""

    column: str
    rule: str
    value: str


@dataclass(frozen=True)
class Columns:
    """The columns of a file; their names are public.

    names: None where every line brings its own (jsonl).
    texts: those of strings, or of bytes that can be.
    listed: whether a message may list the names; the first line of a csv without a head is a private row.
    floating: those of floating numbers.
    """

    names: Sequence[str] | None
    texts: Sequence[str]
    listed: bool = True
    floating: Sequence[str] = ()

    def check(self, asked: Mapping[str, str]) -> None:
        """asked: setting to column. Raises UserError for one that is not there."""
        for key, column in asked.items():
            if self.names is not None and column not in self.names:
                if self.listed:
                    do = spelled_otherwise(column, self.names)
                    raise invalid(key, column, f"one of the columns ({', '.join(self.names)})", do)
                do = "Does it name them, and are they parted by data.delimiter?"
                raise invalid(key, column, "one of the columns that the first line of the csv file names", do)

    def check_unit(self, column: str | None) -> None:
        """Raises UserError for ids of users that are floating numbers."""
        if column in self.floating:
            raise bad_unit(str(column), "floating numbers")


def bad_unit(column: str, found: str) -> UserError:
    """The error of ids whose type differs between files, or that are floats.

    column: the unit column, as its setting names it.
    found: of which types the ids are.
    """
    do = "pandas turns whole numbers into floats where one is missing: write them as Int64, or as texts."
    what = f"ids that are whole numbers, or texts, in all files alike (here: {found})"
    return invalid("data.unit_column", column, what, do)


def spelled_otherwise(name: str, names: Sequence[str]) -> str:
    """A line about the one of `names` that differs by no more than white space, capitals or its Unicode form.

    name: a column that is looked for and not there.
    names: the columns that are there.
    """
    same = next((other for other in names if canonical(other).casefold() == canonical(name).casefold()), None)
    return "" if same is None else f"The file spells it {same!r}: white space, capitals or the Unicode form differ."


# Formats


@dataclass(frozen=True)
class Span:
    """Some rows of a local file, from `start` up to `stop`: bytes of csv and jsonl, rows of parquet. None: to its end.

    before: how many lines of csv and jsonl stand before it.
    """

    file: Path
    start: int = 0
    stop: int | None = None
    before: int = 0


class _Some(io.RawIOBase):
    """Some bytes of a file."""

    def __init__(self, span: Span) -> None:
        self._file, self._left = span.file.open("rb", buffering=0), (span.stop or 0) - span.start
        self._file.seek(span.start)

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        read = self._file.readinto(memoryview(into)[: max(0, self._left)]) or 0
        self._left -= read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()


def opened(file: Path, span: Span | None = None) -> BinaryIO:
    """The bytes of a file, unpacked where its name ends in .gz, after the mark that some programs put at the head of
    UTF-8.

    file: any file; its name alone says whether it is packed.
    span: bytes `start` to `stop` of it, which is not packed then; None: all.
    """
    if span is not None and span.stop is not None:
        part = io.BufferedReader(_Some(span), 2**16)
        if span.start == 0 and part.peek(len(BOM)).startswith(BOM):
            part.read(len(BOM))
        return part
    if span is not None and span.start:
        rest = file.open("rb")
        rest.seek(span.start)
        return rest
    is_packed = file.name.lower().endswith(".gz")
    stream: Any = gzip.GzipFile(file, "rb") if is_packed else file.open("rb")
    if stream.read(len(BOM)) != BOM:
        stream.seek(0)
    found: BinaryIO = stream
    return found


def encoding_of(file: Path) -> str:
    """What the bytes of a file are: 'utf-8', 'utf-16', 'utf-32', or else 'cp1252', in which Western European files come
    (where it has no such characters, 'latin-1'). Reads all of it, as the first letter with an accent may come late."""
    with opened(file) as stream:
        head = stream.read(8)
        for encoding, marks in WIDE.items():
            if any(_looks(head, mark) for mark in marks):
                return encoding
        fits = {name: codecs.getincrementaldecoder(name)() for name in ("utf-8", "cp1252")}
        while block := head + stream.read(SNIFFED):
            head = b""
            for name, decoder in list(fits.items()):
                try:
                    decoder.decode(block)
                except UnicodeDecodeError:
                    del fits[name]
    return next(iter(fits), "latin-1")


def _looks(head: bytes, mark: Sequence[int | None]) -> bool:
    """Whether bytes begin as a mark says: None for any but zero."""
    return len(head) >= len(mark) and all(
        byte == wanted if wanted is not None else byte for byte, wanted in zip(head, mark, strict=False)
    )


def delimiter_of(file: Path, encoding: str) -> str:
    """What parts the cells of a csv: by which its first lines have the same number of cells, more than one.

    file: a csv.
    encoding: of its text, as Python names it; what cannot be decoded is passed over.
    """
    with opened(file) as stream:
        head = stream.read(SNIFFED).decode(encoding, "replace")
    lines = head.splitlines()[:50]
    lines = lines[:-1] if len(lines) > 1 and not head.endswith("\n") and len(lines) < 50 else lines
    best, most = ",", 1
    for sign in DELIMITERS:
        try:
            counts = [len(cells) for cells in csv.reader(lines, delimiter=sign) if cells]
        except csv.Error:
            continue
        # the first line names the columns: in it a decimal comma parts nothing
        if counts and counts[0] > most and counts.count(counts[0]) >= 0.9 * len(counts):
            best, most = sign, counts[0]
    return best


def csv_names(file: Path, delimiter: str, path: str | None, encoding: str = "utf-8") -> list[str]:
    """The first line. Raises UserError where it is none, or gives two columns one name; some may have none.

    file: a csv.
    delimiter: one sign.
    path: `data.path`, for messages.
    encoding: of its text, as Python names it.
    """
    names: list[str] | None = None
    try:
        with _csv(file, delimiter, encoding) as lines:
            names = next(lines, [])
    except (csv.Error, OSError, EOFError, UnicodeError):
        pass
    if names:
        names[0] = names[0].removeprefix("\ufeff")
    if names is None or not all(map(is_utf8, names)) or any("\0" in name for name in names):
        with contextlib.suppress(OSError, EOFError):
            if not _same_encoding(looks := encoding_of(file), encoding):
                do = f"It looks like {looks.upper()}: say data.encoding={looks}, or write it as UTF-8."
                raise invalid("data.path", path, f"csv in {encoding.upper()}", do)
    if names is None or not any(names) or not all(map(is_utf8, names)):
        raise invalid("data.path", path, f"csv in {encoding.upper()} whose first line names the columns")
    if len(set(filter(None, names))) < len(list(filter(None, names))):
        raise invalid("data.path", path, "csv whose first line gives every column a name of its own")
    return names


def csv_rows(
    span: Span,
    columns: Sequence[str],
    delimiter: str,
    path: str | None,
    header: Sequence[str] | None = None,
    encoding: str = "utf-8",
) -> Iterator[tuple[int, Row | Broken]]:
    """Rows, each with the number of its first line, from 1 on; blank lines are left out.

    span: the file, and which bytes of it; they begin where a row begins.
    columns: those that a row has in the end, which are all among the names.
    delimiter: one sign.
    path: `data.path`, for messages.
    header: names of the columns, where the first line is a row like the others; None: the first line has them.
    encoding: of its text, as Python names it.

    Raises UserError for quotes that do not match: what follows has no known rows.
    """
    names = csv_names(span.file, delimiter, path, encoding) if header is None else header
    places, width = [(column, names.index(column)) for column in columns], len(names)
    try:
        with _csv(span.file, delimiter, encoding, span) as lines:
            if header is None and not span.start:
                next(lines)
            first = span.before + lines.line_num + 1
            for cells in lines:
                if len(cells) == width:
                    yield first, {column: cells[place] for column, place in places}
                elif cells:
                    yield first, Broken(LINE, CELLS, excerpt(delimiter.join(cells)))
                first = span.before + lines.line_num + 1
            return
    except csv.Error:
        pass
    raise invalid("data.path", path, 'csv whose quotes match ("" for one inside a quoted cell)')


def _same_encoding(one: str, two: str) -> bool:
    return codecs.lookup(one).name == codecs.lookup(two).name


def csv_cuts(file: Path, delimiter: str, encoding: str, wanted: Sequence[int]) -> list[tuple[int, int]]:
    """For each of the bytes `wanted`, rising, the first place at or after it where a row of a csv begins, and how many
    lines stand before that. None in an encoding in which a byte of a sign may be one of another.

    file: a csv that is not packed.
    delimiter: one sign.
    encoding: of its text, as Python names it.
    wanted: positions in the file, rising.
    """
    if codecs.lookup(encoding).name not in BYTEWISE:
        return []
    sign, cuts, at, counted, lines = delimiter.encode(encoding), [], 0, 0, 0
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = len(BOM) if content[: len(BOM)] == BOM else 0
        for place in wanted:
            at = _row_end(content, sign, start, at, place)
            while counted < at:
                block = content[counted : min(at, counted + 2**24)]
                lines += block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")
                lines -= counted > 0 and block[:1] == b"\n" and content[counted - 1 : counted] == b"\r"
                counted += len(block)
            cuts.append((at, lines))
    return cuts


def _row_end(content: mmap.mmap, sign: bytes, start: int, at: int, place: int) -> int:
    """Where a row ends at or after `place`. at: a place before it that is in no quotes, as a csv reader sees them: a
    quote opens a cell at its beginning alone, and two of them in one are a sign."""
    end = -1
    while True:
        if end < max(at, place) and (end := content.find(b"\n", max(at, place))) < 0:
            end = len(content)
        quote = content.find(b'"', at, end)
        if quote < 0:
            return min(end + 1, len(content))
        at = quote + 1
        if quote == start or content[quote - 1 : quote] in (b"\n", b"\r") or content[quote - len(sign) : quote] == sign:
            while (quote := content.find(b'"', at)) >= 0 and content[quote + 1 : quote + 2] == b'"':
                at = quote + 2
            if quote < 0:
                return len(content)
            at = quote + 1


def jsonl_cuts(file: Path, wanted: Sequence[int]) -> list[tuple[int, int]]:
    """As `csv_cuts`, of a jsonl file, where every line is a row.

    file: a jsonl that is not packed.
    wanted: positions in the file, rising.
    """
    cuts, at, counted, lines = [], 0, 0, 0
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for place in wanted:
            at = content.find(b"\n", max(at, place)) + 1 or len(content)
            while counted < at:
                block = content[counted : min(at, counted + 2**24)]
                lines += block.count(b"\n")
                counted += len(block)
            cuts.append((at, lines))
    return cuts


def check_jsonl(file: Path, path: str | None) -> None:
    """Raises UserError for lines in UTF-16 or UTF-32, none of which could be read.

    file: a jsonl.
    path: `data.path`, for messages.
    """
    with opened(file) as stream:
        head = stream.read(4)
    if any(_looks(head, mark) for marks in WIDE.values() for mark in marks):
        raise invalid("data.path", path, "jsonl in UTF-8", f"It looks like {encoding_of(file).upper()}.")


@contextlib.contextmanager
def _csv(file: Path, delimiter: str, encoding: str, span: Span | None = None) -> Iterator[Any]:
    """A reader of the csv module."""
    csv.field_size_limit(sys.maxsize)
    with io.TextIOWrapper(opened(file, span), encoding, "surrogateescape", newline="") as stream:
        yield csv.reader(stream, delimiter=delimiter, strict=True)


def jsonl_rows(span: Span, columns: Sequence[str]) -> Iterator[tuple[int, Row | Broken]]:
    """Rows, each with the number of its line, from 1 on. Numbers keep the text they are written as; a key that is not
    there is a missing cell. No row is a blank line.

    span: the file, and which bytes of it; they begin where a line begins.
    columns: the keys that a row has in the end.
    """
    decode = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str).decode
    with opened(span.file, span) as stream:
        for number, line in enumerate(stream, span.before + 1):
            text = line.decode("utf-8", "surrogateescape")
            if text.isspace():
                continue
            try:
                found = decode(text)
            except (ValueError, RecursionError):
                found = None
            if not isinstance(found, dict):
                yield number, Broken(LINE, NO_OBJECT, excerpt(text))
                continue
            row: dict[str, Any] = {column: found.get(column) for column in columns}
            for column, value in row.items():
                if isinstance(value, bool):
                    row[column] = "true" if value else "false"
                elif value is not None and not isinstance(value, str):
                    yield number, Broken(column, NESTED, excerpt(text))
                    break
            else:
                yield number, row


def parquet_schema(file: Path, path: str | None) -> Any:
    """Arrow's. Raises UserError for what is no parquet, or names a column twice.

    file: a parquet.
    path: `data.path`, for messages.
    """
    import pyarrow.parquet as pq

    broken = False
    try:
        schema = pq.read_schema(file)
    except Exception:
        broken = True
    if broken:
        raise invalid("data.path", path, "parquet files that can be read")
    if len(set(schema.names)) < len(schema.names):
        raise invalid("data.path", path, "parquet files that name every column once")
    return schema


def parquet_rows(span: Span, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Rows, each with its number in the file, from 1 on.

    span: the file, and which rows of it.
    columns: those that a row has in the end, which are all in the file.
    """
    numbers = itertools.count(span.start + 1)
    for batch, cells in parquet_batches(span, columns, 512):
        lists = [cells(batch.column(column), column) for column in columns]
        for values in zip(*lists, strict=True):
            yield next(numbers), dict(zip(columns, values, strict=True))


def parquet_batches(
    span: Span, columns: Sequence[str], size: int
) -> Iterator[tuple[Any, Callable[[Any, str], list[str | None]]]]:
    """Arrow's batches, and what turns one of their columns into cells.

    span: the file, and which rows of it.
    columns: those that are read.
    size: rows of a batch at most; memory is bounded by it and by the pages of the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # With either left at its default, Arrow holds a row group: 991 MiB for one of 751, against 433 (its pages).
    with pq.ParquetFile(span.file, buffer_size=1 << 20, pre_buffer=False) as reader:
        names = _class_names(reader.schema_arrow.metadata)

        def cells(array: Any, column: str) -> list[str | None]:
            if pa.types.is_dictionary(array.type):
                array = array.dictionary_decode()
            if is_text(array.type):
                array = array.cast(pa.large_binary())  # text that is no UTF-8 is then one bad row, not an error
            # Python's times have no nanoseconds: pyarrow refuses some and leaves others to pandas
            elif pa.types.is_timestamp(array.type) and array.type.unit == "ns":
                array = array.cast(pa.timestamp("us", array.type.tz), safe=False)
            elif array.type == pa.time64("ns"):
                array = array.cast(pa.time64("us"), safe=False)
            return [as_text(value, names.get(column)) for value in array.to_pylist()]

        stop = reader.metadata.num_rows if span.stop is None else span.stop
        ends = list(itertools.accumulate(reader.metadata.row_group(i).num_rows for i in range(reader.num_row_groups)))
        groups = [i for i, end in enumerate(ends) if end > span.start and (ends[i - 1] if i else 0) < stop]
        at = ends[groups[0] - 1] if groups and groups[0] else 0
        # without Arrow's threads: see dpsyn/runs/storage.py
        for batch in reader.iter_batches(size, groups, columns=list(columns), use_threads=False):
            first, last = max(0, span.start - at), min(batch.num_rows, stop - at)
            at += batch.num_rows
            if first < last:
                yield batch.slice(first, last - first), cells


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is one of texts."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: Any) -> bool:
    """Whether an Arrow type is one of bytes."""
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Names of class labels, from what `datasets` writes into the schema of a parquet file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {c: list(f["names"]) for c, f in features.items() if isinstance(f, dict) and "names" in f}
    except (KeyError, TypeError, ValueError):
        return {}


# Cells and labels


def as_text(value: Any, names: Sequence[str] | None = None) -> str | None:
    """One cell as a string; None for a missing one. A class is its name, and one without a name is None.

    value: as a library gives it: None, text, bytes, a number, or the index of a class.
    names: of the classes, where the column holds indices of them; None: it does not.
    """
    if names is not None:
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value)


def plain_number(cell: str | None, decimal: str, thousands: str | None) -> str | None:
    """A number as Python writes it, 1.234,5 as 1234.5. What is no number in this way of writing stays as it is, but for
    a point that would be read as a decimal one: that cell is no number, and begins with a question mark.

    cell: as it stands in the file; None for a missing one.
    decimal: the sign before the fraction.
    thousands: the sign between groups of three digits; None: there is none.

    >>> plain_number("1.234,5", ",", "."), plain_number("1.2", ",", "."), plain_number("n.a.", ",", ".")
    ('1234.5', '?1.2', 'n.a.')
    """
    if cell is None:
        return None
    group = re.escape(thousands) if thousands else "(?!)"
    form = rf"\s*[+-]?(\d{{1,3}}({group}\d{{3}})+|\d+)?({re.escape(decimal)}\d*)?([eE][+-]?\d+)?\s*"
    if re.fullmatch(form, cell):
        return (cell.replace(thousands, "") if thousands else cell).replace(decimal, ".")
    return f"?{cell}" if decimal != "." and POINTED.fullmatch(cell) else cell


def is_utf8(text: str) -> bool:
    """Whether it was read from UTF-8, and can be written as it."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def excerpt(value: str | None) -> str:
    """A value for private/refused.jsonl: bounded, and writable as UTF-8."""
    return (value or "")[:200].encode("utf-8", "backslashreplace").decode("utf-8")


def combinations(labels: Any) -> tuple[Label, ...]:
    """{column: values} -> all combinations, in order; what is already a tuple of labels stays."""
    if isinstance(labels, tuple):
        return labels
    if labels is None:
        return ({},)
    if not isinstance(labels, Mapping):
        raise invalid("data.labels", labels, "columns with their values, {digit: ['0', '1']}")
    columns: dict[str, list[str]] = {}
    for column, values in labels.items():
        key = f"data.labels.{column}"
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise invalid(key, values, "a list with at least one value")
        for value in values:
            if type(value) not in (str, int):
                raise invalid(key, value, "strings", "Put it in quotes.")
        columns[str(column)] = [str(value) for value in values]
        if len({canonical(value) for value in columns[str(column)]}) < len(values):
            raise invalid(key, list(values), "every value once")
    return tuple(dict(zip(columns, values, strict=True)) for values in itertools.product(*columns.values()))


def label_sources(labels: Sequence[Label], columns: Mapping[str, str]) -> dict[str, str]:
    """Label column to the source column it is read from. Raises UserError for `columns` that are not declared.

    labels: as declared, each with the same label columns.
    columns: source columns by label column; one that is not here has its own name in the file.
    """
    for column in columns:
        if column not in labels[0]:
            raise invalid("data.label_columns", column, "columns that data.labels declares")
    return {column: columns.get(column, column) for column in labels[0]}


def labeller(
    labels: Sequence[Label], sources: Mapping[str, str], values: Mapping[str, Mapping[str, str]] | None = None
) -> Callable[[Row], int | Broken]:
    """Row -> the index of its label, or what is wrong with it.

    labels: as declared, each with the same label columns.
    sources: source column of each label column, as `label_sources` gives them.
    values: by label column, the declared value that each of these other values stands for.
    """
    meant = {column: {label[column]: label[column] for label in labels} for column in sources}
    for column, others in (values or {}).items():
        meant[column] |= {value: declared for value, declared in others.items() if declared in meant[column]}
    for known in meant.values():  # as it is written first, and then all other spellings of it
        known |= {canonical(value): known[value] for value in reversed(known) if canonical(value) not in known}
    indices = {tuple(label[column] for column in sources): index for index, label in enumerate(labels)}
    pairs = [(source, meant[column]) for column, source in sources.items()]

    def label_of(row: Row) -> int | Broken:
        index = indices.get(tuple(known.get(row[source]) for source, known in pairs))  # type: ignore[arg-type, misc]
        if index is not None:
            return index
        found = tuple(known.get(canonical(row[source] or "")) for source, known in pairs)
        if None not in found:
            return indices[found]  # type: ignore[index]
        wrong = next(source for (source, _), value in zip(pairs, found, strict=True) if value is None)
        return Broken(wrong, UNDECLARED, excerpt(row[wrong]))

    return label_of


def check_declared(
    id: str | None, records: int | None, on_error: str, max_refused: float = 0.0, max_adjusted: float = 0.0
) -> None:
    """Raises UserError for a wrong setting of these.

    id: `data.id`, a name for the account, or null.
    records: `data.records`, the declared number of records, or null.
    on_error: `data.on_error`.
    max_refused: share of the rows that may be refused, 0 to 1.
    max_adjusted: share of a column's cells that may be adjusted, 0 to 1.
    """
    name_or_null("data.id", id, "a name, or null")
    whole("data.records", records, 1, optional=True)
    choice("data.on_error", on_error, ("refuse", "skip"))
    number("data.max_refused", max_refused, "a share between 0 and 1", least=0, most=1)
    number("data.max_adjusted", max_adjusted, "a share between 0 and 1", least=0, most=1)


def guarded(rows: Iterator[T], path: str | None) -> Iterator[T]:
    """The same rows. An exception of a library may quote a private row, so none goes on, nor is chained to ours.

    rows: of a library, which may raise anything.
    path: `data.path`, for messages.
    """
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except UserError:
            raise
        except Exception as error:
            kind = type(error).__name__
        else:
            yield row
            continue
        raise invalid("data.path", path, f"data that can be read to its end ({kind})")
