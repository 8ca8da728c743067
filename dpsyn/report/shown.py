"""Samples as the page shows them: on the first screen, to browse, beside private ones, and who descends from whom."""

from __future__ import annotations

import base64
import difflib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dpsyn.population import I64, Array, Samples
from dpsyn.report import contents, lineage
from dpsyn.report.facts import Released, some_of
from dpsyn.runs.storage import columns_of

THUMB, SHARP = 64, 48  # px of a thumbnail; images up to this are kept pixel by pixel
STRIP, QUOTES, ROWS = 24, 3, 5  # on the first screen
BROWSED, BROWSED_LABELS, BROWSED_ITERATIONS, LEAST = 360, 12, 7, 2  # samples of the browser
EXCERPT, LONG = 280, 600  # characters of a text
TABLE_ROWS, TABLE_COLUMNS = 200, 40


@dataclass(frozen=True)
class Shown:
    """A sample on the page. One of uri, text and cells is there. tiny: shown pixel by pixel."""

    label: str
    iteration: str
    survivor: bool
    votes: float | None
    uri: str = ""
    tiny: bool = False
    text: str = ""
    cells: str = ""

    @property
    def told(self) -> str:
        return self.label + (f", {self.votes:.4g} noisy votes" if self.votes is not None else "")


def thumbnail(image: Array, size: int = THUMB) -> tuple[str, bool]:
    """A data URI, and whether the image is as small as its pixels.

    image: uint8 [h, w, 1 or 3].
    size: px of its longer side, at most.
    """
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    tiny = max(picture.size) <= SHARP
    sink = io.BytesIO()
    if tiny:
        picture.save(sink, "PNG", optimize=True)
    else:
        picture.thumbnail((size, size), Image.Resampling.BOX)
        picture.save(sink, "JPEG", quality=82)
    return f"data:image/{'png' if tiny else 'jpeg'};base64,{base64.b64encode(sink.getvalue()).decode()}", tiny


def cut(text: object, most: int = EXCERPT) -> str:
    """The beginning of a long text.

    text: written out as it prints.
    most: characters that are kept.
    """
    words = str(text)
    return words if len(words) <= most else words[: most - 2].rstrip() + " …"


def shown(
    samples: Samples, row: int, label: str, iteration: str = "", survivor: bool = False, votes: float | None = None
) -> Shown:
    """One of some samples.

    samples: images, texts or rows of a table.
    row: which of them.
    label: its label in words.
    iteration: the number of its population, or `final`.
    survivor: whether it was kept from the population before.
    votes: noisy ones, in records; None: none were counted.
    """
    content = samples.content
    facts = (label, iteration, survivor, votes)
    if content.ndim == 4:
        return Shown(*facts, *thumbnail(content[row]))
    if content.dtype.names:
        return Shown(*facts, cells=cut(", ".join(f"{k} {v}" for k, v in _cells(samples, row).items()), LONG))
    return Shown(*facts, text=cut(content[row], LONG))


def _cells(samples: Samples, row: int) -> dict[str, str]:
    columns = columns_of(samples.content[row : row + 1], samples.forms)
    return {name: "missing" if values[0] is None else _cell(values[0], EXCERPT) for name, values in columns.items()}


def _cell(value: Any, most: int = 80) -> str:
    return f"{value:.6g}" if isinstance(value, float) else cut(value, most)


def spaced(n: int, most: int) -> list[int]:
    """Rows from the first to the last, evenly apart.

    n: how many there are.
    most: how many are wanted.
    """
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist() if n else []


def first(released: Released) -> dict[str, Any]:
    """What the first screen shows: images, texts or rows, of as many labels as there is room for."""
    sample, kind = released.sample, released.kind
    most = {"images": STRIP, "texts": QUOTES, "tables": ROWS}[kind]
    labels = [int(label) for label in np.unique(sample.labels)]
    chosen: list[int] = []
    turns = max(1, math.ceil(most / max(1, len(labels))))
    for turn in range(turns):
        for label in labels if len(labels) <= most else [labels[i] for i in spaced(len(labels), most)]:
            rows = np.flatnonzero(sample.labels == label)
            if turn < len(rows) and len(chosen) < most:
                chosen.append(int(rows[(turn * len(rows)) // turns]))
    if kind == "tables":
        return {"table": _table(released, chosen)}
    return {"samples": [shown(sample.samples, row, released.labels[sample.labels[row]]) for row in chosen]}


def as_shown(released: Released, found: Mapping[str, Any]) -> dict[str, Any]:
    """What `dpsyn.report.real.against` found, as the private page shows it.

    released: what is in the release.
    found: by `against`.
    """
    told = dict(found)
    if found["near"]:
        pairs = [
            (shown(ours, i, "synthetic"), shown(real, j, "private"), apart)
            for ours, i, real, j, apart in found["near"]["pairs"]
        ]
        told["near"] = {**found["near"], "pairs": pairs}
    if found["means"]:
        told["means"] = [(released.labels[i], thumbnail(ours), thumbnail(real)) for i, ours, real in found["means"]]
    return {"beside": told}


def _table(released: Released, rows: Sequence[int]) -> dict[str, Any]:
    """Rows of the sample; columns that hold labels come first."""
    population, schema = released.sample, contents.schema_of(released)
    label_columns = schema.label_columns if schema else ()
    content = population.samples.content[np.array(rows, np.int64)]
    columns = columns_of(content, population.samples.forms)
    names = [*label_columns, *(name for name in columns if name not in label_columns)][:TABLE_COLUMNS]
    long = [schema is not None and name in schema.texts for name in names]
    most = {name: EXCERPT if is_long else 80 for name, is_long in zip(names, long, strict=True)}
    lines = [["" if columns[n][i] is None else _cell(columns[n][i], most[n]) for n in names] for i in range(len(rows))]
    numbers = [content.dtype[name].kind in "if" and content.dtype[name] != np.int8 for name in names]
    left_out = len(columns) - len(names)
    return {"names": names, "lines": lines, "numbers": numbers, "long": long, "left_out": left_out}


def browser(released: Released) -> dict[str, Any]:
    """Of each label and iteration the most voted, else survivors first; of a table rows of the final one."""
    if released.kind == "tables":
        rows = some_of(len(released.sample), TABLE_ROWS).tolist()
        return {"table": _table(released, rows), "samples": [], "labels": [], "iterations": [], "of": released.rows}
    lineages = [released.lineages[i] for i in spaced(len(released.lineages), BROWSED_ITERATIONS)]
    present = np.unique(released.row_labels)
    labels = [int(present[i]) for i in spaced(len(present), BROWSED_LABELS)]
    each_has = max(LEAST, BROWSED // max(1, len(labels) * (len(lineages) + 1)))
    samples: list[Shown] = []
    for each in lineages:
        receipt = released.votes.get(each.iteration + 1)
        score = receipt.votes / receipt.charge.grid if receipt is not None else None
        rank = -score if score is not None else ~each.survivors
        of_label = [np.flatnonzero(each.labels == label) for label in labels]
        best: I64 = np.concatenate([mine[np.argsort(rank[mine], kind="stable")[:each_has]] for mine in of_label])
        population = released.run.load(each.iteration, rows=best)
        for i, row in enumerate(best.tolist()):
            votes = None if score is None else float(score[row])
            name = released.labels[each.labels[row]]
            samples.append(shown(population.samples, i, name, str(each.iteration), bool(each.survivors[row]), votes))
    if released.is_finished:
        for label in labels:
            for row in np.flatnonzero(released.sample.labels == label)[:each_has].tolist():
                samples.append(shown(released.sample.samples, row, released.labels[label], "final"))
    iterations = list(dict.fromkeys(sample.iteration for sample in samples))
    browsed = {"samples": samples, "labels": [released.labels[i] for i in labels], "iterations": iterations}
    rows = sum(len(each.labels) for each in released.lineages) + (released.rows if released.is_finished else 0)
    return {**browsed, "table": None, "of": rows}


def trees(released: Released) -> list[list[dict[str, Any]]]:
    """Some final rows, each after those that it descends from, and what changed from one to the next."""
    chains = lineage.trees(released)
    wanted: dict[int, list[int]] = {}
    for link in (link for chain in chains for link in chain):
        wanted.setdefault(link.iteration, []).append(link.row)
    loaded = {t: released.run.load(t, rows=np.array(sorted(set(rows)), np.int64)) for t, rows in wanted.items()}
    at = {t: {row: i for i, row in enumerate(sorted(set(rows)))} for t, rows in wanted.items()}
    found = []
    for chain in chains:
        links: list[dict[str, Any]] = []
        before: Any = None
        for link in chain:
            population, row = loaded[link.iteration], at[link.iteration][link.row]
            label = released.labels[population.labels[row]]
            here = shown(population.samples, row, label, str(link.iteration), True, link.votes)
            if released.kind == "tables":
                now: Any = _cells(population.samples, row)
                parts = [("ins" if before and before[k] != v else "same", f"{k} {v}") for k, v in now.items()]
                parts = parts if before is None else [part for part in parts if part[0] == "ins"]
                joined = parts[:TABLE_COLUMNS]
            else:
                now = here.text.split()
                joined = [] if released.kind == "images" else list(_differences(before, now))
            links.append({"shown": here, "parts": joined, "table": released.kind == "tables"})
            before = now
        found.append(links)
    return found


def _differences(before: Sequence[str] | None, now: Sequence[str]) -> Iterator[tuple[str, str]]:
    """('same' | 'ins' | 'del', words)"""
    if before is None:
        yield "same", " ".join(now)
        return
    for what, a, b, c, d in difflib.SequenceMatcher(None, before, now, autojunk=False).get_opcodes():
        if what == "equal":
            yield "same", " ".join(now[c:d])
            continue
        if b > a:
            yield "del", " ".join(before[a:b])
        if d > c:
            yield "ins", " ".join(now[c:d])
