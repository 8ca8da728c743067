"""What is declared of rows: the settings that all data sets have, and labels, read from columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpsyn.errors import invalid
from dpsyn.population import Label
from dpsyn.reading.rows import Broken, Row, excerpt
from dpsyn.reading.spelling import canonical
from dpsyn.validate import choice, name_or_null, number, whole

UNDECLARED = "not among the declared values"


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
