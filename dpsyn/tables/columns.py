"""Columns of a table as a public schema declares them: what their cells mean, and every value that they may have.

The values of a column are numbered, 0 to size - 1, its *codes*: of a category its declared values, of a number the
steps of its resolution from the lower bound on. A number without a resolution has those of `dpsyn/tables/grades.py`.
-1 is the code of a missing value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from dpsyn.errors import UserError, did_you_mean, invalid, one_of
from dpsyn.population import MISSING
from dpsyn.reading.rows import NOT_UTF8
from dpsyn.reading.spelling import canonical
from dpsyn.tables import times
from dpsyn.tables.grades import Grades

TIMES = ("date", "datetime", "time")
WHOLE = ("integer", *TIMES)  # held as int64: of times seconds, of dates days
NUMERIC = ("integer", "number", *TIMES)
KINDS = ("category", "ordered", "boolean", *NUMERIC)
UNKNOWN = "unknown"  # what a missing value is called in a prompt
TEXT = "text"  # a kind too, of `dpsyn.tables.texts`
DTYPES = {"integer": "<i8", "number": "<f8", "date": "<M8[D]", "datetime": "<M8[s]", "time": "<m8[s]", "boolean": "<i1"}
KEYS = {
    "category": ("values",),
    "ordered": ("values",),
    "boolean": ("values",),
    **{kind: ("bounds", "resolution", "bins", "special") for kind in ("integer", "number")},
    **{kind: ("bounds", "resolution", "bins", "special", "format") for kind in ("date", "time")},
    "datetime": ("bounds", "resolution", "bins", "special", "format", "timezone"),
}
SHARED = ("kind", "missing", "missing_values", "outside", "weight")
OUTSIDE = {
    "category": ("refuse", "other", "missing"),
    "ordered": ("refuse", "missing"),
    "boolean": ("refuse", "missing"),
    **{kind: ("clip", "refuse", "missing") for kind in NUMERIC},
}
OTHER = "other"
MAX_FLOAT = float(np.finfo(np.float64).max)
MOST = 2**63 - 2  # codes: what int64 holds beside a missing one
TRUTH = {"false": 0, "true": 1, "0": 0, "1": 1, "no": 0, "yes": 1, "f": 0, "t": 1, "n": 0, "y": 1}

# How a cell was parsed. Those from REFUSED on cannot be used.
FINE, CLIPPED, AS_OTHER, AS_MISSING, CUT, SHORTENED, AS_ELSE, REFUSED = range(8)
RULES = (
    "",
    "beyond the bounds, clipped to them",
    "not among the declared values, read as other",
    "outside the schema, read as missing",
    "a time of day in a column of kind date, cut",
    "a text of more words than declared, cut to its first ones",
    "longer than declared or of other characters, read as other",
    "missing, which the schema does not allow",
    "not a number",
    "not a whole number",
    "not a date as declared (2024-01-31, or its format)",
    "not a date and time as declared (2024-01-31 18:30:00, or its format)",
    "not a time of day as declared (18:30:00, or its format)",
    "a time with an offset from UTC, where the schema declares no timezone",
    "neither true nor false",
    "not among the declared values",
    "beyond the declared bounds",
    "no text",
    "a text of more words than declared",
    NOT_UTF8,
    "longer than declared or of other characters",
)
(
    NO_VALUE,
    NO_NUMBER,
    NO_INTEGER,
    NO_DATE,
    NO_DATETIME,
    NO_TIME,
    NO_ZONE,
    NO_BOOLEAN,
    UNDECLARED,
    BEYOND,
    NO_TEXT,
    LONG,
    NO_UTF8,
    UNSPELLED,
) = range(REFUSED, len(RULES))
NO_SUCH = {"date": NO_DATE, "datetime": NO_DATETIME, "time": NO_TIME}


@dataclass(frozen=True)
class Column:
    """kind: one of KINDS. values: of a category or an ordered one; of a boolean 'false' and 'true'; otherwise none.

    low, high, step: of numbers; of dates in days since 1970, of times in seconds since 1970 or midnight, on the clock
        of their zone.
    special: codes that are cells of their own, whatever the bins.
    missing: whether a value may be missing. texts: cells that mean so, in the spelling of `canonical`.
    outside: what a value outside the schema is read as.
    weight: in the distance.
    bins: of a number, cells of equal width; None: not declared.
    graded: of a number whose resolution is not declared; step is its coarsest.
    format, timezone: of times, how they are written and on which clock they are read.
    written: of a boolean, the words for false and true in its cells; () for any of the usual ones.
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
    graded: bool = False
    format: str | None = None
    timezone: str | None = None
    written: tuple[str, ...] = ()

    @property
    def has_order(self) -> bool:
        """Whether near values are alike."""
        return self.numeric or self.kind == "ordered"

    @property
    def numeric(self) -> bool:
        return self.kind in NUMERIC

    @property
    def whole(self) -> bool:
        """Whether values are held as int64."""
        return self.kind in WHOLE

    @property
    def dtype(self) -> str:
        return DTYPES.get(self.kind, "O")

    @functools.cached_property
    def size(self) -> int:
        """The number of codes."""
        if self.whole:
            return int(self.high - self.low) // int(self.step) + 1
        if self.graded:
            return int(self._grades.size)
        return _steps(self.low, self.high, self.step) if self.numeric else len(self.values)

    @property
    def form(self) -> Mapping[str, str]:
        """How cells are written: of a time 'format', of strftime, and 'timezone'; of a boolean 'false' and 'true'; of a
        number with a resolution its 'decimals'. What is not declared is left out."""
        said = {
            "format": self.format,
            "timezone": self.timezone,
            **dict(zip(("false", "true"), self.written, strict=False)),
        }
        if self.kind == "number" and not self.graded:
            said["decimals"] = str(_decimals(self.low, self.step))
        return {key: value for key, value in said.items() if value is not None}

    @property
    def finest(self) -> float:
        """The least distance between neighbouring values."""
        return self._grades.finest if self.graded else self.step

    def values_of(self, codes: np.ndarray) -> np.ndarray:
        """int64 [n], -1 for a missing one -> values of the column's dtype [n], as in `Samples.content`."""
        if not self.numeric:
            names = np.array([*self.values, None], object)
            return codes.astype(np.int8) if self.kind == "boolean" else names[codes]
        if self.kind == "number":
            return self.numbers_of(codes)
        values = np.where(codes < 0, MISSING, self.measured(codes)).astype(self.dtype)  # NaT is the same int64
        return times.existing(values, self.timezone) if self.kind == "datetime" else values

    def measured(self, codes: np.ndarray) -> np.ndarray:
        """[n]: what a place stands for, exactly: int64, of a number float64; of an ordered column the place itself.
        Anything for a missing one."""
        if self.kind == "number":
            return self.numbers_of(codes)
        return np.int64(self.low) + codes * np.int64(self.step) if self.whole else codes

    def numbers_of(self, codes: np.ndarray) -> np.ndarray:
        """float64 [n]: what a place stands for; of an ordered column the place itself. NaN for a missing one."""
        if self.graded:
            numbers = self._grades.numbers(codes)
        elif self.kind == "number":
            first, rest, factor, over = self._grid
            numbers = (codes + first) * factor / over
            numbers = (np.round(numbers + rest, _decimals(self.low, self.step)) if rest else numbers) + 0.0
        else:
            numbers = self.measured(codes).astype(np.float64)
        numbers[codes < 0] = np.nan
        return numbers

    def numbers(self, values: np.ndarray) -> np.ndarray:
        """float64 [n] of values of the column's dtype: of a category its place. NaN for a missing one."""
        if self.kind == "number":
            return values
        if not self.numeric:
            codes = self.codes_of(values)
            return np.where(codes < 0, np.nan, codes)
        whole = values.astype(np.int64)
        return np.where(whole == MISSING, np.nan, whole)

    def codes_of(self, values: np.ndarray) -> np.ndarray:
        """int64 [n]: the place of each value, or the one nearest to it. Raises UserError for an undeclared category."""
        if self.kind == "boolean":
            return values.astype(np.int64)
        if self.whole:
            whole = values.astype(np.int64)
            above = whole.clip(self.low, self.high) - np.int64(self.low)
            nearest = above // np.int64(self.step) + (above % np.int64(self.step) > int(self.step) // 2)
            return np.where(whole == MISSING, -1, np.minimum(nearest, self.size - 1))
        if self.numeric:
            none = np.isnan(values)
            numbers = np.where(none, self.low, values).clip(self.low, self.high)
            if self.graded:
                steps = self._grades.codes_of(numbers)
            else:
                first, rest, _, _ = self._grid
                steps = np.rint((numbers - rest) / self.step).astype(np.int64) - np.int64(first)
            return np.where(none, -1, steps.clip(0, self.size - 1))
        try:
            return np.fromiter(map(self._index.__getitem__, values.tolist()), np.int64, len(values))
        except KeyError:
            pass
        raise UserError(f"column '{self.name}': a value is not among those that the schema declares.")

    @functools.cached_property
    def _grades(self) -> Grades:
        return Grades(self.low, self.high)

    @functools.cached_property
    def _grid(self) -> tuple[int, float, float, float]:
        """(first, rest, factor, over) of a number with a resolution: place p stands for (p + first) * factor / over +
        rest. Counted from zero, not from a bound that may be so large that floats lose the steps."""
        low, step = Decimal(repr(self.low)), Decimal(repr(self.step))
        first = int(low // step) - (low < 0 and low % step != 0)
        digits = max(0, -int(step.normalize().as_tuple().exponent))
        if digits > 22:  # beyond which no power of ten is a float64
            return first, float(low - first * step), self.step, 1.0
        return first, float(low - first * step), float(step.scaleb(digits)), 10.0**digits

    def words_of(self, values: np.ndarray) -> list[str]:
        """What a prompt says of values of the column's dtype, [n]; UNKNOWN of a missing one."""
        if self.kind == "boolean":
            words = [*(self.written or self.values), UNKNOWN]
            return [words[value] for value in values.tolist()]
        if self.kind == "number":
            return [UNKNOWN if value != value else f"{value:.6g}" for value in values.tolist()]
        if self.kind in TIMES:
            return [UNKNOWN if np.isnat(value) else str(value.item()) for value in values]
        return [UNKNOWN if value is None or value == MISSING else str(value) for value in values.tolist()]

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """float64 [n] in 0..1 of a numeric or an ordered column; NaN for a missing value, 0 in a constant column."""
        low, high = (self.low, self.high) if self.numeric else (0, self.size - 1)
        return ((self.numbers(values) - low) / max(high - low, np.finfo(float).tiny)).clip(0, 1)

    def read(self, cells: Sequence[str | None], known: ReadCells | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Values of the column's dtype [n], and int64 [n]: what became of each cell, an index into RULES.

        White space around a cell does not count. How a cell is read depends on it alone.

        cells: as they stand in the file, [n]; None for a missing one.
        known: cells of the column that were read before; the new ones are added; None: there are none.
        """
        known = ReadCells(self) if known is None else known
        order = np.fromiter(map(known.__getitem__, cells), np.int64, len(cells))
        return known.parsed[order], known.became[order]

    @functools.cached_property
    def _index(self) -> Mapping[str | None, int]:
        """The place of every value, and of a missing one."""
        return {**{value: place for place, value in enumerate(self.values)}, None: -1}

    @functools.cached_property
    def _spellings(self) -> Mapping[str, Any]:
        """What a cell means in the one spelling of `canonical`; of a boolean 0 or 1, by its declared words."""
        if self.kind == "boolean":
            return {canonical(word).casefold(): place for place, word in enumerate(self.written)}
        return {canonical(value): value for value in self.values}

    @property
    def _none(self) -> Any:
        if self.whole:
            return np.int64(MISSING).view(self.dtype)
        return {"number": math.nan, "boolean": -1}.get(self.kind)

    def is_missing(self, cell: str | None) -> bool:
        """Whether a cell is one of those that mean a missing value, however it spells it: 99.0 where 99 does."""
        return cell is None or canonical(cell) in self.texts

    @functools.cached_property
    def _missing_numbers(self) -> frozenset[float]:
        """What stands for a missing value in a column of numbers or times."""
        read = self._time if self.kind in TIMES else _whole if self.kind == "integer" else _real
        return frozenset(number for number, rule in map(read, self.texts) if rule < REFUSED)

    def _cell(self, cell: str | None) -> tuple[Any, int]:
        if cell is None or self.is_missing(cell):
            return self._none, FINE if self.missing else NO_VALUE
        value, rule = (self._numeric if self.numeric else self._named)(cell.strip())
        return (self._none, AS_MISSING) if rule >= REFUSED and self.outside == "missing" else (value, rule)

    def _named(self, text: str) -> tuple[Any, int]:
        if self.kind == "boolean":
            value = self._spellings.get(canonical(text).casefold(), TRUTH.get(canonical(text).lower()))
            return (self._none, NO_BOOLEAN) if value is None else (value, FINE)
        if text in self._index:
            return text, FINE
        if (value := self._spellings.get(canonical(text))) is not None:
            return value, FINE
        return (OTHER, AS_OTHER) if self.outside == OTHER else (None, UNDECLARED)

    def _numeric(self, text: str) -> tuple[Any, int]:
        number: float
        if self.kind in TIMES:
            number, rule = self._time(text)
        else:
            number, rule = (_whole if self.kind == "integer" else _real)(text)
        if rule < REFUSED and number in self._missing_numbers:
            return self._none, FINE if self.missing else NO_VALUE
        if rule < REFUSED and not self.low <= number <= self.high:
            number = self.low if number < self.low else self.high
            rule = CLIPPED if self.outside == "clip" else BEYOND
        if rule >= REFUSED:
            return self._none, rule
        return np.int64(number).view(self.dtype) if self.whole else number, rule

    def _time(self, text: str) -> tuple[int, int]:
        """Days of a date, seconds of a time, down to a multiple of its resolution."""
        try:
            if self.kind == "time":
                number, rule = times.clock(text, self.format), FINE
            elif self.kind == "date":
                number, is_cut = times.day(text, self.format)
                return number, CUT if is_cut else FINE
            else:
                number, rule = times.moment(text, self.format, self.timezone), FINE
        except times.OffsetGiven:
            return 0, NO_ZONE
        except (ValueError, OverflowError):
            return 0, NO_SUCH[self.kind]
        return number // int(self.step) * int(self.step), rule


class ReadCells(dict[str | None, int]):
    """The cells of a column that were met, each parsed once: a number a cell. As private as the cells are.

    parsed, became: by number, as `Column.read` gives them.
    """

    def __init__(self, column: Column) -> None:
        super().__init__()
        self._parse = column._cell
        self.parsed, self.became = np.empty(64, column.dtype), np.empty(64, np.int64)

    def __missing__(self, cell: str | None) -> int:
        number = len(self)
        if number == len(self.parsed):
            self.parsed, self.became = np.resize(self.parsed, 2 * number), np.resize(self.became, 2 * number)
        self.parsed[number], self.became[number] = self._parse(cell)
        self[cell] = number
        return number


def _whole(text: str) -> tuple[int, int]:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return 0, NO_NUMBER
    if not number.is_finite() or "_" in text:
        return 0, NO_NUMBER
    if number.adjusted() > 30:  # beyond any bounds; 1e999999999 takes a gigabyte to write out
        return int(math.copysign(10**30, number)), FINE
    return (int(number), FINE) if number == number.to_integral_value() else (0, NO_INTEGER)


def _real(text: str) -> tuple[float, int]:
    try:
        number = float(text)
    except ValueError:
        return 0, NO_NUMBER
    return (number, FINE) if math.isfinite(number) and "_" not in text else (0, NO_NUMBER)


def _steps(low: float, high: float, step: float) -> int:
    return math.floor((high - low) / step + 1e-9) + 1


def _decimals(*numbers: float) -> int:
    """Digits after the point that all are written with."""
    return max(max(0, -int(Decimal(repr(number)).normalize().as_tuple().exponent)) for number in numbers)


# Declarations


def declared(key: str, name: str, said: Any, is_label: bool) -> Column:
    """A column from its mapping in a schema. Raises UserError, each about one key.

    key: where the column stands, for messages.
    name: of the column.
    said: its mapping, as it was read.
    is_label: whether it is a label column.
    """
    if not isinstance(said, Mapping):
        raise invalid(key, said, "a mapping, {kind: ...}")
    kind = said.get("kind")
    if kind not in KINDS:
        every = (*KINDS, TEXT)
        raise invalid(f"{key}.kind", "null" if kind is None else kind, one_of(every), did_you_mean(str(kind), every))
    known = (*SHARED, *KEYS[str(kind)])
    for word in said:
        if word not in known:
            what = f"{one_of(known)}, for a column of kind {kind}"
            raise invalid(f"{key}.{word}", said[word], what, did_you_mean(str(word), known))
    missing = said.get("missing", False)
    if type(missing) is not bool:
        raise invalid(f"{key}.missing", missing, "true or false")
    allowed = tuple(word for word in OUTSIDE[str(kind)] if missing or word != "missing")
    outside = said.get("outside", "refuse" if is_label else allowed[0])
    if outside not in allowed:
        also = " (missing only with missing: true)" if outside == "missing" else ""
        raise invalid(f"{key}.outside", outside, f"{one_of(allowed)}, for a column of kind {kind}{also}")
    weight = said.get("weight", 1.0)
    if type(weight) not in (int, float) or not 0 <= weight < math.inf:
        raise invalid(f"{key}.weight", weight, "a number, 0 or more")
    texts = frozenset(map(canonical, ("", *_texts(f"{key}.missing_values", said.get("missing_values", []), least=0))))
    shared = {"missing": missing, "texts": texts, "outside": outside, "weight": float(weight)}
    if kind in NUMERIC:
        return _numeric_column(key, name, str(kind), said, shared)
    if kind == "boolean":
        words = _texts(f"{key}.values", said["values"], least=2) if said.get("values") is not None else ()
        if len(words) not in (0, 2):
            raise invalid(f"{key}.values", list(words), "two texts, for false and for true: ['no', 'yes']")
        if clash := texts & set(map(canonical, words)):
            raise invalid(f"{key}.missing_values", min(clash), "no text that is a value")
        return Column(name, "boolean", ("false", "true"), written=words, **shared)
    values = _texts(f"{key}.values", said.get("values"))
    if outside == OTHER and OTHER not in values:
        values = (*values, OTHER)
    if clash := texts & set(map(canonical, values)):
        do = "Leave it out of values, and say missing: true."
        raise invalid(f"{key}.missing_values", min(clash), "no text that is a value", do)
    return Column(name, str(kind), values, **shared)


def _texts(key: str, values: Any, least: int = 1) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) < least:
        some = ", with at least one" if least else ""
        raise invalid(key, "null" if values is None else values, f"a list of texts{some}")
    for value in values:
        if type(value) not in (str, int):
            raise invalid(key, value, "a list of texts", "Put it in quotes.")
    texts = tuple(str(value).strip() for value in values)
    spelled = [canonical(text) for text in texts]
    if len(set(spelled)) < len(texts):
        twice = next(text for text, one in zip(texts, spelled, strict=True) if spelled.count(one) > 1)
        raise invalid(key, repr(twice), "every value once")
    if least and "" in texts:
        raise invalid(key, "''", "values with a name", "An empty cell is a missing one: say missing: true.")
    return texts


def _numeric_column(key: str, name: str, kind: str, said: Mapping[str, Any], known: Mapping[str, Any]) -> Column:
    if kind in TIMES:
        known = {**known, **_time_facts(key, kind, said)}
    form, zone = known.get("format"), known.get("timezone")
    bounds = said.get("bounds")
    if isinstance(bounds, str) or not isinstance(bounds, Sequence) or len(bounds) != 2:
        raise invalid(
            f"{key}.bounds", "null" if bounds is None else bounds, "two of them, [lowest, highest], both public"
        )
    low, high = (
        _bound(f"{key}.bounds", kind, bound, form, zone, at_end) for bound, at_end in zip(bounds, (0, 1), strict=True)
    )
    if low > high:
        raise invalid(f"{key}.bounds", f"[{bounds[0]}, {bounds[1]}]", "the lower one first")
    if high - low > MAX_FLOAT:
        raise invalid(f"{key}.bounds", f"[{bounds[0]}, {bounds[1]}]", "bounds whose distance a float64 holds")
    step = _resolution(key, kind, said.get("resolution"))
    graded = kind == "number" and step is None
    if graded:
        step = Grades(low, high).coarsest
    elif step is None:
        step = 1
    if kind in ("datetime", "time"):
        low, high = (bound // int(step) * int(step) for bound in (low, high))
    apart = high - low
    if kind in WHOLE and apart > MOST:
        raise invalid(f"{key}.bounds", f"[{bounds[0]}, {bounds[1]}]", "bounds that are less than 2^63 apart")
    if kind == "number" and not graded and max(-low, high) / step >= 2**62:
        raise invalid(f"{key}.resolution", step, "a coarser one: these bounds hold more than 2^62 values")
    bins = said.get("bins")
    if bins is not None and (type(bins) is not int or not 1 <= bins <= 2**16):
        raise invalid(f"{key}.bins", bins, "a whole number, 1 to 65536")
    step = int(step) if kind in WHOLE else float(step)
    column = Column(name, kind, (), low, high, step, bins=bins, graded=graded, **known)
    special = said.get("special", [])
    if isinstance(special, str) or not isinstance(special, Sequence):
        raise invalid(f"{key}.special", special, "a list of values that have a meaning of their own, [0]")
    numbers = [_bound(f"{key}.special", kind, value, form, zone, 0) for value in special]
    if any(not low <= number <= high for number in numbers):
        raise invalid(f"{key}.special", list(special), "values within the bounds")
    values = np.array(numbers, np.int64 if column.whole else np.float64)
    codes = sorted(set(column.codes_of(values).tolist()))
    return replace(column, special=tuple(codes))


def _time_facts(key: str, kind: str, said: Mapping[str, Any]) -> dict[str, Any]:
    form = said.get("format")
    if form is not None and not times.is_format(form, kind):
        raise invalid(f"{key}.format", form, times.FORMATS_OF[kind])
    zone = said.get("timezone")
    if zone is not None and not times.is_zone(zone):
        raise invalid(f"{key}.timezone", zone, "null, UTC, an offset such as '+01:00', or a name such as Europe/Berlin")
    return {"format": times.format_named(form), "timezone": zone}


def _resolution(key: str, kind: str, said: Any) -> Any:
    """A number, or None where none is declared."""
    if kind in ("datetime", "time"):
        units = [unit for unit in times.UNITS if kind == "datetime" or unit != "day"]
        if said is not None and said not in units:
            raise invalid(f"{key}.resolution", said, one_of(units))
        return times.UNITS[said or "second"]
    step = _number(said)
    if step is None:
        return None
    if type(step) not in (int, float) or not 0 < step < math.inf:
        raise invalid(f"{key}.resolution", step, "a number over 0: the distance between neighbouring values")
    if kind != "number" and step != int(step):
        raise invalid(f"{key}.resolution", step, "a whole number" + (" of days" if kind == "date" else ""))
    return step


def _number(value: Any) -> Any:
    """1e6 is a text to yaml, which wants 1.0e+6. What is no number stays what it is."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


def _bound(key: str, kind: str, value: Any, form: str | None, zone: str | None, at_end: int) -> Any:
    """at_end: 1 for an upper bound, which holds all of the day or minute that it names."""
    if kind in TIMES:
        number = times.bound(str(value), kind, form, zone, bool(at_end))
        if number is None or (kind == "time" and type(value) is int):
            what = {"date": "dates, 2020-01-31", "datetime": "times, '2020-01-31 18:30:00'", "time": "times, '18:30'"}
            raise invalid(key, value, what[kind], "Put them in quotes." if kind == "time" else "")
        return number
    value = _number(value)
    is_whole = type(value) is int or (type(value) is float and math.isfinite(value) and value == math.floor(value))
    if kind == "integer" and not (is_whole and abs(value) < 2**63):
        raise invalid(key, value, "whole numbers of 64 bits")
    if type(value) not in (int, float) or not abs(value) <= MAX_FLOAT:
        raise invalid(key, value, "numbers")
    return int(value) if kind == "integer" else float(value)
