"""What is in the synthetic data, told from them and from noisy answers alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dpsyn.errors import UserError
from dpsyn.population import F32, F64, I64, Array, Population
from dpsyn.privacy.budget import Settings, multiplier, records_in_a_vote
from dpsyn.privacy.ledger import answer_of
from dpsyn.privacy.marginals import counts_of
from dpsyn.privacy.query import CellCounts
from dpsyn.randomness import generator
from dpsyn.report.facts import Released
from dpsyn.schedule import gibbs
from dpsyn.schedule.binning import run_length, runs_of, variance_of, with_runs
from dpsyn.schedule.subspaces import plan
from dpsyn.tables.codec import CodedColumn, coded_columns, encode, starts_of
from dpsyn.tables.columns import Column
from dpsyn.tables.schema import Schema

BARS, WORDS = 16, 8
MOST_NOISE = 1.5  # half of the band, over the share of a bar if all were alike: with more there is nothing to see
NORMAL = 1.96  # standard deviations of a band of 95 %
SMALL, ALIKE = 16, 0.02  # px, and root mean square of what is left of the range: images that look the same
MOST_COLUMNS = 200
MAP = 9, 16  # rows and columns of a map of images, at most


@dataclass(frozen=True)
class Bars:
    """A column's distribution: names of the bars, shares float64 [b] of the synthetic rows, and of the released noisy
    counts, with half the width of their 95 % band; None where none were released, or where all is noise. ordered:
    neighbours are neighbours."""

    column: str
    kind: str
    names: tuple[str, ...]
    synthetic: F64
    noisy: F64 | None
    band: F64 | None
    ordered: bool

    @property
    def off(self) -> tuple[float, float] | None:
        """How far a synthetic bar is from the noisy counts, on average, and the half width of the band there."""
        if self.noisy is None or self.band is None:
            return None
        return float(np.abs(self.synthetic - self.noisy).mean()), float(self.band.mean())


@dataclass(frozen=True)
class Texts:
    """lengths: in words, int64 [n]. distinct: share of different n-grams among all, n = 1, 2, 3. duplicates: share of
    rows that stand there before. telling: of each label, words that are more usual there than elsewhere."""

    lengths: I64
    distinct: tuple[float, float, float]
    duplicates: float
    telling: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Images:
    """means: of each label with rows, uint8 [h, w, c]. duplicates: share of images that are another one, pixel by
    pixel; near: that look like one. map: some images, rows of the sample int64 [r, c], see `mapped`."""

    means: tuple[tuple[str, Array], ...]
    duplicates: float
    near: float
    map: I64


def images(sample: Population, labels: Sequence[str], most: int) -> Images:
    """What the page shows of images.

    sample: rows of the synthetic data.
    labels: names of the labels.
    most: labels with a mean image.
    """
    content = sample.samples.content
    present = np.unique(sample.labels)[:most]
    means = [(labels[i], content[sample.labels == i].mean(0).round().astype(np.uint8)) for i in present]
    tiny = [_picture(image).resize((SMALL, SMALL), Image.Resampling.BOX) for image in content]
    small = np.array([np.asarray(each.convert("L")) for each in tiny], np.float32).reshape(len(content), -1) / 255
    colours = np.array([np.asarray(each) for each in tiny], np.float32).reshape(len(content), -1)
    seen = Counter(image.tobytes() for image in content)
    squares = (small**2).sum(1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * small @ small.T, 0) / small.shape[1])
    np.fill_diagonal(apart, np.inf)
    many = len(content) > 1
    some = np.linspace(0, len(content) - 1, min(len(content), MAP[0] * MAP[1])).astype(np.int64)
    return Images(
        tuple(means),
        sum(n - 1 for n in seen.values()) / max(1, len(content)),
        float((apart.min(1) < ALIKE).mean()) if many else 0.0,
        some[mapped(colours[some])],
    )


def mapped(vectors: F32) -> I64:
    """Rows on a grid, int64 [r, c], those that are alike near each other: by their principal component from left to
    right, and in each column by the next one from top to bottom. As many as fill it.

    vectors: float32 [n, d].
    """
    n, (most_rows, most_columns) = len(vectors), MAP
    columns = min(most_columns, math.ceil(math.sqrt(n * most_columns / most_rows)))
    rows = n // columns if columns else 0
    if not rows:
        return np.empty((0, 0), np.int64)
    centred = (vectors - vectors.mean(0))[: rows * columns].astype(np.float64)
    wide = centred.shape[1] > len(centred)  # the smaller of both products: a tenth of the time of its svd
    axes = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)[1][:, :-3:-1]
    directions = centred.T @ axes if wide else axes
    directions = directions / (np.linalg.norm(directions, axis=0) + 1e-12)
    directions *= np.sign(directions.sum(0) + 1e-12)
    places = np.round(centred @ directions, 6)  # so that rounding moves nothing
    across = np.argsort(places[:, 0], kind="stable").reshape(columns, rows)
    down = np.argsort(places[across, -1], axis=1, kind="stable")
    return np.take_along_axis(across, down, axis=1).T


def _picture(image: Array) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def texts(sample: Population, labels: Sequence[str], most: int) -> Texts:
    """What the page shows of texts.

    sample: rows of the synthetic data.
    labels: names of the labels.
    most: labels whose telling words are looked for.
    """
    content = [str(text)[:20_000] for text in sample.samples.content]
    words = [re.findall(r"\w+(?:['\u2019]\w+)*", text.lower()) for text in content]
    distinct = []
    for n in (1, 2, 3):
        grams = [tuple(each[i : i + n]) for each in words for i in range(len(each) - n + 1)]
        distinct.append(len(set(grams)) / max(1, len(grams)))
    lengths = np.array([len(each) for each in words], np.int64)
    duplicates = 1 - len(set(content)) / max(1, len(content))
    return Texts(
        lengths, (distinct[0], distinct[1], distinct[2]), duplicates, _telling(words, sample.labels, labels, most)
    )


def _telling(
    words: Sequence[Sequence[str]], rows: I64, labels: Sequence[str], most: int
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """By the log-odds of how many texts have a word, with a prior of all texts, in standard deviations (Monroe et al.
    2008)."""
    everywhere = Counter(word for each in words for word in set(each))
    found = []
    for label in np.unique(rows)[:most]:
        here = Counter(word for each, row in zip(words, rows, strict=True) if row == label for word in set(each))
        n, others = int((rows == label).sum()), int((rows != label).sum())
        scores = {}
        for word, count in here.items():
            prior = everywhere[word] / len(words)
            one, two = count + prior, everywhere[word] - count + prior
            odds = np.log(one / (n + 1 - one + 1e-9)) - np.log(two / (others + 1 - two + 1e-9))
            scores[word] = odds / np.sqrt(1 / one + 1 / two)
        best = sorted((word for word in scores if scores[word] > 2), key=lambda word: (-scores[word], word))
        found.append((labels[label], tuple(best[:WORDS])))
    return tuple(found) if len(found) > 1 else ()


def schema_of(released: Released) -> Schema | None:
    """As config.yaml publishes it; None where it is not that of these rows."""
    try:
        schema = Schema(released.settings["data"]["schema"]["file"])
        return schema if schema.dtype == released.sample.samples.content.dtype else None
    except (UserError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def columns(released: Released) -> list[Bars]:
    """Of each column of a table, the synthetic rows beside the released noisy counts, where votes in cells made any."""
    schema = schema_of(released)
    if schema is None:
        return []
    content = released.sample.samples.content
    if schema.open:
        return [_found(name, content[name]) for name in schema.open][:MOST_COLUMNS]
    coded, table = coded_columns(schema), encode(schema, content)
    released_counts = _noisy_counts(released, coded, len(schema.labels))
    found = []
    for at, (column, code) in enumerate(zip(schema.features, coded, strict=True)):
        synthetic = np.bincount(table[:, at], minlength=code.codes).astype(np.float64)
        alone = code.codes - column.missing == len(starts_of(column))  # and no distance from another column
        noisy = released_counts[at] if released_counts and alone else None
        if alone:
            found.append(_bars(column, synthetic, noisy))
        else:
            places = column.codes_of(content[column.name])
            own = np.where(places < 0, len(starts_of(column)), np.searchsorted(starts_of(column), places, "right") - 1)
            counts = np.bincount(own, minlength=len(starts_of(column)) + column.missing).astype(np.float64)
            found.append(_bars(column, counts, None))
    if len(schema.labels) > 1:
        synthetic = np.bincount(schema.labels_of(content), minlength=len(schema.labels)).astype(np.float64)
        groups = _largest(synthetic)
        names = tuple(released.labels[i] for i in groups[0]) + (("all others",) if groups[1] else ())
        noisy = released_counts[-1] if released_counts else None
        found.append(_of_groups(", ".join(schema.label_columns), "label", names, groups, synthetic, noisy, False))
    return found[:MOST_COLUMNS]


def _found(name: str, values: Array) -> Bars:
    """Of a column whose values were found: values, object [n]; None where none was."""
    counts = Counter(str(value) for value in values if value is not None)
    names = sorted(counts)
    shares = np.array([counts[value] for value in names], np.float64)
    groups = _largest(shares)
    shown = tuple(names[i] for i in groups[0]) + (("all others",) if groups[1] else ())
    return _of_groups(name, "found", shown, groups, shares, None, False)


@dataclass(frozen=True)
class Residuals:
    """A column with the label: how far the synthetic rows are from the released noisy counts, in standard deviations of
    their noise, float64 [cells, labels]. names: of the labels."""

    column: str
    deviations: F64
    names: tuple[str, ...]

    @property
    def spread(self) -> float:
        """Root mean square: 1 is what noise alone gives."""
        return float(np.sqrt((self.deviations**2).mean()))


def with_label(released: Released) -> list[Residuals]:
    """Of each column with the label, as the second release of votes in cells asks them; [] where it did not, or where
    its receipt is not about the cells that follow from the first one."""
    schema = schema_of(released)
    first, second = released.cells.get(1), released.cells.get(2)
    if schema is None or first is None or second is None or len(schema.labels) < 2:
        return []
    content, coded = released.sample.samples.content, coded_columns(schema)
    try:
        asked = _asked(released, coded, len(schema.labels))
        if asked is None or asked.about != second.population or asked.size != len(second.votes):
            return []
        scale = records_in_a_vote(second.charge, len(asked.marginals))
        noisy, deviation = second.votes * (scale / second.charge.grid), second.charge.sigma * scale
        synthetic = counts_of(asked.marginals, [(encode(schema, content), schema.labels_of(content))])
    except (UserError, KeyError, TypeError, ValueError, IndexError):  # of a stranger's settings
        return []
    sums = [part.sum() for part in np.split(noisy, np.cumsum([m.size for m in asked.marginals])[:-1])]
    apart = (synthetic * (float(np.mean(sums)) / max(1, len(content))) - noisy) / max(deviation, 1e-9)
    parts = np.split(apart, np.cumsum([m.size for m in asked.marginals])[:-1])
    return [
        Residuals(column.name, part.reshape(marginal.shape), released.labels)
        for column, marginal, part in zip(coded, asked.marginals, parts, strict=True)
    ]


def _asked(released: Released, coded: Sequence[CodedColumn], labels: int) -> CellCounts | None:
    """The query of the second release, as the run made it of the first one's answer."""
    said = released.settings["privacy"]
    privacy = Settings(**{key: said[key] for key in ("epsilon", "delta", "unit", "adjacency", "noise")})
    records, seed = released.promise.records, released.settings["seed"]
    if records is None or type(seed) is not int:
        return None
    records = max(1, round(records * (1 - float(released.settings["data"].get("hold_out", 0)))))
    scores = released.settings["schedule"]["scores"] and privacy.unit == "record" and privacy.adjacency == "add_remove"
    part = float(released.settings["schedule"].get("rows_budget", 1.0))  # of the budget that the rows spend
    if not 0 < part <= 1:
        return None
    releases = plan(coded, labels, records, multiplier(privacy) / math.sqrt(part), bool(scores))
    state = gibbs.start(coded, labels, records)
    query = gibbs.next_query(state, releases[0])
    answer = answer_of(released.cells[1], query)
    if len(answer.values) != query.size or releases[1].kind != "by_label":
        return None
    state = gibbs.update(state, releases[0], query, answer, generator(seed, 1, "cells"))
    return gibbs.next_query(state, releases[1])


@dataclass(frozen=True)
class Noisy:
    """Counts of the codes of a column, float64 [codes], in records; the standard deviation of the noise in each; how
    many records there are, about; and how many codes have a count of their sum too, which they agree with."""

    counts: F64
    deviation: float
    total: float
    run: float

    def deviations(self, codes: I64) -> F64:
        """Of the sums of so many codes next to each other, about."""
        return self.deviation * np.sqrt(variance_of(codes, self.run))


def _noisy_counts(released: Released, coded: Sequence[CodedColumn], labels: int) -> list[Noisy]:
    """Of every column and of the labels, as the first release of votes in cells asks them; [] where it did not."""
    receipt = released.cells.get(1)
    if receipt is None or "marginals" not in receipt.charge.name:
        return []
    every = [*coded, *([CodedColumn(labels, ordered=False)] if labels > 1 else [])]
    runs = [runs_of(column) for column in every]
    sizes = [column.codes for column in every] + [int(of.max()) + 1 for of in runs if of is not None]
    if len(receipt.votes) != sum(sizes):
        return []
    scale = records_in_a_vote(receipt.charge, len(sizes))
    parts = np.split(receipt.votes * (scale / receipt.charge.grid), np.cumsum(sizes)[:-1])
    total = max(1.0, float(np.average([part.sum() for part in parts], weights=1 / np.array(sizes))))
    of_runs = iter(parts[len(every) :])
    return [
        Noisy(
            counts if of is None else with_runs(counts, next(of_runs), of),
            receipt.charge.sigma * scale,
            total,
            run_length(column),
        )
        for column, counts, of in zip(every, parts, runs, strict=False)
    ]


Groups = tuple[list[int], list[int]]
"""Codes with a bar each, and all others."""


def _largest(counts: F64) -> Groups:
    if len(counts) <= BARS:
        return list(range(len(counts))), []
    order = np.argsort(-counts, kind="stable").tolist()
    return sorted(order[: BARS - 1]), sorted(order[BARS - 1 :])


def _bars(column: Column, synthetic: F64, noisy: Noisy | None) -> Bars:
    if not column.numeric:
        codes = len(column.values)
        if column.missing:
            groups = _largest(synthetic[:codes])
            groups = [*groups[0], codes], groups[1]
        else:
            groups = _largest(synthetic)
        names = [*column.values, "missing"]
        named = tuple(names[i] for i in groups[0]) + (("all others",) if groups[1] else ())
        return _of_groups(column.name, column.kind, named, groups, synthetic, noisy, False)
    starts = starts_of(column)
    values = np.asarray(column.measured(starts), np.float64)
    mass = np.cumsum(synthetic[: len(starts)])
    ends = np.searchsorted(mass, np.array([0.005, 0.995]) * max(mass[-1], 1e-9))
    low, high = (values[min(i, len(values) - 1)] for i in ends)
    for bars in (BARS, BARS // 2, BARS // 4):  # as many as the noise allows
        found = _equally_wide(column, starts, values, (low, high, bars), synthetic, noisy)
        if noisy is None or found.noisy is not None:
            break
    else:
        found = _equally_wide(column, starts, values, (low, high, BARS), synthetic, None)
    return found


def _equally_wide(
    column: Column, starts: I64, values: F64, cut: tuple[float, float, int], synthetic: F64, noisy: Noisy | None
) -> Bars:
    """cut: lowest and highest value, and how many bars; what lies beyond is in the first or in the last one."""
    low, high, bars = cut
    edges = np.unique(np.linspace(low, high, bars + 1)) if high > low else np.array([low])
    own = np.clip(np.searchsorted(edges, values, "right") - 1, 0, max(0, len(edges) - 2))
    count = int(own.max()) + 1
    places = [int(starts[np.flatnonzero(own == bar)[0]]) if (own == bar).any() else -1 for bar in range(count)]
    names = tuple(_value(column, place) if place >= 0 else "" for place in places)
    if column.missing:
        own, names, count = np.append(own, count), (*names, "missing"), count + 1
    return _summed(column.name, column.kind, names, own, count, synthetic, noisy, True)


def _value(column: Column, place: int) -> str:
    value = column.values_of(np.array([place]))[0]
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _of_groups(
    name: str, kind: str, names: tuple[str, ...], groups: Groups, synthetic: F64, noisy: Noisy | None, ordered: bool
) -> Bars:
    own = np.full(len(synthetic), len(groups[0]))
    own[groups[0]] = np.arange(len(groups[0]))
    return _summed(name, kind, names, own, len(names), synthetic, noisy, ordered)


def _summed(
    name: str,
    kind: str,
    names: tuple[str, ...],
    own: I64,
    count: int,
    synthetic: F64,
    noisy: Noisy | None,
    ordered: bool,
) -> Bars:
    """own: int64 [codes], the bar of each."""
    shares = np.bincount(own, synthetic, count) / max(1.0, float(synthetic.sum()))
    if noisy is None:
        return Bars(name, kind, names, shares, None, None, ordered)
    band = NORMAL * noisy.deviations(np.bincount(own, minlength=count)) / noisy.total
    if np.median(band) > MOST_NOISE / count:
        return Bars(name, kind, names, shares, None, None, ordered)
    return Bars(name, kind, names, shares, np.bincount(own, noisy.counts, count) / noisy.total, band, ordered)
