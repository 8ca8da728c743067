"""When two spellings are one value: decided here for ids of users, categories and labels, in all formats alike.

pandas writes 7 as 7.0 as soon as one cell of the column is missing, spreadsheets leave blanks around words, and an
accented letter has two encodings. Where such spellings counted as different, one user had two votes.
"""

from __future__ import annotations

import itertools
import re
import unicodedata

LOST_DIGITS = "a user id that has lost digits: a whole number written as a rounded one"
INTEGRAL = re.compile(r"([+-]?\d+)\.0*")
ROUNDED = re.compile(r"[+-]?\d+(\.\d+)?[eE][+]\d+|[+-]?\d{16,}\.0*|[+-]?(inf|Infinity)")  # floats hold 15 digits
NOBODY = ("", "nan", "NaN", "-nan", "<NA>", "None", "NaT", "null", "NULL")  # as programs write a missing value
UNSEEN = "\ufeff\u200b\u200c\u200d\u2060\u00ad"  # characters without width, at the head of a file say


def canonical(cell: str) -> str:
    """The one spelling of a value: no white space at its ends, Unicode in normal form C, 7.0 as 7.

    >>> canonical(" 7.0 "), canonical("7.50"), canonical("007"), canonical("caf\u0065\u0301") == "caf\u00e9"
    ('7', '7.50', '007', True)
    """
    text = cell.strip()
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.strip(UNSEEN).strip())
    if text.endswith(("0", ".")) and (whole := INTEGRAL.fullmatch(text)):
        return "0" if whole.group(1) in ("-0", "+0") else whole.group(1)
    return text


def unit_of(cell: str | None) -> str | None:
    """The id of a user; None where the cell names nobody: missing, blank, or as programs write a missing value.

    >>> unit_of("7.0"), unit_of(" +7"), unit_of("nan"), unit_of(" "), unit_of(None)
    ('7', '7', None, None, None)
    """
    text = canonical(cell) if cell is not None else ""
    if text.startswith("+") and text[1:].isdecimal():
        text = text[1:]
    return None if text in NOBODY else text


def has_lost_digits(cell: str | None) -> bool:
    """Whether an id is a whole number that was rounded, 1.2346e+18 say: no one can tell whose it is."""
    return cell is not None and ROUNDED.fullmatch(cell.strip()) is not None


class Users:
    """Numbers users, from 0 on, as they are met."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._told = 0

    def number(self, unit: str | None) -> int:
        """A new one where it is first met; -1 for nobody."""
        return -1 if unit is None else self._numbers.setdefault(unit, len(self._numbers))

    def met(self) -> tuple[str, ...]:
        """Those that are new since it was last asked, by number."""
        new = tuple(itertools.islice(reversed(self._numbers), len(self._numbers) - self._told))
        self._told += len(new)
        return new[::-1]
