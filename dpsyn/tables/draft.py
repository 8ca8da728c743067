"""A schema drafted from a codebook or a public sample, to be edited by hand.

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
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import yaml

from dpsyn.errors import UserError, invalid, one_of
from dpsyn.reading.lines import delimiter_of, encoding_of, jsonl_names
from dpsyn.reading.rows import GROUPING, Broken, Columns, Row, is_utf8, plain_number
from dpsyn.reading.sources import Source
from dpsyn.reading.spelling import canonical
from dpsyn.tables import times
from dpsyn.tables.columns import KINDS, NUMERIC, REFUSED, TEXT, Column, declared

WARNING = """\
A schema is public, and a run publishes it. Bounds and values that were read off the private rows break the
differential privacy of all that follows: draft from a codebook or from a public sample, never from the private data."""
ROWS = 200_000  # of a sample
VALUES = 100  # of a category that are listed, the most frequent ones
WORDS = 4  # of a cell in the middle, from which a column is one of texts
LENGTHS = (20, 50, 100, 200, 500, 1000, 2000, 5000)  # of texts, of which one is proposed
FEW = 20  # values that may all differ and be those of a category
PLACES = 8  # of a number behind its first digit that can be worth telling apart
NONE = ("", "?", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", ".")
ENOUGH = 50  # rows that show an order between two columns
MOST_ORDERS = 10
USER = "names the user of a row, see `unit` below; in no synthetic row"
KEY_NAME = re.compile(
    r"(^|[_\s-])(id|ids|uuid|guid|key|hash|nr|no)$|(?-i:[a-z]I[dD]$)|^(patient|customer|user|client|member|person)$"
    r"|^(kunde|kundin|kunden|patientin|patienten|nutzer|benutzer|cliente|usuario|utilisateur)(nummer|nr)?$",
    re.I,
)
NUMBERED = re.compile(r"(?<=[^\W\d])[-_]?\d+$")  # behind a letter
INTEGER = re.compile(r"[+-]?\d{1,25}")
ZONE = re.compile(r"(?<=\d)(?:\s*)([+-]\d\d:?\d\d|Z)$")
CASES = (str.lower, str.title, str.upper)
BOOLEANS = (("false", "true"), ("0", "1"), ("no", "yes"), ("f", "t"), ("n", "y"), ("nein", "ja"), ("non", "oui"))
OTHER_FORMS = ("compact", "dotted", "slashed")  # that a date without a format is read in too, but not written
FORMS: tuple[tuple[str, str | None], ...] = (
    ("time", None),
    ("date", None),
    ("date", "%d/%m/%Y"),
    ("date", "%m/%d/%Y"),
    ("date", "%d-%m-%Y"),
    *(("date", f"{day}{sign}%y") for sign in "./-" for day in (f"%d{sign}%m", f"%m{sign}%d")),
    *(("date", form) for form in ("%d-%b-%Y", "%d-%b-%y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y")),
    ("datetime", "%d.%m.%Y %H:%M"),
    ("datetime", "%d.%m.%Y %H:%M:%S"),
    ("datetime", None),
    ("datetime", "%d/%m/%Y %H:%M"),
    ("datetime", "%d/%m/%Y %H:%M:%S"),
    ("datetime", "%m/%d/%Y %H:%M"),
    ("datetime", "%m/%d/%Y %H:%M:%S"),
    ("datetime", "%m/%d/%Y %I:%M %p"),
    ("datetime", "%m/%d/%Y %I:%M:%S %p"),
)
PLAIN = ("integer", "number")  # kinds whose cells are read as data.decimal and data.thousands say
MAY_BE_NUMBER = re.compile(rf"[\d{re.escape(''.join(GROUPING))}eE+-]*\d[\d{re.escape(''.join(GROUPING))}eE+-]*")
OF_TEXTS = f"kind: {TEXT}"
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
        """What a run has to be told, for a shell: "'data.delimiter=;' data.decimal=,"; '' where all is as usual."""
        usual = asdict(Dialect())
        said = {key: value for key, value in asdict(self).items() if value != usual[key]}
        return " ".join(shlex.quote(f"data.{key}={value}".replace("\t", "\\t")) for key, value in said.items())

    def plain(self, cells: Sequence[str | None]) -> list[str | None]:
        """Cells of numbers as Python writes them, as `dpsyn.reading.rows.plain_number` does."""
        if (self.decimal, self.thousands) == (".", None):
            return list(cells)
        return [
            cell if (cell or "").strip() in NONE else plain_number(cell, self.decimal, self.thousands) for cell in cells
        ]


@dataclass(frozen=True)
class Texts:
    """Which columns of a sample are declared as texts. names: these, whatever they look like; None: all that look so.
    about: what a text is, for prompts; None: it is left to be said."""

    names: Sequence[str] | None = ()
    about: str | None = None


NO_TEXTS = Texts()


def draft(path: str, delimiter: str | None = None, encoding: str | None = None, texts: Texts = NO_TEXTS) -> str:
    """The text of a yaml that declares the columns of a file.

    path: a file, a folder or a pattern.
    delimiter: of a csv; None: as its first lines look.
    encoding: of a csv; None: as its first lines look.
    texts: which columns of a sample are texts.

    Raises UserError for what cannot be read.
    """
    source = Source(path, None, ("csv", "jsonl", "parquet"), None, "train")
    first = source.check()
    if first is None:
        raise invalid("FILE", path, "a csv, jsonl or parquet file")
    dialect = Dialect()
    if source.kind() == "csv":
        encoding = encoding or encoding_of(first)
        replace(source, delimiter=delimiter, encoding=encoding).check_settings()
        is_tabs = first.name.lower().removesuffix(".gz").endswith(".tsv")
        delimiter = delimiter or ("\t" if is_tabs else delimiter_of(first, encoding))
        dialect = Dialect("," if is_tabs and delimiter == "\t" else delimiter, encoding)
        source = replace(source, delimiter=delimiter, encoding=encoding)
    found = list(itertools.islice(_rows(source), ROWS))
    rows = [row for row in found if not isinstance(row, Broken)]
    if not rows:
        raise invalid("FILE", path, "a file with at least one row")
    lines = [f"# {line}" for line in WARNING.splitlines()]
    if set(rows[0]) <= set(BOOK) and {"name", "kind"} <= set(rows[0]):
        lines.append(f"# Drafted from a codebook, {Path(path).name}. Read every line.")
        return "\n".join([*lines, "columns:", *(f"  {_from_book(row, texts)}" for row in rows), *_end()]) + "\n"
    cells = {name: [row[name] for row in rows] for name in rows[0]}
    if source.kind() == "csv":
        dialect = _with_numbers(dialect, cells)
    lines.append(f"# Drafted from a sample of rows, {Path(path).name}. Read every line: kinds are guesses.")
    if dialect.settings:
        lines.append(f"# It was read as the settings {dialect.settings} say: a run needs them too.")
    lines += [f"# {line}" for line in _doubts(dialect, cells)]
    if nested := source.kind() == "jsonl" and jsonl_names(first, ROWS)[1]:
        lines.append(f"# Left out, as they hold lists or objects: {', '.join(map(_text, nested))}.")
    if broken := Counter(f"{row.column} {row.rule}" for row in found if isinstance(row, Broken)):
        told = "; ".join(f"{count} of {len(found)} lines: {rule}" for rule, count in broken.items())
        lines.append(f"# Not in the draft, and refused by a run: {told}.")
    return "\n".join([*lines, "columns:", *_from_sample(cells, dialect, texts, bool(nested))]) + "\n"


def _from_sample(
    cells: Mapping[str, Sequence[str | None]], dialect: Dialect, texts: Texts, left_out: bool
) -> Iterator[str]:
    """Lines of the columns, then of what follows them. left_out: whether the file has columns besides `cells`."""
    unit, columns = None, dict[str, Column]()
    if not all(cells):
        left_out = True
        yield '  # "": a column without a name, such as the numbers of rows that programs write; left out'
    for name in filter(None, cells):
        line, facts = _from_cells(name, cells[name], dialect, unit is None, texts)
        yield f"  {line}"
        left_out |= facts is None
        if facts == USER:
            unit = name
        elif facts not in (None, TEXT):
            columns[name] = declared("FILE", name, yaml.safe_load(facts), False)
    if not columns:
        yield "  # no column is left: declare at least one"
    plain = {name: dialect.plain(cells[name]) if columns[name].kind in PLAIN else cells[name] for name in columns}
    yield from _end(unit, _orders(columns, plain), left_out)


def _doubts(dialect: Dialect, cells: Mapping[str, Sequence[str | None]]) -> Iterator[str]:
    """Columns in which 1.234 may be a little over one, or more than a thousand."""
    for name, column in cells.items():
        texts = {text for cell in column if (text := (cell or "").strip()) not in NONE}
        for sign, other in ((".", ","), (",", ".")):
            grouped = [text for text in texts if sign in text]
            in_doubt = grouped and all(re.fullmatch(rf"[+-]?[1-9]\d{{0,2}}\{sign}\d{{3}}", text) for text in grouped)
            if in_doubt and _numbers(Counter(map(str, dialect.plain(sorted(texts))))):
                read = "decimals" if sign == dialect.decimal else "thousands"
                else_ = f"data.decimal={other} data.thousands={sign}" if read == "decimals" else f"data.decimal={sign}"
                yield f"{_text(name)}: {min(grouped)} is read with {sign!r} before {read}; if not so, say {else_}"


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
    """With the signs in its numbers: those by which most columns are numbers, the most usual ones where several are."""
    columns = []
    for column in cells.values():
        texts = {text for cell in column if (text := (cell or "").strip()) not in NONE}
        if texts and all(map(MAY_BE_NUMBER.fullmatch, texts)) and not _dates(Counter(texts)):
            columns.append(sorted(texts))
    # where cells are parted by commas, one inside a cell is rarely a decimal one
    signs = (".", ",") if dialect.delimiter == "," else (",", ".")
    pairs = [(decimal, thousands) for decimal in signs for thousands in (None, *GROUPING) if thousands != decimal]
    best, most = dialect, sum(bool(_numbers(Counter(texts))) for texts in columns)
    for decimal, thousands in pairs:
        other = replace(dialect, decimal=decimal, thousands=thousands)
        count = sum(bool(_numbers(Counter(map(str, other.plain(texts))))) for texts in columns)
        if count > most:
            best, most = other, count
    return best


def _rows(source: Source) -> Iterator[Row | Broken]:
    """Of jsonl, where every line has keys of its own, those of the first file."""

    def all_of(there: Columns) -> list[str]:
        return jsonl_names(source.files()[0], ROWS)[0] if there.names is None else list(there.names)

    for table in source.tables(all_of):
        for _, row in table.rows:
            yield row


def _from_book(row: Mapping[str, str | None], texts: Texts) -> str:
    said = {key: (row.get(key) or "").strip() for key in BOOK}
    name, kind = said["name"], said["kind"].lower()
    if not name:
        raise invalid("FILE", "''", "a name in every row of the codebook")
    if kind not in (*KINDS, TEXT):
        raise invalid("FILE", said["kind"], f"{one_of((*KINDS, TEXT))} as the kind of '{name}'")
    if kind == TEXT:
        return _text_line(name, [OF_TEXTS], texts)
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


def _from_cells(
    name: str, cells: Sequence[str | None], dialect: Dialect, may_be_user: bool, texts: Texts
) -> tuple[str, str | None]:
    """The line of a column, and its facts as yaml: None where it is left out, USER where it names users, TEXT for one
    of texts."""
    counts = Counter((cell or "").strip() for cell in cells)
    if name in (texts.names or ()):
        return _text_line(name, _text_facts(counts), texts), TEXT
    none = [text for text in NONE if counts.pop(text, 0)]
    if not counts:
        return f"# {_text(name)}: every cell is missing; declare what it may hold, or leave it out", None
    if not all(map(is_utf8, counts)):
        return f"# {_text(name)}: cells that are not in the encoding of the file; left out", None
    if name.startswith("Unnamed: ") and set(counts) == set(map(str, range(len(cells)))):
        return f"# {_text(name)}: the numbers of rows that pandas writes; left out", None
    if (remark := _key(name, counts, may_be_user)) is not None:
        return f"# {_text(name)}: {remark}", USER if remark == USER else None
    facts, remark = _guess(counts, dialect)
    if facts and facts[0] == OF_TEXTS:
        if texts.names is None:
            return _text_line(name, facts, texts), TEXT
        how = f"to make texts too, declare it as {{{', '.join(facts)}}}, and say schedule=rows_then_texts"
        return f"# {_text(name)}: nearly every cell differs, and is of several words: a text; left out; {how}", None
    said = [*facts, *([_missing(none)] if none else [])]
    text = f"{{{', '.join(said)}}}"
    if facts and not _reads(name, text, cells, dialect):
        values = list(_merged(counts))[:VALUES]
        said = ["kind: category", f"values: {_listed(sorted(values))}", "outside: other"]
        text, remark = f"{{{', '.join([*said, *([_missing(none)] if none else [])])}}}", "cells of several kinds"
        facts = said if _reads(name, text, cells, dialect) else []
    if not facts:
        return f"# {_text(name)}: {remark}", None
    return f"{_text(name)}: {text}" + (f"   # {remark}" if remark else ""), text


def _merged(counts: Counter[str]) -> Counter[str]:
    """Spellings of one value, 1 and 1.0 say, counted together under the most frequent of them; most frequent first."""
    spelled: dict[str, str] = {}
    merged: Counter[str] = Counter()
    for text, count in counts.most_common():
        merged[spelled.setdefault(canonical(text), text)] += count
    return Counter(dict(merged.most_common()))


def _reads(name: str, facts: str, cells: Sequence[str | None], dialect: Dialect) -> bool:
    """Whether a run would read all of these cells, as drafted."""
    try:
        column = declared("FILE", name, yaml.safe_load(facts), False)
        _, rules = column.read(dialect.plain(cells) if column.kind in PLAIN else cells)
    except (UserError, yaml.YAMLError):
        return False
    return bool((rules < REFUSED).all())


def _key(name: str, counts: Counter[str], may_be_user: bool) -> str | None:
    """A remark on a column that names rows or users, or is a hash. None for any other; USER for one to be the unit."""
    rows = sum(counts.values())
    if any(INTEGER.fullmatch(text) and abs(int(text)) >= 2**53 for text in counts) and len(counts) > rows / 2:
        return "whole numbers of 64 bits that nearly all differ: keys or hashes; left out"
    if KEY_NAME.search(name) and len(counts) > FEW and not any("." in text for text in counts):
        if len(counts) > 0.95 * rows:
            return "every row has its own: a key; left out. Say `unit:` if it names users"
        return USER if may_be_user else "several rows share one: it may name users; left out"
    is_numbered = len({NUMBERED.sub("", text) for text in counts}) == 1 and all(map(NUMBERED.search, counts))
    if is_numbered and len(counts) > VALUES:
        return "more than a hundred codes that differ by a number: they may name users or things; left out"
    return None


def _guess(counts: Counter[str], dialect: Dialect) -> tuple[list[str], str]:
    """What is said of a column, and a remark. Nothing is said of one that looks like a name or a text."""
    merged = _merged(counts)
    spelled = {canonical(text).casefold(): text for text in reversed(merged)}
    if words := next((pair for pair in BOOLEANS if spelled.keys() == set(pair)), None):
        written = [spelled[word] for word in words]
        return _boolean(written), ""
    if way := next((way for way in CASES for word in ("false", "true") if list(merged) == [way(word)]), None):
        return _boolean([way("false"), way("true")]), ""  # in public rows one of them may not occur
    if dates := _dates(counts):
        return dates
    plain = Counter(map(str, dialect.plain(list(counts))))
    if numbers := _numbers(plain):
        bounds, most = _outwards(min(numbers), max(numbers))
        exact = [Decimal(text) for text in plain]
        if all(number == number.to_integral_value() and abs(number) < 2**62 for number in exact) and not any(
            "." in text for text in plain
        ):
            return ["kind: integer", bounds], ""
        digits = min(most, max(max(0, -int(number.normalize().as_tuple().exponent)) for number in exact))
        return ["kind: number", bounds, f"resolution: {10**-digits:.{digits}f}"], ""
    if len(merged) > FEW and len(merged) > sum(merged.values()) / 2:
        lengths = sorted(len(text.split()) for text in merged)
        if lengths[len(lengths) // 2] < WORDS:
            return [], "nearly every cell differs: a name, a key or a text; left out"
        return _text_facts(merged), ""
    facts = ["kind: category", f"values: {_listed(sorted(list(merged)[:VALUES]))}"]
    if len(merged) > VALUES:
        return [*facts, "outside: other"], (
            f"{len(merged)} values in the sample, the {VALUES} most frequent; "
            "`values: open, longest: N` has those of the rows found by schedule=discover"
        )
    return facts, ""


def _text_facts(texts: Iterable[str]) -> list[str]:
    """Facts of a column of these texts."""
    longest = max(len(text.split()) for text in texts)
    return [OF_TEXTS, f"words: {next((most for most in LENGTHS if most >= longest), longest)}"]


def _text_line(name: str, facts: Sequence[str], texts: Texts) -> str:
    """The line of a column of texts."""
    about = "about: null" if texts.about is None else f"about: {_text(texts.about)}"
    remark = "about and language (English, say): what prompts tell of it"
    return f"{_text(name)}: {{{', '.join([*facts, about, 'language: null'])}}}   # {remark}"


def _boolean(words: Sequence[str]) -> list[str]:
    """Facts of a column of these words; False and True need not be said, since that is how Python writes them."""
    return ["kind: boolean", *([] if words == ["False", "True"] else [f"values: {_listed(words)}"])]


def _dates(counts: Counter[str]) -> tuple[list[str], str] | None:
    """Of dates, of dates with a time of day, of times of day; None for others."""
    for kind, form in FORMS:
        try:
            if kind == "time":
                seconds = [times.clock(text) for text in counts]
                unit = _unit(seconds)
                return [f"kind: {kind}", "bounds: ['00:00:00', '23:59:59']", f"resolution: {unit}"], _cut(counts)
            if kind == "date":
                read = [times.day(text, form) for text in counts if not form or _is_written(text, form)]
                if len(read) < len(counts) or any(cut for _, cut in read):
                    continue
                days = [datetime.date(1970, 1, 1) + datetime.timedelta(days=number) for number, _ in read]
                if form is None and not all(1800 <= day.year <= 2200 for day in days):
                    continue  # eight digits that are no date
                facts = [f"kind: {kind}", f"bounds: [{min(days).year}-01-01, {max(days).year}-12-31]"]
                form = form or next((name for name in OTHER_FORMS if _all_written(counts, times.NAMED[name])), None)
                twin = str(form).translate(str.maketrans("dm", "md"))
                twin = twin if form and twin != form and re.search("%[dm].%[dm]", form) else ""
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
        some = "some times name an offset from UTC and some none: those are read as " + str(zone)
        remarks = [some] if zones and not all(map(ZONE.search, counts)) else []
        return [*facts, *([f"format: {_text(form)}"] if form else [])], "; ".join(
            [*remarks, *filter(None, [_cut(counts)])]
        )
    return None


def _cut(texts: Iterable[str]) -> str:
    """A remark on what is left out of times."""
    return "parts of a second are cut" if any(re.search(r":\d\d[.,]\d*[1-9]", text) for text in texts) else ""


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
