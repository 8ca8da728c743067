"""What asking the api took, over all starts of a run, and what is to come: for the panel, and kept in cost.json."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from dpsyn.api import Api, Usage
from dpsyn.population import Label
from dpsyn.run import RunDirectory

EVERY = 0.5  # seconds between two writings of cost.json


def paid(api: Any) -> Any | None:
    """The api, or the part of it, that tells its usage; None where asking takes nothing but time."""
    if hasattr(api, "usage"):
        return api
    parts = [getattr(api, field.name) for field in fields(api)] if is_dataclass(api) else []
    return next((found for part in parts if hasattr(part, "vary") and (found := paid(part)) is not None), None)


class Spending:
    """Of one start of a run. generated, varied: rows that will still be asked for, at most."""

    def __init__(self, api: Api, labels: Sequence[Label], run: RunDirectory, generated: int, varied: int) -> None:
        self.api, self.labels, self.run = paid(api), labels, run
        self.left = {"generating": generated, "varying": varied}
        self.written = time.monotonic()
        if self.api is not None:
            known = run.identity() if (run.private / "config.yaml").exists() else None
            self.api.resume(Usage(**run.asked()), known and known["run"])

    def done(self, text: str, rows: int) -> None:
        """So many more rows of a phase are done."""
        if text in self.left:
            self.left[text] = max(0, self.left[text] - rows)
        if time.monotonic() - self.written > EVERY:
            self.save()

    def save(self) -> None:
        self.written = time.monotonic()
        if self.api is not None:
            self.run.has_asked({key: value for key, value in asdict(self.api.usage).items() if key != "seconds"})

    def __str__(self) -> str:
        """'' for an api that takes nothing but time."""
        if self.api is None:
            return ""
        text = shown(self.api.usage)
        if any(self.left.values()):
            text += f"; to come, at most: {shown(self.to_come)}"
        return text

    @property
    def to_come(self) -> Usage:
        assert self.api is not None
        left: Usage = self.api.estimate(self.labels, self.left["generating"], self.left["varying"])
        return left


def shown(usage: Usage) -> str:
    """'1,204 calls, 210,000 + 88,000 tokens, $0.12 (35 rows from the cache, 2 rows without an answer of their own)'"""
    words = [f"{usage.calls:,} calls", f"{usage.prompt_tokens:,} + {usage.answer_tokens:,} tokens"]
    words.append("price unknown" if usage.money is None else f"${usage.money:,.2f}")
    if usage.seconds is not None:
        words.append(f"about {duration(usage.seconds)}")
    rest = [f"{usage.cached:,} rows from the cache"] if usage.cached else []
    rest += [f"{usage.stood_in:,} rows without an answer of their own"] if usage.stood_in else []
    return ", ".join(words) + (f" ({', '.join(rest)})" if rest else "")


def duration(seconds: float) -> str:
    """'40 s', '12 min', '3.5 h'"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
