"""The schema of a table: a yaml that declares every column, the labels, and the constraints rows satisfy. It is public.

    columns:
      age:       {kind: integer, bounds: [17, 90]}
      workclass: {kind: category, values: [Private, State-gov], missing: true, missing_values: ["?"]}
      income:    {kind: category, values: ["<=50K", ">50K"]}
    labels: [income]
    unit: person           # the column that names a row's user; it is not declared above and in no synthetic row
    constraints: [...]     # see `dpsyn.tables.constraints`
    extra: refuse          # or ignore: columns of the file that are not named here are left out

A column: kind, category | ordered | integer | number | date | datetime | time | boolean | text; values, of the first
two; bounds, [lowest, highest], of numbers and times; resolution, the distance between neighbouring values (1; of a
datetime or a time: second, minute, hour or day; of a number that says none, seven digits of it); missing: true,
missing_values: cells that mean so, besides empty ones; outside: what becomes of other values, clip (numbers and
times, unless said otherwise) | other (categories) | missing | refuse; weight, in the distance (1); bins, cells of
equal width for a numeric column (256, and finer ones near 0 and at either end, so that bounds may be wide); special:
values with a cell of their own ([0] where most are none); format, of times: as strptime spells it, or of a date iso,
slashed, compact, dotted, day/month/year, month/day/year; timezone, of a datetime: the clock on which it is read and
released. Of a category whose values are not known: values: open, longest, how many characters one has at most, and
characters, of which it is made (text | codes | upper | lower | digits, or themselves); `schedule=discover` finds them,
and other columns are not read before. Of a text besides its kind: words, how many it has at most; outside, cut |
refuse: what becomes of a longer one; about ("a review of a restaurant") and language, for prompts.

Bounds and values come from a codebook or from what everybody knows, never from the private rows: nothing here looks at
any, and what a schema says is published.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.errors import did_you_mean, invalid, one_of
from dpsyn.marks import PLACE
from dpsyn.population import Label
from dpsyn.reading.declarations import read_declared
from dpsyn.tables import constraints
from dpsyn.tables.columns import OTHER, RULES, TEXT, TIMES, Column, ReadCells, declared
from dpsyn.tables.constraints import Constraint
from dpsyn.tables.open import FIND, OpenColumn, declared_open, is_open
from dpsyn.tables.texts import ROW_BYTES, TextColumn, declared_text, is_text
from dpsyn.validate import choice

KEY = "data.schema"
WORDS = ("columns", "labels", "unit", "constraints", "extra")
MOST_LABELS = 10_000
KNOWN = 2**18  # cells of all columns that are kept while a file is read


@dataclass(frozen=True)
class Schema:
    """What is declared of a table. Raises UserError for what is no schema.

    file: the content of a schema yaml, as `read` gives it.

    >>> schema = Schema({"columns": {"age": {"kind": "integer", "bounds": [0, 120]}, "died": {"kind": "boolean"}},
    ...                  "labels": ["died"]})
    >>> schema.labels
    ({'died': 'false'}, {'died': 'true'})
    >>> [column.name for column in schema.features]
    ['age']
    """

    file: Any = field(metadata=PLACE)

    def __post_init__(self) -> None:
        _ = self.constraints, self.texts, self.unit  # which ask for all the rest

    @functools.cached_property
    def columns(self) -> Mapping[str, Column]:
        """Those that are no texts and whose values are declared, by name, in order."""
        names = self.file.get("labels") or [] if isinstance(self.file, Mapping) else []
        found = {
            name: declared(f"schema.columns.{name}", name, said, name in names)
            for name, said in self._said.items()
            if not is_text(said) and not is_open(said)
        }
        if not found and not self.open:
            do = "Texts alone, with labels or without, are data=texts."
            raise invalid("schema.columns", list(self._said), "a column that is no text, or more", do)
        return found

    @functools.cached_property
    def texts(self) -> Mapping[str, TextColumn]:
        """The columns of texts, by name, in order."""
        found = {
            name: declared_text(f"schema.columns.{name}", name, said)
            for name, said in self._said.items()
            if is_text(said)
        }
        for name, column in found.items():
            if clash := next((word for word in column.said if word in self._said), None):
                what = f"null, or the column '{clash}' called otherwise"
                raise invalid(
                    f"schema.columns.{name}.{clash}", column.said[clash], what, "Prompts have it by that name."
                )
        return found

    @functools.cached_property
    def open(self) -> Mapping[str, OpenColumn]:
        """The categories whose values are to be found, by name, in order."""
        return {
            name: declared_open(f"schema.columns.{name}", name, said)
            for name, said in self._said.items()
            if is_open(said)
        }

    def with_values(self, found: Mapping[str, Sequence[str]]) -> Mapping[str, Any]:
        """The content of the schema once values are found.

        found: of each open column the values.
        """
        columns = dict(self._said)
        for name, column in self.open.items():
            kept = {word: said for word, said in columns[name].items() if word not in ("longest", "characters")}
            values = list(found[name]) or ([OTHER] if column.outside == OTHER else [])
            columns[name] = {**kept, "values": values, "outside": column.outside}
        return {**self.file, "columns": columns}

    def texts_of(self, content: np.ndarray, name: str) -> list[str]:
        """One column of texts; '' where a row has no text yet.

        content: table rows [n].
        name: of the column.
        """
        return ["" if text is None else text for text in content[name].tolist()]

    @functools.cached_property
    def fields(self) -> Mapping[str, Column | TextColumn | OpenColumn]:
        """The columns of a row, by name, in order: all, or where some are open these alone, as the others are not
        looked at before their values are found."""
        if self.open:
            return self.open
        return {name: self.texts[name] if name in self.texts else self.columns[name] for name in self._said}

    @property
    def names(self) -> tuple[str, ...]:
        """Of all columns that are declared."""
        return tuple(self._said)

    @functools.cached_property
    def _said(self) -> Mapping[str, Any]:
        """What the file says of each column."""
        if not isinstance(self.file, Mapping):
            raise invalid(f"{KEY}.file", "null" if self.file is None else self.file, "a schema, columns: {...}")
        for word in self.file:
            if word not in WORDS:
                raise invalid(f"schema.{word}", "...", one_of(WORDS), did_you_mean(str(word), WORDS))
        choice("schema.extra", self.extra, ("refuse", "ignore"))
        said = self.file.get("columns")
        if not isinstance(said, Mapping) or not said:
            raise invalid("schema.columns", "null" if said is None else said, "columns by name, {age: {kind: ...}}")
        for name in said:
            if not isinstance(name, str) or not name.strip() or name.startswith(("trait.", "row.")):
                what = "a name, and none that begins with 'trait.' or 'row.'"
                raise invalid(
                    "schema.columns", repr(name), what, "A run adds columns called so. Rename it in the file."
                )
        return said

    @functools.cached_property
    def label_columns(self) -> Sequence[str]:
        """Of the rows: none where a column is open."""
        columns, names = self.columns, self.file.get("labels") or []
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise invalid("schema.labels", names, "a list of columns, [income]; [] where the table has no labels")
        for name in names:
            if name in self.texts:
                raise invalid(
                    "schema.labels", name, "a category, ordered, boolean or integer column", f"This is a {TEXT}."
                )
            if name in self.open:
                raise invalid("schema.labels", name, "a column whose values are declared", FIND)
            if name not in columns:
                raise invalid("schema.labels", name, "a column of the schema", did_you_mean(str(name), list(columns)))
            column = columns[name]
            if column.kind in ("number", *TIMES):
                what = "a category, ordered, boolean or integer column"
                raise invalid("schema.labels", name, what, f"This one is a {column.kind}.")
            if column.missing:
                do = "Rows without a label cast no vote; or make the missing one a value."
                raise invalid(f"schema.columns.{name}.missing", "true", "false for a label", do)
        if len(set(names)) < len(names):
            raise invalid("schema.labels", list(names), "every column once")
        return () if self.open else tuple(names)

    @functools.cached_property
    def labels(self) -> tuple[Label, ...]:
        """All combinations of the values of the label columns, in order; {} alone where there are none."""
        columns = [self.columns[name] for name in self.label_columns]
        count = int(np.prod([float(column.size) for column in columns]))
        if count > MOST_LABELS:
            raise invalid("schema.labels", list(self.label_columns), f"at most {MOST_LABELS} labels; these are {count}")
        values = [_named(column) for column in columns]
        return tuple(dict(zip(self.label_columns, chosen, strict=True)) for chosen in itertools.product(*values))

    @functools.cached_property
    def unit(self) -> str | None:
        """The column that names a row's user, or None."""
        name = self.file.get("unit")
        if name is not None and (not isinstance(name, str) or not name.strip()):
            raise invalid("schema.unit", name, "the name of a column")
        if name in self._said:
            do = "Units are nowhere in the synthetic rows."
            raise invalid("schema.unit", name, "a column that is not declared under columns", do)
        return name

    @functools.cached_property
    def constraints(self) -> tuple[Constraint, ...]:
        assert self.labels
        return constraints.parsed(self.file.get("constraints") or [], self.columns, self.label_columns)

    @property
    def row_bytes(self) -> int:
        """About: a column takes 8, or about that in the letters of a category; a text more."""
        return 8 * len(self.columns) + ROW_BYTES * len(self.texts)

    @property
    def extra(self) -> str:
        return str(self.file.get("extra", "refuse"))

    @property
    def features(self) -> tuple[Column, ...]:
        """The columns of a row that are neither labels nor texts, and whose values are declared."""
        if self.open:
            return ()
        return tuple(column for column in self.columns.values() if column.name not in self.label_columns)

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """Of `Samples.content`: a field a column, labels and texts too."""
        return np.dtype([(column.name, column.dtype) for column in self.fields.values()])

    @property
    def forms(self) -> Mapping[str, Mapping[str, str]]:
        """How columns of times are written, as in `Samples.forms`."""
        return {name: column.form for name, column in self.columns.items() if column.form and name in self.fields}

    def cells_read(self) -> dict[str, ReadCells]:
        """Where `read` may keep what it has parsed, by column: none yet."""
        return {name: ReadCells(column) for name, column in self.columns.items()}

    def read(
        self, cells: Mapping[str, Sequence[str | None]], known: Mapping[str, ReadCells] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Table rows [n], and int64 [n, fields]: what became of each cell, an index into `dpsyn.tables.columns.RULES`.
        Rows with one from REFUSED on cannot be used.

        cells: by column, n of each; None for a missing one.
        known: cells that were read of rows before these, by column; None: there are none.
        """
        known = self.cells_read() if known is None else known
        rows = len(next(iter(cells.values())))
        content = np.empty(rows, self.dtype)
        rules = np.empty((rows, len(self.fields)), np.int64)
        for at, (name, column) in enumerate(self.fields.items()):
            read = column.read(cells[name], known[name]) if isinstance(column, Column) else column.read(cells[name])
            content[name], rules[:, at] = read
        if sum(map(len, known.values())) > KNOWN:
            for each in known.values():
                each.clear()
        return content, rules

    def labels_of(self, content: np.ndarray) -> np.ndarray:
        """int64 [n]: index into `labels`."""
        index = np.zeros(len(content), np.int64)
        for name in self.label_columns:
            column = self.columns[name]
            index = index * column.size + column.codes_of(content[name])
        return index

    def with_labels(self, content: np.ndarray, labels: np.ndarray) -> None:
        """Writes the values of each row's label into its label columns, in place.

        content: table rows [n], which change.
        labels: int64 [n].
        """
        for name in reversed(self.label_columns):
            labels, places = np.divmod(labels, self.columns[name].size)
            content[name] = self.columns[name].values_of(places)

    def index(self, labels: Sequence[Label]) -> np.ndarray:
        """int64 [n]: where in `labels` each one stands. Raises UserError for one that is none of them."""
        rows = list(labels)
        objects = np.fromiter(map(id, rows), np.int64, len(rows))  # many rows, but few labels
        _, first, kind = np.unique(objects, return_index=True, return_inverse=True)
        asked = [dict(rows[row]) for row in first.tolist()]
        places = {tuple(label.values()): place for place, label in enumerate(self.labels)}
        found = [places.get(tuple(label.get(name, "") for name in self.label_columns), -1) for label in asked]
        if -1 in found:
            label = asked[found.index(-1)]
            raise invalid(
                "data.labels", label, "labels of the schema that the api was given: api.schema is data.schema"
            )
        return np.array(found, np.int64)[kind]

    def broken(self, content: np.ndarray) -> np.ndarray:
        """bool [n]: rows that break a constraint."""
        return constraints.broken(content, self.columns, self.constraints)

    def repaired(self, content: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """The rows, none of which breaks a constraint: see `dpsyn.tables.constraints.repaired`.

        content: table rows [n].
        seeds: uint64 [n].
        """
        return constraints.repaired(content, self.columns, self.label_columns, self.constraints, seeds)


def read(name: str, *folders: Path) -> Mapping[str, Any]:
    """The content of the schema NAME.yaml in the first of the folders that has it, or of the yaml at a path. Raises
    UserError where there is none.

    name: of the schema, or the path of a yaml.
    folders: where a name is looked for, in this order.
    """
    do = "`dpsyn schema FILE` drafts one."
    content: Mapping[str, Any] = read_declared(f"{KEY}.file", "schema", name, *folders, do=do)
    if not isinstance(content, Mapping):
        raise invalid(f"{KEY}.file", name, "a schema, columns: {...}")
    return content


def check_schema(key: str, given: Any) -> None:
    """Raises UserError for what is no schema, such as null with data that have none.

    key: the setting.
    given: what it is set to.
    """
    if not isinstance(given, Schema):
        do = "Choose data that have one: data=tables data.schema.file=..."
        raise invalid(key, "null" if given is None else given, "the schema of a table", do)


def told(column: Column | TextColumn | OpenColumn, rule: int) -> str:
    """'age: beyond the bounds, clipped to them', for what is counted in private/.

    column: of which cells are counted.
    rule: an index into RULES.
    """
    return f"{column.name}: {RULES[rule]}"


def _named(column: Column) -> list[str]:
    if not column.numeric:
        return list(column.values)
    return [str(number) for number in column.values_of(np.arange(column.size)).tolist()]
