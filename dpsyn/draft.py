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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dpsyn.columns import KINDS, NUMERIC
from dpsyn.errors import UserError, bad, one_of
from dpsyn.rows import Broken, Columns, Row
from dpsyn.sources import Source

WARNING = """\
A schema is public, and a run publishes it. Bounds and values that were read off the private rows break the
differential privacy of all that follows: draft from a codebook or from a public sample, never from the private data."""
ROWS = 200_000  # of a sample
VALUES = 100  # of a category that are listed, the most frequent ones
FEW = 20  # values that may all differ and be those of a category
PLACES = 8  # of a number behind its first digit that can be worth telling apart
NONE = ("", "?", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", ".")
BOOK = ("name", "kind", "values", "low", "high", "resolution", "missing")


def draft(path: str) -> str:
    """The text of a yaml. Raises UserError for what cannot be read."""
    source = Source(path, None, ("csv", "jsonl", "parquet"), None, "train")
    first = source.check()
    if first is None:
        raise bad("FILE", path, "a csv, jsonl or parquet file")
    rows = [row for row in itertools.islice(_rows(source), ROWS) if not isinstance(row, Broken)]
    if not rows:
        raise bad("FILE", path, "a file with at least one row")
    is_book = set(rows[0]) <= set(BOOK) and {"name", "kind"} <= set(rows[0])
    what = "a codebook" if is_book else "a sample of rows"
    lines = [f"# {line}" for line in WARNING.splitlines()]
    lines.append(
        f"# Drafted from {what}, {Path(path).name}. Read every line{'' if is_book else ': kinds are guesses'}."
    )
    lines.append("columns:")
    told = map(_from_book, rows) if is_book else (_from_cells(name, [row[name] for row in rows]) for name in rows[0])
    lines += [f"  {line}" for line in told]
    lines += [
        "labels: []        # columns of few values, given to every synthetic row; [] for none",
        "unit: null        # the column that names a row's user; not declared above, and in no synthetic row",
        "constraints: []   # 'a <= b', 'x is null unless y', \"x is null unless y == 'v'\"",
        "extra: refuse     # ignore: columns of the file that are not declared here are left out",
    ]
    return "\n".join(lines) + "\n"


def _rows(source: Source) -> Iterator[Row | Broken]:
    names: list[str] = []

    def all_of(there: Columns) -> list[str]:
        if there.names is None:
            raise bad("FILE", source.path, "csv or parquet; every line of a jsonl file has columns of its own")
        names[:] = [name for name in there.names if name]
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


def _from_cells(name: str, cells: Sequence[str | None]) -> str:
    counts = Counter((cell or "").strip() for cell in cells)
    none = [text for text in NONE if counts.pop(text, 0)]
    if not counts:
        return f"# {_text(name)}: every cell is missing; declare what it may hold, or leave it out (extra: ignore)"
    facts, remark = _guess(counts)
    if not facts:
        return f"# {_text(name)}: {remark}"
    facts += [_missing(none)] if none else []
    return f"{_text(name)}: {{{', '.join(facts)}}}" + (f"   # {remark}" if remark else "")


def _guess(counts: Counter[str]) -> tuple[list[str], str]:
    """What is said of a column, and a remark. Nothing is said of one that looks like a name or a text."""
    if {text.lower() for text in counts} <= {"true", "false"}:
        return ["kind: boolean"], ""
    if numbers := _numbers(counts):
        plain = [text for text in counts if "e" not in text.lower()]
        bounds, most = _outwards(min(numbers), max(numbers))
        if len(plain) == len(counts) and not any("." in text for text in plain):
            return ["kind: integer", bounds], ""
        digits = min(most, max(len(text.partition(".")[2].rstrip("0")) for text in plain))
        return ["kind: number", bounds, f"resolution: {10**-digits:.{digits}f}"], ""
    if days := _days(counts):
        return ["kind: date", f"bounds: [{min(days).year}-01-01, {max(days).year}-12-31]"], ""
    if len(counts) > FEW and len(counts) > sum(counts.values()) / 2:
        return [], "nearly every cell differs: a name, a key or a text; leave it out (extra: ignore)"
    values = [text for text, _ in counts.most_common(VALUES)]
    facts = ["kind: category", f"values: {_listed(sorted(values))}"]
    if len(counts) > VALUES:
        return [*facts, "outside: other"], f"{len(counts)} values in the sample, the {VALUES} most frequent"
    return facts, ""


def _numbers(texts: Counter[str]) -> list[float]:
    """Empty where one is no number: 00501 is a code, and its zeros are part of it."""
    if any(re.match(r"[+-]?0\d", text) for text in texts):
        return []
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return []
    is_plain = all(math.isfinite(number) for number in numbers) and any("e" not in text.lower() for text in texts)
    return numbers if is_plain and not any("_" in text for text in texts) else []


def _days(texts: Counter[str]) -> list[datetime.date]:
    try:
        return [datetime.date.fromisoformat(text[:10]) for text in texts]
    except ValueError:
        return []


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
