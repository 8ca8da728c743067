"""Dates and times as cells write them: days since 1970, seconds since 1970 or midnight, on the clock of their zone."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Mapping
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
NAMED: Mapping[str, str] = {
    "iso": "%Y-%m-%d",
    "slashed": "%Y/%m/%d",
    "compact": "%Y%m%d",
    "dotted": "%d.%m.%Y",
    "day/month/year": "%d/%m/%Y",
    "month/day/year": "%m/%d/%Y",
}
FORMATS_OF = {
    "date": f"one of {', '.join(NAMED)}, or one of strptime's, '%d.%m.%Y', with year, month and day",
    "datetime": "one of strptime's with a year, month, day and hour, '%d.%m.%Y %H:%M'",
    "time": "one of strptime's with an hour, '%H:%M'",
}
DAYS = re.compile(r"(\d{4})([-/]?)(\d\d)\2(\d\d)|(\d\d)\.(\d\d)\.(\d{4})")  # in which no day can be a month
OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)")
EPOCH = datetime.datetime(1970, 1, 1)
SAMPLE = datetime.datetime(2001, 2, 3, 4, 5, 6)


class OffsetGiven(ValueError):
    """A cell says how far its clock is from UTC, and the schema does not say on which clock the column is."""


def format_named(form: str | None) -> str | None:
    return None if form is None else NAMED.get(form, form)


def is_format(form: Any, kind: str) -> bool:
    """Whether what is written so can be read back: a date its day, a time its hour, a datetime both.

    form: as a schema gives it.
    kind: 'date', 'time' or 'datetime'.
    """
    if not isinstance(form, str) or (form in NAMED and kind != "date"):
        return False
    form = NAMED.get(form, form)
    try:
        read = datetime.datetime.strptime(SAMPLE.strftime(form), form)
    except (ValueError, re.error):
        return False
    return (kind == "time" or read.date() == SAMPLE.date()) and (kind == "date" or read.hour == SAMPLE.hour)


def is_zone(zone: Any) -> bool:
    try:
        return isinstance(zone, str) and zone_of(zone) is not None
    except (ValueError, OSError):
        return False


@functools.lru_cache(maxsize=64)
def zone_of(name: str) -> datetime.tzinfo:
    """Raises ValueError or OSError for a name that is none."""
    if found := OFFSET.fullmatch(name):
        minutes = int(found[2]) * 60 + int(found[3])
        return datetime.timezone(datetime.timedelta(minutes=-minutes if found[1] == "-" else minutes))
    if name == "UTC":
        return datetime.UTC
    try:
        return ZoneInfo(name)
    except KeyError:  # ZoneInfoNotFoundError
        raise ValueError(name) from None


def day(text: str, form: str | None = None) -> tuple[int, bool]:
    """Days since 1970, and whether a time of day that is not midnight was cut off. Raises ValueError for no date.

    text: of a cell.
    form: how it is written; None: as ISO 8601 says.
    """
    if form is not None:
        try:
            moment = datetime.datetime.strptime(text, form)
            return _days(moment), moment.time() != datetime.time()
        except ValueError:
            if form == "%Y-%d-%m" or not re.match(r"\d{4}-\d\d-\d\d", text):  # as parquet's dates come
                raise
    found = DAYS.match(text)
    if found is None:
        raise ValueError(text)
    year, month, day = (found[1], found[3], found[4]) if found[1] else (found[7], found[6], found[5])
    days, rest = _days(datetime.datetime(int(year), int(month), int(day))), text[found.end() :]
    if not rest:
        return days, False
    if rest[0] not in " T":
        raise ValueError(text)
    return days, datetime.time.fromisoformat(rest[1:].strip()).replace(tzinfo=None) != datetime.time()


def moment(text: str, form: str | None = None, zone: str | None = None) -> int:
    """Seconds since 1970 on the clock of the zone; parts of a second are cut. A text with an offset is turned to that
    clock, one without is taken to be on it. Raises ValueError for no date with a time, or OffsetGiven.

    text: of a cell.
    form: how it is written; None: as ISO 8601 says.
    zone: of the column; None: it has none.
    """
    try:
        read = None if form is None else datetime.datetime.strptime(text, form)
    except ValueError:
        if not re.match(r"\d{4}-\d\d-\d\d[T ]", text):  # as parquet's times come
            raise
        read = None
    if read is None:
        found = DAYS.match(text)
        if found is None:
            raise ValueError(text)
        year, month, day = (found[1], found[3], found[4]) if found[1] else (found[7], found[6], found[5])
        rest = text[found.end() :]
        if rest and rest[0] not in "T ":
            raise ValueError(text)
        rest = rest[1:].replace(" ", "") or "00:00"
        read = datetime.datetime.fromisoformat(f"{year}-{month}-{day}T{rest}")
    if read.tzinfo is not None:
        if zone is None:
            raise OffsetGiven(text)
        read = read.astimezone(zone_of(zone)).replace(tzinfo=None)
    return (read - EPOCH) // datetime.timedelta(seconds=1)


def clock(text: str, form: str | None = None) -> int:
    """Seconds since midnight. Raises ValueError for no time of day, or OffsetGiven.

    text: of a cell.
    form: how it is written; None: as ISO 8601 says.
    """
    try:
        read = None if form is None else datetime.datetime.strptime(text, form).time()
    except ValueError:
        if not re.fullmatch(r"\d\d:\d\d:\d\d(\.\d+)?", text):
            raise
        read = None
    if read is None:
        if re.match(r"\d:", text):
            text = f"0{text}"
        if not re.match(r"\d\d:", text):  # a bare 18 or 1830 is a number
            raise ValueError(text)
        read = datetime.time.fromisoformat(text)
    if read.tzinfo is not None:
        raise OffsetGiven(text)
    return read.hour * 3600 + read.minute * 60 + read.second


def bound(text: str, kind: str, form: str | None, zone: str | None, at_end: bool) -> int | None:
    """As `day`, `moment` and `clock`, of a bound; None for what is none.

    text: as a schema gives it.
    kind: 'date', 'time' or 'datetime'.
    form: how cells are written; None: as ISO 8601 says.
    zone: of the column; None: it has none.
    at_end: whether a day or minute that is written without its seconds means its last one.
    """
    try:
        if kind == "date":
            return day(text, form)[0]
        number = clock(text, form) if kind == "time" else moment(text, form, zone)
    except ValueError:
        return None
    if not at_end or number % 60 or text.count(":") > 1:
        return number
    return number + (UNITS["minute"] if ":" in text or kind == "time" else UNITS["day"]) - 1


def existing(values: np.ndarray, zone: str | None) -> np.ndarray:
    """The same times; those that a clock leaves out when it is put forward become the first one after.

    values: datetime64[s] [n], on the clock of the zone.
    zone: None: none leaves out any.
    """
    return values if zone is None or OFFSET.fullmatch(zone) else from_utc(to_utc(values, zone), zone)


def to_utc(values: np.ndarray, zone: str) -> np.ndarray:
    """Times of a clock in UTC, datetime64[s] [n]; of an hour that comes twice the first one.

    values: datetime64[s] [n], on the clock of the zone.
    zone: its name, or an offset.
    """
    if zone == "UTC":
        return values
    if OFFSET.fullmatch(zone):
        return values - np.timedelta64(_offset(zone), "s")
    import pyarrow as pa
    import pyarrow.compute as pc

    local = pc.assume_timezone(pa.array(values), zone, ambiguous="earliest", nonexistent="latest")
    return np.asarray(local.cast(pa.timestamp("s")).to_numpy(zero_copy_only=False)).astype("<M8[s]")


def from_utc(values: np.ndarray, zone: str) -> np.ndarray:
    """Times in UTC on the clock of a zone, datetime64[s] [n]: the inverse of `to_utc`.

    values: datetime64[s] [n], in UTC.
    zone: its name, or an offset.
    """
    if zone == "UTC":
        return values
    if OFFSET.fullmatch(zone):
        return values + np.timedelta64(_offset(zone), "s")
    import pyarrow as pa
    import pyarrow.compute as pc

    local = pc.local_timestamp(pa.array(values, pa.timestamp("s", zone)))
    return np.asarray(local.to_numpy(zero_copy_only=False)).astype("<M8[s]")


def written(value: Any, form: Mapping[str, str]) -> Any:
    """A date, datetime or time of the released data as its column's cells are written.

    value: a date, a datetime, a time, or None.
    form: of `Column.form`.
    """
    if value is None:
        return None
    if isinstance(value, datetime.datetime) and "timezone" in form:
        value = value.astimezone(zone_of(form["timezone"]))
    return value.strftime(form["format"]) if "format" in form else str(value)


def _offset(zone: str) -> int:
    return int(zone_of(zone).utcoffset(None).total_seconds())  # type: ignore[union-attr]


def _days(moment: datetime.datetime) -> int:
    return (moment.date() - EPOCH.date()).days
