"""What only the keeper of the data may see: the synthetic data beside the private ones, without noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpsyn.embedding import Embedding, Sparse
from dpsyn.errors import UserError
from dpsyn.evaluation import apart, bins, features, learned, vectors_of
from dpsyn.metric import words
from dpsyn.networks.search import cpu_search
from dpsyn.population import F64, I64, Array, Population, Samples, take
from dpsyn.privacy.nearest import distinct, flushed, nearest
from dpsyn.report import drawing
from dpsyn.report.contents import Bars
from dpsyn.tables.schema import Schema
from dpsyn.tables.vectors import Weights, entries, starts_of

LOOKED_AT = 3_000  # rows of each side that are compared, at most
PAIRS = 6  # synthetic samples beside their nearest private records
WEIGHTS = Weights(1.0, 1 / 3, 0.5)  # as of embedding=table
RUNS = 200  # synthetic texts whose longest run of words shared with a private one is looked for


@dataclass(frozen=True)
class Rows:
    """Rows with their labels, int64 [n]."""

    samples: Samples
    labels: I64

    def some(self, most: int, seed: int = 0) -> Rows:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self.labels))[:most])
        return Rows(take(self.samples, chosen), self.labels[chosen])


def against(
    synthetic: Population, first: Population, real: Rows, held: Rows, embed: Embedding | None, schema: Schema | None
) -> dict[str, Any]:
    """Of the private page.

    synthetic: the finished data.
    first: of the first iteration there is; of iteration 0 these are the candidates before any vote.
    real: private records.
    held: real ones that none of the data were made by, or else others of the private ones.
    embed: None where the run has none: rows of a table are compared by their columns then.
    schema: of a table.
    """
    ours = Rows(synthetic.samples, _labels(synthetic.samples, synthetic.labels, schema)).some(LOOKED_AT)
    bare = Rows(first.samples, _labels(first.samples, first.labels, schema)).some(LOOKED_AT)
    real, held = real.some(LOOKED_AT), held.some(LOOKED_AT)
    sides, vectors = {"ours": ours, "bare": bare, "real": real, "held": held}, dict[str, Array]()
    if embed is not None:
        vectors = {side: vectors_of(embed, rows.samples) for side, rows in sides.items()}
    elif schema is not None and schema.features:
        vectors = {side: _vectors_of_rows(schema, rows.samples) for side, rows in sides.items()}
    found: dict[str, Any] = dict.fromkeys(("near", "columns", "correlations", "means"))
    bare_too = bool(vectors) and first.iteration == 0
    found |= {"trained": _trained(ours, bare if bare_too else None, real, held, vectors, schema)}
    found |= {"rows": len(real.labels), "texts": _texts(ours, real, schema)}
    if vectors:
        found["near"] = _near(ours, real, held, vectors)
    if schema is not None:
        found["columns"], found["correlations"] = _columns(ours, real, schema), _correlations(ours, real, schema)
    elif real.samples.content.ndim == 4:
        found["means"] = _means(ours, real)
    return found


def _vectors_of_rows(schema: Schema, samples: Samples) -> Array:
    places, values = entries(schema.features, samples.content, WEIGHTS)
    return Sparse(places, values, starts_of(schema.features)[-1]).dense()


def _labels(samples: Samples, labels: I64, schema: Schema | None) -> I64:
    return labels if schema is None else schema.labels_of(samples.content)


def _trained(
    ours: Rows, bare: Rows | None, real: Rows, held: Rows, vectors: Mapping[str, Array], schema: Schema | None
) -> list[tuple[str, str]]:
    """(what a classifier learned from, its accuracy on held-out real rows)."""
    sides = [("the synthetic data", "ours", ours), ("the private data", "real", real)]
    sides += [] if bare is None else [("the candidates before any vote", "bare", bare)]
    judged = features(schema, held.samples, vectors.get("held"))
    found = []
    for name, side, rows in sides:
        if len(np.unique(rows.labels)) < 2:
            continue
        model = learned(features(schema, rows.samples, vectors.get(side)), rows.labels, schema)
        found.append((name, f"{(model.predict(judged) == held.labels).mean():.1%}"))
    return found


def _near(ours: Rows, real: Rows, held: Rows, vectors: Mapping[str, Array]) -> dict[str, Any]:
    """How near synthetic samples are to private records, beside how near held-out ones are: nearer ones than those say
    that something was copied."""
    among = flushed(vectors["real"])
    kept = distinct(among)
    among = np.ascontiguousarray(among[kept])
    if not len(among):
        raise UserError("report: no private record has a vector that can be compared.")
    mine, theirs = apart(vectors["ours"], among), apart(vectors["held"], among)
    closest = np.argsort(mine, kind="stable")[:PAIRS]
    best = kept[nearest(flushed(vectors["ours"][closest]), among, 1, cpu_search(among))[:, 0]]
    return {
        "synthetic": [f"{value:.4g}" for value in np.quantile(mine, (0, 0.05, 0.5, 0.95))],
        "held_out": [f"{value:.4g}" for value in np.quantile(theirs, (0, 0.05, 0.5, 0.95))],
        "pairs": [
            (ours.samples, int(a), real.samples, int(b), f"{mine[a]:.4g}") for a, b in zip(closest, best, strict=True)
        ],
    }


def _columns(ours: Rows, real: Rows, schema: Schema) -> list[tuple[str, Any, str]]:
    """(column, its bars on both sides, total variation), the worst first."""
    found = []
    for column in schema.columns.values():
        made = bins(column, real.samples.content)
        counts = np.bincount(made.codes(ours.samples.content), minlength=len(made.names))
        shares = counts / max(1, counts.sum())
        off = float(np.abs(shares - made.synthetic).sum() / 2)
        both = Bars(column.name, column.kind, made.names, shares, made.synthetic, np.zeros(len(shares)), False)
        found.append((off, column.name, drawing.marginal(both, "of the private rows")))
    return [(name, svg, f"{off:.1%}") for off, name, svg in sorted(found, key=lambda each: -each[0])]


def _correlations(ours: Rows, real: Rows, schema: Schema) -> list[tuple[str, str, str, str]]:
    """(column, column, of the synthetic rows, of the private ones): Pearson's, those that differ most."""
    names = [column.name for column in schema.columns.values() if column.has_order]
    sides = []
    for rows in (ours, real):
        columns = [(schema.columns[name], rows.samples.content[name]) for name in names]
        values = [
            column.scaled(of) if column.numeric else column.codes_of(of).astype(np.float64) for column, of in columns
        ]
        table = np.array(values).reshape(len(names), -1)
        filled = np.where(np.isnan(table), np.nanmean(table, axis=1, keepdims=True) if table.size else 0, table)
        with np.errstate(divide="ignore", invalid="ignore"):
            sides.append(np.nan_to_num(np.atleast_2d(np.corrcoef(filled))) if len(names) > 1 else np.zeros((1, 1)))
    gaps = np.triu(np.abs(sides[0] - sides[1]), 1)
    order = np.argsort(-gaps, axis=None, kind="stable")[:12]
    pairs = [np.unravel_index(at, gaps.shape) for at in order if gaps.flat[at] > 0]
    return [(names[i], names[j], f"{sides[0][i, j]:+.2f}", f"{sides[1][i, j]:+.2f}") for i, j in pairs]


def _means(ours: Rows, real: Rows) -> list[tuple[int, Array, Array]]:
    """(label, mean synthetic image, mean private image)."""
    both = np.intersect1d(ours.labels, real.labels)[:20]
    return [
        (
            int(label),
            _mean(ours.samples.content[ours.labels == label]),
            _mean(real.samples.content[real.labels == label]),
        )
        for label in both
    ]


def _mean(images: Array) -> Array:
    return images.mean(0).round().astype(np.uint8)


def _texts(ours: Rows, real: Rows, schema: Schema | None) -> list[tuple[str, dict[str, Any], list[Any]]]:
    """(column, runs of words that are shared, lengths) of each column of texts; '' for data that are texts alone."""
    if schema is None:
        pairs = [] if real.samples.content.ndim == 4 else [("", ours.samples.content, real.samples.content)]
    else:
        pairs = [(name, ours.samples.content[name], real.samples.content[name]) for name in schema.texts]
    found = []
    for name, *sides in pairs:
        mine, theirs = ([str(text) for text in side if text is not None] for side in sides)
        if mine and theirs:
            found.append((name, _shared(mine[:RUNS], theirs), _lengths(mine, theirs)))
    return found


def _shared(texts: Sequence[str], private: Sequence[str]) -> dict[str, Any]:
    """The longest run of words that a synthetic text shares with a private one."""
    mine, theirs = words(texts), words(private)
    longest = np.zeros(len(texts), np.int64)
    for n in range(1, 200):
        grams, starts = mine.ngrams(n)
        others, _ = theirs.ngrams(n)
        known = np.isin(grams, others)
        if not known.any():
            break
        longest[np.unique(mine.texts[starts[known]])] = n
    worst = int(longest.argmax()) if len(longest) else 0
    return {"looked_at": len(texts), "median": float(np.median(longest)) if len(longest) else 0.0,
            "longest": int(longest.max(initial=0)), "text": texts[worst][:600] if texts else ""}  # fmt: skip


def _lengths(mine: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Quartiles of the lengths, in words."""
    found = []
    for name, texts in (("synthetic", mine), ("private", theirs)):
        lengths: F64 = np.array([len(text.split()) for text in texts], np.float64)
        found.append((name, [f"{value:.0f}" for value in np.quantile(lengths, (0.05, 0.25, 0.5, 0.75, 0.95))]))
    return found
