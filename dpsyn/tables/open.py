"""Columns of categories whose values nobody has listed, as a public schema declares them: what is declared is how long
a value is at most and of which characters. `schedule=discover` finds the values under differential privacy; nothing
else reads such a column.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any

import numpy as np

from dpsyn.errors import did_you_mean, invalid, one_of
from dpsyn.population import I32, I64, Array
from dpsyn.reading.spelling import canonical
from dpsyn.tables.columns import (
    AS_ELSE,
    AS_MISSING,
    FINE,
    NO_VALUE,
    OTHER,
    SHARED,
    UNSPELLED,
    declared,
)

OPEN = "open"  # what a schema says in the place of the values
KEYS = (*SHARED, "values", "longest", "characters")
SETS = {
    "digits": digits,
    "upper": ascii_uppercase,
    "lower": ascii_lowercase,
    "codes": ascii_uppercase + digits + "-_./",
    "text": ascii_lowercase + ascii_uppercase + digits + " -_./",
}
DEFAULT = "text"
LONGEST = 64  # characters: each is asked for
MOST_CHARACTERS = 200
ELSE = ""  # in the place of a value that is too long or has other characters; no value is empty
FIND = "Find them first: `dpsyn run ... schedule=discover` writes a schema with them."


@dataclass(frozen=True)
class OpenColumn:
    """longest: characters of a value, at most. characters: that a value is made of, each once.

    missing: whether a value may be missing. texts: cells that mean so, in the spelling of `canonical`.
    outside: what becomes of a value that is longer or has other characters.

    >>> column = declared_open("", "town", {"kind": "category", "values": "open", "longest": 4, "characters": "lower"})
    >>> column.read(["york", " bath ", "london", "Hull"])[0].tolist()
    ['york', 'bath', '', '']
    >>> column.codes(np.array(["bath", ""], object)).tolist()
    [[2, 1, 20, 8], [-1, -1, -1, -1]]
    """

    name: str
    longest: int
    characters: str
    missing: bool = False
    texts: frozenset[str] = frozenset({""})
    outside: str = OTHER

    @property
    def dtype(self) -> str:
        return "O"

    @property
    def letters(self) -> int:
        """Codes of a character: 0 is the end of a value."""
        return len(self.characters) + 1

    def read(self, cells: Sequence[str | None]) -> tuple[Array, I64]:
        """Values in the one spelling of `canonical`, object [n], None for a missing one, and ELSE; and int64 [n]: what
        became of each, an index into `dpsyn.tables.columns.RULES`. How a cell is read depends on it alone.

        cells: as they stand in the file, [n]; None for a missing one.
        """
        values, rules = np.empty(len(cells), object), np.zeros(len(cells), np.int64)
        for at, cell in enumerate(cells):
            values[at], rules[at] = self._read(cell)
        return values, rules

    def is_value(self, text: str) -> bool:
        """Whether a cell may hold it, in this spelling."""
        return self._read(text) == (text, FINE) and text not in self.texts

    def codes(self, values: Array) -> I32:
        """int32 [n, longest]: of each character its place, from 1 on, and 0 after the last one; -1 throughout for what
        is no value.

        values: object [n], as `read` gives them.
        """
        is_else = values == ELSE
        texts = np.array(["" if value is None else value for value in values.tolist()], f"<U{self.longest}")
        points = texts.view("<u4").reshape(len(values), self.longest)
        known, places = self._places
        found = places[np.searchsorted(known, points)].astype(np.int32)
        found[is_else] = -1
        return found

    def text(self, codes: Sequence[int]) -> str:
        """The characters of codes from 1 on."""
        return "".join(self.characters[code - 1] for code in codes)

    @functools.cached_property
    def _places(self) -> tuple[Array, I64]:
        """Code points, rising, 0 first, and the code of each."""
        points = np.array([0, *map(ord, self.characters)], np.uint32)
        order = np.argsort(points)
        return points[order], order.astype(np.int64)

    @functools.cached_property
    def _set(self) -> frozenset[str]:
        return frozenset(self.characters)

    def _read(self, cell: str | None) -> tuple[str | None, int]:
        text = "" if cell is None else canonical(cell)
        if text in self.texts:
            return None, FINE if self.missing else NO_VALUE
        if len(text) <= self.longest and self._set.issuperset(text):
            return text, FINE
        if self.outside == "missing":
            return None, AS_MISSING
        return (ELSE, AS_ELSE) if self.outside == OTHER else (None, UNSPELLED)


def is_open(said: Any) -> bool:
    """Whether a mapping of a schema declares a column whose values are to be found."""
    return isinstance(said, Mapping) and said.get("values") == OPEN


def declared_open(key: str, name: str, said: Mapping[str, Any]) -> OpenColumn:
    """An open column from its mapping in a schema. Raises UserError, each about one key.

    key: where the column stands, for messages.
    name: of the column.
    said: its mapping, as it was read.
    """
    if said.get("kind") != "category":
        what = "a list of texts, or a column of kind category, whose values can be found"
        raise invalid(f"{key}.values", OPEN, what)
    for word in said:
        if word not in KEYS:
            what = f"{one_of(KEYS)}, for a category with values: {OPEN}"
            raise invalid(f"{key}.{word}", said[word], what, did_you_mean(str(word), KEYS))
    # a list of what is found is never whole, so a value that is not on it is one of the others
    outside = said.get("outside", OTHER)
    longest = said.get("longest")
    if type(longest) is not int or not 1 <= longest <= LONGEST:
        value = "null" if longest is None else longest
        what = f"a whole number from 1 to {LONGEST}: the characters of a value, at most"
        raise invalid(f"{key}.longest", value, what, "Each is asked for, so a close bound finds more.")
    shared = {word: said[word] for word in SHARED if word in said}
    column = declared(key, name, {**shared, "outside": outside, "values": [OTHER]}, False)
    characters = _characters(f"{key}.characters", said.get("characters", DEFAULT))
    return OpenColumn(name, longest, characters, column.missing, column.texts, column.outside)


def _characters(key: str, said: Any) -> str:
    """What a name stands for, or each character of a text; of a list all of them."""
    parts = [said] if isinstance(said, str) else said
    if not isinstance(parts, Sequence) or not parts or any(not isinstance(part, str) or not part for part in parts):
        value = "null" if said is None else said
        raise invalid(key, value, f"{one_of(SETS)}, the characters themselves in quotes, or a list of such")
    found = "".join(SETS.get(part, unicodedata.normalize("NFC", part)) for part in parts)
    if twice := next((sign for at, sign in enumerate(found) if sign in found[:at]), None):
        raise invalid(key, said, f"every character once; {twice!r} is there twice")
    if odd := next((sign for sign in found if not sign.isprintable()), None):
        raise invalid(key, said, f"characters that can be seen, and blanks; {odd!r} is none")
    if len(found) > MOST_CHARACTERS:
        raise invalid(key, f"{found[:20]}...", f"at most {MOST_CHARACTERS} characters")
    return found
