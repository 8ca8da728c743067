"""What a schema says of several columns of a row at once, and the repair of rows that break it.

    capital_loss <= capital_gain      # also <, >= and >; numbers, times, or ordered columns with the same values
    spouse_age is null unless married # unless that boolean is true, or that column of another kind has a value
    spouse_age is null unless status == 'married'

A comparison holds where either side is missing. Whole numbers and times are compared exactly; a date and a datetime by
their days. Nothing is evaluated as code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpsyn.errors import did_you_mean, invalid, one_of
from dpsyn.population import MISSING
from dpsyn.randomness import uniform
from dpsyn.tables import times
from dpsyn.tables.columns import Column

KEY = "schema.constraints"
FORMS = "'a <= b' (or <, >=, >), 'x is null unless y' or \"x is null unless y == 'v'\""
NULL = re.compile(r"(.+?)\s+is\s+null\s+unless\s+(.+?)(?:\s*==\s*(.+))?", re.DOTALL)
ORDER = re.compile(r"(.+?)\s*(<=|>=|<|>)\s*(.+)", re.DOTALL)


@dataclass(frozen=True)
class Order:
    """Column `low` <= column `high`, or < where strict."""

    text: str
    low: str
    high: str
    strict: bool


@dataclass(frozen=True)
class Null:
    """Column `x` is missing unless `unless` has the value at `place`; None: any, of a boolean the true one."""

    text: str
    x: str
    unless: str
    place: int | None


Constraint = Order | Null


def parsed(texts: Any, columns: Mapping[str, Column], labels: Sequence[str]) -> tuple[Constraint, ...]:
    """Constraints from their texts. Raises UserError for what is none of the forms, and for what no row, or not every
    label, can keep.

    texts: a list, as it was read.
    columns: of the schema, by name, without texts.
    labels: names of the label columns.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise invalid(KEY, texts, f"a list of {FORMS}")
    constraints = tuple(_constraint(text, columns, labels) for text in texts)
    orders = [each for each in constraints if isinstance(each, Order)]
    _sorted(orders)
    _check_room(orders, columns, labels)
    return constraints


def broken(content: np.ndarray, columns: Mapping[str, Column], constraints: Sequence[Constraint]) -> np.ndarray:
    """bool [n]: rows that break one.

    content: table rows [n].
    columns: of the schema, by name.
    constraints: of the schema.
    """
    wrong = np.zeros(len(content), bool)
    for each in constraints:
        if isinstance(each, Order):
            low, high = columns[each.low], columns[each.high]
            (x, no_x), (y, no_y) = (_exact(column, content[column.name]) for column in (low, high))
            x, y = _in_days(x, low, high), _in_days(y, high, low)
            wrong |= ~(no_x | no_y | _in_order(x, y, each.strict))
        else:
            x, unless = (columns[name].codes_of(content[name]) for name in (each.x, each.unless))
            wrong |= (x >= 0) & ~_met(each, unless, columns)
    return wrong


def repaired(
    content: np.ndarray,
    columns: Mapping[str, Column],
    labels: Sequence[str],
    constraints: Sequence[Constraint],
    seeds: np.ndarray,
) -> np.ndarray:
    """Repairs rows that break a constraint. Row i depends on itself and its seed only.

    When a comparison fails, a coin flip per row decides which side moves: the higher column rises above the lower one
    as far as it was below (less where a bound is near), or the lower falls: just past it, every second one of two
    random columns would equal the other. A value that must be missing goes. Labels stay. What is repaired is within the
    schema, and breaks none.

    content: table rows [n].
    columns: of the schema, by name.
    labels: names of the label columns.
    constraints: of the schema.
    seeds: uint64 [n].
    """
    rows = np.flatnonzero(broken(content, columns, constraints))
    if not len(rows):
        return content
    repaired_rows = content[rows]
    orders = _sorted([each for each in constraints if isinstance(each, Order)])
    named = list(dict.fromkeys(name for each in orders for name in (each.low, each.high)))
    codes = {name: columns[name].codes_of(repaired_rows[name]) for name in named}
    _put_in_order(codes, columns, labels, orders, uniform(seeds[rows], "constraints.coin") < 0.5)
    for name in named:
        repaired_rows[name] = columns[name].values_of(codes[name])
    nulls = [each for each in constraints if isinstance(each, Null)]
    for _ in nulls:  # one that goes may take others with it, and so on along a chain of all of them at most
        for each in nulls:
            gone = ~_met(each, columns[each.unless].codes_of(repaired_rows[each.unless]), columns)
            none = columns[each.x].values_of(np.full(int(gone.sum()), -1))
            repaired_rows[each.x][gone] = none
    whole = content.copy()
    whole[rows] = repaired_rows
    return whole


def _met(each: Null, unless: np.ndarray, columns: Mapping[str, Column]) -> np.ndarray:
    """bool [n]: rows in which `x` may have a value. unless: the codes of that column."""
    if each.place is not None:
        return unless == each.place
    return unless == 1 if columns[each.unless].kind == "boolean" else unless >= 0


def _put_in_order(
    codes: dict[str, np.ndarray],
    columns: Mapping[str, Column],
    labels: Sequence[str],
    orders: Sequence[Order],
    rise: np.ndarray,
) -> None:
    """In place. Each value moves into the room that the bounds and the labels leave it; then, from the lowest column to
    the highest in the rows that `rise`, the other way in the rest, past its neighbour."""
    least, most = _room(codes, columns, labels, orders)
    for name, mine in codes.items():
        there = mine >= 0
        mine[there] = mine[there].clip(least[name][there], most[name][there])
    for each in orders:
        low, high = codes[each.low], codes[each.high]
        both = (low >= 0) & (high >= 0) & rise
        first, top = _above(columns, each, low), most[each.high]
        risen = first + _mirrored(first - high, top - first, first - least[each.high])
        high[both] = np.where(high < first, risen, high)[both]
    for each in reversed(orders):
        low, high = codes[each.low], codes[each.high]
        both = (low >= 0) & (high >= 0) & ~rise
        last, bottom = _below(columns, each, high), least[each.low]
        fallen = last - _mirrored(low - last, last - bottom, most[each.low] - last)
        low[both] = np.where(low > last, fallen, low)[both]


def _mirrored(apart: np.ndarray, room: np.ndarray, back: np.ndarray) -> np.ndarray:
    """int64 [n]: codes to move beyond a limit, for values so far before it, of a room so wide, as there is `back`: one
    share of the narrower room as of the wider one, so that no bound gathers them."""
    share = np.minimum(1.0, room / np.maximum(back, 1))
    return np.minimum(np.floor(apart * share).clip(0, 2.0**62).astype(np.int64), room.clip(0))


def _room(
    codes: Mapping[str, np.ndarray], columns: Mapping[str, Column], labels: Sequence[str], orders: Sequence[Order]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Lowest and highest place, int64 [n] each, that every column may have, whatever those that are no labels do."""
    least = {name: mine.copy() if name in labels else np.zeros_like(mine) for name, mine in codes.items()}
    most = {
        name: mine.copy() if name in labels else np.full_like(mine, columns[name].size - 1)
        for name, mine in codes.items()
    }
    for each in orders:
        both = (codes[each.low] >= 0) & (codes[each.high] >= 0)
        least[each.high][both] = np.maximum(least[each.high], _above(columns, each, least[each.low]))[both]
    for each in reversed(orders):
        both = (codes[each.low] >= 0) & (codes[each.high] >= 0)
        most[each.low][both] = np.minimum(most[each.low], _below(columns, each, most[each.high]))[both]
    return least, most


def _above(columns: Mapping[str, Column], each: Order, low: np.ndarray) -> np.ndarray:
    """The lowest codes of the higher column that keep the order, its size where there is none; of missing values
    any."""
    return lowest_above(columns[each.low], columns[each.high], low, each.strict)


def lowest_above(low: Column, high: Column, codes: np.ndarray, strict: bool) -> np.ndarray:
    """int64 [n]: the lowest place of a column whose value is not below that of a place of another; its size where there
    is none.

    low: the column that is to be lower.
    high: the column that is to be higher.
    codes: int64 [n], places of the lower column, which may lie beyond its bounds.
    strict: whether its value is to be above, not equal.
    """
    given = low.measured(codes.clip(0, low.size - 1))
    wanted = _turned(given, low, high, strict, up=True)
    found = _placed(high, wanted, up=True)
    if high.kind == "number":
        further = np.maximum(found + 1, _placed(high, np.nextafter(wanted.astype(np.float64), np.inf), up=True))
        found = np.where(_in_order(given, high.measured(found), strict), found, further)
    return np.where(codes >= low.size, high.size, found)


def _below(columns: Mapping[str, Column], each: Order, high: np.ndarray) -> np.ndarray:
    """The highest codes of the lower column that keep the order, -1 where there is none; of missing values any."""
    low, above = columns[each.low], columns[each.high]
    given = above.measured(high.clip(0, above.size - 1))
    wanted = _turned(given, above, low, each.strict, up=False)
    found = _placed(low, wanted, up=False)
    if low.kind == "number":  # the steps there may be finer than floats are
        further = np.minimum(found - 1, _placed(low, np.nextafter(wanted.astype(np.float64), -np.inf), up=False))
        found = np.where(_in_order(low.measured(found), given, each.strict), found, further)
    return np.where(high < 0, -1, found)


def _placed(column: Column, values: np.ndarray, up: bool) -> np.ndarray:
    """int64 [n]: the place of the first value at or after each one, or at or before it; of a number the nearest one."""
    if column.kind == "number":
        return column.codes_of(values.astype(np.float64))
    low, high = (int(column.low), int(column.high)) if column.whole else (0, column.size - 1)
    away = values.clip(low, high) - np.int64(low)
    step = np.int64(column.step if column.whole else 1)
    found = -(-away // step) if up else away // step
    return np.where(values > high, column.size if up else found, np.where(values < low, found if up else -1, found))


def _turned(values: np.ndarray, of: Column, into: Column, strict: bool, up: bool) -> np.ndarray:
    """The first value in the unit of another column that is not below each of these, or, strict, that is above it (not
    up: the other way round). Of a number the value itself."""
    if into.kind == "number":
        return values
    if of.kind == "number":
        if up:
            return _to_whole(np.floor(values) + 1 if strict else np.ceil(values))
        return _to_whole(np.ceil(values) - 1 if strict else np.floor(values))
    day = np.int64(times.UNITS["day"])
    if (of.kind, into.kind) == ("datetime", "date"):
        values = values // day
    beyond = np.int64(1 if up else -1) if strict else np.int64(0)
    if (of.kind, into.kind) == ("date", "datetime"):
        return (values + beyond) * day + (0 if up else day - 1)
    ends = np.iinfo(np.int64)
    return values.clip(ends.min + 1, ends.max - 1) + beyond if strict else values


def _exact(column: Column, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values as int64, of numbers float64; and bool [n], which are missing."""
    if column.kind == "number":
        return values, np.isnan(values)
    whole = values.astype(np.int64) if column.whole else column.codes_of(values)
    return whole, whole == MISSING if column.whole else whole < 0


def _in_days(values: np.ndarray, column: Column, other: Column) -> np.ndarray:
    return values // times.UNITS["day"] if (column.kind, other.kind) == ("datetime", "date") else values


def _in_order(low: np.ndarray, high: np.ndarray, strict: bool) -> np.ndarray:
    """bool [n]. A whole number against a number is compared exactly too, as floats lose those above 2^53."""
    with np.errstate(invalid="ignore"):
        if low.dtype.kind == "i" and high.dtype.kind == "f":
            high = _to_whole(np.ceil(high) if strict else np.floor(high))
        elif low.dtype.kind == "f" and high.dtype.kind == "i":
            low = _to_whole(np.floor(low) if strict else np.ceil(low))
        return (low < high) if strict else (low <= high)


def _to_whole(numbers: np.ndarray) -> np.ndarray:
    """float64 [n], whole -> int64 [n], those beyond it at its ends"""
    ends = np.iinfo(np.int64)
    inside = np.nan_to_num(numbers).clip(-(2.0**63), 2.0**63 - 1024).astype(np.int64)
    return np.where(numbers >= 2.0**63, ends.max, np.maximum(inside, ends.min + 1))


def _sorted(orders: Sequence[Order]) -> list[Order]:
    """So that what is below a column is settled before the column is. Raises UserError for a circle."""
    done: list[Order] = []
    rest = list(orders)
    while rest:
        pending = {each.high for each in rest}
        free = [each for each in rest if each.low not in pending]
        if not free:
            raise invalid(KEY, repr(rest[0].text), "comparisons that do not go round in a circle")
        done += free
        rest = [each for each in rest if each not in free]
    return done


def _check_room(orders: Sequence[Order], columns: Mapping[str, Column], labels: Sequence[str]) -> None:
    """Raises UserError where a row, or one of some label, has no values that keep the comparisons."""
    orders = _sorted(orders)
    named = list(dict.fromkeys(name for each in orders for name in (each.low, each.high)))
    if not named:
        return
    ranges = [np.arange(columns[name].size if name in labels else 1) for name in named]
    grid = np.meshgrid(*ranges, indexing="ij")
    least, most = _room({n: g.reshape(-1) for n, g in zip(named, grid, strict=True)}, columns, labels, orders)
    for each in orders:
        for name in (each.low, each.high):
            if (least[name] > most[name]).any():
                which = " of every label" if set(labels) & set(named) else ""
                raise invalid(KEY, repr(each.text), f"something that rows{which} can keep within the declared bounds")


def _constraint(text: Any, columns: Mapping[str, Column], labels: Sequence[str]) -> Constraint:
    if not isinstance(text, str):
        raise invalid(KEY, text, FORMS)
    text = text.strip()
    if found := NULL.fullmatch(text):
        x, unless = (_column(text, columns, found[k]) for k in (1, 2))
        if not x.missing or x.name in labels:
            raise invalid(KEY, repr(text), f"missing: true for the column '{x.name}', which is no label")
        return Null(text, x.name, unless.name, None if found[3] is None else _place(text, unless, found[3]))
    if found := ORDER.fullmatch(text):
        left, right = (_column(text, columns, found[k]) for k in (1, 3))
        if not _comparable(left, right):
            what = "two columns of numbers, two of dates or times, or two ordered ones with the same values"
            raise invalid(KEY, repr(text), what)
        low, high = (left, right) if found[2][0] == "<" else (right, left)
        return Order(text, low.name, high.name, strict="=" not in found[2])
    raise invalid(KEY, repr(text), FORMS)


def _comparable(left: Column, right: Column) -> bool:
    if left.name == right.name:
        return False
    if left.kind == "ordered":
        return right.kind == "ordered" and left.values == right.values
    kinds = {left.kind, right.kind}
    return kinds <= {"integer", "number"} or kinds <= {"date", "datetime"} or kinds == {"time"}


def _column(text: str, columns: Mapping[str, Column], name: str) -> Column:
    name = _unquoted(name)
    if name not in columns:
        what = f"columns of the schema, neither texts nor open ones; '{name}' is none"
        raise invalid(KEY, repr(text), what, did_you_mean(name, list(columns)))
    return columns[name]


def _place(text: str, column: Column, value: str) -> int:
    """Of the value that a condition names. Raises UserError for one that the column cannot have."""
    values, rules = column.read([_unquoted(value)])
    if rules[0]:
        which = f": {one_of(column.values)}" if 0 < len(column.values) <= 20 else ""
        raise invalid(KEY, repr(text), f"a value that the column '{column.name}' can have{which}")
    place = int(column.codes_of(values)[0])
    if place < 0:
        raise invalid(KEY, repr(text), "a value that is not the missing one")
    return place


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"`" else text
