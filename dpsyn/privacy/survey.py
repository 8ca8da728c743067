"""What was met while private rows were read: how many, refused by which rule, adjusted, of which labels and users.

All of it is private. What a run may say of it on the screen is which limit was passed, by column and rule.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from dpsyn.data import Data, Records
from dpsyn.errors import UserError, invalid


@dataclass(frozen=True)
class Survey:
    """Exact counts; private.

    rows: that were read, the refused ones too. refused: rows by "column 'x': rule". adjusted: cells by column, and then
    by rule. remarks: what else was met, and how often. labels: rows of each declared label. users: different ones, None
    without a column that names them. without_user: rows that name none.
    """

    rows: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    adjusted: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    remarks: Mapping[str, int] = field(default_factory=dict)
    labels: Sequence[int] = ()
    users: int | None = None
    without_user: int = 0

    def __repr__(self) -> str:
        return "Survey(private)"

    @property
    def voting(self) -> int:
        """Rows that were not refused."""
        return self.rows - sum(self.refused.values())

    def notes(self) -> bytes:
        """Private: what was adjusted, by 'column: rule', and what else was met."""
        adjusted = {f"{column}: {rule}": n for column, rules in self.adjusted.items() for rule, n in rules.items()}
        return json.dumps({**adjusted, **self.remarks}, indent=1, sort_keys=True).encode()

    def json(self) -> bytes:
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()


def read_survey(content: bytes) -> Survey:
    """The inverse of `Survey.json`."""
    return Survey(**json.loads(content))


def merged(surveys: Sequence[Survey], users: int) -> Survey:
    """Of all parts of the rows.

    surveys: one of each part.
    users: different ones in all of them.
    """

    def summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
        return dict(sum(map(Counter, counts), Counter[str]()))

    labels = np.array([survey.labels for survey in surveys], np.int64).sum(0)
    columns = {column for survey in surveys for column in survey.adjusted}
    return Survey(
        sum(survey.rows for survey in surveys),
        summed(survey.refused for survey in surveys),
        {column: summed(survey.adjusted.get(column, {}) for survey in surveys) for column in columns},
        summed(survey.remarks for survey in surveys),
        labels.tolist(),
        None if all(survey.users is None for survey in surveys) else users,
        sum(survey.without_user for survey in surveys),
    )


class Surveyor:
    """Counts the batches of one reading."""

    def __init__(self, labels: int) -> None:
        self._rows = self._without_user = 0
        self._refused: Counter[str] = Counter()
        self._adjusted: dict[str, Counter[str]] = {}
        self._remarks: Counter[str] = Counter()
        self._labels = np.zeros(labels, np.int64)
        self._users: set[int] | None = None

    def add(self, records: Records) -> None:
        self._rows += len(records.labels) + len(records.refused)
        self._refused.update(f"column '{refusal.column}': {refusal.rule}" for refusal in records.refused)
        for told, count in records.adjusted.items():
            column, _, rule = told.rpartition(": ")
            self._adjusted.setdefault(column, Counter())[rule] += count
        self._remarks.update(records.remarks)
        self._labels += np.bincount(records.labels, minlength=len(self._labels))
        if records.units is not None:
            self._users = self._users or set()
            self._users.update(records.units[records.units >= 0].tolist())
            self._without_user += int((records.units < 0).sum())

    def remark(self, what: str, count: int) -> None:
        self._remarks[what] += count

    @property
    def survey(self) -> Survey:
        adjusted = {column: dict(rules) for column, rules in self._adjusted.items()}
        users = None if self._users is None else len(self._users)
        labels = self._labels.tolist()
        return Survey(self._rows, dict(self._refused), adjusted, dict(self._remarks), labels, users, self._without_user)


def check_survey(survey: Survey, data: Data, unit: str, details: str = "") -> None:
    """Raises UserError where the rows are not what a run is to begin with. It names columns and rules, no number.

    survey: of all rows.
    data: the private data.
    unit: 'record', or 'user': then rows that name no user cast no vote.
    details: where refused.jsonl and adjusted.json are, '' for nowhere.
    """
    see = f"See {details}/refused.jsonl and adjusted.json. " if details else ""
    if not survey.rows:
        raise invalid("data.path", "...", "data with at least one row")
    if data.unit_column is not None and not survey.users and survey.voting:
        raise invalid(
            "data.unit_column", data.unit_column, "the name of a column in which rows name users", "None does."
        )
    rules = "; ".join(sorted(survey.refused))
    if survey.refused and data.on_error == "refuse":
        do = f"{see}Fix them, or skip them with data.on_error=skip."
        raise UserError(f"data: some rows cannot vote ({rules}). {do}")
    silent = sum(survey.refused.values()) + (survey.without_user if unit == "user" else 0)
    if silent > data.max_refused * survey.rows:
        some = [*sorted(survey.refused), *([f"column '{data.unit_column}': no user"] if unit == "user" else [])]
        do = f"{see}Fix them, or raise data.max_refused."
        raise invalid(
            "data.max_refused",
            data.max_refused,
            f"at most this share of rows that cast no vote ({'; '.join(some)})",
            do,
        )
    for column, counts in sorted(survey.adjusted.items()):
        if sum(counts.values()) > data.max_adjusted * survey.voting:
            what = f"at most this share of adjusted cells in column '{column}' ({'; '.join(sorted(counts))})"
            raise invalid(
                "data.max_adjusted", data.max_adjusted, what, f"{see}Widen the schema, or raise data.max_adjusted."
            )
