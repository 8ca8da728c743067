"""API usage of a run across restarts, and an estimate of the rest: for the panel, and kept in cost.json."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from dpsyn.api import Api, Metered, Usage, metered, together
from dpsyn.population import Label
from dpsyn.runs.directory import RunDirectory

EVERY = 0.5  # seconds between two writings of cost.json


class Spending:
    """Of one start of a run. generated, varied: rows that will still be asked for, at most. Of several apis that take
    money or tokens each has its own lines in cost.json, by the names of `dpsyn.api.metered`."""

    def __init__(self, api: Api, labels: Sequence[Label], run: RunDirectory, generated: int, varied: int) -> None:
        self.apis, self.labels, self.run = metered(api), labels, run
        self.left = {"generating": generated, "varying": varied}
        self.written = time.monotonic()
        if self.apis:
            known = run.identity() if (run.private / "config.yaml").exists() else None
            before = run.read_usage()
            for name, each in self.apis.items():
                mine = before if len(self.apis) == 1 else before.get(name, {})
                each.resume(Usage(**mine), known["run"] if known else None)

    def done(self, text: str, rows: int) -> None:
        """So many more rows of a phase are done.

        text: of the phase, as the screen shows it.
        rows: done since the last call.
        """
        if text in self.left:
            self.left[text] = max(0, self.left[text] - rows)
        if time.monotonic() - self.written > EVERY:
            self.save()

    def save(self) -> None:
        self.written = time.monotonic()
        if self.apis:
            told = {name: {**asdict(each.usage)} for name, each in self.apis.items()}
            for usage in told.values():
                del usage["seconds"]
            self.run.write_usage(told if len(told) > 1 else next(iter(told.values())))

    def __str__(self) -> str:
        """'' for an api that takes nothing but time."""
        if not self.apis:
            return ""
        text = format_usage(replace(together(each.usage for each in self.apis.values()), seconds=None))
        if any(self.left.values()):
            text += f"; to come, at most: {format_usage(self.to_come)}"
        return text

    @property
    def to_come(self) -> Usage:
        return at_most(self.apis, self.labels, self.left["generating"], self.left["varying"])


def at_most(apis: Mapping[str, Metered], labels: Sequence[Label], generated: int, varied: int) -> Usage:
    """Estimated usage of these rows, each asked of every api.

    apis: those that are paid or slow, by name.
    labels: over which the rows are spread evenly.
    generated: fresh rows.
    varied: variations.
    """
    return together(each.estimate(labels, generated, varied) for each in apis.values())


def format_usage(usage: Usage) -> str:
    """'1,204 calls, 210,000 + 88,000 tokens, $0.12 (35 rows from the cache, 2 rows without an answer of their own)'"""
    words = [f"{usage.calls:,} calls", f"{usage.prompt_tokens:,} + {usage.answer_tokens:,} tokens"]
    words.append("price unknown" if usage.money is None else f"${usage.money:,.2f}")
    if usage.seconds is not None:
        words.append(f"about {duration(usage.seconds)}")
    rest = [f"{usage.cached:,} rows from the cache"] if usage.cached else []
    rest += [f"{usage.fallbacks:,} rows without an answer of their own"] if usage.fallbacks else []
    return ", ".join(words) + (f" ({', '.join(rest)})" if rest else "")


def duration(seconds: float) -> str:
    """'40 s', '12 min', '3.5 h'"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
