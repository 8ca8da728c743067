"""The values of open columns, found under differential privacy: a tree of prefixes, asked level by level.

At each level a record lies in one cell of a column: that of the prefix its value begins with, among those that were
kept, and of the characters after it, or in the one for all else. Counts of cells are noisy; a prefix is kept where its
count is so many deviations of the noise above 0, and what a value's end is counted for is a value. Nothing else about
a value is asked or kept, and thresholds follow from the number of cells and the noise alone.

A prefix that nobody has costs cells and little more, as noise would have to lift it again and again. So prefixes are
kept as long as half a false one follows each, and die out; values are held to a higher threshold, at which as few false
ones are expected as the settings say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.embedding import Coder, Embedding
from dpsyn.errors import UserError, invalid
from dpsyn.population import F64, I32, I64, Population, Samples
from dpsyn.privacy.budget import Release, multiplier
from dpsyn.privacy.prefixes import Spelled
from dpsyn.privacy.query import PrefixCounts
from dpsyn.randomness import generator
from dpsyn.schedule import Ask, Facts, Keep, PublicSide, Schedule
from dpsyn.tables.open import OPEN, OpenColumn
from dpsyn.tables.schema import Schema
from dpsyn.validate import number, whole

NAME = "schema.yaml"
MOST_CELLS = 2**20  # of a column in a release: a draw of noise takes 10 microseconds. What is above is not followed
FOLLOWED = 100  # prefixes of a column that a plan expects where nothing is declared
MAYBE = 1.5  # deviations from which on a whole value is asked again, which costs one cell
MOST_WEIGHT = 4.0
ABOVE = 1.0  # deviations above the threshold of a prefix that a value has which passes it again and again
FALSE = 0.5  # false prefixes that follow one, at most: below 1, so that they die out
MOST_STRIDE = 3
EXACT = 1e-3  # the deviation that counts without noise are taken to have: one record is above any threshold
ADJUSTED = 0.05  # data.max_adjusted, where nothing else is said


@dataclass(frozen=True)
class Characters:
    """Values of open columns as codes of their characters, column after column."""

    schema: Schema

    def fingerprint(self) -> str:
        return "characters"

    def __call__(self, samples: Samples) -> np.ndarray:
        """int32 [n, characters of all columns]. Raises UserError for rows of another schema."""
        if samples.content.dtype != self.schema.dtype:
            raise UserError("schedule=discover: expected rows of data.schema; these have other columns.")
        columns = self.schema.open.values()
        return np.concatenate([column.codes(samples.content[column.name]) for column in columns], axis=1)


@dataclass(frozen=True)
class Asked:
    """Of a column in a release: how many characters of a prefix are known, and how many after it are told apart."""

    column: OpenColumn
    first: int
    known: int
    ahead: int

    @property
    def going_on(self) -> int:
        """Cells after a prefix in which a value has all of the characters."""
        return int((self.column.letters - 1) ** self.ahead)

    @property
    def ending(self) -> int:
        """Cells after a prefix that are values. Where nothing is known yet an end is a missing value."""
        ends = sum((self.column.letters - 1) ** further for further in range(self.ahead)) - (self.known == 0)
        return int(ends + self.going_on * self.is_last)

    @property
    def is_last(self) -> bool:
        return self.known + self.ahead == self.column.longest


@dataclass(frozen=True)
class Found:
    """What is known of a column.

    prefixes: int32 [p, t], that are asked on.
    spelled: int32 [v, longest], codes of whole values that may be there; asked again in each release that is left.
    counts: float64 [v], noisy, of all releases together; precision: float64 [v], one over the variance of each.
    least: float64 [v], deviations above 0 from which on it is a value.
    missing: a noisy count.
    """

    prefixes: I32
    spelled: I32
    counts: F64
    precision: F64
    least: F64
    missing: float = 0.0

    def values(self, column: OpenColumn) -> dict[str, float]:
        """Those that were found, with their noisy counts. column: of them."""
        clear = np.flatnonzero(self.counts * np.sqrt(self.precision) >= self.least)
        return {
            column.text([code for code in self.spelled[at].tolist() if code]): float(self.counts[at]) for at in clear
        }


def nothing(column: OpenColumn) -> Found:
    """What is known of a column at first: that values begin with nothing."""
    none = np.empty(0)
    return Found(np.empty((1, 0), np.int32), np.empty((0, column.longest), np.int32), none, none, none)


@dataclass(frozen=True)
class Discover(Schedule):
    """Finds the values of the open columns of a schema.

    stride: characters that a release goes on by; None: as public facts say, see `stride_of`.
    false_values: of a column, that nobody has, as many as are expected at most.
    size: rows of the synthetic table. They show what was found; columns are not linked.
    """

    stride: int | None
    false_values: float
    size: int

    def __post_init__(self) -> None:
        whole("schedule.stride", self.stride, 1, optional=True, most=MOST_STRIDE)
        number("schedule.false_values", self.false_values, "a number over 0, up to 100", above=0, most=100)
        whole("schedule.size", self.size, 1)

    @property
    def uses_api(self) -> bool:
        return False

    @property
    def finds_values(self) -> bool:
        return True

    def check(self, facts: Facts, api: Api) -> None:
        schema, privacy = facts.schema, facts.privacy
        if schema is None or not schema.open:
            what = f"a table whose schema has a category with values: {OPEN}"
            raise invalid("schedule", "discover", what, "Where all values are declared there is nothing to find.")
        if privacy.votes_per_record != 1 or privacy.budget_split is not None:
            what = "privacy.votes_per_record=1 and privacy.budget_split=null with it"
            raise invalid("schedule", "discover", what, "It has shares of its own.")
        for column in schema.open.values():
            if self.stride is not None and column.letters**self.stride > MOST_CELLS:
                what = f"a smaller number, or fewer than {column.letters - 1} characters for the column '{column.name}'"
                raise invalid("schedule.stride", self.stride, what)

    def releases(self, facts: Facts) -> Sequence[Release]:
        return [
            Release(
                f"prefixes {t}",
                len(level),
                len(level) * max(self._weight(each, self._stride(each.column, facts)) for each in level),
                {"open columns": str(len(level)), "characters": _span(level)},
            )
            for t, level in enumerate(self._levels(facts), 1)
        ]

    def api_rows(self, facts: Facts) -> Sequence[tuple[int, int]]:
        return [(0, 0)] * (1 + len(self._levels(facts)))

    def final_size(self, facts: Facts) -> int:
        return self.size

    def coder(self, facts: Facts, embed: Embedding) -> Coder | None:
        return None if facts.schema is None else Characters(facts.schema)

    def warnings(self, facts: Facts, deviations: Sequence[float]) -> Iterable[str]:
        levels = self._levels(facts)
        units = "users" if facts.privacy.unit == "user" else "records"
        for column in _open(facts).values():
            asked = [(each, deviations[t]) for t, level in enumerate(levels) for each in level if each.column == column]
            mine, noise = [each for each, _ in asked], [max(each, EXACT) for _, each in asked]

            def needed(length: int, mine: Sequence[Asked] = mine, noise: Sequence[float] = noise) -> str:
                return f"{half_found(mine, length, self.false_values / len(mine), noise):,.0f}"

            half = (column.longest + 1) // 2
            yield (
                f"column '{column.name}': a value of {column.longest} characters is found with one chance in two where "
                f"about {needed(column.longest)} {units} have it, one of {half} where about {needed(half)} have; a "
                "smaller longest or fewer characters find rarer ones"
            )

    def run(self, public: PublicSide, ask: Ask, last: Population | None) -> Iterator[Population]:
        """After each release some rows of the values that are known by then; none is iteration 0.

        All but the answers is a function of public facts and the seed, so an interrupted run learns again from its
        receipts.
        """
        done = 0 if last is None else last.iteration
        if done == len(self._levels(public.facts)):
            return
        for t, found in enumerate(self._learnt(public.facts, ask), 1):
            if t > done:
                yield self._drawn(public, found, t, self.size)

    def expand(
        self,
        public: PublicSide,
        ask: Ask,
        final: Population,
        rows: int,
        degree: Degree | None,
        keep: Keep,
        sizes: I64 | None = None,
    ) -> Population:
        """Another number of rows, from the answers. There is one label, so sizes choose nothing."""
        *_, found = self._learnt(public.facts, ask)
        return self._drawn(public, found, final.iteration, rows)

    def files(self, public: PublicSide, ask: Ask) -> Mapping[str, bytes]:
        """The schema, with the values that were found."""
        schema = public.facts.schema
        assert schema is not None
        *_, found = self._learnt(public.facts, ask)
        counted = public.facts.privacy.unit == "record"
        values = {name: of.values(schema.open[name]) for name, of in found.items()}
        missing = {name: of.missing for name, of in found.items()}
        return {NAME: schema_yaml(schema, values, missing, public.facts.records if counted else None)}

    def _levels(self, facts: Facts) -> list[list[Asked]]:
        """What each release asks, column by column; of a column that is known to its longest value nothing more."""
        columns, first, levels = _open(facts), 0, list[list[Asked]]()
        for column in columns.values():
            stride = self._stride(column, facts)
            for at, known in enumerate(range(0, column.longest, stride)):
                if at == len(levels):
                    levels.append([])
                levels[at].append(Asked(column, first, known, min(stride, column.longest - known)))
            first += column.longest
        return levels

    def _stride(self, column: OpenColumn, facts: Facts) -> int:
        return self.stride or stride_of(column, facts)

    def _weight(self, asked: Asked, stride: int) -> float:
        """How much of the budget its release takes, beside the others: the last one, which alone tells the longest
        values from noise, as much more as its threshold is higher."""
        if not asked.is_last or not asked.known:
            return 1.0
        column = asked.column
        clear = _threshold(self.false_values * stride / column.longest / (FOLLOWED * asked.ending))
        kept = _threshold(FALSE / (column.letters - 1) ** stride)
        return min(MOST_WEIGHT, max(1.0, (clear / (kept + ABOVE)) ** 2))

    def _learnt(self, facts: Facts, ask: Ask) -> Iterator[Mapping[str, Found]]:
        """What is known after each release, from 1 on, by column."""
        levels = self._levels(facts)
        asked_of = {name: sum(each.column.name == name for level in levels for each in level) for name in _open(facts)}
        found = {name: nothing(column) for name, column in _open(facts).items()}
        for t, level in enumerate(levels, 1):
            query = next_query(level, found)
            answer = ask(t, query)
            for each, (counts, again) in zip(level, query.parts(answer.values), strict=True):
                name = each.column.name
                expected = self.false_values / asked_of[name]
                noise = max(answer.deviation, EXACT)
                found[name] = updated(found[name], each, counts, again, noise, expected)
            yield dict(found)

    def _drawn(self, public: PublicSide, found: Mapping[str, Found], t: int, rows: int) -> Population:
        """Rows of what was found, each column in proportion to its noisy counts; None where nothing was."""
        schema, rng = public.facts.schema, generator(public.seed, t, "generate")
        assert schema is not None
        content = np.empty(rows, schema.dtype)
        for name, of in found.items():
            told = of.values(schema.open[name])
            values = np.array([*told, None], object)[: max(1, len(told))]
            counts = np.maximum([*told.values()] or [0.0], 0)
            places = np.repeat(np.arange(len(values)), shared_out(counts, rows))
            content[name] = values[rng.permutation(places)]
        return Population(t, Samples(content), np.zeros(rows, np.int64), np.full(rows, -1), np.ones(rows, bool))


def stride_of(column: OpenColumn, facts: Facts) -> int:
    """Characters that a release goes on by: 2 where the prefixes that the declared records can have leave few cells, as
    half as many releases have less noise each, and more cells need little more; else 1.

    column: that is asked.
    facts: public ones about the data and the settings.
    """
    if facts.records is None or column.letters**2 > MOST_CELLS:
        return 1
    releases = math.ceil(column.longest / 2)
    noise = multiplier(facts.privacy) * math.sqrt(releases * len(_open(facts)))
    prefixes = facts.records / (noise * _threshold(FALSE / (column.letters - 1) ** 2))
    return 2 if prefixes * column.letters**2 <= MOST_CELLS else 1


def next_query(level: Sequence[Asked], found: Mapping[str, Found]) -> PrefixCounts:
    """What a release asks.

    level: its columns.
    found: what is known before it.
    """
    known = [found[each.column.name] for each in level]
    return PrefixCounts(
        tuple(
            Spelled(each.first, each.column.letters, of.prefixes, each.ahead, of.spelled)
            for each, of in zip(level, known, strict=True)
        )
    )


def updated(found: Found, asked: Asked, counts: F64, again: F64, deviation: float, expected: float) -> Found:
    """What is known of a column after a release.

    found: before it.
    asked: what was asked.
    counts: noisy, float64 [prefixes, cells].
    again: noisy counts of whole values, float64 [v].
    deviation: of the noise in each.
    expected: false values that may come of it, on average.
    """
    column, precision = asked.column, found.precision + deviation**-2
    means = (found.counts * found.precision + again * deviation**-2) / precision
    ways = np.stack(np.unravel_index(np.arange(counts.shape[1]), (column.letters,) * asked.ahead), axis=1)
    goes_on, length = (ways > 0).all(1), np.cumprod(ways > 0, axis=1).sum(1)
    ends = ~goes_on & ((ways > 0).sum(1) == length) & (length + asked.known > 0)
    clear = _threshold(expected / max(1, len(counts) * asked.ending))
    least = clear if asked.is_last else min(clear, MAYBE)  # what is asked again may be less clear at first
    cells = np.argwhere((counts >= least * deviation) & (ends | (goes_on & asked.is_last)))
    spelled = np.zeros((len(cells), column.longest), np.int32)
    spelled[:, : asked.known] = found.prefixes[cells[:, 0]]
    spelled[:, asked.known : asked.known + asked.ahead] = ways[cells[:, 1]]
    # noise may put a blank at an end, which no cell has
    real = np.array([column.is_value(column.text(codes[codes > 0].tolist())) for codes in spelled], bool)
    prefixes = np.empty((0, asked.known + asked.ahead), np.int32)
    if len(counts) and not asked.is_last:
        kept = np.argwhere((counts >= deviation * _threshold(FALSE / asked.going_on)) & goes_on)
        most = MOST_CELLS // column.letters ** min(asked.ahead, column.longest - asked.known - asked.ahead)
        strongest = np.argsort(-counts[kept[:, 0], kept[:, 1]], kind="stable")[:most]
        row, way = kept[np.sort(strongest)].T
        prefixes = np.concatenate([found.prefixes[row], ways[way]], axis=1, dtype=np.int32)
    return Found(
        prefixes,
        np.concatenate([found.spelled, spelled[real]]),
        np.concatenate([means, counts[cells[real, 0], cells[real, 1]]]),
        np.concatenate([precision, np.full(real.sum(), deviation**-2)]),
        np.concatenate([found.least, np.full(real.sum(), clear)]),
        found.missing if asked.known else float(counts[0, 0]),
    )


def half_found(asked: Sequence[Asked], length: int, expected: float, deviations: Sequence[float]) -> float:
    """Records that a value needs to be found with one chance in two, where it shares its prefixes with no other.

    asked: of its column, by release.
    length: characters of the value.
    expected: false values that a release may bring, on average.
    deviations: of the noise of each of these releases.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    at = next(at for at, each in enumerate(asked) if each.is_last or length < each.known + each.ahead)
    tests = [(_threshold(FALSE / each.going_on), noise) for each, noise in zip(asked[:at], deviations, strict=False)]
    cells = (FOLLOWED if asked[at].known else 1) * asked[at].ending
    tests.append((_threshold(expected / max(1, cells)), sum(noise**-2 for noise in deviations[at:]) ** -0.5))

    def log_chance(count: float) -> float:
        return sum(float(log_ndtr(count / noise - least)) for least, noise in tests) - math.log(0.5)

    return float(brentq(log_chance, 0, 100 * max(deviations)))


def _threshold(chance: float) -> float:
    """Deviations that a count of nothing is above with this chance."""
    from scipy.special import ndtri

    return float(-ndtri(min(0.5, chance)))


def shared_out(counts: F64, rows: int) -> I64:
    """Rows of each value, int64 [v], in proportion to its count; one at least where there are enough of them.

    counts: float64 [v], 0 or more.
    rows: that they sum to.
    """
    weights = counts if counts.sum() > 0 else np.ones(len(counts))
    small = np.zeros(len(counts), bool)  # those that get one row, as their share is less
    while True:
        exact = np.where(small, 0, weights) * ((rows - small.sum()) / np.where(small, 0, weights).sum())
        if len(counts) > rows or not (found := ~small & (exact < 1)).any() or (small | found).all():
            break
        small |= found
    sizes = np.where(small, 1, np.floor(exact).astype(np.int64))
    sizes[np.argsort(sizes - exact, kind="stable")[: rows - int(sizes.sum())]] += 1
    return sizes


def schema_yaml(
    schema: Schema, values: Mapping[str, Mapping[str, float]], missing: Mapping[str, float], records: int | None
) -> bytes:
    """The schema with the values that were found, as `data.schema.file` reads it: values in quotes, whatever they are.

    schema: with open columns.
    values: of each, with their noisy counts.
    missing: a noisy count of each.
    records: the declared number of them; None where none is, or where counts are of users.
    """
    import yaml

    class Quoted(str):
        pass

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def quoted(dumper: yaml.SafeDumper, text: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')

    Dumper.add_representer(Quoted, quoted)
    lines = ["# The values of open columns, as noisy counts tell them (schedule=discover). Rare ones are not here."]
    for name, counts in values.items():
        column, told = schema.open[name], ""
        if records is not None:
            others = min(1.0, max(0.0, 1 - (sum(counts.values()) + max(0.0, missing[name])) / records))
            told = f"; about {others:.0%} of the records have others"
            if others > ADJUSTED and column.outside != "refuse":
                told += f": data.max_adjusted={min(1.0, others + 0.1):.2f} lets these be read as {column.outside}"
        lines.append(f"# {json.dumps(name)}: {len(counts):,} values{told}.")
    quoted_values = {name: [Quoted(value) for value in sorted(counts)] for name, counts in values.items()}
    content = yaml.dump(
        dict(schema.with_values(quoted_values)), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120,
        default_flow_style=None,
    )  # fmt: skip
    return ("\n".join(lines) + "\n" + content).encode()


def _open(facts: Facts) -> Mapping[str, OpenColumn]:
    return {} if facts.schema is None else facts.schema.open


def _span(level: Sequence[Asked]) -> str:
    """'3 to 4'"""
    first = min(each.known for each in level) + 1
    last = max(each.known + each.ahead for each in level)
    return str(first) if first == last else f"{first} to {last}"
