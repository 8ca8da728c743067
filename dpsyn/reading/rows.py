"""A row as all readers give it, its cells, and the rows of parquet files. Those of csv and jsonl are in `lines`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dpsyn.errors import UserError, invalid
from dpsyn.reading.spelling import canonical

T = TypeVar("T")

Row = Mapping[str, str | None]
"""Column to cell; None for a missing one. Bytes that are no UTF-8 are lone surrogates, see `is_utf8`."""

GROUPING = (".", ",", " ", "'", "\u2019", "\u00a0", "\u202f")  # signs between groups of three digits


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


@dataclass(frozen=True)
class Span:
    """Some rows of a local file, from `start` up to `stop`: bytes of csv and jsonl, rows of parquet. None: to its end.

    before: how many lines of csv and jsonl stand before it.
    """

    file: Path
    start: int = 0
    stop: int | None = None
    before: int = 0


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
