"""`dpsyn list`: runs side by side, each from its `release/` alone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dpsyn.errors import UserError
from dpsyn.privacy.budget import format_epsilon
from dpsyn.privacy.statement import format_delta
from dpsyn.report.facts import read_numbers, read_promise
from dpsyn.runs.directory import RunDirectory, open_run
from dpsyn.runs.storage import rows_in

DEEP = 3  # folders below the named one: sweeps lie in folders of their own
STATES = ("DP", "INCOMPLETE", "WEAK", "NOT PRIVATE", "INSECURE NOISE")
COLUMNS = 8  # of public metrics, on a screen


@dataclass(frozen=True)
class Line:
    """A run. state: of the statement, or 'damaged'. epsilon, delta: None where nothing is promised. releases: made, and
    declared. rows: of the synthetic data; None where they are not there yet. metrics: of the final data, those alone
    that are public, by 'metric.number'; signal_to_noise of the last vote among them."""

    run: str
    state: str
    epsilon: float | None = None
    delta: float | None = None
    releases: tuple[int, int] = (0, 0)
    rows: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def listed(places: Sequence[Path]) -> list[Line]:
    """The runs at and below these places, sorted by their path. Raises UserError where there is none."""
    found = sorted({run.root for place in places for run in _runs(place, DEEP)})
    if not found:
        raise UserError(f"{', '.join(map(str, places))}: no run of dpsyn is there.")
    return [_line(open_run(root, alone=True)) for root in found]


def as_text(lines: Sequence[Line]) -> str:
    """A table, never cut."""
    names = list(dict.fromkeys(name for line in lines for name in line.metrics))[:COLUMNS]
    table = [["run", "state", "epsilon", "delta", "releases", "rows", *names]]
    for line in lines:
        made, declared = line.releases
        table.append(
            [
                _clean(line.run),
                line.state,
                "-" if line.epsilon is None else format_epsilon(line.epsilon),
                "-" if line.delta is None else format_delta(line.delta, digits=3),
                f"{made}" if made == declared else f"{made} of {declared}",
                "-" if line.rows is None else f"{line.rows:,}",
                *(f"{line.metrics[name]:.4g}" if name in line.metrics else "-" for name in names),
            ]
        )
    widths = [max(len(row[at]) for row in table) for at in range(len(table[0]))]
    text = ["  ".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join(text) + "\n"


def as_json(lines: Sequence[Line]) -> str:
    return json.dumps([asdict(line) for line in lines], indent=1) + "\n"


def _runs(place: Path, deep: int) -> Iterator[RunDirectory]:
    try:
        yield open_run(place, alone=True)
    except UserError:
        if deep and place.is_dir() and not place.is_symlink():
            for child in sorted(place.iterdir()):
                if child.is_dir() and not child.name.startswith("."):
                    yield from _runs(child, deep - 1)


def _line(run: RunDirectory) -> Line:
    try:
        promise = read_promise(run.release / "privacy.json")
        path = run.release / "synthetic.parquet"
        rows = rows_in(path.read_bytes(), path) if path.exists() else None
    except UserError:
        return Line(str(run.root), "damaged")
    known = [state for state in STATES if state in promise.status.split(", ")]
    return Line(
        str(run.root),
        ", ".join(known) or "damaged",
        promise.epsilon,
        promise.delta,
        (len(promise.receipts), len(promise.charges)),
        rows,
        _metrics(run),
    )


def _metrics(run: RunDirectory) -> dict[str, float]:
    found: dict[str, float] = {}
    for numbers in read_numbers(run.release / "metrics.jsonl"):
        values = {key: value for key, value in numbers.items() if _is_number(value)}
        if "signal_to_noise" in values:
            found["signal to noise"] = values["signal_to_noise"]
        if numbers.get("final") and numbers.get("metric"):
            own = {key: value for key, value in values.items() if key not in ("iteration", "final")}
            found |= {_clean(f"{numbers['metric']}.{key}")[:60]: float(value) for key, value in own.items()}
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)


def _clean(text: str) -> str:
    """Without what would command a terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", text)
