"""What the private page says besides: from `private/`, and never under `release/`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dpsyn.errors import UserError
from dpsyn.runs.directory import RunDirectory, mapping_in

TIMED = re.compile(r"^\S+ (.+) (\d+\.\d+) s$")


def read_private(run: RunDirectory) -> dict[str, Any]:
    """metrics: numbers on real data; refused: (rule, how often); phases: (what, times, seconds), longest first; cost: a
    line for each api that is paid."""
    return {
        "metrics": [
            {
                "metric": str(numbers.get("metric", "")),
                "of": "the final data" if numbers.get("final") else f"iteration {numbers.get('iteration')}",
                "numbers": ", ".join(_number(key, value) for key, value in numbers.items() if key not in KEYS),
            }
            for numbers in _lines(run.private / "metrics.jsonl")
        ],
        "refused": _refused(run.private),
        "phases": _phases(run.private / "log"),
        "beside": None,
        "cost": [f"{name}: {value}" for name, value in run.read_usage().items()],
    }


KEYS = ("metric", "final", "iteration")


def _number(key: str, value: Any) -> str:
    return f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Raises UserError where the file is damaged."""
    try:
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else [])
    except ValueError:
        raise UserError(f"{path}: this file is damaged. Restore it, or remove it.") from None


def _refused(folder: Path) -> list[tuple[str, int]]:
    """Rows that cast no vote, and cells that were read as another value."""
    refused = Counter(f"{line['column']}: {line['rule']} (no vote)" for line in _lines(folder / "refused.jsonl"))
    path = folder / "adjusted.json"
    adjusted: dict[str, int] = mapping_in(path) if path.exists() else {}
    return refused.most_common() + list(adjusted.items())


def _phases(path: Path) -> list[tuple[str, int, float]]:
    found: dict[str, list[float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        if timed := TIMED.match(line):
            found.setdefault(timed[1], []).append(float(timed[2]))
    return sorted(((what, len(times), sum(times)) for what, times in found.items()), key=lambda each: -each[2])
