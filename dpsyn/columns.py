"""Columns of a table as a public schema declares them: what their cells mean, and every value that they may have.

The values of a column are numbered, 0 to size - 1, its *places*: of a category its declared values, of a number the
steps of its resolution from the lower bound on. -1 is the place of a missing value.
"""

from __future__ import annotations

import datetime
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np

from dpsyn.errors import UserError, bad, near, one_of
from dpsyn.population import MISSING

KINDS = ("category", "ordered", "integer", "number", "date", "boolean")
NUMERIC = ("integer", "number", "date")
DTYPES = {"integer": "<i8", "number": "<f8", "date": "<M8[D]", "boolean": "<i1"}
KEYS = {
    "category": ("values",),
    "ordered": ("values",),
    "boolean": (),
    **{kind: ("bounds", "resolution", "bins", "special") for kind in NUMERIC},
}
SHARED = ("kind", "missing", "missing_values", "outside", "weight")
OUTSIDE = {
    "category": ("refuse", "other", "missing"),
    "ordered": ("refuse", "missing"),
    "boolean": ("refuse", "missing"),
    **{kind: ("clip", "refuse", "missing") for kind in NUMERIC},
}
OTHER = "other"
STEPS = 10**6  # of a number whose resolution is not declared, at least; fewer than ten times as many
MOST = 2**53  # places that a float64 tells apart
TRUTH = {"false": 0, "true": 1, "0": 0, "1": 1, "no": 0, "yes": 1, "f": 0, "t": 1, "n": 0, "y": 1}

# What became of a cell. Those from REFUSED on cannot be used.
FINE, CLIPPED, AS_OTHER, AS_MISSING, REFUSED = 0, 1, 2, 3, 4
RULES = (
    "",
    "beyond the bounds, clipped to them",
    "not among the declared values, read as other",
    "outside the schema, read as missing",
    "missing, which the schema does not allow",
    "not a number",
    "not a whole number",
    "not a date (YYYY-MM-DD)",
    "neither true nor false",
    "not among the declared values",
    "beyond the declared bounds",
)
NO_VALUE, NO_NUMBER, NO_INTEGER, NO_DATE, NO_BOOLEAN, UNDECLARED, BEYOND = range(REFUSED, len(RULES))


@dataclass(frozen=True)
class Column:
    """kind: one of KINDS. values: of a category or an ordered one; of a boolean 'false' and 'true'; otherwise none.

    low, high, step: of numbers; of dates in days since 1970. special: places that are cells of their own, whatever the
    bins. missing: a value may be missing; texts: cells that mean so. outside: what a value outside the schema is read
    as. weight: in the distance. bins: of a number, cells of equal width; None: not declared.
    """

    name: str
    kind: str
    values: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float = 1
    special: tuple[int, ...] = ()
    missing: bool = False
    texts: frozenset[str] = frozenset({""})
    outside: str = "refuse"
    weight: float = 1.0
    bins: int | None = None

    @property
    def numeric(self) -> bool:
        return self.kind in NUMERIC

    @property
    def dtype(self) -> str:
        return DTYPES.get(self.kind, "O")

    @property
    def size(self) -> int:
        """The number of places."""
        return _steps(self.low, self.high, self.step) if self.numeric else len(self.values)

    def typed(self, places: np.ndarray) -> np.ndarray:
        """int64 [n], -1 for a missing one -> values of the column's dtype [n], as in `Samples.content`."""
        if not self.numeric:
            names = np.array([*self.values, None], object)
            return places.astype(np.int8) if self.kind == "boolean" else names[places]
        if self.kind == "number":
            return self.numbers_at(places)
        whole = np.int64(self.low) + places * np.int64(self.step)
        return np.where(places < 0, MISSING, whole).astype(self.dtype)  # NaT is the same int64

    def numbers_at(self, places: np.ndarray) -> np.ndarray:
        """float64 [n]: what a place stands for; of an ordered column the place itself. NaN for a missing one."""
        numbers = places.astype(np.float64)
        if self.numeric:
            numbers = np.round(self.low + numbers * self.step, _decimals(self.low, self.step))
        numbers[places < 0] = np.nan
        return numbers

    def numbers(self, values: np.ndarray) -> np.ndarray:
        """float64 [n] of values of the column's dtype: of a category its place. NaN for a missing one."""
        if self.kind == "number":
            return values
        if not self.numeric:
            places = self.places(values)
            return np.where(places < 0, np.nan, places)
        whole = values.astype(np.int64)
        return np.where(whole == MISSING, np.nan, whole)

    def places(self, values: np.ndarray) -> np.ndarray:
        """int64 [n]: the place of each value, or the one nearest to it. Raises UserError for an undeclared category."""
        if self.kind == "boolean":
            return values.astype(np.int64)
        if self.numeric:
            numbers = self.numbers(values)
            none = np.isnan(numbers)
            steps = np.rint((np.where(none, self.low, numbers) - self.low) / self.step).clip(0, self.size - 1)
            return np.where(none, -1, steps).astype(np.int64)
        try:
            return np.fromiter(map(self._index.__getitem__, values.tolist()), np.int64, len(values))
        except KeyError:
            pass
        raise UserError(f"column '{self.name}': a value is not among those that the schema declares.")

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """float64 [n] in 0..1 of a numeric or an ordered column; NaN for a missing value, 0 in a constant column."""
        low, high = (self.low, self.high) if self.numeric else (0, self.size - 1)
        return ((self.numbers(values) - low) / max(high - low, np.finfo(float).tiny)).clip(0, 1)

    def read(self, cells: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """Values of the column's dtype [n], and int64 [n]: what became of each cell, an index into RULES.

        White space around a cell does not count. How a cell is read depends on it alone.
        """
        found: list[Any] = []
        known = _Numbered(lambda cell: found.append(self._cell(cell)))
        order = np.fromiter(map(known.__getitem__, cells), np.int64, len(cells))
        values = np.empty(len(found), self.dtype)
        values[:] = [value for value, _ in found]
        return values[order], np.array([rule for _, rule in found], np.int64)[order]

    @functools.cached_property
    def _index(self) -> Mapping[str | None, int]:
        """The place of every value, and of a missing one."""
        return {**{value: place for place, value in enumerate(self.values)}, None: -1}

    @property
    def _none(self) -> Any:
        return {"integer": MISSING, "number": math.nan, "date": np.datetime64("NaT"), "boolean": -1}.get(self.kind)

    def _cell(self, cell: str | None) -> tuple[Any, int]:
        text = "" if cell is None else cell.strip()
        if cell is None or text in self.texts:
            return self._none, FINE if self.missing else NO_VALUE
        value, rule = (self._numeric if self.numeric else self._named)(text)
        return (self._none, AS_MISSING) if rule >= REFUSED and self.outside == "missing" else (value, rule)

    def _named(self, text: str) -> tuple[Any, int]:
        if self.kind == "boolean":
            value = TRUTH.get(text.lower(), TRUTH.get(text.removesuffix(".0")))
            return (self._none, NO_BOOLEAN) if value is None else (value, FINE)
        if text in self._index:
            return text, FINE
        return (OTHER, AS_OTHER) if self.outside == OTHER else (None, UNDECLARED)

    def _numeric(self, text: str) -> tuple[Any, int]:
        number, rule = _READERS[self.kind](text)
        if rule == FINE and not self.low <= number <= self.high:
            number = self.low if number < self.low else self.high
            rule = CLIPPED if self.outside == "clip" else BEYOND
        if rule >= REFUSED:
            return self._none, rule
        return np.datetime64(int(number), "D") if self.kind == "date" else number, rule


class _Numbered(dict[str | None, int]):
    """Keys to 0, 1, 2, ... in the order in which they are first looked up; `first` is called with each."""

    def __init__(self, first: Callable[[str | None], object]) -> None:
        super().__init__()
        self.first = first

    def __missing__(self, key: str | None) -> int:
        self.first(key)
        self[key] = len(self)
        return len(self) - 1


def _whole(text: str) -> tuple[float, int]:
    number, rule = _real(text)
    if rule == FINE and number != math.floor(number):
        return 0, NO_INTEGER
    try:
        return int(text), rule  # of any length
    except ValueError:
        return int(number), rule


def _real(text: str) -> tuple[float, int]:
    try:
        number = float(text)
    except ValueError:
        return 0, NO_NUMBER
    return (number, FINE) if math.isfinite(number) and "_" not in text else (0, NO_NUMBER)


def _day(text: str) -> tuple[float, int]:
    """Days since 1970. A time of day after the date does not count."""
    try:
        return _days(datetime.date.fromisoformat(text[:10])), FINE
    except ValueError:
        return 0, NO_DATE


_READERS: Mapping[str, Callable[[str], tuple[float, int]]] = {"integer": _whole, "number": _real, "date": _day}


def _days(day: datetime.date) -> int:
    return (day - datetime.date(1970, 1, 1)).days


def _steps(low: float, high: float, step: float) -> int:
    return math.floor((high - low) / step + 1e-9) + 1


def _decimals(*numbers: float) -> int:
    """Digits after the point that all are written with."""
    return max(max(0, -int(Decimal(repr(number)).normalize().as_tuple().exponent)) for number in numbers)


# Declarations


def declared(key: str, name: str, said: Any, is_label: bool) -> Column:
    """A column from its mapping in a schema. Raises UserError, each about one key."""
    if not isinstance(said, Mapping):
        raise bad(key, said, "a mapping, {kind: ...}")
    kind = said.get("kind")
    if kind not in KINDS:
        raise bad(f"{key}.kind", "null" if kind is None else kind, one_of(KINDS), near(str(kind), KINDS))
    known = (*SHARED, *KEYS[str(kind)])
    for word in said:
        if word not in known:
            what = f"{one_of(known)}, for a column of kind {kind}"
            raise bad(f"{key}.{word}", said[word], what, near(str(word), known))
    missing = said.get("missing", False)
    if type(missing) is not bool:
        raise bad(f"{key}.missing", missing, "true or false")
    allowed = tuple(word for word in OUTSIDE[str(kind)] if missing or word != "missing")
    outside = said.get("outside", "refuse" if is_label else allowed[0])
    if outside not in allowed:
        also = " (missing only with missing: true)" if outside == "missing" else ""
        raise bad(f"{key}.outside", outside, f"{one_of(allowed)}, for a column of kind {kind}{also}")
    weight = said.get("weight", 1.0)
    if type(weight) not in (int, float) or not 0 <= weight < math.inf:
        raise bad(f"{key}.weight", weight, "a number, 0 or more")
    texts = frozenset(("", *_texts(f"{key}.missing_values", said.get("missing_values", []), least=0)))
    shared = {"missing": missing, "texts": texts, "outside": outside, "weight": float(weight)}
    if kind in NUMERIC:
        return _numeric_column(key, name, str(kind), said, shared)
    values = ("false", "true") if kind == "boolean" else _texts(f"{key}.values", said.get("values"))
    if outside == OTHER and OTHER not in values:
        values = (*values, OTHER)
    if clash := texts & set(values):
        do = "Leave it out of values, and say missing: true."
        raise bad(f"{key}.missing_values", min(clash), "no text that is a value", do)
    return Column(name, str(kind), values, **shared)


def _texts(key: str, values: Any, least: int = 1) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) < least:
        raise bad(key, "null" if values is None else values, f"a list of texts{', with at least one' * least}")
    for value in values:
        if type(value) not in (str, int):
            raise bad(key, value, "a list of texts", "Put it in quotes.")
    texts = tuple(str(value).strip() for value in values)
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise bad(key, repr(twice), "every value once")
    if least and "" in texts:
        raise bad(key, "''", "values with a name", "An empty cell is a missing one: say missing: true.")
    return texts


def _numeric_column(key: str, name: str, kind: str, said: Mapping[str, Any], known: Mapping[str, Any]) -> Column:
    bounds = said.get("bounds")
    if isinstance(bounds, str) or not isinstance(bounds, Sequence) or len(bounds) != 2:
        raise bad(f"{key}.bounds", "null" if bounds is None else bounds, "two of them, [lowest, highest], both public")
    low, high = (_bound(f"{key}.bounds", kind, bound) for bound in bounds)
    if low > high:
        raise bad(f"{key}.bounds", f"[{bounds[0]}, {bounds[1]}]", "the lower one first")
    step = _number(said.get("resolution"))
    if step is None:
        wide = 10.0 ** (math.floor(math.log10(high - low)) - round(math.log10(STEPS))) if high > low else 1.0
        step = wide if kind == "number" else 1
    if type(step) not in (int, float) or not 0 < step < math.inf:
        raise bad(f"{key}.resolution", step, "a number over 0: the distance between neighbouring values")
    if kind != "number" and step != int(step):
        raise bad(f"{key}.resolution", step, "a whole number" + (" of days" if kind == "date" else ""))
    if (high - low) / step >= MOST:
        raise bad(f"{key}.resolution", step, "a coarser one: these bounds hold more than 2^53 values")
    bins = said.get("bins")
    if bins is not None and (type(bins) is not int or not 1 <= bins <= 2**16):
        raise bad(f"{key}.bins", bins, "a whole number, 1 to 65536")
    column = Column(name, kind, (), low, high, step if kind == "number" else int(step), bins=bins, **known)
    special = said.get("special", [])
    if isinstance(special, str) or not isinstance(special, Sequence):
        raise bad(f"{key}.special", special, "a list of values that have a meaning of their own, [0]")
    numbers = [_bound(f"{key}.special", kind, value) for value in special]
    if any(not low <= number <= high for number in numbers):
        raise bad(f"{key}.special", list(special), "values within the bounds")
    places = sorted({min(round((number - low) / column.step), column.size - 1) for number in numbers})
    return replace(column, special=tuple(places))


def _number(value: Any) -> Any:
    """1e6 is a text to yaml, which wants 1.0e+6. What is no number stays what it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _bound(key: str, kind: str, value: Any) -> float:
    if kind == "date":
        number, rule = _day(str(value))
        if rule != FINE:
            raise bad(key, value, "dates, 2020-01-31")
        return number
    value = _number(value)
    whole = type(value) is int or (type(value) is float and math.isfinite(value) and value == math.floor(value))
    if kind == "integer" and (not whole or not abs(value) < 2**62):
        raise bad(key, value, "whole numbers")
    if type(value) not in (int, float) or not math.isfinite(value):
        raise bad(key, value, "numbers")
    return int(value) if kind == "integer" else float(value)
