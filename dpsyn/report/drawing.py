"""Inline SVG. Every text goes through `Markup.format`, which escapes it; colours are classes of style.css."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from dpsyn.population import F64
from dpsyn.report.contents import Bars, Residuals

POINTS = 240  # of a curve, at most
WIDE = 40  # characters of a text in a drawing
PICTURE = 40  # px of a picture on a grid
CELLS, ROWS = 64, 10  # of a grid of residuals


def svg(width: float, height: float, told: str, parts: Sequence[Markup]) -> Markup:
    """A drawing of its parts.

    width: px.
    height: px.
    told: what a screen reader says.
    parts: elements of SVG.
    """
    head = '<svg viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}"><title>{}</title>{}</svg>'
    size = _n(width), _n(height)
    return Markup(head).format(*size, *size, told, told, Markup("").join(parts))


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "label") -> Markup:
    words = words if len(words) <= WIDE else words[: WIDE - 1] + "…"
    return Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>').format(_n(x), _n(y), anchor, kind, words)


def rectangle(x: float, y: float, width: float, height: float, kind: str, told: str = "") -> Markup:
    title = Markup("<title>{}</title>").format(told) if told else Markup("")
    shape = '<rect x="{}" y="{}" width="{}" height="{}" class="{}">{}</rect>'
    return Markup(shape).format(_n(x), _n(y), _n(max(width, 0)), _n(max(height, 0)), kind, title)


def pictures(uris: Sequence[Sequence[tuple[str, bool, str]]], told: str) -> Markup:
    """Pictures on a grid.

    uris: of each row, of each column a data URI, whether it is shown pixel by pixel, and what is said of it.
    told: what a screen reader says of all.
    """
    shape = Markup('<image x="{}" y="{}" width="{}" height="{}" class="{}" href="{}"><title>{}</title></image>')
    size = _n(PICTURE - 2)
    parts = [
        shape.format(_n(PICTURE * column + 1), _n(PICTURE * row + 1), size, size, "tiny" if tiny else "", uri, said)
        for row, each in enumerate(uris)
        for column, (uri, tiny, said) in enumerate(each)
    ]
    return svg(PICTURE * len(uris[0]), PICTURE * len(uris), told, parts)


def line(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    return Markup('<polyline points="{}" class="{}"/>').format(_points(points), kind)


def area(points: Sequence[tuple[float, float]], kind: str, told: str = "") -> Markup:
    title = Markup("<title>{}</title>").format(told) if told else Markup("")
    return Markup('<polygon points="{}" class="{}">{}</polygon>').format(_points(points), kind, title)


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)


def _n(value: float) -> str:
    """To a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0") if math.isfinite(value) else "0"


def trade_off(alarms: F64, hits: F64, at: float, hit: float) -> Markup:
    """The largest hit rate over the rate of false alarms, both in [0, 1], and the point that is told in words.

    alarms: float64 [n] in [0, 1], rising.
    hits: float64 [n] in [0, 1].
    at: the rate of false alarms that is told in words.
    hit: the largest hit rate there.
    """
    left, top, size = 46.0, 12.0, 240.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * size, top + (1 - y) * size

    curve = [place(x, y) for x, y in zip(alarms, hits, strict=True)]
    parts = [rectangle(left, top, size, size, "frame")]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(share, share)
        parts += [text(x, top + size + 16, f"{share:.0%}", "middle"), text(left - 6, y + 4, f"{share:.0%}", "end")]
    parts += [
        area([*curve, place(1, 0), place(0, 0)], "cannot"),
        line([place(0, 0), place(1, 1)], "guess"),
        line(curve, "curve"),
        Markup('<circle cx="{}" cy="{}" r="5" class="point"/>').format(*map(_n, place(at, hit))),
        text(left + size / 2, top + size + 34, "wrongly named, of all who were not in", "middle"),
        Markup('<text transform="translate(10 {}) rotate(-90)" text-anchor="middle" class="label">{}</text>').format(
            _n(top + size / 2), "found, of all who were"
        ),
        text(*place(0.98, 0.04), "guessing blindly: the dashed line", "end", "small"),
    ]
    told = f"With {at:.0%} false alarms, an attacker finds at most {hit:.1%}."
    return svg(left + size + 22, top + size + 42, told, parts)


def budget(names: Sequence[str], epsilons: Sequence[float], so_far: Sequence[float], lost: Sequence[bool]) -> Markup:
    """A bar a release, lost draws in red, and the line of what all up to it spend together.

    names: of the releases.
    epsilons: of each release alone.
    so_far: of all releases up to each.
    lost: whether each was drawn and lost.
    """
    n = len(epsilons)
    left, width, height, low = 40.0, 352.0, 150.0, 164.0
    step = width / max(n, 1)
    most = max([*so_far, 1e-9])
    parts = []
    for i, epsilon in enumerate(epsilons):
        tall = height * epsilon / most
        kind = "lost" if lost[i] else "bar"
        told = f"{names[i]}{' (lost draw)' if lost[i] else ''}: {epsilon:.4g} alone, {so_far[i]:.4g} so far"
        parts.append(rectangle(left + i * step + step * 0.15, low - tall, step * 0.7, tall, kind, told))
        if n <= 16:
            parts.append(text(left + (i + 0.5) * step, low + 16, str(i + 1), "middle"))
    parts.append(
        line([(left + (i + 0.5) * step, low - height * each / most) for i, each in enumerate(so_far)], "curve")
    )
    parts += [text(left - 6, low - height + 4, f"{most:.3g}", "end"), text(left - 6, low + 4, "0", "end")]
    parts.append(line([(left, low), (left + width, low)], "axis"))
    return svg(left + width + 8, low + 24, f"Epsilon of {n} releases, together {most:.4g}", parts)


def small_line(values: Sequence[float], names: Sequence[str], told: str, low: float | None = None) -> Markup:
    """A curve over iterations.

    values: one an iteration.
    names: of the iterations.
    told: what a screen reader says.
    low: below which values are out of range; None: none are.
    """
    width, height, left = 220.0, 70.0, 36.0
    most = (max([*values, low or 0]) or 1) * 1.05
    step = width / max(1, len(values) - 1)
    points = [(left + i * step, 8 + height * (1 - value / most)) for i, value in enumerate(values)]
    parts = [line([(left, 8 + height), (left + width, 8 + height)], "axis")]
    if low is not None:
        y = 8 + height * (1 - low / most)
        parts.append(line([(left, y), (left + width, y)], "guess"))
    parts.append(line(points, "curve"))
    if len(points) <= 24:
        for i, (x, y) in enumerate(points):
            dot = '<circle cx="{}" cy="{}" r="2.5" class="dot"><title>{}</title></circle>'
            parts.append(Markup(dot).format(_n(x), _n(y), f"{names[i]}: {values[i]:.4g}"))
    top = f"{most / 1.05:.2g}" if most < 1 else f"{most / 1.05:.3g}"
    parts += [text(left - 5, 14, top, "end"), text(left - 5, 8 + height, "0", "end")]
    parts.append(text(left, height + 24, names[0]))
    if len(names) > 1:
        parts.append(text(left + width, height + 24, names[-1], "end"))
    return svg(left + width + 8, height + 30, told, parts)


def votes(values: F64, deviation: float) -> Markup:
    """Noisy votes sorted, over the band in which nineteen of twenty would lie if all were noise alone. The scale is
    straight within the noise and logarithmic beyond it.

    values: noisy votes, float64 [n].
    deviation: of their noise.
    """
    from scipy.special import ndtri

    n = len(values)
    ranked = np.sort(values)[::-1]
    at = np.unique(np.linspace(0, n - 1, min(n, POINTS)).round().astype(int))
    middle = ndtri(1 - (at + 0.5) / n)
    # spread of an order statistic, by the density there (David and Nagaraja 2003, section 10.2)
    share = (at + 0.5) / n
    spread = 1.96 * np.sqrt(share * (1 - share) / n) / (np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi))
    high, low = (middle + spread) * deviation, (middle - spread) * deviation
    top, bottom = max(ranked[0], high.max()), min(ranked[-1], low.min())
    width, height, left = 300.0, 130.0, 44.0

    def place(i: float, value: float) -> tuple[float, float]:
        upper, lower, own = (math.asinh(each / deviation) for each in (top, bottom, value))
        return left + width * i / max(1, n - 1), 8 + height * (upper - own) / (upper - lower)

    both = [place(i, v) for i, v in zip(at, high, strict=True)] + [
        place(i, v) for i, v in zip(at[::-1], low[::-1], strict=True)
    ]
    above = int((values > np.max(high)).sum())
    parts = [
        area(both, "band"),
        line([place(0, 0), place(n - 1, 0)], "axis"),
        line([place(i, v) for i, v in zip(at, ranked[at], strict=True)], "curve"),
        text(left - 5, 14, f"{top:.4g}", "end"),
        text(left - 5, place(0, 0)[1] + 4, "0", "end"),
        text(left + width, height + 24, f"{n:,} candidates, most votes first", "end"),
    ]
    return svg(left + width + 8, height + 30, f"{above} of {n} candidates have more votes than noise explains", parts)


def stream(iterations: Sequence[int], shares: F64, names: Sequence[str]) -> Markup:
    """Stacked shares of the rows that descend from each founder; at last all others.

    iterations: their numbers.
    shares: float64 [k + 1, iterations].
    names: of the k founders and of all others.
    """
    width, height, left = 352.0, 220.0, 40.0
    step = width / max(1, len(iterations) - 1)
    edges = np.vstack([np.zeros(shares.shape[1]), np.cumsum(shares, axis=0)])
    parts = []
    for i in range(len(shares)):
        up = [(left + t * step, 8 + height * (1 - y)) for t, y in enumerate(edges[i + 1])]
        down = [(left + t * step, 8 + height * (1 - y)) for t, y in reversed(list(enumerate(edges[i])))]
        kind = "others" if i == len(shares) - 1 else f"c{i % 12}"
        parts.append(area([*up, *down], kind, names[i]))
    for t, iteration in enumerate(iterations):
        if len(iterations) <= 20 or t in (0, len(iterations) - 1):
            parts.append(text(left + t * step, height + 24, str(iteration), "middle"))
    parts += [text(left - 6, 14, "100%", "end"), text(left - 6, 8 + height, "0", "end")]
    last = shares[:-1, -1].sum()
    told = f"The {len(shares) - 1} most successful founders have {last:.0%} of the last rows as descendants"
    return svg(left + width + 16, height + 30, told, parts)


def counts(names: Sequence[str], values: Sequence[float], told: str) -> Markup:
    """Horizontal bars with their numbers.

    names: of the bars.
    values: their lengths, 0 or more.
    told: what a screen reader says.
    """
    left, width, high = 150.0, 190.0, 20.0
    most = max([*values, 1e-9])
    parts = []
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        y = i * high
        parts.append(text(left - 8, y + 14, name if len(name) <= 22 else name[:21] + "…", "end"))
        parts.append(rectangle(left, y + 3, width * value / most, high - 6, "bar", f"{name}: {value:,.0f}"))
        parts.append(text(left + width * value / most + 6, y + 14, f"{value:,.0f}"))
    return svg(left + width + 60, len(names) * high + 4, told, parts)


def histogram(values: F64, told: str, unit: str) -> Markup:
    most = float(np.quantile(values, 0.995)) if len(values) else 1.0
    heights, edges = np.histogram(np.minimum(values, most), bins=min(30, max(1, int(most))), range=(0, max(most, 1.0)))
    width, height, left = 400.0, 110.0, 20.0
    step = width / len(heights)
    parts = [
        rectangle(
            left + i * step + 1,
            8 + height * (1 - count / max(1, heights.max())),
            step - 2,
            height * count / max(1, heights.max()),
            "bar",
            f"{edges[i]:.0f} to {edges[i + 1]:.0f} {unit}: {count:,}",
        )
        for i, count in enumerate(heights.tolist())
    ]
    parts += [
        line([(left, 8 + height), (left + width, 8 + height)], "axis"),
        text(left, height + 24, "0"),
        text(left + width, height + 24, f"{most:.0f} {unit} or more", "end"),
    ]
    return svg(left + width + 8, height + 30, told, parts)


def marginal(bars: Bars, beside: str = "released, noisy") -> Markup:
    """Synthetic bars beside the released noisy counts with their band of 95 %, or beside what else is said to be.

    bars: of a column.
    beside: what the marks are, in words.
    """
    n = len(bars.names)
    width, height, left, low = 300.0, 110.0, 8.0, 120.0
    step = width / max(1, n)
    most = max(float(bars.synthetic.max()), 1e-9)
    if bars.noisy is not None and bars.band is not None:
        most = 1.1 * max(most, float(bars.noisy.max()))
    parts = []
    for i, name in enumerate(bars.names):
        x, share = left + i * step, float(bars.synthetic[i])
        told = f"{name}: {share:.2%} synthetic"
        parts.append(
            rectangle(x + step * 0.12, low - height * share / most, step * 0.76, height * share / most, "bar", told)
        )
        if bars.noisy is not None and bars.band is not None:
            top, bottom = (np.clip(bars.noisy[i] + sign * bars.band[i], 0, most) for sign in (1, -1))
            about = f" ± {bars.band[i]:.2%}" if bars.band[i] else ""
            told = f"{name}: {bars.noisy[i]:.2%}{about} {beside}"
            y = low - height * top / most
            parts.append(
                rectangle(x + step * 0.4, y, step * 0.2, max(2.0, height * (top - bottom) / most), "interval", told)
            )
    parts.append(line([(left, low), (left + width, low)], "axis"))
    shown = bars.names if n <= 4 and not bars.ordered else ()
    for i, name in enumerate(shown):
        short = name if len(name) <= 60 // n else name[: 60 // n - 1] + "…"
        parts.append(text(left + (i + 0.5) * step, low + 15, short, "middle"))
    if not shown and n:
        parts += [text(left, low + 15, bars.names[0]), text(left + width, low + 15, bars.names[-1], "end")]
    return svg(left + width + 8, low + 22, f"{bars.column}: {n} bars", parts)


def residuals(pair: Residuals) -> Markup:
    """A square for each cell of the column, left to right, and each label, top to bottom, by how far it is off."""
    cells = pair.deviations[:CELLS, :ROWS]
    left, width, high = 92.0, 220.0, 16.0
    step = width / max(1, len(cells))
    parts = [text(left - 6, label * high + 12, pair.names[label][:14], "end") for label in range(cells.shape[1])]
    for cell, row in enumerate(cells):
        for label, off in enumerate(row.tolist()):
            kind = "r0" if abs(off) <= 2 else f"r{1 if abs(off) <= 4 else 2}{'m' if off > 0 else 'l'}"
            told = f"cell {cell + 1}, {pair.names[label]}: {abs(off):.1f} deviations too {'many' if off > 0 else 'few'}"
            parts.append(rectangle(left + cell * step, label * high, max(step - 1, 0.5), high - 1, kind, told))
    told = f"{pair.column} with the label: {pair.spread:.2f} deviations off"
    return svg(left + width + 4, cells.shape[1] * high + 2, told, parts)
