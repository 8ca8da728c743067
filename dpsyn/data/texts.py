"""Texts from csv, jsonl and parquet files and the Hugging Face hub."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpsyn.data import Batches, Records, Refusal
from dpsyn.errors import invalid
from dpsyn.marks import PLACE
from dpsyn.population import Modality, Samples
from dpsyn.reading.labels import check_declared, combinations, label_sources, labeller
from dpsyn.reading.rows import NOT_UTF8, Broken, Columns, Row, Span, excerpt, guarded, is_utf8
from dpsyn.reading.sources import Source
from dpsyn.reading.spelling import LOST_DIGITS, Users, canonical, has_lost_digits, unit_of
from dpsyn.validate import whole

KINDS = ("csv", "jsonl", "parquet")
EMPTY = "no text"
LONG = "more words than data.max_words"


@dataclass(frozen=True)
class Texts:
    """Texts, object of str [n]: from a name on the hub, or local csv, jsonl or parquet files.

    path: a name on the hub, or a local file, folder or glob pattern.
    builder: 'csv', 'jsonl', 'parquet', or None: by the names of the files. Cells of csv and jsonl are strings as they
        are written: "5.0" is not "5". A csv is UTF-8, its first line names the columns, its quotes are doubled inside
        quotes; a quoted cell may have several lines. Raises UserError for one whose quotes do not match.
    subset, split: which part of a data set on the hub. Of local files, a split other than 'train' is what stands in the
        place of 'train' in the name of `path`: train.csv, test.csv.
    revision: a commit, tag or branch on the hub; None: the newest at the first use, see `dpsyn.networks.hub.commit_of`.
    delimiter: what parts the cells of a csv; None: a tab for .tsv, otherwise a comma. encoding: of csv files.
    text_column: None for `text`, or where there is no such column the only one of text that is neither label nor unit.
    max_words: a text of more words, parted by white space, is refused; None: none is. (How far a text is read is the
        embedding's to say; what of it lies beyond that has no part in its vote.)
    labels: given as {column: declared values}, held as all their combinations; {} is one label for all rows.
    label_columns: which source column a label column is read from, where the names differ.
    label_values: {column: {value in the source: value that it stands for}}; where that one is not declared, neither is
        this. So a preset whose labels are made fewer stays as it is.
    id, records, on_error, unit_column, max_refused, max_adjusted: as in `dpsyn.data.Data`.
        An empty or missing unit is -1.

    White space around a text and NUL characters in it are left out. A text that is then empty, or is not UTF-8, is
    refused, as is a line of another number of cells than the first or one that is no JSON object.
    """

    path: str | None = field(metadata=PLACE)
    builder: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"
    text_column: str | None = None
    max_words: int | None = None
    labels: Any = field(default_factory=dict)
    label_columns: Mapping[str, str] = field(default_factory=dict)
    label_values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    id: str | None = None
    records: int | None = None
    on_error: str = "refuse"
    unit_column: str | None = None
    max_refused: float = 0.01
    max_adjusted: float = 0.05

    def __post_init__(self) -> None:
        self._source.check_settings()
        object.__setattr__(self, "labels", combinations(self.labels))
        label_sources(self.labels, self.label_columns)
        object.__setattr__(self, "label_values", self._meanings())
        whole("data.max_words", self.max_words, 1, optional=True)
        check_declared(self.id, self.records, self.on_error, self.max_refused, self.max_adjusted)

    def _meanings(self) -> dict[str, dict[str, str]]:
        meanings: dict[str, dict[str, str]] = {}
        for column, values in self.label_values.items():
            if column not in self.labels[0]:
                raise invalid("data.label_values", column, "columns that data.labels declares")
            if not isinstance(values, Mapping):
                expected = "values in the source with the declared ones, {'5.0': '5'}"
                raise invalid(f"data.label_values.{column}", values, expected)
            meanings[column] = {str(value): str(meant) for value, meant in values.items()}
            known: dict[str, str] = {}
            for value, meant in meanings[column].items():
                if known.setdefault(canonical(value), meant) != meant:
                    raise invalid(f"data.label_values.{column}", value, "one meaning for all spellings of a value")
        return meanings

    @functools.cached_property
    def _source(self) -> Source:
        written = (self.delimiter, None, self.encoding)
        return Source(self.path, self.builder, KINDS, self.subset, self.split, *written, self.revision)

    def check(self) -> None:
        """Raises UserError for a missing path, package or column, without reading a row.

        The hub is not asked before `batches`; the columns of jsonl are those of each line.
        """
        first = self._source.check()
        if first is not None:
            self._chosen(self._source.columns(first))
            if self.unit_column is not None:
                self._source.check_unit(self.unit_column)

    @property
    def modality(self) -> Modality:
        return "texts"

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
        """Batches of one size; the last may have fewer rows, and none where rows were refused after it.

        size: rows of a batch.
        spans: which runs of which files are read; None: all.

        Raises UserError for files that cannot be read and missing columns.
        """
        label_of = labeller(self.labels, label_sources(self.labels, self.label_columns), self.label_values)
        users = Users()
        texts: list[str] = []
        labels: list[int] = []
        units: list[int] = []
        refused: list[Refusal] = []
        for number, (file, line, column, row) in enumerate(guarded(self._rows(spans), self.path)):
            found = row if isinstance(row, Broken) else self._read(row, column, label_of)
            if isinstance(found, Broken):
                refused.append(Refusal(number, found.column, found.rule, found.value, file, line))
                continue
            text, label, unit = found
            texts.append(text)
            labels.append(label)
            units.append(users.number(unit))
            if len(texts) == size:
                yield self._records(texts, labels, units, refused, users)
                texts, labels, units, refused = [], [], [], []
        if texts or refused:
            yield self._records(texts, labels, units, refused, users)

    def _read(
        self, row: Row, column: str, label_of: Callable[[Row], int | Broken]
    ) -> tuple[str, int, str | None] | Broken:
        """The text of a row, its label and its unit."""
        label = label_of(row)
        if isinstance(label, Broken):
            return label
        text = (row[column] or "").replace("\0", "").strip()
        if not text:
            return Broken(column, EMPTY, "")
        if not is_utf8(text):
            return Broken(column, NOT_UTF8, excerpt(text))
        if self.max_words is not None and len(text.split()) > self.max_words:
            return Broken(column, LONG, excerpt(text))
        user = row[self.unit_column] if self.unit_column is not None else None
        if has_lost_digits(user):
            return Broken(str(self.unit_column), LOST_DIGITS, excerpt(user))
        return text, label, unit_of(user)

    def _records(
        self, texts: list[str], labels: list[int], units: list[int], refused: list[Refusal], users: Users
    ) -> Records:
        content = np.empty(len(texts), object)
        content[:] = texts
        numbers = np.array(units, np.int64) if self.unit_column is not None else None
        return Records(Samples(content), np.array(labels, np.int64), numbers, tuple(refused), users=users.met())

    def _rows(self, spans: Sequence[Span] | None) -> Iterator[tuple[str, int, str, Row | Broken]]:
        """Rows, each with its file, its line and the column of its text."""
        for table in self._source.tables(self._chosen, spans):
            for line, row in table.rows:
                yield table.name, line, table.columns[0], row

    def _chosen(self, there: Columns) -> list[str]:
        """What is read: the column of text, then the others. Raises UserError for those that are not there."""
        sources = label_sources(self.labels, self.label_columns)
        named = {f"data.label_columns.{column}": source for column, source in sources.items()}
        if self.unit_column is not None:
            named["data.unit_column"] = self.unit_column
        there.check(named)
        there.check_unit(self.unit_column)
        column = self.text_column
        if column is None:
            others = [name for name in there.texts if name not in named.values()]
            column = "text" if there.names is None or "text" in there.names or len(others) != 1 else others[0]
        if self.text_column is None and there.names is not None and column not in there.names:
            which = f" ({', '.join(there.texts)})" if there.listed and there.texts else ""
            raise invalid("data.text_column", "null", f"the name of a column of text{which}")
        there.check({"data.text_column": column})
        if there.names is not None and column not in there.texts:
            raise invalid("data.text_column", column, "a column of text")
        return [column, *dict.fromkeys(named.values())]
