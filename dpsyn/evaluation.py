"""How good finished data are, measured under differential privacy on records that were held out: histograms, and what
their noisy counts say, with intervals.

What judges a record (a classifier that learned from the synthetic data, distances to them) is a function of released
and public facts, so all that is private is which bins held-out records lie in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dpsyn.embedding import Embedding
from dpsyn.networks.logistic import logistic
from dpsyn.networks.search import cpu_search
from dpsyn.population import F64, I64, Array, Bool, Label, Population, Samples, take
from dpsyn.privacy.budget import EVALUATION, Bearers, Charge, Release
from dpsyn.privacy.nearest import distinct, flushed, nearest
from dpsyn.privacy.query import Answer, Histogram
from dpsyn.tables.columns import Column
from dpsyn.tables.schema import Schema
from dpsyn.threads import on_free_threads

FORMAT = "dpsyn evaluation 1"
NAME = "evaluation.json"
RIGHT, CONFUSION, DISTANCES, COLUMNS = (
    f"{EVALUATION}: {what}" for what in ("right or wrong", "which label", "distances", "columns")
)
SHARES = {RIGHT: 0.5, CONFUSION: 0.15, DISTANCES: 0.3, COLUMNS: 0.35}  # of the budget, among those that there are
FEW_LABELS = 30  # of more, a confusion matrix is noise
LEARNED, COMPARED = 50_000, 20_000  # synthetic rows that are learned from, and compared with
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the distances of synthetic samples among themselves: ends of bins
BARS = 12  # of a column
NORMAL = 1.96  # standard deviations of an interval of 95 %
ROUNDING = 1e-9  # how far, relatively, a number may be from what it is on another processor
COARSE = 0.1  # half the interval of an accuracy, by noise alone: with more nothing is said


def releases(labels: int, schema: Schema | None, embedded: bool, of: Bearers) -> list[Release]:
    """All releases of an evaluation, from public facts.

    labels: how many are declared.
    schema: of a table; None for other data.
    of: whom they are asked of.
    embedded: whether the run compares samples by an embedding.
    """
    names = [RIGHT] * (labels > 1) + [CONFUSION] * (1 < labels <= FEW_LABELS)
    names += [DISTANCES] * embedded + [COLUMNS] * (schema is not None)
    moves = {COLUMNS: len(schema.columns)} if schema is not None else {}
    return [Release(name, moves.get(name, 1), SHARES[name], of=of) for name in names]


def needed(charges: Sequence[Charge]) -> int:
    """Held-out records, at least, for the noise of an evaluation to say anything."""
    first = max((charge.sigma for charge in charges if charge.name in (RIGHT, DISTANCES)), default=0.0)
    return int(np.ceil(NORMAL * first / COARSE))


@dataclass(frozen=True)
class Judge:
    """Turns records into codes, int32 [n, m]: the label that is guessed; how far the nearest synthetic sample is, as a
    bin; a bin of each column. Those that the data have nothing for are 0.

    digest: of the synthetic data, and of what is made of them. model: scikit-learn's. vectors: of synthetic samples,
    float32 [s, d]. ends: of the bins of distances. columns: of a table.
    """

    digest: str
    embed: Embedding | None
    model: Any
    vectors: Array
    ends: F64
    columns: tuple[Bins, ...]
    schema: Schema | None

    def fingerprint(self) -> str:
        return self.digest

    def __call__(self, samples: Samples) -> Array:
        vectors = None if self.embed is None else self.embed(samples)
        found = [self._guess(samples, vectors), self._distance(vectors, len(samples))]
        found += [each.codes(samples.content) for each in self.columns]
        return np.stack(found, axis=1).astype(np.int32)

    def _guess(self, samples: Samples, vectors: Array | None) -> Array:
        if self.model is None:
            return np.zeros(len(samples), np.int64)
        given = features(self.schema, samples, vectors)
        with on_free_threads():
            return np.asarray(self.model.predict(given))

    def _distance(self, vectors: Array | None, n: int) -> Array:
        if vectors is None:
            return np.zeros(n, np.int64)
        return np.searchsorted(self.ends, apart(vectors, self.vectors))


@dataclass(frozen=True)
class Asked:
    """What of a judge its questions, and what is told of the answers, depend on: all of it stands in evaluation.json.

    digest: of the judge. ends: of the bins of distances; none where there is no embedding. columns: of a table, each
    its name, the names of its bins, and the share of the synthetic rows in each.
    """

    digest: str
    ends: tuple[float, ...]
    columns: tuple[tuple[str, tuple[str, ...], tuple[float, ...]], ...]


def asked(made: Judge) -> Asked:
    columns = [(each.column.name, each.names, tuple(np.round(each.synthetic, 5).tolist())) for each in made.columns]
    return Asked(made.digest, tuple(float(end) for end in made.ends), tuple(columns))


def digest_of(synthetic: str) -> str:
    """Of the judge. synthetic: sha256 of the file with the synthetic data."""
    return hashlib.sha256(f"{FORMAT} {synthetic}".encode()).hexdigest()


@dataclass(frozen=True)
class Linear:
    """A linear classifier. classes: int64 [c]. weights: float64 [c, f]. offsets: float64 [c].

    A product of matrices rounds a row by where it stands among others; sums along a row do not, so no record changes
    what is guessed of another.
    """

    classes: I64
    weights: F64
    offsets: F64

    def predict(self, features: Array) -> I64:
        """int64 [n]."""
        scores = np.stack([(features * weights).sum(1) for weights in self.weights], axis=1) + self.offsets
        return self.classes[scores.argmax(1)]


@dataclass(frozen=True)
class Bins:
    """The bins of a column.

    ends: of a number, float64: the ends between its bins.
    of_code: of a category, int64: the bin of each code, and last that of a missing value.
    names: of the bins.
    synthetic: float64 [bins], the share of synthetic rows in each.
    """

    column: Column
    ends: F64
    of_code: I64
    names: tuple[str, ...]
    synthetic: F64

    def codes(self, content: Array) -> I64:
        values = content[self.column.name]
        if self.column.numeric:
            scaled = self.column.scaled(values)
            none = np.isnan(scaled)
            return np.where(none, len(self.ends) + 1, np.searchsorted(self.ends, np.where(none, 0, scaled)))
        places = self.column.codes_of(values)
        return self.of_code[np.where(places < 0, len(self.of_code) - 1, places)]


def judge(
    synthetic: Population, labels: Sequence[Label], embed: Embedding | None, schema: Schema | None, digest: str
) -> Judge:
    """What judges records by the finished data.

    synthetic: the finished data.
    labels: as declared.
    embed: of the run; None where it has none.
    schema: of a table; None for other data.
    digest: of the file with the synthetic data.
    """
    rows = np.random.default_rng(0).permutation(len(synthetic))
    studied, compared = take(synthetic.samples, rows[:LEARNED]), take(synthetic.samples, rows[:COMPARED])
    vectors = None if embed is None else vectors_of(embed, studied)
    model = None
    if len(labels) > 1:
        targets = _labels_of(synthetic, schema)[rows[:LEARNED]]
        given = features(schema, studied, vectors)
        only = np.unique(targets)
        one = Linear(only, np.zeros((1, given.shape[1])), np.zeros(1))
        model = one if len(only) == 1 else learned(given, targets, schema)
    kept, ends = np.zeros((0, 0), np.float32), np.zeros(0)
    if vectors is not None:
        kept = flushed(vectors[:COMPARED])
        kept = np.ascontiguousarray(kept[distinct(kept)])
        ends = np.quantile(_among_themselves(kept), QUANTILES) if len(kept) > 1 else np.zeros(len(QUANTILES))
    columns = () if schema is None else tuple(bins(column, compared.content) for column in schema.columns.values())
    return Judge(digest_of(digest), embed, model, kept, ends, columns, schema)


def remarks(made: Judge) -> list[str]:
    """Lines about synthetic data that leave little to judge by."""
    found = []
    if isinstance(made.model, Linear) and len(made.model.classes) == 1:
        found.append("all synthetic rows have one label: the classifier that is measured guesses no other")
    if made.embed is not None and len(made.vectors) == 1:
        found.append("all synthetic samples have one vector: only records that equal it are near")
    return found


def outgrown(said: Mapping[str, Any], digest: str | None) -> str:
    """Which rows were judged, in words, where they are not those that are there now; else ''.

    said: as of `as_mapping`.
    digest: of the file with the synthetic data; None where it is not there.
    """
    judged = said.get("judged")
    if judged is None or digest is None or judged["sha256"] == digest:
        return ""
    return f"measured on the {judged['rows']:,} rows of the run, before it was expanded"


def queries(of: Asked, labels: int, planned: Sequence[str]) -> list[Histogram]:
    """What each release asks.

    of: what judges a record.
    labels: how many are declared.
    planned: names of the releases.
    """
    every = np.arange(labels)
    found = {
        RIGHT: ((0,), ((every[:, None] != every[None]).astype(np.int64),)),
        CONFUSION: ((0,), (every[:, None] + labels * every[None],)),
        DISTANCES: ((1,), (np.tile(np.arange(len(of.ends) + 1)[:, None], labels),)),
        COLUMNS: (
            tuple(range(2, 2 + len(of.columns))),
            tuple(np.tile(np.arange(len(bars))[:, None], labels) for _, bars, _ in of.columns),
        ),
    }
    return [Histogram(of.digest, *found[name]) for name in planned]


@dataclass(frozen=True)
class Share:
    """A share of the held-out records. by_noise: an interval of 95 % for what it is among these records. interval: for
    what it is among records like them, sampling too; None where it is counted by users."""

    value: float | None
    by_noise: tuple[float, float]
    interval: tuple[float, float] | None


def share(counts: F64, mine: Bool, deviation: float, by_record: bool = True) -> Share:
    """A share of the records, with its intervals.

    deviation: of the noise in each count.
    by_record: whether the counts are of records, not of users.
    counts: noisy, float64 [bins].
    mine: the bins that count.

    An interval holds the shares p for which the noise explains that A - p T is not 0, A and T being the noisy counts of
    these bins and of all (Fieller 1954): it holds the true one in 95 of 100 cases however few records there are.
    """
    hits, total = float(counts[mine].sum()), float(counts.sum())
    p = np.linspace(0, 1, 4001)
    noise = deviation**2 * (mine.sum() * (1 - p) ** 2 + (~mine).sum() * p**2)
    gap = np.abs(hits - p * total)

    def within(variance: F64) -> tuple[float, float]:
        inside = np.flatnonzero(gap <= NORMAL * np.sqrt(variance))
        inside = inside if len(inside) else np.array([np.argmin(gap)])
        return float(p[inside[0]]), float(p[inside[-1]])

    sampling = max(total, 1.0) * p * (1 - p)
    value = float(np.clip(hits / total, 0, 1)) if total > deviation else None
    return Share(value, within(noise), within(noise + sampling) if by_record else None)


def told(
    by: Asked, labels: Sequence[str], answers: Mapping[str, Answer], by_record: bool, held_out: bool
) -> dict[str, Any]:
    """What the noisy answers say, for `release/evaluation.json`.

    by: what judged the records.
    labels: their names.
    answers: of each release, by its name.
    by_record: whether the counts are of records, not of users.
    held_out: whether the records that were judged cast no vote.
    """
    of = "records that were held out" if held_out else "records that voted"
    said: dict[str, Any] = {"format": FORMAT, "of": of, "judge": by.digest, "numbers": []}

    def add(name: str, what: str, found: Share) -> None:
        low, high = found.by_noise
        whole = {} if found.interval is None else {"low": found.interval[0], "high": found.interval[1]}
        what = f"share of {of} {what}"
        said["numbers"].append(
            {"name": name, "what": what, "value": found.value, **whole, "noise_low": low, "noise_high": high}
        )

    for name, answer in answers.items():
        counts, deviation = answer.values, answer.deviation
        if name == RIGHT:
            what = "whose label a classifier finds that learned from the synthetic data"
            add("accuracy", what, share(counts, np.array([True, False]), deviation, by_record))
        elif name == CONFUSION:
            matrix = np.round(counts.reshape(len(labels), len(labels)), 1)
            said["confusion"] = {"labels": list(labels), "counts": matrix.tolist(), "deviation": deviation}
        elif name == DISTANCES:
            near, within = np.arange(len(counts)) == 0, np.arange(len(counts)) < len(counts) - 1
            what = "nearer to a synthetic sample than 95 % of those are to each other"
            add("very near", what, share(counts, near, deviation, by_record))
            what = "with a synthetic sample no farther than 95 % of those have"
            add("covered", what, share(counts, within, deviation, by_record))
            said["distances"] = {
                "ends": list(by.ends),
                "quantiles": list(QUANTILES),
                "counts": np.round(counts, 1).tolist(),
                "deviation": deviation,
            }
        else:
            said["columns"] = _columns_told(by, counts, deviation)
    return said


def _columns_told(by: Asked, counts: F64, deviation: float) -> list[dict[str, Any]]:
    ends = np.cumsum([len(bars) for _, bars, _ in by.columns])[:-1]
    found = []
    for (name, bars, synthetic), mine in zip(by.columns, np.split(counts, ends), strict=True):
        total, n = max(float(mine.sum()), 1.0), len(mine)
        shares = mine / total
        off = float(np.abs(np.array(synthetic) - shares).sum() / 2)
        # by the triangle inequality off is no farther from the true one than half the sum of the sizes of the noise,
        # 0.399 n on average, and half the noise of the total
        noise = deviation * (0.399 * n + NORMAL * 0.584 * np.sqrt(n)) / total
        found.append(
            {
                "column": name,
                "bars": list(bars),
                "synthetic": list(synthetic),
                "held_out": np.round(shares, 5).tolist(),
                "band": NORMAL * deviation / total,
                "total_variation": min(1.0, off),
                "noise_low": max(0.0, off - noise),
                "noise_high": min(1.0, off + noise),
            }
        )
    return found


def claims_differ(said: Any, again: Any) -> list[str]:
    """Keys of an evaluation.json whose values are not those of the one that was made again; numbers may differ by what
    another processor rounds.

    said: by a stranger.
    again: what `told` gives.
    """
    known = said if isinstance(said, Mapping) else {}
    return [
        key for key in dict.fromkeys((*again, *known)) if key not in again or not _close(known.get(key), again[key])
    ]


def _close(one: Any, other: Any) -> bool:
    if isinstance(other, Mapping):
        return isinstance(one, Mapping) and one.keys() == other.keys() and all(_close(one[k], other[k]) for k in other)
    if isinstance(other, list | tuple):
        return isinstance(one, list | tuple) and len(one) == len(other) and all(map(_close, one, other))
    if isinstance(other, float):
        return type(one) in (int, float) and abs(one - other) <= 1e-9 + ROUNDING * abs(other)
    return type(one) is type(other) and bool(one == other)


def vectors_of(embed: Embedding, samples: Samples, size: int = 256) -> Array:
    parts = [embed(take(samples, np.arange(k, min(k + size, len(samples))))) for k in range(0, len(samples), size)]
    return np.concatenate(parts)


def apart(vectors: Array, among: Array, size: int = 256) -> F64:
    """float64 [n]: the distance to the nearest of some vectors; row i depends on vector i alone, to the last bit.

    vectors: float32 [n, d].
    among: float32 [m, d], distinct and finite.
    size: how many are looked at at once.
    """
    found, shortlist = np.empty(len(vectors)), cpu_search(among)
    for start in range(0, len(vectors), size):
        some = flushed(vectors[start : start + size])
        best = nearest(some, among, 1, shortlist)[:, 0]
        found[start : start + size] = np.sqrt(((some - among[best]).astype(np.float64) ** 2).sum(1))
    return found


def _among_themselves(vectors: Array, size: int = 256) -> F64:
    """float64 [n]: the distance of each vector to the nearest other one."""
    found, shortlist = np.empty(len(vectors)), cpu_search(vectors)
    for start in range(0, len(vectors), size):
        some = vectors[start : start + size]
        best = nearest(some, vectors, 2, shortlist)
        squares = ((some[:, None] - vectors[best]).astype(np.float64) ** 2).sum(2)
        squares[best == start + np.arange(len(some))[:, None]] = np.inf
        found[start : start + size] = np.sqrt(squares.min(1))
    return found


def _labels_of(synthetic: Population, schema: Schema | None) -> I64:
    if schema is not None and set(schema.label_columns) <= set(synthetic.samples.content.dtype.names or ()):
        return schema.labels_of(synthetic.samples.content)
    return synthetic.labels


def features(schema: Schema | None, samples: Samples, vectors: Array | None) -> Array:
    """float64 [n, f]: of a table its columns that are no labels, categories by their codes; of others their vectors.

    schema: of a table; None for other data.
    samples: n rows.
    vectors: float32 [n, d], of data that are no table.
    """
    if schema is None:
        assert vectors is not None
        return np.asarray(vectors, np.float64)
    found = []
    for column in schema.features:
        values = samples.content[column.name]
        if column.numeric:
            found.append(column.scaled(values))
        else:
            places = column.codes_of(values).astype(np.float64)
            found.append(np.where(places < 0, np.nan, places))
    return np.stack(found, axis=1) if found else np.zeros((len(samples), 1))


def learned(given: Array, targets: I64, schema: Schema | None) -> Any:
    """What guesses labels, int64 [n], of features, [n, f]: boosting for tables, a linear model of vectors.

    given: float64 [n, f].
    targets: int64 [n].
    schema: of a table; None for other data.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    if schema is not None:
        kinds = [not column.has_order and column.size <= 254 for column in schema.features]
        boosting = HistGradientBoostingClassifier(categorical_features=kinds or None, random_state=0)
        with on_free_threads():
            return boosting.fit(given, targets)
    mean, scale = given.mean(0), np.maximum(given.std(0), 1e-9)
    fitted = logistic((given - mean) / scale, targets, 500)
    weights, offsets = fitted.coef_, fitted.intercept_
    if len(weights) == 1:  # of two labels there is one line
        weights, offsets = np.concatenate([-weights, weights]), np.concatenate([-offsets, offsets])
    return Linear(fitted.classes_, weights / scale, offsets - (weights * (mean / scale)).sum(1))


def bins(column: Column, content: Array) -> Bins:
    """By the synthetic rows: numbers in bins that hold about as many each, categories that are frequent.

    column: of the schema.
    content: synthetic rows, structured [n].
    """
    values = content[column.name]
    none = ("missing",) if column.missing else ()
    if column.numeric:
        scaled = column.scaled(values)
        known = scaled[~np.isnan(scaled)]
        ends = np.unique(np.quantile(known, np.arange(1, BARS) / BARS)) if len(known) else np.zeros(0)
        order = np.sort(known)
        last = values[~np.isnan(scaled)][np.argsort(known, kind="stable")]
        upto = [last[max(0, np.searchsorted(order, end, "right") - 1)] for end in ends]
        names = (*(f"up to {_short(value)}" for value in upto), "above" if upto else "all", *none)
        empty = Bins(column, ends, np.zeros(0, np.int64), names, np.zeros(0))
    else:
        places = column.codes_of(values)
        counts = np.bincount(places[places >= 0], minlength=column.size)
        order = np.argsort(-counts, kind="stable")
        kept = np.sort(order[: BARS - 1]) if column.size > BARS else np.arange(column.size)
        others = len(kept) if column.size > BARS else len(kept) - 1
        of_code = np.full(column.size + 1, others)
        of_code[kept] = np.arange(len(kept))
        of_code[-1] = others + 1
        named = (*(column.values[code] for code in kept), *(["all others"] if column.size > BARS else []), *none)
        empty = Bins(column, np.zeros(0), of_code, named, np.zeros(0))
    counts = np.bincount(empty.codes(content), minlength=len(empty.names))
    return replace(empty, synthetic=counts / max(1, counts.sum()))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def as_mapping(said: Any) -> Mapping[str, Any] | None:
    """What a stranger's evaluation.json says, its types checked: of, judged, numbers, confusion, columns; None where it
    has not the form of one."""
    try:
        if said["format"] != FORMAT:
            return None
        texts, maybe = ("name", "what"), ("value", "low", "high", "noise_low", "noise_high")
        numbers = [
            {key: str(each[key])[:200] for key in texts}
            | {key: float(each[key]) for key in maybe if each.get(key) is not None}
            for each in said["numbers"][:20]
        ]
        found: dict[str, Any] = {"of": str(said["of"])[:200], "numbers": numbers}
        if "confusion" in said:
            labels = [str(label)[:60] for label in said["confusion"]["labels"][:FEW_LABELS]]
            counts = np.array(said["confusion"]["counts"], np.float64).reshape(len(labels), len(labels))
            found["confusion"] = {
                "labels": labels,
                "counts": counts,
                "deviation": float(said["confusion"]["deviation"]),
            }
        keys = ("total_variation", "noise_low", "noise_high")
        if "judged" in said:
            found["judged"] = {"rows": int(said["judged"]["rows"]), "sha256": str(said["judged"]["sha256"])[:64]}
        found["columns"] = [
            {"column": str(each["column"])[:80]} | {key: float(each[key]) for key in keys}
            for each in said.get("columns", [])[:1000]
        ]
        return found
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
