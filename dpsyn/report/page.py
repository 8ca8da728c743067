"""The page: what facts.py has read, as one HTML file without a request of any kind."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup

from dpsyn import evaluation
from dpsyn.population import I64, Array, Population, Samples
from dpsyn.privacy.budget import SMALLEST_SIGMA, WEAK, exact_epsilon, format_epsilon, largest_hit_rates
from dpsyn.privacy.statement import format_delta
from dpsyn.report import contents, drawing, lineage
from dpsyn.report.contents import Bars
from dpsyn.report.facts import LOOKED_AT, NOUNS, Released, kind_of, some_of
from dpsyn.report.shown import browser, cut, first, shown, spaced, thumbnail, trees

LABELS, SHOWN_SETTINGS, SHOWN_FILES, SHOWN_CHARGES = 40, 60_000, 400, 400
MAPPED, FEWEST_ON_MAP = 48, 12  # px of an image on a map; images on one
WIDE_BAND = 0.05  # of all rows: a bar that may be so far off says little
ALARMS = 0.05  # the rate of false alarms that is told in words


def rendered(released: Released, private: Mapping[str, Any] | None = None) -> bytes:
    """The page, as bytes of HTML.

    released: what the run released.
    private: what the private page says besides, by `dpsyn.report.private`; None for the public one.
    """
    style, script = _file("style.css"), _file("script.js")
    filled = template().render(
        **_context(released),
        private=private,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'",
    )
    return filled.encode("utf-8", "backslashreplace")


@functools.cache
def template() -> Any:
    """A jinja2.Template: to compile it takes as long as to fill it."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_file("page.html"))


def _file(name: str) -> str:
    return resources.files("dpsyn.report").joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _context(released: Released) -> dict[str, Any]:
    promise, kind = released.promise, released.kind
    state, headline = _state(released)
    what_is_in_it = _contents(released)
    return {
        "released": released,
        "promise": promise,
        "kind": kind,
        "noun": NOUNS[kind],
        "state": state,
        "headline": headline,
        "epsilon": format_epsilon(promise.epsilon) if promise.epsilon is not None else None,
        "delta": format_delta(promise.delta, digits=3) if promise.delta else None,
        "one_in": f"{int(1 / Decimal(repr(promise.delta))):,}" if promise.delta else None,
        "joint": format_epsilon(promise.joint) if promise.joint is not None else "unknown",
        "first": first(released),
        "trade_off": _trade_off(released),
        "budget": _budget(released),
        "checklist": _checklist(released),
        "signs": [*_signs(released), *_signs_of_counts(released, what_is_in_it.get("columns", []))],
        "votes": _votes(released),
        "stream": _stream(released),
        "trees": trees(released),
        "changes": _changes(released),
        "browser": browser(released),
        "contents": what_is_in_it,
        "measured": [numbers for numbers in released.numbers if numbers.get("metric") and len(numbers) > 3],
        "evaluation": _evaluation(released),
        "settings": released.settings_text[:SHOWN_SETTINGS],
        "settings_cut": len(released.settings_text) > SHOWN_SETTINGS,
        "files": released.files[:SHOWN_FILES],
        "files_left_out": max(0, len(released.files) - SHOWN_FILES),
        "looked_at": len(released.sample) if len(released.sample) < released.rows else None,
    }


def _state(released: Released) -> tuple[str, str]:
    """The colour of the band, and what it says."""
    promise = released.promise
    if promise.epsilon is None:
        return "bad", f"{promise.status}: made without noise that protects anybody. For tests only; do not publish."
    if not promise.charges:
        return "good", "No private record was read: nothing here can tell anything of one."
    weak = f" Epsilon is above {WEAK:g}: a weak guarantee." if promise.epsilon > WEAK else ""
    if "INCOMPLETE" in promise.status or not released.is_finished:
        return "warn", f"INCOMPLETE: the run stopped early. The guarantee holds; these are not the final data.{weak}"
    if weak:
        return "warn", f"Differentially private.{weak}"
    return "good", "Differentially private. This page, and all that lies beside it, may be published."


# Privacy


def _trade_off(released: Released) -> dict[str, Any] | None:
    promise = released.promise
    charges = (*promise.charges, *promise.lost)
    if promise.epsilon is None or not charges or min(charge.sigma for charge in charges) < SMALLEST_SIGMA:
        return None
    alarms = np.concatenate([[0], np.geomspace(1e-4, 0.05, 30), np.linspace(0.06, 1, 48)])
    hits = largest_hit_rates(charges, promise.neighbours, alarms)
    hit = float(largest_hit_rates(charges, promise.neighbours, np.array([ALARMS]))[0])
    return {
        "svg": drawing.trade_off(alarms, hits, ALARMS, hit),
        "hit": math.ceil(hit * 100),
        "alarms": round(ALARMS * 100),
    }


def _budget(released: Released) -> dict[str, Any] | None:
    promise = released.promise
    charges = [*promise.charges, *promise.lost]
    if promise.delta is None or not charges or len(charges) > SHOWN_CHARGES:
        return None
    if min(charge.sigma for charge in charges) < SMALLEST_SIGMA:
        return None
    alone = [exact_epsilon([charge], promise.delta, promise.neighbours) for charge in charges]
    so_far = [exact_epsilon(charges[: i + 1], promise.delta, promise.neighbours) for i in range(len(charges))]
    lost = [i >= len(promise.charges) for i in range(len(charges))]
    rows = [
        {
            "name": charge.name[:80],
            "sigma": f"{charge.sigma:,.4g}",
            "moves": f"{charge.moves:,}",
            "alone": format_epsilon(alone[i]),
            "so_far": format_epsilon(so_far[i]),
            "made": "lost draw" if lost[i] else "made" if i + 1 in promise.receipts else "not made yet",
        }
        for i, charge in enumerate(charges)
    ]
    return {"svg": drawing.budget([charge.name for charge in charges], alone, so_far, lost), "rows": rows}


def _checklist(released: Released) -> list[tuple[str, bool, str]]:
    """The points of NIST SP 800-226 (2025), whether the release states them, and where."""
    promise = released.promise
    stated = promise.is_private
    measured = any(numbers.keys() - {"iteration", "final", "metric"} for numbers in released.numbers)
    change = "replaced" if promise.neighbours == "replace" else "added or removed"
    return [
        ("Privacy parameters", stated, f"epsilon {promise.epsilon:g}, delta {promise.delta:g}" if stated else "none"),
        ("Unit of privacy", stated, f"one {promise.unit}" if stated else "none"),
        ("What neighbouring data sets are", stated, f"one {promise.unit} {change}" if stated else "none"),
        ("How much one unit can change", stated, "charges in privacy.json: the entries that it moves, by one each"),
        ("Mechanism and its random numbers", stated, promise.mechanism),
        ("How losses add up within the run", stated, promise.accountant),
        ("How losses add up with other releases", stated, "only those known where it was made: see the statement"),
        ("What is assumed public", stated, "all settings of config.yaml"),
        ("Who is trusted", stated, "whoever held the private data and ran dpsyn; nobody else"),
        (
            "Accuracy and utility",
            measured or released.evaluation is not None,
            "measured on held-out records, through noise"
            if released.evaluation is not None
            else "measured without private data"
            if measured
            else "no number that may be published",
        ),
        ("Bias: groups for whom the data are worse", False, "small groups drown in the noise first"),
        ("Side channels: time and traffic", False, "named among what the statement does not cover"),
        ("Security of the private data themselves", False, "left to whoever holds them"),
        ("How the data were collected", False, "left to whoever holds them"),
    ]


def _evaluation(released: Released) -> dict[str, Any] | None:
    """What was measured under DP: numbers in words, the confusion of labels as shares of each row, columns that are
    farthest off first."""
    said = released.evaluation
    if said is None:
        return None

    def between(each: Mapping[str, Any], low: str, high: str) -> str:
        return f"{each[low]:.1%} to {each[high]:.1%}" if low in each and high in each else "not told"

    numbers = [
        {
            "name": each["name"],
            "what": each["what"],
            "value": f"{each['value']:.1%}" if "value" in each else "lost in the noise",
            "noise": between(each, "noise_low", "noise_high"),
            "interval": between(each, "low", "high"),
        }
        for each in said["numbers"]
    ]
    columns = sorted(said["columns"], key=lambda each: -each["total_variation"])
    confusion = _confusion(said.get("confusion"))
    before = evaluation.outgrown(said, released.digest)
    return {"of": said["of"], "before": before, "numbers": numbers, "columns": columns, "confusion": confusion}


def _confusion(said: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if said is None:
        return None
    sums = np.maximum(said["counts"].sum(1), 1.0)
    shares = np.clip(said["counts"] / sums[:, None], 0, 1)
    rows = [
        (label, [f"{value:.0%}" for value in row], f"{of:,.0f}")
        for label, row, of in zip(said["labels"], shares, sums, strict=True)
    ]
    return {"labels": said["labels"], "rows": rows, "deviation": f"{said['deviation']:.3g}"}


# Votes and vital signs


def _signs(released: Released) -> list[dict[str, Any]]:
    """One drawing a vital sign, with advice where it is out of range."""
    lines = [numbers for numbers in released.numbers if "signal_to_noise" in numbers]
    lines.sort(key=lambda numbers: numbers["iteration"])
    if not lines:
        return []
    names = [f"iteration {numbers['iteration']}" for numbers in lines]
    candidates = {t: len(receipt.votes) for t, receipt in released.votes.items()}

    def series(key: str) -> list[float]:
        found = [numbers.get(key, 0.0) for numbers in lines]
        return [float(value) if isinstance(value, int | float) else math.nan for value in found]

    signal, effective, ancestors = series("signal_to_noise"), series("effective"), series("ancestors")
    silent, top = series("labels_without_votes"), series("top_tenth")
    n = candidates.get(lines[-1]["iteration"], 0)
    labels = len(released.labels)
    signs = [
        (
            "Signal to noise", signal, 1.0, "how far votes differ between candidates, over the noise",
            signal[-1] < 1 and "Below 1 the noise decides more than the votes. Ask about fewer candidates "
            "(schedule.size), make fewer releases, or spend a larger epsilon.",
        ),
        (
            "Effective candidates", effective, None, f"how many candidates share the votes{f', of {n:,}' if n else ''}",
            bool(n) and effective[-1] < 0.02 * n and "Very few candidates take nearly all votes: most of what is made "
            "is far from the private data. Vary more (schedule.degree), or begin with other candidates.",
        ),
        (
            "Votes of the first tenth", top, None, "share of the votes that the most voted tenth holds", False,
        ),
        (
            "Founders with descendants", ancestors, None, "rows of iteration 0 from which anything is left",
            ancestors[-1] < 2 * labels and "Nearly all rows descend from a few first ones: the data may lack variety. "
            "Use more candidates, or schedule=balanced.",
        ),
        (
            "Labels without votes", silent, None, "their rows are chosen at random",
            silent[-1] > 0 and "Some labels have too few records for this noise. Merge labels, declare their "
            "shares, or spend a larger epsilon.",
        ),
    ]  # fmt: skip
    return [
        {
            "title": title,
            "svg": drawing.small_line(values, names, f"{title}: {values[-1]:.4g} at the end", low),
            "value": f"{values[-1]:.0%}"
            if title.startswith("Votes")
            else f"{values[-1]:,.3g}"
            if values[-1] < 100
            else f"{values[-1]:,.0f}",
            "what": what,
            "advice": advice or None,
        }
        for title, values, low, what, advice in signs
        if np.isfinite(values).all()  # without noise a signal is infinitely clear
    ]


def _signs_of_counts(released: Released, columns: Sequence[tuple[Bars, Any]]) -> list[dict[str, Any]]:
    """The same of a table that votes in cells made: what their noise hides.

    columns: with their bars and drawings.
    """
    counted = [charge for charge in released.promise.charges if charge.name.startswith("counts ")]
    shown = [bars for bars, _ in columns]
    if not counted or not shown:
        return []
    found = []
    if widths := [bars.off[1] for bars in shown if bars.off is not None]:
        width = float(np.median(widths))
        advice = "Small groups cannot be told. Spend a larger epsilon, or declare fewer or coarser columns."
        what = "of all rows: how far noise moves a bar, in the middle column, in 95 of 100 cases"
        found.append(("Noise of a bar", f"±{width:.1%}", what, advice if width > WIDE_BAND else None))
    if hidden := [bars.column for bars in shown if bars.noisy is None]:
        named = ", ".join(hidden[:5]) + (" and others" if len(hidden) > 5 else "")
        advice = f"Nothing is known of how the values of {named} are spread. Declare fewer values or closer bounds."
        what = f"of {len(shown)}: their released counts are noise, or there are none"
        found.append(("Columns that noise hides", str(len(hidden)), what, advice if widths else None))
    pairs = math.comb(sum(bars.kind != "label" for bars in shown), 2)
    asked = any(charge.name.endswith("(tables)") for charge in counted)
    if pairs:
        advice = "How columns depend on each other was not learned. A larger epsilon or fewer columns help."
        what = f"whether counts of any of the {pairs:,} pairs were released"
        found.append(("Pairs of columns", "asked" if asked else "not asked", what, None if asked else advice))
    return [dict(zip(("title", "value", "what", "advice"), each, strict=True)) | {"svg": ""} for each in found]


def _votes(released: Released) -> list[dict[str, Any]]:
    found = []
    chosen = sorted(released.votes)
    for t in [chosen[i] for i in spaced(len(chosen), 6)]:
        receipt = released.votes[t]
        deviation = receipt.charge.sigma
        if deviation > 0 and len(receipt.votes) > 1:
            found.append({"iteration": t, "svg": drawing.votes(receipt.votes / receipt.charge.grid, deviation)})
    return found


# Evolution


def _stream(released: Released) -> dict[str, Any] | None:
    known = lineage.stream(released.lineages)
    if known is None or not len(known.founders):
        return None
    founders = released.run.load(0, rows=known.founders)
    named = [shown(founders.samples, i, released.labels[founders.labels[i]]) for i in range(len(known.founders))]
    shares = [f"{share:.1%}" for share in known.shares[:-1, -1]]
    told = [f"{each.label}: {share} of the last rows" for each, share in zip(named, shares, strict=True)]
    return {
        "svg": drawing.stream(known.iterations, known.shares, [*told, "all others"]),
        "founders": [
            (each, share, cut(each.text or each.cells, 90)) for each, share in zip(named, shares, strict=True)
        ],
        "distinct": known.distinct,
    }


def _changes(released: Released) -> dict[str, Any] | None:
    """Of tables: how far successive ones are apart, the mean total variation over columns that are no numbers in cells
    of their own, each number by its tenths."""
    if released.kind != "tables" or len(released.lineages) < 2:
        return None
    tables = []
    for each in released.lineages:
        n = len(each.labels)
        population = released.run.load(each.iteration, rows=some_of(n, 5000))
        tables.append(population.samples.content)
    schema = contents.schema_of(released)
    names_of = [name for name in tables[0].dtype.names or () if schema is None or name not in schema.texts]
    apart = [_apart(one, two, names_of) for one, two in pairwise(tables)]
    names = [f"iteration {each.iteration}" for each in released.lineages[1:]]
    told = f"Total variation from the table before, {apart[-1]:.3f} at the end"
    svg = drawing.small_line(apart, names, told) if len(apart) > 1 else ""
    return {"svg": svg, "last": f"{apart[-1]:.3f}"}


def _apart(one: Array, two: Array, names: Sequence[str]) -> float:
    found = []
    for name in names:
        a, b = one[name], two[name]
        if a.dtype.kind == "O":
            a, b = a.astype(str), b.astype(str)
        elif a.dtype.kind in "mM":
            a, b = a.astype(np.int64), b.astype(np.int64)
        known, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
        if len(known) > 20 and a.dtype.kind in "if":
            codes = codes * 10 // len(known)
        size = int(codes.max()) + 1 if len(codes) else 1
        shares = [np.bincount(part, minlength=size) / max(1, len(part)) for part in (codes[: len(a)], codes[len(a) :])]
        found.append(float(np.abs(shares[0] - shares[1]).sum() / 2))
    return float(np.mean(found)) if found else 0.0


# What is in the data


def _texts(released: Released, sample: Population) -> dict[str, Any]:
    told = contents.texts(sample, released.labels, LABELS)
    median = f"{np.median(told.lengths):.0f}"
    lengths = drawing.histogram(told.lengths.astype(np.float64), f"Lengths, {median} words in the middle", "words")
    return {"texts": told, "lengths": lengths, "median": median}


def _map(released: Released, places: I64) -> Markup | None:
    """The images of the sample at these places; None where there are too few."""
    if places.size < FEWEST_ON_MAP:
        return None
    content, labels = released.sample.samples.content, released.sample.labels
    uris = [[(*thumbnail(content[at], MAPPED), released.labels[labels[at]]) for at in row] for row in places.tolist()]
    return drawing.pictures(uris, f"A map of {places.size} images, those that are alike near each other")


def _contents(released: Released) -> dict[str, Any]:
    counts = np.bincount(released.row_labels, minlength=len(released.labels))
    shown = np.argsort(-counts, kind="stable")[:LABELS] if len(counts) > LABELS else np.arange(len(counts))
    names = [released.labels[i] for i in shown]
    found: dict[str, Any] = {
        "counts": drawing.counts(names, counts[shown].tolist(), f"Rows of {len(names)} labels"),
        "labels_left_out": len(counts) - len(shown),
        "many_labels": len(counts) > 1,
        "sampled": LOOKED_AT[kind_of(released.sample)],
        "unchanged": None if released.kind == "tables" else lineage.unchanged(released),
    }
    if not len(released.sample):
        return {**found, "kind": "none"}
    if released.kind == "images":
        seen = contents.images(released.sample, released.labels, LABELS)
        means = [(name, *thumbnail(image)) for name, image in seen.means]
        return {**found, "images": seen, "means": means, "map": _map(released, seen.map)}
    if released.kind == "texts":
        return {**found, **_texts(released, released.sample)}
    schema = contents.schema_of(released)
    row_texts = []
    for name in schema.texts if schema is not None else ():
        texts = released.sample.samples.content[name]
        if any(text is not None for text in texts):  # the rows of a run that is not finished may have none yet
            row_texts.append((name, _texts(released, replace(released.sample, samples=Samples(texts)))))
    bars = contents.columns(released)
    compared = [each for each in bars if each.off is not None]
    return {
        **found,
        "row_texts": row_texts,
        "columns": [(each, drawing.marginal(each)) for each in bars],
        "pairs": [
            (each, drawing.residuals(each)) for each in sorted(contents.with_label(released), key=lambda r: -r.spread)
        ],
        "compared": len(compared),
        "off": np.mean([each.off for each in compared if each.off is not None], axis=0).tolist() if compared else None,
    }
