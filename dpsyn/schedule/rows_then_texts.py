"""Tables with columns of texts: votes in cells make the rows, then each row gets texts that fit it.

The rows come first, from a part of the budget, and stay as they are: what is known of the columns is what their noisy
counts say, whatever the texts do. The api is then asked for a text for each row, by its columns. Noisy sums of the
records' text vectors, one for every cell of every column, say how texts of that cell differ from others: of many
candidates each row gets the one that fits all its columns best. Votes then choose among pairs of row and text: a record
votes for the pair that is nearest in its columns and its text together, and a row takes its next text from the voted
pairs whose columns are like its own.

With several columns of texts a candidate is one of each, made for the same row, or those of one public row: they stay
together, so that a title stays with its body. Each column has noisy sums of its own, a release each, with its part of
the budget; how well a candidate fits is what all of them say. A vote is for all texts of a row together.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.data import modality_of
from dpsyn.embedding import Coder, Embedding, Networked, together
from dpsyn.errors import UserError, invalid
from dpsyn.population import (
    F32,
    F64,
    I64,
    U64,
    Array,
    Label,
    Population,
    Samples,
    concatenate,
    take,
)
from dpsyn.privacy.budget import Release
from dpsyn.privacy.nearest import distinct
from dpsyn.privacy.query import Nearest
from dpsyn.randomness import retry_seeds, row_seeds, seed_sequence
from dpsyn.schedule import Ask, Facts, Keep, PublicSide, Schedule, gibbs
from dpsyn.schedule.assignment import assigned, cells_of, fits_of, scores_of
from dpsyn.schedule.cells import (
    SHOWN,
    check_facts,
    drawn,
    drawn_of_sizes,
    learnt,
    planned,
    releases_of,
    signal_of,
    warnings_of,
)
from dpsyn.schedule.expansion import PART, joined
from dpsyn.schedule.rows_with_texts import RowsWithTexts, RowsWithTextsOfNetwork, beside, columns_of
from dpsyn.schedule.selection import shares_of
from dpsyn.schedule.start import sums_about, sums_release
from dpsyn.schedule.subspaces import CellRelease
from dpsyn.tables.codec import encode
from dpsyn.tables.schema import Schema
from dpsyn.validate import flag, number, whole

CLEAR = 2.0  # a row looks at so many voted pairs that their votes clear their noise by so much
FEWEST, MOST = 4, 64  # pairs, at least and at most
AT_ONCE = 1000  # rows that are compared at once
APART = 1000  # attempts of a row at a text; the seeds of its next text come after these
EXAMPLES = 1024  # rows with which prompts are tried before a run


@dataclass(frozen=True)
class RowsThenTexts(Schedule):
    """size: rows of the synthetic table.

    releases: votes for pairs of row and text, after the rows are made.
    candidates: texts that are asked for before the first vote, of which noisy sums choose one for each row, a release
        of its own; None: one for each row, and none is chosen.
    degree: of the variations of texts.
    rows_budget: the part of the budget that the rows spend.
    scores: as of `dpsyn.schedule.cells.Cells`.
    """

    size: int
    releases_of_texts: int
    candidates: int | None
    text_degree: Degree
    rows_budget: float
    scores: bool

    def coder(self, facts: Facts, embed: Embedding) -> Coder | None:
        if facts.schema is None:
            return None
        return (RowsWithTextsOfNetwork if isinstance(embed, Networked) else RowsWithTexts)(facts.schema, embed)

    def check(self, facts: Facts, api: Api) -> None:
        check_facts(facts, "rows_then_texts")
        assert facts.schema is not None
        names = list(facts.schema.texts)
        if not names:
            raise invalid("schedule", "rows_then_texts", "a schema with a column of kind text, or more")
        if len(names) > 1 and any(modality_of(data) == "texts" for data in api.reads()):
            what, do = f"public rows with all texts ({', '.join(names)})", "Choose api=pool_rows, or a model."
            raise invalid("api", "(a pool of single texts)", what, do)
        if not self.releases_of_texts and self.candidates is None:
            raise invalid("schedule.releases", 0, "1 or more, or schedule.candidates besides", "No text is voted for.")
        if self.candidates is not None and self.candidates < self.size:
            raise invalid("schedule.candidates", self.candidates, f"null, or at least schedule.size={self.size}")
        api.check_degree(self.text_degree)

    def releases(self, facts: Facts) -> Sequence[Release]:
        votes = [
            Release(f"votes {t}", 1, (1 - self.rows_budget) / self.releases_of_texts)
            for t in range(1, self.releases_of_texts + 1)
        ]
        texts = votes
        if self.candidates is not None:
            sums, part = sums_release(facts, ()), facts.privacy.sums_budget if votes else 1.0
            texts = [replace(vote, share=vote.share * (1 - part)) for vote in votes]
            assert facts.schema is not None
            names = list(facts.schema.texts)
            share = (1 - self.rows_budget) * part / len(names)
            for name in names:
                of = sums.name if len(names) == 1 else f"{sums.name} of {name}"
                texts.append(replace(sums, name=of, share=share))
        return [*releases_of(self._plan(facts), self.rows_budget), *texts]

    def api_rows(self, facts: Facts) -> Sequence[tuple[int, int]]:
        rows, texts = len(self._plan(facts)), facts.asked_a_row
        return [
            (texts, 0),
            *[(0, 0)] * (rows - 1),
            (texts * (self.candidates or self.size), 0),
            *[(0, texts * self.size)] * self.releases_of_texts,
        ]

    def final_size(self, facts: Facts) -> int:
        return self.size

    def degree(self, declared: Degree | None) -> Degree | None:
        return self.text_degree if declared is None else declared

    def asked_labels(self, facts: Facts, labels: Sequence[Label]) -> Sequence[Label]:
        """Rows in words: all that there can be, or where they are too many, some with every value of every column among
        them, a missing one too, as far as EXAMPLES goes."""
        assert facts.schema is not None
        features = facts.schema.features
        sizes = [column.size + column.missing for column in features]
        every = math.prod(sizes)
        is_all = every * len(labels) <= EXAMPLES
        count = every if is_all else min(EXAMPLES // len(labels), max(sizes)) or 1
        at = np.arange(count * len(labels))
        content = np.empty(len(at), facts.schema.dtype)
        facts.schema.with_labels(content, at % len(labels))
        place = at // len(labels)
        for column, size in zip(features, sizes, strict=True):
            if is_all:
                place, which = np.divmod(place, size)
            else:
                which = place * max(1, size // count) % size if column.has_order else place % size
                if column.missing:
                    which[-len(labels) :] = column.size  # the last example of each label
            content[column.name] = column.values_of(np.where(which < column.size, which, -1))
        return [label for name in facts.schema.texts for label in in_words(facts.schema, content, name)]

    def signal(self, facts: Facts, deviations: Sequence[float]) -> float | None:
        return signal_of(facts, deviations[0]) if deviations else None

    def warnings(self, facts: Facts, deviations: Sequence[float]) -> Iterable[str]:
        assert facts.schema is not None and facts.records is not None
        yield from warnings_of(facts.schema, facts.records, deviations[0], self._plan(facts))
        rows = len(self._plan(facts))
        votes = deviations[rows : rows + self.releases_of_texts]
        if votes and _looked_at(facts.records, self.size, max(votes)) > MOST:
            most = max(1, int(facts.records * math.sqrt(MOST) / (CLEAR * max(votes))))
            yield (
                f"votes for texts will be mostly noise: {facts.records / self.size:,.1f} records a row, noise "
                f"{max(votes):,.1f}; schedule.size={most} at most, fewer schedule.releases, or noisy sums instead "
                "(schedule.candidates, releases: 0)"
            )

    def run(self, public: PublicSide, ask: Ask, last: Population | None) -> Iterator[Population]:
        """After each release of counts a population of some rows without texts, after the last one the rows of the
        result with their first texts; none is iteration 0. A population for every vote follows. A text is asked for
        and embedded before the first release: what fails by its settings, such as a pool that is too small, fails
        before anything is spent."""
        plan = self._plan(public.facts)
        if last is None:
            schema = public.facts.schema
            assert schema is not None
            example = np.empty(1, schema.dtype)
            for name, column in schema.columns.items():
                example[name] = column.values_of(np.zeros(1, np.int64))
            made = _made(public, schema, example, row_seeds(public.seed, 0, "generate", 1))
            _finite(together(_embedded(public, schema, made)))
        if last is None or last.iteration < len(plan):
            done = 0 if last is None else last.iteration
            for t, state in enumerate(learnt(public, ask, plan), 1):
                if t == len(plan):
                    last = self._first(public, ask, drawn(public, state, self.size, t), state)
                elif t > done:
                    last = drawn(public, state, min(self.size, SHOWN), t, settle=False)
                if t > done:
                    assert last is not None
                    yield last
        assert last is not None
        for t in range(last.iteration + 1, len(plan) + self.releases_of_texts + 1):
            last = self._voted(public, ask, last, t)
            yield last

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
        """The final rows, then more that are drawn from the noisy counts, each with a variation of the text of one that
        is like it. With chosen labels all are drawn anew. Raises UserError where too few rows have one."""
        assert degree is not None
        *_, state = learnt(public, ask, self._plan(public.facts))
        kept = len(final) if sizes is None else 0
        more = drawn_of_sizes(public, state, rows - kept, final.iteration, sizes) if rows > kept else None
        if more is None:
            return replace(final, parents=np.arange(len(final)))
        schema = public.facts.schema
        assert schema is not None
        ours, theirs = columns_of(schema, more.samples.content), columns_of(schema, final.samples.content)
        parents = np.empty(len(more), np.int64)
        for label in np.unique(more.labels).tolist():
            mine, there = more.labels == label, np.flatnonzero(final.labels == label)
            there = there if len(there) else np.arange(len(final))
            rng = np.random.default_rng(seed_sequence(public.seed, final.iteration, "select", label))
            near = there[_nearest(ours[mine], theirs[there], FEWEST, rng)]
            parents[mine] = near[np.arange(len(near)), rng.integers(near.shape[1], size=len(near))]
        seeds = row_seeds(public.seed, final.iteration, "expand", len(more))
        parts = [replace(final, parents=np.arange(len(final)))] if kept else []
        which = hashlib.sha256(repr(more.samples.content.tolist()).encode()).hexdigest()[:16]
        for start in range(0, len(more), PART):
            at = np.arange(start, min(start + PART, len(more)))

            def made(at: I64 = at) -> Population:
                texts = take(final.samples, parents[at])
                content = more.samples.content[at]
                samples = _varied(public, schema, content, texts, degree, seeds[at])
                fresh = np.zeros(len(at), bool)
                return Population(final.iteration, samples, more.labels[at], parents[at], fresh)

            parts.append(keep(f"rows {at[0]}-{at[-1]} of {which}", made))
        return joined(parts)

    def _plan(self, facts: Facts) -> tuple[CellRelease, ...]:
        return planned(facts, self.scores, self.rows_budget)

    def _first(self, public: PublicSide, ask: Ask, rows: Population, state: gibbs.State) -> Population:
        """The rows with their first texts."""
        schema, t = public.facts.schema, rows.iteration
        assert schema is not None
        content, n = rows.samples.content, self.candidates or len(rows)
        asked = np.resize(np.arange(len(rows)), n)
        made = _made(public, schema, content[asked], row_seeds(public.seed, 0, "generate", n))
        if self.candidates is None:
            return replace(rows, samples=made)
        vectors = _embedded(public, schema, made)
        joint = together(vectors)
        known = _finite(joint)  # texts that are all the same fit all rows alike: what rows spent is not lost for that
        cells, of_rows = cells_of(schema, state, encode(schema, content), rows.labels, len(public.labels))
        columns, of_columns = tuple(column for column, _ in cells), tuple(cell for _, cell in cells)
        number, first, told = len(self.releases(public.facts)) - len(vectors), 0, list[list[F64]]()
        for each in vectors:
            mine = joint[known, first : first + each.shape[1]]
            about = sums_about(mine, len(public.labels), public.facts.privacy.adjacency == "replace")
            query = replace(about, columns=columns, cells=of_columns, first=first)
            number, first = number + 1, first + each.shape[1]
            told.append(scores_of(mine, query, ask(number, query)))
        fits = fits_of([np.sum(each, axis=0) for each in zip(*told, strict=True)], of_rows)
        own = asked[known] if public.labelled else None
        rng = np.random.default_rng(seed_sequence(public.seed, t, "select", 0))
        chosen = take(made, known[assigned(fits, of_rows, own, rng)])
        return replace(rows, samples=_with_texts(schema, content, chosen))

    def _voted(self, public: PublicSide, ask: Ask, last: Population, t: int) -> Population:
        """The rows with the texts that a vote chose for them; those that several rows chose are varied for all but one
        of them."""
        schema, content = public.facts.schema, last.samples.content
        assert schema is not None
        vectors = together(_embedded(public, schema, last.samples))
        answer = ask(t, Nearest(beside(schema, content, vectors), last.labels, 1))
        assert public.facts.records is not None
        count = min(MOST, max(FEWEST, _looked_at(public.facts.records, len(last), answer.deviation)))
        columns, parents = columns_of(schema, content), np.arange(len(last))
        for label in np.unique(last.labels).tolist():
            mine = np.flatnonzero(last.labels == label)
            rng = np.random.default_rng(seed_sequence(public.seed, t, "select", label))
            near = mine[_nearest(columns[mine], columns[mine], count, rng)]
            for row, others, chance in zip(mine.tolist(), near, rng.random(len(mine)).tolist(), strict=True):
                shares = np.cumsum(shares_of(answer.values[others]))
                parents[row] = others[min(int(np.searchsorted(shares, chance, side="right")), len(others) - 1)]
        order = np.argsort(parents != np.arange(len(parents)), kind="stable")  # a row that keeps its own comes first
        first = order[np.unique(parents[order], return_index=True)[1]]
        keeps = np.zeros(len(last), bool)
        keeps[first] = True
        samples = take(last.samples, parents)
        others = np.flatnonzero(~keeps)
        if len(others):
            seeds = row_seeds(public.seed, t, "vary", len(others))
            fresh = _varied(public, schema, content[others], take(samples, others), self.text_degree, seeds)
            both = concatenate([samples, fresh])
            at = np.arange(len(last))
            at[others] = len(last) + np.arange(len(others))
            samples = take(both, at)
        return Population(t, _with_texts(schema, content, samples), last.labels, parents, keeps)


def rows_then_texts(
    size: int, releases: int, candidates: int | None, degree: Degree, rows_budget: float, scores: bool
) -> RowsThenTexts:
    """A table whose rows carry a text.

    size: rows of the synthetic table.
    releases: votes for pairs of row and text, after the rows are made.
    candidates: texts that are asked for before the first vote, of which noisy sums choose one for each row, a release
        of its own; None: one for each row, and none is chosen.
    degree: of the variations of texts.
    rows_budget: the part of the budget that the rows spend.
    scores: choose pairs of columns by noisy scores, where there are too many to ask them all.
    """
    whole("schedule.size", size, 1)
    whole("schedule.releases", releases, 0)
    whole("schedule.candidates", candidates, 1, optional=True)
    number("schedule.rows_budget", rows_budget, "a number between 0 and 1", above=0, most=0.99)
    flag("schedule.scores", scores)
    return RowsThenTexts(size, releases, candidates, degree, rows_budget, scores)


def in_words(schema: Schema, content: Array, text: str) -> list[Label]:
    """What an api is asked for, a row: its columns by name, and what is declared of its text.

    schema: of the rows.
    content: table rows [n].
    text: the column of texts that is asked for.
    """
    columns = [(name, column.words_of(content[name])) for name, column in schema.columns.items()]
    said = schema.texts[text].said
    known: dict[tuple[str, ...], Mapping[str, str]] = {}  # the same mapping for the same columns: apis look once
    found = []
    for values in zip(*(words for _, words in columns), strict=True):
        if (row := known.get(values)) is None:
            row = known[values] = {**dict(zip((name for name, _ in columns), values, strict=True)), **said}
        found.append(row)
    return found


def _looked_at(records: int, pairs: int, deviation: float) -> int:
    """Pairs, of which the votes together clear their noise."""
    return math.ceil((CLEAR * deviation * pairs / records) ** 2)


def _with_texts(schema: Schema, content: Array, texts: Samples) -> Samples:
    """Rows of columns and of texts, together. content: table rows [n]. texts: table rows [n], with their traits."""
    content = content.copy()
    for name in schema.texts:
        content[name] = texts.content[name]
    return Samples(content, texts.traits, schema.forms)


def _made(public: PublicSide, schema: Schema, content: Array, seeds: U64) -> Samples:
    """Table rows [n] with fresh texts. content: their columns, in table rows [n]. seeds: uint64 [n]."""
    return _asked(schema, content, seeds, lambda text, words, own: public.api.generate(words, own))


def _varied(
    public: PublicSide, schema: Schema, content: Array, parents: Samples, degree: Degree, seeds: U64
) -> Samples:
    """Table rows [n] with variations of their parents' texts. content: their columns. parents: table rows [n]."""
    return _asked(
        schema,
        content,
        seeds,
        lambda text, words, own: public.api.vary(_of_column(schema, parents, text), words, degree, own),
    )


def _asked(schema: Schema, content: Array, seeds: U64, ask: Callable[[str, Sequence[Label], U64], Samples]) -> Samples:
    """Table rows [n] with what an api makes for each column of texts. With several of them its traits are kept as
    COLUMN.TRAIT. An api that has rows of the schema, a pool of rows, gives all texts of a row at once.

    content: their columns.
    seeds: uint64 [n].
    ask: (column of texts, what is asked for, seeds) -> texts, or rows.
    """
    traits: dict[str, Array] = {}
    content = content.copy()
    for at, name in enumerate(schema.texts):
        made = ask(name, in_words(schema, content, name), retry_seeds(seeds, at and APART + at))
        if made.content.dtype == schema.dtype:
            return _with_texts(schema, content, made)
        content[name] = made.content
        prefix = f"{name}." if len(schema.texts) > 1 else ""
        traits |= {prefix + trait: values for trait, values in made.traits.items()}
    return Samples(content, traits, schema.forms)


def _of_column(schema: Schema, rows: Samples, name: str) -> Samples:
    """The texts of one column, with the traits that are its own, or of the whole row."""
    others = tuple(f"{other}." for other in schema.texts if other != name)
    own = {trait.removeprefix(f"{name}."): v for trait, v in rows.traits.items() if not trait.startswith(others)}
    return Samples(rows.content[name], own if len(schema.texts) > 1 else rows.traits)


def _embedded(public: PublicSide, schema: Schema, rows: Samples) -> list[F32]:
    """float32 [n, e], of each column of texts. With several, a text that comes up again, as those of a pool of rows do,
    is embedded once."""
    if len(schema.texts) == 1:
        return [public.embed(_of_column(schema, rows, name)) for name in schema.texts]
    found = []
    for name in schema.texts:
        texts, places = np.unique(rows.content[name], return_inverse=True)
        found.append(public.embed(Samples(texts))[places])
    return found


def _finite(vectors: F32) -> I64:
    """The lowest row of every distinct finite vector. Raises UserError where there is none.

    vectors: float32 [n, d].
    """
    known = distinct(vectors)
    if not len(known):
        raise UserError("embedding: expected texts whose vectors are finite. The embedding does not fit the data.")
    return known


def _nearest(rows: F32, among: F32, count: int, rng: np.random.Generator) -> I64:
    """int64 [n, k]: the nearest of others in their columns, ties in any order.

    rows: float32 [n, w].
    among: float32 [m, w].
    count: how many; all where there are fewer.
    rng: settles ties.
    """
    k, found = min(count, len(among)), []
    squares = (among.astype(np.float64) ** 2).sum(1)
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        far = squares - 2.0 * (some @ among.T) + 1e-4 * rng.random((len(some), len(among)))
        found.append(np.argpartition(far, k - 1, axis=1)[:, :k])
    return np.concatenate(found)
