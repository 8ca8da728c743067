"""Columns of texts in a table, as a public schema declares them. Their texts have no codes: no cell counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpsyn.errors import did_you_mean, invalid, one_of
from dpsyn.population import I64, Array
from dpsyn.reading.rows import is_utf8
from dpsyn.tables.columns import FINE, LONG, NO_TEXT, NO_UTF8, SHORTENED, TEXT
from dpsyn.validate import choice, text_or_null

KEYS = ("kind", "words", "outside", "about", "language")
ROW_BYTES = 600  # about what a text takes


@dataclass(frozen=True)
class TextColumn:
    """words: a text has so many at most, parted by white space; None: no limit.

    outside: what becomes of a longer one: its first words are taken ('cut'), or its row is refused ('refuse').
    about, language: what a prompt may say of the texts, as {about} and {language}; None: not declared.
    """

    name: str
    words: int | None = None
    outside: str = "cut"
    about: str | None = None
    language: str | None = None

    @property
    def dtype(self) -> str:
        return "O"

    @property
    def said(self) -> Mapping[str, str]:
        """What is declared of all its texts, by the names that prompts have for it."""
        facts = {"about": self.about, "language": self.language}
        return {name: value for name, value in facts.items() if value is not None}

    def read(self, cells: Sequence[str | None]) -> tuple[Array, I64]:
        """Texts, object of str [n], and int64 [n]: what became of each, an index into `dpsyn.tables.columns.RULES`.

        White space around a text and NUL characters in it are left out.

        cells: as they stand in the file, [n]; None for a missing one.
        """
        texts, rules = np.empty(len(cells), object), np.zeros(len(cells), np.int64)
        for at, cell in enumerate(cells):
            texts[at], rules[at] = self._read(cell)
        return texts, rules

    def _read(self, cell: str | None) -> tuple[str, int]:
        text = (cell or "").replace("\0", "").strip()
        if not text:
            return "", NO_TEXT
        if not is_utf8(text):
            return "", NO_UTF8
        words = text.split()
        if self.words is None or len(words) <= self.words:
            return text, FINE
        return (" ".join(words[: self.words]), SHORTENED) if self.outside == "cut" else ("", LONG)


def is_text(said: Any) -> bool:
    """Whether a mapping of a schema declares a column of texts."""
    return isinstance(said, Mapping) and said.get("kind") == TEXT


def declared_text(key: str, name: str, said: Mapping[str, Any]) -> TextColumn:
    """A column of texts from its mapping in a schema. Raises UserError, each about one key.

    key: where the column stands, for messages.
    name: of the column.
    said: its mapping, as it was read.
    """
    for word in said:
        if word not in KEYS:
            what = f"{one_of(KEYS)}, for a column of kind {TEXT}"
            raise invalid(f"{key}.{word}", said[word], what, did_you_mean(str(word), KEYS))
    words, outside = said.get("words"), said.get("outside", "cut")
    if words is not None and (type(words) is not int or words < 1):
        raise invalid(f"{key}.words", words, "null, or how many words a text has at most")
    choice(f"{key}.outside", outside, ("cut", "refuse"))
    for word in ("about", "language"):
        text_or_null(f"{key}.{word}", said.get(word))
    return TextColumn(name, words, outside, said.get("about"), said.get("language"))
