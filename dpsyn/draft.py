"""A schema drafted from a codebook or a public sample, to be mended by hand.

A codebook is a csv whose columns are name, kind, and as they apply values (parted by |), low, high, resolution, missing
(the cells that mean so, parted by |). Any other csv, jsonl or parquet file is a sample: kinds are guessed from its
cells, bounds are those of its cells rounded outwards.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import yaml

from dpsyn import times
from dpsyn.columns import KINDS, NUMERIC, REFUSED, Column, declared
from dpsyn.errors import UserError, bad, one_of
from dpsyn.rows import Broken, Columns, Row, delimiter_of, encoding_of, plain_number
from dpsyn.sources import Source

WARNING = """\
A schema is public, and a run publishes it. Bounds and values that were read off the private rows break the
differential privacy of all that follows: draft from a codebook or from a public sample, never from the private data."""
ROWS = 200_000  # of a sample
VALUES = 100  # of a category that are listed, the most frequent ones
FEW = 20  # values that may all differ and be those of a category
PLACES = 8  # of a number behind its first digit that can be worth telling apart
NONE = ("", "?", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", ".")
ENOUGH = 50  # rows that show an order between two columns
MOST_ORDERS = 10
USER = "names the user of a row, see `unit` below; in no synthetic row"
KEY_NAME = re.compile(
    r"(^|[_\s-])(id|ids|uuid|guid|key|hash|nr|no)$|[a-z]I[dD]$|^(patient|customer|user|client|member|person)$", re.I
)
INTEGER = re.compile(r"[+-]?\d{1,25}")
ZONE = re.compile(r"(?<=\d)(?:\s*)([+-]\d\d:?\d\d|Z)$")
BOOLEANS = (("false", "true"), ("no", "yes"), ("f", "t"), ("n", "y"), ("nein", "ja"), ("non", "oui"))
OTHER_FORMS = ("compact", "dotted", "slashed")  # that a date without a format is read in too, but not written
FORMS: tuple[tuple[str, str | None], ...] = (
    ("time", None),
    ("date", None),
    ("date", "%d/%m/%Y"),
    ("date", "%m/%d/%Y"),
    ("date", "%d-%m-%Y"),
    ("datetime", None),
    ("datetime", "%d/%m/%Y %H:%M"),
    ("datetime", "%d/%m/%Y %H:%M:%S"),
    ("datetime", "%m/%d/%Y %H:%M"),
    ("datetime", "%m/%d/%Y %H:%M:%S"),
    ("datetime", "%d.%m.%Y %H:%M"),
    ("datetime", "%d.%m.%Y %H:%M:%S"),
)
BOOK = ("name", "kind", "values", "low", "high", "resolution", "missing")


@dataclass(frozen=True)
class Dialect:
    """How the cells of a csv are written; of other files the defaults. Settings of the data, by their names there."""

    delimiter: str = ","
    encoding: str = "utf-8"
    decimal: str = "."
    thousands: str | None = None

    @property
    def settings(self) -> str:
        """What a run has to be told: 'data.delimiter=; data.decimal=,'; '' where all is as usual."""
        usual = Dialect()
        said = {key: value for key, value in asdict(self).items() if value != getattr(usual, key)}
        return " ".join(f"'data.{key}={value}'" for key, value in said.items())


def draft(path: str, delimiter: str | None = None, encoding: str | None = None) -> str:
    """The text of a yaml. delimiter, encoding: of a csv; None: as its first lines look.

    Raises UserError for what cannot be read.
    """
    source = Source(path, None, ("csv", "jsonl", "parquet"), None, "train")
    first = source.check()
    if first is None:
        raise bad("FILE", path, "a csv, jsonl or parquet file")
    dialect = Dialect()
    if source.kind() == "csv":
        encoding = encoding or encoding_of(first)
        is_tabs = first.name.lower().removesuffix(".gz").endswith(".tsv")
        delimiter = delimiter or ("\t" if is_tabs else delimiter_of(first, encoding))
        dialect = Dialect("," if is_tabs and delimiter == "\t" else delimiter, encoding)
        source = replace(source, delimiter=delimiter, encoding=encoding)
        source.check_settings()
    rows = [row for row in itertools.islice(_rows(source), ROWS) if not isinstance(row, Broken)]
    if not rows:
        raise bad("FILE", path, "a file with at least one row")
    lines = [f"# {line}" for line in WARNING.splitlines()]
    if set(rows[0]) <= set(BOOK) and {"name", "kind"} <= set(rows[0]):
        lines.append(f"# Drafted from a codebook, {Path(path).name}. Read every line.")
        return "\n".join([*lines, "columns:", *(f"  {_from_book(row)}" for row in rows), *_end()]) + "\n"
    cells = {name: [row[name] for row in rows] for name in rows[0]}
    if source.kind() == "csv":
        dialect = _with_numbers(dialect, cells)
        if (dialect.decimal, dialect.thousands) != (".", None):
            cells = {name: [plain_number(c, dialect.decimal, dialect.thousands) for c in cells[name]] for name in cells}
    lines.append(f"# Drafted from a sample of rows, {Path(path).name}. Read every line: kinds are guesses.")
    if dialect.settings:
        lines.append(f"# It was read as the settings {dialect.settings} say: a run needs them too.")
    return "\n".join([*lines, "columns:", *_from_sample(cells)]) + "\n"


def _from_sample(cells: Mapping[str, Sequence[str | None]]) -> Iterator[str]:
    """Lines of the columns, then of what follows them."""
    unit, columns, left_out = None, {}, not all(cells)
    for name in filter(None, cells):
        line, facts = _from_cells(name, cells[name], unit is None)
        yield f"  {line}"
        left_out |= facts is None
        if facts == USER:
            unit = name
        elif facts is not None:
            columns[name] = declared("FILE", name, yaml.safe_load(facts), False)
    if not columns:
        yield "  # no column is left: declare at least one"
    yield from _end(unit, _orders(columns, cells), left_out)


def _end(unit: str | None = None, orders: Sequence[str] = (), left_out: bool = False) -> Iterator[str]:
    yield "labels: []        # columns of few values, given to every synthetic row; [] for none"
    named = "null" if unit is None else _text(unit)
    yield f"unit: {named}        # the column that names a row's user; not declared above"
    yield "constraints: []   # 'a <= b', 'x is null unless y', \"x is null unless y == 'v'\""
    if orders:
        yield "# These orders hold in all rows of the sample. Where they must always hold, replace the line above:"
        yield f"# constraints: {_listed(orders)}"
    yield f"extra: {'ignore' if left_out else 'refuse'}     # columns that are not declared; ignore: they are left out"


def _orders(columns: Mapping[str, Column], cells: Mapping[str, Sequence[str | None]]) -> list[str]:
    """'a <= b' of columns of numbers or times that are never the other way round and whose values overlap."""
    numbers: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        if column.numeric:
            values, _ = column.read(cells[name])
            numbers[name] = column.numbers(values)
    found = []
    for one, two in itertools.permutations(numbers, 2):
        is_date = [columns[name].kind in ("date", "datetime") for name in (one, two)]
        if columns[one].kind != columns[two].kind and not all(is_date):
            continue
        days = [numbers[name] * (86400 if columns[name].kind == "date" else 1) for name in (one, two)]
        low, high = days if all(is_date) else (numbers[one], numbers[two])
        both = ~(np.isnan(low) | np.isnan(high))
        low, high = low[both], high[both]
        if len(low) >= ENOUGH and (low <= high).all() and (low < high).any() and high.min() < low.max():
            found.append(f"{one} <= {two}")
    return [order for order in found if re.fullmatch(r"\w+ <= \w+", order)][:MOST_ORDERS]


def _with_numbers(dialect: Dialect, cells: Mapping[str, Sequence[str | None]]) -> Dialect:
    """With the signs in its numbers: those by which all cells of some column are numbers, and would not be else."""
    for decimal, thousands in (
        (",", None),
        (",", "."),
        (",", " "),
        (",", "\u00a0"),
        (".", ","),
        (".", "'"),
        (".", " "),
    ):
        for column in cells.values():
            texts = {text for cell in column if (text := (cell or "").strip()) not in NONE}
            plain = {str(plain_number(text, decimal, thousands)) for text in texts}
            if texts and not _numbers(Counter(texts)) and _numbers(Counter(plain)):
                return replace(dialect, decimal=decimal, thousands=thousands)
    return dialect


def _rows(source: Source) -> Iterator[Row | Broken]:
    names: list[str] = []

    def all_of(there: Columns) -> list[str]:
        if there.names is None:
            raise bad("FILE", source.path, "csv or parquet; every line of a jsonl file has columns of its own")
        names[:] = list(there.names)
        return names

    for _, rows in source.tables(all_of):
        yield from rows


def _from_book(row: Mapping[str, str | None]) -> str:
    said = {key: (row.get(key) or "").strip() for key in BOOK}
    name, kind = said["name"], said["kind"].lower()
    if not name:
        raise bad("FILE", "''", "a name in every row of the codebook")
    if kind not in KINDS:
        raise bad("FILE", said["kind"], f"{one_of(KINDS)} as the kind of '{name}'")
    facts = [f"kind: {kind}"]
    if kind in NUMERIC:
        if not (said["low"] and said["high"]):
            raise UserError(f"FILE: the codebook gives no low and high of '{name}', a column of kind {kind}.")
        facts.append(f"bounds: [{said['low']}, {said['high']}]")
        facts += [f"resolution: {said['resolution']}"] if said["resolution"] else []
    elif kind != "boolean":
        facts.append(f"values: {_listed(_parted(said['values']))}")
    if said["missing"]:
        facts.append(_missing(_parted(said["missing"])))
    return f"{_text(name)}: {{{', '.join(facts)}}}"


def _parted(cell: str) -> list[str]:
    return [part.strip() for part in cell.split("|")]


def _from_cells(name: str, cells: Sequence[str | None], may_be_user: bool) -> tuple[str, str | None]:
    """The line of a column, and its facts as yaml: None where it is left out, USER where it names users."""
    counts = Counter((cell or "").strip() for cell in cells)
    none = [text for text in NONE if counts.pop(text, 0)]
    if not counts:
        return f"# {_text(name)}: every cell is missing; declare what it may hold, or leave it out", None
    if name.startswith("Unnamed: ") and set(counts) == set(map(str, range(len(cells)))):
        return f"# {_text(name)}: the numbers of rows that pandas writes; left out", None
    if (remark := _key(name, counts, may_be_user)) is not None:
        return f"# {_text(name)}: {remark}", USER if remark == USER else None
    facts, remark = _guess(counts)
    said = [*facts, *([_missing(none)] if none else [])]
    text = f"{{{', '.join(said)}}}"
    if facts and not _reads(name, text, cells):
        values = [value for value, _ in counts.most_common(VALUES)]
        said = ["kind: category", f"values: {_listed(sorted(values))}", "outside: other"]
        text, remark = f"{{{', '.join([*said, *([_missing(none)] if none else [])])}}}", "cells of several kinds"
        facts = said if _reads(name, text, cells) else []
    if not facts:
        return f"# {_text(name)}: {remark}", None
    return f"{_text(name)}: {text}" + (f"   # {remark}" if remark else ""), text


def _reads(name: str, facts: str, cells: Sequence[str | None]) -> bool:
    """Whether a run would read all of these cells, as drafted."""
    try:
        _, rules = declared("FILE", name, yaml.safe_load(facts), False).read(cells)
    except UserError:
        return False
    return bool((rules < REFUSED).all())


def _key(name: str, counts: Counter[str], may_be_user: bool) -> str | None:
    """A remark on a column that names rows or users, or is a hash. None for any other; USER for one to be the unit."""
    rows = sum(counts.values())
    if any(INTEGER.fullmatch(text) and abs(int(text)) >= 2**53 for text in counts) and len(counts) > rows / 2:
        return "whole numbers of 64 bits that nearly all differ: keys or hashes; left out"
    if not KEY_NAME.search(name) or len(counts) <= FEW or any("." in text for text in counts):
        return None
    if len(counts) > 0.95 * rows:
        return "every row has its own: a key; left out. Say `unit:` if it names users"
    return USER if may_be_user else "several rows share one: it may name users; left out"


def _guess(counts: Counter[str]) -> tuple[list[str], str]:
    """What is said of a column, and a remark. Nothing is said of one that looks like a name or a text."""
    if words := next((pair for pair in BOOLEANS if {text.casefold() for text in counts} == set(pair)), None):
        spelled = [next(text for text in counts if text.casefold() == word) for word in words]
        known = {text.casefold(): text for text in spelled}
        return (["kind: boolean"] if words == ("false", "true") else
                ["kind: boolean", f"values: {_listed([known[word] for word in words])}"]), ""  # fmt: skip
    if {text.lower() for text in counts} <= {"true", "false"}:
        return ["kind: boolean"], ""
    if dates := _dates(counts):
        return dates
    if numbers := _numbers(counts):
        bounds, most = _outwards(min(numbers), max(numbers))
        exact = [Decimal(text) for text in counts]
        if all(number == number.to_integral_value() and abs(number) < 2**62 for number in exact) and not any(
            "." in text for text in counts
        ):
            return ["kind: integer", bounds], ""
        digits = min(most, max(max(0, -int(number.normalize().as_tuple().exponent)) for number in exact))
        return ["kind: number", bounds, f"resolution: {10**-digits:.{digits}f}"], ""
    if len(counts) > FEW and len(counts) > sum(counts.values()) / 2:
        return [], "nearly every cell differs: a name, a key or a text; left out"
    values = [text for text, _ in counts.most_common(VALUES)]
    facts = ["kind: category", f"values: {_listed(sorted(values))}"]
    if len(counts) > VALUES:
        return [*facts, "outside: other"], f"{len(counts)} values in the sample, the {VALUES} most frequent"
    return facts, ""


def _dates(counts: Counter[str]) -> tuple[list[str], str] | None:
    """Of dates, of dates with a time of day, of times of day; None for others."""
    for kind, form in FORMS:
        try:
            if kind == "time":
                seconds = [times.clock(text) for text in counts]
                unit = _unit(seconds)
                return [f"kind: {kind}", "bounds: ['00:00:00', '23:59:59']", f"resolution: {unit}"], ""
            if kind == "date":
                read = [times.day(text, form) for text in counts if not form or _is_written(text, form)]
                if len(read) < len(counts) or any(cut for _, cut in read):
                    continue
                days = [datetime.date(1970, 1, 1) + datetime.timedelta(days=number) for number, _ in read]
                if form is None and not all(1800 <= day.year <= 2200 for day in days):
                    continue  # eight digits that are no date
                facts = [f"kind: {kind}", f"bounds: [{min(days).year}-01-01, {max(days).year}-12-31]"]
                form = form or next((name for name in OTHER_FORMS if _all_written(counts, times.NAMED[name])), None)
                twin = {"%d/%m/%Y": "%m/%d/%Y", "%m/%d/%Y": "%d/%m/%Y"}.get(str(form))
                remark = f"or {twin}?" if twin and _all_written(counts, twin) else ""
                return [*facts, *([f"format: {_text(form)}"] if form else [])], remark
            zones = {
                ZONE.sub(lambda found: found[1] or "", found[0]) for text in counts if (found := ZONE.search(text))
            }
            zone = None if not zones else next(iter(zones)) if len(zones) == 1 else "UTC"
            zone = "UTC" if zone in ("Z", "+00:00", "+0000", "-00:00") else zone
            moments = [times.moment(text, form, zone) for text in counts if ":" in text]
            if len(moments) < len(counts):
                continue
        except (ValueError, OverflowError):
            continue
        low, high = (datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=pick(moments)) for pick in (min, max))
        facts = [f"kind: {kind}", f"bounds: ['{low.year}-01-01 00:00:00', '{high.year}-12-31 23:59:59']"]
        facts += [f"resolution: {_unit(moments)}", f"timezone: {'null' if zone is None else _text(zone)}"]
        return [*facts, *([f"format: {_text(form)}"] if form else [])], ""
    return None


def _all_written(texts: Iterable[str], form: str) -> bool:
    return all(_is_written(text, form) for text in texts)


def _is_written(text: str, form: str) -> bool:
    try:
        return bool(datetime.datetime.strptime(text, form))
    except ValueError:
        return False


def _unit(seconds: Sequence[int]) -> str:
    return next(
        name for name, size in (("hour", 3600), ("minute", 60), ("second", 1)) if not any(s % size for s in seconds)
    )


def _numbers(texts: Counter[str]) -> list[float]:
    """Empty where one is no number: 00501 is a code, and its zeros are part of it."""
    if any(re.match(r"[+-]?0\d", text) for text in texts):
        return []
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return []
    fine = all(math.isfinite(number) for number in numbers) and not any("_" in text for text in texts)
    return numbers if fine else []


def _outwards(low: float, high: float) -> tuple[str, int]:
    """Bounds, to the first digit of their distance, and how many digits behind the point are worth telling apart."""
    first = math.floor(math.log10(high - low)) if high > low else 0
    low, high = math.floor(low / 10.0**first) * 10.0**first, math.ceil(high / 10.0**first) * 10.0**first
    digits = max(0, -first)
    return f"bounds: [{low:.{digits}f}, {high:.{digits}f}]", max(0, PLACES - first)


def _missing(texts: Sequence[str]) -> str:
    named = [text for text in texts if text]
    return "missing: true" + (f", missing_values: {_listed(named)}" if named else "")


def _listed(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(_text, texts))}]"


def _text(text: str) -> str:
    """In quotes: yaml would read no, 1 and ~ as something else."""
    return json.dumps(text, ensure_ascii=False)
