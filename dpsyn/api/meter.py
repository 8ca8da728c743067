"""What an api that asks an endpoint has used, this process and those before it; and whom it tells of its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dpsyn.api import Usage

ADDED = ("calls", "cached", "prompt_tokens", "answer_tokens", "fallbacks")


@dataclass
class Meter:
    """calls, cached, prompt_tokens, answer_tokens, fallbacks: as in Usage.

    lost: money that requests without an answer may have cost.
    run: id of the run that asks; None where it is not known.
    advance: called with the number of rows that are done, while the api is watched.
    """

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    fallbacks: int = 0
    lost: float = 0.0
    run: str | None = None
    advance: Callable[[int], None] | None = None

    def usage(self, money: float | None) -> Usage:
        """money: what the calls cost; None where that is not known."""
        return Usage(money=money, **{name: getattr(self, name) for name in ADDED})

    def resume(self, before: Usage, run: str | None) -> None:
        """Adds what processes before this one took. Money is counted anew, from calls and tokens."""
        self.run = run
        for name in ADDED:
            setattr(self, name, getattr(self, name) + getattr(before, name))

    def done(self, rows: int) -> None:
        """So many more rows are done."""
        if self.advance is not None:
            self.advance(rows)

    @contextmanager
    def watched(self, advance: Callable[[int], None]) -> Iterator[None]:
        """While it lasts, advance(n) is called as n more rows are done."""
        self.advance = advance
        try:
            yield
        finally:
            self.advance = None
