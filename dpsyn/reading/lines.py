"""Files of lines, csv and jsonl: their rows, and where they may be cut between two of them."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import mmap
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dpsyn.errors import invalid
from dpsyn.reading.rows import LINE, NESTED, Broken, Row, Span, excerpt, is_utf8

BOM = b"\xef\xbb\xbf"
SNIFFED = 2**16  # bytes of a file from which its delimiter is guessed
DELIMITERS = (",", ";", "\t", "|")
WIDE: Mapping[str, Sequence[Sequence[int | None]]] = {  # how files of more bytes a letter begin; None: any but zero
    "utf-32": ((0xFF, 0xFE, 0, 0), (0, 0, 0xFE, 0xFF)),
    "utf-32-le": ((None, 0, 0, 0),),
    "utf-32-be": ((0, 0, 0, None),),
    "utf-16": ((0xFF, 0xFE), (0xFE, 0xFF)),
    "utf-16-le": ((None, 0, None, 0),),
    "utf-16-be": ((0, None, 0, None),),
}
BYTEWISE = ("utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1252")  # no byte of a sign is one of the csv's own signs
CELLS = "more or fewer cells than the first line has names"
NO_OBJECT = "not a JSON object"


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


def encoding_of_names(file: Path) -> str | None:
    """Of a csv, as far as its first line tells, which names the columns: as `encoding_of` says; None where that line is
    of plain ASCII, as it is in most encodings. No row is looked at."""
    with opened(file) as stream:
        head = stream.read(8)
        for encoding, marks in WIDE.items():
            if any(_looks(head, mark) for mark in marks):
                return encoding
        names = b"".join((head + stream.readline(2**20)).splitlines()[:1])
    if names.isascii():
        return None
    try:
        names.decode()
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


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


def jsonl_names(file: Path, lines: int) -> tuple[list[str], list[str]]:
    """The keys of the first lines of a jsonl file, in the order in which they come up: those of texts and numbers, and
    those that hold a list or an object somewhere. Lines that are no objects are passed over.

    file: a jsonl.
    lines: how many are looked at.
    """
    names: dict[str, bool] = {}
    with opened(file) as stream:
        for line in itertools.islice(stream, lines):
            try:
                found = json.loads(line.decode("utf-8", "surrogateescape"))
            except (ValueError, RecursionError):
                continue
            for name, value in found.items() if isinstance(found, dict) else ():
                names[name] = names.get(name, False) or isinstance(value, list | dict)
    return [name for name, nested in names.items() if not nested], [name for name, nested in names.items() if nested]


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
