"""A text renderer as a simulator (Sim-PE, arXiv 2502.05505): random fonts, sizes, strokes, rotations, drawn fast.

Every text is drawn once a font, large, and kept as a field of signed distances to its outline. An image is that field
looked up at the inversely transformed places of its pixels: size, stroke, rotation, slant, stretch and warp cost one
look-up, and no font is touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.api.draw_text.fonts import FINEST, Masters, font_files
from dpsyn.data import Data
from dpsyn.errors import UserError, invalid, missing
from dpsyn.marks import PLACE
from dpsyn.population import Label, Samples, take
from dpsyn.randomness import uniform
from dpsyn.validate import number, side_lengths

CHUNK = 512  # rows drawn at once
SMALL = 0.7  # of its size is a text drawn to be measured, so that what sticks out is seen
INK = 0.2  # of a pixel: what is less does not count in the extent
CURVE = 6  # straight pieces of a flourish
PEN = (0.5, 2.0)  # px, half the width of a flourish
SINES = np.sin(np.deg2rad(np.arange(360)))
WHOLE, REAL = ("size", "stroke", "rotation"), ("slant", "stretch", "weight")
TRAITS = ("text", "font", *WHOLE, *REAL, "shift", "warp", "pressure", "flourish")


@dataclass(frozen=True)
class DrawText(Api):
    """Images uint8 [n, h, w, 1 or 3] of texts, centred by their ink. Ranges are [low, high], inclusive.

    texts: templates, formatted with the row's label; one is drawn uniformly.
    fonts: None: the system's and those that ship with matplotlib; 'bundled': the latter; or a folder.
    size, stroke: px, integers. rotation: degrees, integers. As published.
    slant: px to the right a px upwards. stretch: of the width. weight: px added to the stroke, any number.
    shift: the farthest that the text is off the centre, px. warp: the farthest that each point of a 3x3 grid over the
        image is displaced, px; quadratic in between.
    pressure: the most that is added to the weight, or taken off, at each point of such a grid, px: lines that swell,
        thin out and break.
    flourish: the share of texts that have a stroke of a pen beside, a quadratic Bezier curve somewhere in the image, 1
        to 4 px wide: the bar of a 7, the loop of a 2. Decided once, when a sample is first generated.
    alike: by a text, others that look like it, each drawn in its place as often as itself: {'1': ['l']}. Those
        that no font has are left out.
    box: the text is drawn so that the longer side of its ink has about this many px, with its centre of mass in the
        middle, as MNIST is made (LeCun et al. 1998): size and shift mean nothing then. 0: not so.
    image_size: [h, w] px. background, foreground: grey 0..255, or [red, green, blue].
    """

    texts: Sequence[str]
    fonts: str | None = field(metadata=PLACE)
    size: Sequence[int]
    stroke: Sequence[int]
    rotation: Sequence[int]
    slant: Sequence[float]
    stretch: Sequence[float]
    weight: Sequence[float]
    shift: float
    warp: float
    pressure: float
    flourish: float
    box: int
    image_size: Sequence[int]
    background: Any
    foreground: Any
    alike: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if not self.texts or not _are_texts(self.texts):
            raise invalid("api.texts", self.texts, "a list of templates", "For instance ['{digit}'].")
        alike = self.alike if self.alike is not None else {}
        if not isinstance(alike, Mapping) or not _are_texts([*alike]) or not all(map(_are_texts, alike.values())):
            raise invalid("api.alike", self.alike, "lists of texts by a text, or null", "In quotes: {'1': ['l']}.")
        for name in (*WHOLE, *REAL):
            low_high = getattr(self, name)
            whole = name in WHOLE
            kinds = (int,) if whole else (int, float)
            good = isinstance(low_high, Sequence) and len(low_high) == 2
            good = good and all(type(v) in kinds and np.isfinite(v) for v in low_high)
            if not good or low_high[0] > low_high[1]:
                raise invalid(f"api.{name}", low_high, "[low, high]" + (" in whole numbers" if whole else ""))
        if self.size[0] < 1:
            raise invalid("api.size", list(self.size), "1 px or more")
        if self.stretch[0] <= 0:
            raise invalid("api.stretch", list(self.stretch), "over 0")
        for name in ("shift", "warp", "pressure"):
            number(f"api.{name}", getattr(self, name), "px, 0 or more", least=0)
        number("api.flourish", self.flourish, "a share, 0 to 1", least=0, most=1)
        side_lengths("api.image_size", self.image_size)
        if type(self.box) is not int or not 0 <= self.box <= min(self.image_size):
            raise invalid("api.box", self.box, "px, a whole number, at most the size of the image; 0: no box")
        if np.shape(self.background) != np.shape(self.foreground) or np.shape(self.background) not in ((), (3,)):
            raise invalid("api.foreground", self.foreground, "like api.background a grey value, or [red, green, blue]")
        if not all(0 <= value <= 255 for value in np.ravel([self.background, self.foreground])):
            raise invalid("api.foreground", self.foreground, "and api.background between 0 and 255")

    @property
    def row_bytes(self) -> int:
        """About what a row takes on disk: a small grey picture and its traits."""
        return int(np.prod(self.image_size) * (1 if np.ndim(self.foreground) == 0 else 2)) // 2 + 160

    def check(self) -> None:
        """Raises UserError for a folder without fonts. Whether they have the characters is found when they draw."""
        if self.fonts not in (None, "bundled") and not font_files(Path(str(self.fonts)).expanduser()):
            raise missing("api.fonts", self.fonts, "null, bundled, or a folder of fonts (ttf, otf, ttc)")

    def reads(self) -> Sequence[Data]:
        return ()

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Every trait uniform in its range; warp and pressure within an amplitude of their own, so that there are mild
        ones among the wild. Raises UserError where no font has the characters."""
        traits: dict[str, np.ndarray] = {
            **self._written(labels, seeds, {}, {}),
            **{name: _integers(seeds, "draw_text.trait", k, *getattr(self, name)) for k, name in self._whole},
            **{name: _reals(seeds, "draw_text.trait", k, *getattr(self, name)) for k, name in self._real},
        }
        if self.shift and not self.box:
            traits["shift"] = _grid(seeds, "draw_text.shift", (2,), self.shift)
        if self.warp:
            amplitude = uniform(seeds, "draw_text.warp_amplitude").astype(np.float32)
            traits["warp"] = _grid(seeds, "draw_text.warp", (2, 3, 3), self.warp) * amplitude[:, None, None, None]
        if self.pressure:
            amplitude = uniform(seeds, "draw_text.pressure_amplitude").astype(np.float32)
            traits["pressure"] = _grid(seeds, "draw_text.pressure", (3, 3), self.pressure) * amplitude[:, None, None]
        if self.flourish:
            start, end, bend = np.moveaxis(_grid(seeds, "draw_text.flourish", (3, 2), self._reach), 1, 0)
            pen = _reals(seeds, "draw_text.pen", 0, *PEN)[:, None]
            curve = np.concatenate([start, (start + end + bend) / 2, end, pen], 1)
            curve[uniform(seeds, "draw_text.flourish_coin") >= self.flourish] = np.nan
            traits["flourish"] = curve
        return self._drawn(labels, traits)

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        """font and text are drawn anew with probability `degree`; everything else moves by at most `degree`, uniformly,
        within its range: of a flourish its points, and its width by a fifth of it. A degree that is not named is 0. One
        number d for all: the font with probability d, the text stays, the rest moves by at most d times the width of
        its range.
        """
        degrees = self._degrees(degree)
        old = samples.traits
        if missing := {"text", "font", *(name for _, name in (*self._whole, *self._real)), *self._fields} - old.keys():
            raise UserError(
                f"api draw_text: the samples lack the traits {', '.join(sorted(missing))}: another api drew them."
            )
        new = self._written(labels, seeds, old, degrees)
        for k, name in self._whole:
            whole = int(degrees[name])
            moved = old[name] + _integers(seeds, "draw_text.trait", k, -whole, whole)
            new[name] = np.clip(moved, *getattr(self, name))
        for k, name in self._real:
            step = degrees[name]
            moved = old[name] + _reals(seeds, "draw_text.trait", k, -step, step)
            new[name] = np.clip(moved, *getattr(self, name)).astype(np.float32)
        if self.shift and not self.box:
            moved = old["shift"] + _grid(seeds, "draw_text.shift", (2,), degrees["shift"])
            new["shift"] = np.clip(moved, -self.shift, self.shift)
        if self.warp:
            moved = old["warp"] + _grid(seeds, "draw_text.warp", (2, 3, 3), degrees["warp"])
            new["warp"] = np.clip(moved, -self.warp, self.warp)
        if self.pressure:
            moved = old["pressure"] + _grid(seeds, "draw_text.pressure", (3, 3), degrees["pressure"])
            new["pressure"] = np.clip(moved, -self.pressure, self.pressure)
        if self.flourish:
            moved = _grid(seeds, "draw_text.flourish", (7,), degrees["flourish"])
            moved[:, 6] /= 5
            most = np.array([1.5 * self._reach] * 6 + [PEN[1]], np.float32)
            least = np.array([-1.5 * self._reach] * 6 + [PEN[0]], np.float32)
            new["flourish"] = np.clip(old["flourish"] + moved, least, most)
        return self._drawn(labels, new)

    @property
    def _reach(self) -> float:
        """How far from the middle a flourish starts and ends at first, px; half as far again is the farthest."""
        return min(self.image_size) * 5 / 14

    @property
    def _whole(self) -> list[tuple[int, str]]:
        return [(2, "size"), (3, "stroke"), (4, "rotation")]

    @property
    def _real(self) -> list[tuple[int, str]]:
        return [(k, name) for k, name in ((5, "slant"), (6, "stretch"), (7, "weight")) if np.ptp(getattr(self, name))]

    @property
    def _fields(self) -> list[str]:
        shift = ["shift"] if self.shift and not self.box else []
        return [*shift, *(name for name in ("warp", "pressure", "flourish") if getattr(self, name))]

    def check_degree(self, degree: Degree) -> None:
        """Raises UserError for what is no degree."""
        self._degrees(degree)

    def _degrees(self, degree: Degree) -> dict[str, float]:
        for value in degree.values() if isinstance(degree, Mapping) else [degree]:
            number("schedule.degree", value, "a number, 0 or more, or one for each trait", least=0)
        if not isinstance(degree, Mapping):
            fraction = float(degree)
            width = {name: fraction * float(np.ptp(getattr(self, name))) for _, name in (*self._whole, *self._real)}
            whole = {name: float(np.rint(width[name])) for _, name in self._whole}
            return {
                **dict.fromkeys(TRAITS, 0.0),
                **width,
                **whole,
                "font": fraction,
                "shift": 2 * fraction * self.shift,
                "warp": 2 * fraction * self.warp,
                "pressure": 2 * fraction * self.pressure,
                "flourish": 2 * fraction * self._reach,
            }
        if unknown := degree.keys() - set(TRAITS):
            raise invalid("schedule.degree", ", ".join(sorted(unknown)), f"some of {', '.join(TRAITS)}")
        return {**dict.fromkeys(TRAITS, 0.0), **{name: float(value) for name, value in degree.items()}}

    def _drawn(self, labels: Sequence[Label], traits: Mapping[str, np.ndarray]) -> Samples:
        samples = Samples(np.empty(len(labels), np.uint8), traits)
        parts = []
        for start in range(0, len(labels), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(labels)))
            parts.append(self._chunk(labels[start : start + CHUNK], take(samples, rows).traits))
        height, width = self.image_size
        channels = 1 if np.ndim(self.foreground) == 0 else 3
        return Samples(
            np.concatenate(parts) if parts else np.empty((0, height, width, channels), np.uint8), dict(traits)
        )

    def _chunk(self, labels: Sequence[Label], traits: Mapping[str, np.ndarray]) -> np.ndarray:
        """uint8 [n, h, w, c]. Each row by itself, so that it is the same in any batch."""
        n, (h, w) = len(labels), self.image_size
        fields = self.masters.look_up(self._texts(labels, traits["text"]), traits["font"])
        y = np.broadcast_to(np.arange(h, dtype=np.float32) - np.float32((h - 1) / 2), (n, h))
        x = np.broadcast_to(np.arange(w, dtype=np.float32) - np.float32((w - 1) / 2), (n, w))
        zoom = np.ones((n, 1), np.float32)
        middle_y = middle_x = np.zeros((n, 1), np.float32)
        for _ in range(2 if self.box else 0):
            far = zoom / np.float32(SMALL)
            wide_y, wide_x = y * far + middle_y, x * far + middle_x
            side, middle_y, middle_x = _extent(self._cover(fields, traits, wide_y, wide_x, far, zoom), wide_y, wide_x)
            zoom = np.maximum(side / np.float32(self.box), np.float32(0.5))  # a text of which a dot is left stays small
        cover = self._cover(fields, traits, y * zoom + middle_y, x * zoom + middle_x, zoom, zoom)
        low, high = np.atleast_1d(np.float32(self.background)), np.atleast_1d(np.float32(self.foreground))
        return (cover[..., None] * (high - low) + (low + np.float32(0.5))).astype(np.uint8)

    def _cover(
        self,
        fields: tuple[np.ndarray, ...],
        traits: Mapping[str, np.ndarray],
        y: np.ndarray,
        x: np.ndarray,
        zoom: np.ndarray,
        pen: np.ndarray,
    ) -> np.ndarray:
        """How much of a pixel is ink, float32 [n, h, w], 0 to 1, where pixels lie at y [n, h], x [n, w]: px from the
        middle of the plane that traits speak of. zoom: px of the plane a pixel, float32 [n, 1]. pen: px of the plane
        for a px that a line is thick, [n, 1]."""
        start, height, width, numbers = fields
        n, h, w = *y.shape, x.shape[1]
        bent = (
            [_basis(y, self.image_size[0]), _basis(x, self.image_size[1])] if {"warp", "pressure"} & {*traits} else []
        )
        y, x = np.broadcast_to(y[:, :, None], (n, h, w)), np.broadcast_to(x[:, None, :], (n, h, w))
        if "shift" in traits:
            y, x = y - traits["shift"][:, 0, None, None], x - traits["shift"][:, 1, None, None]
        if "warp" in traits:
            y, x = y - _smooth(traits["warp"][:, 0], *bent), x - _smooth(traits["warp"][:, 1], *bent)
        (yy, yx, xy, xx), scale = self._inverse(traits, height, width)
        master_y = yy * y + yx * x + ((height - 1) / 2).astype(np.float32)[:, None, None]
        master_x = xy * y + xx * x + ((width - 1) / 2).astype(np.float32)[:, None, None]
        distance = _bilinear(numbers, start, height, width, master_y, master_x)
        distance *= (scale / FINEST).astype(np.float32)[:, None, None]
        thickness = traits["stroke"] + (traits["weight"] if "weight" in traits else self.weight[0])
        pen, zoom = pen[:, :, None], zoom[:, :, None]
        distance += pen * np.asarray(thickness, np.float32).reshape(-1, 1, 1)
        if "pressure" in traits:
            uneven = traits["pressure"] - traits["pressure"].mean((1, 2), keepdims=True)  # else whole texts vanish
            distance += _smooth(uneven, *bent) * pen
        if "flourish" in traits:
            having = np.flatnonzero(~np.isnan(traits["flourish"][:, 0]))
            curve = traits["flourish"][having]
            inside = curve[:, 6, None, None] * pen[having] - _off_curve(curve, y[having], x[having])
            distance[having] = np.maximum(distance[having], inside)
        distance /= zoom
        distance += np.float32(0.5)
        return np.clip(distance, 0, 1, out=distance)

    def _inverse(
        self, traits: Mapping[str, np.ndarray], height: np.ndarray, width: np.ndarray
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """From px of the plane to px of masters of that height and width, ((yy, yx, xy, xx) float32 [n, 1, 1]), and px
        of the plane a master px, float64 [n]."""
        stretch = np.float64(traits["stretch"]) if "stretch" in traits else np.full(len(height), float(self.stretch[0]))
        if self.box:
            rim = 2 * self.masters.pad
            scale = self.box / np.maximum(height - rim, (width - rim) * stretch)
        else:
            scale = traits["size"] / self.masters.em
        sine, cosine = SINES[traits["rotation"] % 360], SINES[(traits["rotation"] + 90) % 360]
        slant = np.float64(traits["slant"]) if "slant" in traits else np.full(len(scale), float(self.slant[0]))
        # image = rotate(slant(stretch(scale(master)))); counter-clockwise, y points down
        yy, yx = cosine / scale, sine / scale
        xy, xx = (-sine + slant * cosine) / (stretch * scale), (cosine + slant * sine) / (stretch * scale)
        return tuple(v.astype(np.float32)[:, None, None] for v in (yy, yx, xy, xx)), scale

    def _texts(self, labels: Sequence[Label], places: np.ndarray) -> list[str]:
        keys = [tuple(label.items()) for label in labels]
        choices = {key: self._choices(dict(key)) for key in dict.fromkeys(keys)}
        return [choices[key][place] for key, place in zip(keys, places.tolist(), strict=True)]

    def _choices(self, label: Label) -> list[str]:
        """All that may be drawn for a label: each template filled in, and what looks like it."""
        found = []
        for template in self.texts:
            try:
                text = template.format(**label)
            except (KeyError, IndexError, ValueError):
                expected = f"a template over the label's columns ({', '.join(label)})"
                raise invalid("api.texts", template, expected) from None
            alike = (self.alike or {}).get(text, ())
            found += [text, *(other for other in alike if len(self.masters.found({*other})))]
        return found

    def _written(
        self, labels: Sequence[Label], seeds: np.ndarray, old: Mapping[str, np.ndarray], degrees: Mapping[str, float]
    ) -> dict[str, np.ndarray]:
        """The traits text, int64 [n], a place in what may be drawn for the row's label, and font, str [n], one of
        those that have the characters of that text.

        By label, and not by what the batch or the run has met: a row is the same in any batch, and after a resume.

        labels: [n].
        seeds: uint64 [n].
        old: traits of the parents, of which text and font may stay, a font where it has the text; {}: there are none.
        degrees: the chances that they do not.
        """
        keys = [tuple(label.items()) for label in labels]
        number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        choices = [self._choices(dict(key)) for key in number]
        which = np.array([number[key] for key in keys], np.int64)
        count = np.array([len(texts) for texts in choices], np.int64)[which]
        text = np.floor(uniform(seeds, "draw_text.trait", 0) * count).astype(np.int64)
        if old:
            if ((old["text"] < 0) | (old["text"] >= count)).any():
                do = "Give the api.texts and api.fonts that drew them."
                raise UserError(f"api draw_text: the samples name texts that cannot be drawn here. {do}")
            text = np.where(uniform(seeds, "draw_text.text_coin") < degrees["text"], text, old["text"])
            font_is_anew = uniform(seeds, "draw_text.font_coin") < degrees["font"]
        fraction, fonts = uniform(seeds, "draw_text.trait", 1), np.array(self.masters.fonts, np.str_)
        font = np.empty(len(keys), fonts.dtype)
        for i, texts in enumerate(choices):
            for k, written in enumerate(texts):
                mine = np.flatnonzero((which == i) & (text == k))
                having = fonts[self.masters.having({*written})]
                font[mine] = having[np.floor(fraction[mine] * len(having)).astype(np.int64)]
                if old:
                    theirs = old["font"][mine]
                    lacks = np.isin(theirs, fonts) & ~np.isin(
                        theirs, having
                    )  # one that is gone is named when it is drawn
                    font[mine] = np.where(font_is_anew[mine] | lacks, font[mine], theirs)
        return {"text": text, "font": font}

    @cached_property
    def masters(self) -> Masters:
        reach = max(self.stroke[1] + max(self.weight[1], 0) + self.pressure, 0) + 1
        return Masters(self.fonts, self.size, reach)


def _are_texts(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(text, str) for text in value)


def _bilinear(
    numbers: np.ndarray, start: np.ndarray, height: np.ndarray, width: np.ndarray, y: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """float32 [n, h, w]: the fields at (y, x); beyond their border the distance grows."""
    top, left = (height - 2).astype(np.float32)[:, None, None], (width - 2).astype(np.float32)[:, None, None]
    inner_y, inner_x = np.clip(y, 0, top + np.float32(0.99)), np.clip(x, 0, left + np.float32(0.99))
    y -= inner_y
    x -= inner_x
    beyond = np.abs(y, out=y) + np.abs(x, out=x)
    y, x = inner_y, inner_x
    row, column = y.astype(np.int32), x.astype(np.int32)
    y -= row
    x -= column
    at = row * width[:, None, None].astype(np.int32)
    at += column
    place = at + start[:, None, None]
    upper, upper_right = numbers[place].astype(np.float32), numbers[place + 1]
    place += width[:, None, None]
    lower, lower_right = numbers[place].astype(np.float32), numbers[place + 1]
    upper += (upper_right - upper) * x
    lower += (lower_right - lower) * x
    lower -= upper
    lower *= y
    upper += lower
    beyond *= np.float32(FINEST)
    upper -= beyond
    return upper


def _smooth(grid: np.ndarray, at_y: list[np.ndarray], at_x: list[np.ndarray]) -> np.ndarray:
    """float32 [n, 3, 3] -> [n, h, w]: quadratic through the nine points, term by term."""
    columns = [sum(grid[:, i, j, None] * at_x[j] for j in range(3)) for i in range(3)]
    field: np.ndarray = sum(columns[i][:, None, :] * at_y[i][:, :, None] for i in range(3))
    return field


def _basis(at: np.ndarray, n: int) -> list[np.ndarray]:
    """The three parabolas at places on an axis of n px, float32 [..., n] px from its middle; flat beyond its ends."""
    u = np.clip(at / np.float32(max(n - 1, 1) / 2), -1, 1)
    return [u * (u - 1) / 2, 1 - u * u, u * (u + 1) / 2]


def _off_curve(curve: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """float32 [n, h, w]: how far the places y, x are from a Bezier curve [n, start, bend and end], y and x of each."""
    u = np.linspace(0, 1, CURVE + 1, dtype=np.float32)[:, None, None]
    points = (1 - u) ** 2 * curve[:, 0:2] + 2 * u * (1 - u) * curve[:, 2:4] + u**2 * curve[:, 4:6]
    least = np.full(y.shape, np.inf, np.float32)
    for here, there in itertools.pairwise(points[..., None, None]):
        way_y, way_x = (there - here)[:, 0], (there - here)[:, 1]
        off_y, off_x = y - here[:, 0], x - here[:, 1]
        part = (off_y * way_y + off_x * way_x) / np.maximum(way_y**2 + way_x**2, np.float32(1e-6))
        np.clip(part, 0, 1, out=part)
        np.minimum(least, (off_y - part * way_y) ** 2 + (off_x - part * way_x) ** 2, out=least)
    return np.sqrt(least)


def _extent(ink: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of ink float32 [n, h, w] whose pixels lie at y [n, h], x [n, w]: the longer side of its box, and y and x of its
    centre of mass, float32 [n, 1] each. Where there is none: all that is seen, and 0."""
    sides, middles = [], []
    for axis, at in ((2, y), (1, x)):
        there = ink.max(axis) > INK
        first, last = there.argmax(1)[:, None], there.shape[1] - 1 - there[:, ::-1].argmax(1)[:, None]
        sides.append(np.take_along_axis(at, last, 1) - np.take_along_axis(at, first, 1))
        mass = ink.sum(axis)
        middles.append((mass * at).sum(1, keepdims=True) / np.maximum(mass.sum(1, keepdims=True), np.float32(1e-6)))
    step = (y[:, -1:] - y[:, :1]) / np.float32(max(y.shape[1] - 1, 1))
    return np.maximum(*sides) + step, *middles


def _integers(seeds: np.ndarray, stream: str, at: int, low: int, high: int) -> np.ndarray:
    return low + np.floor(uniform(seeds, stream, at) * (high - low + 1)).astype(np.int64)


def _reals(seeds: np.ndarray, stream: str, at: int, low: float, high: float) -> np.ndarray:
    return (low + uniform(seeds, stream, at) * (high - low)).astype(np.float32)


def _grid(seeds: np.ndarray, stream: str, shape: tuple[int, ...], reach: float) -> np.ndarray:
    columns = [_reals(seeds, stream, k, -reach, reach) for k in range(int(np.prod(shape)))]
    return np.stack(columns, axis=1).reshape(len(seeds), *shape)
