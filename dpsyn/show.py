"""What a run shows while it works: a live panel on a terminal, plain lines elsewhere.

Phases that read private data show that they go on and since when, and no number, rate or time left: how many records
there are is private. Plain output, which may be kept, has a line a phase and no times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

SHOWN_ITERATIONS = 12
SIGNS = {
    "effective": ("effective candidates", "{:.0f}"),
    "top_tenth": ("mass in top tenth", "{:.0%}"),
    "signal_to_noise": ("signal to noise", "{:.2f}"),
    "ancestors": ("ancestors", "{:.0f}"),
}


class Screen:
    """facts: lines at the head, name to value. iterations: how many there will be."""

    def __init__(self, console: Console, facts: Mapping[str, str], iterations: int) -> None:
        self.console = console
        self.facts = facts
        self.iterations = iterations
        self.made = 0  # iterations
        self.signs: dict[int, Mapping[str, float]] = {}
        self.notes: list[str] = []
        self.asked: Callable[[], str] = lambda: ""  # what the api took so far, and will take
        columns = (
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self.public = Progress(SpinnerColumn(), TextColumn("{task.description}"), *columns, console=console)
        self.hidden = Progress(
            SpinnerColumn(),
            TextColumn("{task.description} (private: no progress is shown)"),
            TimeElapsedColumn(),
            console=console,
        )
        self.live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not self.console.is_terminal:
            for name, value in self.facts.items():
                self._print(f"{name}: {value}")
            yield
            return
        with Live(self, console=self.console, refresh_per_second=8) as self.live:
            yield
            self.live.update(self, refresh=True)

    def line(self, text: str) -> None:
        """A remark that stays."""
        self.notes.append(text)
        if self.live is None:
            self._print(text)

    def reached(self, iteration: int) -> None:
        """An iteration is there."""
        self.made = iteration

    def released(self, iteration: int, signs: Mapping[str, float]) -> None:
        """Vital signs of an iteration, from its noisy votes.

        iteration: from 1 on.
        signs: as `vital_signs` gives them.
        """
        self.signs[iteration] = signs
        if self.live is None:
            parts = [f"{words} {form.format(signs[name])}" for name, (words, form) in SIGNS.items()]
            self._print(f"iteration {iteration} of {self.iterations}: " + ", ".join(parts))
            if asked := self.asked():
                self._print(f"asked: {asked}")

    @contextmanager
    def phase(self, text: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A public phase with its progress: call the result with the number of rows done.

        text: what is done.
        total: rows that will be; None: not known yet.
        """
        if self.live is None:
            self._print(f"{text} ..." if total is None else f"{text}: {total:,} rows ...")
            yield lambda _: None
            return
        task = self.public.add_task(text, total=total, rate="")

        def advance(rows: int) -> None:
            self.public.advance(task, rows)
            speed = self.public.tasks[-1].speed
            self.public.update(task, rate=f"{speed:,.0f}/s" if speed else "")

        try:
            yield advance
        finally:
            self.public.remove_task(task)

    @contextmanager
    def private_phase(self, text: str) -> Iterator[None]:
        if self.live is None:
            self._print(f"{text} ...")
            yield
            return
        task = self.hidden.add_task(text, total=None)
        try:
            yield
        finally:
            self.hidden.remove_task(task)

    def __rich__(self) -> RenderableType:
        head = Table.grid(padding=(0, 2))
        for name, value in self.facts.items():
            head.add_row(f"[dim]{name}", value)
        head.add_row("[dim]iterations", f"{self.made} of {self.iterations}")
        if asked := self.asked():
            head.add_row("[dim]asked", asked)
        parts: list[Any] = [head]
        if self.signs:
            table = Table("iteration", *(words for words, _ in SIGNS.values()), box=None, padding=(0, 2))
            for t in sorted(self.signs)[-SHOWN_ITERATIONS:]:
                table.add_row(str(t), *(form.format(self.signs[t][name]) for name, (_, form) in SIGNS.items()))
            parts += ["", table]
        parts += [f"[yellow]{note}" for note in self.notes[-4:]]
        if self.public.tasks:
            parts += ["", self.public]
        if self.hidden.tasks:
            parts += ["", self.hidden]
        return Panel(Group(*parts), title="dpsyn", border_style="cyan", expand=False)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
