"""Rows of tables from csv, jsonl and parquet files and the Hugging Face hub, typed by a declared schema."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dpsyn.data import Batches, Records, Refusal
from dpsyn.errors import did_you_mean, invalid, one_of
from dpsyn.marks import PLACE
from dpsyn.population import Label, Samples
from dpsyn.reading.labels import check_declared
from dpsyn.reading.lines import DELIMITERS
from dpsyn.reading.rows import (
    GROUPING,
    NOT_UTF8,
    Broken,
    Columns,
    Row,
    Span,
    excerpt,
    guarded,
    is_utf8,
    plain_number,
    spelled_otherwise,
)
from dpsyn.reading.sources import Source
from dpsyn.reading.spelling import LOST_DIGITS, Users, has_lost_digits, unit_of
from dpsyn.tables.columns import FINE, REFUSED, RULES, ReadCells
from dpsyn.tables.schema import Schema, check_schema, told

KINDS = ("csv", "jsonl", "parquet")
HEADLESS = "Name the columns by data.header=[...] where it is a row."


@dataclass(frozen=True)
class Tables:
    """Table rows, structured [n], a field a column of `schema`: from a name on the hub, or local files.

    path, builder, subset, split, revision, delimiter, encoding: as in `dpsyn.data.texts.Texts`.
    header: true where the first line of a csv names the columns, or their names where it is a row like the others.
    decimal, thousands: how numbers are written: the sign before decimals, and the one between groups of three digits.
    schema: the columns that are read, what their cells mean, and the labels.
    id, records, on_error, unit_column, max_refused, max_adjusted: as in `dpsyn.data.Data`; without a unit_column the
        unit of the schema, if it has one. An empty or missing unit is -1.

    The columns of a jsonl file are those of each line: one that is not there is a missing cell, others are left out.
    A row with a cell that the schema refuses is refused, as is a line of another number of cells than there are
    columns, or one that is no JSON object.
    """

    path: str | None = field(metadata=PLACE)
    schema: Schema
    builder: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"
    header: bool | Sequence[str] = True
    decimal: str = "."
    thousands: str | None = None
    id: str | None = None
    records: int | None = None
    on_error: str = "refuse"
    unit_column: str | None = None
    max_refused: float = 0.01
    max_adjusted: float = 0.05

    def __post_init__(self) -> None:
        check_schema("data.schema", self.schema)
        names = self.header
        if names is not True:
            if isinstance(names, bool | str) or not isinstance(names, Sequence) or not names:
                raise invalid("data.header", names, "true, or the names of the columns where the first line has none")
            if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
                raise invalid("data.header", list(names), "a name of its own for every column")
        if self.decimal not in (".", ","):
            raise invalid("data.decimal", repr(self.decimal), "'.' or ','")
        if self.thousands not in (None, *GROUPING) or self.thousands == self.decimal:
            raise invalid(
                "data.thousands", repr(self.thousands), f"null, or {one_of(map(repr, GROUPING))}, not data.decimal"
            )
        self._source.check_settings()
        check_declared(self.id, self.records, self.on_error, self.max_refused, self.max_adjusted)
        if self.unit_column in self.schema.names:
            do = "Units are nowhere in the synthetic rows."
            raise invalid("data.unit_column", self.unit_column, "a column that the schema does not name", do)
        if self.unit_column is None:
            object.__setattr__(self, "unit_column", self.schema.unit)

    @property
    def labels(self) -> Sequence[Label]:
        return self.schema.labels

    @functools.cached_property
    def _source(self) -> Source:
        header = None if self.header is True else tuple(self.header)  # type: ignore[arg-type]
        written = (self.delimiter, header, self.encoding)
        return Source(self.path, self.builder, KINDS, self.subset, self.split, *written, self.revision)

    def check(self) -> None:
        """Raises UserError for a missing path or package, and where file and schema disagree, without reading a row.

        The hub is not asked before `batches`; the columns of jsonl are those of each line.
        """
        first = self._source.check()
        if first is not None:
            self._chosen(self._source.columns(first))
            if self.unit_column is not None:
                self._source.check_unit(self.unit_column)

    @property
    def place(self) -> str | None:
        return self.path

    def digests(self) -> set[str]:
        """A digest of the content of each local file; of a data set on the hub, its fingerprint."""
        return self._source.digests()

    def fingerprint(self) -> str:
        """Of names, sizes and content of local files; of the name and the commit of a data set on the hub."""
        return self._source.fingerprint()

    def parts(self, n: int, least: int = 1) -> Sequence[Batches]:
        return [functools.partial(self.batches, spans=spans or None) for spans in self._source.shares(n, least)]

    def batches(self, size: int, spans: Sequence[Span] | None = None) -> Iterator[Records]:
        """The rows that can be read, batch by batch. Raises UserError for files that cannot be read and missing
        columns.

        size: lines of a batch; it has fewer rows where some were refused.
        spans: which runs of which files are read; None: all.
        """
        rows = enumerate(guarded(self._rows(spans), self.path))
        users, known = Users(), self.schema.cells_read()
        while some := list(itertools.islice(rows, size)):
            yield self._records(some, users, known)

    def _records(
        self,
        rows: Sequence[tuple[int, tuple[str, int, Row | Broken]]],
        users: Users,
        known: Mapping[str, ReadCells],
    ) -> Records:
        """known: the cells that were read, to which new ones are added."""
        refused: list[Refusal] = []
        whole: list[Row] = []
        places = []
        for number, (file, line, found) in rows:
            if isinstance(found, Broken):
                refused.append(Refusal(number, found.column, found.rule, found.value, file, line))
            else:
                whole.append(found)
                places.append((number, file, line))

        def refuse(row: int, column: str, rule: str) -> None:
            number, file, line = places[row]
            refused.append(Refusal(number, column, rule, excerpt(whole[row][column]), file, line))

        cells = {name: [row[name] for row in whole] for name in self.schema.fields}
        if (self.decimal, self.thousands) != (".", None):
            for name, column in self.schema.columns.items():
                if column.kind in ("integer", "number") and name in cells:
                    cells[name] = [cell if column.is_missing(cell) else self._plain(cell) for cell in cells[name]]
        content, rules = self.schema.read(cells, known)
        good = np.all(rules < REFUSED, axis=1)
        names = list(self.schema.fields)
        for row in np.flatnonzero(~good).tolist():
            at = int(np.argmax(rules[row]))
            cell = cells[names[at]][row]
            refuse(row, names[at], RULES[rules[row, at]] if cell is None or is_utf8(cell) else NOT_UTF8)
        # a column of ids in which one is missing is one of numbers to pandas, which then writes 7 as 7,0
        units, named = None, [self._id(row.get(str(self.unit_column))) for row in whole]
        for row in np.flatnonzero(good & np.fromiter(map(has_lost_digits, named), bool, len(named))).tolist():
            good[row] = False
            refuse(row, str(self.unit_column), LOST_DIGITS)
        adjusted = {}
        for at, each in enumerate(self.schema.fields.values()):
            for rule, count in enumerate(np.bincount(rules[good, at], minlength=REFUSED)[:REFUSED]):
                if rule != FINE and count:
                    adjusted[told(each, rule)] = int(count)
        content = content[good]
        if self.unit_column is not None and all(self.unit_column in row for row in whole):
            voting = (unit_of(user) for user, fits in zip(named, good, strict=True) if fits)
            units = np.array([users.number(unit) for unit in voting], np.int64)
        refused.sort(key=lambda refusal: refusal.row)
        samples, labels = Samples(content, forms=self.schema.forms), self.schema.labels_of(content)
        return Records(samples, labels, units, tuple(refused), adjusted, users=users.met())

    def _plain(self, cell: str | None) -> str | None:
        return plain_number(cell, self.decimal, self.thousands) if self.decimal != "." or self.thousands else cell

    def _id(self, cell: str | None) -> str | None:
        """A number in the data's own way of writing as a plain one. Any other stays as it is, 7.0 among 7,0 too: a user
        must not become two."""
        plain = self._plain(cell)
        return cell if plain is not None and plain.startswith("?") else plain

    def _rows(self, spans: Sequence[Span] | None) -> Iterator[tuple[str, int, Row | Broken]]:
        """Rows, each with its file and its line."""
        for table in self._source.tables(self._chosen, spans):
            for line, row in table.rows:
                yield table.name, line, row

    def _chosen(self, there: Columns) -> list[str]:
        """What is read. Raises UserError where the file lacks a column of the schema, or has others.

        The first line of a csv may be a private row, so its cells are not told before it names most of the columns.
        """
        wanted = list(self.schema.fields)
        units = [self.unit_column] if self.unit_column is not None else []
        there.check_unit(self.unit_column)
        if there.names is None:
            return [*wanted, *units]
        declared = self.schema.names
        lacking = [name for name in declared if name not in there.names]
        others = [name for name in there.names if name not in (*declared, *units)]
        if not there.listed and 2 * len(lacking) > len(declared):
            sign = next((sign for sign in DELIMITERS if any(sign in name for name in there.names)), None)
            do = f"Its cells seem to be parted by {sign!r}: say data.delimiter={sign!r}." if sign else HEADLESS
            raise invalid("data.path", self.path, "csv whose first line names the columns of the schema", do)
        if lacking:
            do = spelled_otherwise(lacking[0], others) or did_you_mean(lacking[0], others)
            do = do or f"The file has {', '.join(there.names)}."
            raise invalid("data.schema.columns", lacking[0], "columns of the file", do)
        if units and units[0] not in there.names:
            if units[0] != self.schema.unit:
                do = spelled_otherwise(units[0], there.names) or did_you_mean(units[0], there.names)
                raise invalid("data.unit_column", units[0], f"a column of the file ({', '.join(there.names)})", do)
            units = []  # public rows, or held out ones, may come without
        if others and self.schema.extra == "refuse":
            do = "Declare it, or say extra: ignore in the schema."
            raise invalid(
                "data.schema.columns", "...", f"every column of the file; '{others[0]}' is not among them", do
            )
        return [*wanted, *units]
