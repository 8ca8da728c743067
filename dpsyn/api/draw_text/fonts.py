"""Fonts, and what is drawn with them: every text once a font, large, as a field of signed distances to its outline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.errors import invalid

FINEST = 256  # steps of a stored distance per px of the master
REFERENCE = "DejaVuSans.ttf"  # ships with matplotlib
DIGITS = "0123456789"


class Masters:
    """The fonts, and fields of signed distances, one for each font and text, made when first asked for.

    em: their font size, px. pad: how far they go beyond the ink, so that the thickest stroke of the smallest size fits.
    """

    def __init__(self, fonts: str | None, size: Sequence[int], reach: float) -> None:
        self.source = fonts
        self.paths = _found(fonts)
        self.fonts = sorted(self.paths)
        self.likeness: dict[str, np.ndarray] = {}
        self.usable: dict[frozenset[str], np.ndarray] = {}
        self.em = max(64, 2 * size[1])
        self.pad = int(np.ceil(reach * self.em / size[0])) + 2
        self.places: dict[tuple[str, str], int] = {}
        self.numbers = np.empty(0, np.int16)
        self.used = 0
        self.table: list[tuple[int, int, int]] = []

    def having(self, characters: set[str]) -> np.ndarray:
        """int64 [1 or more]: the fonts that have all the characters, and in which they and the digits look like
        themselves (a single character can look like another by chance). Raises UserError where there is none."""
        found = self.found(characters)
        if not len(found):
            do = "Name a folder of fonts with api.fonts=, or take those of dpsyn's packages: api.fonts=bundled."
            raise invalid("api.fonts", self.source or "null", "a font that has the characters of api.texts", do)
        return found

    def found(self, characters: set[str]) -> np.ndarray:
        """The same, and empty where there is none."""
        key = frozenset(c for c in characters if not c.isspace())
        if key not in self.usable:
            every = sorted(key | set(DIGITS))
            if new := [c for c in every if c not in self.likeness]:
                self.likeness |= _likeness([self.paths[name] for name in self.fonts], new)
            table = np.stack([self.likeness[c] for c in every], axis=1)
            has = ~np.isnan(table[:, [c in key for c in every]]).any(1)
            known = np.isfinite(table)
            mean = np.where(known, table, 0).sum(1) / np.maximum(known.sum(1), 1)
            # symbols: below 0.1; handwriting: above 0.3
            self.usable[key] = np.flatnonzero(has & ((mean > 0.2) | ~known.any(1)))
        return self.usable[key]

    def look_up(self, texts: Sequence[str], fonts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Where each row's field starts, its height and width, int64 [n] each; and all fields, int16.

        texts: [n].
        fonts: str [n], the name of the font that each is written in.
        """
        places = [self._place(font, text) for font, text in zip(fonts.tolist(), texts, strict=True)]
        start, height, width = np.array(self.table)[places].T
        return start, height, width, self.numbers

    def _place(self, font: str, text: str) -> int:
        if (font, text) not in self.places:
            if font not in self.paths:
                raise invalid(
                    "api.fonts", font, "the font that was used", "It is not on this machine: give api.fonts=FOLDER."
                )
            field = self._field(font, text)
            need = self.used + field.size
            if need > len(self.numbers):
                self.numbers = (
                    np.resize(self.numbers, max(need, 2 * len(self.numbers)))
                    if self.used
                    else np.empty(max(need, 2**20), np.int16)
                )
            self.numbers[self.used : need] = field.ravel()
            self.places[font, text] = len(self.table)
            self.table.append((self.used, *field.shape))
            self.used = need
        return self.places[font, text]

    def _field(self, font: str, text: str) -> np.ndarray:
        from scipy.ndimage import distance_transform_edt

        ink = np.pad(_ink(_loaded(self.paths[font], self.em), text), self.pad)
        inside = ink >= 128
        if not inside.any():  # a space
            return np.full(ink.shape, -32767, np.int16)
        distance = np.where(inside, distance_transform_edt(inside) - 0.5, 0.5 - distance_transform_edt(~inside))
        edge = np.abs(distance) <= 0.5  # the antialiased edge says where in the pixel the outline runs
        distance = np.where(edge, ink / 255 - 0.5, distance)
        return np.clip(np.rint(distance * FINEST), -32767, 32767).astype(np.int16)


def _found(fonts: str | None) -> dict[str, Path]:
    """File name -> path; of several files of one name the first by path."""
    import matplotlib

    shipped = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    if fonts is None:
        from matplotlib.font_manager import findSystemFonts  # reads every font of the machine when it is imported first

        found = [*map(Path, findSystemFonts()), *shipped.glob("*.ttf")]
    else:
        found = font_files(shipped if fonts == "bundled" else Path(fonts).expanduser())
    return {path.name: path for path in sorted(found, key=lambda path: (path.name, str(path)), reverse=True)}


def font_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc")]


def _likeness(paths: Sequence[Path], characters: Sequence[str]) -> dict[str, np.ndarray]:
    """Of each character, float64 [fonts]: the correlation with its shape in the reference font; NaN where the font has
    no glyph of its own for it, inf where the reference has none."""
    from concurrent.futures import ThreadPoolExecutor

    import matplotlib

    plain = _loaded(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / REFERENCE, 32)
    reference = {c: _shape(plain, c) for c in characters}
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda path: _likenesses(path, reference), paths))
    return dict(zip(characters, np.array(rows, np.float64).reshape(-1, len(characters)).T, strict=True))


def _likenesses(path: Path, reference: Mapping[str, np.ndarray | None]) -> list[float]:
    try:
        font = _loaded(path, 32)
        missing = _shape(font, "\U0010fffe")
        found = []
        for character, shape in reference.items():
            own = _shape(font, character)
            if own is None or (missing is not None and np.array_equal(own, missing)):
                found.append(np.nan)
            else:
                found.append(float(np.corrcoef(own.ravel(), shape.ravel())[0, 1]) if shape is not None else np.inf)
        return found
    except OSError:
        return [np.nan] * len(reference)


def _shape(font: Any, character: str) -> np.ndarray | None:
    """The character's ink in a box of 16x16, or None where there is none. float32"""
    from PIL import Image

    ink = _ink(font, character)
    if ink.max(initial=0) < 128:
        return None
    return np.asarray(Image.fromarray(ink).resize((16, 16), Image.Resampling.BOX), np.float32)


@lru_cache(maxsize=64)  # a text a font is drawn at a time: an open font is wanted again soon or not at all
def _loaded(path: Path, size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _ink(font: Any, text: str) -> np.ndarray:
    """uint8 [h, w]: what is drawn, cut to its ink; [1, 1] of zero for nothing."""
    mask = font.getmask(text, mode="L")
    ink = np.asarray(mask, dtype=np.uint8).reshape(mask.size[::-1])
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        return np.zeros((1, 1), np.uint8)
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
